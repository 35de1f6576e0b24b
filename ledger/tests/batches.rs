//! Tree heads, proofs and equivocation.
#![allow(clippy::unwrap_used, clippy::panic)]

mod fixtures;

use consortium_ledger::batches::{BatchPolicy, EntryProof, EntryProofView};
use consortium_ledger::heads::{HeadSeen, MAX_HEADS, MAX_SIGNERS, contradiction, grew};
use consortium_ledger::{Ledger, LedgerError};
use consortium_protocol::merkle::{self, ConsistencyProof, InclusionProof};
use consortium_protocol::wire::Message;
use consortium_protocol::wire::ledger::{Equivocation, LeafProof, Rebuttal, TreeHead};
use consortium_protocol::{Hash, Msat, Signed};
use fixtures::*;

const ALWAYS: BatchPolicy = BatchPolicy { entries: 1, every_ms: 0 };

fn fill(books: &Books, entries: std::ops::Range<u64>) {
    for n in entries {
        books.ledger.deposit(&peer(2), Msat(n + 1), Hash::of(&n.to_le_bytes()), NOW).unwrap();
    }
}

fn leaves(books: &Books) -> Vec<Hash> {
    (0..books.ledger.length().unwrap())
        .map(|seq| merkle::leaf_hash(books.ledger.entry(seq).unwrap().unwrap().hash().as_bytes()))
        .collect()
}

fn head(n: u8, size: u64, root: &[u8]) -> Signed<TreeHead> {
    Signed::sign(&key(n), TreeHead { size, root: Hash::of(root), at_ms: NOW })
}

#[test]
fn the_stored_tree_is_the_tree_of_the_leaves() {
    let books = books();
    for size in 1..=35_u64 {
        fill(&books, size - 1..size);
        let leaves = leaves(&books);
        let head = books.ledger.close_batch(&key(1), &ALWAYS, NOW).unwrap().unwrap();
        assert_eq!((head.payload().size, head.payload().root), (size, merkle::root(&leaves)));
        for index in 0..size {
            let proof = InclusionProof::of(&leaves, index as usize).unwrap();
            assert_eq!(books.ledger.prove_inclusion(index, size).unwrap(), proof);
            let proof = ConsistencyProof::of(&leaves, index as usize + 1).unwrap();
            assert_eq!(books.ledger.prove_growth(index + 1, size).unwrap(), proof);
        }
    }
    assert!(matches!(books.ledger.prove_inclusion(35, 35), Err(LedgerError::Invalid(_))));
    assert!(matches!(books.ledger.prove_inclusion(0, 36), Err(LedgerError::Invalid(_))));
    assert!(matches!(books.ledger.prove_growth(0, 5), Err(LedgerError::Invalid(_))));
    assert!(matches!(books.ledger.prove_growth(6, 5), Err(LedgerError::Invalid(_))));
    assert!(matches!(books.ledger.prove_growth(5, u64::MAX), Err(LedgerError::Invalid(_))));
    books.ledger.verify().unwrap();
    books.sql("UPDATE node SET hash = zeroblob(32) WHERE level = 5");
    assert!(matches!(books.ledger.verify(), Err(LedgerError::Corrupt { .. })));
}

#[test]
fn a_batch_is_closed_when_it_is_time() {
    let policy = BatchPolicy { entries: 10, every_ms: 1000 };
    assert!(!policy.is_due(0, 0, u64::MAX), "nothing new");
    assert!(!policy.is_due(9, 500, 1499));
    assert!(policy.is_due(10, 500, 500));
    assert!(policy.is_due(1, 500, 1500));
    assert!(policy.is_due(1, 500, 499), "the clock went back");
    let mut books = books();
    let close = |books: &Books, now| books.ledger.close_batch(&key(1), &policy, now).unwrap().map(|h| h.payload().size);
    assert_eq!(close(&books, NOW), None);
    fill(&books, 0..3);
    assert_eq!(close(&books, NOW + 999), None);
    assert!(books.ledger.prove_entry(0).unwrap().is_none(), "no head covers it yet");
    assert_eq!(close(&books, NOW + 1000), Some(3));
    assert_eq!(close(&books, NOW + 9999), None);
    fill(&books, 3..13);
    books.reopen();
    assert_eq!(close(&books, NOW), Some(13));
    assert_eq!(books.ledger.head().unwrap().unwrap().payload().size, 13);
    assert_eq!(books.ledger.head_of(3).unwrap().unwrap().payload().size, 3);
    assert_eq!(books.ledger.head_of(4).unwrap(), None);
    assert!(matches!(books.ledger.close_batch(&key(2), &policy, NOW), Err(LedgerError::NotOwner { .. })));
}

