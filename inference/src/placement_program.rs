//! The interval dynamic program of the placement, for nodes in a given order.

use std::cmp::Ordering;
use std::collections::VecDeque;

use crate::placement::{ModelCost, NodeOffer, PlacementRequest};

/// Cost of what cannot be.
const NEVER: i64 = i64::MAX / 4;

/// Bound of every single term, so that no sum of costs overflows.
const MAX_TERM: u64 = 1 << 40;

/// Microseconds that one layer counts less if its node holds it already: above what any sane layer costs.
const HELD_BONUS: i64 = 10_000_000;

/// Microseconds that a stage on a node without reputation counts more; shrinks with reputation.
const NEWCOMER_MICROS: u64 = 1_000;

/// Millisatoshi for a layer and token that weigh as much as a microsecond.
const MSAT_PER_MICRO: u64 = 10;

/// Speed taken for a node if none is measured, microseconds a layer.
const DEFAULT_LAYER_MICROS: u32 = 1_000;

/// Bandwidth taken for a node if none is measured.
const DEFAULT_BYTES_PER_S: u64 = 10_000_000;

/// One stage of a solution: node (index into the request) and layers `from..to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stage {
    pub(crate) node: usize,
    pub(crate) from: usize,
    pub(crate) to: usize,
}

/// The best pipeline of one order of nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Solution {
    /// Whether a number of stages was wanted; then more stages come before less cost.
    counted: bool,
    cost: i64,
    pub(crate) stages: Vec<Stage>,
}

impl Solution {
    /// Better first; a total order, so that the result does not depend on the order of the search.
    pub(crate) fn order(&self, other: &Self) -> Ordering {
        let more_stages = match self.counted {
            true => other.stages.len().cmp(&self.stages.len()),
            false => Ordering::Equal,
        };
        more_stages.then(self.cost.cmp(&other.cost)).then_with(|| self.stages.cmp(&other.stages))
    }
}

/// Costs of one node.
struct NodeCost {
    memory: u64,
    /// For every layer: time and price.
    per_layer: i64,
    /// Time alone.
    micros: i64,
    /// For being a stage: reach it, and its newness.
    per_stage: i64,
    link: i64,
    /// For receiving a row of activations.
    transfer: i64,
    /// For the head.
    head: i64,
    held: Option<(usize, usize)>,
    pinned: Option<(usize, usize)>,
}

/// A request made ready for the dynamic program.
pub(crate) struct Program {
    layers: usize,
    /// Bytes of the layers before each, caches and headroom included; one more than layers.
    bytes_before: Vec<u64>,
    embed_bytes: u64,
    head_bytes: u64,
    nodes: Vec<NodeCost>,
}

/// Bytes with headroom for activations and fragmentation: one part in 32.
fn with_headroom(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 32)
}

fn bounded(micros: u64) -> i64 {
    micros.min(MAX_TERM) as i64
}

impl Program {
    pub(crate) fn new(request: &PlacementRequest) -> Self {
        let model = &request.model;
        let kv = model
            .kv_bytes_per_position
            .saturating_mul(u64::from(request.context))
            .saturating_mul(u64::from(request.sessions));
        let mut bytes_before = vec![0_u64];
        for layer in &model.layer_bytes {
            let before = bytes_before.last().copied().unwrap_or_default();
            bytes_before.push(before.saturating_add(with_headroom(layer.saturating_add(kv))));
        }
        let slowest = request.nodes.iter().map(|node| node.layer_micros).max();
        let unmeasured = slowest.filter(|micros| *micros > 0).unwrap_or(DEFAULT_LAYER_MICROS);
        Self {
            layers: model.layer_bytes.len(),
            bytes_before,
            embed_bytes: with_headroom(model.embed_bytes),
            head_bytes: with_headroom(model.head_bytes),
            nodes: request.nodes.iter().map(|offer| NodeCost::new(offer, model, unmeasured)).collect(),
        }
    }

    pub(crate) fn layers(&self) -> usize {
        self.layers
    }

    /// Whether a node has the memory for layers `from..to`.
    pub(crate) fn fits(&self, node: usize, from: usize, to: usize) -> bool {
        self.bytes(from, to) <= self.nodes[node].memory
    }

