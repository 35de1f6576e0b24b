//! The auditor in `scripts`, which shares no code with the node, against a node with all kinds of evidence.

use std::path::{Path, PathBuf};
use std::process::Output;

use consortium_node::clock::wall_ms;
use consortium_protocol::cluster::ClusterId;
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::RootKey;
use consortium_protocol::merkle::{self, InclusionProof};
use consortium_protocol::wire::audit::Outcome;
use consortium_protocol::wire::ledger::{Equivocation, LeafProof, Rebuttal, TreeHead};

use crate::support::{Node, other, verdict};

const DAY_MS: u64 = 24 * 3600 * 1000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What the auditor says of a node; none where its Python packages are not installed (`scripts/python_env audit`).
async fn audited(node: &Node) -> Option<Output> {
    let python = root().join("target/venv/audit/bin/python");
    if !python.exists() {
        return None;
    }
    let script = root().join("scripts/audit_swarm.py");
    let base = format!("http://{}/v1", node.address);
    let run = move || std::process::Command::new(python).env_clear().arg(script).arg(base).output().unwrap();
    Some(tokio::task::spawn_blocking(run).await.unwrap())
}

/// Evidence of every kind and age, by and about nodes that are trusted, not trusted, banned and disgraced.
fn fill(node: &Node, now: u64) {
    let nodes: Vec<RootKey> = (10..22).map(other).collect();
    for peer in &nodes {
        node.ledger.observe(&peer.node_id(), true, 1000, now).unwrap();
    }
    let outcomes = [Outcome::Pass, Outcome::Pass, Outcome::Pass, Outcome::Inconclusive, Outcome::Withheld];
    // Whatever a fixed stream of bytes draws.
    let mut bytes = Hash::of(b"evidence");
    for round in 0..400_u32 {
        bytes = Hash::of(bytes.as_bytes());
        let drawn = bytes.as_bytes();
        let (by, about) = (usize::from(drawn[0]) % 13, usize::from(drawn[1]) % 12);
        let age = u64::from(u32::from_le_bytes([drawn[2], drawn[3], drawn[4], 0])) * 400 % (89 * DAY_MS);
        let outcome = match drawn[5] {
            0..8 => Outcome::Fraud,
            // The first nodes are honest, and come to be trusted.
            _ if about < 5 => Outcome::Pass,
            drawn => outcomes[usize::from(drawn) % outcomes.len()],
        };
        let auditor = nodes.get(by).unwrap_or(&node.key);
        let subject = if drawn[6] < 20 { node.key.node_id() } else { nodes[about].node_id() };
        let said = verdict(auditor, subject, u8::try_from(round % 200).unwrap(), outcome, now - age);
        // Some are refused, such as a word about oneself.
        let _refused = node.ledger.note_verdict(&said, now);
    }
    for job in 0..40 {
        for honest in &nodes[..4] {
            node.judge(honest, job, Outcome::Pass, now - u64::from(job) * DAY_MS - 12_345);
        }
    }
    let false_word = verdict(&nodes[7], nodes[0].node_id(), 250, Outcome::Fraud, now - 5000);
    node.ledger.note_verdict(&false_word, now).unwrap();
    node.ledger.rebut(&node.key, ClusterId(Hash::of(b"cluster")), &false_word, now).unwrap();
    let heard = Rebuttal {
        cluster: ClusterId(Hash::of(b"cluster")),
        accuser: nodes[8].node_id(),
        verdict: Hash::of(b"another"),
        proof: Hash::of(b"proof"),
        at_ms: now - DAY_MS,
    };
    node.ledger.note_rebuttal(&Signed::sign(&nodes[1], heard), now).unwrap();
    let heads = |n: usize, size| {
        let head = |root: &[u8]| Signed::sign(&nodes[n], TreeHead { size, root: Hash::of(root), at_ms: 7 });
        Equivocation::Roots { a: head(b"one"), b: head(b"two") }
    };
    // Two journals, long ago, and now and again; and one of two leaves.
    node.ledger.note_equivocation(&node.key, &heads(6, 3), now - 30 * DAY_MS).unwrap();
    node.ledger.note_equivocation(&node.key, &heads(11, 3), now - 3 * DAY_MS).unwrap();
    node.ledger.note_equivocation(&node.key, &heads(11, 4), now - 1000).unwrap();
    node.ledger.note_equivocation(&node.key, &two_leaves(&nodes[5]), now - 80 * DAY_MS).unwrap();
    // A ban of the past that grew, and one that holds.
    for age in [60 * DAY_MS, 40 * DAY_MS, 20 * DAY_MS] {
        node.judge(&nodes[9], u8::try_from(age / DAY_MS).unwrap(), Outcome::Fraud, now - age);
    }
    node.judge(&nodes[10], 251, Outcome::Fraud, now - 60_000);
}

/// One place in a journal with two leaves, under heads of different sizes.
fn two_leaves(key: &RootKey) -> Equivocation {
    let prove = |size: u8, what: u8| {
        let leaves: Vec<Hash> = (0..size).map(|n| merkle::leaf_hash(&[n, what])).collect();
        let head = TreeHead { size: u64::from(size), root: merkle::root(&leaves), at_ms: 9 };
        let proof = InclusionProof::of(&leaves, 2).unwrap();
        LeafProof { head: Signed::sign(key, head), leaf: leaves[2], proof }
    };
    Equivocation::Leaves { a: prove(5, 1), b: prove(11, 2) }
}

#[tokio::test]
async fn an_auditor_from_outside_agrees() {
    let node = Node::start().await;
    fill(&node, wall_ms());
    for n in 0..7 {
        node.deposit(n);
    }
    node.close();
    for n in 7..52 {
        node.deposit(n);
    }
    node.close();
    node.deposit(52);
    let Some(output) = audited(&node).await else {
        eprintln!("there is no target/venv/audit (scripts/python_env audit): the auditor from outside was left out");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("12 records") && text.contains("0 nodes disagree"), "{text}");
}

#[tokio::test]
async fn an_auditor_from_outside_sees_another_number() {
    let node = Node::start().await;
    let now = wall_ms();
    fill(&node, now);
    // A statement whose row in the database was changed, so that the score is another than what was signed makes it.
    let digest = {
        let page = node.ledger.evidence(Some(&other(12).node_id()), None, 200).unwrap();
        let own = page.evidence.iter().find(|piece| piece.evidence.signer == node.key.node_id()).unwrap();
        own.evidence.digest
    };
    node.alter("UPDATE evidence SET finding = 'withheld' WHERE digest = ?1", &digest);
    let Some(output) = audited(&node).await else { return };
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("DISAGREES: evidence is misquoted"), "{text}");
}
