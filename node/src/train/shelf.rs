//! What a node has of a run for others: its parameters.

use std::sync::{Arc, Mutex, PoisonError};

use consortium_protocol::Hash;
use consortium_protocol::wire::train::StateFile;

use super::store::Kept;

/// Which files hold the parameters of a run. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Shelf(Arc<Mutex<Kept>>);

impl Shelf {
    /// With these files on it.
    #[must_use]
    pub fn new(kept: Kept) -> Self {
        Self(Arc::new(Mutex::new(kept)))
    }

    /// All of it.
    #[must_use]
    pub fn kept(&self) -> Kept {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file that holds a state, if it is here.
    #[must_use]
    pub fn file(&self, state: Hash) -> Option<StateFile> {
        self.kept().file(state)
    }

    /// Puts other files there; gives those that are of no use any more.
    pub(super) fn replace(&self, kept: Kept) -> Vec<StateFile> {
        let old = std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), kept);
        old.files().filter(|file| kept.file(file.state).is_none()).collect()
    }
}
