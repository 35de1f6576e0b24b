//! What a stage keeps of its sessions until nobody can ask for it any more, within a bound of memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::wire::audit::{Opening, StageReceipt};

/// How long a sealed session can be opened. A payer draws as soon as it has the receipts.
pub const KEEP: Duration = Duration::from_secs(600);
/// The most memory that kept sessions take, bytes.
pub const BUDGET: u64 = 512 << 20;

/// A session that was sealed by a receipt.
#[derive(Debug)]
pub struct Kept {
    /// The receipt.
    pub receipt: Signed<StageReceipt>,
    /// Its rows.
    pub opening: Opening,
    /// What came in, f32 little-endian `[rows, width]`; empty for the first stage.
    pub inputs: Vec<u8>,
    /// What came out, of the same shape. Of the last stage, the hidden states before the final norm.
    pub outputs: Vec<u8>,
    /// Holds the memory.
    pub(super) _room: Room,
}

/// Cloneable handle to the kept sessions.
#[derive(Clone, Debug)]
pub struct Spool {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    budget: u64,
    used: u64,
    kept: BTreeMap<Hash, Arc<Kept>>,
    /// In the order of sealing.
    ages: VecDeque<(Instant, Hash)>,
}

/// Memory taken from the spool's budget until dropped.
#[derive(Debug)]
pub(super) struct Room {
    spool: Spool,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut inner = self.spool.lock();
        inner.used = inner.used.saturating_sub(self.bytes);
    }
}

impl Room {
    /// Takes more; older sessions make way. False when there is not as much even without them.
    pub(super) fn grow(&mut self, bytes: u64) -> bool {
        while !self.spool.lock().take(bytes) {
            // Dropped outside of the lock: it gives its memory back.
            let Some(oldest) = self.spool.lock().forget_oldest() else { return false };
            drop(oldest);
        }
        self.bytes += bytes;
        true
    }
}

impl Spool {
    /// Nothing kept; at most `budget` bytes.
    #[must_use]
    pub fn new(budget: u64) -> Self {
        let inner = Inner { budget, used: 0, kept: BTreeMap::new(), ages: VecDeque::new() };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn room(&self) -> Room {
        Room { spool: self.clone(), bytes: 0 }
    }

    pub(super) fn keep(&self, kept: Kept) {
        let digest = kept.receipt.digest();
        let expired = {
            let mut inner = self.lock();
            inner.kept.insert(digest, Arc::new(kept));
            inner.ages.push_back((Instant::now(), digest));
            inner.expire(Instant::now())
        };
        drop(expired);
    }

    /// The session that a receipt sealed, while it is kept.
    #[must_use]
    pub fn find(&self, receipt: &Hash) -> Option<Arc<Kept>> {
        let (found, _expired) = {
            let mut inner = self.lock();
            let expired = inner.expire(Instant::now());
            (inner.kept.get(receipt).cloned(), expired)
        };
        found
    }
}

impl Inner {
    fn take(&mut self, bytes: u64) -> bool {
        let fits = self.used.checked_add(bytes).is_some_and(|used| used <= self.budget);
        if fits {
            self.used += bytes;
        }
        fits
    }

    fn forget_oldest(&mut self) -> Option<Option<Arc<Kept>>> {
        let (_, digest) = self.ages.pop_front()?;
        Some(self.kept.remove(&digest))
    }

    fn expire(&mut self, now: Instant) -> Vec<Option<Arc<Kept>>> {
        let mut expired = Vec::new();
        while self.ages.front().is_some_and(|(sealed, _)| now.duration_since(*sealed) >= KEEP) {
            expired.extend(self.forget_oldest());
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_and_never_exceeded() {
        let spool = Spool::new(100);
        let mut one = spool.room();
        assert!(one.grow(60));
        let mut two = spool.room();
        assert!(!two.grow(41), "nothing is sealed that could make way");
        assert!(two.grow(40));
        drop(one);
        assert!(two.grow(60));
        assert!(!two.grow(u64::MAX));
        assert_eq!(spool.lock().used, 100);
        drop(two);
        assert_eq!(spool.lock().used, 0);
    }
}