    fn bytes(&self, from: usize, to: usize) -> u64 {
        let mut bytes = self.bytes_before[to] - self.bytes_before[from];
        if from == 0 {
            bytes = bytes.saturating_add(self.embed_bytes);
        }
        if to == self.layers {
            bytes = bytes.saturating_add(self.head_bytes);
        }
        bytes
    }

    /// Bytes that the nodes lack: those of the layers (the largest counted for each) that do not fit as a whole, with
    /// embedding and head on the nodes that have the most room. 0 if memory is not what is missing.
    pub(crate) fn missing_bytes(&self) -> u64 {
        let layer = (0..self.layers).map(|l| self.bytes_before[l + 1] - self.bytes_before[l]).max();
        let layer = layer.unwrap_or(1).max(1);
        let mut room: Vec<u64> = self.nodes.iter().map(|node| node.memory).collect();
        room.sort_unstable();
        let mut missing = 0_u64;
        for extra in [self.embed_bytes, self.head_bytes] {
            let Some(largest) = room.last_mut() else {
                return extra;
            };
            missing = missing.saturating_add(extra.saturating_sub(*largest));
            *largest = largest.saturating_sub(extra);
            room.sort_unstable();
        }
        let fit: u64 = room.iter().map(|room| room / layer).fold(0, u64::saturating_add);
        let short = (self.layers as u64).saturating_sub(fit);
        missing.saturating_add(short.saturating_mul(layer))
    }

    /// Cost of a node as the stage of layers `from..to`; `None` if it cannot be.
    fn cost(&self, node: usize, from: usize, to: usize) -> Option<i64> {
        let costs = &self.nodes[node];
        if costs.pinned.is_some_and(|pinned| pinned != (from, to)) || !self.fits(node, from, to) {
            return None;
        }
        let layers = (to - from) as i64;
        let mut cost = costs.per_layer * layers + costs.per_stage;
        if from > 0 {
            cost += costs.transfer;
        }
        if to == self.layers {
            cost += costs.head + costs.link;
        }
        if costs.held == Some((from, to)) {
            cost -= HELD_BONUS * layers;
        }
        Some(cost)
    }

    /// Latency of a pipeline without price, reputation and bonus, microseconds.
    pub(crate) fn latency(&self, stages: &[Stage]) -> u64 {
        let of = |stage: &Stage| {
            let costs = &self.nodes[stage.node];
            let mut micros = costs.micros * (stage.to - stage.from) as i64 + costs.link;
            if stage.from > 0 {
                micros += costs.transfer;
            }
            if stage.to == self.layers {
                micros += costs.head + costs.link;
            }
            micros
        };
        stages.iter().map(of).sum::<i64>().unsigned_abs()
    }

    /// How many cells one [`Program::solve`] computes.
    pub(crate) fn cells(&self, nodes: usize, stages: Option<usize>) -> usize {
        nodes * (self.layers + 1) * stages.unwrap_or(1)
    }

    /// The best pipeline with the nodes in this order, each used or skipped; with `stages`, of as many stages as
    /// possible up to that number.
    pub(crate) fn solve(&self, order: &[usize], stages: Option<usize>) -> Option<Solution> {
        let width = self.layers + 1;
        let planes = stages.map_or(1, |stages| stages + 1);
        // table[c * width + b]: least cost to cover b layers with c stages (of any number, if they are not counted).
        let mut table = vec![NEVER; planes * width];
        table[0] = 0;
        let mut choices = Vec::with_capacity(order.len());
        for node in order {
            let pinned = self.nodes[*node].pinned.is_some();
            let mut next = match pinned {
                true => vec![NEVER; planes * width],
                false => table.clone(),
            };
            let mut choice = vec![SKIPPED; planes * width];
            for plane in 0..planes {
                let (from, to) = match stages {
                    None => (0, 0),
                    Some(_) if plane == 0 => continue,
                    Some(_) => (plane - 1, plane),
                };
                let row = &table[from * width..(from + 1) * width];
                let cells = to * width..(to + 1) * width;
                self.extend(*node, row, &mut next[cells.clone()], &mut choice[cells]);
            }
            table = next;
            choices.push(choice);
        }
        let plane = (0..planes).rev().find(|plane| table[plane * width + self.layers] < NEVER)?;
        Some(Solution {
            counted: stages.is_some(),
            cost: table[plane * width + self.layers],
            stages: self.trace(order, &choices, plane, stages.is_some()),
        })
    }

