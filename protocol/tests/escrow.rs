//! The rules of escrows: who signs, what adds up, what is proof.

#![allow(clippy::unwrap_used, clippy::panic)]

mod samples;

use consortium_protocol::envelope::Payload as _;
use consortium_protocol::wire::Message as _;
use consortium_protocol::wire::escrow::{
    Charge, EscrowFinding, EscrowKind, EscrowMessage, EscrowTerms, EscrowVerdict, MAX_INVOICE, MAX_TRANCHES,
    check_verdict,
};
use consortium_protocol::{Hash, Msat, Signed};
use samples::{escrow_terms, escrow_verdict, key, lock_secret, misconduct};

fn largest_terms() -> EscrowTerms {
    let locks = (0..12).map(|tranche| lock_secret(tranche).lock()).collect();
    EscrowTerms { locks, unit: Msat(244_000_000), delta: 900, at_ms: i64::MAX as u64, ..escrow_terms() }
}

#[test]
fn tranches_are_binary_and_add_up() {
    let terms = escrow_terms();
    let amounts: Vec<Msat> = (0..4).map_while(|tranche| terms.amount(tranche)).collect();
    assert_eq!(amounts, [Msat(1_000_000), Msat(2_000_000), Msat(4_000_000)]);
    assert_eq!((terms.units(), terms.total()), (7, Msat::sum(amounts)));
    for earned in 0..8_u32 {
        let verdict = EscrowVerdict { earned, ..escrow_verdict() };
        let given = (0..40).filter(|tranche| verdict.gives(*tranche));
        assert_eq!(given.map(|tranche| terms.amount(tranche).unwrap().0).sum::<u64>(), u64::from(earned) * 1_000_000);
    }
    assert!(largest_terms().check().is_ok());
}

#[test]
fn terms_out_of_bounds_are_refused() {
    let broken: [fn(&mut EscrowTerms); 10] = [
        |terms| terms.locks.clear(),
        |terms| terms.locks.truncate(1),
        |terms| terms.kind = EscrowKind::Reward,
        |terms| terms.locks.extend((3..13).map(|tranche| lock_secret(tranche).lock())),
        |terms| terms.locks[1] = terms.locks[0],
        |terms| terms.payee = terms.payer,
        |terms| terms.unit = Msat::ZERO,
        |terms| terms.unit = Msat(u64::MAX / 2),
        |terms| terms.delta = 71,
        |terms| terms.delta = 901,
    ];
    for change in broken {
        let mut terms = escrow_terms();
        change(&mut terms);
        assert!(Signed::<EscrowTerms>::decode(Signed::sign(&key(3), terms).as_bytes()).is_err());
    }
    let terms = escrow_terms();
    assert!(terms.check_signer(key(3).node_id()).is_ok());
    assert!(terms.check_signer(key(1).node_id()).is_err(), "the payer judges");
    assert!(terms.check_signer(key(2).node_id()).is_err(), "the payee judges");
    let locks = terms.locks[..1].to_vec();
    let bond = EscrowTerms { kind: EscrowKind::Bond, payee: key(3).node_id(), locks, ..terms };
    assert!(bond.check().is_ok() && bond.check_signer(key(3).node_id()).is_ok());
    assert!(bond.check_signer(key(4).node_id()).is_err(), "a bond is with its validator");
}

