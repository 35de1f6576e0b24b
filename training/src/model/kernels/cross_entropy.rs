//! Cross entropy against next tokens.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape, Tensor};

use super::floats;

/// Next-token targets of a batch, flattened to one entry per position.
#[derive(Clone, Debug, PartialEq)]
pub struct Targets {
    /// The token that follows each position.
    pub tokens: Vec<u32>,
    /// How much each position counts: 1 for text to be learnt, 0 for prompts and padding.
    pub weights: Vec<f32>,
}

/// Weighted sum of cross entropies (nats) of `logits` `[positions, vocabulary]` against `targets`, as a scalar.
///
/// # Errors
/// If there are not as many targets as rows, or a token is outside the vocabulary.
pub fn cross_entropy(logits: &Tensor, targets: &Arc<Targets>) -> Result<Tensor> {
    logits.contiguous()?.apply_op1(CrossEntropy { targets: Arc::clone(targets) })
}

struct CrossEntropy {
    targets: Arc<Targets>,
}

impl Targets {
    fn check(&self, layout: &Layout) -> Result<usize> {
        let (rows, vocab) = layout.shape().dims2()?;
        let fits = self.tokens.len() == rows && self.weights.len() == rows;
        if !fits || self.tokens.iter().any(|t| *t as usize >= vocab) {
            return Err(Error::Msg("targets do not fit the logits".into()));
        }
        Ok(vocab)
    }
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "train-cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let vocab = self.targets.check(layout)?;
        let mut total = 0f64;
        for (index, row) in floats(logits, layout)?.chunks_exact(vocab).enumerate() {
            let weight = self.targets.weights[index];
            if weight != 0.0 {
                let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f32 = row.iter().map(|v| (v - max).exp()).sum();
                let loss = sum.ln() + max - row[self.targets.tokens[index] as usize];
                total += f64::from(weight * loss);
            }
        }
        Ok((CpuStorage::F32(vec![total as f32]), Shape::from(())))
    }

    fn bwd(&self, arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let op = CrossEntropyGrad { targets: Arc::clone(&self.targets), factor: grad.to_scalar()? };
        Ok(Some(arg.apply_op1_no_bwd(&op)?))
    }
}

struct CrossEntropyGrad {
    targets: Arc<Targets>,
    factor: f32,
}

impl CustomOp1 for CrossEntropyGrad {
    fn name(&self) -> &'static str {
        "train-cross-entropy-grad"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let vocab = self.targets.check(layout)?;
        let data = floats(logits, layout)?;
        let mut out = vec![0f32; data.len()];
        for (index, (row, to)) in data.chunks_exact(vocab).zip(out.chunks_exact_mut(vocab)).enumerate() {
            let weight = self.targets.weights[index] * self.factor;
            if weight != 0.0 {
                let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let mut sum = 0f32;
                for (t, v) in to.iter_mut().zip(row) {
                    *t = (v - max).exp();
                    sum += *t;
                }
                let scale = weight / sum;
                to.iter_mut().for_each(|t| *t *= scale);
                to[self.targets.tokens[index] as usize] -= weight;
            }
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}
