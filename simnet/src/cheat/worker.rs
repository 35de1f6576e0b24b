//! A worker that cheats: what a real node's stages are tampered with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use consortium_node::inference::audit::classes::own_class;
use consortium_node::inference::llama::Shard;
use consortium_node::inference::model_dir::ModelDir;
use consortium_node::inference::sampling::Sampler;
use consortium_node::inference::stage::{HiddenStates, Step, StepOutput, StepResult};
use consortium_node::pipeline::{Tamper, TamperedSession};
use consortium_protocol::hash::Hash;
use consortium_protocol::wire::audit::{BLOCK, NumericClass};
use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::wire::pipeline::SessionOpen;

use super::forge::{Computed, Forge, Method, Past, Windowed, bytes};
use super::spec::{Cheat, Kind};
use super::weights::{Tampering, tampered_copy};

/// Added to a job's seed by a worker that draws tokens as it likes.
const OTHER_SEED: u64 = 0x5eed;

/// Shards by layers, and whether they are tampered with.
type Loaded = BTreeMap<(LayerRange, bool), Arc<Shard>>;

/// A worker that cheats. Clones are the same worker.
#[derive(Clone)]
pub struct CheatingWorker {
    cheat: Cheat,
    weights: Option<Tampering>,
    class: NumericClass,
    model: PathBuf,
    scratch: PathBuf,
    loaded: Arc<Mutex<Loaded>>,
    past: Past,
}

impl CheatingWorker {
    /// A worker on the model in `model`; what it writes goes into `scratch`, which it may empty.
    pub fn new(cheat: Cheat, model: PathBuf, scratch: PathBuf) -> Self {
        Self {
            cheat,
            weights: Tampering::of(cheat.kind),
            class: own_class(),
            model,
            scratch,
            loaded: Arc::default(),
            past: Past::default(),
        }
    }

    /// The same worker on a machine of another numeric class.
    #[must_use]
    pub fn in_class(self, class: NumericClass) -> Self {
        Self { class, loaded: Arc::default(), ..self }
    }

    /// The same worker with other weights than the cheat's own.
    #[must_use]
    pub fn with_weights(self, tampering: Tampering) -> Self {
        Self { weights: Some(tampering), loaded: Arc::default(), ..self }
    }

    /// A shard of the agreed weights, or of the tampered ones; loaded once.
    fn shard(&self, range: LayerRange, tampering: Option<Tampering>) -> Result<Arc<Shard>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shard) = loaded.get(&(range, tampering.is_some())) {
            return Ok(Arc::clone(shard));
        }
        let dir = match tampering {
            None => self.model.clone(),
            Some(tampering) => {
                let copy = self.scratch.join(format!("{}-{range}", self.cheat.kind));
                if copy.exists() {
                    std::fs::remove_dir_all(&copy).with_context(|| format!("cannot empty {}", copy.display()))?;
                }
                tampered_copy(&self.model, &copy, range, tampering)?;
                copy
            }
        };
        let shard = Arc::new(Shard::load_class(&ModelDir::open(&dir)?, range, self.class)?);
        loaded.insert((range, tampering.is_some()), Arc::clone(&shard));
        Ok(shard)
    }

    fn method(&self, range: LayerRange, max_positions: u32) -> Result<Method> {
        if let Some(tampering) = self.weights {
            return Ok(Method::Weights(Computed::new(self.shard(range, Some(tampering))?, max_positions)?));
        }
        Ok(match self.cheat.kind {
            Kind::ShortContext => Method::ShortContext(Windowed::new(self.shard(range, None)?)),
            Kind::Inputs => Method::Inputs(Computed::new(self.shard(range, None)?, max_positions)?),
            Kind::Zeros => Method::Zeros,
            Kind::Noise => Method::Noise,
            Kind::Copy => Method::Copy,
            Kind::Replay => match self.past.lock().unwrap_or_else(PoisonError::into_inner).get(&range) {
                Some(rows) => Method::Replay(rows.clone()),
                None => Method::Remember(Arc::clone(&self.past), range),
            },
            _ => Method::Honest,
        })
    }
}

