//! Orders of nodes that the placement tries.

use std::cmp::Reverse;

use crate::placement::PlacementRequest;

/// All orders of a few nodes, in lexicographic order.
pub(crate) fn permutations(nodes: usize) -> Vec<Vec<usize>> {
    let mut orders = vec![Vec::new()];
    for _ in 0..nodes {
        orders = orders
            .iter()
            .flat_map(|order| {
                (0..nodes).filter(|node| !order.contains(node)).map(|node| [order.as_slice(), &[node]].concat())
            })
            .collect();
    }
    orders
}

/// Canonical orders to start from: nodes that are pinned to layers or hold some, by first layer; the others, by speed,
/// put into each gap that those leave, and spread over all gaps.
pub(crate) fn candidate_orders(request: &PlacementRequest) -> Vec<Vec<usize>> {
    let nodes = &request.nodes;
    let place = |node: usize| nodes[node].pinned.or(nodes[node].held);
    let (mut anchored, mut free): (Vec<usize>, Vec<usize>) = (0..nodes.len()).partition(|node| place(*node).is_some());
    anchored.sort_by_key(|node| (place(*node).map(|range| (range.first, range.last)), nodes[*node].id));
    free.sort_by_key(|node| {
        let offer = &nodes[*node];
        (offer.layer_micros.max(1), Reverse(offer.memory_bytes), offer.id)
    });
    let ranges: Vec<(usize, usize)> = anchored
        .iter()
        .filter_map(|node| place(*node))
        .map(|range| (usize::from(range.first), usize::from(range.last) + 1))
        .collect();
    let gaps = gaps(&ranges, request.model.layer_bytes.len());
    let mut orders: Vec<Vec<usize>> =
        gaps.iter().map(|(place, _)| [&anchored[..*place], &free, &anchored[*place..]].concat()).collect();
    orders.push([anchored.as_slice(), &free].concat());
    orders.push([free.as_slice(), &anchored].concat());
    if gaps.len() > 1 {
        orders.push(spread(&anchored, &free, &gaps));
    }
    orders
}

/// Where layers are covered by none of the ranges (sorted by start): the number of ranges before the gap, and its
/// layers.
fn gaps(ranges: &[(usize, usize)], layers: usize) -> Vec<(usize, usize)> {
    let mut gaps = Vec::new();
    let mut covered = 0;
    for (index, (from, to)) in ranges.iter().enumerate() {
        if *from > covered {
            gaps.push((index, from - covered));
        }
        covered = covered.max(*to);
    }
    if covered < layers {
        gaps.push((ranges.len(), layers - covered));
    }
    gaps
}

/// Every free node goes to the gap that has the most layers for each node it got.
fn spread(anchored: &[usize], free: &[usize], gaps: &[(usize, usize)]) -> Vec<usize> {
    let mut shares: Vec<Vec<usize>> = vec![Vec::new(); gaps.len()];
    for node in free {
        let emptiest =
            (0..gaps.len()).max_by_key(|gap| (gaps[*gap].1 * 1024 / (shares[*gap].len() + 1), Reverse(*gap)));
        if let Some(gap) = emptiest {
            shares[gap].push(*node);
        }
    }
    let mut order = Vec::with_capacity(anchored.len() + free.len());
    let mut done = 0;
    for ((place, _), share) in gaps.iter().zip(&shares) {
        order.extend_from_slice(&anchored[done..*place]);
        order.extend_from_slice(share);
        done = *place;
    }
    order.extend_from_slice(&anchored[done..]);
    order
}
