//! A whole model in one process, cut into stages that follow each other without a network.

use candle_core::{Device, Tensor};

use consortium_protocol::wire::heartbeat::LayerRange;

use crate::error::ModelError;
use crate::kv_cache::KvCache;
use crate::llama::{HeadRows, Shard, StageInput, StageOutput};
use crate::model_dir::ModelDir;
use crate::sampling::SampleError;

/// Why a model could not be run in one process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The ranges do not cover the model.
    #[error("the layers {given} are not all layers 0-{last} in order")]
    Splits {
        /// The ranges as given.
        given: String,
        /// Last layer of the model.
        last: u16,
    },
    /// There are no tokens to run.
    #[error("there are no tokens")]
    NoTokens,
    /// More tokens than the model has positions.
    #[error("{tokens} tokens, the model has {limit} positions")]
    ContextLength {
        /// Tokens that were asked for.
        tokens: usize,
        /// Positions of the model.
        limit: u32,
    },
    /// The computation failed, for instance on a token outside the vocabulary.
    #[error("the computation failed: {0}")]
    Compute(#[from] candle_core::Error),
    /// No token can be drawn.
    #[error(transparent)]
    Sample(#[from] SampleError),
}

/// All stages of a model and one session through them.
#[derive(Debug)]
pub struct LocalPipeline {
    stages: Vec<(Shard, KvCache)>,
    position: usize,
}

impl LocalPipeline {
    /// Loads a model in the given stages; in one if there are none.
    ///
    /// # Errors
    /// [`LocalError::Splits`] unless the ranges cover the model in order, and the errors of loading.
    pub fn load(dir: &ModelDir, splits: &[LayerRange], max_positions: u32) -> Result<Self, LocalError> {
        let whole = [dir.all_layers()];
        let splits = if splits.is_empty() { &whole } else { splits };
        check_cover(dir, splits)?;
        let stages = splits
            .iter()
            .map(|range| {
                let shard = Shard::load(dir, *range, &Device::Cpu)?;
                let cache = shard.cache(max_positions)?;
                Ok((shard, cache))
            })
            .collect::<Result<_, LocalError>>()?;
        Ok(Self { stages, position: 0 })
    }

    /// Runs rows that follow those before through all stages. Gives `[rows, vocab]` for the rows asked for.
    ///
    /// # Errors
    /// [`LocalError::Compute`].
    pub fn forward(&mut self, tokens: &[u32], head: HeadRows) -> Result<Option<Tensor>, LocalError> {
        let mut input = StageInput::Tokens(tokens);
        for (shard, cache) in &mut self.stages {
            match shard.forward_rows(cache, input, self.position, head)? {
                StageOutput::Hidden(hidden) => input = StageInput::Hidden(hidden),
                StageOutput::Logits(logits) => {
                    self.position += tokens.len();
                    return Ok(Some(logits));
                }
                StageOutput::Nothing => break,
            }
        }
        self.position += tokens.len();
        Ok(None)
    }
}

fn check_cover(dir: &ModelDir, splits: &[LayerRange]) -> Result<(), LocalError> {
    let mut next = 0;
    let mut fits = true;
    for range in splits {
        fits &= range.first == next && range.last >= range.first;
        next = range.last.saturating_add(1);
    }
    if fits && next == dir.config().layers {
        return Ok(());
    }
    let given: Vec<String> = splits.iter().map(ToString::to_string).collect();
    Err(LocalError::Splits { given: given.join(","), last: dir.config().layers - 1 })
}
