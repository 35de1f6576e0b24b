//! Audits of a node's jobs at its owner's word, and by an auditor from outside with the binary and the model.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use consortium_node::audit::proof::Proof;
use consortium_node::audit::{Heard, Record, Rows, Spool};
use consortium_node::clock::wall_ms;
use consortium_node::inference::audit::classes::own_class;
use consortium_node::library::Library;
use consortium_node::swarm::SwarmEvent;
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::{NodeId, RootKey};
use consortium_protocol::msat::Msat;
use consortium_protocol::wire;
use consortium_protocol::wire::audit::{AuditOrder, Nonce, Outcome, StageReceipt, Verdict};
use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::wire::job::{JobId, Sampling};
use consortium_protocol::wire::mandate::Mandate;
use consortium_protocol::wire::pipeline::{Hop, SessionOpen};
use consortium_protocol::wire::rpc::{Refusal, RefusalCode, Request, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::auditing::{cluster, swarm_of};
use crate::support::{Node, PATIENCE, other};

const JOB: JobId = JobId([7; 16]);
const NONCE: Nonce = Nonce([3; 32]);
const WIDTH: u32 = 160;
/// Enough that what the stage shows does not fit on one page.
const ROWS: u32 = 6000;

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../training/models/consortium-tiny")
}

/// A stage that signs for numbers it made up, and shows them to whoever may see them.
struct Cheat {
    key: RootKey,
    order: AuditOrder,
    /// Where what it shows is kept.
    _kept: tempfile::TempDir,
}

/// A payer with the model (or without), and a job in which the first of two stages cheated.
async fn cheated(library: Library, rows: u32) -> (Node, Cheat) {
    let node = Node::start_full(false, library, Vec::new()).await;
    let cheat = cheat(&node, rows).await;
    (node, cheat)
}

/// Settles a job of `node` in which the first of two stages cheated.
async fn cheat(node: &Node, rows: u32) -> Cheat {
    let key = other(2);
    let address = node.auditing.swarm.listening().wait_for(|all| !all.is_empty()).await.unwrap()[0].clone();
    let (swarm, mut events, [openings]) = swarm_of(&key, vec![address], [wire::OPENING]);
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    let kept = tempfile::tempdir().unwrap();
    let spool = Spool::open(kept.path()).unwrap();
    tokio::spawn(consortium_node::audit::opening::serve(swarm, spool.clone(), openings));
    meet(node, &key).await;
    node.ledger.observe(&key.node_id(), true, 10, wall_ms()).unwrap();

    let model = Library::open(&[tiny()]).unwrap().iter().next().unwrap().0.digest;
    let open = SessionOpen {
        cluster: cluster(),
        term: 3,
        job: JOB,
        attempt: 1,
        model,
        driver: other(4).node_id(),
        route: vec![
            Hop { node: key.node_id(), range: LayerRange { first: 0, last: 0 } },
            Hop { node: node.key.node_id(), range: LayerRange { first: 1, last: 9 } },
        ],
        prices: vec![Msat(1), Msat(1)],
        master_fee: Msat(0),
        sampling: Sampling::default(),
        prompt_len: rows,
        max_positions: rows + 8,
        payer: node.key.node_id(),
        challenge: NONCE.commitment(),
        mandate: Signed::sign(
            &node.key,
            Mandate {
                cluster: cluster(),
                job: JOB,
                master: other(4).node_id(),
                model,
                positions: 10_000,
                position_cost: Msat(1000),
                challenge: NONCE.commitment(),
                until_ms: 1 << 60,
            },
        ),
    };
    let order = Signed::sign(&other(4), open);
    let mut record = Record::new(order.clone(), 0, own_class(), WIDTH, &spool);
    let tokens: Vec<u32> = (0..rows).map(|row| 5 + row % 500).collect();
    let noise = (0..rows * WIDTH).flat_map(|n| ((n % 977) as f32 / 977.0 - 0.5).to_le_bytes());
    let output: Vec<u8> = noise.collect();
    record.add(&Rows { tokens: &tokens, input: None, output: &output, drawn: None }).unwrap();
    let first = record.seal(&key, &[]).unwrap();
    let said = first.payload();
    let second = StageReceipt {
        range: LayerRange { first: 1, last: 9 },
        stage: 1,
        inputs: said.outputs,
        outputs: Hash::of(b"drawn"),
        upstream: Some(first.digest()),
        ..said.clone()
    };
    let chain = vec![first, Signed::sign(&node.key, second)];
    let order = AuditOrder { order, chain, nonce: NONCE };
    node.auditing.settled.note(order.clone());
    Cheat { key, order, _kept: kept }
}

