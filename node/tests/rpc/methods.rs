//! What each method answers.

use std::collections::BTreeSet;

use consortium_ledger::accounts::{Book, Owner};
use consortium_node::clock::wall_ms;
use consortium_node::storage::JobReceipts;
use consortium_protocol::cluster::ClusterId;
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::merkle;
use consortium_protocol::merkle::{ConsistencyProof, InclusionProof};
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::audit::{Outcome, StageReceipt, Verdict};
use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::wire::job::{JobId, Sampling};
use consortium_protocol::wire::ledger::TreeHead;
use consortium_protocol::wire::mandate::Mandate;
use consortium_protocol::wire::pipeline::{Hop, SessionOpen};
use serde_json::{Value, json};

use crate::support::{CLASS, Node, other, parsed};

#[tokio::test]
async fn reputation_comes_in_pages_with_its_evidence() {
    let node = Node::start().await;
    let now = wall_ms();
    for n in 2..9 {
        node.judge(&other(n), n, Outcome::Pass, now - 1000);
    }
    let cheat = other(20);
    let accusation = node.judge(&cheat, 20, Outcome::Fraud, now - 500);

    let mut seen = Vec::new();
    let mut params = json!({"limit": 3});
    loop {
        let page = node.result("reputation_list", params.clone()).await;
        assert_eq!(page["judge"], json!(node.key.node_id()));
        assert!(page["nodes"].as_array().unwrap().len() <= 3);
        seen.extend(page["nodes"].as_array().unwrap().iter().cloned());
        if page["next"].is_null() {
            break;
        }
        params = json!({"limit": 3, "after": page["next"]});
    }
    let peers: BTreeSet<&str> = seen.iter().map(|node| node["peer_id"].as_str().unwrap()).collect();
    assert_eq!((seen.len(), peers.len()), (8, 8));
    for record in &seen {
        for field in
            ["peer_id", "failed_audits", "successful_audits", "score", "evidence_root", "banned_until_ms", "audit_rate"]
        {
            assert!(record.get(field).is_some(), "{field} in {record}");
        }
        let cheated = record["peer_id"] == json!(cheat.node_id());
        assert_eq!(record["failed_audits"], json!(u8::from(cheated)));
        assert_eq!(record["score"].as_f64().unwrap() == 0.0, cheated);
        assert_eq!(record["banned_until_ms"].is_u64(), cheated);
    }

    let one = node.result("reputation_get", json!({"peer_id": cheat.node_id()})).await;
    let listed = seen.iter().find(|record| record["peer_id"] == one["peer_id"]).unwrap();
    assert_eq!(one["evidence_root"], listed["evidence_root"]);
    let (code, message) = node.error("reputation_get", json!({"peer_id": other(99).node_id()})).await;
    assert_eq!(code, -32001);
    assert!(message.contains("nothing is known"), "{message}");

    let evidence = node.result("reputation_evidence", json!([cheat.node_id()])).await;
    let piece = &evidence["evidence"][0];
    let bytes = hex::decode(piece["signed"].as_str().unwrap()).unwrap();
    assert_eq!(Signed::<Verdict>::decode(&bytes).unwrap(), accusation);
    assert_eq!(piece["digest"], json!(accusation.digest()));
    assert_eq!(piece["finding"], "fraud");
}

