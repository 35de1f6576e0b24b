//! Mandates that were used here. Each is for so many positions, all attempts at its job together: a master cannot have
//! more done for a payer than that has signed for, however often it orders.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire::mandate::check_mandate;
use consortium_protocol::wire::pipeline::SessionOpen;

use super::lock;

/// A payer signs for so long, in milliseconds: twice the time that a job may take.
pub const LASTS_MS: u64 = 20 * 60 * 1000;
/// Clocks may differ by so much, in milliseconds.
const SKEW_MS: u64 = 10 * 60 * 1000;
/// Mandates remembered, of all payers together. When there are more, whoever has signed most of them bears that one of
/// its own is forgotten.
const MAX_KNOWN: usize = 16_384;
/// Those that are over are looked for this often, in milliseconds.
const TIDY_MS: u64 = 60_000;

/// What of mandates is used up. Cloneable; forgotten when the process ends.
#[derive(Clone, Default)]
pub struct Mandates(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    payers: BTreeMap<NodeId, BTreeMap<Hash, Used>>,
    count: usize,
    tidied_ms: u64,
}

/// How far a mandate is used up.
struct Used {
    until_ms: u64,
    /// Computed, or set aside for sessions in progress.
    positions: u32,
}

impl Known {
    fn used(&mut self, payer: &NodeId, mandate: &Hash) -> Option<&mut Used> {
        self.payers.get_mut(payer)?.get_mut(mandate)
    }

    /// Forgets what is over.
    fn tidy(&mut self, now_ms: u64) {
        if now_ms.abs_diff(self.tidied_ms) < TIDY_MS {
            return;
        }
        self.tidied_ms = now_ms;
        for used in self.payers.values_mut() {
            used.retain(|_, used| !is_over(used.until_ms, now_ms));
        }
        self.payers.retain(|_, used| !used.is_empty());
        self.count = self.payers.values().map(BTreeMap::len).sum();
    }

    fn note(&mut self, payer: NodeId, mandate: Hash, used: Used) {
        if self.count >= MAX_KNOWN
            && let Some(most) = self.payers.values_mut().max_by_key(|used| used.len())
            && most.pop_first().is_some()
        {
            self.count -= 1;
        }
        if self.payers.entry(payer).or_default().insert(mandate, used).is_none() {
            self.count += 1;
        }
    }
}

fn is_over(until_ms: u64, now_ms: u64) -> bool {
    now_ms > until_ms.saturating_add(SKEW_MS)
}

impl Mandates {
    /// Begins the work of an order, if its payer has signed for it: until it ends, all of its positions count as used.
    ///
    /// # Errors
    /// Why not, in words for the master.
    pub fn begin(&self, order: &Signed<SessionOpen>, now_ms: u64) -> Result<Use, String> {
        check_mandate(order).map_err(|broken| broken.to_string())?;
        let (signed, asked) = (&order.payload().mandate, order.payload().max_positions);
        let mandate = signed.payload();
        if is_over(mandate.until_ms, now_ms) {
            return Err("what the payer signed for is over".to_owned());
        }
        if mandate.until_ms > now_ms.saturating_add(LASTS_MS + SKEW_MS) {
            return Err("the payer signed for longer than is taken here".to_owned());
        }
        let (payer, digest) = (signed.signer(), signed.digest());
        let mut known = lock(&self.0);
        known.tidy(now_ms);
        let before = known.used(&payer, &digest).map_or(0, |used| used.positions);
        let after = before.checked_add(asked).filter(|after| *after <= mandate.positions).ok_or_else(|| {
            format!("the payer signed for {} positions, of which {before} are used", mandate.positions)
        })?;
        match known.used(&payer, &digest) {
            Some(used) => used.positions = after,
            None => known.note(payer, digest, Used { until_ms: mandate.until_ms, positions: after }),
        }
        drop(known);
        Ok(Use { mandates: self.clone(), payer, mandate: digest, asked, done: 0 })
    }
}

/// Work in progress under a mandate. Dropped, what was really computed takes the place of the most that it could have
/// been.
pub struct Use {
    mandates: Mandates,
    payer: NodeId,
    mandate: Hash,
    asked: u32,
    done: u32,
}

impl Use {
    /// Notes that so many positions were computed.
    pub fn computed(&mut self, positions: u32) {
        self.done = self.done.saturating_add(positions);
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if let Some(used) = lock(&self.mandates.0).used(&self.payer, &self.mandate) {
            used.positions = used.positions.saturating_sub(self.asked.saturating_sub(self.done));
        }
    }
}

#[cfg(test)]
mod tests {
    use consortium_protocol::cluster::ClusterId;
    use consortium_protocol::identity::RootKey;
    use consortium_protocol::msat::Msat;
    use consortium_protocol::wire::heartbeat::LayerRange;
    use consortium_protocol::wire::job::{JobId, Sampling};
    use consortium_protocol::wire::mandate::Mandate;
    use consortium_protocol::wire::pipeline::Hop;

    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn key(n: u8) -> RootKey {
        RootKey::from_seed([n; 32])
    }

    /// The payer's word for 100 positions of a job, to the master of key 1.
    fn mandate(payer: u8, job: u8) -> Mandate {
        Mandate {
            cluster: ClusterId(Hash::of(b"cluster")),
            job: JobId([job; 16]),
            master: key(1).node_id(),
            model: Hash::of(b"model"),
            positions: 100,
            position_cost: Msat(8),
            challenge: Hash::of(&[payer, job]),
            until_ms: NOW + LASTS_MS,
        }
    }

