//! Who pays for a job while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use consortium_ledger::accounts::{Book, Owner};
use consortium_ledger::ledger::Ledger;
use consortium_ledger::price::Rate;
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::job::{JobId, Usage};
use consortium_protocol::wire::pipeline::SessionOpen;
use tokio::runtime::Handle;
use tracing::warn;

use crate::clock::wall_ms;

/// An order may cost so many times what was quoted: prices move between the two. This node bears what is above.
const MOST: u64 = 2;

/// Who pays for a job. Whoever drops it gives back what is left of what was put aside for the job: that is once its
/// work is booked, or when there is nothing to book.
#[derive(Debug)]
pub struct JobAccount(Account);

#[derive(Debug)]
enum Account {
    Own,
    Key { owner: Owner, promise: Promise, _reservation: Option<Reservation> },
}

/// What a key was promised.
#[derive(Clone, Debug)]
pub(super) struct Promise {
    pub(super) rate: Rate,
    /// Positions at most; once the answer is complete, those that it was said to have.
    pub(super) positions: Arc<AtomicU64>,
}

impl Promise {
    pub(super) fn new(rate: Rate, positions: u64) -> Self {
        Self { rate, positions: Arc::new(AtomicU64::new(positions)) }
    }

    fn most_per_position(&self) -> Msat {
        self.rate.per_position.checked_mul(MOST).unwrap_or(Msat(u64::MAX))
    }
}

impl JobAccount {
    /// The node's own.
    #[must_use]
    pub fn own() -> Self {
        Self(Account::Own)
    }

    /// That of an API key.
    pub(super) fn of_key(owner: Owner, promise: Promise, reservation: Option<Reservation>) -> Self {
        Self(Account::Key { owner, promise, _reservation: reservation })
    }

    /// Whose account is charged.
    #[must_use]
    pub fn owner(&self) -> Owner {
        match &self.0 {
            Account::Own => Owner::Own(Book::Spent),
            Account::Key { owner, .. } => owner.clone(),
        }
    }

    /// The most that one position may cost, where that was promised to a key.
    #[must_use]
    pub fn most_per_position(&self) -> Option<Msat> {
        match &self.0 {
            Account::Own => None,
            Account::Key { promise, .. } => Some(promise.most_per_position()),
        }
    }

    /// Whether the work of so many positions is what the key was promised: no more of them, and at the price quoted, or
    /// at so little more that this node bears the difference. The node's own jobs are at the prices of the day.
    #[must_use]
    pub fn covers(&self, order: &SessionOpen, positions: u32) -> bool {
        let Account::Key { promise, .. } = &self.0 else { return true };
        if u64::from(positions) > promise.positions.load(Ordering::Relaxed) {
            return false;
        }
        order.position_cost().is_some_and(|cost| cost <= promise.most_per_position())
    }
}

/// What is put aside for a job, until this is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    pub(super) ledger: Ledger,
    pub(super) job: JobId,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let (ledger, job) = (self.ledger.clone(), self.job);
        let release = move || {
            if let Err(error) = ledger.release_reservation(job, wall_ms()) {
                warn!(%job, %error, "what was reserved for a job is given back when the node starts again");
            }
        };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(release)),
            Err(_) => release(),
        }
    }
}

/// What a job in progress will have cost.
#[derive(Clone, Debug)]
pub struct Bill {
    pub(super) rate: Option<Rate>,
    /// Where it is a key's: what was promised, and where something is reserved for it.
    pub(super) reserved: Option<(Promise, Ledger, JobId)>,
}

impl Bill {
    /// The most that this use costs, where that is known. From now on it is all that is promised, and what is reserved
    /// above it is free again.
    #[must_use]
    pub fn close(&self, usage: &Usage) -> Option<Msat> {
        let positions = u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens);
        let cost = self.rate?.cost(positions).ok()?;
        if let Some((promise, ledger, job)) = self.reserved.clone() {
            promise.positions.fetch_min(positions, Ordering::Relaxed);
            tokio::task::spawn_blocking(move || {
                if let Err(error) = ledger.reduce_reservation(job, cost, wall_ms()) {
                    warn!(%job, %error, "what a job did not use is given back when it is booked");
                }
            });
        }
        Some(cost)
    }
}

