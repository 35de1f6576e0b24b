//! Offers of validators that wait for this node's word, and what was agreed to before it came.
//!
//! An offer waits as long as its validator repeats it, and a while longer. Nothing is agreed to but by the operator, or by
//! an [`Expectation`] that code of this node stated beforehand.

use std::collections::BTreeMap;

use consortium_ledger::escrow::limits::Consent;
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::escrow::{EscrowId, EscrowKind, EscrowMessage, EscrowTerms};

/// Offers that wait, in all.
const MAX_OFFERS: usize = 256;
/// Offers of one validator that wait.
const MAX_OF_ONE: usize = 16;
/// An offer is forgotten so long after it was last heard, in milliseconds.
const FORGOTTEN_MS: u64 = 10 * 60 * 1000;
/// That an offer was declined is remembered for so long, in milliseconds: longer than any is repeated.
const DECLINED_MS: u64 = 8 * 24 * 3600 * 1000;
/// Declined offers that are remembered.
const MAX_DECLINED: usize = 4096;
/// Expectations at a time.
const MAX_EXPECTED: usize = 1024;

/// What this node will agree to once, without being asked again, when it is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// Who judges.
    pub validator: NodeId,
    /// What is judged, and by what rules.
    pub subject: Hash,
    /// Of what kind.
    pub kind: EscrowKind,
    /// Whose money is locked; none for whosever it is.
    pub payer: Option<NodeId>,
    /// Who is paid; none for whoever it is.
    pub payee: Option<NodeId>,
    /// All of it together is at least this much.
    pub least: Msat,
    /// And no more than this.
    pub most: Msat,
    /// The longest delta, in blocks.
    pub longest: u16,
    /// What is agreed to in so many words.
    pub consent: Consent,
    /// When it is over, in milliseconds since 1970.
    pub until_ms: u64,
}

impl Expectation {
    fn fits(&self, terms: &Signed<EscrowTerms>) -> bool {
        let offered = terms.payload();
        let total = offered.total().unwrap_or(Msat(u64::MAX));
        terms.signer() == self.validator
            && (offered.subject, offered.kind) == (self.subject, self.kind)
            && self.payer.is_none_or(|payer| payer == offered.payer)
            && self.payee.is_none_or(|payee| payee == offered.payee)
            && (self.least..=self.most).contains(&total)
            && offered.delta <= self.longest
    }
}

/// An offer that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// The terms.
    pub(super) terms: Signed<EscrowTerms>,
    /// When it first came, in milliseconds since 1970.
    pub(super) came_ms: u64,
    heard_ms: u64,
    /// The payee's invoices, which came before this node agreed.
    pub(super) early: Option<EscrowMessage>,
}

/// What is to be done about an offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Agree: it was expected. If that fails, the expectation is to be stated again.
    Expected(Box<Expectation>),
    /// It waits.
    Waits,
    /// It was declined.
    Declined,
    /// There is no room.
    Full,
    /// Another offer of that name waits.
    Taken,
}

/// Why an expectation is not taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many escrows are expected already")]
pub struct TooManyExpected;

#[derive(Debug, Default)]
pub(super) struct Offers {
    waiting: BTreeMap<EscrowId, Waiting>,
    /// By the digest of the terms: when.
    declined: BTreeMap<Hash, u64>,
    expected: Vec<Expectation>,
}

impl Offers {
    /// Takes an offer. Its terms keep the rules and name this node.
    pub(super) fn hear(&mut self, terms: &Signed<EscrowTerms>, now_ms: u64) -> Heard {
        self.forget(now_ms);
        if self.declined.contains_key(&terms.digest()) {
            return Heard::Declined;
        }
        if let Some(place) = self.expected.iter().position(|expected| expected.fits(terms)) {
            return Heard::Expected(Box::new(self.expected.swap_remove(place)));
        }
        let id = terms.payload().id;
        if let Some(known) = self.waiting.get_mut(&id) {
            if known.terms.digest() != terms.digest() {
                return Heard::Taken;
            }
            known.heard_ms = now_ms;
            return Heard::Waits;
        }
        let of_one = self.waiting.values().filter(|waiting| waiting.terms.signer() == terms.signer()).count();
        if self.waiting.len() >= MAX_OFFERS || of_one >= MAX_OF_ONE {
            return Heard::Full;
        }
        let waiting = Waiting { terms: terms.clone(), came_ms: now_ms, heard_ms: now_ms, early: None };
        self.waiting.insert(id, waiting);
        Heard::Waits
    }

    /// Keeps what a payee said about an offer that waits; whether there is such a one.
    pub(super) fn keep(&mut self, from: NodeId, message: &EscrowMessage) -> bool {
        let about = message.terms();
        let mut offers = self.waiting.values_mut();
        let Some(offer) = offers.find(|offer| offer.terms.payload().payee == from && offer.terms.digest() == about)
        else {
            return false;
        };
        let kept = matches!(message, EscrowMessage::Invoices { .. });
        if kept {
            offer.early = Some(message.clone());
        }
        kept
    }

