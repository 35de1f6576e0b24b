//! Which node holds which layers: a pure function of what the nodes offer.
//!
//! **Objective.** The expected latency of one token at batch 1: for every stage its layers at the measured time of its
//! node, one link latency to reach it, and (behind the first) the transfer of one row of activations; for the last the
//! head, at the node's speed by its bytes, and one link latency for the token's way back. To this come small terms for
//! price and for nodes without reputation, and a large bonus for layers that a node holds already, so that a new master
//! adopts a running pipeline instead of loading it anew.
//!
//! **Method.** For a fixed order of the nodes, the best choice of which to use and where to cut is found exactly by an
//! interval dynamic program over (node in order, layers covered, stages used), with a sliding window minimum, in
//! O(nodes x layers x stages). The order is searched: up to [`EXACT_NODES`] nodes every order is tried, so the result is
//! optimal. Beyond that the search starts from canonical orders (nodes that hold or are pinned to layers by first layer,
//! the others by speed, put into every gap between those) and moves single nodes while that helps, within a fixed
//! budget of work. What an order decides is little: only the first and the last stage and held or pinned ranges depend on
//! it. In the tests the result is compared with brute force.
//!
//! Everything is integer arithmetic in canonical order: equal requests give equal placements everywhere.

use std::collections::BTreeSet;

use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::wire::pipeline::Hop;
use consortium_protocol::{Msat, NodeId};

use crate::placement_order::{candidate_orders, permutations};
use crate::placement_program::{Program, Solution};

/// Nodes up to which every order is tried, so that the placement is optimal.
pub const EXACT_NODES: usize = 5;

/// Cells of dynamic programs that one placement may compute: some tens of milliseconds.
const BUDGET: usize = 2_000_000;

/// What a model costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelCost {
    /// Resident bytes of every layer, in order.
    pub layer_bytes: Vec<u64>,
    /// Resident bytes of the embedding, on the first stage.
    pub embed_bytes: u64,
    /// Resident bytes of last norm and head, on the last stage.
    pub head_bytes: u64,
    /// Bytes of keys and values of one layer for one position.
    pub kv_bytes_per_position: u64,
    /// Width of a row of activations, elements of four bytes.
    pub hidden: u32,
}

/// What a node offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeOffer {
    /// Who it is.
    pub id: NodeId,
    /// Bytes it gives to weights and caches.
    pub memory_bytes: u64,
    /// Time of one decode token through one layer, microseconds; 0 = not measured, taken as the slowest that is.
    pub layer_micros: u32,
    /// Latency to reach it, one way, microseconds.
    pub link_micros: u32,
    /// Bandwidth towards it; 0 = not measured, taken as 10 MB/s.
    pub bytes_per_s: u64,
    /// Price of one layer for one token.
    pub price: Msat,
    /// Its standing; a node without any is charged one millisecond.
    pub reputation: u32,
    /// Layers of this model that it has loaded.
    pub held: Option<LayerRange>,
    /// Layers that it must hold, by the operator's order.
    pub pinned: Option<LayerRange>,
}

/// What shall be placed where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementRequest {
    /// The model.
    pub model: ModelCost,
    /// Positions of one session.
    pub context: u32,
    /// Sessions to keep caches for.
    pub sessions: u32,
    /// Stages preferred: this many if that is feasible, else the nearest fewer, else the nearest more. `None`: as many
    /// as are cheapest.
    pub stages: Option<usize>,
    /// The nodes to choose from.
    pub nodes: Vec<NodeOffer>,
}

/// A pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The stages in order, covering all layers.
    pub stages: Vec<Hop>,
    /// Expected latency of one token at batch 1, microseconds.
    pub expected_micros: u64,
}

/// Why there is no placement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// The model has no layers, or more than can be numbered.
    #[error("a model of {0} layers cannot be placed")]
    Layers(usize),
    /// There are no nodes.
    #[error("there are no nodes to place the model on")]
    NoNodes,
    /// A node is listed twice.
    #[error("node {0} is listed twice")]
    DuplicateNode(NodeId),
    /// The nodes cannot hold the model.
    #[error("the nodes cannot hold the model with its caches: at least {missing_bytes} bytes are missing")]
    NoCapacity {
        /// Bytes that are missing at least, whole layers counted.
        missing_bytes: u64,
    },
    /// A pin cannot be honoured.
    #[error("the pin of node {node} to layers {range} cannot be honoured: {reason}")]
    Pin {
        /// The pinned node.
        node: NodeId,
        /// The layers it is pinned to.
        range: LayerRange,
        /// Why not.
        reason: &'static str,
    },
}

/// Finds a pipeline for a model. The order of the nodes in the request makes no difference.
///
/// # Errors
/// [`PlacementError`]; a pin that cannot be honoured is named.
pub fn place(request: &PlacementRequest) -> Result<Placement, PlacementError> {
    let mut request = request.clone();
    request.nodes.sort_by_key(|node| node.id);
    place_sorted(&request)
}

