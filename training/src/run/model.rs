//! A run's parameters as a model that nodes serve, with a card that says where they come from.

use std::path::Path;

use consortium_protocol::wire::train::{Entry, LossPair, RunId, RunSpec};
use consortium_protocol::{Hash, NodeId, Signed};
use serde::Serialize;

use super::archive::Archive;
use super::data::file_of;
use super::replay::{Depth, ReplayError, replay};
use super::task::state_of;
use crate::collective::{Data, Task};
use crate::corpus::Split;
use crate::curve::{Panel, panels};
use crate::error::TrainError;
use crate::export::export;
use crate::tensor_file::write_atomically;
use crate::tokenizer::Tokenizer;
use crate::trainer::mean_loss;

/// Held-out rows that a finished model is measured on.
const MEASURED: u64 = 64;
/// The first of them where rows are generated, of which there are more than any run asks for.
const UNSEEN: u64 = 1 << 40;

/// What a card says of parameters that are what the log leads to.
const CHECKED: &str = "Every update that
is in it was measured by validators before it was let in; what they measured is signed, and anyone can compute all of it
again.";
/// What it says of others.
const UNCHECKED: &str = "Every update that
its log lets in was measured by validators; what they measured is signed. **That these parameters are what the log leads to was
not checked:** no record names them yet, and not all that they would follow from is in the archive.";

/// A model that was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Written {
    /// The run that it is of.
    pub run: RunId,
    /// Rounds whose records it follows.
    pub round: u64,
    /// Whether it was found to be what the log leads to. If not, no record names its state yet, and what it follows from is not
    /// in the archive.
    pub checked: bool,
    /// Numbers in it.
    pub parameters: u64,
    /// Bytes of weights and tokenizer files.
    pub bytes: u64,
    /// Its loss on held-out rows, in nats per token: such as no validator drew, if rows are generated, else the last ones.
    pub loss: f64,
    /// Held-out loss by round, as its record has it, each on other rows.
    pub held_out: Vec<(u64, f64)>,
}

/// Writes the newest parameters of an archive to `directory` as a model (weights in bfloat16), with `loss.svg` and a
/// `README.md` that names the run; `log` is how that says where the archive is. The whole log is checked before, and that these
/// parameters are those that it leads to.
///
/// # Errors
/// [`TrainError::Archive`] if the archive has no parameters, is damaged, or its parameters are not those of its log, [`TrainError::Io`] if nothing can be written.
pub fn write_model(archive: &Archive, directory: &Path, log: &str) -> Result<Written, TrainError> {
    let spec = archive.spec()?;
    let json = archive.tokenizer()?;
    let task = archive.task(spec.payload())?;
    let (round, parameters) = archive.newest_parameters(&task)?.ok_or_else(|| TrainError::Archive {
        path: archive.directory().to_path_buf(),
        reason: "has no parameters: export it from a node that holds them".into(),
    })?;
    let mut entries = Vec::new();
    replay(archive, Depth::Log, &mut |step| entries.push(step.entry.clone()))
        .map_err(|error| refuse(archive, error))?;
    let state = state_of(&parameters);
    let checked = check_state(archive, spec.payload(), &entries, (round, state))?;
    // Those after it had no part in it.
    entries.retain(|entry| entry.record.round <= round);
    let held_out: Vec<(u64, f64)> =
        entries.iter().filter_map(|entry| Some((entry.record.round, held_out_loss(entry)?))).collect();
    let bytes = export(&parameters.model()?, &Tokenizer::from_json(&json)?, directory)?;
    let loss = mean_loss(&parameters.model()?, &task.batch(Split::HeldOut, &measured_rows(&task))?)?;
    let parameter_count = task.layout().parameters();
    let run = RunId::of(&spec);
    let written = Written { run, round, checked, parameters: parameter_count, bytes, loss, held_out };
    if !written.held_out.is_empty() {
        write_atomically(&directory.join("loss.svg"), loss_svg(&spec.payload().name, &written.held_out)?.as_bytes())?;
    }
    let card = card(&spec, &written, &peers(&entries), &state.to_string(), log);
    write_atomically(&directory.join("README.md"), card.as_bytes())?;
    Ok(written)
}

fn measured_rows(task: &Task) -> Vec<u64> {
    match task.recipe().data {
        Data::Stories { .. } => (UNSEEN..UNSEEN + MEASURED).collect(),
        Data::Rows { held_out, .. } => (held_out.saturating_sub(MEASURED)..held_out).collect(),
    }
}

fn refuse(archive: &Archive, error: ReplayError) -> TrainError {
    match error {
        ReplayError::Files(error) => error,
        error => archived(archive, error.to_string()),
    }
}

fn archived(archive: &Archive, reason: String) -> TrainError {
    TrainError::Archive { path: archive.directory().to_path_buf(), reason }
}

/// Whether the parameters after a round have the state that the log leads to; false if that cannot be found out.
///
/// # Errors
/// If they have another, or the log has no such round.
fn check_state(
    archive: &Archive,
    spec: &RunSpec,
    log: &[Entry],
    (round, found): (u64, Hash),
) -> Result<bool, TrainError> {
    let rounds = log.len();
    let place = usize::try_from(round).ok().filter(|round| *round <= rounds).ok_or_else(|| {
        archived(archive, format!("has parameters of round {round}, and the log ends with round {rounds}"))
    })?;
    let said = match (place.checked_sub(1).map(|last| &log[last].record), log.get(place)) {
        (None, _) => Some(spec.model.initial),
        (_, Some(next)) => Some(next.record.base),
        // Nobody has signed yet what the last aggregate led to.
        (Some(last), None) if last.reverts || last.accepted().next().is_some() => state_at_end(archive)?,
        (Some(last), None) => Some(last.base),
    };
    match said {
        Some(said) if said != found => Err(archived(
            archive,
            format!("has parameters of round {round} with the state {found}, and its log leads to {said}"),
        )),
        said => Ok(said.is_some()),
    }
}

