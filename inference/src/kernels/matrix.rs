//! Weight matrices as they lie in memory.

use candle_core::{Device, Result, Tensor};
use pulp::Simd;

use super::matmul::{PackedRows, STEP, multiply};
use super::simd::{LANES, Wide, load, zero};
use super::{Kernels, elements};
use crate::error::ModelError;
use crate::weights::{WeightType, Weights};

/// A matrix of weights `[rows, columns]`, row-major.
#[derive(Debug)]
pub(crate) struct Matrix {
    rows: usize,
    columns: usize,
    cells: Cells,
    kernels: Kernels,
}

#[derive(Debug)]
enum Cells {
    /// For candle's operations.
    Tensor(Tensor),
    /// Rows padded to whole steps.
    F32(F32Rows),
    /// The same in half the memory: bf16 widens to f32 without loss.
    Bf16(Bf16Rows),
}

#[derive(Debug)]
struct F32Rows {
    stride: usize,
    cells: Vec<f32>,
}

/// Two neighbours of a row in one u32, as little-endian files have them.
#[derive(Debug)]
struct Bf16Rows {
    /// Cells of a row.
    stride: usize,
    cells: Vec<u32>,
}

impl Matrix {
    /// Reads a matrix that is made of several with as many columns, one below the other.
    pub(crate) fn read(
        weights: &Weights,
        parts: &[(String, usize)],
        columns: usize,
        kernels: Kernels,
        device: &Device,
    ) -> std::result::Result<Self, ModelError> {
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        let mut all_bf16 = true;
        for (name, rows) in parts {
            all_bf16 &= weights.dtype(name, &[*rows, columns])? == WeightType::Bf16;
        }
        let stride = columns.next_multiple_of(STEP);
        let cells = match kernels {
            Kernels::Candle(_) => {
                let mut data = Vec::with_capacity(rows * columns);
                for (name, rows) in parts {
                    weights.read_rows(name, &[*rows, columns], |dtype, row| dtype.widen(row, &mut data))?;
                }
                Cells::Tensor(kernels.round(Tensor::from_vec(data, (rows, columns), device)?)?)
            }
            Kernels::Own if all_bf16 => {
                let mut cells = Vec::with_capacity(rows * stride / 2);
                for (name, rows) in parts {
                    weights.read_rows(name, &[*rows, columns], |_, row| pack_bf16(row, stride / 2, &mut cells))?;
                }
                Cells::Bf16(Bf16Rows { stride: stride / 2, cells })
            }
            Kernels::Own => {
                let mut cells = Vec::with_capacity(rows * stride);
                for (name, rows) in parts {
                    weights.read_rows(name, &[*rows, columns], |dtype, row| {
                        dtype.widen(row, &mut cells);
                        cells.resize(cells.len().next_multiple_of(STEP), 0.0);
                    })?;
                }
                Cells::F32(F32Rows { stride, cells })
            }
        };
        Ok(Self { rows, columns, cells, kernels })
    }

    /// `x` `[n, columns]` times the transpose of the matrix: `[n, rows]`.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let n = x.dim(0)?;
        let product = match &self.cells {
            Cells::Tensor(weight) => return self.kernels.round(x.matmul(&weight.t()?)?),
            Cells::F32(weights) => {
                let input = elements(x);
                let x = input.as_slice()?;
                match self.columns == weights.stride {
                    true => multiply(weights, self.rows, x, weights.stride),
                    false => multiply(weights, self.rows, &padded(x, self.columns), weights.stride),
                }
            }
            Cells::Bf16(weights) => {
                let input = elements(x);
                let x = deinterleaved(input.as_slice()?, self.columns);
                multiply(weights, self.rows, &x, weights.stride * 2)
            }
        };
        Tensor::from_vec(product, (n, self.rows), x.device())
    }

    /// Rows of the matrix, `[indices, columns]`. The indices are below the number of rows.
    pub(crate) fn gather(&self, indices: &[u32], device: &Device) -> Result<Tensor> {
        let mut out = Vec::with_capacity(indices.len() * self.columns);
        for index in indices.iter().map(|index| *index as usize) {
            match &self.cells {
                Cells::Tensor(weight) => {
                    return weight.index_select(&Tensor::new(indices, device)?, 0);
                }
                Cells::F32(weights) => out.extend_from_slice(&weights.row(index)[..self.columns]),
                Cells::Bf16(weights) => {
                    let both = |cell: &u32| [f32::from_bits(cell << 16), f32::from_bits(cell & HIGH)];
                    out.extend(weights.row(index).iter().flat_map(both).take(self.columns));
                }
            }
        }
        Tensor::from_vec(out, (indices.len(), self.columns), device)
    }
}