    /// An order under a mandate, of 40 positions at 8 msat each.
    fn order(payer: u8, mandate: Mandate) -> SessionOpen {
        SessionOpen {
            cluster: mandate.cluster,
            term: 1,
            job: mandate.job,
            attempt: 1,
            model: mandate.model,
            driver: key(1).node_id(),
            route: vec![Hop { node: key(3).node_id(), range: LayerRange { first: 0, last: 3 } }],
            prices: vec![Msat(2)],
            master_fee: Msat(0),
            sampling: Sampling::default(),
            prompt_len: 1,
            max_positions: 40,
            payer: key(payer).node_id(),
            challenge: mandate.challenge,
            mandate: Signed::sign(&key(payer), mandate),
        }
    }

    fn begin(mandates: &Mandates, by: u8, open: &SessionOpen, now_ms: u64) -> Result<Use, String> {
        mandates.begin(&Signed::sign(&key(by), open.clone()), now_ms)
    }

    #[test]
    fn a_mandate_is_for_so_many_positions_over_all_attempts() {
        let mandates = Mandates::default();
        let open = order(2, mandate(2, 1));
        let mut first = begin(&mandates, 1, &open, NOW).unwrap();
        let second = begin(&mandates, 1, &SessionOpen { attempt: 2, ..open.clone() }, NOW).unwrap();
        let third = begin(&mandates, 1, &SessionOpen { attempt: 3, ..open.clone() }, NOW);
        assert!(third.err().unwrap().contains("100 positions, of which 80 are used"));
        // Another job, and another payer's job of the same name, have mandates of their own.
        assert!(begin(&mandates, 1, &order(2, mandate(2, 2)), NOW).is_ok());
        assert!(begin(&mandates, 1, &order(4, mandate(4, 1)), NOW).is_ok());
        // What was not computed is free again, what was is not.
        first.computed(20);
        first.computed(5);
        drop((first, second));
        assert_eq!(lock(&mandates.0).used(&open.payer, &open.mandate.digest()).unwrap().positions, 25);
        assert!(begin(&mandates, 1, &SessionOpen { max_positions: 76, ..open.clone() }, NOW).is_err());
        assert!(begin(&mandates, 1, &SessionOpen { max_positions: 75, ..open.clone() }, NOW).is_ok());
        // Who signs anew lets more be done.
        let again = Mandate { until_ms: NOW + LASTS_MS + 1, ..mandate(2, 1) };
        assert!(begin(&mandates, 1, &SessionOpen { max_positions: 100, ..order(2, again) }, NOW).is_ok());
    }

    #[test]
    fn nobody_is_made_to_pay_by_another() {
        let mandates = Mandates::default();
        let open = order(2, mandate(2, 1));
        let refused = |by: u8, open: &SessionOpen| begin(&mandates, by, open, NOW).err().unwrap();
        // The master names a node that signed nothing, or signed for another job.
        let named = SessionOpen { payer: key(5).node_id(), ..open.clone() };
        assert!(refused(1, &named).contains("payer"));
        let borrowed = SessionOpen { mandate: Signed::sign(&key(2), mandate(2, 9)), ..open.clone() };
        assert!(refused(1, &borrowed).contains("job"));
        // Another master than the one that the payer handed its job to.
        assert!(refused(6, &SessionOpen { driver: key(6).node_id(), ..open.clone() }).contains("driver"));
        assert!(refused(1, &SessionOpen { prices: vec![Msat(3)], ..open.clone() }).contains("prices"));
        assert!(refused(1, &SessionOpen { max_positions: 101, ..open.clone() }).contains("max_positions"));
        assert_eq!(lock(&mandates.0).count, 0, "nothing is remembered of what was refused");
        assert!(begin(&mandates, 1, &open, NOW).is_ok());
    }

    #[test]
    fn a_mandate_ends_and_is_forgotten_then() {
        let mandates = Mandates::default();
        let open = order(2, mandate(2, 1));
        let (end, over) = (NOW + LASTS_MS, NOW + LASTS_MS + SKEW_MS + 1);
        assert!(begin(&mandates, 1, &open, end).is_ok());
        assert!(begin(&mandates, 1, &open, NOW - SKEW_MS).is_ok());
        assert!(begin(&mandates, 1, &open, NOW - SKEW_MS - 1).is_err(), "longer than anyone may sign for");
        assert!(begin(&mandates, 1, &open, over).is_err());
        let later = Mandate { until_ms: over + LASTS_MS, ..mandate(2, 2) };
        assert!(begin(&mandates, 1, &order(2, later), over).is_ok());
        let known = lock(&mandates.0);
        assert_eq!((known.count, known.payers.len()), (1, 1));
    }

    #[test]
    fn who_signs_without_end_makes_its_own_be_forgotten() {
        let mut known = Known::default();
        let (modest, greedy) = (key(1).node_id(), key(2).node_id());
        let used = || Used { until_ms: NOW, positions: 1 };
        known.note(modest, Hash::of(b"one"), used());
        for n in 0..MAX_KNOWN {
            known.note(greedy, Hash::of(&n.to_le_bytes()), used());
        }
        assert_eq!(known.count, MAX_KNOWN);
        assert!(known.used(&modest, &Hash::of(b"one")).is_some());
    }
}
