//! The arithmetic of a decoder layer.
//!
//! On the CPU it is done by kernels of this crate with one property that general libraries do not have: **the result of
//! a row does not depend on how many rows are computed with it**, nor on the number of threads, nor on the width of the
//! machine's vectors. Every sum is formed in one fixed order: matrix products in 16 interleaved partial sums with fused
//! multiply-add and one tree at the end, scores and mixtures of attention in the order of their elements, exponentials
//! by one polynomial. So a token decoded alone has the same bits as the same token prefilled in a batch, a pipeline that takes over after a failure
//! continues bit for bit, and an auditor can recompute by prefill what was decoded. (The angles of the rotary embedding
//! come from the system's sine and cosine in f64, rounded to f32.)
//!
//! On other devices, and with the features `accelerate` and `mkl`, candle's operations are used; they round differently
//! for different numbers of rows. Computing in bf16 or f16 is done as graphics processors do it: weights and rotary angles are rounded
//! to the type, every operation takes rounded numbers, sums in f32 and rounds its result (attention counts as one
//! operation behind the rotation, as in fused kernels). candle's own CPU products in those types are not used: for bf16 there is none.

mod attention;
mod elementwise;
mod matmul;
mod matrix;
mod simd;

use std::ops::Deref;

use candle_core::{DType, Layout, Result, Storage, Tensor};
use consortium_protocol::wire::audit::Compute;

pub(crate) use attention::{Heads, attend};
pub(crate) use elementwise::{exp, rms_norm, swiglu};
pub(crate) use matrix::Matrix;

/// Which implementation computes a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernels {
    /// The kernels of this crate, on the CPU.
    Own,
    /// candle's operations, on any device, with results rounded to a type.
    Candle(Compute),
}

impl Kernels {
    /// The implementation for a device.
    pub(crate) fn for_device(device: &candle_core::Device) -> Self {
        let blas = cfg!(any(feature = "accelerate", feature = "mkl"));
        if device.is_cpu() && !blas { Self::Own } else { Self::Candle(Compute::F32) }
    }

    /// Rounds the result of an operation to the type that is computed in. The elements stay f32.
    pub(crate) fn round(self, x: Tensor) -> Result<Tensor> {
        let dtype = match self {
            Self::Own | Self::Candle(Compute::F32) => return Ok(x),
            Self::Candle(Compute::Bf16) => DType::BF16,
            Self::Candle(Compute::F16) => DType::F16,
        };
        x.to_dtype(dtype)?.to_dtype(DType::F32)
    }
}

/// The elements of a contiguous f32 tensor on the CPU, for as long as this is held.
pub(crate) struct Elements<'a, Guard> {
    storage: Guard,
    layout: &'a Layout,
}

/// Gives access to the elements of a tensor.
pub(crate) fn elements(tensor: &Tensor) -> Elements<'_, impl Deref<Target = Storage>> {
    let (storage, layout) = tensor.storage_and_layout();
    Elements { storage, layout }
}

impl<Guard: Deref<Target = Storage>> Elements<'_, Guard> {
    pub(crate) fn as_slice(&self) -> Result<&[f32]> {
        let (Storage::Cpu(storage), Some((start, end))) = (&*self.storage, self.layout.contiguous_offsets()) else {
            candle_core::bail!("a contiguous tensor on the CPU is needed");
        };
        Ok(&storage.as_slice::<f32>()?[start..end])
    }
}
