//! Recomputing a stage over the inputs it committed to.
//!
//! Every row is computed from the auditee's inputs, never from what the auditor computed before (teacher forcing), in
//! large chunks as a prompt is: far cheaper than generation. A late block needs the keys and values of all rows before
//! it, so a replay covers the whole prefix.

use std::ops::Range;

use candle_core::Tensor;

use crate::PREFILL_CHUNK;
use crate::kernels::elements;
use crate::llama::{HeadRows, Shard, StageInput};

/// Why a stage could not be recomputed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The inputs are not of the kind that the stage takes, or do not make whole rows of its width, or there are none.
    #[error("the inputs are not whole rows of what layers {0} take")]
    Inputs(consortium_protocol::wire::heartbeat::LayerRange),
    /// More rows than the model has positions.
    #[error("{rows} rows, the model has {limit} positions")]
    TooLong {
        /// Rows given.
        rows: usize,
        /// Positions of the model.
        limit: u32,
    },
    /// The computation failed, for instance on a token outside the vocabulary.
    #[error("the computation failed: {0}")]
    Compute(#[from] candle_core::Error),
}

/// What went into a stage, from position 0 on.
#[derive(Debug, Clone, Copy)]
pub enum ReplayInputs<'a> {
    /// Token ids, for the stage that holds the first layer.
    Tokens(&'a [u32]),
    /// Hidden states `[rows, hidden]`, row-major, for the others.
    Hidden(&'a [f32]),
}

/// What a stage gives for its inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Replayed {
    /// Hidden states `[rows, width]` behind the last layer of the stage, row-major; on the last stage before the final
    /// norm and the head.
    pub outputs: Vec<f32>,
    /// Hidden size.
    pub width: usize,
}

impl Replayed {
    /// How many rows.
    pub fn rows(&self) -> usize {
        self.outputs.len() / self.width
    }

    /// Logits `[rows.len(), vocab]` of some rows of the last stage, row-major.
    ///
    /// # Errors
    /// When there are no such rows, or the shard is not the last of its model.
    pub fn logits(&self, shard: &Shard, rows: Range<usize>) -> Result<Vec<f32>, ReplayError> {
        let Some(values) = self.outputs.get(rows.start * self.width..rows.end * self.width) else {
            return Err(ReplayError::Inputs(shard.range()));
        };
        let hidden = Tensor::from_slice(values, (rows.len(), self.width), shard.device())?;
        Ok(shard.head_logits(&hidden)?.flatten_all()?.to_vec1()?)
    }
}

/// Recomputes a stage over all its inputs, `chunk` rows at a time ([`PREFILL_CHUNK`] if it is zero).
///
/// # Errors
/// [`ReplayError`].
pub fn replay(shard: &Shard, inputs: ReplayInputs<'_>, chunk: usize) -> Result<Replayed, ReplayError> {
    let width = shard.config().hidden_size;
    let chunk = if chunk == 0 { PREFILL_CHUNK } else { chunk };
    let (rows, fits) = match inputs {
        ReplayInputs::Tokens(tokens) => (tokens.len(), shard.is_first()),
        ReplayInputs::Hidden(values) => (values.len() / width, !shard.is_first() && values.len().is_multiple_of(width)),
    };
    if !fits || rows == 0 {
        return Err(ReplayError::Inputs(shard.range()));
    }
    let limit = shard.config().max_positions;
    if rows > limit as usize {
        return Err(ReplayError::TooLong { rows, limit });
    }
    let mut cache = shard.cache(rows as u32)?;
    let mut outputs = Vec::with_capacity(rows * width);
    for first in (0..rows).step_by(chunk) {
        let end = rows.min(first + chunk);
        let input = match inputs {
            ReplayInputs::Tokens(tokens) => StageInput::Tokens(&tokens[first..end]),
            ReplayInputs::Hidden(values) => {
                let values = &values[first * width..end * width];
                StageInput::Hidden(Tensor::from_slice(values, (end - first, width), shard.device())?)
            }
        };
        let forwarded = shard.forward_keeping(&mut cache, input, first, HeadRows::None)?;
        let hidden = forwarded.hidden.to_device(&candle_core::Device::Cpu)?.contiguous()?;
        outputs.extend_from_slice(elements(&hidden).as_slice()?);
    }
    Ok(Replayed { outputs, width })
}