#[test]
fn entries_and_growth_are_proved_to_strangers() {
    let books = books();
    fill(&books, 0..5);
    let old = books.ledger.close_batch(&key(1), &ALWAYS, NOW).unwrap().unwrap();
    fill(&books, 5..12);
    let new = books.ledger.close_batch(&key(1), &ALWAYS, NOW).unwrap().unwrap();
    let proof = books.ledger.prove_entry(7).unwrap().unwrap();
    proof.check().unwrap();
    assert_eq!(proof.proof.head, new);
    let view = serde_json::to_value(EntryProofView::from(&proof)).unwrap();
    assert_eq!(view["head"]["signer"], node(1).to_string());
    assert_eq!(view["head"]["signed"].as_str().unwrap().len(), 2 * new.as_bytes().len());
    assert_eq!((&view["proof"]["index"], &view["entry"]["seq"]), (&7.into(), &7.into()));
    let mut other = proof.clone();
    *other.entry.postings.values_mut().next().unwrap() -= 1;
    assert!(other.check().is_err());
    let mut other = proof.clone();
    other.entry.seq = 8;
    assert!(other.check().is_err());
    let mut other = proof;
    other.proof.head = old.clone();
    assert!(other.check().is_err());
    // An owner who puts an entry where it does not belong.
    let entry = books.ledger.entry(7).unwrap().unwrap();
    let leaf = merkle::leaf_hash(entry.hash().as_bytes());
    let one = Signed::sign(&key(1), TreeHead { size: 1, root: leaf, at_ms: NOW });
    let misplaced = LeafProof { head: one, leaf, proof: InclusionProof::of(&[leaf], 0).unwrap() };
    assert!(misplaced.check().is_ok());
    assert_eq!(EntryProof { entry, proof: misplaced }.check().unwrap_err().field, "index");
    let growth = books.ledger.prove_growth(5, 12).unwrap();
    assert!(grew(&old, &new, &growth));
    assert!(!grew(&new, &old, &growth));
    assert!(!grew(&old, &old, &growth));
    assert!(!grew(&old, &new, &ConsistencyProof { new_size: 11, ..growth.clone() }));
    let larger = Signed::sign(&key(1), TreeHead { size: 13, ..*new.payload() });
    assert!(!grew(&old, &larger, &growth), "not the size that was proved");
    assert!(!grew(&old, &head(1, 12, b"rewritten"), &growth));
    assert!(!grew(&old, &Signed::sign(&key(2), *new.payload()), &growth), "another's head");
}

#[test]
fn two_roots_for_one_size_convict() {
    let books = books();
    let (a, b) = (head(2, 5, b"to you"), head(2, 5, b"to me"));
    assert_eq!(books.ledger.note_head(&key(1), &a, NOW).unwrap(), HeadSeen::New);
    assert_eq!(books.ledger.note_head(&key(1), &a, NOW).unwrap(), HeadSeen::Known);
    let later = Signed::sign(&key(2), TreeHead { at_ms: NOW + 1, ..*a.payload() });
    assert_eq!(books.ledger.note_head(&key(1), &later, NOW).unwrap(), HeadSeen::Known, "the same, said again");
    assert_eq!(books.ledger.note_head(&key(1), &head(3, 5, b"of another"), NOW).unwrap(), HeadSeen::New);
    assert_eq!(books.ledger.note_head(&key(1), &head(2, 6, b"larger"), NOW).unwrap(), HeadSeen::New, "proves nothing");
    assert_eq!(books.ledger.equivocation(&node(2)).unwrap(), None);
    let HeadSeen::Equivocation(proof) = books.ledger.note_head(&key(1), &b, NOW).unwrap() else {
        panic!("not noticed")
    };
    assert_eq!(books.ledger.equivocation(&node(2)).unwrap().as_ref(), Some(&*proof));
    // The proof travels, and stands on its own.
    let received = Equivocation::decode(&proof.encode()).unwrap();
    assert_eq!(received.verify().unwrap(), node(2));
    let elsewhere = fixtures::books();
    assert_eq!(elsewhere.ledger.note_equivocation(&key(1), &received, NOW).unwrap(), node(2));
    for (a, b) in [(&a, &a), (&a, &later), (&a, &head(3, 5, b"x")), (&a, &head(2, 6, b"x"))] {
        let nothing = Equivocation::Roots { a: a.clone(), b: b.clone() };
        assert!(nothing.verify().is_err());
        assert!(Equivocation::decode(&nothing.encode()).is_err());
        assert!(matches!(books.ledger.note_equivocation(&key(1), &nothing, NOW), Err(LedgerError::Invalid(_))));
    }
}

