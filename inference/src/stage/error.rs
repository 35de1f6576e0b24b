//! Why a stage refuses or fails.

use crate::error::ModelError;
use crate::sampling::SampleError;

/// Why a stage does not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {
    /// The shard could not be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The thread could not be started.
    #[error("cannot start the thread of a stage: {0}")]
    Thread(std::io::Error),
    /// The stage has ended.
    #[error("the stage has ended")]
    Ended,
    /// No session of this id is open: never opened, closed, failed, or idle for too long.
    #[error("the session is not open on this stage")]
    UnknownSession,
    /// A session of this id is open already.
    #[error("the session is already open on this stage")]
    DuplicateSession,
    /// As many sessions as the stage may have are open.
    #[error("{limit} sessions are open, the limit of this stage")]
    TooManySessions {
        /// The limit.
        limit: usize,
    },
    /// The caches of the session would exceed the budget.
    #[error("the session needs {needs} bytes of cache and {left} are left of the budget")]
    KvBudget {
        /// Bytes the session needs.
        needs: u64,
        /// Bytes that are left.
        left: u64,
    },
    /// The session asks for more positions than the model was made for.
    #[error("{asked} positions, the model has {limit}")]
    TooManyPositions {
        /// Positions asked for.
        asked: u32,
        /// Positions of the model.
        limit: u32,
    },
    /// A step was skipped or comes again.
    #[error("step {got} came where step {expected} was expected")]
    Sequence {
        /// The step that comes next.
        expected: u32,
        /// The step that came.
        got: u32,
    },
    /// The rows do not follow those in the cache.
    #[error("rows for position {got} came where position {expected} comes next")]
    Position {
        /// The position that comes next.
        expected: u32,
        /// The position that came.
        got: u32,
    },
    /// The step goes beyond the positions the session was opened for.
    #[error("the session was opened for {limit} positions and the step needs {needs}")]
    BeyondLimit {
        /// Positions of the session.
        limit: u32,
        /// Positions with this step.
        needs: u32,
    },
    /// The step is not well-formed for this stage.
    #[error("malformed step: {0}")]
    Malformed(&'static str),
    /// The activations do not have the width of the model.
    #[error("activations of {rows} x {width} in {bytes} bytes, expected {expected_rows} x {expected_width} in f32")]
    Width {
        /// Rows that came.
        rows: u32,
        /// Width that came.
        width: u32,
        /// Bytes that came.
        bytes: usize,
        /// Rows expected: as many as tokens.
        expected_rows: u32,
        /// The hidden size of the model.
        expected_width: u32,
    },
    /// A token is outside the vocabulary.
    #[error("token {0} is outside the vocabulary")]
    Token(u32),
    /// The computation failed; the session is closed.
    #[error("the computation failed: {0}")]
    Compute(#[from] candle_core::Error),
    /// The logits are broken; the session is closed.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// The computation panicked; the session is closed.
    #[error("the computation panicked: {0}")]
    Panicked(String),
}
