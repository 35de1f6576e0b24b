//! The jobs that this node paid for of late: what it takes to audit their stages for as long as stages keep openings.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use consortium_protocol::wire::audit::AuditOrder;
use consortium_protocol::wire::job::JobId;

use super::spool::KEEP;

/// Jobs remembered: the newest.
pub const MAX_JOBS: usize = 1024;

/// Cloneable. The nonces in it were secret until their jobs were settled, and no longer.
#[derive(Clone, Debug, Default)]
pub struct SettledJobs {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The order of a job, the receipts of all its stages and the nonce; and when it was settled.
    jobs: BTreeMap<JobId, (Arc<AuditOrder>, Instant)>,
    ages: VecDeque<(Instant, JobId)>,
}

impl Inner {
    fn forget(&mut self, now: Instant) {
        let old = |at: &Instant| now.duration_since(*at) >= KEEP;
        while self.ages.front().is_some_and(|(at, _)| old(at) || self.ages.len() > MAX_JOBS) {
            let Some((at, job)) = self.ages.pop_front() else { return };
            // A later attempt of the same job may have taken its place.
            if self.jobs.get(&job).is_some_and(|(_, settled)| *settled == at) {
                self.jobs.remove(&job);
            }
        }
    }
}

impl SettledJobs {
    /// Remembers a job: its order with the receipts of all its stages, and the nonce that may be known from now on.
    pub fn note(&self, whole: AuditOrder) {
        let (job, now) = (whole.order.payload().job, Instant::now());
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.jobs.insert(job, (Arc::new(whole), now));
        inner.ages.push_back((now, job));
        inner.forget(now);
    }

    /// The order of a job with the receipts of all its stages, and when it was settled; none if it is not remembered.
    #[must_use]
    pub fn find(&self, job: JobId) -> Option<(Arc<AuditOrder>, Instant)> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.forget(Instant::now());
        inner.jobs.get(&job).cloned()
    }
}

/// The order to audit one stage of a job; none if it has no such stage.
#[must_use]
pub fn of_stage(whole: &AuditOrder, stage: u16) -> Option<AuditOrder> {
    let chain = whole.chain.get(..=usize::from(stage))?.to_vec();
    Some(AuditOrder { order: whole.order.clone(), chain, nonce: whole.nonce })
}
