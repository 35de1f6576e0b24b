//! Masked softmax of attention scores.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Error, Layout, Result, Shape, Tensor};

use super::{floats, width};

/// Attention weights from raw `scores` `[batch, heads * positions, positions]`: `softmax(scale * scores)` over the keys
/// from `starts[row * positions + query]` (the first position of the query's document) up to the query itself.
///
/// # Errors
/// If shapes disagree or a tensor is not contiguous `f32`.
pub fn attention_weights(scores: &Tensor, starts: &Arc<Vec<u32>>, scale: f32) -> Result<Tensor> {
    scores.contiguous()?.apply_op1(AttentionWeights { starts: Arc::clone(starts), scale })
}

struct AttentionWeights {
    starts: Arc<Vec<u32>>,
    scale: f32,
}

/// Visible keys `first..=last` of each row of a `[batch, heads * positions, positions]` tensor.
fn visible(layout: &Layout, starts: &[u32]) -> Result<impl Fn(usize) -> (usize, usize)> {
    let (batch, rows, positions) = layout.shape().dims3()?;
    if rows % positions != 0 || starts.len() != batch * positions {
        return Err(Error::Msg("attention mask does not fit the scores".into()));
    }
    let starts = starts.to_vec();
    Ok(move |row: usize| {
        let query = row % positions;
        (starts[row / rows * positions + query] as usize, query)
    })
}

impl CustomOp1 for AttentionWeights {
    fn name(&self) -> &'static str {
        "train-attention-weights"
    }

    fn cpu_fwd(&self, scores: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let data = floats(scores, layout)?;
        let keys = width(layout)?;
        let span = visible(layout, &self.starts)?;
        let mut out = vec![0f32; data.len()];
        for (index, (row, to)) in data.chunks_exact(keys).zip(out.chunks_exact_mut(keys)).enumerate() {
            let (first, last) = span(index);
            let (row, to) = (&row[first..=last], &mut to[first..=last]);
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0f32;
            for (t, v) in to.iter_mut().zip(row) {
                *t = ((v - max) * self.scale).exp();
                sum += *t;
            }
            let inverse = sum.recip();
            to.iter_mut().for_each(|t| *t *= inverse);
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, _arg: &Tensor, res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let op = AttentionWeightsGrad { starts: Arc::clone(&self.starts), scale: self.scale };
        Ok(Some(res.apply_op2_no_bwd(&grad.contiguous()?, &op)?))
    }
}

struct AttentionWeightsGrad {
    starts: Arc<Vec<u32>>,
    scale: f32,
}

impl CustomOp2 for AttentionWeightsGrad {
    fn name(&self) -> &'static str {
        "train-attention-weights-grad"
    }

    fn cpu_fwd(&self, y: &CpuStorage, ly: &Layout, g: &CpuStorage, lg: &Layout) -> Result<(CpuStorage, Shape)> {
        let (y, g) = (floats(y, ly)?, floats(g, lg)?);
        let keys = width(ly)?;
        let span = visible(ly, &self.starts)?;
        let mut out = vec![0f32; y.len()];
        let rows = y.chunks_exact(keys).zip(g.chunks_exact(keys)).zip(out.chunks_exact_mut(keys));
        for (index, ((y, g), to)) in rows.enumerate() {
            let (first, last) = span(index);
            let (y, g, to) = (&y[first..=last], &g[first..=last], &mut to[first..=last]);
            let dot: f32 = y.iter().zip(g).map(|(y, g)| y * g).sum();
            for ((t, y), g) in to.iter_mut().zip(y).zip(g) {
                *t = self.scale * y * (g - dot);
            }
        }
        Ok((CpuStorage::F32(out), ly.shape().clone()))
    }
}