#[test]
fn two_leaves_for_one_place_convict_across_sizes() {
    let (one, two) = (books(), books());
    fill(&one, 0..5);
    two.ledger.deposit(&peer(3), Msat(1), Hash::of(b"another past"), NOW).unwrap();
    fill(&two, 0..8);
    let prove = |books: &Books, seq| {
        books.ledger.close_batch(&key(1), &ALWAYS, NOW).unwrap();
        books.ledger.prove_entry(seq).unwrap().unwrap().proof
    };
    let (a, b) = (prove(&one, 0), prove(&two, 0));
    let proof = contradiction(&a, &b).unwrap();
    assert_eq!(Equivocation::decode(&proof.encode()).unwrap().verify().unwrap(), node(1));
    assert!(proof.encode().len() < Equivocation::MAX_BYTES);
    assert!(contradiction(&a, &a).is_none());
    assert!(contradiction(&a, &prove(&two, 1)).is_none(), "other places");
    let forged = LeafProof { leaf: Hash::of(b"made up"), ..b.clone() };
    assert!(contradiction(&a, &forged).is_none());
    let of_another = LeafProof { head: Signed::sign(&key(2), *b.head.payload()), ..b };
    assert!(contradiction(&a, &of_another).is_none());
}

#[test]
fn an_old_copy_of_the_ledger_is_found_out() {
    let books = books();
    fill(&books, 0..5);
    books.ledger.close_batch(&key(1), &ALWAYS, NOW).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    books.sql(&format!("VACUUM INTO '{}'", path.display()));
    fill(&books, 5..9);
    let head = books.ledger.close_batch(&key(1), &ALWAYS, NOW).unwrap().unwrap();
    assert_eq!(books.ledger.note_head(&key(1), &head, NOW).unwrap(), HeadSeen::Known);
    let old = Ledger::open(&path, node(1)).unwrap();
    assert_eq!(old.note_head(&key(1), &head, NOW).unwrap(), HeadSeen::NotOurs, "it lacks entries");
    for n in 0..4 {
        old.deposit(&peer(3), Msat(1), Hash::of(&[n]), NOW).unwrap();
    }
    assert_eq!(old.note_head(&key(1), &head, NOW).unwrap(), HeadSeen::NotOurs, "it has others");
}

#[test]
fn a_journal_that_is_not_what_was_signed_is_refused() {
    let refused = |sql: &str| {
        let books = books();
        fill(&books, 0..3);
        books.ledger.close_batch(&key(1), &ALWAYS, NOW).unwrap();
        fill(&books, 3..6);
        books.ledger.close_batch(&key(1), &ALWAYS, NOW).unwrap();
        books.ledger.verify().unwrap();
        books.sql("DROP TRIGGER entry_kept; DROP TRIGGER posting_kept");
        books.sql(sql);
        assert!(matches!(books.ledger.verify(), Err(LedgerError::Corrupt { .. })), "{sql}");
        Ledger::open(&books.path(), node(1)).map(drop)
    };
    let cut = "DELETE FROM posting WHERE seq = 5; DELETE FROM entry WHERE seq = 5;
               UPDATE balance SET msat = msat + 6 WHERE owner = 'own/outside';
               UPDATE balance SET msat = msat - 6 WHERE owner <> 'own/outside'";
    assert!(matches!(refused(cut), Err(LedgerError::Corrupt { seq: 4, .. })));
    // What lies further back is looked at by verify() alone.
    refused("UPDATE batch SET head = (SELECT head FROM batch WHERE size = 6) WHERE size = 3").unwrap();
    refused("UPDATE node SET hash = zeroblob(32) WHERE level = 1 AND place = 1").unwrap();
}

