//! From a specification to what is computed.

use consortium_protocol::wire::train::{Beacon, RunSpec};
use consortium_protocol::{Hash, NodeId};

use super::config::config_of;
use super::data::data_of;
use super::submission::Submission;
use crate::collective::{Assignment, Data, Examination, LocalRecipe, Parameters, Peer, SyncProbe, Task};
use crate::corpus::Split;
use crate::dataset::{Location, Rows};
use crate::error::TrainError;
use crate::model::LlamaConfig;
use crate::optimizer::{AdamWSettings, Schedule};
use crate::sparseloco::{FEEDBACK, OUTER_RATE, Update, median_norms};
use crate::tokenizer::Tokenizer;

/// Longest tokenizer, in bytes.
pub const MAX_TOKENIZER: usize = 32 << 20;
/// Largest norm of a gradient, in every run.
const CLIP: f64 = 1.0;
/// Fewest positions in a batch that is measured, and most rows that these make.
const BATCH_POSITIONS: usize = 256;
const LEAST_ROWS: usize = 4;
/// Most rows of a batch that is measured.
const MOST_ROWS: usize = 64;
/// What examining an update may cost, as a part of the training that it came from.
const SHARE: f64 = 0.05;

fn refuse(what: &'static str, reason: impl Into<String>) -> TrainError {
    TrainError::Run { what, reason: reason.into() }
}

/// What a run computes. `tokenizer_json` is the tokenizer's file, `data` that of the rows, if the run has one
/// ([`file_of`](super::data::file_of)), `parts` on how many threads this node trains.
///
/// # Errors
/// [`TrainError::Run`], [`TrainError::Setting`] or [`TrainError::Tokenizer`], in words: the run is none that this program
/// can take part in, or a file is not the one that it names. [`TrainError::Io`] if the data cannot be read.
pub fn task_of(
    spec: &RunSpec,
    tokenizer_json: &[u8],
    data: Option<Location>,
    parts: usize,
) -> Result<Task, TrainError> {
    if tokenizer_json.len() > MAX_TOKENIZER {
        return Err(refuse("tokenizer", format!("has {} bytes, and may have {MAX_TOKENIZER}", tokenizer_json.len())));
    }
    let found = Hash::of(tokenizer_json);
    if found != spec.tokenizer {
        let expected = spec.tokenizer.short();
        return Err(refuse("tokenizer", format!("is another: its hash is {}.., not {expected}..", found.short())));
    }
    let (config, recipe) = shape_of(spec, parts)?;
    let tokenizer = Tokenizer::from_json(tokenizer_json)?;
    let rows = match recipe.data {
        Data::Stories { .. } => None,
        Data::Rows { digest, training, held_out } => {
            let source = data.ok_or_else(|| refuse("data", "are a file, which is not here"))?;
            Some(Rows::open(source, digest, (training, held_out), recipe.length, tokenizer.vocabulary())?)
        }
    };
    Task::new(config, recipe, tokenizer, rows)
}

/// Refuses a specification that this program cannot take part in, whatever its files are.
///
/// # Errors
/// [`TrainError::Run`] or [`TrainError::Setting`], in words.
pub fn check_run(spec: &RunSpec) -> Result<(), TrainError> {
    shape_of(spec, 1).map(drop)
}

/// The model's shape and the recipe, which go together.
fn shape_of(spec: &RunSpec, parts: usize) -> Result<(LlamaConfig, LocalRecipe), TrainError> {
    let config = config_of(&spec.model.config)?;
    let recipe = recipe_of(spec, parts)?;
    check_rows(spec, &recipe)?;
    Task::check(&config, &recipe)?;
    Ok((config, recipe))
}

fn recipe_of(spec: &RunSpec, parts: usize) -> Result<LocalRecipe, TrainError> {
    let t = &spec.training;
    let same = |number: f64, here: f32| (number - f64::from(here)).abs() < f64::from(f32::EPSILON);
    if !same(t.outer_rate.get(), OUTER_RATE) || !same(t.feedback.get(), FEEDBACK) {
        let reason = format!("ask for another outer rate or feedback than {OUTER_RATE} and {FEEDBACK}");
        return Err(refuse("hyper-parameters", reason));
    }
    let (peak, steps) = (t.inner_rate.get(), u64::from(t.local_steps));
    let schedule = Schedule {
        peak,
        floor: peak * t.final_part.get(),
        warmup: u64::from(t.warmup_rounds).saturating_mul(steps),
        total: spec.rounds.saturating_mul(steps),
    };
    Ok(LocalRecipe {
        data: data_of(spec)?,
        length: t.sequence as usize,
        batch: t.batch as usize,
        steps,
        schedule,
        adam: AdamWSettings { weight_decay: t.weight_decay.get(), ..AdamWSettings::default() },
        clip: CLIP,
        parts,
    })
}