#[test]
fn verdicts_are_bound_to_their_terms() {
    let terms = Signed::sign(&key(3), escrow_terms());
    let sign = |by: u8, verdict: EscrowVerdict| Signed::sign(&key(by), verdict);
    assert!(check_verdict(&sign(3, escrow_verdict()), &terms).is_ok());
    assert!(check_verdict(&sign(4, escrow_verdict()), &terms).is_err(), "another validator");
    for bad in [
        EscrowVerdict { terms: Hash::of(b"others"), ..escrow_verdict() },
        EscrowVerdict { earned: 8, ..escrow_verdict() },
        EscrowVerdict { earned: 0, ..escrow_verdict() },
        EscrowVerdict { finding: EscrowFinding::Missed, ..escrow_verdict() },
        EscrowVerdict { finding: EscrowFinding::Abuse, ..escrow_verdict() },
    ] {
        assert!(check_verdict(&sign(3, bad), &terms).is_err());
    }
    let missed = EscrowVerdict { finding: EscrowFinding::Missed, earned: 0, ..escrow_verdict() };
    assert!(check_verdict(&sign(3, missed.clone()), &terms).is_ok());
    let release =
        |secrets| EscrowMessage::Release { terms: terms.clone(), verdict: sign(3, escrow_verdict()), secrets };
    assert!(release(vec![lock_secret(0), lock_secret(2)]).check().is_ok());
    for secrets in [vec![], vec![lock_secret(0)], vec![lock_secret(2), lock_secret(0)], vec![lock_secret(1); 2]] {
        assert!(release(secrets).check().is_err());
    }
    let nothing = EscrowMessage::Release { terms: terms.clone(), verdict: sign(3, missed), secrets: vec![] };
    assert!(nothing.check().is_err(), "nothing is released without anything earned");
}

#[test]
fn bounds_leave_room_for_the_largest_message() {
    let terms = Signed::sign(&key(3), largest_terms());
    assert!(Signed::<EscrowTerms>::decode(terms.as_bytes()).is_ok());
    let verdict = EscrowVerdict { terms: terms.digest(), earned: 4095, at_ms: i64::MAX as u64, ..escrow_verdict() };
    let verdict = Signed::sign(&key(3), verdict);
    let secrets = (0..12).map(lock_secret).collect();
    let invoices = vec!["l".repeat(MAX_INVOICE); MAX_TRANCHES];
    for message in [
        EscrowMessage::Invoices { terms: terms.digest(), invoices },
        EscrowMessage::Release { terms: terms.clone(), verdict: verdict.clone(), secrets },
    ] {
        assert_eq!(EscrowMessage::decode(&message.encode()).unwrap(), message);
    }
    let too_long = EscrowMessage::Invoices { terms: terms.digest(), invoices: vec!["l".repeat(MAX_INVOICE + 1)] };
    assert!(EscrowMessage::decode(&too_long.encode()).is_err());
}

#[test]
fn a_preimage_used_against_the_verdict_is_proof() {
    let proof = misconduct();
    assert!(proof.check().is_ok());
    assert_eq!(proof.charge(), Charge::Contradicted);
    let mut given = proof.clone();
    (given.tranche, given.secret) = (0, lock_secret(0));
    assert!(given.check().is_err(), "the verdict gives it");
    let mut other = proof.clone();
    other.secret = lock_secret(0);
    assert!(other.check().is_err(), "it opens something else");
    let mut beyond = proof.clone();
    beyond.tranche = 3;
    assert!(beyond.check().is_err());
    // Whoever has no verdict only asks for one.
    let mut open = proof.clone();
    open.verdict = None;
    assert!(open.check().is_ok());
    assert_eq!(open.charge(), Charge::Unexplained);
    let gives = |earned| Signed::sign(&key(3), EscrowVerdict { earned, ..escrow_verdict() });
    assert!(open.is_answered_by(&gives(0b010)) && !open.is_answered_by(&gives(0b101)));
    assert!(!proof.is_answered_by(&gives(0b010)), "a second verdict does not undo the first");
    let forged = Signed::sign(&key(1), EscrowVerdict { earned: 0b010, ..escrow_verdict() });
    assert!(!open.is_answered_by(&forged));
}

#[test]
fn preimages_do_not_show() {
    let shown: String = samples::escrow_messages().iter().map(|(_, message)| format!("{message:?}")).collect();
    let digits = "60".repeat(8);
    assert!(shown.contains("LockSecret(..)") && !shown.contains(&digits) && !shown.contains("96, 96"), "{shown}");
    assert!(consortium_protocol::cbor::to_vec(&lock_secret(0)).len() == 34);
}
