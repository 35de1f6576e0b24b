//! Generation in one process: the reference that every pipeline must agree with, token for token.

use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::wire::job::Sampling;

use crate::PREFILL_CHUNK;
use crate::llama::HeadRows;
use crate::local::{LocalError, LocalPipeline};
use crate::model_dir::ModelDir;
use crate::sampling::Sampler;

/// Continues a prompt by up to `max_tokens` tokens, until an end-of-sequence token (which is not part of the result) or
/// the end of the context. Prefill is cut as the node cuts it.
///
/// # Errors
/// [`LocalError::NoTokens`] and [`LocalError::ContextLength`] for the prompt, and what loading and computing can give.
pub fn generate(
    dir: &ModelDir,
    prompt: &[u32],
    sampling: &Sampling,
    max_tokens: u32,
    splits: &[LayerRange],
) -> Result<Vec<u32>, LocalError> {
    let limit = dir.config().max_positions;
    if prompt.is_empty() {
        return Err(LocalError::NoTokens);
    }
    if prompt.len() >= limit as usize {
        return Err(LocalError::ContextLength { tokens: prompt.len() + 1, limit });
    }
    let prompt_len = prompt.len() as u32;
    let positions = limit.min(prompt_len.saturating_add(max_tokens));
    let mut pipeline = LocalPipeline::load(dir, splits, positions)?;
    let sampler = Sampler::new(sampling.clone(), prompt_len);
    let mut context = prompt.to_vec();
    let mut rows = prompt.to_vec();
    while context.len() < positions as usize {
        let Some(mut logits) = prefill(&mut pipeline, &rows)? else {
            break;
        };
        let token = sampler.sample(&mut logits, &context, context.len() as u32)?;
        if dir.config().eos.contains(&token) {
            break;
        }
        context.push(token);
        rows = vec![token];
    }
    Ok(context.split_off(prompt.len()))
}

/// Runs rows in chunks; the logits of the last.
fn prefill(pipeline: &mut LocalPipeline, rows: &[u32]) -> Result<Option<Vec<f32>>, LocalError> {
    let mut chunks = rows.chunks(PREFILL_CHUNK).peekable();
    while let Some(chunk) = chunks.next() {
        let head = match chunks.peek() {
            Some(_) => HeadRows::None,
            None => HeadRows::Last,
        };
        if let Some(logits) = pipeline.forward(chunk, head)? {
            return Ok(Some(logits.flatten_all()?.to_vec1()?));
        }
    }
    Ok(None)
}