/// Waits until the node knows another.
async fn meet(node: &Node, key: &RootKey) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !node.auditing.swarm.peers().await.unwrap().iter().any(|(peer, _)| *peer == key.node_id()) {
        assert!(tokio::time::Instant::now() < deadline, "the two do not meet");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn model() -> Library {
    Library::open(&[tiny()]).unwrap()
}

/// What `consortium-node audit run` says of the job's first stage.
async fn run(node: &Node, home: &Path, more: &[&str]) -> Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_consortium-node"));
    command.env_clear().current_dir(home).arg("--data-dir").arg(home.join("outsider"));
    command.args(["audit", "run", &JOB.to_string(), "--stage", "0", "--rpc"]);
    command.arg(format!("http://{}/rpc", node.address)).arg("--model").arg(tiny()).args(more);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test]
async fn an_outsider_convicts_a_cheat_and_the_node_sees_it_too() {
    let (node, cheat) = cheated(model(), 70).await;
    let home = tempfile::tempdir().unwrap();
    let output = run(&node, home.path(), &[]).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(3), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("block 2, rows 64 to 69: off by") && text.contains("which no honest computation"), "{text}");
    assert!(text.contains("FRAUD") && text.contains(&cheat.key.node_id().to_string()), "{text}");
    // So far it is the outsider's affair.
    let standing = json!({"peer_id": cheat.key.node_id()});
    assert_eq!(node.result("reputation_get", standing.clone()).await["bans"], 0);

    // The file stands alone.
    let file = home.path().join(format!("fraud-{JOB:.8}-stage-0.proof"));
    let mut verify = std::process::Command::new(env!("CARGO_BIN_EXE_consortium-node"));
    verify.env_clear().args(["audit", "verify"]).arg(&file).arg("--model").arg(tiny());
    verify.arg("--data-dir").arg(home.path().join("elsewhere"));
    let verified = tokio::task::spawn_blocking(move || verify.output().unwrap()).await.unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));

    // Handed in, it is checked, and counts as what the node itself found.
    let output = run(&node, home.path(), &["--submit", "--json"]).await;
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&told[0]["outcome"], &told[0]["counted"]), (&json!("fraud"), &json!(true)), "{told}");
    assert_eq!(told[0]["blocks"].as_array().unwrap().len(), 3);
    let convicted = node.result("reputation_get", standing.clone()).await;
    assert_eq!((&convicted["bans"], &convicted["score"]), (&json!(1), &json!(0.0)));
    let audits = node.result("audit_list", standing).await;
    assert_eq!(audits["audits"][0]["auditor"], json!(node.key.node_id()));
    let kept = node.result("fraud_proof", json!({"digest": told[0]["proof"]})).await;
    assert_eq!(kept["kept"], true);
}

