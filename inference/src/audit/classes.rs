//! The numeric classes that this machine can compute in.
//!
//! | class | arithmetic |
//! |---|---|
//! | [`KernelFamily::Invariant`], f32 | this crate's kernels: a row has the same bits in every batch, on every number of threads and every vector width |
//! | [`KernelFamily::CandleCpu`], f32 | candle's products, norms and softmax; sums in an order that depends on rows, threads and machine |
//! | [`KernelFamily::CandleCpu`], bf16 or f16 | the same, with weights and the result of every operation rounded to the type, sums and softmax in f32, attention as one operation |
//!
//! The half-precision classes stand in for graphics processors, which compute in this way; candle's own CPU products in
//! f16 and bf16 are not used (there is none for bf16). The elements are kept as f32 that hold rounded numbers.

use candle_core::Device;
use consortium_protocol::wire::audit::{Compute, KernelFamily, NumericClass};
use consortium_protocol::wire::heartbeat::LayerRange;

use crate::error::ModelError;
use crate::kernels::Kernels;
use crate::llama::Shard;
use crate::model_dir::ModelDir;

/// Version of the arithmetic of this crate. Raised with every change that can change a bit of what a stage computes.
pub const ENGINE: u16 = 1;

/// Why a shard could not be loaded for a class.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClassError {
    /// This machine cannot compute in that class.
    #[error("this machine cannot compute in the class {0:?}")]
    Unavailable(NumericClass),
    /// The shard cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// The class in which [`Shard::load`] computes on the CPU.
pub fn own_class() -> NumericClass {
    match Kernels::for_device(&Device::Cpu) {
        Kernels::Own => class(KernelFamily::Invariant, Compute::F32),
        Kernels::Candle(compute) => class(KernelFamily::CandleCpu, compute),
    }
}

/// All classes that this machine can compute in.
pub fn available() -> [NumericClass; 4] {
    [
        class(KernelFamily::Invariant, Compute::F32),
        class(KernelFamily::CandleCpu, Compute::F32),
        class(KernelFamily::CandleCpu, Compute::Bf16),
        class(KernelFamily::CandleCpu, Compute::F16),
    ]
}

/// The class in which this machine recomputes work that was done in `auditee`: the same if it can, else the one with the
/// same rounding. Recomputing with the auditee's rounding leaves far less honest drift than any other.
pub fn nearest(auditee: NumericClass) -> NumericClass {
    match (auditee.kernels, auditee.compute) {
        (KernelFamily::Invariant, Compute::F32) => class(KernelFamily::Invariant, Compute::F32),
        (_, compute) => class(KernelFamily::CandleCpu, compute),
    }
}

/// Whether two stages of these classes give the same bits when they compute the same.
pub fn bit_equal(auditor: NumericClass, auditee: NumericClass) -> bool {
    auditor == auditee && auditor.kernels == KernelFamily::Invariant
}

fn class(kernels: KernelFamily, compute: Compute) -> NumericClass {
    NumericClass { compute, kernels, engine: ENGINE }
}

impl Shard {
    /// Reads a range of layers onto the CPU, to compute in the given class.
    ///
    /// # Errors
    /// [`ClassError::Unavailable`] unless the class is one of [`available`], and the errors of [`Shard::load`].
    pub fn load_class(dir: &ModelDir, range: LayerRange, class: NumericClass) -> Result<Self, ClassError> {
        if !available().contains(&class) {
            return Err(ClassError::Unavailable(class));
        }
        let kernels = match class.kernels {
            KernelFamily::Invariant => Kernels::Own,
            _ => Kernels::Candle(class.compute),
        };
        Ok(Self::load_with(dir, range, &Device::Cpu, kernels)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_computed() {
        assert!(available().contains(&own_class()));
        for class in available() {
            assert_eq!(nearest(class), class);
            assert_eq!(bit_equal(class, class), class.kernels == KernelFamily::Invariant);
            let older = NumericClass { engine: ENGINE - 1, ..class };
            assert!(!bit_equal(class, older));
            assert_eq!(nearest(older), class);
        }
        let cuda = NumericClass { compute: Compute::Bf16, kernels: KernelFamily::CandleCuda, engine: ENGINE };
        assert!(available().contains(&nearest(cuda)));
        assert!(!available().contains(&cuda));
    }
}
