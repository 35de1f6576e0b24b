//! The rows that a cheating stage gives in place of the honest ones.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use consortium_node::inference::kv_cache::KvCache;
use consortium_node::inference::llama::{HeadRows, Shard, StageInput};
use consortium_node::inference::stage::{HiddenStates, Step};
use consortium_protocol::wire::audit::BLOCK;
use consortium_protocol::wire::heartbeat::LayerRange;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Positions before its block to which [`Method::ShortContext`] attends.
pub const SHORT_CONTEXT: usize = 32;
/// Rows of an earlier job that are kept.
const REPLAYED_ROWS: usize = 8192;

/// What an earlier job gave, by stage: filled by the first session of each.
pub type Past = Arc<Mutex<BTreeMap<LayerRange, Vec<f32>>>>;

/// Makes the rows of one session.
pub struct Forge {
    method: Method,
    rng: ChaCha8Rng,
}

/// Where the rows come from.
pub enum Method {
    /// A shard with other weights, over the same inputs.
    Weights(Computed),
    /// The agreed weights, over inputs that the worker made up.
    Inputs(Computed),
    /// The agreed weights, over each block and the [`SHORT_CONTEXT`] positions before it.
    ShortContext(Windowed),
    /// Zeros.
    Zeros,
    /// Gaussian noise, as large as the honest rows.
    Noise,
    /// The rows that came in.
    Copy,
    /// The rows of another job, from the start again where it was shorter.
    Replay(Vec<f32>),
    /// The honest rows, written down for a later replay.
    Remember(Past, LayerRange),
    /// The honest rows.
    Honest,
}

/// A shard and the cache of a session.
pub struct Computed {
    shard: Arc<Shard>,
    cache: KvCache,
}

/// A shard that forgets what lies far behind.
pub struct Windowed {
    shard: Arc<Shard>,
    cache: Option<KvCache>,
    /// Inputs of the last rows.
    tokens: Vec<u32>,
    hidden: Vec<u8>,
}

impl Computed {
    /// An empty session of at most `max_positions`.
    ///
    /// # Errors
    /// When there is no memory for the cache.
    pub fn new(shard: Arc<Shard>, max_positions: u32) -> Result<Self> {
        let cache = shard.cache(max_positions)?;
        Ok(Self { shard, cache })
    }

    fn rows(&mut self, step: &Step) -> Result<Vec<f32>> {
        forward(&self.shard, &mut self.cache, &step.tokens, step.hidden.as_ref())
    }
}

impl Windowed {
    /// A session that has seen nothing.
    pub fn new(shard: Arc<Shard>) -> Self {
        Self { shard, cache: None, tokens: Vec::new(), hidden: Vec::new() }
    }

    fn rows(&mut self, step: &Step) -> Result<Vec<f32>> {
        let row_bytes = step.hidden.as_ref().map_or(0, |hidden| hidden.width as usize * 4);
        let mut rows = Vec::new();
        let (mut at, end) = (0, step.tokens.len());
        while at < end {
            let position = step.pos as usize + at;
            let until = end.min(at + BLOCK - position % BLOCK);
            if position.is_multiple_of(BLOCK) || self.cache.is_none() {
                self.start_block(row_bytes)?;
            }
            let tokens = &step.tokens[at..until];
            let hidden = step.hidden.as_ref().map(|hidden| part(hidden, at, until));
            self.tokens.extend_from_slice(tokens);
            self.hidden.extend(hidden.iter().flat_map(|hidden| &hidden.data));
            let cache = self.cache.as_mut().context("a block has begun")?;
            rows.extend(forward(&self.shard, cache, tokens, hidden.as_ref())?);
            at = until;
        }
        Ok(rows)
    }

