//! A run's state on disk: weights, moments and history in one safetensors file, written atomically and verified by hash.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::recipe::History;
use crate::tensor_file::TensorFile;

const FORMAT: &str = "consortium-training-checkpoint/1";
const KEPT: usize = 2;

/// Everything that a run needs in order to go on as if it had never stopped.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Steps, data position and losses.
    pub progress: Progress,
    /// Parameters, in the model's order.
    pub weights: Vec<Vec<f32>>,
    /// First moments, in the same order.
    pub first: Vec<Vec<f32>>,
    /// Second moments, in the same order.
    pub second: Vec<Vec<f32>>,
}

/// The part of a checkpoint that is not tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Identifies model shape and recipe; a run of another recipe refuses to resume from here.
    pub recipe: String,
    /// Optimiser steps taken.
    pub step: u64,
    /// Number of the next row of the corpus.
    pub next_row: u64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Losses so far.
    pub history: History,
}

impl Checkpoint {
    /// Saves under `directory` as `step-<n>.safetensors` and removes all but the newest two.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the directory cannot be written.
    pub fn save(&self, directory: &Path) -> Result<PathBuf, TrainError> {
        std::fs::create_dir_all(directory).map_err(TrainError::io(directory))?;
        let path = directory.join(format!("step-{:08}.safetensors", self.progress.step));
        let file = TensorFile {
            header: serde_json::to_string(&self.progress)?,
            floats: [("weight", &self.weights), ("first", &self.first), ("second", &self.second)]
                .map(|(group, tensors)| (group.to_owned(), tensors.clone()))
                .into(),
            bytes: BTreeMap::new(),
        };
        file.write(&path, FORMAT)?;
        let saved = list(directory)?;
        for old in saved.iter().rev().skip(KEPT) {
            std::fs::remove_file(old).map_err(TrainError::io(old))?;
        }
        Ok(path)
    }

    /// Reads a checkpoint and checks it against its hash.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the file cannot be read, [`TrainError::Checkpoint`] if it is damaged or of another format.
    pub fn load(path: &Path) -> Result<Self, TrainError> {
        let mut file = TensorFile::read(path, FORMAT)?;
        let refuse = |e: serde_json::Error| TrainError::Checkpoint {
            path: path.to_path_buf(),
            reason: format!("progress: {e}"),
        };
        Ok(Self {
            progress: serde_json::from_str(&file.header).map_err(refuse)?,
            weights: file.take("weight"),
            first: file.take("first"),
            second: file.take("second"),
        })
    }

    /// Loads the newest checkpoint of `directory`.
    ///
    /// # Errors
    /// [`TrainError::NoCheckpoint`] if there is none, otherwise as [`Self::load`].
    pub fn newest(directory: &Path) -> Result<Self, TrainError> {
        let saved = if directory.is_dir() { list(directory)? } else { Vec::new() };
        let newest = saved.last().ok_or_else(|| TrainError::NoCheckpoint(directory.to_path_buf()))?;
        Self::load(newest)
    }
}

/// Checkpoints in `directory`, oldest first.
fn list(directory: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(TrainError::io(directory))? {
        let path = entry.map_err(TrainError::io(directory))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        if name.starts_with("step-") && name.ends_with(".safetensors") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(step: u64) -> Checkpoint {
        Checkpoint {
            progress: Progress { recipe: "r".into(), step, next_row: 4, seconds: 1.5, history: History::default() },
            weights: vec![vec![1.0, -0.5], vec![3.0]],
            first: vec![vec![0.1, 0.2], vec![0.3]],
            second: vec![vec![1e-9, 0.0], vec![2.0]],
        }
    }

    #[test]
    fn what_is_saved_is_loaded_and_old_ones_go() {
        let directory = tempfile::tempdir().unwrap();
        for step in [1, 2, 30] {
            checkpoint(step).save(directory.path()).unwrap();
        }
        assert_eq!(Checkpoint::newest(directory.path()).unwrap(), checkpoint(30));
        assert_eq!(list(directory.path()).unwrap().len(), KEPT);
    }

    #[test]
    fn damage_and_absence_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(Checkpoint::newest(directory.path()), Err(TrainError::NoCheckpoint(_))));
        let path = checkpoint(1).save(directory.path()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for bad in [&flipped[..], &whole[..whole.len() / 2], b"", b"not a checkpoint"] {
            std::fs::write(&path, bad).unwrap();
            let error = Checkpoint::newest(directory.path()).unwrap_err();
            assert!(matches!(error, TrainError::Checkpoint { .. }), "{error}");
            assert!(error.to_string().contains("step-00000001"), "{error}");
        }
    }
}
