//! Matrix products whose rows do not depend on each other.

use std::array;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::simd::{LANES, Wide, fused, sum, zero};

/// Elements of a row that are taken together: two logical vectors. Rows are padded to a multiple with zeros.
pub(crate) const STEP: usize = 2 * LANES;

/// Products below this many multiplications are not worth a second thread.
const SEQUENTIAL: usize = 1 << 15;

/// Rows of a weight matrix, padded to whole steps.
pub(crate) trait PackedRows: Sync {
    /// What is stored: f32, or two bf16 in one u32.
    type Cell: Copy + Sync;

    /// The cells of row `index`.
    fn row(&self, index: usize) -> &[Self::Cell];

    /// The two logical vectors of a step of a row.
    fn load<S: Simd, const REGS: usize>(simd: S, row: &[Self::Cell], step: usize) -> (Wide<S, REGS>, Wide<S, REGS>);
}

/// `x` `[rows, stride]` (padded and ordered as the weights are) times the transpose of `weights` `[outputs, stride]`:
/// `[rows, outputs]`.
pub(crate) fn multiply<W: PackedRows>(weights: &W, outputs: usize, x: &[f32], stride: usize) -> Vec<f32> {
    let rows = x.len() / stride;
    // Outputs first, so that every thread has a contiguous part to write.
    let mut columns = vec![0.0; outputs * rows];
    let part = |(first, out): (usize, &mut [f32])| {
        Arch::new().dispatch(Part { weights, first, x, stride, out });
    };
    if outputs * x.len() < SEQUENTIAL {
        part((0, &mut columns));
    } else {
        let share = outputs.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(16);
        columns.par_chunks_mut(share * rows).enumerate().for_each(|(index, out)| part((index * share, out)));
    }
    match rows {
        1 => columns,
        _ => transposed(&columns, outputs, rows),
    }
}

fn transposed(columns: &[f32], outputs: usize, rows: usize) -> Vec<f32> {
    const BLOCK: usize = 32;
    let mut out = vec![0.0; columns.len()];
    out.par_chunks_mut(BLOCK * outputs).enumerate().for_each(|(block, out)| {
        let first = block * BLOCK;
        for from in (0..outputs).step_by(BLOCK) {
            for (row, out) in out.chunks_exact_mut(outputs).enumerate() {
                for output in from..outputs.min(from + BLOCK) {
                    out[output] = columns[output * rows + first + row];
                }
            }
        }
    });
    out
}

/// Some outputs of a product, for all rows.
struct Part<'a, W> {
    weights: &'a W,
    first: usize,
    x: &'a [f32],
    stride: usize,
    /// `[outputs of this part, rows]`
    out: &'a mut [f32],
}

impl<W: PackedRows> WithSimd for Part<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.run::<S, 1, 4, 4, 8>(simd),
            8 => self.run::<S, 2, 2, 2, 4>(simd),
            4 => self.run::<S, 4, 1, 4, 4>(simd),
            _ => self.run::<S, 16, 1, 1, 1>(simd),
        }
    }
}

