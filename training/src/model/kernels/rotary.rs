//! Rotary position embedding.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape, Tensor};

use super::floats;

/// Cosines and sines of the rotary embedding, `[positions, head_dim / 2]` each.
#[derive(Debug)]
pub struct RotaryTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl RotaryTable {
    /// Tables for positions `0..positions`, base `theta`, in the half-rotation convention of Hugging Face's Llama.
    #[must_use]
    pub fn new(positions: usize, head_dim: usize, theta: f64) -> Self {
        let half = head_dim / 2;
        let angles = (0..positions)
            .flat_map(|p| (0..half).map(move |i| p as f64 * theta.powf(-2.0 * i as f64 / head_dim as f64)));
        let (sin, cos) = angles.map(|a| (a.sin() as f32, a.cos() as f32)).unzip();
        Self { cos, sin, half }
    }
}

/// Rotates `x` `[batch, positions, heads, head_dim]` by its position along dimension 1, counted from 0.
///
/// Su et al., "RoFormer", 2021, with dimension `i` paired with `i + head_dim / 2`.
///
/// # Errors
/// If `x` has more positions than the table or is not contiguous `f32`.
pub fn rotate(x: &Tensor, table: &Arc<RotaryTable>) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Rotate { table: Arc::clone(table), sign: 1.0 })
}

struct Rotate {
    table: Arc<RotaryTable>,
    sign: f32,
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "train-rotate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, positions, heads, dim) = layout.shape().dims4()?;
        let half = self.table.half;
        if dim != 2 * half || positions * half > self.table.cos.len() {
            return Err(Error::Msg("rotary table does not cover this input".into()));
        }
        let data = floats(x, layout)?;
        let mut out = vec![0f32; data.len()];
        for (index, (row, to)) in data.chunks_exact(dim).zip(out.chunks_exact_mut(dim)).enumerate() {
            let at = (index / heads) % positions * half;
            let (cos, sin) = (&self.table.cos[at..at + half], &self.table.sin[at..at + half]);
            let ((low, high), (to_low, to_high)) = (row.split_at(half), to.split_at_mut(half));
            for i in 0..half {
                let s = sin[i] * self.sign;
                to_low[i] = low[i] * cos[i] - high[i] * s;
                to_high[i] = high[i] * cos[i] + low[i] * s;
            }
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let back = Rotate { table: Arc::clone(&self.table), sign: -self.sign };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}