/// The half of a cell with the second element.
const HIGH: u32 = 0xffff_0000;

/// Appends a row of bf16 as `cells` cells, zero beyond its end.
fn pack_bf16(row: &[u8], cells: usize, out: &mut Vec<u32>) {
    let end = out.len() + cells;
    let (pairs, odd) = row.as_chunks::<4>();
    out.extend(pairs.iter().map(|pair| u32::from_le_bytes(*pair)));
    if let [low, high] = odd {
        out.push(u32::from(u16::from_le_bytes([*low, *high])));
    }
    out.resize(end, 0);
}

/// Rows padded to whole steps.
fn padded(x: &[f32], columns: usize) -> Vec<f32> {
    let stride = columns.next_multiple_of(STEP);
    let mut out = Vec::with_capacity(x.len() / columns * stride);
    for row in x.chunks_exact(columns) {
        out.extend_from_slice(row);
        out.resize(out.len().next_multiple_of(STEP), 0.0);
    }
    out
}

/// Rows padded to whole steps, in every step first the even elements, then the odd ones: as cells of bf16 come apart.
fn deinterleaved(x: &[f32], columns: usize) -> Vec<f32> {
    let stride = columns.next_multiple_of(STEP);
    let mut out = vec![0.0; x.len() / columns * stride];
    for (row, out) in x.chunks_exact(columns).zip(out.chunks_exact_mut(stride)) {
        for (step, out) in row.chunks(STEP).zip(out.chunks_exact_mut(STEP)) {
            for (index, value) in step.iter().enumerate() {
                out[index % 2 * LANES + index / 2] = *value;
            }
        }
    }
    out
}

impl PackedRows for F32Rows {
    type Cell = f32;

    #[inline(always)]
    fn row(&self, index: usize) -> &[f32] {
        &self.cells[index * self.stride..(index + 1) * self.stride]
    }

    #[inline(always)]
    fn load<S: Simd, const REGS: usize>(_: S, row: &[f32], step: usize) -> (Wide<S, REGS>, Wide<S, REGS>) {
        (load::<S, REGS>(row, 2 * step), load::<S, REGS>(row, 2 * step + 1))
    }
}

impl PackedRows for Bf16Rows {
    type Cell = u32;

    #[inline(always)]
    fn row(&self, index: usize) -> &[u32] {
        &self.cells[index * self.stride..(index + 1) * self.stride]
    }

    #[inline(always)]
    fn load<S: Simd, const REGS: usize>(simd: S, row: &[u32], step: usize) -> (Wide<S, REGS>, Wide<S, REGS>) {
        let (cells, _) = S::as_simd_u32s(&row[step * LANES..(step + 1) * LANES]);
        let sixteen = simd.splat_u32s(16);
        let high = simd.splat_u32s(HIGH);
        // Loops rather than closures: those are not inlined in builds with little optimisation.
        let mut even = zero::<S, REGS>(simd);
        let mut odd = zero::<S, REGS>(simd);
        for (reg, cell) in cells[..REGS].iter().enumerate() {
            even[reg] = simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(*cell, sixteen));
            odd[reg] = simd.transmute_f32s_u32s(simd.and_u32s(*cell, high));
        }
        (even, odd)
    }
}
