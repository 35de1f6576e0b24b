//! Which token follows: penalties, filters, and a draw that needs no state.
//!
//! The draw is Gumbel-max (Maddison et al. 2014, arXiv:1411.0030): the token with the largest log-probability plus
//! Gumbel noise is distributed as the softmax. The noise of a token is a function of (seed, position, token id) alone,
//! so a pipeline that takes over draws what the old one would have drawn, and an auditor can draw again.

mod margin;

use consortium_protocol::wire::job::Sampling;

use crate::kernels::exp;

/// Domain of the noise; a change of anything about it takes a new version.
const NOISE_CONTEXT: &str = "consortium sampling noise 1";

/// Bytes of the noise stream that are made at a time.
const NOISE_BLOCK: usize = 1024;

/// Tokens whose noise is in one block, 32 bits each.
const TOKENS_PER_BLOCK: u32 = NOISE_BLOCK as u32 / 4;

/// Largest Gumbel noise that 32 bits can give, rounded up: -ln(-ln(1 - 2^-33)) = 22.87.
const MAX_GUMBEL: f64 = 22.9;

/// Why no token could be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// A logit is NaN or positive infinity: the computation before it is broken.
    #[error("the logit of token {token} is not a number; the model or its computation is broken")]
    NotANumber {
        /// The first such token.
        token: u32,
    },
    /// There is no token with a finite logit.
    #[error("no token has a finite logit")]
    NoCandidate,
}

/// Draws the tokens of one session.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    prompt_len: u32,
    key: [u8; 32],
}

/// A token that may be drawn.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    logit: f32,
}

impl Candidate {
    /// Best first: higher logits, then lower ids.
    fn order(&self, other: &Self) -> std::cmp::Ordering {
        other.logit.total_cmp(&self.logit).then(self.id.cmp(&other.id))
    }
}

impl Sampler {
    /// A sampler for a request. The first `prompt_len` tokens of every context are the prompt; what follows was
    /// generated, and is what the frequency and presence penalties count.
    pub fn new(sampling: Sampling, prompt_len: u32) -> Self {
        let key = blake3::derive_key(NOISE_CONTEXT, &sampling.seed.to_le_bytes());
        Self { sampling, prompt_len, key }
    }

    /// Draws the token that takes `position`, given the logits of the row before it and all tokens so far, prompt
    /// included. `logits` is scratch: it is left with the penalties applied.
    ///
    /// Order: repetition penalty over the whole context (Hugging Face's), frequency and presence penalties over the
    /// generated part (OpenAI's), temperature, top-k, top-p, min-p, draw. Temperature 0 takes the largest logit. Equal
    /// logits rank by token id, lowest first.
    ///
    /// # Errors
    /// [`SampleError`] when the logits are not numbers.
    pub fn sample(&self, logits: &mut [f32], context: &[u32], position: u32) -> Result<u32, SampleError> {
        self.penalise(logits, context);
        let best = best_of(logits)?;
        if self.sampling.temperature == 0.0 || self.sampling.top_k == 1 {
            return Ok(best.id);
        }
        let candidates = self.candidates(logits, best);
        Ok(self.draw(&candidates, best, position))
    }

    /// Applies the penalties in place. Each distinct token is penalised once, by its counts.
    fn penalise(&self, logits: &mut [f32], context: &[u32]) {
        let s = &self.sampling;
        let generated = context.get(self.prompt_len as usize..).unwrap_or_default();
        if s.repetition_penalty != 1.0 {
            for id in distinct(context) {
                if let Some(logit) = logits.get_mut(id.0 as usize) {
                    *logit = match *logit < 0.0 {
                        true => *logit * s.repetition_penalty,
                        false => *logit / s.repetition_penalty,
                    };
                }
            }
        }
        if s.frequency_penalty != 0.0 || s.presence_penalty != 0.0 {
            for (id, count) in distinct(generated) {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit -= s.frequency_penalty * count as f32 + s.presence_penalty;
                }
            }
        }
    }

    /// The tokens that survive top-k, top-p and min-p, with logits divided by the temperature.
    fn candidates(&self, logits: &[f32], best: Candidate) -> Vec<Candidate> {
        let s = &self.sampling;
        let temperature = s.temperature;
        // Every filter that bounds from below by a single number is applied while scanning, so that what is selected
        // and sorted afterwards is small. Top-p: tokens below (1 - p) / n of the mass cannot all together be needed.
        let mut floor = f32::NEG_INFINITY;
        let top_k = s.top_k > 0 && (s.top_k as usize) < logits.len();
        let top_p = s.top_p < 1.0;
        let min_p_alone = s.min_p > 0.0 && !top_p && !top_k;
        if min_p_alone {
            floor = best.logit / temperature + s.min_p.ln();
        }
        let mut kept: Vec<Candidate> = logits
            .iter()
            .zip(0..)
            .map(|(logit, id)| Candidate { id, logit: logit / temperature })
            .filter(|c| c.logit >= floor && c.logit > f32::NEG_INFINITY)
            .collect();
        if top_k && (s.top_k as usize) < kept.len() {
            kept.select_nth_unstable_by(s.top_k as usize - 1, Candidate::order);
            kept.truncate(s.top_k as usize);
        }
        let best = best.logit / temperature;
        if top_p {
            kept = nucleus(kept, best, s.top_p);
        }
        if s.min_p > 0.0 {
            let floor = best + s.min_p.ln();
            kept.retain(|c| c.logit >= floor);
        }
        kept
    }

    /// Gumbel-max over the candidates.
    fn draw(&self, candidates: &[Candidate], best: Candidate, position: u32) -> u32 {
        let mut noise = NoiseStream::new(&self.key, position);
        let mut winner = best.id;
        let mut score = f64::NEG_INFINITY;
        for candidate in candidates {
            let logit = f64::from(candidate.logit);
            if logit + MAX_GUMBEL < score {
                continue;
            }
            let uniform = noise.uniform(candidate.id);
            // -ln(u) is at least 1 - u: most candidates are out without a logarithm. The margin covers the rounding of
            // the exponential.
            if 1.0 - uniform > f64::from(exp((logit - score) as f32)) * 1.001 {
                continue;
            }
            let candidate_score = logit - (-uniform.ln()).ln();
            if candidate_score > score || (candidate_score == score && candidate.id < winner) {
                winner = candidate.id;
                score = candidate_score;
            }
        }
        winner
    }
}

