//! Grouped-query attention over the cache.
//!
//! Query heads that share a key head are computed together; nothing is repeated in memory. Keys are kept transposed,
//! `[kv_heads, head_dim, capacity]`, so that scores of neighbouring positions lie in neighbouring lanes and no sum goes
//! across lanes.

use candle_core::{Device, Result, Tensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::elementwise::exp;
use super::simd::{LANES, Wide, fused, load, store, tree_sum, zero};
use super::{Kernels, elements};
use crate::kv_cache::KvCache;

/// Multiplications below which a second thread is not worth it.
const SEQUENTIAL: usize = 1 << 15;

/// Shape of the heads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) queries: usize,
    /// Divides `queries`.
    pub(crate) keys: usize,
    /// Elements of a head; even.
    pub(crate) dim: usize,
}

impl Heads {
    fn group(self) -> usize {
        self.queries / self.keys
    }

    fn width(self) -> usize {
        (self.queries + 2 * self.keys) * self.dim
    }

    fn scale(self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
}

/// Rotates queries and keys of new rows, writes keys and values to the cache of a layer behind what it holds, and attends: `qkv` `[rows,
/// (queries + 2 keys) * dim]` to `[rows, queries * dim]`. `cos` and `sin` are `[rows, dim / 2]`.
pub(crate) fn attend(
    qkv: &Tensor,
    (cos, sin): (&Tensor, &Tensor),
    heads: Heads,
    cache: &KvCache,
    layer: usize,
    kernels: Kernels,
) -> Result<Tensor> {
    match kernels {
        Kernels::Own => attend_own(qkv, (cos, sin), heads, cache, layer),
        Kernels::Candle(_) => attend_candle(qkv, (cos, sin), heads, cache, layer, kernels),
    }
}

fn attend_own(
    qkv: &Tensor,
    (cos, sin): (&Tensor, &Tensor),
    heads: Heads,
    cache: &KvCache,
    layer: usize,
) -> Result<Tensor> {
    let rows = qkv.dim(0)?;
    let past = cache.length();
    let new = {
        let (qkv, cos, sin) = (elements(qkv), elements(cos), elements(sin));
        NewRows::rotate(qkv.as_slice()?, cos.as_slice()?, sin.as_slice()?, heads)
    };
    let device = qkv.device();
    let keys = Tensor::from_vec(new.keys, (heads.keys, heads.dim, rows), device)?;
    let values = Tensor::from_vec(new.values, (heads.keys, rows, heads.dim), device)?;
    let kept = cache.write(layer, &keys, &values)?;
    let (keys, values) = (elements(&kept.keys), elements(&kept.values));
    let (keys, values) = (keys.as_slice()?, values.as_slice()?);
    let mut out = vec![0.0; rows * heads.queries * heads.dim];
    let width = heads.group() * heads.dim;
    let one = |(index, (queries, out)): (usize, (&[f32], &mut [f32]))| {
        let (row, head) = (index / heads.keys, index % heads.keys);
        let size = keys.len() / heads.keys;
        Arch::new().dispatch(Group {
            queries,
            keys: &keys[head * size..(head + 1) * size],
            values: &values[head * size..(head + 1) * size],
            positions: past + row + 1,
            dim: heads.dim,
            scale: heads.scale(),
            out,
        });
    };
    if (past + rows) * new.queries.len() < SEQUENTIAL {
        new.queries.chunks_exact(width).zip(out.chunks_exact_mut(width)).enumerate().for_each(one);
    } else {
        new.queries.par_chunks_exact(width).zip(out.par_chunks_exact_mut(width)).enumerate().for_each(one);
    }
    Tensor::from_vec(out, (rows, heads.queries * heads.dim), device)
}

/// Queries, keys and values of new rows, each in the layout it is needed in.
struct NewRows {
    /// `[rows, queries, dim]`, rotated.
    queries: Vec<f32>,
    /// `[kv_heads, dim, rows]`, rotated.
    keys: Vec<f32>,
    /// `[kv_heads, rows, dim]`
    values: Vec<f32>,
}

impl NewRows {
    fn rotate(qkv: &[f32], cos: &[f32], sin: &[f32], heads: Heads) -> Self {
        let (dim, half) = (heads.dim, heads.dim / 2);
        let rows = qkv.len() / heads.width();
        let mut new = Self {
            queries: vec![0.0; rows * heads.queries * dim],
            keys: vec![0.0; heads.keys * dim * rows],
            values: vec![0.0; heads.keys * rows * dim],
        };
        for (row, qkv) in qkv.chunks_exact(heads.width()).enumerate() {
            let angles = row * half..(row + 1) * half;
            let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
            let rotated = |head: &[f32], i: usize| {
                let (a, b) = (head[i], head[i + half]);
                (a * cos[i] - b * sin[i], a * sin[i] + b * cos[i])
            };
            let (queries, rest) = qkv.split_at(heads.queries * dim);
            let (keys, values) = rest.split_at(heads.keys * dim);
            let out = &mut new.queries[row * heads.queries * dim..(row + 1) * heads.queries * dim];
            for (head, out) in queries.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
                for i in 0..half {
                    (out[i], out[i + half]) = rotated(head, i);
                }
            }
            for (index, head) in keys.chunks_exact(dim).enumerate() {
                for i in 0..half {
                    let (a, b) = rotated(head, i);
                    new.keys[(index * dim + i) * rows + row] = a;
                    new.keys[(index * dim + i + half) * rows + row] = b;
                }
            }
            for (index, head) in values.chunks_exact(dim).enumerate() {
                let at = (index * rows + row) * dim;
                new.values[at..at + dim].copy_from_slice(head);
            }
        }
        new
    }
}