/// The state after the last round, computed from the beginning; none if what that takes is not in the archive.
fn state_at_end(archive: &Archive) -> Result<Option<Hash>, TrainError> {
    match replay(archive, Depth::Model, &mut |_| {}) {
        Ok(replayed) => Ok(replayed.state),
        Err(ReplayError::NoInitial | ReplayError::NoUpdate { .. }) => Ok(None),
        Err(error) => Err(refuse(archive, error)),
    }
}

/// The mean loss of the parameters that a round began from on its held-out batches, as its record has it, in nats per token;
/// none if nothing was measured. All updates of a round are measured on the same batches, so that the loss before any of them
/// is that of the round; without an update it is what the aggregate before was found to have led to.
#[must_use]
pub fn held_out_loss(entry: &Entry) -> Option<f64> {
    let mean = |pairs: &[LossPair], loss: fn(&LossPair) -> f64| {
        (!pairs.is_empty()).then(|| pairs.iter().map(loss).sum::<f64>() / pairs.len() as f64)
    };
    let measured = entry.record.outcomes.iter().find_map(|outcome| mean(&outcome.held_out, |pair| pair.0.nats()));
    let judged = || entry.body.cards.iter().find_map(|card| mean(&card.payload().aggregate, |pair| pair.1.nats()));
    measured.or_else(judged)
}

/// A picture of held-out loss by round.
///
/// # Errors
/// [`TrainError::Curve`] if there is no point, or the drawing fails.
pub fn loss_svg(name: &str, held_out: &[(u64, f64)]) -> Result<String, TrainError> {
    let points = held_out.iter().map(|(round, loss)| (*round as f64, *loss)).collect();
    let panel = Panel {
        title: "held-out loss, nats per token".into(),
        x: "round",
        is_log: false,
        series: vec![("the run".into(), points)],
    };
    panels(name, &[panel])
}

/// Everyone of whom an update was accepted.
fn peers(entries: &[Entry]) -> Vec<NodeId> {
    let mut peers: Vec<NodeId> = entries.iter().flat_map(|e| e.record.accepted()).map(|(peer, ..)| peer).collect();
    peers.sort_unstable();
    peers.dedup();
    peers
}

fn card(spec: &Signed<RunSpec>, written: &Written, peers: &[NodeId], state: &str, log: &str) -> String {
    let (said, t) = (spec.payload(), &spec.payload().training);
    let rounds = match (written.held_out.first(), written.held_out.last()) {
        (Some(first), Some(last)) => {
            format!(
                "; as validators measured it {:.3} in round {} and {:.3} in round {}",
                first.1, first.0, last.1, last.0
            )
        }
        _ => String::new(),
    };
    let claim = match written.checked {
        true => CHECKED,
        false => UNCHECKED,
    };
    let file = file_of(said);
    let (front, which, data, tokenizer, licence) = match file {
        None => (
            "license: apache-2.0\nlanguage: en",
            "held-out rows that no validator drew",
            format!(
                "`{}`: stories and chats from the seeded grammar in `training/src/corpus`; no text from elsewhere",
                said.data.name
            ),
            "the same corpus",
            "Apache-2.0",
        ),
        Some((digest, bytes)) => (
            "license: other",
            "held-out rows",
            format!(
                "`{}`: text that who announced the run brought, as a file of rows ({} to train on, {} held out, {bytes} bytes, \
                 BLAKE3 `{digest}`)",
                said.data.name, said.data.training_rows, said.data.held_out_rows
            ),
            "a sample of the documents that are not held out",
            "what the owners of that text allow",
        ),
    };
    let loss = format!("{:.4} on {which}{rounds}", written.loss);
    format!(
        "\
---
{front}
pipeline_tag: text-generation
library_name: transformers
---
# {name}

A model of {parameters} parameters, trained together by {count} peers that did not have to trust each other. {claim}

| | |
|---|---|
| Run | `{run}` |
| Announced by | `{author}` |
| Rounds | {round} of the log, {steps} local steps of {batch} rows of {sequence} tokens in each with training |
| Peers | {count} |
| Validators | {validators} at the beginning; a record was certain once {quorum} of them had signed it |
| Method | SparseLoCo: AdamW within (rate up to {rate}, weight decay {decay}), outer rate {outer}, error feedback {feedback} |
| Data | {data} |
| Tokenizer | byte-level BPE, trained on {tokenizer} |
| Loss (nats per token) | {loss} |
| State of the parameters | `{state}` in single precision; the files here are rounded to bfloat16 |
| Licence | {licence} |

The run's log is in `{log}`. To check all signatures, scores and pay, and to compute parameters and losses again:

```
consortium-node train replay {log} --losses
```
",
        name = said.name,
        parameters = written.parameters,
        count = peers.len(),
        run = written.run,
        author = spec.signer(),
        round = written.round,
        steps = t.local_steps,
        batch = t.batch,
        sequence = t.sequence,
        validators = said.validators.len(),
        quorum = said.quorum,
        rate = t.inner_rate.get(),
        decay = t.weight_decay.get(),
        outer = t.outer_rate.get(),
        feedback = t.feedback.get(),
    )
}