    /// What this node will agree to; gives an offer that waits for just that.
    pub(super) fn expect(
        &mut self,
        expectation: Expectation,
        now_ms: u64,
    ) -> Result<Option<(Waiting, Box<Expectation>)>, TooManyExpected> {
        self.forget(now_ms);
        let known = self.waiting.iter().find(|(_, waiting)| expectation.fits(&waiting.terms)).map(|(id, _)| *id);
        if let Some(waiting) = known.and_then(|id| self.waiting.remove(&id)) {
            return Ok(Some((waiting, Box::new(expectation))));
        }
        if self.expected.len() >= MAX_EXPECTED {
            return Err(TooManyExpected);
        }
        self.expected.push(expectation);
        Ok(None)
    }

    /// Forgets what was stated about this subject.
    pub(super) fn expect_no_more(&mut self, subject: &Hash) {
        self.expected.retain(|expected| expected.subject != *subject);
    }

    /// States again what was taken for an offer that could not be agreed to.
    pub(super) fn expect_again(&mut self, expectation: Expectation) {
        if self.expected.len() < MAX_EXPECTED {
            self.expected.push(expectation);
        }
    }

    /// Takes out an offer that waits.
    pub(super) fn take(&mut self, id: EscrowId) -> Option<Waiting> {
        self.waiting.remove(&id)
    }

    /// Puts back what was taken out, and was not agreed to after all.
    pub(super) fn put_back(&mut self, waiting: Waiting) {
        self.waiting.entry(waiting.terms.payload().id).or_insert(waiting);
    }

    /// Declines an offer that waits; whether there was one.
    pub(super) fn decline(&mut self, id: EscrowId, now_ms: u64) -> bool {
        let Some(waiting) = self.waiting.remove(&id) else { return false };
        if self.declined.len() >= MAX_DECLINED
            && let Some(oldest) = self.declined.iter().min_by_key(|(_, at_ms)| **at_ms).map(|(digest, _)| *digest)
        {
            self.declined.remove(&oldest);
        }
        self.declined.insert(waiting.terms.digest(), now_ms);
        true
    }

    /// Declines all offers that wait to have this judged.
    pub(super) fn decline_about(&mut self, subject: &Hash, now_ms: u64) {
        let about = self.waiting.iter().filter(|(_, waiting)| waiting.terms.payload().subject == *subject);
        let names: Vec<EscrowId> = about.map(|(id, _)| *id).collect();
        for id in names {
            self.decline(id, now_ms);
        }
    }

    /// Whether terms of this digest were declined.
    pub(super) fn is_declined(&self, terms: &Hash) -> bool {
        self.declined.contains_key(terms)
    }

    /// Those that wait, by name.
    pub(super) fn waiting(&mut self, now_ms: u64) -> Vec<Waiting> {
        self.forget(now_ms);
        self.waiting.values().cloned().collect()
    }

    fn forget(&mut self, now_ms: u64) {
        self.waiting.retain(|_, waiting| waiting.heard_ms.saturating_add(FORGOTTEN_MS) > now_ms);
        self.declined.retain(|_, at_ms| at_ms.saturating_add(DECLINED_MS) > now_ms);
        self.expected.retain(|expected| expected.until_ms > now_ms);
    }
}

#[cfg(test)]
mod tests {
    use consortium_protocol::identity::RootKey;
    use consortium_protocol::wire::escrow::HashLock;

    use super::*;

    fn key(n: u16) -> RootKey {
        let mut seed = [0; 32];
        seed[..2].copy_from_slice(&n.to_le_bytes());
        RootKey::from_seed(seed)
    }

