//! Text from a model in training.

use std::sync::Arc;

use rand::Rng;

use crate::corpus::stream;
use crate::error::TrainError;
use crate::model::Llama;

/// Continues `prompt` token by token until one of `ends` or `limit` tokens; the most likely token each time if
/// `temperature` is 0. The whole context is computed anew for each token: meant for a look at a model in training.
///
/// # Errors
/// If a tensor operation fails or the context runs out.
pub fn generate(
    model: &Llama,
    prompt: &[u32],
    limit: usize,
    temperature: f32,
    seed: u64,
) -> Result<Vec<u32>, TrainError> {
    let mut rng = stream(seed, 0);
    let mut tokens = prompt.to_vec();
    for _ in 0..limit {
        let hidden = model.hidden(&tokens, &Arc::new(vec![0; tokens.len()]), 1)?;
        let logits = model.logits(&hidden.narrow(0, tokens.len() - 1, 1)?)?.flatten_all()?.to_vec1::<f32>()?;
        // Gumbel's maximum: the largest of logit / temperature plus noise is a draw from the softmax.
        let scored = logits.iter().map(|l| {
            let noise = if temperature > 0.0 { -(-(1.0 - rng.random::<f32>()).ln()).ln() * temperature } else { 0.0 };
            l + noise
        });
        let best = scored.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(id, _)| id as u32);
        if model.config().eos_token_id.contains(&best) {
            break;
        }
        tokens.push(best);
    }
    Ok(tokens.split_off(prompt.len()))
}
