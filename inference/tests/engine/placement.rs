//! The placement against brute force, and what it promises.

use std::collections::BTreeSet;
use std::time::Instant;

use consortium_inference::placement::{
    EXACT_NODES, ModelCost, NodeOffer, Placement, PlacementError, PlacementRequest, place,
};
use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::{Msat, NodeId};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn id(n: u8) -> NodeId {
    NodeId::from_bytes([n; 32])
}

fn range(first: u16, last: u16) -> LayerRange {
    LayerRange { first, last }
}

fn node(n: u8, memory_bytes: u64, layer_micros: u32) -> NodeOffer {
    NodeOffer {
        id: id(n),
        memory_bytes,
        layer_micros,
        link_micros: 300,
        bytes_per_s: 100_000_000,
        price: Msat(0),
        reputation: 10_000,
        held: None,
        pinned: None,
    }
}

fn request(layers: usize, nodes: Vec<NodeOffer>) -> PlacementRequest {
    PlacementRequest {
        model: ModelCost {
            layer_bytes: vec![3_200; layers],
            embed_bytes: 3_200,
            head_bytes: 6_400,
            kv_bytes_per_position: 0,
            hidden: 1024,
        },
        context: 100,
        sessions: 1,
        stages: None,
        nodes,
    }
}

fn shown(placement: &Placement) -> Vec<(u8, u16, u16)> {
    let stage =
        |hop: &consortium_protocol::wire::pipeline::Hop| (hop.node.as_bytes()[0], hop.range.first, hop.range.last);
    placement.stages.iter().map(stage).collect()
}

fn with_headroom(bytes: u64) -> u64 {
    bytes + bytes / 32
}

/// Latency of one node as the stage of layers `from..to`, if it has the memory.
fn stage_cost(request: &PlacementRequest, node: &NodeOffer, from: usize, to: usize) -> Option<u64> {
    let model = &request.model;
    let layers = model.layer_bytes.len();
    let kv = model.kv_bytes_per_position * u64::from(request.context) * u64::from(request.sessions);
    let mut bytes: u64 = model.layer_bytes[from..to].iter().map(|b| with_headroom(b + kv)).sum();
    let mut micros = u64::from(node.layer_micros) * (to - from) as u64 + u64::from(node.link_micros);
    if from == 0 {
        bytes += with_headroom(model.embed_bytes);
    } else {
        micros += u64::from(model.hidden) * 4 * 1_000_000 / node.bytes_per_s;
    }
    if to == layers {
        bytes += with_headroom(model.head_bytes);
        let mean = model.layer_bytes.iter().sum::<u64>() / layers as u64;
        micros += u64::from(node.layer_micros) * model.head_bytes / mean + u64::from(node.link_micros);
    }
    (bytes <= node.memory_bytes).then_some(micros)
}

/// The least latency for every number of stages, over all ordered choices of nodes and all cuts.
fn brute(request: &PlacementRequest) -> Vec<Option<u64>> {
    let mut best = vec![None; request.nodes.len() + 1];
    let mut used = vec![false; request.nodes.len()];
    brute_from(request, 0, 0, 0, &mut used, &mut best);
    best
}

fn brute_from(
    request: &PlacementRequest,
    from: usize,
    stages: usize,
    cost: u64,
    used: &mut Vec<bool>,
    best: &mut [Option<u64>],
) {
    let layers = request.model.layer_bytes.len();
    if from == layers {
        best[stages] = Some(best[stages].map_or(cost, |b: u64| b.min(cost)));
        return;
    }
    for index in 0..request.nodes.len() {
        if used[index] {
            continue;
        }
        used[index] = true;
        for to in from + 1..=layers {
            let node = &request.nodes[index];
            if node.pinned.is_some_and(|pin| (usize::from(pin.first), usize::from(pin.last) + 1) != (from, to)) {
                continue;
            }
            if let Some(stage) = stage_cost(request, node, from, to) {
                brute_from(request, to, stages + 1, cost + stage, used, best);
            }
        }
        used[index] = false;
    }
}

fn random_request(rng: &mut ChaCha8Rng, nodes: u8, layers: usize) -> PlacementRequest {
    let offers = (0..nodes)
        .map(|n| NodeOffer {
            link_micros: rng.random_range(0..3_000),
            bytes_per_s: rng.random_range(1_000_000..100_000_000),
            ..node(n, rng.random_range(0..30_000), rng.random_range(1..3_000))
        })
        .collect();
    let mut request = request(layers, offers);
    request.model.layer_bytes = (0..layers).map(|_| rng.random_range(1_000..5_000)).collect();
    request.model.kv_bytes_per_position = rng.random_range(0..10);
    request
}

