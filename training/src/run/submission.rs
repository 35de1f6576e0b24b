//! What a peer hands in: an update, and what shows that it was trained from the common parameters.
//!
//! ```text
//! "CSS"  version 1  the sample of the round's probe (f32, little-endian, as many as the model has for it)  update
//! ```
//! These are the bytes whose BLAKE3 hash a peer commits to.

use crate::collective::{SyncProbe, Task};
use crate::error::TrainError;
use crate::sparseloco::{SparseError, Update};

const HEAD: [u8; 4] = *b"CSS\x01";

/// An update with its sample, read and checked.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The peer's values of the elements that [`SyncProbe`] draws; there may be any numbers among them.
    pub sample: Vec<f32>,
    /// Its update.
    pub update: Update,
}

impl Submission {
    /// The bytes to hand in.
    #[must_use]
    pub fn encode(sample: &[f32], message: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD.len() + 4 * sample.len() + message.len());
        bytes.extend_from_slice(&HEAD);
        bytes.extend(sample.iter().flat_map(|value| value.to_le_bytes()));
        bytes.extend_from_slice(message);
        bytes
    }

    /// Reads what a peer handed in.
    ///
    /// # Errors
    /// [`TrainError::Sparse`] for what is no update of this task's model.
    pub fn read(task: &Task, bytes: &[u8]) -> Result<Self, TrainError> {
        let cut = || TrainError::Sparse(SparseError::Malformed("the sample is missing or cut off"));
        let rest = bytes.strip_prefix(&HEAD).ok_or_else(cut)?;
        let (sample, message) = rest.split_at_checked(4 * SyncProbe::size(task)).ok_or_else(cut)?;
        let sample = sample.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok(Self { sample, update: Update::read(task.layout(), message.to_vec())? })
    }

    /// The longest there is for this task, in bytes.
    #[must_use]
    pub fn longest(task: &Task) -> usize {
        HEAD.len() + 4 * SyncProbe::size(task) + task.layout().longest_message()
    }
}