/// That rows are enough for all peers, and for what validators ask.
fn check_rows(spec: &RunSpec, recipe: &LocalRecipe) -> Result<(), TrainError> {
    let b = &spec.batches;
    if b.assigned != b.unassigned {
        return Err(refuse("batches", "must be as many of assigned rows as of unassigned ones"));
    }
    let examination = examination_of(spec);
    let own = examination.own * examination.own_rows;
    if own > recipe.rows_each() {
        return Err(refuse("batches", format!("take {own} of a peer's {} rows of a round", recipe.rows_each())));
    }
    let dealt = (recipe.rows_each() as u64).checked_mul(u64::from(spec.most_peers));
    let needed = dealt.and_then(|dealt| dealt.checked_add(own as u64));
    let held_out = (examination.held_out * examination.held_out_rows) as u64;
    let rows = recipe.data.rows(Split::Train);
    if needed.is_none_or(|needed| needed > rows) {
        let (peers, each) = (spec.most_peers, recipe.rows_each());
        return Err(refuse(
            "data",
            format!("have {rows} rows, too few for {peers} peers with {each} each and {own} more"),
        ));
    }
    let rows = recipe.data.rows(Split::HeldOut);
    if held_out > rows {
        return Err(refuse("data", format!("have {rows} rows held out, and {held_out} are asked for in a round")));
    }
    Ok(())
}

/// How the validators of a run examine updates: see the module for the rows of a batch.
#[must_use]
pub fn examination_of(spec: &RunSpec) -> Examination {
    let (held_out, own) = (spec.batches.held_out as usize, spec.batches.assigned as usize);
    let rows_each = (spec.training.local_steps as usize).saturating_mul(spec.training.batch as usize);
    let rows = (SHARE * 3.0 * rows_each as f64 / (held_out + 3 * own).max(1) as f64) as usize;
    let least = BATCH_POSITIONS.div_ceil((spec.training.sequence as usize).max(1)).clamp(1, LEAST_ROWS);
    let rows = rows.clamp(least, MOST_ROWS);
    Examination { held_out, held_out_rows: rows, own, own_rows: rows.min(rows_each / own.max(1)).max(1) }
}

/// Who trains on which rows in a round, by the draw of the record before.
///
/// # Errors
/// [`TrainError::Setting`] if there are too few rows.
pub fn assignment_of(task: &Task, round: u64, beacon: Beacon, peers: usize) -> Result<Assignment, TrainError> {
    let recipe = task.recipe();
    Assignment::new(beacon.0.as_bytes(), round, peers, recipe.rows_each(), recipe.data.rows(Split::Train))
}

/// A peer's part of a round: its local steps, and the bytes that it hands in. `trained` is how many rounds with training
/// there were before, which is its place in the schedule of the learning rate.
///
/// # Errors
/// [`TrainError::Setting`] if it is none of `peers`; otherwise as [`Peer::train`].
pub fn train(
    task: &Task,
    peer: &mut Peer,
    me: NodeId,
    (round, trained): (u64, u64),
    beacon: Beacon,
    peers: &[NodeId],
    common: &Parameters,
) -> Result<Vec<u8>, TrainError> {
    let place = peers
        .iter()
        .position(|other| *other == me)
        .ok_or_else(|| TrainError::Setting { name: "peers", reason: "this node is none of them".into() })?;
    let rows = assignment_of(task, round, beacon, peers.len())?.rows(place);
    let (message, _) = peer.train_while((round, trained), common, &rows, &mut |_| true)?;
    let sample = SyncProbe::new(beacon.0.as_bytes(), round, common).sample(common);
    Ok(Submission::encode(&sample, message))
}

/// The outer step by the accepted updates of a record, in its order: takes them off `common`, each clipped to their median
/// norms, and answers with the hash of what came out.
///
/// # Errors
/// [`TrainError::Sparse`] for an update of another model; nothing is changed then.
pub fn step(task: &Task, common: &mut Parameters, updates: &[&Update]) -> Result<Hash, TrainError> {
    if !updates.is_empty() {
        let medians = median_norms(task.layout(), updates)?;
        common.step(updates, &medians)?;
    }
    Ok(state_of(common))
}

/// The hash by which records and messages name parameters.
#[must_use]
pub fn state_of(parameters: &Parameters) -> Hash {
    Hash::from_bytes(parameters.hash().0)
}

#[cfg(test)]
mod tests {
    use consortium_protocol::wire::train::{Batches, Finite};
    use consortium_protocol::{Payload as _, RootKey};

    use super::*;
    use crate::run::{ModelSize, Prepared, RunPlan};

