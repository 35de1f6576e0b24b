//! The cheats that are measured, and what they make of a stage's work.

use std::path::Path;

use anyhow::{Context, Result};
use consortium_node::inference::stage::{HiddenStates, Step, StepOutput, StepResult};
use consortium_node::pipeline::Tamper as _;
use consortium_protocol::wire::audit::{BLOCK, NumericClass};
use consortium_protocol::wire::pipeline::SessionOpen;

use super::honest::{Bench, Job, Work};
use crate::cheat::forge::{bytes, floats};
use crate::cheat::weights::Tampering;
use crate::cheat::{Cheat, CheatingWorker, Kind};

/// A block has changed if it lies further from honest work than this, relative to its norm. What is closer is as far
/// as two roundings of f32: a prompt that repeats one token, for instance, needs no long context.
const MATERIAL: f64 = 1e-6;
/// Share of the blocks in which a selective cheat cheats.
const SELECTIVE: f64 = 0.01;

/// A cheat to measure.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its name in tables.
    pub label: String,
    /// What it does.
    pub cheat: Cheat,
    /// Weights other than the cheat's own.
    weights: Option<Tampering>,
}

impl Subject {
    fn new(kind: Kind) -> Self {
        Self { label: kind.to_string(), cheat: Cheat::always(kind), weights: None }
    }

    fn with(label: &str, kind: Kind, weights: Tampering) -> Self {
        Self { label: label.to_owned(), cheat: Cheat::always(kind), weights: Some(weights) }
    }

    fn selective(kind: Kind) -> Self {
        let cheat = Cheat { kind, share: SELECTIVE };
        Self { label: cheat.to_string(), cheat, weights: None }
    }

    /// Whether it cheats in few blocks, so that it takes many to say something of it.
    pub fn is_selective(&self) -> bool {
        self.cheat.share < 1.0
    }

    /// All of them: every kind, finer and finer changes of weights, and selective ones.
    pub fn all() -> Vec<Self> {
        let mut subjects: Vec<Self> = Kind::ALL.into_iter().map(Self::new).collect();
        subjects.extend([
            Self::with("int8 groups of 32", Kind::Int8, Tampering::QuantiseGroups { bits: 8, group: 32 }),
            Self::with("int4 groups of 32", Kind::Int4, Tampering::QuantiseGroups { bits: 4, group: 32 }),
            Self::with("stale 0.3 %", Kind::Stale, Tampering::Stale(0.003)),
            Self::with("stale 0.1 %", Kind::Stale, Tampering::Stale(0.001)),
            Self::selective(Kind::Int8),
            Self::selective(Kind::Zeros),
        ]);
        subjects
    }

    /// The worker that cheats so, in a class.
    pub fn worker(&self, model: &Path, scratch: &Path, class: NumericClass) -> CheatingWorker {
        let worker = CheatingWorker::new(self.cheat, model.to_owned(), scratch.to_owned()).in_class(class);
        match self.weights {
            Some(weights) => worker.with_weights(weights),
            None => worker,
        }
    }
}

/// A stage's work after a cheat.
pub struct Forged {
    /// Its hidden states, `[rows, width]`.
    pub outputs: Vec<f32>,
    /// The tokens it drew.
    pub drawn: Vec<u32>,
    /// The blocks in which numbers or tokens are not those of honest work, by more than rounding.
    pub changed: Vec<bool>,
}

/// Has a worker do a stage of a job, over the inputs that honest work has there, step by step as a node would. None
/// where it cannot cheat or did not.
///
/// # Errors
/// When the last stage hides its hidden states, which none does.
pub fn forge(
    worker: &CheatingWorker,
    bench: &Bench,
    open: &SessionOpen,
    job: &Job,
    work: &Work,
    place: usize,
) -> Result<Option<Forged>> {
    let Some(mut session) = worker.session(open, place as u16) else { return Ok(None) };
    let width = bench.width();
    let last = place + 1 == bench.ranges.len();
    let honest = &work.outputs[place];
    let rows = |values: &[f32], first: usize, end: usize| HiddenStates {
        rows: (end - first) as u32,
        width: width as u32,
        data: bytes(&values[first * width..end * width]),
    };
    let mut forged =
        Forged { outputs: Vec::with_capacity(honest.len()), drawn: work.drawn.clone(), changed: Vec::new() };
    for (seq, chunk) in (0..).zip(job.chunks()) {
        let step = Step {
            seq,
            pos: chunk.first as u32,
            tokens: work.tokens[chunk.first..chunk.end].to_vec(),
            hidden: place.checked_sub(1).map(|before| rows(&work.outputs[before], chunk.first, chunk.end)),
            sample: chunk.sample,
        };
        let hidden = rows(honest, chunk.first, chunk.end);
        let mut output = match (last, chunk.sample) {
            (false, _) => StepOutput { kind: StepResult::Hidden(hidden), micros: 0, hidden: None },
            (true, false) => StepOutput { kind: StepResult::Nothing, micros: 0, hidden: Some(hidden) },
            (true, true) => {
                let kind = StepResult::Token(work.drawn[chunk.end - 1]);
                StepOutput { kind, micros: 0, hidden: Some(hidden) }
            }
        };
        session.step(&step, &mut output);
        let hidden = match output.kind {
            StepResult::Hidden(hidden) => Some(hidden),
            StepResult::Token(token) => {
                forged.drawn[chunk.end - 1] = token;
                output.hidden
            }
            StepResult::Nothing => output.hidden,
        };
        forged.outputs.extend(floats(&hidden.context("the last stage gave no hidden states")?.data));
    }
    let blocks = forged.outputs.chunks(BLOCK * width).zip(honest.chunks(BLOCK * width));
    let draws = forged.drawn.chunks(BLOCK).zip(work.drawn.chunks(BLOCK));
    forged.changed = blocks.zip(draws).map(|((a, b), (drawn, should))| differ(a, b) || drawn != should).collect();
    Ok(forged.changed.contains(&true).then_some(forged))
}

/// Whether numbers lie materially apart.
fn differ(forged: &[f32], honest: &[f32]) -> bool {
    let square = |sum: f64, value: f32| sum + f64::from(value) * f64::from(value);
    let apart = forged.iter().zip(honest).map(|(a, b)| a - b).fold(0.0, square).sqrt();
    // What is no number is no rounding either.
    apart.is_nan() || apart > MATERIAL * honest.iter().copied().fold(0.0, square).sqrt()
}
