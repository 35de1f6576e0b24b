//! Root-mean-square norm.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use super::{floats, width};

/// Root-mean-square norm over the last dimension: `x / sqrt(mean(x^2) + eps) * w` with `x` `[.., H]` and `w` `[H]`.
///
/// Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
///
/// # Errors
/// If shapes disagree or a tensor is not contiguous `f32`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    x.contiguous()?.apply_op2(weight, RmsNorm { eps: eps as f32 })
}

struct RmsNorm {
    eps: f32,
}

fn inverse_rms(row: &[f32], eps: f32) -> f32 {
    let mean = row.iter().map(|v| v * v).sum::<f32>() / row.len() as f32;
    (mean + eps).sqrt().recip()
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "train-rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let (data, w) = (floats(x, lx)?, floats(w, lw)?);
        let mut out = Vec::with_capacity(data.len());
        for row in data.chunks_exact(width(lx)?) {
            let scale = inverse_rms(row, self.eps);
            out.extend(row.iter().zip(w).map(|(v, w)| v * scale * w));
        }
        Ok((CpuStorage::F32(out), lx.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let dx = x.apply_op3_no_bwd(w, &grad, &RmsNormInputGrad { eps: self.eps })?;
        let dw = x.apply_op2_no_bwd(&grad, &RmsNormWeightGrad { eps: self.eps })?;
        Ok((Some(dx), Some(dw)))
    }
}

struct RmsNormInputGrad {
    eps: f32,
}

impl CustomOp3 for RmsNormInputGrad {
    fn name(&self) -> &'static str {
        "train-rms-norm-input-grad"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        g: &CpuStorage,
        lg: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w, g) = (floats(x, lx)?, floats(w, lw)?, floats(g, lg)?);
        let h = width(lx)?;
        let mut out = Vec::with_capacity(x.len());
        for (row, grad) in x.chunks_exact(h).zip(g.chunks_exact(h)) {
            let r = inverse_rms(row, self.eps);
            let dot: f32 = row.iter().zip(grad).zip(w).map(|((v, g), w)| v * g * w).sum();
            let pull = dot * r * r * r / h as f32;
            out.extend(row.iter().zip(grad).zip(w).map(|((v, g), w)| g * w * r - v * pull));
        }
        Ok((CpuStorage::F32(out), lx.shape().clone()))
    }
}

struct RmsNormWeightGrad {
    eps: f32,
}

impl CustomOp2 for RmsNormWeightGrad {
    fn name(&self) -> &'static str {
        "train-rms-norm-weight-grad"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, g: &CpuStorage, lg: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, g) = (floats(x, lx)?, floats(g, lg)?);
        let h = width(lx)?;
        let mut out = vec![0f32; h];
        for (row, grad) in x.chunks_exact(h).zip(g.chunks_exact(h)) {
            let r = inverse_rms(row, self.eps);
            for ((o, v), g) in out.iter_mut().zip(row).zip(grad) {
                *o += v * r * g;
            }
        }
        Ok((CpuStorage::F32(out), Shape::from(h)))
    }
}
