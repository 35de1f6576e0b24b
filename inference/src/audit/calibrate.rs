//! Measures how far honest numbers of this machine's classes lie apart, and sets limits.
//!
//! Sequences are run through every cut of the model into stages as workers of each class would: prompts as a prefill or
//! row by row as in decoding, on one thread or several. Each stage's work is then audited in each class from the inputs
//! that the stage had, in chunks of different sizes. Besides the given prompts two degenerate sequences are run, one
//! token over and over and tokens drawn evenly: repetition takes away the averaging over rows that the statistics of a
//! block otherwise enjoy.
//!
//! The tail of every statistic is extrapolated ([`Tail`]). A value passes up to the level that an honest block exceeds
//! with probability 1e-5 by the fit, and at least up to the largest measured and [`PASS_MARGIN`]; beyond the level of
//! probability 1e-9, and beyond the largest measured and [`FRAUD_MARGIN`], it is fraud. The fit treats blocks as
//! independent, which blocks of one sequence are not quite; a tail that is never taken to end leans the other way.

use std::collections::BTreeMap;

use candle_core::Tensor;
use consortium_protocol::wire::audit::{BLOCK, Compute, NumericClass};
use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::wire::job::Sampling;

use super::auditor::reference_class;
use super::classes::{ClassError, available, nearest};
use super::compare::{JobStats, Limits, PairLimits, Recomputed, compare};
use super::replay::{ReplayError, ReplayInputs, replay};
use super::tail::rounded;
use super::thresholds::{Measured, Pair, Tail, Thresholds};
use crate::PREFILL_CHUNK;
use crate::generate::generate;
use crate::llama::Shard;
use crate::local::LocalError;
use crate::model_dir::ModelDir;

/// How far above the largest honest value the pass limit is at least, in distances of that value from the median.
pub const PASS_MARGIN: f64 = 0.1;
/// The same of the fraud limit.
pub const FRAUD_MARGIN: f64 = 0.25;
/// Probability by the fit that an honest value does not pass.
const PASS_PROBABILITY: f64 = 1e-5;
/// Probability by the fit that an honest value is called fraud.
const FRAUD_PROBABILITY: f64 = 1e-9;