    /// A fresh cache, filled with the positions before the block. Rotary angles count from the first of them, which
    /// changes nothing: only distances matter.
    fn start_block(&mut self, row_bytes: usize) -> Result<()> {
        let surplus = self.tokens.len().saturating_sub(SHORT_CONTEXT);
        self.tokens.drain(..surplus);
        self.hidden.drain(..surplus * row_bytes);
        let mut cache = self.shard.cache((SHORT_CONTEXT + BLOCK) as u32)?;
        if !self.tokens.is_empty() {
            let hidden = (row_bytes > 0).then(|| HiddenStates {
                rows: self.tokens.len() as u32,
                width: (row_bytes / 4) as u32,
                data: self.hidden.clone(),
            });
            forward(&self.shard, &mut cache, &self.tokens, hidden.as_ref())?;
        }
        self.cache = Some(cache);
        Ok(())
    }
}

impl Forge {
    /// A session's forge; `seed` decides what is made up.
    pub fn new(method: Method, seed: [u8; 32]) -> Self {
        Self { method, rng: ChaCha8Rng::from_seed(seed) }
    }

    /// What the worker would give for a step for which honest work gives `honest`: `[rows, width]`. Every step of the
    /// session must come by, in order.
    ///
    /// # Errors
    /// When the computation fails.
    pub fn rows(&mut self, step: &Step, honest: &HiddenStates) -> Result<Vec<f32>> {
        let values = floats(&honest.data);
        match &mut self.method {
            Method::Weights(computed) => computed.rows(step),
            Method::ShortContext(windowed) => windowed.rows(step),
            Method::Inputs(computed) => {
                let vocabulary = computed.shard.config().vocab_size as u32;
                let mut step = step.clone();
                match &mut step.hidden {
                    Some(hidden) => hidden.data = bytes(&noise_like(&floats(&hidden.data), &mut self.rng)),
                    None => step.tokens.fill_with(|| self.rng.random_range(0..vocabulary)),
                }
                computed.rows(&step)
            }
            Method::Zeros => Ok(vec![0.0; values.len()]),
            Method::Noise => Ok(noise_like(&values, &mut self.rng)),
            Method::Copy => step.hidden.as_ref().map(|hidden| floats(&hidden.data)).context("no rows came in"),
            Method::Replay(past) => {
                let first = step.pos as usize * honest.width as usize;
                Ok((first..first + values.len()).map(|index| past[index % past.len()]).collect())
            }
            Method::Remember(past, range) => {
                let mut past = past.lock().unwrap_or_else(PoisonError::into_inner);
                let rows = past.entry(*range).or_default();
                if rows.len() < REPLAYED_ROWS * honest.width as usize {
                    rows.extend_from_slice(&values);
                }
                Ok(values)
            }
            Method::Honest => Ok(values),
        }
    }
}

/// The hidden states behind the last layer of a shard.
fn forward(shard: &Shard, cache: &mut KvCache, tokens: &[u32], hidden: Option<&HiddenStates>) -> Result<Vec<f32>> {
    let input = match hidden {
        None => StageInput::Tokens(tokens),
        Some(hidden) => StageInput::Hidden(hidden.to_tensor(shard.device())?),
    };
    let position = cache.length();
    let forwarded = shard.forward_keeping(cache, input, position, HeadRows::None)?;
    Ok(floats(&HiddenStates::from_tensor(&forwarded.hidden)?.data))
}

/// Gaussian noise with the root mean square of `values`.
fn noise_like(values: &[f32], rng: &mut ChaCha8Rng) -> Vec<f32> {
    let mean_square = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / values.len().max(1) as f64;
    let size = mean_square.sqrt();
    let gaussian = |rng: &mut ChaCha8Rng| {
        let (uniform, angle) = (1.0 - rng.random::<f64>(), rng.random::<f64>() * std::f64::consts::TAU);
        (size * (-2.0 * uniform.ln()).sqrt() * angle.cos()) as f32
    };
    values.iter().map(|_| gaussian(rng)).collect()
}

fn part(hidden: &HiddenStates, from: usize, until: usize) -> HiddenStates {
    let row = hidden.width as usize * 4;
    HiddenStates {
        rows: (until - from) as u32,
        width: hidden.width,
        data: hidden.data[from * row..until * row].to_vec(),
    }
}

/// The numbers of little-endian bytes.
pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// The little-endian bytes of numbers.
pub fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
