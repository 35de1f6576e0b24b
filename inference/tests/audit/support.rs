//! The committed model, some text of its own, and how stages are run and audited.

use std::path::PathBuf;

use consortium_inference::audit::auditor::{Audited, Auditor};
use consortium_inference::audit::classes::own_class;
use consortium_inference::audit::replay::{ReplayInputs, replay};
use consortium_inference::audit::thresholds::Thresholds;
use consortium_inference::generate::generate;
use consortium_inference::llama::Shard;
use consortium_inference::model_dir::ModelDir;
use consortium_inference::tokenizer::TextTokenizer;
use consortium_protocol::wire::audit::NumericClass;
use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::wire::job::Sampling;

/// Rows of a sequence.
pub(crate) const ROWS: usize = 192;

pub(crate) fn model_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../training/models/consortium-tiny")
}

/// A prompt and what the model says, going on with the prompt when it is done.
pub(crate) fn text(dir: &ModelDir, prompt: &str, seed: u64) -> Vec<u32> {
    let prompt = TextTokenizer::open(model_path()).unwrap().encode(prompt, false).unwrap();
    let mut tokens = prompt.clone();
    while tokens.len() < ROWS {
        let sampling = Sampling { seed: seed + tokens.len() as u64, ..Sampling::default() };
        tokens.extend(generate(dir, &tokens, &sampling, (ROWS - tokens.len()) as u32, &[]).unwrap());
        tokens.extend_from_slice(&prompt[..prompt.len().min(ROWS - tokens.len())]);
    }
    tokens
}

/// What goes into a stage.
pub(crate) struct Inputs {
    pub(crate) tokens: Vec<u32>,
    /// Empty for the first stage.
    pub(crate) hidden: Vec<f32>,
}

impl Inputs {
    /// Of a stage whose predecessors are honest and compute in `class`.
    pub(crate) fn of(dir: &ModelDir, first: u16, class: NumericClass, tokens: &[u32]) -> Self {
        let mut hidden = Vec::new();
        if first > 0 {
            let before = Shard::load_class(dir, LayerRange { first: 0, last: first - 1 }, class).unwrap();
            hidden = replay(&before, ReplayInputs::Tokens(tokens), 0).unwrap().outputs;
        }
        Self { tokens: tokens.to_vec(), hidden }
    }

    /// Some rows of them, for a shard.
    pub(crate) fn rows(&self, shard: &Shard, from: usize, to: usize) -> ReplayInputs<'_> {
        let width = shard.config().hidden_size;
        match shard.is_first() {
            true => ReplayInputs::Tokens(&self.tokens[from..to]),
            false => ReplayInputs::Hidden(&self.hidden[from * width..to * width]),
        }
    }

    pub(crate) fn run(&self, shard: &Shard, chunk: usize) -> Vec<f32> {
        replay(shard, self.rows(shard, 0, self.tokens.len()), chunk).unwrap().outputs
    }
}

/// An auditor of one class of work of another, with the compiled-in limits.
pub(crate) fn auditor_of(dir: &ModelDir, range: LayerRange, class: NumericClass, auditee: NumericClass) -> Auditor {
    let limits = Thresholds::compiled_in().limits(class, auditee, range.last - range.first + 1).unwrap();
    Auditor::load(dir, range, class, auditee, limits).unwrap()
}

pub(crate) fn audit(
    dir: &ModelDir,
    range: LayerRange,
    class: NumericClass,
    auditee: NumericClass,
    inputs: &Inputs,
    observed: &[f32],
) -> Audited {
    let rows = match range.first {
        0 => ReplayInputs::Tokens(&inputs.tokens),
        _ => ReplayInputs::Hidden(&inputs.hidden),
    };
    auditor_of(dir, range, class, auditee).audit(rows, observed).unwrap()
}

pub(crate) fn name(class: NumericClass) -> String {
    match class == own_class() {
        true => "own f32".into(),
        false => format!("candle {:?}", class.compute).to_lowercase(),
    }
}