#[tokio::test]
async fn words_of_outsiders_weigh_nothing_by_themselves() {
    let (node, cheat) = cheated(model(), 40).await;
    let receipt = &cheat.order.chain[0];
    let said = receipt.payload();
    let word = Verdict {
        cluster: said.cluster,
        auditee: receipt.signer(),
        job: JOB,
        attempt: 1,
        stage: 0,
        receipt: receipt.digest(),
        outcome: Outcome::Withheld,
        blocks: 0,
        exact: 0,
        class: own_class(),
        proof: None,
        at_ms: wall_ms(),
    };
    let invented = Verdict { outcome: Outcome::Fraud, proof: Some(Hash::of(b"invented")), ..word.clone() };
    let shown = node.result("audit_opening", json!({"job": JOB, "stage": 0})).await;
    let digest: Hash = serde_json::from_value(shown["digest"].clone()).unwrap();
    let fraud = Verdict { proof: Some(digest), ..invented.clone() };
    let of_another = Verdict { receipt: Hash::of(b"another"), ..fraud.clone() };
    let submit = async |key: &RootKey, verdict: &Verdict| {
        let signed = hex::encode(Signed::sign(key, verdict.clone()).as_bytes());
        node.result("audit_submit", json!({"signed": signed})).await
    };
    for (key, verdict, why) in [
        (other(50), &word, "with a fraud proof alone"),
        (other(50), &invented, "not what the stage showed"),
        (other(50), &of_another, "does not prove it"),
        (other(2), &fraud, "by whom it is about"),
        (other(1), &fraud, "by the node itself"),
    ] {
        let weighed = submit(&key, verdict).await;
        assert_eq!(weighed["counted"], false);
        assert!(weighed["why"].as_str().unwrap().contains(why), "{weighed}");
    }
    assert!(node.ledger.evidence(None, None, 10).unwrap().evidence.is_empty(), "nothing is kept of them");
    assert!(node.ledger.node_record(&other(50).node_id()).unwrap().is_none(), "nor of who said it");
    assert_eq!(submit(&other(50), &fraud).await["counted"], true);
    // Said again, it moves nothing: the ban lasts no longer.
    let kept = node.ledger.evidence(None, None, 10).unwrap();
    assert_eq!(submit(&other(51), &fraud).await["counted"], true);
    assert_eq!(node.ledger.evidence(None, None, 10).unwrap(), kept);
    let (code, message) = node.error("audit_submit", json!({"signed": "00"})).await;
    assert_eq!(code, -32602, "{message}");
    assert_eq!(node.error("audit_submit", json!({"signed": "00".repeat(5000)})).await.0, -32602);
}

#[tokio::test]
async fn what_a_stage_shows_comes_in_pages() {
    let (node, cheat) = cheated(Library::default(), ROWS).await;
    let (mut whole, mut offset, mut pages) = (Vec::new(), json!(0), 0);
    while !offset.is_null() {
        let page = node.result("audit_opening", json!({"job": JOB, "stage": 0, "offset": offset})).await;
        whole.extend(hex::decode(page["data"].as_str().unwrap()).unwrap());
        assert_eq!((&page["stages"], &page["auditee"]), (&json!(2), &json!(cheat.key.node_id())));
        assert!(page["digest"].is_string());
        (offset, pages) = (page["next"].clone(), pages + 1);
        if offset.is_null() {
            assert_eq!((&page["bytes"], &page["digest"]), (&json!(whole.len()), &json!(Hash::of(&whole))));
        }
    }
    assert_eq!(pages, 2);
    let proof = Proof::decode(&whole).await.unwrap();
    assert_eq!(proof.order.chain, cheat.order.chain[..1]);
    assert_eq!(proof.opened.outputs.len(), (ROWS * WIDTH * 4) as usize);
    for (params, code, word) in [
        (json!({"job": JOB, "stage": 0, "offset": whole.len()}), -32602, "offset"),
        (json!({"job": JOB, "stage": 1}), -32001, "by this node itself"),
        (json!({"job": JOB, "stage": 2}), -32001, "no stage 2"),
        (json!({"job": "00".repeat(16), "stage": 0}), -32001, "no job"),
    ] {
        let (found, message) = node.error("audit_opening", params).await;
        assert!(found == code && message.contains(word), "{found} {message}");
    }
}

