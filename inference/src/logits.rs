//! The logits of every position, for comparison with other engines.

use consortium_protocol::wire::heartbeat::LayerRange;

use crate::PREFILL_CHUNK;
use crate::llama::HeadRows;
use crate::local::{LocalError, LocalPipeline};
use crate::model_dir::ModelDir;

/// Logits of every position of `tokens`, one vector of the vocabulary each, f32. The model runs in the given stages, in
/// one if there are none. Needs no tokenizer.
///
/// # Errors
/// [`LocalError::NoTokens`], [`LocalError::ContextLength`], [`LocalError::Splits`], and what loading and computing can
/// give.
pub fn all_logits(dir: &ModelDir, tokens: &[u32], splits: &[LayerRange]) -> Result<Vec<Vec<f32>>, LocalError> {
    let limit = dir.config().max_positions;
    if tokens.is_empty() {
        return Err(LocalError::NoTokens);
    }
    if tokens.len() > limit as usize {
        return Err(LocalError::ContextLength { tokens: tokens.len(), limit });
    }
    let mut pipeline = LocalPipeline::load(dir, splits, tokens.len() as u32)?;
    let mut rows = Vec::with_capacity(tokens.len());
    for chunk in tokens.chunks(PREFILL_CHUNK) {
        if let Some(logits) = pipeline.forward(chunk, HeadRows::All)? {
            rows.extend(logits.to_vec2::<f32>()?);
        }
    }
    Ok(rows)
}