#[cfg(test)]
mod tests {
    use consortium_protocol::cluster::ClusterId;
    use consortium_protocol::envelope::Signed;
    use consortium_protocol::hash::Hash;
    use consortium_protocol::identity::RootKey;
    use consortium_protocol::wire::heartbeat::LayerRange;
    use consortium_protocol::wire::job::Sampling;
    use consortium_protocol::wire::mandate::Mandate;
    use consortium_protocol::wire::pipeline::Hop;

    use super::*;

    fn order(prices: [u64; 2]) -> SessionOpen {
        let node = RootKey::from_seed([1; 32]).node_id();
        let hop = |first, last| Hop { node, range: LayerRange { first, last } };
        SessionOpen {
            cluster: ClusterId(Hash::of(b"cluster")),
            term: 1,
            job: JobId([1; 16]),
            attempt: 1,
            model: Hash::of(b"model"),
            driver: node,
            route: vec![hop(0, 2), hop(3, 3)],
            prices: prices.map(Msat).to_vec(),
            master_fee: Msat(0),
            sampling: Sampling::default(),
            prompt_len: 1,
            max_positions: 8,
            payer: node,
            challenge: Hash::of(b"challenge"),
            mandate: Signed::sign(
                &RootKey::from_seed([1; 32]),
                Mandate {
                    cluster: ClusterId(Hash::of(b"cluster")),
                    job: JobId([1; 16]),
                    master: node,
                    model: Hash::of(b"model"),
                    positions: 10_000,
                    position_cost: Msat(1000),
                    challenge: Hash::of(b"challenge"),
                    until_ms: 1 << 60,
                },
            ),
        }
    }

    #[test]
    fn a_key_is_not_made_to_pay_for_what_it_was_not_quoted() {
        let key = |per_position| {
            let rate = Rate { per_position: Msat(per_position), master: Msat::ZERO, fee: 10 };
            JobAccount::of_key(Owner::Key("0123456789ab".parse().unwrap()), Promise::new(rate, 9), None)
        };
        assert!(key(5).covers(&order([3, 1]), 9), "3 layers at 3 and one at 1: 10, twice what was quoted");
        assert!(!key(5).covers(&order([3, 1]), 10), "more than was asked for");
        assert!(!key(5).covers(&order([3, 2]), 1));
        assert!(!key(0).covers(&order([0, 1]), 1), "free is free");
        assert!(key(0).covers(&order([0, 0]), 1));
        assert!(!key(u64::MAX).covers(&order([u64::MAX, 1]), 1), "what cannot be counted");
        assert!(JobAccount::own().covers(&order([1000, 1000]), 1000));
    }

    #[tokio::test]
    async fn a_complete_answer_costs_no_more_than_it_said() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger.db"), RootKey::from_seed([1; 32]).node_id()).unwrap();
        let promise = Promise::new(Rate { per_position: Msat(5), master: Msat::ZERO, fee: 0 }, 9);
        let account = JobAccount::of_key(Owner::Key("0123456789ab".parse().unwrap()), promise.clone(), None);
        let bill = Bill { rate: Some(promise.rate), reserved: Some((promise, ledger, JobId([1; 16]))) };
        assert_eq!(bill.close(&Usage { prompt_tokens: 3, completion_tokens: 4 }), Some(Msat(35)));
        assert!(account.covers(&order([1, 1]), 7) && !account.covers(&order([1, 1]), 8));
        assert_eq!(bill.close(&Usage { prompt_tokens: 9, completion_tokens: 9 }), Some(Msat(90)));
        assert!(!account.covers(&order([1, 1]), 8), "what was promised stays");
    }
}