/// The query heads of one row that share a key head.
struct Group<'a> {
    /// `[group, dim]`
    queries: &'a [f32],
    /// `[dim, capacity]`; the capacity is a multiple of the lanes.
    keys: &'a [f32],
    /// `[capacity, dim]`
    values: &'a [f32],
    /// How many positions the row sees.
    positions: usize,
    dim: usize,
    scale: f32,
    /// `[group, dim]`
    out: &'a mut [f32],
}

impl WithSimd for Group<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.run::<S, 1>(simd),
            8 => self.run::<S, 2>(simd),
            4 => self.run::<S, 4>(simd),
            _ => self.run::<S, 16>(simd),
        }
    }
}

impl Group<'_> {
    #[inline(always)]
    fn run<S: Simd, const REGS: usize>(self, simd: S) {
        let mut weights = vec![0.0; self.positions.next_multiple_of(LANES)];
        let capacity = self.keys.len() / self.dim;
        for (query, out) in self.queries.chunks_exact(self.dim).zip(self.out.chunks_exact_mut(self.dim)) {
            weigh::<S, REGS>(simd, query, self.keys, capacity, &mut weights);
            let sum = softmax(&mut weights[..self.positions], self.scale);
            weigh::<S, REGS>(simd, &weights[..self.positions], self.values, self.dim, out);
            out.iter_mut().for_each(|v| *v /= sum);
        }
    }
}

/// Sums rows of `stride` elements by weight, in their order. Over keys that are stored element by element it gives the
/// products of a query with all positions; over values, their mixture.
#[inline(always)]
fn weigh<S: Simd, const REGS: usize>(simd: S, weights: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) {
    let blocks = out.len() / LANES;
    let mut block = 0;
    while block + 4 <= blocks {
        weigh_blocks::<S, REGS, 4>(simd, weights, rows, stride, block, out);
        block += 4;
    }
    while block < blocks {
        weigh_blocks::<S, REGS, 1>(simd, weights, rows, stride, block, out);
        block += 1;
    }
    for element in blocks * LANES..out.len() {
        out[element] = weights
            .iter()
            .zip(rows.chunks_exact(stride))
            .fold(0.0_f32, |sum, (weight, row)| weight.mul_add(row[element], sum));
    }
}

/// `N` blocks of that sum from `block` on.
#[inline(always)]
fn weigh_blocks<S: Simd, const REGS: usize, const N: usize>(
    simd: S,
    weights: &[f32],
    rows: &[f32],
    stride: usize,
    block: usize,
    out: &mut [f32],
) {
    let mut sums = [zero::<S, REGS>(simd); N];
    for (weight, row) in weights.iter().zip(rows.chunks_exact(stride)) {
        let weight: Wide<S, REGS> = [simd.splat_f32s(*weight); REGS];
        for (n, sum) in sums.iter_mut().enumerate() {
            *sum = fused::<S, REGS>(simd, &weight, &load::<S, REGS>(row, block + n), sum);
        }
    }
    for (n, sum) in sums.iter().enumerate() {
        store::<S, REGS>(sum, out, block + n);
    }
}

