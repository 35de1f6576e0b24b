//! A node's part of a run, as an archive.

use std::path::Path;

use anyhow::{Context as _, Result};
use consortium_protocol::Signed;
use consortium_protocol::wire::train::{Entry, RunSpec, StateFile};
use consortium_training::collective::{Parameters, Task};
use consortium_training::run::archive::Archive;
use consortium_training::run::task_of;

use crate::blobs::Blobs;
use crate::train::Store;

/// Writes what a node that has stopped knows of a run.
///
/// # Errors
/// When its files cannot be read, or the archive cannot be written.
pub(super) fn pack(
    directory: &Path,
    blobs: &Blobs,
    spec: &Signed<RunSpec>,
    tokenizer: &[u8],
    to: &Path,
) -> Result<Archive> {
    let archive = Archive::create(to, spec)?;
    archive.put_tokenizer(tokenizer)?;
    let mut log = Vec::new();
    Store::open(directory, |entry: &Entry| log.push(entry.clone()))?;
    for entry in &log {
        archive.put_entry(entry)?;
        for reveal in &entry.body.reveals {
            // What could not be had was not measured either.
            if let Some(path) = blobs.path(&reveal.payload().update) {
                archive.put_blob(&read(&path)?)?;
            }
        }
    }
    let task = task_of(spec.payload(), tokenizer, 1)?;
    let kept = Store::kept(directory)?;
    let initial = kept.initial.context("the initial parameters are gone")?;
    archive.put_parameters(0, &parameters(&task, blobs, initial)?)?;
    let (round, newest) = kept.newest.context("the newest parameters are gone")?;
    archive.put_parameters(round, &parameters(&task, blobs, newest)?)?;
    Ok(archive)
}

fn parameters(task: &Task, blobs: &Blobs, file: StateFile) -> Result<Parameters> {
    let path = blobs.path(&file.file).context("a file of parameters is gone")?;
    Ok(Parameters::from_bytes(task, &read(&path)?)?)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
