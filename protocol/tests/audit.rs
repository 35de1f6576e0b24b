//! Chains of receipts: one that a stage should not have signed convicts it.

#![allow(clippy::unwrap_used, clippy::panic)]

mod samples;

use consortium_protocol::wire::Message as _;
use consortium_protocol::wire::audit::{AuditOrder, ChainFault, Nonce, StageReceipt, blocks_root, check_chain};
use consortium_protocol::wire::pipeline::SessionOpen;
use consortium_protocol::{Hash, Signed};
use samples::{audit_order, key, receipts, session};

fn order() -> Signed<SessionOpen> {
    Signed::sign(&key(2), session())
}

/// The chain with the receipt of `stage` changed and signed anew by its own node.
fn changed(stage: usize, change: impl FnOnce(&mut StageReceipt)) -> Vec<Signed<StageReceipt>> {
    let mut chain = receipts();
    let mut said = chain[stage].payload().clone();
    change(&mut said);
    chain[stage] = Signed::sign(&key([1, 3][stage]), said);
    chain
}

#[test]
fn an_honest_chain_holds_at_every_length() {
    for length in 0..=2 {
        check_chain(&order(), &receipts()[..length]).unwrap();
    }
}

#[test]
fn the_stage_that_signed_what_it_saw_to_be_wrong_is_named() {
    let other = Hash::of(b"something else");
    let faults = [
        (0, changed(0, |r| r.order = other)),
        (0, changed(0, |r| r.term += 1)),
        (0, changed(0, |r| r.job.0[0] ^= 1)),
        (0, changed(0, |r| r.attempt += 1)),
        (0, changed(0, |r| r.model = other)),
        (0, changed(0, |r| r.range.last += 1)),
        (0, changed(0, |r| r.challenge = other)),
        (1, changed(1, |r| r.inputs = other)),
        (1, changed(1, |r| r.positions += 1)),
        (1, changed(1, |r| r.upstream = Some(other))),
        // The first stage changed what it gave after the second had signed over it.
        (1, changed(0, |r| r.outputs = other)),
    ];
    for (index, (stage, chain)) in faults.iter().enumerate() {
        let ChainFault { stage: named, rule } = check_chain(&order(), chain).unwrap_err();
        assert_eq!(named, *stage, "case {index}: {rule}");
    }
}

#[test]
fn receipts_of_strangers_and_beyond_the_route_are_refused() {
    let mut chain = receipts();
    chain[1] = Signed::sign(&key(9), chain[1].payload().clone());
    assert_eq!(check_chain(&order(), &chain).unwrap_err().stage, 1);
    let mut chain = receipts();
    chain.push(chain[1].clone());
    assert_eq!(check_chain(&order(), &chain).unwrap_err(), ChainFault { stage: 2, rule: "beyond the route" });
}

#[test]
fn an_audit_is_ordered_with_the_nonce_that_was_committed_to() {
    let order = audit_order();
    assert_eq!(AuditOrder::decode(&order.encode()).unwrap(), order);
    let guessed = AuditOrder { nonce: Nonce([6; 32]), ..order.clone() };
    assert!(AuditOrder::decode(&guessed.encode()).is_err());
    let empty = AuditOrder { chain: Vec::new(), ..order };
    assert!(AuditOrder::decode(&empty.encode()).is_err());
}

#[test]
fn a_root_depends_on_every_block_and_on_their_order() {
    let blocks: Vec<Hash> = (0..5_u8).map(|i| Hash::of(&[i])).collect();
    let root = blocks_root(&blocks);
    let mut swapped = blocks.clone();
    swapped.swap(0, 4);
    assert_ne!(blocks_root(&swapped), root);
    assert_ne!(blocks_root(&blocks[..4]), root);
}
