//! How fast a shard is on this machine.

use std::time::Instant;

use candle_core::{DType, Result, Tensor};

use crate::llama::{HeadRows, Shard, StageInput};

/// Tokens that are timed.
const ROUNDS: usize = 5;

/// Time of one decode token through one layer of a shard, microseconds, at least 1: the median of a few tokens, after
/// one that warms up. Embedding and head are not counted, since the placement counts them by their bytes.
///
/// # Errors
/// When the computation fails.
pub fn layer_micros(shard: &Shard) -> Result<u32> {
    let layers = u32::from(shard.range().last - shard.range().first) + 1;
    let mut cache = shard.cache(ROUNDS as u32 + 1)?;
    let mut times = Vec::with_capacity(ROUNDS);
    for pos in 0..=ROUNDS {
        let input = match shard.is_first() {
            true => StageInput::Tokens(&[0]),
            false => StageInput::Hidden(Tensor::ones((1, shard.config().hidden_size), DType::F32, shard.device())?),
        };
        let started = Instant::now();
        shard.forward_rows(&mut cache, input, pos, HeadRows::None)?;
        shard.device().synchronize()?;
        if pos > 0 {
            times.push(started.elapsed().as_micros());
        }
    }
    times.sort_unstable();
    let median = times[ROUNDS / 2] / u128::from(layers);
    Ok(u32::try_from(median).unwrap_or(u32::MAX).max(1))
}
