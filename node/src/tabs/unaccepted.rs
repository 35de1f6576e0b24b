//! Work that its payer has not accepted: sessions in progress, and what was computed without the payer's word that it
//! owes for it. It counts as if it were owed, so that who never accepts anything gets no more than who never pays.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;

use super::lock;

/// Work that was not accepted is forgotten after this time: not every failed job is its payer's fault.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(6 * 3600);
/// Sessions remembered that ended and were not accepted: the newest, of all payers together.
const MAX_ENDED: usize = 16_384;

/// Work that is about to begin.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Who is to pay.
    pub payer: NodeId,
    /// Digest of the master's order.
    pub order: Hash,
    /// The place in its route.
    pub stage: u16,
    /// What one position costs: the price of all layers of the stage.
    pub position: Msat,
    /// At most so many positions.
    pub positions: u32,
}

impl Work {
    fn cost(&self, positions: u32) -> u64 {
        self.position.0.saturating_mul(positions.into())
    }
}

/// What no payer has accepted. Cloneable; forgotten when the process ends.
#[derive(Clone, Default)]
pub struct Unaccepted(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    /// The most that sessions in progress can cost, by payer.
    running: BTreeMap<NodeId, u64>,
    /// The oldest first.
    ended: VecDeque<Ended>,
}

struct Ended {
    payer: NodeId,
    order: Hash,
    stage: u16,
    msat: u64,
    at: Instant,
}

impl Known {
    fn sum(&mut self, payer: &NodeId, now: Instant) -> Msat {
        while self.ended.front().is_some_and(|oldest| now.saturating_duration_since(oldest.at) >= FORGOTTEN_AFTER) {
            self.ended.pop_front();
        }
        let running = self.running.get(payer).copied().unwrap_or(0);
        let ended = self.ended.iter().filter(|ended| ended.payer == *payer);
        Msat(ended.fold(running, |sum, ended| sum.saturating_add(ended.msat)))
    }

    fn end(&mut self, work: &Work, done: u32, now: Instant) {
        if let Some(running) = self.running.get_mut(&work.payer) {
            *running = running.saturating_sub(work.cost(work.positions));
            if *running == 0 {
                self.running.remove(&work.payer);
            }
        }
        let msat = work.cost(done);
        if msat > 0 {
            self.ended.push_back(Ended { payer: work.payer, order: work.order, stage: work.stage, msat, at: now });
            if self.ended.len() > MAX_ENDED {
                self.ended.pop_front();
            }
        }
    }
}

impl Unaccepted {
    /// What a payer has not accepted now.
    #[must_use]
    pub fn of(&self, payer: &NodeId) -> Msat {
        lock(&self.0).sum(payer, Instant::now())
    }

    /// Begins work: until it ends, all that it can cost counts. Gives what its payer had not accepted before.
    #[must_use]
    pub fn begin(&self, work: Work) -> (Running, Msat) {
        let mut known = lock(&self.0);
        let before = known.sum(&work.payer, Instant::now());
        let running = known.running.entry(work.payer).or_default();
        *running = running.saturating_add(work.cost(work.positions));
        (Running { counted: Some((self.clone(), work)), done: 0 }, before)
    }

    /// Takes off what a payer has said that it owes for the work of an order.
    pub fn accepted(&self, payer: &NodeId, order: &Hash, stage: u16, pay: Msat) {
        let mut known = lock(&self.0);
        let matches = |ended: &Ended| (ended.payer, ended.order, ended.stage) == (*payer, *order, stage);
        let Some(at) = known.ended.iter().rposition(matches) else { return };
        match known.ended[at].msat.saturating_sub(pay.0) {
            0 => drop(known.ended.remove(at)),
            left => known.ended[at].msat = left,
        }
    }
}

/// Work in progress. Dropped, what was really computed takes the place of the most that it could have been.
pub struct Running {
    /// None where nobody counts.
    counted: Option<(Unaccepted, Work)>,
    done: u32,
}

impl Running {
    /// Work that is not counted.
    #[must_use]
    pub fn uncounted() -> Self {
        Self { counted: None, done: 0 }
    }

    /// Notes that so many positions were computed.
    pub fn computed(&mut self, positions: u32) {
        self.done = self.done.saturating_add(positions);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some((unaccepted, work)) = self.counted.take() {
            lock(&unaccepted.0).end(&work, self.done, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use consortium_protocol::identity::RootKey;

    use super::*;

    fn work(payer: u8, order: u8) -> Work {
        Work {
            payer: RootKey::from_seed([payer; 32]).node_id(),
            order: Hash::of(&[order]),
            stage: 1,
            position: Msat(5),
            positions: 100,
        }
    }

    #[test]
    fn what_runs_counts_whole_and_what_ended_as_it_was() {
        let unaccepted = Unaccepted::default();
        let one = work(1, 1);
        let (mut running, before) = unaccepted.begin(one);
        assert_eq!(before, Msat(0));
        let (second, before) = unaccepted.begin(work(1, 2));
        assert_eq!((before, unaccepted.of(&one.payer)), (Msat(500), Msat(1000)));
        assert_eq!(unaccepted.of(&work(2, 1).payer), Msat(0));
        running.computed(7);
        running.computed(3);
        drop(running);
        assert_eq!(unaccepted.of(&one.payer), Msat(550));
        drop(second);
        assert_eq!(unaccepted.of(&one.payer), Msat(50));

        // Only what was done for this order, by this stage, is taken off, and not more than was accepted.
        unaccepted.accepted(&one.payer, &Hash::of(&[2]), 1, Msat(50));
        unaccepted.accepted(&one.payer, &one.order, 0, Msat(50));
        unaccepted.accepted(&work(2, 1).payer, &one.order, 1, Msat(50));
        assert_eq!(unaccepted.of(&one.payer), Msat(50));
        unaccepted.accepted(&one.payer, &one.order, 1, Msat(20));
        assert_eq!(unaccepted.of(&one.payer), Msat(30));
        unaccepted.accepted(&one.payer, &one.order, 1, Msat(30));
        assert_eq!(unaccepted.of(&one.payer), Msat(0));
    }

    #[test]
    fn what_is_never_accepted_is_forgotten_late() {
        let (mut known, now, one) = (Known::default(), Instant::now(), work(1, 1));
        known.end(&one, 10, now);
        let late = now + FORGOTTEN_AFTER;
        assert_eq!(known.sum(&one.payer, late - Duration::from_secs(1)), Msat(50));
        assert_eq!(known.sum(&one.payer, late), Msat(0));
        for _ in 0..MAX_ENDED + 5 {
            known.end(&one, 1, now);
        }
        assert_eq!(known.ended.len(), MAX_ENDED);
    }
}