    /// Follows the choices back from the end.
    fn trace(&self, order: &[usize], choices: &[Vec<u16>], mut plane: usize, counted: bool) -> Vec<Stage> {
        let mut stages = Vec::new();
        let mut to = self.layers;
        for (node, choice) in order.iter().zip(choices).rev() {
            let from = choice[plane * (self.layers + 1) + to];
            if from == SKIPPED {
                continue;
            }
            let from = usize::from(from);
            stages.push(Stage { node: *node, from, to });
            to = from;
            plane -= usize::from(counted);
        }
        stages.reverse();
        stages
    }

    /// Considers one node as the stage behind every prefix: `row` holds the costs of prefixes before it, `next` the
    /// least costs so far with it or without.
    fn extend(&self, node: usize, row: &[i64], next: &mut [i64], choice: &mut [u16]) {
        let mut consider = |from: usize, to: usize| {
            if row[from] >= NEVER {
                return;
            }
            if let Some(cost) = self.cost(node, from, to).map(|cost| row[from] + cost)
                && cost < next[to]
            {
                next[to] = cost;
                choice[to] = from as u16;
            }
        };
        let costs = &self.nodes[node];
        if let Some((from, to)) = costs.pinned {
            consider(from, to);
            return;
        }
        // Behind an inner prefix the cost is linear in the layers, and how far back a node can start only grows with
        // its end: the least start is a sliding window minimum. The ends are treated on their own.
        let mut window: VecDeque<usize> = VecDeque::new();
        let value = |from: usize| row[from] - costs.per_layer * from as i64;
        let mut start = 1;
        for to in 1..self.layers {
            consider(0, to);
            let newest = to - 1;
            if newest >= 1 && row[newest] < NEVER {
                while window.back().is_some_and(|back| value(*back) > value(newest)) {
                    window.pop_back();
                }
                window.push_back(newest);
            }
            while start < to && !self.fits(node, start, to) {
                start += 1;
            }
            while window.front().is_some_and(|front| *front < start) {
                window.pop_front();
            }
            if let Some(front) = window.front() {
                consider(*front, to);
            }
        }
        for from in 0..self.layers {
            consider(from, self.layers);
        }
        if let Some((from, to)) = costs.held {
            consider(from, to);
        }
    }
}

/// Marks a cell that is best without the node.
const SKIPPED: u16 = u16::MAX;

impl NodeCost {
    fn new(offer: &NodeOffer, model: &ModelCost, unmeasured: u32) -> Self {
        let layers = model.layer_bytes.len();
        let inside = |range: consortium_protocol::wire::heartbeat::LayerRange| {
            let (from, to) = (usize::from(range.first), usize::from(range.last) + 1);
            (from < to && to <= layers).then_some((from, to))
        };
        let micros = match offer.layer_micros {
            0 => u64::from(unmeasured),
            measured => u64::from(measured),
        };
        let bytes_per_s = match offer.bytes_per_s {
            0 => DEFAULT_BYTES_PER_S,
            measured => measured,
        };
        let weights: u64 = model.layer_bytes.iter().copied().fold(0, u64::saturating_add);
        let mean_layer = (weights / layers.max(1) as u64).max(1);
        let head = u128::from(micros) * u128::from(model.head_bytes) / u128::from(mean_layer);
        let link = bounded(u64::from(offer.link_micros));
        let newness = NEWCOMER_MICROS / (1 + u64::from(offer.reputation));
        Self {
            memory: offer.memory_bytes,
            per_layer: bounded(micros + offer.price.0 / MSAT_PER_MICRO),
            micros: bounded(micros),
            per_stage: link + bounded(newness),
            link,
            transfer: bounded(u64::from(model.hidden) * 4 * 1_000_000 / bytes_per_s),
            head: bounded(u64::try_from(head).unwrap_or(u64::MAX)),
            held: offer.held.and_then(inside),
            pinned: offer.pinned.and_then(inside),
        }
    }
}