#[tokio::test]
async fn verdicts_come_newest_first() {
    let node = Node::start().await;
    let now = wall_ms();
    for n in 1..=5 {
        node.judge(&other(2), n, Outcome::Pass, now - 1000 + u64::from(n));
    }
    let newest = node.judge(&other(3), 9, Outcome::Fraud, now);
    let mut params = json!({"limit": 4});
    let first = node.result("audit_list", params.clone()).await;
    params["after"] = first["next"].clone();
    let second = node.result("audit_list", params).await;
    assert!(second["next"].is_null());
    let both: Vec<&Value> =
        first["audits"].as_array().unwrap().iter().chain(second["audits"].as_array().unwrap()).collect();
    let times: Vec<u64> = both.iter().map(|audit| audit["at_ms"].as_u64().unwrap()).collect();
    assert_eq!(times.len(), 6);
    assert!(times.is_sorted_by(|a, b| a > b), "{times:?}");
    assert_eq!(both[0]["digest"], json!(newest.digest()));
    assert_eq!(both[0]["outcome"], "fraud");
    let about = node.result("audit_list", json!({"peer_id": other(3).node_id()})).await;
    assert_eq!(about["audits"].as_array().unwrap().len(), 1);
    // A page is asked for by its place: what ended the page before may be gone.
    node.alter("DELETE FROM evidence WHERE digest = ?1", &parsed(&first["audits"][3]["digest"]));
    let again = node.result("audit_list", json!({"after": first["next"], "limit": 4})).await;
    assert_eq!(again, second);
    assert_eq!(node.error("audit_list", json!({"after": Hash::of(b"gone")})).await.0, -32602);

    let detail = node.result("audit_get", json!({"digest": newest.digest()})).await;
    assert_eq!(detail["signed"], json!(hex::encode(newest.as_bytes())));
    assert_eq!(detail["fraud_proof"]["kept"], false);
    assert_eq!(node.error("audit_get", json!({"digest": Hash::of(b"none")})).await.0, -32001);

    let proof = Hash::of(b"proof");
    assert_eq!(node.proofs.keep(b"proof").unwrap(), proof);
    let kept = node.result("fraud_proof", json!({"digest": proof})).await;
    assert_eq!((&kept["kept"], &kept["bytes"]), (&json!(true), &json!(5)));
    assert_eq!(kept["accusers"], json!([node.key.node_id()]));
    assert!(kept["file"].as_str().unwrap().ends_with(&format!("{proof}.proof")));
    assert_eq!(node.error("fraud_proof", json!({"digest": Hash::of(b"none")})).await.0, -32001);
}

#[tokio::test]
async fn receipts_of_a_job() {
    let node = Node::start().await;
    let (master, worker) = (other(2), other(3));
    let open = SessionOpen {
        cluster: ClusterId(Hash::of(b"cluster")),
        term: 3,
        job: JobId([7; 16]),
        attempt: 1,
        model: Hash::of(b"model"),
        driver: master.node_id(),
        route: vec![Hop { node: worker.node_id(), range: LayerRange { first: 0, last: 3 } }],
        prices: vec![Msat(1)],
        master_fee: Msat(0),
        sampling: Sampling::default(),
        prompt_len: 1,
        max_positions: 8,
        payer: node.key.node_id(),
        challenge: Hash::of(b"challenge"),
        mandate: Signed::sign(
            &node.key,
            Mandate {
                cluster: ClusterId(Hash::of(b"cluster")),
                job: JobId([7; 16]),
                master: master.node_id(),
                model: Hash::of(b"model"),
                positions: 10_000,
                position_cost: Msat(1000),
                challenge: Hash::of(b"challenge"),
                until_ms: 1 << 60,
            },
        ),
    };
    let order = Signed::sign(&master, open.clone());
    let receipt = StageReceipt {
        cluster: open.cluster,
        term: 3,
        job: open.job,
        attempt: 1,
        order: order.digest(),
        model: open.model,
        range: open.route[0].range,
        stage: 0,
        class: CLASS,
        positions: 4,
        inputs: Hash::of(b"in"),
        outputs: Hash::of(b"out"),
        grid: Hash::of(b"grid"),
        upstream: None,
        challenge: open.challenge,
    };
    let receipt = Signed::sign(&worker, receipt);
    let kept = JobReceipts { at_ms: 5, order: order.clone(), chain: vec![receipt.clone()] };
    node.storage.save_receipts(&kept).await.unwrap();
    let shown = node.result("job_receipts", json!({"job": open.job})).await;
    assert_eq!(shown["order"]["signed"], json!(hex::encode(order.as_bytes())));
    assert_eq!(shown["order"]["order"]["payer"], json!(node.key.node_id()));
    assert_eq!(shown["order"]["order"]["mandate"]["signer"], json!(node.key.node_id()));
    assert_eq!(shown["order"]["order"]["mandate"]["mandate"]["master"], json!(master.node_id()));
    assert_eq!(shown["receipts"][0]["signer"], json!(worker.node_id()));
    assert_eq!(shown["receipts"][0]["signed"], json!(hex::encode(receipt.as_bytes())));
    assert_eq!(node.error("job_receipts", json!({"job": "00".repeat(16)})).await.0, -32001);
    assert_eq!(node.error("job_receipts", json!({"job": "00"})).await.0, -32602);
}