#[test]
fn heads_of_others_are_bounded() {
    let books = books();
    books.ledger.note_head(&key(1), &head(2, i64::MAX as u64, b"far ahead"), NOW).unwrap();
    for size in 1..=u64::from(MAX_HEADS) + 5 {
        assert_eq!(books.ledger.note_head(&key(1), &head(2, size, b"a"), NOW).unwrap(), HeadSeen::New);
    }
    assert_eq!(books.ledger.newest_head(&node(2)).unwrap().unwrap().payload().size, u64::from(MAX_HEADS) + 5);
    assert_eq!(books.ledger.note_head(&key(1), &head(2, 1, b"b"), NOW).unwrap(), HeadSeen::New, "forgotten");
    let last = u64::from(MAX_HEADS) + 5;
    assert!(matches!(books.ledger.note_head(&key(1), &head(2, last, b"b"), NOW).unwrap(), HeadSeen::Equivocation(_)));
}

#[test]
fn a_crowd_of_strangers_makes_way() {
    let books = books();
    books.ledger.observe(&node(2), true, 1000, NOW).unwrap();
    books.ledger.note_head(&key(1), &head(2, 5, b"kept"), NOW).unwrap();
    let crowd = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)";
    let name = "unhex(printf('%064x', i))";
    books.sql(&format!(
        "INSERT INTO seen_head (signer, size, head) {crowd} SELECT {name}, 5, x'' FROM n LIMIT {};
         INSERT INTO equivocation (signer, at_ms, proof) {crowd} SELECT {name}, i, x'' FROM n LIMIT {}",
        MAX_SIGNERS - 1,
        MAX_SIGNERS,
    ));
    books.ledger.note_head(&key(1), &head(3, 5, b"late"), NOW).unwrap();
    assert_eq!(books.ledger.note_head(&key(1), &head(2, 6, b"more"), NOW).unwrap(), HeadSeen::New);
    let found = books.ledger.note_head(&key(1), &head(2, 5, b"another"), NOW).unwrap();
    assert!(matches!(found, HeadSeen::Equivocation(_)));
    assert!(books.ledger.equivocation(&node(2)).unwrap().is_some());
    // Who is on record does not make way.
    books.sql(
        "INSERT INTO node_record SELECT signer, 1, 1, 0, 0, NULL, 0 FROM seen_head WHERE true
               GROUP BY signer ON CONFLICT DO NOTHING",
    );
    assert!(matches!(books.ledger.note_head(&key(1), &head(4, 5, b"x"), NOW), Err(LedgerError::Full(_))));
}

#[test]
fn wire_types_have_golden_bytes_and_bounds() {
    let head = head(1, 300, b"root");
    assert!(head.payload().size == 300 && head.as_bytes().len() <= 128 + 160);
    assert_eq!(head.digest().to_string(), "765c282f9eeb23713250c1818d1d9c5a173bd8026154c26a8127bf0c749b6046");
    let rebuttal = Rebuttal {
        cluster: cluster(),
        accuser: node(2),
        verdict: Hash::of(b"verdict"),
        proof: Hash::of(b"proof"),
        at_ms: NOW,
    };
    let rebuttal = Signed::sign(&key(1), rebuttal);
    assert_eq!(rebuttal.digest().to_string(), "97c605afbbbae9c9df166b8d4ccea4867b882f691961df94f97576028eb15e5d");
    assert_eq!(Signed::<Rebuttal>::decode(rebuttal.as_bytes()).unwrap(), rebuttal);
    for bad in [TreeHead { size: 0, ..*head.payload() }, TreeHead { size: u64::MAX, ..*head.payload() }] {
        assert!(Signed::<TreeHead>::decode(Signed::sign(&key(1), bad).as_bytes()).is_err());
    }
}

#[test]
fn an_entry_has_golden_bytes() {
    let books = books();
    fill(&books, 0..1);
    let entry = books.ledger.entry(0).unwrap().unwrap();
    assert_eq!(entry.prev.as_bytes(), node(1).as_bytes());
    assert_eq!(
        serde_json::to_string(&entry).unwrap(),
        format!(
            r#"{{"seq":0,"at_ms":{NOW},"kind":"deposit","reference":"{}","postings":{{"peer/{}/free":1,"own/outside/free":-1}},"prev":"{}"}}"#,
            Hash::of(&0_u64.to_le_bytes()),
            node(2),
            entry.prev
        )
    );
    assert_eq!(entry.hash().to_string(), "682a78125770dc1e129e1651a1b0cc6cb5b0b1aafa9aa58953f0bac5bff1f4e2");
}
