//! Escrows for the tests of this module: payer is the first key, payee the second, validator the third.

use consortium_protocol::wire::escrow::{EscrowFinding, EscrowId, EscrowKind, EscrowTerms, EscrowVerdict};
use consortium_protocol::{Hash, Msat, RootKey, Signed};

use super::secrets::Secrets;

pub(super) fn key(n: u8) -> RootKey {
    RootKey::from_seed([n; 32])
}

/// Those of the validator.
pub(super) fn secrets() -> Secrets {
    Secrets::of(&key(3))
}

fn terms(kind: EscrowKind, tranches: u8, delta: u16) -> Signed<EscrowTerms> {
    let id = EscrowId([kind as u8 + 1; 16]);
    let payee = key(if kind == EscrowKind::Bond { 3 } else { 2 }).node_id();
    let (payer, locks, unit) = (key(1).node_id(), secrets().locks(id, tranches), Msat(1_000_000));
    let terms = EscrowTerms { id, kind, payer, payee, locks, unit, delta, subject: Hash::of(b"work"), at_ms: 1 };
    Signed::sign(&key(3), terms)
}

pub(super) fn tranches(number: u8) -> Signed<EscrowTerms> {
    terms(EscrowKind::Tranches, number, 144)
}

pub(super) fn reward() -> Signed<EscrowTerms> {
    terms(EscrowKind::Reward, 1, 144)
}

pub(super) fn bond(delta: u16) -> Signed<EscrowTerms> {
    terms(EscrowKind::Bond, 1, delta)
}

/// A verdict on terms; its finding is what the units earned ask for.
pub(super) fn verdict(terms: &Signed<EscrowTerms>, earned: u32) -> Signed<EscrowVerdict> {
    let finding = match (terms.payload().kind, earned) {
        (EscrowKind::Bond, 1..) => EscrowFinding::Abuse,
        (EscrowKind::Bond, 0) | (_, 1..) => EscrowFinding::Accepted,
        (_, 0) => EscrowFinding::Missed,
    };
    let (escrow, evidence) = (terms.payload().id, Hash::of(b"evidence"));
    let verdict = EscrowVerdict { escrow, terms: terms.digest(), finding, earned, evidence, at_ms: 2 };
    Signed::sign(&key(3), verdict)
}