fn check_valid(request: &PlacementRequest, placement: &Placement) {
    let mut next = 0;
    let mut nodes = BTreeSet::new();
    let mut cost = 0;
    for hop in &placement.stages {
        assert_eq!(hop.range.first, next);
        assert!(nodes.insert(hop.node));
        next = hop.range.last + 1;
        let offer = request.nodes.iter().find(|offer| offer.id == hop.node).unwrap();
        cost += stage_cost(request, offer, usize::from(hop.range.first), usize::from(next)).unwrap();
    }
    assert_eq!(usize::from(next), request.model.layer_bytes.len());
    assert_eq!(cost, placement.expected_micros);
}

#[test]
fn few_nodes_are_placed_optimally() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut feasible = 0;
    for _ in 0..400 {
        let nodes = rng.random_range(1..=EXACT_NODES as u8);
        let layers = rng.random_range(1..7);
        let mut request = random_request(&mut rng, nodes, layers);
        let by_stages = brute(&request);
        let best = by_stages.iter().flatten().min();
        match (place(&request), best) {
            (Ok(placement), Some(best)) => {
                check_valid(&request, &placement);
                assert_eq!(placement.expected_micros, *best, "{request:?}");
                feasible += 1;
            }
            (Err(PlacementError::NoCapacity { missing_bytes }), None) => assert!(missing_bytes > 0),
            other => panic!("{other:?} for {request:?}"),
        }
        let most = layers.min(usize::from(nodes));
        for wanted in 1..=7_usize {
            request.stages = Some(wanted);
            let clamped = wanted.min(most);
            let stages = (1..=clamped).rev().chain(clamped + 1..=most).find(|n| by_stages[*n].is_some());
            match (place(&request), stages) {
                (Ok(placement), Some(stages)) => {
                    check_valid(&request, &placement);
                    assert_eq!(placement.stages.len(), stages);
                    assert_eq!(Some(placement.expected_micros), by_stages[stages]);
                }
                (Err(PlacementError::NoCapacity { .. }), None) => {}
                other => panic!("{other:?} for {request:?}"),
            }
        }
    }
    assert!(feasible > 100, "only {feasible} cases were feasible");
}

#[test]
fn more_nodes_are_placed_nearly_optimally() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let (mut worst, mut misses, mut cases) = (1.0_f64, 0, 0);
    for _ in 0..120 {
        let request = random_request(&mut rng, 7, 6);
        let best = brute(&request).into_iter().flatten().min();
        match (place(&request), best) {
            (Ok(placement), Some(best)) => {
                check_valid(&request, &placement);
                worst = worst.max(placement.expected_micros as f64 / best as f64);
                misses += u32::from(placement.expected_micros > best);
                cases += 1;
            }
            (Err(_), None) => {}
            other => panic!("{other:?} for {request:?}"),
        }
    }
    assert!(cases > 60 && worst < 1.15 && misses * 10 <= cases, "{worst}: {misses} of {cases} are not optimal");
}

#[test]
fn pins_are_honoured() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for _ in 0..200 {
        let mut request = random_request(&mut rng, 4, 6);
        let first = rng.random_range(0..6);
        request.nodes[1].pinned = Some(range(first, rng.random_range(first..6)));
        let possible: BTreeSet<u64> = brute(&request).into_iter().flatten().collect();
        match place(&request) {
            Ok(placement) => {
                let has = placement.stages.iter().find(|hop| hop.node == id(1)).unwrap();
                assert_eq!(Some(has.range), request.nodes[1].pinned);
                check_valid(&request, &placement);
            }
            Err(PlacementError::Pin { node, .. }) => assert_eq!(node, id(1)),
            // Brute force may leave a pinned node out, so what it can do says nothing here.
            Err(PlacementError::NoCapacity { .. }) => {}
            Err(other) => panic!("{other:?} {possible:?}"),
        }
    }
    let big = 1 << 40;
    let mut request = request(8, vec![node(1, big, 10), node(2, big, 10)]);
    let refused = |request: &PlacementRequest, n: u8| match place(request) {
        Err(PlacementError::Pin { node, .. }) => assert_eq!(node, id(n)),
        other => panic!("{other:?}"),
    };
    request.nodes[0].pinned = Some(range(4, 8));
    refused(&request, 1);
    request.nodes[0].pinned = Some(range(0, 4));
    request.nodes[1].pinned = Some(range(4, 7));
    refused(&request, 2);
    request.nodes[1].pinned = Some(range(6, 7));
    assert!(matches!(place(&request), Err(PlacementError::Pin { .. })));
    request.nodes[1].pinned = Some(range(5, 7));
    assert_eq!(shown(&place(&request).unwrap()), [(1, 0, 4), (2, 5, 7)]);
    request.nodes[1].memory_bytes = 10;
    refused(&request, 2);
}