/// The largest logit, lowest id first; refuses what is not a number.
fn best_of(logits: &[f32]) -> Result<Candidate, SampleError> {
    let mut best = Candidate { id: 0, logit: f32::NEG_INFINITY };
    for (&logit, id) in logits.iter().zip(0..) {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(SampleError::NotANumber { token: id });
        }
        if logit > best.logit {
            best = Candidate { id, logit };
        }
    }
    match best.logit > f32::NEG_INFINITY {
        true => Ok(best),
        false => Err(SampleError::NoCandidate),
    }
}

/// The smallest set of best candidates with at least `top_p` of the mass; never empty if `kept` is not.
fn nucleus(mut kept: Vec<Candidate>, best: f32, top_p: f32) -> Vec<Candidate> {
    let mass = |c: &Candidate| f64::from(exp(c.logit - best));
    let total: f64 = kept.iter().map(mass).sum();
    let target = f64::from(top_p) * total;
    // What lies below this cannot be needed: all of it together is less than what may be left out.
    let floor = (total - target) / kept.len() as f64;
    kept.retain(|c| mass(c) >= floor);
    let mut sum = 0.0;
    let mut sorted = 0;
    while sorted < kept.len() {
        let block = (3 * sorted).max(256).min(kept.len() - sorted);
        let rest = &mut kept[sorted..];
        if block < rest.len() {
            rest.select_nth_unstable_by(block - 1, Candidate::order);
        }
        rest[..block].sort_unstable_by(Candidate::order);
        for index in sorted..sorted + block {
            sum += mass(&kept[index]);
            if sum >= target {
                kept.truncate(index + 1);
                return kept;
            }
        }
        sorted += block;
    }
    kept
}

/// Distinct tokens with their counts, in order of id.
fn distinct(tokens: &[u32]) -> Vec<(u32, u32)> {
    let mut sorted = tokens.to_vec();
    sorted.sort_unstable();
    sorted.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u32)).collect()
}

/// The noise of one position: BLAKE3 in keyed mode over the position, its extended output cut into 32 bits per token.
struct NoiseStream {
    reader: blake3::OutputReader,
    block: [u8; NOISE_BLOCK],
    /// Which block of the stream `block` is.
    loaded: Option<u32>,
}

impl NoiseStream {
    fn new(key: &[u8; 32], position: u32) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(key);
        hasher.update(&position.to_le_bytes());
        Self { reader: hasher.finalize_xof(), block: [0; NOISE_BLOCK], loaded: None }
    }

    /// The uniform number of a token, strictly between 0 and 1.
    fn uniform(&mut self, id: u32) -> f64 {
        let wanted = id / TOKENS_PER_BLOCK;
        if self.loaded != Some(wanted) {
            self.reader.set_position(u64::from(wanted) * NOISE_BLOCK as u64);
            self.reader.fill(&mut self.block);
            self.loaded = Some(wanted);
        }
        let (words, _) = self.block.as_chunks::<4>();
        let bits = u32::from_le_bytes(words[(id % TOKENS_PER_BLOCK) as usize]);
        (f64::from(bits) + 0.5) / 4_294_967_296.0
    }
}

#[cfg(test)]
#[path = "sampling_tests.rs"]
mod tests;
