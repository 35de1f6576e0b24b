//! What can go wrong while a model is trained.

use std::path::{Path, PathBuf};

use crate::sparseloco::SparseError;

/// Every failure of this crate, with enough context to act on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A file or directory could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory concerned.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// An update could not be made, read or added.
    #[error("update: {0}")]
    Sparse(#[from] SparseError),
    /// The tokenizer could not be trained, loaded or applied.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A JSON document could not be written or understood.
    #[error("JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A checkpoint exists but cannot be used.
    #[error("checkpoint {path} cannot be used: {reason}")]
    Checkpoint {
        /// The checkpoint file.
        path: PathBuf,
        /// Why it was refused.
        reason: String,
    },
    /// Resuming was asked for where nothing was ever saved.
    #[error("no checkpoint in {0}: start without resuming, or name the directory of the run to continue")]
    NoCheckpoint(PathBuf),
    /// A setting that makes no sense.
    #[error("setting `{name}`: {reason}")]
    Setting {
        /// The setting's name.
        name: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// A run's specification, or a file of it, is not one that this program can compute with.
    #[error("the run's {what} {reason}")]
    Run {
        /// The part concerned.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Text that somebody brought cannot be trained on.
    #[error("{place}: {reason}")]
    Dataset {
        /// Which file, and which line of it.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of a run's archive is missing, damaged, or not what its name says.
    #[error("{path}: {reason}")]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The loss is no longer a number.
    #[error("the loss became {loss} at step {step}: lower the learning rate")]
    Diverged {
        /// The optimiser step, from 0.
        step: u64,
        /// The loss in nats per token.
        loss: f32,
    },
    /// Whoever wanted it does not want it any more.
    #[error("stopped half-way")]
    Stopped,
    /// The finished model files are larger than they may be.
    #[error("the model directory holds {bytes} bytes, more than the {limit} allowed")]
    TooLarge {
        /// Size of weights and tokenizer files.
        bytes: u64,
        /// The most they may take.
        limit: u64,
    },
    /// The loss curve could not be drawn.
    #[error("drawing the loss curve: {0}")]
    Curve(String),
}

impl TrainError {
    /// Names the file that an I/O error concerns; for use in `map_err`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}
