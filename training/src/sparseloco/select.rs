//! The largest values of a block, without sorting it.

use super::layout::Block;
use super::{BLOCK, FEEDBACK, KEPT};

/// How many elements share a maximum when the threshold is guessed.
const LANES: usize = 64;

/// Finds the `k` elements of largest magnitude of a block; of equal ones, those that come first.
///
/// The block is dealt out to 64 lanes. The k-th largest of the lanes' maxima is a lower bound of the k-th largest element,
/// and few elements reach it; among these an ordinary selection decides. Both passes are plain loops that compilers turn
/// into vector code, and no input makes the result wrong, only slower.
#[derive(Debug)]
pub(super) struct Selector {
    /// Magnitudes of the block: floats without their sign order like integers.
    magnitudes: Box<[i32; BLOCK]>,
    /// Candidates, magnitude first, then the place from the end.
    candidates: Box<[u64; BLOCK]>,
    /// The positions found, rising.
    positions: [u16; KEPT],
}

impl Selector {
    pub(super) fn new() -> Self {
        Self { magnitudes: Box::new([0; BLOCK]), candidates: Box::new([0; BLOCK]), positions: [0; KEPT] }
    }

    /// Adds `delta` to the decayed `error` over a block, and answers which positions now are largest.
    pub(super) fn accumulate(&mut self, block: &Block, error: &mut [f32], delta: &[f32]) -> &[u16] {
        for row in 0..block.rows {
            let begin = block.offset + row * block.stride;
            let (error, delta) = (&mut error[begin..][..block.columns], &delta[begin..][..block.columns]);
            let magnitudes = &mut self.magnitudes[row * block.columns..][..block.columns];
            for ((e, d), m) in error.iter_mut().zip(delta).zip(magnitudes) {
                *e = FEEDBACK * *e + *d;
                *m = magnitude(*e);
            }
        }
        self.largest(block.size(), block.kept())
    }

    fn largest(&mut self, size: usize, kept: usize) -> &[u16] {
        let threshold = self.threshold(size, kept);
        let mut found = 0;
        for (place, m) in (0u64..).zip(&self.magnitudes[..size]) {
            // Written every time, kept only if the next one goes elsewhere: no branch to mispredict.
            self.candidates[found] = (*m as u64) << 16 | (BLOCK as u64 - 1 - place);
            found += usize::from(*m >= threshold);
        }
        let candidates = &mut self.candidates[..found];
        if found > kept {
            candidates.select_nth_unstable_by(kept - 1, |a, b| b.cmp(a));
        }
        for (position, candidate) in self.positions.iter_mut().zip(&candidates[..kept]) {
            *position = (BLOCK as u64 - 1 - (candidate & 0xffff)) as u16;
        }
        self.positions[..kept].sort_unstable();
        &self.positions[..kept]
    }

    fn threshold(&self, size: usize, kept: usize) -> i32 {
        let magnitudes = &self.magnitudes[..size];
        let (whole, rest) = magnitudes.as_chunks::<LANES>();
        let mut lanes = [0i32; LANES];
        for chunk in whole {
            lanes.iter_mut().zip(chunk).for_each(|(lane, m)| *lane = if *m > *lane { *m } else { *lane });
        }
        lanes.iter_mut().zip(rest).for_each(|(lane, m)| *lane = if *m > *lane { *m } else { *lane });
        // There are as many lanes with an element in them as the block has elements, or all.
        *lanes[..size.min(LANES)].select_nth_unstable_by(kept - 1, |a, b| b.cmp(a)).1
    }
}

fn magnitude(value: f32) -> i32 {
    (value.to_bits() & 0x7fff_ffff) as i32
}

/// Whether what the error feedback becomes is finite everywhere.
pub(super) fn stays_finite(error: &[f32], delta: &[f32]) -> bool {
    let largest = |pairs: std::iter::Zip<std::slice::Iter<'_, f32>, std::slice::Iter<'_, f32>>| {
        pairs.map(|(e, d)| magnitude(FEEDBACK * *e + *d)).fold(0, |a, b| if b > a { b } else { a })
    };
    let chunks = error.chunks(BLOCK).zip(delta.chunks(BLOCK));
    chunks.map(|(e, d)| largest(e.iter().zip(d))).all(|m| m < magnitude(f32::INFINITY))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn select(values: &[f32], kept: usize) -> Vec<u16> {
        let mut selector = Selector::new();
        values.iter().zip(selector.magnitudes.iter_mut()).for_each(|(v, m)| *m = magnitude(*v));
        selector.largest(values.len(), kept).to_vec()
    }

    fn sorted(values: &[f32], kept: usize) -> Vec<u16> {
        let mut order: Vec<u16> = (0..values.len() as u16).collect();
        order.sort_by(|a, b| values[usize::from(*b)].abs().total_cmp(&values[usize::from(*a)].abs()));
        order.truncate(kept);
        order.sort_unstable();
        order
    }

    proptest! {
        #[test]
        fn selection_agrees_with_a_stable_sort(
            values in proptest::collection::vec(prop_oneof![-4i8..4, any::<i8>()], 1..=4096), scale in -1e30f32..1e30
        ) {
            let values: Vec<f32> = values.into_iter().map(|v| f32::from(v) * scale).collect();
            let kept = super::super::kept_of(values.len());
            prop_assert_eq!(select(&values, kept), sorted(&values, kept));
        }
    }

    #[test]
    fn of_equal_magnitudes_the_first_are_kept() {
        let mut values = vec![-1.0; 4096];
        assert_eq!(select(&values, 64), (0..64).collect::<Vec<u16>>());
        values[4095] = 2.0;
        values[0] = 0.5;
        assert_eq!(select(&values, 3), [1, 2, 4095]);
        assert_eq!(select(&[0.0, -0.0, 1e-45], 2), [0, 2]);
    }

    #[test]
    fn what_is_not_finite_is_seen() {
        let zeros = vec![0.0; 5000];
        assert!(stays_finite(&zeros, &zeros));
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = zeros.clone();
            values[4999] = bad;
            assert!(!stays_finite(&zeros, &values) && !stays_finite(&values, &zeros));
        }
        assert!(!stays_finite(&[f32::MAX], &[f32::MAX]), "the sum counts, not its parts");
    }
}