    /// By validator `by`, with key 1 as the payer and key 2 as the payee.
    fn terms(by: u16, n: u16) -> Signed<EscrowTerms> {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&n.to_le_bytes());
        id[2..4].copy_from_slice(&by.to_le_bytes());
        let terms = EscrowTerms {
            id: EscrowId(id),
            kind: EscrowKind::Reward,
            payer: key(1).node_id(),
            payee: key(2).node_id(),
            locks: vec![HashLock::from_bytes([7; 32])],
            unit: Msat(5_000_000),
            delta: 144,
            subject: Hash::of(b"work"),
            at_ms: 1,
        };
        Signed::sign(&key(by), terms)
    }

    fn expectation() -> Expectation {
        Expectation {
            validator: key(3).node_id(),
            subject: Hash::of(b"work"),
            kind: EscrowKind::Reward,
            payer: Some(key(1).node_id()),
            payee: None,
            least: Msat(1),
            most: Msat(5_000_000),
            longest: 144,
            consent: Consent { dust: true },
            until_ms: 100,
        }
    }

    #[test]
    fn only_what_was_expected_is_agreed_to_and_only_once() {
        let mut offers = Offers::default();
        let changes: [fn(&mut Expectation); 7] = [
            |wanted| wanted.validator = key(4).node_id(),
            |wanted| wanted.subject = Hash::of(b"other work"),
            |wanted| wanted.kind = EscrowKind::Bond,
            |wanted| wanted.payer = Some(key(2).node_id()),
            |wanted| wanted.payee = Some(key(1).node_id()),
            |wanted| wanted.most = Msat(4_999_999),
            |wanted| wanted.longest = 143,
        ];
        for change in changes {
            let mut wanted = expectation();
            change(&mut wanted);
            assert_eq!(offers.expect(wanted, 1), Ok(None));
        }
        assert_eq!(offers.hear(&terms(3, 1), 2), Heard::Waits);
        assert_eq!(offers.expect(expectation(), 2).unwrap().unwrap().0.terms, terms(3, 1), "it waited for that");
        assert_eq!(offers.expect(expectation(), 2), Ok(None));
        assert_eq!(offers.hear(&terms(3, 2), 3), Heard::Expected(Box::new(expectation())));
        assert_eq!(offers.hear(&terms(3, 3), 3), Heard::Waits);
        assert_eq!(offers.expect(Expectation { least: Msat(5_000_001), ..expectation() }, 3), Ok(None));
        let taken = offers.take(terms(3, 3).payload().id).unwrap();
        offers.put_back(taken.clone());
        assert_eq!(offers.take(terms(3, 3).payload().id), Some(taken));
        assert_eq!(offers.expect(expectation(), 3), Ok(None));
        assert_eq!(offers.hear(&terms(3, 4), 100), Heard::Waits, "what was expected is over");
        assert_eq!(
            offers
                .expect(Expectation { least: Msat(2), until_ms: 200, ..expectation() }, 100)
                .unwrap()
                .unwrap()
                .0
                .terms,
            terms(3, 4)
        );
        assert_eq!(offers.expect(Expectation { until_ms: 200, ..expectation() }, 100), Ok(None));
        offers.expect_no_more(&Hash::of(b"other work"));
        assert!(matches!(offers.hear(&terms(3, 5), 101), Heard::Expected(_)));
        assert_eq!(offers.expect(Expectation { until_ms: 200, ..expectation() }, 101), Ok(None));
        offers.expect_no_more(&Hash::of(b"work"));
        assert_eq!(offers.hear(&terms(3, 6), 102), Heard::Waits, "it is not expected any more");
    }

    #[test]
    fn offers_are_bounded_and_forgotten() {
        let mut offers = Offers::default();
        for n in 0..20 {
            let full = usize::from(n) >= MAX_OF_ONE;
            assert_eq!(offers.hear(&terms(3, n), 5), if full { Heard::Full } else { Heard::Waits });
        }
        for by in 4..40 {
            for n in 0..16 {
                offers.hear(&terms(by, n), 5);
            }
        }
        assert_eq!(offers.waiting(5).len(), MAX_OFFERS);
        assert_eq!(offers.hear(&terms(3, 0), 6), Heard::Waits, "repeated");
        assert_eq!(offers.waiting(5 + FORGOTTEN_MS).len(), 1);
        assert_eq!(offers.hear(&terms(50, 0), 6 + FORGOTTEN_MS), Heard::Waits);
        assert_eq!(offers.waiting(6 + FORGOTTEN_MS).len(), 1);
    }

    #[test]
    fn what_was_declined_stays_so_and_a_name_is_one_offers() {
        let mut offers = Offers::default();
        let (offered, mut other) = (terms(3, 1), terms(3, 1).payload().clone());
        other.at_ms = 2;
        offers.hear(&offered, 1);
        assert_eq!(offers.hear(&Signed::sign(&key(3), other), 1), Heard::Taken);
        assert!(offers.decline(offered.payload().id, 1) && !offers.decline(offered.payload().id, 1));
        assert_eq!(offers.hear(&offered, 2), Heard::Declined);
        assert!(offers.is_declined(&offered.digest()));
        assert!(offers.take(offered.payload().id).is_none());
        assert_eq!(offers.hear(&offered, 1 + DECLINED_MS), Heard::Waits);
    }

    #[test]
    fn invoices_that_come_early_are_kept_for_their_offer() {
        let mut offers = Offers::default();
        let offered = terms(3, 1);
        offers.hear(&offered, 1);
        let invoices = EscrowMessage::Invoices { terms: offered.digest(), invoices: vec!["lnbcrt1".to_owned()] };
        assert!(!offers.keep(key(1).node_id(), &invoices), "another says so");
        let others = EscrowMessage::Invoices { terms: terms(3, 2).digest(), invoices: vec!["lnbcrt1".to_owned()] };
        assert!(!offers.keep(key(2).node_id(), &others));
        assert!(!offers.keep(key(2).node_id(), &EscrowMessage::Heard { terms: offered.digest() }));
        assert!(offers.keep(key(2).node_id(), &invoices));
        assert_eq!(offers.take(offered.payload().id).unwrap().early, Some(invoices));
    }
}
