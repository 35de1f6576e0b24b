//! Runs that were heard of.

use std::collections::BTreeMap;
use std::time::Instant;

use consortium_protocol::wire::train::{RunId, RunSpec};
use consortium_protocol::{NodeId, Signed};

/// Runs remembered.
const MOST: usize = 256;
/// Of one author.
const OF_ONE: usize = 8;

/// Runs that were heard of, each with when it was heard of last.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    heard: BTreeMap<RunId, (Signed<RunSpec>, Instant)>,
}

impl Announcements {
    /// Takes note of a run. One too many takes the place of the one that was not heard of for longest: of its author, if that
    /// has too many.
    pub(super) fn hear(&mut self, spec: Signed<RunSpec>, now: Instant) {
        let (run, author) = (RunId::of(&spec), spec.signer());
        if let Some((_, heard)) = self.heard.get_mut(&run) {
            *heard = now;
            return;
        }
        if self.heard.values().filter(|(known, _)| known.signer() == author).count() >= OF_ONE {
            self.forget_oldest(|known| known == author);
        } else if self.heard.len() >= MOST {
            self.forget_oldest(|_| true);
        }
        self.heard.insert(run, (spec, now));
    }

    fn forget_oldest(&mut self, of: impl Fn(NodeId) -> bool) {
        let candidates = self.heard.iter().filter(|(_, (spec, _))| of(spec.signer()));
        if let Some(oldest) = candidates.min_by_key(|(_, (_, heard))| *heard).map(|(run, _)| *run) {
            self.heard.remove(&oldest);
        }
    }

    /// The specification of a run.
    pub(super) fn spec(&self, run: &RunId) -> Option<Signed<RunSpec>> {
        self.heard.get(run).map(|(spec, _)| spec.clone())
    }

    /// All specifications.
    pub(super) fn all(&self) -> impl Iterator<Item = &Signed<RunSpec>> {
        self.heard.values().map(|(spec, _)| spec)
    }
}
