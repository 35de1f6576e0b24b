//! Which positions of a block are kept, coded at the bound log2 C(n, k).
//!
//! A set of `m` of `n` positions is halved again and again: how many of them lie in the left half is coded with its exact
//! probability C(l, j) C(r, m - j) / C(n, m), where l and r are the sizes of the halves; then each half by itself. A half
//! with one of them left is a uniform number, a half with none or all of them costs nothing. So any string of bits decodes
//! to exactly `m` positions in rising order, and nothing else can be said. Positions in pseudo-gradients are next to
//! uniform (learning the density of rows and columns saved under one part in a hundred), so the law is not adaptive.

use super::range_coder::{Decoder, Encoder};

/// Probabilities are multiples of 2^-16.
const TOTAL: u64 = 1 << 16;

/// How many of `m` positions lie in the left half, for every `m`, of a range of one size.
#[derive(Clone, Debug)]
struct Split {
    left: u16,
    rows: Vec<Row>,
    starts: Vec<u16>,
}

/// The distribution for one `m`: the counts `first..first + length`, whose intervals begin at `starts[at..]`.
#[derive(Clone, Copy, Debug)]
struct Row {
    first: u16,
    length: u16,
    at: u32,
}

impl Split {
    /// For up to `most` positions among `size`.
    fn new(size: usize, most: usize) -> Self {
        let left = size.div_ceil(2);
        let mut split = Self { left: left as u16, rows: Vec::new(), starts: Vec::new() };
        for m in 0..=most.min(size) {
            let (first, widths) = hypergeometric(left, size - left, m);
            let at = split.starts.len() as u32;
            split.rows.push(Row { first: first as u16, length: widths.len() as u16, at });
            let mut start = 0u64;
            for width in widths {
                split.starts.push(start as u16);
                start += width;
            }
        }
        split
    }

    fn interval(&self, row: Row, place: usize) -> (u64, u64) {
        let starts = &self.starts[row.at as usize..][..usize::from(row.length)];
        let start = u64::from(starts[place]);
        let end = starts.get(place + 1).map_or(TOTAL, |s| u64::from(*s));
        (start, end - start)
    }

    fn encode(&self, m: usize, count: usize, encoder: &mut Encoder) {
        let row = self.rows[m];
        let (start, width) = self.interval(row, count - usize::from(row.first));
        encoder.interval_of_power(start, width, 16);
    }

    fn decode(&self, m: usize, decoder: &mut Decoder<'_>) -> usize {
        let row = self.rows[m];
        let starts = &self.starts[row.at as usize..][..usize::from(row.length)];
        let place = decoder.interval_of_16_bits(|point| {
            let place = starts.partition_point(|s| *s <= point) - 1;
            let (start, width) = self.interval(row, place);
            (place, start, width)
        });
        place + usize::from(row.first)
    }
}

/// The least possible count in the left part, and the widths out of [`TOTAL`] of this and the following counts.
///
/// Integers alone, so that all machines get the same widths.
fn hypergeometric(left: usize, right: usize, m: usize) -> (usize, Vec<u64>) {
    let (first, last) = (m.saturating_sub(right), m.min(left));
    let mode = ((m + 1) * (left + 1) / (left + right + 2)).clamp(first, last);
    // Relative weights, outwards from the mode by the ratio of neighbours; they fall, so 2^60 is the largest.
    let mut weights = vec![0u128; last - first + 1];
    weights[mode - first] = 1 << 60;
    for j in mode..last {
        let (up, down) = ((left - j) * (m - j), (j + 1) * (right + j + 1 - m));
        weights[j + 1 - first] = weights[j - first] * up as u128 / down as u128;
    }
    for j in (first + 1..=mode).rev() {
        let (down, up) = ((left + 1 - j) * (m + 1 - j), j * (right + j - m));
        weights[j - 1 - first] = weights[j - first] * up as u128 / down as u128;
    }
    let (sum, spare) = (weights.iter().sum::<u128>(), u128::from(TOTAL) - weights.len() as u128);
    let mut widths: Vec<u64> = weights.iter().map(|w| 1 + (w * spare / sum) as u64).collect();
    widths[mode - first] += TOTAL - widths.iter().sum::<u64>();
    (first, widths)
}

/// The tables for all sizes that halving blocks leads to.
#[derive(Clone, Debug)]
pub(super) struct SplitTables {
    by_size: Vec<Option<Split>>,
}

impl SplitTables {
    /// For blocks of the given sizes.
    pub(super) fn new(block_sizes: impl Iterator<Item = usize>) -> Self {
        let mut most: Vec<usize> = Vec::new();
        for block in block_sizes {
            if most.len() <= block {
                most.resize(block + 1, 0);
            }
            most[block] = most[block].max(super::kept_of(block));
        }
        for size in (3..most.len()).rev() {
            let m = most[size];
            for half in [size / 2, size.div_ceil(2)] {
                most[half] = most[half].max(m.min(half));
            }
        }
        let table = |(size, most): (usize, usize)| (size > 1 && most > 1).then(|| Split::new(size, most));
        Self { by_size: most.into_iter().enumerate().map(table).collect() }
    }