/// Why a calibration failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrateError {
    /// There is nothing to run, or a stage has no layers of the model.
    #[error("{0}")]
    Plan(&'static str),
    /// A shard cannot be loaded.
    #[error(transparent)]
    Class(#[from] ClassError),
    /// A sequence cannot be generated.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// A stage cannot be computed.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// A tensor cannot be made or read.
    #[error(transparent)]
    Compute(#[from] candle_core::Error),
    /// There are no threads to compute on.
    #[error(transparent)]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Prompts, as tokens; each is continued by sampling to `positions`.
    pub prompts: Vec<Vec<u32>>,
    /// Length of the sequences, rows.
    pub positions: usize,
    /// Cuts of the model, each into stages that cover it.
    pub splits: Vec<Vec<LayerRange>>,
    /// How many rows a worker computes at a time: 1 is decoding.
    pub worker_chunks: Vec<usize>,
    /// How many rows an auditor computes at a time.
    pub auditor_chunks: Vec<usize>,
    /// Threads of the workers; auditors use the machine's.
    pub threads: Vec<usize>,
}

impl Plan {
    /// Cuts into 1, 2, 3 stages and single layers; decoding and prefill; auditors with the usual chunk and one of two
    /// blocks; one thread and two.
    pub fn new(dir: &ModelDir, prompts: Vec<Vec<u32>>) -> Self {
        let layers = dir.config().layers;
        let cut = |stages: u32| {
            let edge = |stage: u32| (u32::from(layers) * stage / stages) as u16;
            (0..stages).map(|stage| LayerRange { first: edge(stage), last: edge(stage + 1) - 1 }).collect()
        };
        let mut counts: Vec<u32> = [1, 2, 3, layers].into_iter().filter(|n| *n <= layers).map(u32::from).collect();
        counts.dedup();
        Self {
            prompts,
            positions: 256.min(dir.config().max_positions as usize),
            splits: counts.into_iter().map(cut).collect(),
            worker_chunks: vec![1, PREFILL_CHUNK],
            auditor_chunks: vec![PREFILL_CHUNK, 2 * BLOCK],
            threads: vec![1, 2],
        }
    }
}

/// How far a calibration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Stages measured.
    pub done: usize,
    /// Stages to measure in all.
    pub total: usize,
}

/// Runs a plan on a model. Takes minutes on a small model; `progress` is called after every stage.
///
/// # Errors
/// [`CalibrateError`].
pub fn calibrate(
    dir: &ModelDir,
    plan: &Plan,
    progress: &mut dyn FnMut(Progress),
) -> Result<Thresholds, CalibrateError> {
    let empty = plan.splits.is_empty() || plan.worker_chunks.is_empty() || plan.auditor_chunks.is_empty();
    if empty || plan.threads.is_empty() || plan.positions == 0 {
        return Err(CalibrateError::Plan("nothing to run"));
    }
    let sequences = sequences(dir, plan)?;
    let pools: Vec<rayon::ThreadPool> = plan
        .threads
        .iter()
        .map(|threads| rayon::ThreadPoolBuilder::new().num_threads(*threads).build())
        .collect::<Result<_, _>>()?;
    let total = plan.splits.iter().map(Vec::len).sum::<usize>() * available().len();
    let mut done = 0;
    let mut samples: BTreeMap<(NumericClass, NumericClass, u16), Sample> = BTreeMap::new();
    for auditee in available() {
        for split in &plan.splits {
            let mut inputs: Vec<Vec<f32>> = Vec::new();
            for range in split {
                inputs = measure(dir, plan, *range, auditee, &sequences, &inputs, &pools, &mut samples)?;
                done += 1;
                progress(Progress { done, total });
            }
        }
    }
    Ok(Thresholds {
        model: dir.name().to_owned(),
        positions: plan.positions,
        threads: rayon::current_num_threads(),
        pairs: pairs(samples),
    })
}

/// The prompts continued, and two degenerate sequences.
fn sequences(dir: &ModelDir, plan: &Plan) -> Result<Vec<Vec<u32>>, CalibrateError> {
    let vocabulary = dir.config().vocab_size as u32;
    let mut sequences = Vec::new();
    for (index, prompt) in plan.prompts.iter().enumerate() {
        let mut tokens = prompt.clone();
        tokens.truncate(plan.positions);
        if tokens.is_empty() {
            return Err(CalibrateError::Plan("an empty prompt"));
        }
        while tokens.len() < plan.positions {
            let sampling = Sampling { seed: (index * plan.positions + tokens.len()) as u64, ..Sampling::default() };
            let left = (plan.positions - tokens.len()) as u32;
            tokens.extend(generate(dir, &tokens, &sampling, left, &[])?);
            // The model was done: go on with the prompt.
            let left = plan.positions - tokens.len();
            tokens.extend(prompt.iter().take(left));
        }
        sequences.push(tokens);
    }
    sequences.push(vec![vocabulary / 2; plan.positions]);
    let draw = |i: usize| {
        let hash = blake3::hash(&i.to_le_bytes());
        u32::from_le_bytes(std::array::from_fn(|byte| hash.as_bytes()[byte])) % vocabulary
    };
    sequences.push((0..plan.positions).map(draw).collect());
    Ok(sequences)
}

/// Measures one stage of one class against all auditors; gives the hidden states that the next stage takes.
#[expect(clippy::too_many_arguments)]
fn measure(
    dir: &ModelDir,
    plan: &Plan,
    range: LayerRange,
    auditee: NumericClass,
    sequences: &[Vec<u32>],
    inputs: &[Vec<f32>],
    pools: &[rayon::ThreadPool],
    samples: &mut BTreeMap<(NumericClass, NumericClass, u16), Sample>,
) -> Result<Vec<Vec<f32>>, CalibrateError> {
    let layers = range.last - range.first + 1;
    let shards: Vec<Shard> =
        available().into_iter().map(|class| Shard::load_class(dir, range, class)).collect::<Result<_, _>>()?;
    let place = |class: NumericClass| available().iter().position(|c| *c == class).unwrap_or_default();
    let worker = &shards[place(auditee)];
    let mut outputs = Vec::with_capacity(sequences.len());
    for (index, tokens) in sequences.iter().enumerate() {
        let input = match worker.is_first() {
            true => ReplayInputs::Tokens(tokens),
            false => ReplayInputs::Hidden(&inputs[index]),
        };
        let mut observed = Vec::new();
        for (chunk, pool) in plan.worker_chunks.iter().zip(pools.iter().cycle().skip(index)) {
            observed.push(pool.install(|| replay(worker, input, *chunk))?);
        }
        for (shift, chunk) in plan.auditor_chunks.iter().enumerate() {
            let recomputed: Vec<_> =
                shards.iter().map(|shard| replay(shard, input, *chunk)).collect::<Result<_, _>>()?;
            // Every way of working against every way of auditing, the expensive logits for one of them.
            for (way, observed) in observed.iter().enumerate() {
                let matching = &recomputed[place(nearest(auditee))];
                let margins = match worker.is_last() && (way + shift) % 2 == 0 {
                    true => margins(worker, &observed.outputs, &shards[place(nearest(auditee))], &matching.outputs)?,
                    false => Vec::new(),
                };
                for auditor in available() {
                    let reference =
                        reference_class(auditor, auditee).map(|class| &recomputed[place(class)].outputs[..]);
                    let recomputed = Recomputed { matching: &matching.outputs, reference };
                    let job = compare(&observed.outputs, recomputed, matching.width)
                        .map_err(|_| CalibrateError::Plan("rows do not fit together"))?;
                    samples.entry((auditor, auditee, layers)).or_default().add(&job, &margins);
                }
            }
        }
        outputs.push(observed.swap_remove(0).outputs);
    }
    Ok(outputs)
}

/// For every block, twice the largest difference of a logit between what the worker and the auditor compute.
fn margins(worker: &Shard, observed: &[f32], auditor: &Shard, matching: &[f32]) -> Result<Vec<f64>, CalibrateError> {
    let width = worker.config().hidden_size;
    let logits = |shard: &Shard, rows: &[f32]| -> Result<Vec<f32>, candle_core::Error> {
        let hidden = Tensor::from_slice(rows, (rows.len() / width, width), shard.device())?;
        shard.head_logits(&hidden)?.flatten_all()?.to_vec1::<f32>()
    };
    let mut margins = Vec::new();
    for (observed, matching) in observed.chunks(BLOCK * width).zip(matching.chunks(BLOCK * width)) {
        let (a, b) = (logits(worker, observed)?, logits(auditor, matching)?);
        margins.push(a.iter().zip(&b).map(|(a, b)| 2.0 * f64::from((a - b).abs())).fold(0.0, f64::max));
    }
    Ok(margins)
}

/// Values of honest work for one pair and depth.
#[derive(Default)]
struct Sample {
    blocks: usize,
    exact: usize,
    error: Vec<f64>,
    near: Vec<f64>,
    far: Vec<f64>,
    worst: Vec<f64>,
    job_near: Vec<f64>,
    job_far: Vec<f64>,
    systematic: Vec<f64>,
    margin: Vec<f64>,
}

impl Sample {
    fn add(&mut self, job: &JobStats, margins: &[f64]) {
        self.blocks += job.blocks.len();
        self.exact += job.exact();
        // Equal bits pass whatever the limits are: the tails are of the rest alone.
        for block in job.blocks.iter().filter(|block| !block.exact) {
            self.error.push(block.error);
            self.near.push(block.near);
            self.far.push(block.far);
            self.worst.push(block.worst);
        }
        if job.exact() < job.blocks.len() {
            self.job_near.push(job.near);
            self.job_far.push(job.far);
            self.systematic.push(job.systematic);
        }
        self.margin.extend_from_slice(margins);
    }

    fn pair(self, key: (NumericClass, NumericClass, u16), margin: Tail) -> Pair {
        let (auditor, auditee, layers) = key;
        let measured = Measured {
            exact: self.exact as f64 / self.blocks.max(1) as f64,
            error: Tail::fit(&self.error),
            near: Tail::fit(&self.near),
            far: Tail::fit(&self.far),
            worst: Tail::fit(&self.worst),
            job_near: Tail::fit(&self.job_near),
            job_far: Tail::fit(&self.job_far),
            systematic: Tail::fit(&self.systematic),
            margin,
        };
        let limits = limits_of(auditor, auditee, &measured);
        Pair { auditor, auditee, layers, limits, measured }
    }
}

/// Least limits of `near` and `worst` where bits should be equal: room for another system's sine, and ten times that.
const EXACT: Limits = Limits { pass: 2.0, fraud: 20.0 };
/// Least limits of `near` and `worst` in bf16: in a single layer hardly a rounding flips, but one that does can move a
/// row by as much as all other rounding, and another machine's sums may flip it where those of this one did not.
const NEAR_BF16: Limits = Limits { pass: 0.4, fraud: 0.8 };
/// The same in f16, for bf16 as a reference too.
const NEAR_F16: Limits = Limits { pass: 0.1, fraud: 0.2 };
/// The same in f32, for references that are far coarser.
const NEAR_F32: Limits = Limits { pass: 0.002, fraud: 0.004 };
/// Least limits of `far`.
const FAR: Limits = Limits { pass: 1.1, fraud: 1.2 };
/// Least limits of the systematic share of an error.
const SYSTEMATIC: Limits = Limits { pass: 0.1, fraud: 0.2 };
/// Least limits of a margin, logits.
const MARGIN: Limits = Limits { pass: 1e-4, fraud: 1e-3 };

/// The limits that follow from what was measured.
fn limits_of(auditor: NumericClass, auditee: NumericClass, measured: &Measured) -> PairLimits {
    let exact = reference_class(auditor, auditee).is_none();
    let (near, far) = match auditee.compute {
        _ if exact => (EXACT, EXACT),
        Compute::F32 => (NEAR_F32, FAR),
        Compute::Bf16 => (NEAR_BF16, FAR),
        Compute::F16 => (NEAR_F16, FAR),
    };
    PairLimits {
        near: limits(&measured.near, near),
        far: limits(&measured.far, far),
        worst: limits(&measured.worst, near),
        job_near: limits(&measured.job_near, near),
        job_far: limits(&measured.job_far, far),
        systematic: limits(&measured.systematic, SYSTEMATIC),
        margin: limits(&measured.margin, MARGIN),
    }
}

fn limits(tail: &Tail, least: Limits) -> Limits {
    let beyond = |margin: f64| tail.max + margin * (tail.max - tail.median);
    let pass = tail.level(PASS_PROBABILITY).max(beyond(PASS_MARGIN)).max(least.pass);
    // The last is for samples too small to have a tail.
    let fraud = tail.level(FRAUD_PROBABILITY).max(beyond(FRAUD_MARGIN)).max(least.fraud).max(1.01 * pass);
    Limits { pass: rounded(pass), fraud: rounded(fraud) }
}

/// Limits from samples. Margins are of last stages alone, of which not every depth has one: all depths share them.
fn pairs(samples: BTreeMap<(NumericClass, NumericClass, u16), Sample>) -> Vec<Pair> {
    let mut margins: BTreeMap<(NumericClass, NumericClass), Vec<f64>> = BTreeMap::new();
    for ((auditor, auditee, _), sample) in &samples {
        margins.entry((*auditor, *auditee)).or_default().extend(&sample.margin);
    }
    let tail = |auditor, auditee| Tail::fit(&margins[&(auditor, auditee)]);
    samples.into_iter().map(|(key, sample)| sample.pair(key, tail(key.0, key.1))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiled_in_limits_follow_from_what_was_measured() {
        for pair in Thresholds::compiled_in().pairs {
            let limits = limits_of(pair.auditor, pair.auditee, &pair.measured);
            let close = |a: Limits, b: Limits| {
                assert!((a.pass / b.pass - 1.0).abs() < 1e-4 && (a.fraud / b.fraud - 1.0).abs() < 1e-4, "{a:?} {b:?}");
            };
            close(limits.near, pair.limits.near);
            close(limits.far, pair.limits.far);
            close(limits.worst, pair.limits.worst);
            close(limits.job_near, pair.limits.job_near);
            close(limits.job_far, pair.limits.job_far);
            close(limits.systematic, pair.limits.systematic);
            close(limits.margin, pair.limits.margin);
        }
    }

    /// A small run from beginning to end: it measures all pairs, and its limits let honest work pass.
    #[test]
    fn a_small_calibration() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../training/models/consortium-tiny");
        let dir = ModelDir::open(path).unwrap();
        let plan = Plan {
            positions: 40,
            splits: vec![vec![LayerRange { first: 0, last: 7 }, LayerRange { first: 8, last: 9 }]],
            worker_chunks: vec![1],
            auditor_chunks: vec![40],
            ..Plan::new(&dir, vec![vec![5, 9, 200]])
        };
        let mut seen = Vec::new();
        let thresholds = calibrate(&dir, &plan, &mut |progress| seen.push(progress.done)).unwrap();
        assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(thresholds.pairs.len(), 32);
        assert!(Thresholds::parse(&thresholds.to_json().unwrap()).unwrap() == thresholds);
        for pair in &thresholds.pairs {
            let own = pair.auditee == available()[0];
            assert_eq!(pair.measured.exact == 1.0, own, "{pair:?}");
            assert!(own || (0.3..1.5).contains(&pair.measured.far.median), "{pair:?}");
        }
        let nothing = Plan { threads: Vec::new(), ..plan };
        assert!(matches!(calibrate(&dir, &nothing, &mut |_| ()), Err(CalibrateError::Plan(_))));
    }
}