fn place_sorted(request: &PlacementRequest) -> Result<Placement, PlacementError> {
    let layers = request.model.layer_bytes.len();
    if layers == 0 || layers > usize::from(u16::MAX) {
        return Err(PlacementError::Layers(layers));
    }
    if request.nodes.is_empty() {
        return Err(PlacementError::NoNodes);
    }
    let mut neighbours = request.nodes.iter().zip(request.nodes.iter().skip(1));
    if let Some((twice, _)) = neighbours.find(|(a, b)| a.id == b.id) {
        return Err(PlacementError::DuplicateNode(twice.id));
    }
    let most = layers.min(request.nodes.len());
    let program = Program::new(request);
    check_pins(request, &program)?;
    let solution = match request.stages {
        None => search(request, &program, None),
        Some(wanted) => {
            let wanted = wanted.clamp(1, most);
            let solution = search(request, &program, Some(wanted));
            // Neither the wanted number of stages nor fewer will do: the nearest above that does.
            solution.or_else(|| ((wanted + 1)..=most).find_map(|more| search(request, &program, Some(more))))
        }
    };
    let Some(solution) = solution else {
        return Err(unplaceable(request, &program));
    };
    Ok(Placement {
        expected_micros: program.latency(&solution.stages),
        stages: solution
            .stages
            .iter()
            .map(|stage| Hop {
                node: request.nodes[stage.node].id,
                range: LayerRange { first: stage.from as u16, last: (stage.to - 1) as u16 },
            })
            .collect(),
    })
}

/// The best solution over the orders that are tried, with at most `stages` stages and as many of them as possible.
fn search(request: &PlacementRequest, program: &Program, stages: Option<usize>) -> Option<Solution> {
    let nodes = request.nodes.len();
    if nodes <= EXACT_NODES {
        return permutations(nodes).iter().filter_map(|order| program.solve(order, stages)).min_by(Solution::order);
    }
    let mut best: Option<(Solution, Vec<usize>)> = None;
    let better = |new: &Solution, best: &Option<(Solution, Vec<usize>)>| {
        best.as_ref().is_none_or(|(old, _)| new.order(old).is_lt())
    };
    let mut left = BUDGET;
    let work = program.cells(nodes, stages);
    for order in candidate_orders(request) {
        if let Some(solution) = program.solve(&order, stages).filter(|s| better(s, &best)) {
            best = Some((solution, order));
        }
        left = left.saturating_sub(work);
    }
    // Moves of one node to the front, to the back, or next to a stage in use, while they help.
    let mut improved = true;
    while improved && left > 0 {
        improved = false;
        for node in 0..nodes {
            let Some((solution, order)) = &best else {
                return None;
            };
            for moved in moves_of(node, order, solution) {
                left = left.saturating_sub(work);
                if left == 0 {
                    break;
                }
                if let Some(solution) = program.solve(&moved, stages).filter(|s| better(s, &best)) {
                    best = Some((solution, moved));
                    improved = true;
                }
            }
        }
    }
    best.map(|(solution, _)| solution)
}

/// The orders that differ by the place of one node.
fn moves_of(node: usize, order: &[usize], solution: &Solution) -> Vec<Vec<usize>> {
    let rest: Vec<usize> = order.iter().copied().filter(|other| *other != node).collect();
    let used: BTreeSet<usize> = solution.stages.iter().map(|stage| stage.node).collect();
    let behind_used = rest.iter().enumerate().filter(|(_, other)| used.contains(other)).map(|(index, _)| index + 1);
    std::iter::once(0)
        .chain(behind_used)
        .chain(std::iter::once(rest.len()))
        .collect::<BTreeSet<usize>>()
        .into_iter()
        .map(|place| {
            let mut moved = rest.clone();
            moved.insert(place, node);
            moved
        })
        .filter(|moved| moved != order)
        .collect()
}

fn check_pins(request: &PlacementRequest, program: &Program) -> Result<(), PlacementError> {
    let mut pins: Vec<(LayerRange, usize)> =
        request.nodes.iter().enumerate().filter_map(|(index, node)| Some((node.pinned?, index))).collect();
    pins.sort_by_key(|(range, index)| (range.first, request.nodes[*index].id));
    let mut next = 0;
    for (range, index) in pins {
        let (first, last) = (usize::from(range.first), usize::from(range.last));
        let reason = if first > last || last >= program.layers() {
            Some("the model does not have these layers")
        } else if first < next {
            Some("another pin has some of these layers")
        } else if !program.fits(index, first, last + 1) {
            Some("the layers with their caches do not fit into the memory it offers")
        } else {
            None
        };
        if let Some(reason) = reason {
            return Err(PlacementError::Pin { node: request.nodes[index].id, range, reason });
        }
        next = last + 1;
    }
    Ok(())
}

/// Tells a lack of memory from pins that leave no way to cover the rest.
fn unplaceable(request: &PlacementRequest, program: &Program) -> PlacementError {
    let missing_bytes = program.missing_bytes();
    let pinned = request.nodes.iter().filter_map(|node| Some((node, node.pinned?))).next();
    match pinned {
        Some((node, range)) if missing_bytes == 0 => PlacementError::Pin {
            node: node.id,
            range,
            reason: "the other nodes cannot hold the layers that the pins leave",
        },
        _ => PlacementError::NoCapacity { missing_bytes: missing_bytes.max(1) },
    }
}