/// Turns scores into weights that are not divided by their sum, and gives the sum.
#[inline(always)]
fn softmax(scores: &mut [f32], scale: f32) -> f32 {
    let mut largest = f32::NEG_INFINITY;
    for score in scores.iter_mut() {
        *score *= scale;
        largest = if *score > largest { *score } else { largest };
    }
    let mut lanes = [0.0; LANES];
    for chunk in scores.chunks_mut(LANES) {
        for (score, lane) in chunk.iter_mut().zip(&mut lanes) {
            *score = exp(*score - largest);
            *lane += *score;
        }
    }
    tree_sum(&lanes)
}

/// The same with candle's operations.
fn attend_candle(
    qkv: &Tensor,
    (cos, sin): (&Tensor, &Tensor),
    heads: Heads,
    cache: &KvCache,
    layer: usize,
    kernels: Kernels,
) -> Result<Tensor> {
    let rows = qkv.dim(0)?;
    let past = cache.length();
    let total = past + rows;
    let heads_first = |start: usize, count: usize| {
        qkv.narrow(1, start * heads.dim, count * heads.dim)?
            .reshape((rows, count, heads.dim))?
            .transpose(0, 1)?
            .contiguous()
    };
    let rotate = |t: Tensor| kernels.round(candle_nn::rotary_emb::rope(&t.unsqueeze(0)?, cos, sin)?.squeeze(0)?);
    let queries = rotate(heads_first(0, heads.queries)?)?;
    let keys = rotate(heads_first(heads.queries, heads.keys)?)?.transpose(1, 2)?.contiguous()?;
    let values = heads_first(heads.queries + heads.keys, heads.keys)?;
    let kept = cache.write(layer, &keys, &values)?;
    let keys = kept.keys.narrow(2, 0, total)?;
    let values = kept.values.narrow(1, 0, total)?;
    // Query heads that share a key head are rows of one product.
    let grouped = queries.reshape((heads.keys, heads.group() * rows, heads.dim))?;
    let scores = (grouped.matmul(&keys)? * f64::from(heads.scale()))?;
    let scores = match rows {
        1 => scores,
        _ => scores
            .reshape((heads.queries, rows, total))?
            .broadcast_add(&causal_mask(rows, past, qkv.device())?)?
            .reshape((heads.keys, heads.group() * rows, total))?,
    };
    let mixed = candle_nn::ops::softmax_last_dim(&scores)?
        .matmul(&values)?
        .reshape((heads.queries, rows, heads.dim))?
        .transpose(0, 1)?
        .reshape((rows, heads.queries * heads.dim))?;
    kernels.round(mixed)
}

/// `[rows, past + rows]`: zero where a row may look, minus infinity where it may not.
fn causal_mask(rows: usize, past: usize, device: &Device) -> Result<Tensor> {
    let total = past + rows;
    let mask: Vec<f32> = (0..rows)
        .flat_map(|row| (0..total).map(move |position| if position <= past + row { 0.0 } else { f32::NEG_INFINITY }))
        .collect();
    Tensor::from_vec(mask, (rows, total), device)
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn the_machine_changes_no_bit() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for (dim, capacity, positions) in [(10, 32, 5), (16, 256, 200), (64, 128, 128), (80, 64, 1)] {
            let mut random = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.random_range(-2.0..2.0)).collect() };
            let (queries, keys, values) = (random(3 * dim), random(dim * capacity), random(capacity * dim));
            let attend = |scalar: bool| {
                let mut out = vec![0.0; 3 * dim];
                let group = Group {
                    queries: &queries,
                    keys: &keys,
                    values: &values,
                    positions,
                    dim,
                    scale: 0.3,
                    out: &mut out,
                };
                match scalar {
                    true => group.with_simd(pulp::Scalar),
                    false => Arch::new().dispatch(group),
                }
                out.iter().map(|v| v.to_bits()).collect::<Vec<u32>>()
            };
            assert_eq!(attend(true), attend(false), "{dim} {capacity} {positions}");
        }
    }
}
