//! How much memory each node of a swarm offers: unequal, drawn from a seed, and enough to survive.
//!
//! A node is first given a whole number of layers, then the bytes for them:
//!
//! - `N = 1`: all `L` layers.
//! - `N >= 2`: each node draws a weight of 2 to 8, and all are given layers in proportion to their weights, between 1
//!   and `L - 1` each (so that no node holds the model alone), as few as satisfy two rules: all together have room for
//!   at least `1.6 L` layers, and without the `min(2, N - 2)` roomiest nodes the rest still have room for `L`. Where
//!   `N` and `L` are too small for the rules, every node is given `L - 1`.
//! - Bytes: both ends of the model (embedding, norm, head), plus the layers with their keys and values for one session
//!   of the whole context, all in f32 and with placement's headroom; plus a slack of a quarter to three quarters of a
//!   layer, which makes every node's offer its own.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::model::Demand;

/// Heaviest weight; the lightest is a quarter of it.
const HEAVIEST: usize = 8;

/// How many layers each of `nodes` nodes has room for.
fn layer_counts(layers: usize, nodes: usize, rng: &mut impl Rng) -> Vec<usize> {
    if nodes == 1 {
        return vec![layers];
    }
    let most = layers.saturating_sub(1).max(1);
    let weights: Vec<usize> = (0..nodes).map(|_| rng.random_range(HEAVIEST / 4..=HEAVIEST)).collect();
    let spared = (nodes - 2).min(2);
    let mut scale = 1;
    loop {
        let counts: Vec<usize> = weights.iter().map(|weight| (weight * scale).div_ceil(HEAVIEST).min(most)).collect();
        let saturated = counts.iter().all(|count| *count == most);
        if saturated || suffices(&counts, layers, spared) {
            return counts;
        }
        scale += 1;
    }
}

/// Whether all together have room for 1.6 models, and for one without the `spared` roomiest.
fn suffices(counts: &[usize], layers: usize, spared: usize) -> bool {
    let mut sorted = counts.to_vec();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let all: usize = sorted.iter().sum();
    let rest: usize = sorted.iter().skip(spared).sum();
    all * 10 >= layers * 16 && rest >= layers
}

/// Memory that each of `nodes` nodes offers for layers, in bytes. The same seed draws the same.
pub(crate) fn budgets(demand: &Demand, nodes: usize, seed: u64) -> Vec<u64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    layer_counts(demand.layers, nodes, &mut rng)
        .into_iter()
        .map(|count| {
            let slack = demand.layer_bytes / 100 * rng.random_range(25..75);
            demand.stage_bytes(count).saturating_add(slack)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DEMAND: Demand = Demand { layers: 12, layer_bytes: 3_000_000, ends_bytes: 4_000_000 };

    fn rooms(budgets: &[u64], demand: &Demand) -> Vec<usize> {
        let room = |budget: &u64| (budget - demand.ends_bytes) / demand.layer_bytes;
        budgets.iter().map(|budget| room(budget) as usize).collect()
    }

    #[test]
    fn one_node_holds_everything() {
        let budgets = budgets(&DEMAND, 1, 7);
        assert_eq!(rooms(&budgets, &DEMAND), [12]);
    }

    #[test]
    fn a_seed_decides() {
        assert_eq!(budgets(&DEMAND, 8, 1), budgets(&DEMAND, 8, 1));
        assert_ne!(budgets(&DEMAND, 8, 1), budgets(&DEMAND, 8, 2));
    }

    #[test]
    fn eight_nodes_are_unequal() {
        for seed in 0..100 {
            let mut rooms = rooms(&budgets(&DEMAND, 8, seed), &DEMAND);
            rooms.sort_unstable();
            rooms.dedup();
            assert!(rooms.len() > 1, "seed {seed}: {rooms:?}");
        }
    }

    proptest! {
        #[test]
        fn a_swarm_outlives_its_roomiest(layers in 2usize..80, nodes in 3usize..40, seed in any::<u64>()) {
            let demand = Demand { layers, ..DEMAND };
            let budgets = budgets(&demand, nodes, seed);
            let mut rooms = rooms(&budgets, &demand);
            rooms.sort_unstable_by(|a, b| b.cmp(a));
            prop_assert!(rooms[0] < layers, "one node holds it all: {rooms:?}");
            prop_assert!(*rooms.last().unwrap() >= 1);
            let rest: usize = rooms.iter().skip((nodes - 2).min(2)).sum();
            prop_assert!(rest >= layers, "{rooms:?}");
            if layers >= 5 {
                prop_assert!(rooms.iter().sum::<usize>() * 10 >= layers * 16, "{rooms:?}");
            }
        }

        #[test]
        fn two_nodes_need_each_other(layers in 2usize..80, seed in any::<u64>()) {
            let demand = Demand { layers, ..DEMAND };
            let rooms = rooms(&budgets(&demand, 2, seed), &demand);
            prop_assert!(rooms.iter().all(|room| *room < layers), "{rooms:?}");
            prop_assert!(rooms.iter().sum::<usize>() >= layers, "{rooms:?}");
        }
    }
}