#[test]
fn held_layers_are_adopted() {
    let big = 1 << 40;
    // Three slow nodes hold the model; a fast one could take it all.
    let mut nodes = vec![node(1, big, 900), node(2, big, 900), node(3, big, 900), node(4, big, 10)];
    nodes[2].held = Some(range(0, 9));
    nodes[0].held = Some(range(10, 19));
    nodes[1].held = Some(range(20, 29));
    let mut request = request(30, nodes);
    assert_eq!(shown(&place(&request).unwrap()), [(3, 0, 9), (1, 10, 19), (2, 20, 29)]);
    // The middle one is lost: the others keep what they have, and the gap alone is filled.
    request.nodes.remove(0);
    assert_eq!(shown(&place(&request).unwrap()), [(3, 0, 9), (4, 10, 19), (2, 20, 29)]);
    // The same among many nodes, where orders are searched.
    for n in 10..40 {
        request.nodes.push(node(n, big, 20));
    }
    request.stages = Some(3);
    assert_eq!(shown(&place(&request).unwrap()), [(3, 0, 9), (4, 10, 19), (2, 20, 29)]);
    // First and last stage are lost at once.
    let mut two = request.clone();
    two.nodes.retain(|offer| offer.held.is_none());
    two.nodes.push(NodeOffer { held: Some(range(10, 19)), ..node(1, big, 900) });
    let placed = shown(&place(&two).unwrap());
    assert_eq!(placed.len(), 3);
    assert_eq!(placed[1], (1, 10, 19));
}

#[test]
fn price_and_reputation_break_ties() {
    let big = 1 << 40;
    let mut nodes = vec![node(1, big, 100), node(2, big, 100)];
    nodes[0].price = Msat(500);
    let mut request = request(8, nodes);
    assert_eq!(shown(&place(&request).unwrap()), [(2, 0, 7)]);
    request.nodes[0].price = Msat(0);
    request.nodes[1].reputation = 0;
    assert_eq!(shown(&place(&request).unwrap()), [(1, 0, 7)]);
}

#[test]
fn missing_capacity_is_told() {
    // Eight layers, embedding and head are 35 200 bytes and their headroom of 1 100.
    let lacking = request(8, vec![node(1, 20_000, 10), node(2, 13_000, 10)]);
    let Err(PlacementError::NoCapacity { missing_bytes }) = place(&lacking) else {
        panic!("placed");
    };
    assert!((3_300..=6_600).contains(&missing_bytes), "{missing_bytes}");
    let mut enough = lacking;
    enough.nodes.push(node(3, missing_bytes, 10));
    assert!(place(&enough).is_ok());
    enough.sessions = 1000;
    enough.model.kv_bytes_per_position = 16;
    assert!(matches!(place(&enough), Err(PlacementError::NoCapacity { .. })));
}

#[test]
fn malformed_requests() {
    assert_eq!(place(&request(0, vec![node(1, 1, 1)])), Err(PlacementError::Layers(0)));
    assert_eq!(place(&request(4, vec![])), Err(PlacementError::NoNodes));
    let twice = request(4, vec![node(1, 1, 1), node(2, 1, 1), node(1, 1, 1)]);
    assert_eq!(place(&twice), Err(PlacementError::DuplicateNode(id(1))));
    let mut wild = request(4, vec![node(1, u64::MAX, u32::MAX), node(2, u64::MAX, 0)]);
    wild.model.layer_bytes = vec![u64::MAX; 4];
    wild.model.head_bytes = u64::MAX;
    wild.model.hidden = u32::MAX;
    wild.nodes[0].price = Msat(u64::MAX);
    wild.nodes[0].bytes_per_s = 1;
    wild.nodes[1].bytes_per_s = 0;
    wild.nodes[0].held = Some(range(9, 3));
    let _ = place(&wild);
}

#[test]
fn large_clusters_are_placed_fast_and_alike() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for stages in [None, Some(8), Some(64)] {
        let mut request = random_request(&mut rng, 64, 128);
        for offer in &mut request.nodes {
            offer.memory_bytes = rng.random_range(30_000..90_000);
        }
        request.model.layer_bytes = vec![3_200; 128];
        request.model.kv_bytes_per_position = 0;
        request.stages = stages;
        let started = Instant::now();
        let placed = place(&request).unwrap();
        let took = started.elapsed();
        eprintln!("64 nodes, 128 layers, {stages:?}: {took:?}, {} stages", placed.stages.len());
        assert!(took.as_secs() < 10, "{took:?}");
        check_valid(&request, &placed);
        request.nodes.shuffle(&mut rng);
        assert_eq!(place(&request).unwrap(), placed);
    }
}