#[tokio::test]
async fn the_owner_has_a_job_audited() {
    let (node, cheat) = cheated(model(), 40).await;
    let ordered = node.result("audit_order", json!({"job": JOB})).await;
    let audits = ordered["audits"].as_array().unwrap();
    assert_eq!(audits.len(), 1, "nobody audits itself: {ordered}");
    assert_eq!((&audits[0]["auditee"], &audits[0]["verdict"]), (&json!(cheat.key.node_id()), &Value::Null));
    let about = json!({"peer_id": cheat.key.node_id()});
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let verdict = loop {
        let page = node.result("audit_list", about.clone()).await;
        if let Some(verdict) = page["audits"].get(0) {
            break verdict.clone();
        }
        assert!(tokio::time::Instant::now() < deadline, "there is no verdict");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!((&verdict["outcome"], &verdict["receipt"]), (&json!("fraud"), &audits[0]["receipt"]));
    // There is a verdict now, and it is shown in place of another audit.
    let again = node.result("audit_order", json!({"job": JOB, "stage": 0})).await;
    assert_eq!(again["audits"][0]["verdict"], verdict);
    assert_eq!(node.error("audit_order", json!({"job": JOB, "stage": 1})).await.0, -32001);
    assert_eq!(node.error("audit_order", json!({"job": "00".repeat(16)})).await.0, -32001);
}

/// An auditor that takes orders or refuses them; tells which it was asked for.
async fn auditor(node: &Node, key: &RootKey, takes: bool) -> mpsc::Receiver<AuditOrder> {
    let address = node.auditing.swarm.listening().wait_for(|all| !all.is_empty()).await.unwrap()[0].clone();
    let (swarm, mut events, []) = swarm_of(key, vec![address], []);
    let (asked, orders) = mpsc::channel(8);
    tokio::spawn(async move {
        let _kept = swarm;
        while let Some(event) = events.recv().await {
            if let SwarmEvent::Request { request: Request::Audit(order), reply, .. } = event {
                let refusal = || Response::Refused(Refusal::new(RefusalCode::Busy, "not now"));
                reply.send(if takes { Response::Ack } else { refusal() });
                asked.send(*order).await.unwrap();
            }
        }
    });
    meet(node, key).await;
    orders
}

#[tokio::test]
async fn auditors_that_were_named_come_before_the_node_itself() {
    let (refuses, takes, absent, stranger) = (other(60), other(61), other(62), other(63));
    // The auditee is among them, and is not asked to audit itself.
    let named = [&refuses, &takes, &absent, &other(2)].map(RootKey::node_id).to_vec();
    let node = Node::start_full(false, model(), named).await;
    let (_refused, mut taken) = (auditor(&node, &refuses, false).await, auditor(&node, &takes, true).await);
    let cheat = cheat(&node, 40).await;
    node.result("audit_order", json!({"job": JOB, "stage": 0})).await;
    let order = tokio::time::timeout(PATIENCE, taken.recv()).await.unwrap().unwrap();
    assert_eq!((&order.chain[..], order.nonce), (&cheat.order.chain[..1], NONCE));

    // Its word counts though it is no member; another's does not.
    let receipt = &cheat.order.chain[0];
    let word = |key: &RootKey| {
        let said = receipt.payload();
        let word = Verdict {
            cluster: said.cluster,
            auditee: receipt.signer(),
            job: JOB,
            attempt: 1,
            stage: 0,
            receipt: receipt.digest(),
            outcome: Outcome::Withheld,
            blocks: 0,
            exact: 0,
            class: own_class(),
            proof: None,
            at_ms: wall_ms(),
        };
        Signed::sign(key, word)
    };
    assert!(node.auditing.audits.heard(Heard::Verdict(word(&stranger))));
    assert!(node.auditing.audits.heard(Heard::Verdict(word(&refuses))));
    assert!(node.auditing.audits.heard(Heard::Verdict(word(&takes))));
    assert_eq!(judges(&node).await, [takes.node_id()], "and the node itself has not audited");
}

#[tokio::test]
async fn the_node_audits_itself_when_nobody_that_was_named_will() {
    let (refuses, absent) = (other(60), other(62));
    let named = vec![absent.node_id(), refuses.node_id()];
    let node = Node::start_full(false, model(), named).await;
    let mut refused = auditor(&node, &refuses, false).await;
    let cheat = cheat(&node, 40).await;
    node.result("audit_order", json!({"job": JOB, "stage": 0})).await;
    let order = tokio::time::timeout(PATIENCE, refused.recv()).await.unwrap().unwrap();
    assert_eq!(order.chain, cheat.order.chain[..1]);
    assert_eq!(judges(&node).await, [node.key.node_id()]);
}

/// Whose verdicts are kept, once there are any.
async fn judges(node: &Node) -> Vec<NodeId> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let kept = node.ledger.verdicts(None, None, 10).unwrap().verdicts;
        if !kept.is_empty() {
            return kept.iter().map(|view| view.evidence.signer).collect();
        }
        assert!(tokio::time::Instant::now() < deadline, "no verdict is kept");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
