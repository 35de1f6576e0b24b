//! What was computed: a rectangle of layers and positions, whose cells (one layer for one position) are paid once.

use consortium_protocol::wire::heartbeat::LayerRange;
use serde::{Deserialize, Serialize};

/// Layers by positions of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cells {
    /// The layers.
    pub layers: LayerRange,
    /// The first position.
    pub start: u32,
    /// The position after the last one.
    pub stop: u32,
}

impl Cells {
    /// How many of these cells lie in none of `others`.
    #[must_use]
    pub fn outside(&self, others: &[Self]) -> u64 {
        (self.layers.first..=self.layers.last)
            .map(|layer| {
                let mut covered: Vec<(u32, u32)> = others
                    .iter()
                    .filter(|other| (other.layers.first..=other.layers.last).contains(&layer))
                    .map(|other| (other.start, other.stop))
                    .collect();
                covered.sort_unstable();
                let (mut free, mut at) = (0_u64, self.start);
                for (start, stop) in covered {
                    free += u64::from(start.min(self.stop).saturating_sub(at));
                    at = at.max(stop);
                }
                free + u64::from(self.stop.saturating_sub(at))
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn cells() -> impl Strategy<Value = Cells> {
        (0..6_u16, 0..4_u16, 0..20_u32, 0..12_u32).prop_map(|(first, more, start, length)| Cells {
            layers: LayerRange { first, last: first + more },
            start,
            stop: start + length,
        })
    }

    fn set(cells: &Cells) -> BTreeSet<(u16, u32)> {
        (cells.layers.first..=cells.layers.last)
            .flat_map(|layer| (cells.start..cells.stop).map(move |position| (layer, position)))
            .collect()
    }

    proptest! {
        #[test]
        fn counts_what_a_set_counts(one in cells(), others in prop::collection::vec(cells(), 0..8)) {
            let covered: BTreeSet<_> = others.iter().flat_map(set).collect();
            prop_assert_eq!(one.outside(&others), set(&one).difference(&covered).count() as u64);
        }
    }

    #[test]
    fn the_largest_rectangle_is_counted_without_overflow() {
        let all = Cells { layers: LayerRange { first: 0, last: u16::MAX }, start: 0, stop: u32::MAX };
        assert_eq!(all.outside(&[]), 65_536 * u64::from(u32::MAX));
        assert_eq!(all.outside(&[all, all]), 0);
    }
}
