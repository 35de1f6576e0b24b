//! The gated activation of the feed-forward layer.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use super::floats;

/// `silu(gate) * up`, element by element; Shazeer, "GLU Variants Improve Transformer", 2020.
///
/// # Errors
/// If shapes disagree or a tensor is not contiguous `f32`.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.contiguous()?.apply_op2(&up.contiguous()?, Swiglu)
}

fn sigmoid(x: f32) -> f32 {
    (1.0 + (-x).exp()).recip()
}

struct Swiglu;

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "train-swiglu"
    }

    fn cpu_fwd(&self, a: &CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (floats(a, la)?, floats(b, lb)?);
        let out = gate.iter().zip(up).map(|(g, u)| g * sigmoid(*g) * u).collect();
        Ok((CpuStorage::F32(out), la.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let dgate = gate.apply_op3_no_bwd(up, &grad, &SwigluGateGrad)?;
        let dup = gate.apply_op2_no_bwd(&grad, &Swiglu)?;
        Ok((Some(dgate), Some(dup)))
    }
}

struct SwigluGateGrad;

impl CustomOp3 for SwigluGateGrad {
    fn name(&self) -> &'static str {
        "train-swiglu-gate-grad"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
        c: &CpuStorage,
        lc: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up, grad) = (floats(a, la)?, floats(b, lb)?, floats(c, lc)?);
        let out = gate
            .iter()
            .zip(up)
            .zip(grad)
            .map(|((g, u), d)| {
                let s = sigmoid(*g);
                d * u * s * (1.0 + g * (1.0 - s))
            })
            .collect();
        Ok((CpuStorage::F32(out), la.shape().clone()))
    }
}
