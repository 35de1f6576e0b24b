//! Fused operations with a backward pass, on contiguous `f32` tensors of the CPU.
//!
//! candle's own fused kernels have no gradient, and composing these from basic operations costs several passes over
//! memory each way; at this model's width the passes, not the products, would be most of a step.

mod attention;
mod cross_entropy;
mod rms_norm;
mod rotary;
mod swiglu;

pub use attention::attention_weights;
pub use cross_entropy::{Targets, cross_entropy};
pub use rms_norm::rms_norm;
pub use rotary::{RotaryTable, rotate};
pub use swiglu::swiglu;

use candle_core::{CpuStorage, Error, Layout, Result};

/// The numbers of a contiguous tensor.
fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (start, end) =
        layout.contiguous_offsets().ok_or_else(|| Error::Msg("kernel input must be contiguous".into()))?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Size of the last dimension.
fn width(layout: &Layout) -> Result<usize> {
    layout.dims().last().copied().ok_or_else(|| Error::Msg("kernel input must have a dimension".into()))
}
