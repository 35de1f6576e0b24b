//! A run as files for others: what a replay needs.

use std::path::Path;

use consortium_protocol::Signed;
use consortium_protocol::wire::train::{RunSpec, StateFile};
use consortium_training::TrainError;
use consortium_training::collective::{Parameters, Task};
use consortium_training::run::archive::Archive;
use consortium_training::run::task_of;

use super::RunError;
use super::store::{Kept, Store, at};
use super::view::Exported;
use crate::blobs::Blobs;

/// Writes the run that is in `source` into the archive `target`. Blocks.
pub(crate) fn write(
    spec: &Signed<RunSpec>,
    source: &Path,
    kept: Kept,
    blobs: &Blobs,
    target: &Path,
) -> Result<Exported, RunError> {
    let archive = Archive::create(target, spec)?;
    let tokenizer = blobs.path(&spec.payload().tokenizer).ok_or(RunError::Gone("the tokenizer"))?;
    let json = std::fs::read(&tokenizer).map_err(at(&tokenizer))?;
    archive.put_tokenizer(&json)?;
    let task = task_of(spec.payload(), &json, 1)?;
    let (mut exported, mut failed) =
        (Exported { rounds: 0, updates: 0, missing: 0, initial: false, held_round: None }, Ok::<(), RunError>(()));
    Store::look(source, |entry| {
        if failed.is_ok() {
            failed = archive.put_entry(entry).map_err(RunError::from).and_then(|()| {
                exported.rounds += 1;
                entry.body.reveals.iter().try_for_each(|reveal| {
                    let found = blobs.path(&reveal.payload().update);
                    let Some(path) = found else {
                        exported.missing += 1;
                        return Ok(());
                    };
                    archive.put_blob(&std::fs::read(&path).map_err(at(&path))?)?;
                    exported.updates += 1;
                    Ok(())
                })
            });
        }
    })?;
    failed?;
    if let Some(initial) = kept.initial {
        archive.put_parameters(0, &parameters(&task, blobs, initial)?)?;
        exported.initial = true;
    }
    if let Some((round, newest)) = kept.newest {
        archive.put_parameters(round, &parameters(&task, blobs, newest)?)?;
        exported.held_round = Some(round);
    }
    Ok(exported)
}

fn parameters(task: &Task, blobs: &Blobs, file: StateFile) -> Result<Parameters, RunError> {
    let path = blobs.path(&file.file).ok_or(RunError::Gone("a file of parameters"))?;
    let bytes = std::fs::read(&path).map_err(at(&path))?;
    Parameters::from_bytes(task, &bytes).map_err(|error: TrainError| error.into())
}