impl<W: PackedRows> Part<'_, W> {
    /// Tiles of `R` rows by `O` outputs, and of one row by `D` outputs where rows are left.
    #[inline(always)]
    fn run<S: Simd, const REGS: usize, const R: usize, const O: usize, const D: usize>(mut self, simd: S) {
        let rows = self.x.len() / self.stride;
        let outputs = self.out.len() / rows;
        let whole = if rows >= R && R > 1 { rows / R * R } else { 0 };
        let mut output = 0;
        while whole > 0 && output + O <= outputs {
            for row in (0..whole).step_by(R) {
                self.tile::<S, REGS, R, O>(simd, row, output);
            }
            output += O;
        }
        while whole > 0 && output < outputs {
            for row in (0..whole).step_by(R) {
                self.tile::<S, REGS, R, 1>(simd, row, output);
            }
            output += 1;
        }
        output = 0;
        while output + D <= outputs {
            for row in whole..rows {
                self.tile::<S, REGS, 1, D>(simd, row, output);
            }
            output += D;
        }
        while output < outputs {
            for row in whole..rows {
                self.tile::<S, REGS, 1, 1>(simd, row, output);
            }
            output += 1;
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const REGS: usize, const R: usize, const O: usize>(&mut self, simd: S, row: usize, output: usize) {
        let stride = self.stride;
        let inputs: [&[S::f32s]; R] =
            array::from_fn(|r| S::as_simd_f32s(&self.x[(row + r) * stride..(row + r + 1) * stride]).0);
        let weights: [&[W::Cell]; O] = array::from_fn(|o| self.weights.row(self.first + output + o));
        let mut sums = [[zero::<S, REGS>(simd); O]; R];
        for step in 0..stride / STEP {
            let low: [Wide<S, REGS>; R] = array::from_fn(|r| array::from_fn(|reg| inputs[r][step * 2 * REGS + reg]));
            let high: [Wide<S, REGS>; R] =
                array::from_fn(|r| array::from_fn(|reg| inputs[r][(step * 2 + 1) * REGS + reg]));
            for o in 0..O {
                let (first, second) = W::load::<S, REGS>(simd, weights[o], step);
                for r in 0..R {
                    sums[r][o] = fused::<S, REGS>(simd, &low[r], &first, &sums[r][o]);
                    sums[r][o] = fused::<S, REGS>(simd, &high[r], &second, &sums[r][o]);
                }
            }
        }
        let rows = self.x.len() / stride;
        for (r, sums) in sums.iter().enumerate() {
            for (o, wide) in sums.iter().enumerate() {
                self.out[(output + o) * rows + row + r] = sum::<S, REGS>(wide);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::super::simd::load;
    use super::*;

    struct Plain(Vec<f32>, usize);

    impl PackedRows for Plain {
        type Cell = f32;

        fn row(&self, index: usize) -> &[f32] {
            &self.0[index * self.1..(index + 1) * self.1]
        }

        fn load<S: Simd, const REGS: usize>(_: S, row: &[f32], step: usize) -> (Wide<S, REGS>, Wide<S, REGS>) {
            (load::<S, REGS>(row, 2 * step), load::<S, REGS>(row, 2 * step + 1))
        }
    }

    fn random(count: usize, seed: u64) -> Vec<f32> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    #[test]
    fn neither_rows_nor_machine_nor_threads_change_a_bit() {
        for (outputs, stride) in [(1, 32), (7, 64), (33, 96), (130, 320)] {
            let weights = Plain(random(outputs * stride, 1), stride);
            for rows in [1, 2, 3, 4, 5, 9, 40] {
                let x = random(rows * stride, 2);
                let all = multiply(&weights, outputs, &x, stride);
                for (row, x) in x.chunks(stride).enumerate() {
                    let mut alone = vec![0.0; outputs];
                    Part { weights: &weights, first: 0, x, stride, out: &mut alone }.with_simd(pulp::Scalar);
                    let in_batch = &all[row * outputs..(row + 1) * outputs];
                    assert_eq!(bits(&alone), bits(in_batch), "{outputs} x {stride}, row {row} of {rows}");
                }
            }
        }
    }

    #[test]
    fn products_are_right() {
        let (outputs, stride, rows) = (19, 64, 6);
        let (weights, x) = (Plain(random(outputs * stride, 3), stride), random(rows * stride, 4));
        let product = multiply(&weights, outputs, &x, stride);
        for (index, got) in product.iter().enumerate() {
            let x = &x[index / outputs * stride..][..stride];
            let exact: f64 =
                x.iter().zip(weights.row(index % outputs)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            assert!((f64::from(*got) - exact).abs() < 1e-5, "{index}: {got} {exact}");
        }
    }
}
