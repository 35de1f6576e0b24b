//! A run as files for others: what a replay needs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use consortium_protocol::wire::train::{Reveal, RunSpec, StateFile};
use consortium_protocol::{Hash, Signed};
use consortium_training::collective::{Parameters, Task};
use consortium_training::run::archive::Archive;
use consortium_training::run::data::file_of;
use consortium_training::run::{Submission, state_of};
use futures::StreamExt as _;
use tokio::time::{Instant, timeout_at};

use super::bench::longest_submission;
use super::errands::{Errands, Got, Wanted};
use super::store::{Kept, Store, StoreError, at};
use super::view::Exported;
use super::wire::Wire;
use super::{RunError, files};
use crate::blobs::Blobs;

/// Time to get from others what this node does not have.
pub(super) const GATHER: Duration = Duration::from_secs(120);
/// Time for one update.
const EACH: Duration = Duration::from_secs(20);
/// Updates that are asked for at a time.
const AT_A_TIME: usize = 8;

/// The updates that the log in `source` names. Blocks.
pub(super) fn needed(source: &Path) -> Result<Vec<Wanted>, StoreError> {
    let mut all = Vec::new();
    Store::look(source, |entry| {
        all.extend(entry.body.reveals.iter().map(|reveal| {
            let said = reveal.payload();
            Wanted { peer: reveal.signer(), update: said.update, bytes: said.bytes }
        }));
    })?;
    Ok(all)
}

/// Gets what a replay needs and is not here, as far as others have it: updates, the latest first, and the parameters that
/// the run began with, if `initial` names their state.
pub(super) async fn gather<W: Wire>(errands: &Errands<W>, needed: Vec<Wanted>, initial: Option<Hash>) -> Gathered {
    let end = Instant::now() + GATHER;
    let parameters = async {
        match initial {
            Some(state) => errands.state(state, &[]).await,
            None => None,
        }
    };
    let (mut new, missing) = (Vec::new(), needed.into_iter().rev());
    let missing = missing.filter(|wanted| errands.blobs.length(&wanted.update).is_none());
    let updates = futures::stream::iter(missing)
        .map(|wanted| errands.update(wanted, EACH))
        .buffer_unordered(AT_A_TIME)
        .for_each(|got| {
            new.extend(got);
            std::future::ready(())
        });
    // What has come by then is written.
    let (parameters, _) = tokio::join!(timeout_at(end, parameters), timeout_at(end, updates));
    Gathered { initial: parameters.ok().flatten(), new }
}

/// What [`gather`] got for an export alone.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub(super) initial: Option<Got>,
    new: Vec<Got>,
}

impl Gathered {
    /// Lets go of what is not kept otherwise.
    pub(super) async fn drop_new<W: Wire>(self, errands: &Errands<W>) {
        for got in self.new.iter().chain(&self.initial) {
            errands.drop_new(got).await;
        }
    }
}

/// Writes the run that is in `source` into the archive `target`; the parameters that it began with from `initial`, where
/// they are not kept. Blocks.
pub(crate) fn write(
    spec: &Signed<RunSpec>,
    source: &Path,
    kept: Kept,
    initial: Option<PathBuf>,
    blobs: &Blobs,
    target: &Path,
) -> Result<Exported, RunError> {
    let archive = Archive::create(target, spec)?;
    let tokenizer = blobs.path(&spec.payload().tokenizer).ok_or(RunError::Gone("the tokenizer"))?;
    let json = std::fs::read(&tokenizer).map_err(at(&tokenizer))?;
    archive.put_tokenizer(&json)?;
    if let Some((hash, _)) = file_of(spec.payload()) {
        archive.put_rows(&blobs.path(&hash).ok_or(RunError::Gone("the data"))?)?;
    }
    let task = files::task(spec.payload(), blobs, 1)?;
    let (mut exported, mut failed) =
        (Exported { rounds: 0, updates: 0, missing: 0, initial: false, held_round: None }, Ok::<(), RunError>(()));
    Store::look(source, |entry| {
        if failed.is_ok() {
            failed = archive.put_entry(entry).map_err(RunError::from).and_then(|()| {
                exported.rounds += 1;
                entry.body.reveals.iter().try_for_each(|reveal| {
                    match update(blobs, &task, reveal.payload())? {
                        Some(bytes) => {
                            archive.put_blob(&bytes)?;
                            exported.updates += 1;
                        }
                        None => exported.missing += 1,
                    }
                    Ok(())
                })
            });
        }
    })?;
    failed?;
    let file = |kept: StateFile| blobs.path(&kept.file).ok_or(RunError::Gone("a file of parameters"));
    let state = spec.payload().model.initial;
    let begun_with = match kept.initial {
        Some(kept) => Some(parameters(&task, &file(kept)?, state)?),
        None => initial.map(|path| parameters(&task, &path, state)).transpose()?,
    };
    if let Some(parameters) = begun_with {
        archive.put_parameters(0, &parameters)?;
        exported.initial = true;
    }
    if let Some((round, newest)) = kept.newest {
        archive.put_parameters(round, &parameters(&task, &file(newest)?, newest.state)?)?;
        exported.held_round = Some(round);
    }
    Ok(exported)
}

/// What a peer revealed, if it is here and what the peer said: a reveal may name any file of this node.
fn update(blobs: &Blobs, task: &Task, said: &Reveal) -> Result<Option<Vec<u8>>, RunError> {
    let found = blobs.path(&said.update).filter(|_| blobs.length(&said.update) == Some(said.bytes));
    let Some(path) = found.filter(|_| said.bytes <= longest_submission(task)) else { return Ok(None) };
    let bytes = std::fs::read(&path).map_err(at(&path))?;
    Ok(Submission::read(task, &bytes).is_ok().then_some(bytes))
}

fn parameters(task: &Task, path: &Path, state: Hash) -> Result<Parameters, RunError> {
    let bytes = std::fs::read(path).map_err(at(path))?;
    let parameters = Parameters::from_bytes(task, &bytes)?;
    if state_of(&parameters) == state { Ok(parameters) } else { Err(RunError::Gone("a sound file of parameters")) }
}
