//! The files that a run computes with.

use consortium_protocol::Hash;
use consortium_protocol::wire::train::RunSpec;
use consortium_training::collective::Task;
use consortium_training::dataset::Location;
use consortium_training::run::data::file_of;
use consortium_training::run::task_of;

use super::RunError;
use super::store::at;
use crate::blobs::Blobs;

/// The files that everyone needs who takes part in a run: its tokenizer, and its data, if these are a file.
pub(super) fn names(spec: &RunSpec) -> impl Iterator<Item = Hash> {
    [spec.tokenizer].into_iter().chain(file_of(spec).map(|(hash, _)| hash))
}

/// What a run computes, from files that are here. All of its data are checked, which may take a second. Blocks.
///
/// # Errors
/// [`RunError::Gone`] if one is not here, and as [`task_of`].
pub(crate) fn task(spec: &RunSpec, blobs: &Blobs, threads: usize) -> Result<Task, RunError> {
    let tokenizer = blobs.path(&spec.tokenizer).ok_or(RunError::Gone("the tokenizer"))?;
    let json = std::fs::read(&tokenizer).map_err(at(&tokenizer))?;
    let data = file_of(spec).map(|(hash, _)| blobs.path(&hash).ok_or(RunError::Gone("the data"))).transpose()?;
    Ok(task_of(spec, &json, data.map(Location::File), threads)?)
}