#[tokio::test]
async fn the_journal_is_proved() {
    let node = Node::start().await;
    let empty = node.result("ledger_head", json!({})).await;
    assert_eq!((&empty["entries"], &empty["head"]), (&json!(0), &Value::Null));
    assert_eq!(node.error("ledger_proof", json!({"seq": 0})).await.0, -32001);
    (0..5).for_each(|n| node.deposit(n));
    let old = node.close();
    (5..12).for_each(|n| node.deposit(n));
    let new = node.close();

    let head = node.result("ledger_head", json!(null)).await;
    assert_eq!((&head["entries"], &head["head"]["size"]), (&json!(12), &json!(12)));
    let bytes = hex::decode(head["head"]["signed"].as_str().unwrap()).unwrap();
    assert_eq!(Signed::<TreeHead>::decode(&bytes).unwrap(), new);

    let entry = node.result("ledger_proof", json!({"seq": 7})).await;
    let proof: InclusionProof = parsed(&entry["proof"]);
    assert_eq!(proof.root(&parsed(&entry["leaf"])), Some(new.payload().root));
    let hash: Hash = parsed(&entry["hash"]);
    assert_eq!(merkle::leaf_hash(hash.as_bytes()), parsed::<Hash>(&entry["leaf"]));
    let peer = other(2).node_id();
    assert_eq!(entry["entry"]["postings"][format!("peer/{peer}/free")], 17);

    let leaf = node.result("ledger_proof", json!({"index": 2, "size": 5})).await;
    let proof: InclusionProof = parsed(&leaf["proof"]);
    assert_eq!(proof.root(&parsed(&leaf["leaf"])), Some(old.payload().root));
    assert_eq!(leaf["head"]["root"], json!(old.payload().root));

    let grown = node.result("ledger_consistency", json!([5, 12])).await;
    let proof: ConsistencyProof = parsed(&grown["proof"]);
    assert!(proof.holds(&old.payload().root, &new.payload().root));
    assert_eq!(grown["old_head"]["root"], json!(old.payload().root));

    for wrong in
        [json!({"seq": 1, "index": 2, "size": 3}), json!({"index": 1}), json!({}), json!({"index": 9, "size": 99})]
    {
        assert_eq!(node.error("ledger_proof", wrong).await.0, -32602);
    }
    assert_eq!(node.error("ledger_consistency", json!({"old_size": 12, "new_size": 13})).await.0, -32602);
    assert_eq!(node.error("ledger_consistency", json!({"old_size": 0, "new_size": 5})).await.0, -32602);
}

#[tokio::test]
async fn accounts_are_for_this_machine() {
    let node = Node::start().await;
    (0..4).for_each(|n| node.deposit(n));
    let first = node.result("ledger_accounts", json!({"limit": 1})).await;
    assert_eq!(first["accounts"][0]["owner"], json!(Owner::Own(Book::Outside)));
    let second = node.result("ledger_accounts", json!({"limit": 1, "after": first["next"]})).await;
    assert!(second["next"].is_null());
    let owner = &second["accounts"][0]["owner"];
    assert_eq!(second["accounts"][0]["balance"]["free"], 46);
    let lines = node.result("ledger_statement", json!({"owner": owner, "limit": 3})).await;
    assert_eq!((lines["lines"].as_array().unwrap().len(), &lines["next"]), (3, &json!(2)));
    let rest = node.result("ledger_statement", json!({"owner": owner, "limit": 3, "after": 2})).await;
    assert_eq!((&rest["opening"]["free"], &rest["closing"]["free"]), (&json!(33), &json!(46)));

    let from_elsewhere = "192.0.2.9".parse().unwrap();
    for (method, params) in [
        ("ledger_accounts", json!({})),
        ("ledger_statement", json!({"owner": owner})),
        ("ledger_proof", json!({"seq": 0})),
        ("tabs", json!({})),
        ("job_receipts", json!({"job": "00".repeat(16)})),
        ("audit_order", json!({"job": "00".repeat(16)})),
        ("audit_opening", json!({"job": "00".repeat(16), "stage": 0})),
        ("audit_submit", json!({"signed": "00"})),
    ] {
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        let consortium_node::rpc::Answer::Document(answer) = node.rpc.answer(&call, from_elsewhere).await else {
            panic!("no answer")
        };
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["error"]["code"], -32002, "{method}: {answer}");
    }
}

#[tokio::test]
async fn statuses_are_the_halves_of_the_document() {
    let node = Node::start().await;
    node.status.send_modify(|status| {
        status.peer_id = "me".to_owned();
        status.term = 7;
    });
    assert_eq!(node.result("node_status", json!({})).await["peer_id"], "me");
    let cluster = node.result("cluster_status", json!([])).await;
    assert_eq!((&cluster["term"], &cluster["members"]), (&json!(7), &json!([])));
}