    fn split(&self, size: u16) -> &Split {
        self.by_size[usize::from(size)].as_ref().expect("tables were made for every size that halving a block leads to")
    }

    /// Codes `positions`, rising, of a block of `size`.
    pub(super) fn encode(&self, size: usize, positions: &[u16], encoder: &mut Encoder) {
        self.encode_part(0, size as u16, positions, encoder);
    }

    fn encode_part(&self, base: u16, size: u16, positions: &[u16], encoder: &mut Encoder) {
        match positions {
            [] => {}
            [only] => encoder.uniform(u64::from(only - base), u64::from(size)),
            all if all.len() == usize::from(size) => {}
            all => {
                let split = self.split(size);
                let middle = base + split.left;
                let (left, right) = all.split_at(all.partition_point(|p| *p < middle));
                split.encode(all.len(), left.len(), encoder);
                self.encode_part(base, split.left, left, encoder);
                self.encode_part(middle, size - split.left, right, encoder);
            }
        }
    }

    /// Fills `positions`, whose length is their number, with the positions that come next; they rise.
    pub(super) fn decode(&self, size: usize, positions: &mut [u16], decoder: &mut Decoder<'_>) {
        self.decode_part(0, size as u16, positions, decoder);
    }

    fn decode_part(&self, base: u16, size: u16, positions: &mut [u16], decoder: &mut Decoder<'_>) {
        match positions {
            [] => {}
            [only] => *only = base + decoder.uniform(u64::from(size)) as u16,
            all if all.len() == usize::from(size) => all.iter_mut().zip(base..).for_each(|(p, at)| *p = at),
            all => {
                let split = self.split(size);
                let count = split.decode(all.len(), decoder);
                let (left, right) = all.split_at_mut(count);
                self.decode_part(base, split.left, left, decoder);
                self.decode_part(base + split.left, size - split.left, right, decoder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::seq::index::sample;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;
    use crate::sparseloco::kept_of;

    fn draw(size: usize, seed: u64) -> Vec<u16> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut positions: Vec<u16> = sample(&mut rng, size, kept_of(size)).iter().map(|p| p as u16).collect();
        positions.sort_unstable();
        positions
    }

    proptest! {
        #[test]
        fn sets_come_back(size in 1usize..=4096, seed in any::<u64>(), clustered in any::<bool>()) {
            let tables = SplitTables::new([size].into_iter());
            let mut positions = draw(size, seed);
            if clustered {
                positions = (0..positions.len() as u16).map(|p| p + (seed % (size - positions.len() + 1) as u64) as u16).collect();
            }
            let mut encoder = Encoder::new();
            tables.encode(size, &positions, &mut encoder);
            let bytes = encoder.finish();
            let (mut decoder, mut read) = (Decoder::new(&bytes), vec![0; positions.len()]);
            tables.decode(size, &mut read, &mut decoder);
            prop_assert!(decoder.finish());
            prop_assert_eq!(read, positions);
        }

        #[test]
        fn any_bytes_decode_to_exactly_k_rising_positions(size in 1usize..=4096, bytes in proptest::collection::vec(any::<u8>(), 0..90)) {
            let mut positions = vec![0; kept_of(size)];
            SplitTables::new([size].into_iter()).decode(size, &mut positions, &mut Decoder::new(&bytes));
            prop_assert!(positions.is_sorted_by(|a, b| a < b));
            prop_assert!(positions.last().is_some_and(|p| usize::from(*p) < size));
        }
    }

    #[test]
    fn the_cost_is_at_the_bound() {
        let tables = SplitTables::new([4096].into_iter());
        let (mut encoder, blocks) = (Encoder::new(), 2000);
        (0..blocks).for_each(|seed| tables.encode(4096, &draw(4096, seed), &mut encoder));
        let bits = encoder.finish().len() as f64 * 8.0 / (blocks * 64) as f64;
        let bound = (0..64).map(|i| (f64::from(4096 - i) / f64::from(64 - i)).log2()).sum::<f64>() / 64.0;
        assert!((bound - 7.364).abs() < 1e-3 && (bits - bound).abs() < 0.005, "{bits} bits, bound {bound}");
    }

    #[test]
    fn widths_are_the_hypergeometric_law() {
        let (first, widths) = hypergeometric(2, 2, 2);
        assert_eq!((first, widths.iter().sum::<u64>()), (0, TOTAL));
        let shares: Vec<f64> = widths.iter().map(|w| *w as f64 / TOTAL as f64).collect();
        assert!(shares.iter().zip([1.0 / 6.0, 4.0 / 6.0, 1.0 / 6.0]).all(|(a, b)| (a - b).abs() < 1e-4), "{shares:?}");
        assert_eq!(hypergeometric(2, 1, 2).0, 1, "two of three cannot all be in the part of one");
    }
}