impl Tamper for CheatingWorker {
    fn session(&self, open: &SessionOpen, place: u16) -> Option<Box<dyn TamperedSession>> {
        let stage = usize::from(place);
        let (first, last) = (stage == 0, stage + 1 == open.route.len());
        let range = open.route.get(stage)?.range;
        let mut material = open.job.0.to_vec();
        material.extend(open.attempt.to_le_bytes());
        material.extend(place.to_le_bytes());
        self.cheat.kind.possible(first, last).then(|| {
            Box::new(CheatingSession {
                worker: self.clone(),
                range,
                last,
                max_positions: open.max_positions,
                sampler: sampler(open, self.cheat.kind),
                greedy: open.sampling.temperature == 0.0 || open.sampling.top_k == 1,
                context: Vec::new(),
                seed: *Hash::of(&material).as_bytes(),
                forge: None,
                broken: false,
            }) as Box<dyn TamperedSession>
        })
    }
}

fn sampler(open: &SessionOpen, kind: Kind) -> Sampler {
    let mut sampling = open.sampling.clone();
    if kind == Kind::Tokens {
        sampling.seed = sampling.seed.wrapping_add(OTHER_SEED);
    }
    Sampler::new(sampling, open.prompt_len)
}

/// One session of a worker that cheats.
struct CheatingSession {
    worker: CheatingWorker,
    range: LayerRange,
    last: bool,
    max_positions: u32,
    sampler: Sampler,
    /// Whether the job wants the likeliest token, which no seed changes.
    greedy: bool,
    /// All tokens so far.
    context: Vec<u32>,
    seed: [u8; 32],
    /// Made with the first step: loading weights may take a while.
    forge: Option<Forge>,
    /// Something failed: honest from then on.
    broken: bool,
}

impl TamperedSession for CheatingSession {
    fn step(&mut self, step: &Step, output: &mut StepOutput) {
        if self.broken {
            return;
        }
        if let Err(error) = self.tamper(step, output) {
            tracing::warn!(cheat = %self.worker.cheat, %error, "cannot cheat");
            self.broken = true;
        }
    }
}

impl CheatingSession {
    fn tamper(&mut self, step: &Step, output: &mut StepOutput) -> Result<()> {
        self.context.extend_from_slice(&step.tokens);
        let forge = match &mut self.forge {
            Some(forge) => forge,
            none => none.insert(Forge::new(self.worker.method(self.range, self.max_positions)?, self.seed)),
        };
        let hidden = match &mut output.kind {
            StepResult::Hidden(hidden) => hidden,
            _ => output.hidden.as_mut().context("the last stage gave no hidden states")?,
        };
        let forged = bytes(&forge.rows(step, hidden)?);
        let row = hidden.width as usize * 4;
        let mut forged_last = false;
        let rows = hidden.data.chunks_mut(row).zip(forged.chunks(row));
        for ((given, forged), position) in rows.zip(step.pos as usize..) {
            forged_last =
                self.worker.cheat.share >= 1.0 || drawn(&self.seed, position / BLOCK) < self.worker.cheat.share;
            if forged_last {
                given.copy_from_slice(forged);
            }
        }
        if self.last && step.sample && forged_last {
            let end = hidden.data.len();
            let row = HiddenStates { rows: 1, width: hidden.width, data: hidden.data[end - row..].to_vec() };
            output.kind = StepResult::Token(self.draw(&row)?);
        }
        Ok(())
    }

    /// The token that follows a row of the last stage.
    fn draw(&self, row: &HiddenStates) -> Result<u32> {
        let shard = self.worker.shard(self.range, None)?;
        let mut logits = shard.head_logits(&row.to_tensor(shard.device())?)?.flatten_all()?.to_vec1::<f32>()?;
        let position = self.context.len() as u32;
        let token = self.sampler.sample(&mut logits, &self.context, position)?;
        if self.worker.cheat.kind != Kind::Tokens || !self.greedy {
            return Ok(token);
        }
        // Penalties have been applied: leave the likeliest out, and take the next.
        logits[token as usize] = f32::NEG_INFINITY;
        let best = (0..).zip(&logits).max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(id, _)| id);
        best.context("a vocabulary of one token")
    }
}

/// A number in `0..1` for a block of a session.
fn drawn(seed: &[u8; 32], block: usize) -> f64 {
    let mut material = seed.to_vec();
    material.extend(block.to_le_bytes());
    let hash = Hash::of(&material);
    let mut first = [0; 4];
    first.copy_from_slice(&hash.as_bytes()[..4]);
    f64::from(u32::from_le_bytes(first)) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_blocks_is_drawn() {
        let cheated = (0..10_000).filter(|block| drawn(&[3; 32], *block) < 0.1).count();
        assert!((900..1100).contains(&cheated), "{cheated} of 10000");
    }
}
