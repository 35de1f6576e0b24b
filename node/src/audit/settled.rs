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

#[cfg(test)]
mod tests {
    use consortium_protocol::cluster::ClusterName;
    use consortium_protocol::envelope::Signed;
    use consortium_protocol::hash::Hash;
    use consortium_protocol::identity::RootKey;
    use consortium_protocol::msat::Msat;
    use consortium_protocol::wire::audit::Nonce;
    use consortium_protocol::wire::job::Sampling;
    use consortium_protocol::wire::mandate::Mandate;
    use consortium_protocol::wire::pipeline::SessionOpen;

    use super::*;

    fn job(n: u16) -> JobId {
        let mut name = [0; 16];
        name[..2].copy_from_slice(&n.to_le_bytes());
        JobId(name)
    }

    fn order(n: u16, attempt: u32) -> AuditOrder {
        let key = RootKey::from_seed([1; 32]);
        let open = SessionOpen {
            cluster: "test".parse::<ClusterName>().unwrap().id(),
            term: 1,
            job: job(n),
            attempt,
            model: Hash::of(b"model"),
            driver: key.node_id(),
            route: Vec::new(),
            prices: Vec::new(),
            master_fee: Msat(0),
            sampling: Sampling::default(),
            prompt_len: 1,
            max_positions: 8,
            payer: key.node_id(),
            challenge: Hash::of(b"challenge"),
            mandate: Signed::sign(
                &key,
                Mandate {
                    cluster: "test".parse::<ClusterName>().unwrap().id(),
                    job: job(n),
                    master: key.node_id(),
                    model: Hash::of(b"model"),
                    positions: 10_000,
                    position_cost: Msat(1000),
                    challenge: Hash::of(b"challenge"),
                    until_ms: 1 << 60,
                },
            ),
        };
        AuditOrder { order: Signed::sign(&key, open), chain: Vec::new(), nonce: Nonce([0; 32]) }
    }

    #[test]
    fn the_newest_jobs_are_remembered_and_the_latest_attempt_of_each() {
        let jobs = SettledJobs::default();
        jobs.note(order(0, 1));
        jobs.note(order(1, 1));
        jobs.note(order(0, 2));
        let most = u16::try_from(MAX_JOBS).unwrap();
        (2..most).for_each(|n| jobs.note(order(n, 1)));
        // The first attempt of job 0 made way, and the second is still there.
        assert_eq!(jobs.find(job(0)).unwrap().0.order.payload().attempt, 2);
        assert!(jobs.find(job(1)).is_some());
        jobs.note(order(most, 1));
        assert!(jobs.find(job(1)).is_none() && jobs.find(job(0)).is_some() && jobs.find(job(most)).is_some());
        jobs.note(order(most + 1, 1));
        assert!(jobs.find(job(0)).is_none() && jobs.find(job(2)).is_some());
        assert_eq!(jobs.inner.lock().unwrap().jobs.len(), MAX_JOBS);
    }
}