    fn made() -> Prepared {
        let validators = vec![RootKey::from_seed([1; 32]).node_id()];
        RunPlan { tokens_per_second: Some(1e4), ..RunPlan::new(ModelSize::Nano, validators) }.prepare(1).unwrap()
    }

    fn refused(spec: &RunSpec, tokenizer: &[u8]) -> String {
        task_of(spec, tokenizer, None, 1).unwrap_err().to_string()
    }

    #[test]
    fn a_tokenizer_must_be_the_one_that_is_signed_and_one_that_can_be_read() {
        let Prepared { spec, tokenizer, .. } = made();
        let text = String::from_utf8(tokenizer.clone()).unwrap();
        let utf_16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let with_mark = [b"\xef\xbb\xbf", &tokenizer[..]].concat();
        let crlf = text.replace('\n', "\r\n").into_bytes();
        let cut = &tokenizer[..tokenizer.len() / 2];
        for other in [&b""[..], &utf_16, &with_mark, cut, b"{}"] {
            assert!(refused(&spec, other).contains("tokenizer is another: its hash is"), "{other:?}");
            // Even where it is the one that was signed.
            let signed = RunSpec { tokenizer: Hash::of(other), ..spec.clone() };
            assert!(refused(&signed, other).starts_with("tokenizer: "), "{}", refused(&signed, other));
        }
        assert!(crlf == tokenizer || refused(&spec, &crlf).contains("is another"));
        let long = vec![b' '; MAX_TOKENIZER + 1];
        assert!(refused(&RunSpec { tokenizer: Hash::of(&long), ..spec.clone() }, &long).contains("and may have"));
        let special = text.replace("<|assistant|>", "<|assistent|>").into_bytes();
        let signed = RunSpec { tokenizer: Hash::of(&special), ..spec };
        assert!(refused(&signed, &special).contains("`added_tokens` is not that"));
    }

    #[test]
    fn what_is_not_computed_here_is_refused_in_words() {
        let Prepared { spec, tokenizer, .. } = made();
        let with = |change: &dyn Fn(&mut RunSpec)| {
            let mut other = spec.clone();
            change(&mut other);
            other.check().unwrap();
            refused(&other, &tokenizer)
        };
        let number = |value| Finite::new(value).unwrap();
        let batches = |assigned, unassigned| Batches { assigned, unassigned, ..spec.batches };
        for (words, said) in [
            ("hyper-parameters", with(&|s| s.training.outer_rate = number(0.7))),
            ("hyper-parameters", with(&|s| s.training.feedback = number(0.9))),
            ("batches must be as many", with(&|s| s.batches = batches(2, 1))),
            ("batches take 2 of a peer's 1", with(&|s| (s.training.local_steps, s.training.batch) = (1, 1))),
            ("data have 100 rows", with(&|s| (s.data.training_rows, s.data.held_out_rows) = (100, 100))),
            ("data must have as many", with(&|s| s.data.held_out_rows -= 1)),
            ("data are `x`", with(&|s| s.data.name = "x".into())),
            ("config.json is no JSON", with(&|s| s.model.config = "{".into())),
            ("vocab_size", with(&|s| s.model.config = s.model.config.replace(":300,", ":299,"))),
            ("longer than the model's context", with(&|s| s.training.sequence = 65)),
        ] {
            assert!(said.contains(words), "{words}: {said}");
        }
    }

    #[test]
    fn an_examination_costs_a_twentieth_where_there_is_enough_training() {
        let Prepared { mut spec, .. } = made();
        let share = |spec: &RunSpec| {
            let examination = examination_of(spec);
            examination.share((spec.training.local_steps * spec.training.batch) as usize)
        };
        assert_eq!(examination_of(&spec).held_out_rows, 4, "never fewer than four rows");
        (spec.training.local_steps, spec.training.batch) = (30, 8);
        let usual = examination_of(&spec);
        assert_eq!(usual, Examination { held_out: 3, held_out_rows: 4, own: 2, own_rows: 4 });
        assert!((share(&spec) - 0.05).abs() < 1e-12);
        for steps in [50, 200, 5000] {
            spec.training.local_steps = steps;
            assert!(share(&spec) <= 0.05, "{steps}");
        }
        assert_eq!(examination_of(&spec).own_rows, 64, "nor more than sixty-four");
        for (sequence, rows) in [(48, 4), (64, 4), (100, 3), (128, 2), (200, 2), (256, 1), (1000, 1)] {
            (spec.training.local_steps, spec.training.batch, spec.training.sequence) = (5, 4, sequence);
            assert_eq!(examination_of(&spec).held_out_rows, rows, "{sequence}: long rows say more");
        }
        (spec.training.local_steps, spec.training.batch, spec.training.sequence) = (1, 3, 48);
        assert_eq!(examination_of(&spec).own_rows, 1, "of a peer's three rows two batches of one");
    }
}
