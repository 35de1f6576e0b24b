//! From pseudo-gradient to message.

use super::error::SparseError;
use super::layout::{Grid, Layout};
use super::message::assemble;
use super::quantize::{Division, Levels, divide};
use super::range_coder::Encoder;
use super::select::{Selector, stays_finite};

/// Compresses a peer's pseudo-gradient (parameters before the local steps less those after them) into a message, and leaves
/// in `feedback` what the message does not say.
///
/// On the way `feedback` becomes the accumulator `a = 0.95 e + delta`, and in the end `a - D`, where `D` is what a receiver
/// reads. Besides the message there is one tensor's selection in memory, less than a tenth of its size. The same input gives the
/// same message on all machines of one kind; on others it may differ, which is why messages are signed and not recomputed.
///
/// # Errors
/// [`SparseError::Sizes`] or [`SparseError::NotFinite`]; `feedback` is then as it was.
pub fn compress(layout: &Layout, feedback: &mut [Vec<f32>], delta: &[Vec<f32>]) -> Result<Vec<u8>, SparseError> {
    layout.fits(feedback)?;
    layout.fits(delta)?;
    let finite = |tensor: usize| stays_finite(&feedback[tensor], &delta[tensor]);
    if let Some(tensor) = (0..delta.len()).find(|t| !finite(*t)) {
        return Err(SparseError::NotFinite { tensor });
    }
    let (mut encoder, mut selector) = (Encoder::new(), Selector::new());
    let mut levels = Vec::with_capacity(delta.len());
    for ((grid, error), delta) in layout.grids().iter().zip(feedback).zip(delta) {
        let selection = Selection::of(*grid, &mut selector, error, delta);
        levels.push(selection.write(layout, *grid, error, &mut encoder));
    }
    Ok(assemble(layout, &levels, &encoder.finish()))
}

/// What is kept of one tensor, block after block.
struct Selection {
    positions: Vec<u16>,
    values: Vec<f32>,
}

impl Selection {
    /// Turns `error` into the accumulator, and selects from it.
    fn of(grid: Grid, selector: &mut Selector, error: &mut [f32], delta: &[f32]) -> Self {
        let kept = usize::try_from(grid.kept()).unwrap_or(0);
        let mut selection = Self { positions: Vec::with_capacity(kept), values: Vec::with_capacity(kept) };
        for block in grid.blocks() {
            let positions = selector.accumulate(&block, error, delta);
            selection.positions.extend_from_slice(positions);
            selection.values.extend(positions.iter().map(|p| error[block.element(*p)]));
        }
        selection
    }

    fn divide(&self) -> Division {
        // Floats without a sign order like integers, and these sort faster.
        let mut bits: Vec<u32> = self.values.iter().map(|v| v.abs().to_bits()).collect();
        bits.sort_unstable();
        let magnitudes: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        divide(&magnitudes)
    }

    /// Quantises, codes, and takes what was coded off the accumulator.
    fn write(&self, layout: &Layout, grid: Grid, error: &mut [f32], encoder: &mut Encoder) -> Levels {
        let Division { levels, threshold } = self.divide();
        let mut stock = Stock { highs: levels.highs, left: self.values.len() as u64 };
        let mut done = 0;
        for block in grid.blocks() {
            let positions = &self.positions[done..][..block.kept()];
            let values = &self.values[done..][..block.kept()];
            done += block.kept();
            layout.splits().encode(block.size(), positions, encoder);
            for part in values.chunks(16) {
                let negative = part.iter().rev().fold(0, |bits, v| bits << 1 | u64::from(v.is_sign_negative()));
                encoder.uniform(negative, 1 << part.len());
            }
            for (position, value) in positions.iter().zip(values) {
                let high = value.abs() >= threshold;
                stock.write(high, encoder);
                error[block.element(*position)] -= if high { levels.high } else { levels.low }.copysign(*value);
            }
        }
        levels
    }
}

/// The values of a tensor that are still to be written.
struct Stock {
    highs: u64,
    left: u64,
}

impl Stock {
    fn write(&mut self, high: bool, encoder: &mut Encoder) {
        let lows = self.left - self.highs;
        match high {
            _ if self.highs == 0 || lows == 0 => {}
            true => encoder.interval(lows, self.highs, self.left),
            false => encoder.interval(0, lows, self.left),
        }
        self.highs -= u64::from(high);
        self.left -= 1;
    }
}
