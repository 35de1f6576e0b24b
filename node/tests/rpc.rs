//! `/rpc` over a real socket and real databases.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use consortium_ledger::accounts::{Book, Owner};
use consortium_ledger::api_keys::ApiKeys;
use consortium_ledger::batches::BatchPolicy;
use consortium_ledger::ledger::Ledger;
use consortium_ledger::reputation::AuditPolicy;
use consortium_node::audit::proof::Proofs;
use consortium_node::clock::wall_ms;
use consortium_node::gateway::Gateway;
use consortium_node::http::{HttpApp, serve};
use consortium_node::rpc::{Rpc, Sources, call, limit};
use consortium_node::status::NodeStatus;
use consortium_node::storage::{JobReceipts, Storage};
use consortium_protocol::cluster::ClusterId;
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::{NodeId, RootKey};
use consortium_protocol::merkle::{ConsistencyProof, InclusionProof};
use consortium_protocol::wire::audit::{Compute, KernelFamily, NumericClass, Outcome, StageReceipt, Verdict};
use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::wire::job::{JobId, Sampling};
use consortium_protocol::wire::ledger::TreeHead;
use consortium_protocol::wire::pipeline::{Hop, SessionOpen};
use consortium_protocol::{Msat, merkle};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Far above what any step takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const CLASS: NumericClass = NumericClass { compute: Compute::F32, kernels: KernelFamily::Invariant, engine: 1 };

struct Node {
    address: SocketAddr,
    client: reqwest::Client,
    key: RootKey,
    ledger: Ledger,
    storage: Storage,
    proofs: Proofs,
    status: watch::Sender<NodeStatus>,
    rpc: Rpc,
    keys: Arc<ApiKeys>,
    shutdown: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn other(n: u8) -> RootKey {
    RootKey::from_seed([n; 32])
}

impl Node {
    async fn start() -> Self {
        Self::start_with(false).await
    }

    async fn start_with(require_key: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = other(1);
        let keys = Arc::new(ApiKeys::open(&dir.path().join("ledger.db")).unwrap());
        let ledger = Ledger::open(&dir.path().join("ledger.db"), key.node_id()).unwrap();
        let storage = Storage::open(&dir.path().join("node.db")).unwrap();
        let proofs = Proofs::new(dir.path());
        let (status, reader) = watch::channel(NodeStatus::default());
        let rpc = Rpc::new(Sources {
            ledger: ledger.clone(),
            policy: AuditPolicy::default(),
            storage: storage.clone(),
            proofs: proofs.clone(),
            status: reader.clone(),
        });
        let (gateway, _jobs) = Gateway::channel(1);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let app = HttpApp { gateway, status: reader, rpc: rpc.clone(), keys: Arc::clone(&keys), require_key };
        tokio::spawn(serve(listener, app, shutdown.clone()));
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Self { address, client, key, ledger, storage, proofs, status, rpc, keys, shutdown, _dir: dir }
    }

    async fn post(&self, body: impl Into<String>) -> Response {
        let call = self.client.post(format!("http://{}/rpc", self.address)).header("content-type", "application/json");
        call.body(body.into()).send().await.unwrap()
    }

    async fn json(&self, body: &Value) -> Value {
        let response = self.post(body.to_string()).await;
        assert_eq!(response.status(), StatusCode::OK);
        response.json().await.unwrap()
    }

    async fn call(&self, method: &str, params: Value) -> Value {
        let body = json!({"jsonrpc": "2.0", "id": "an id", "method": method, "params": params});
        let answer = self.json(&body).await;
        assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), &json!("an id")), "{answer}");
        answer
    }

    async fn result(&self, method: &str, params: Value) -> Value {
        let mut answer = self.call(method, params).await;
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].take()
    }

    async fn error(&self, method: &str, params: Value) -> (i64, String) {
        let answer = self.call(method, params).await;
        assert!(answer.get("result").is_none(), "{method}: {answer}");
        (answer["error"]["code"].as_i64().unwrap(), answer["error"]["message"].as_str().unwrap().to_owned())
    }

    /// A verdict of this node about another.
    fn judge(&self, auditee: &RootKey, job: u8, outcome: Outcome, at_ms: u64) -> Signed<Verdict> {
        let verdict = verdict(&self.key, auditee.node_id(), job, outcome, at_ms);
        self.ledger.observe(&auditee.node_id(), true, 10, at_ms).unwrap();
        self.ledger.note_verdict(&verdict, at_ms).unwrap();
        verdict
    }

    fn deposit(&self, n: u64) {
        let reference = Hash::of(&n.to_le_bytes());
        self.ledger.deposit(&Owner::Peer(other(2).node_id()), Msat(10 + n), reference, 1000 + n).unwrap();
    }

    fn close(&self) -> Signed<TreeHead> {
        let at_once = BatchPolicy { entries: 1, every_ms: 0 };
        self.ledger.close_batch(&self.key, &at_once, wall_ms()).unwrap().unwrap()
    }
}

fn verdict(auditor: &RootKey, auditee: NodeId, job: u8, outcome: Outcome, at_ms: u64) -> Signed<Verdict> {
    let said = Verdict {
        cluster: ClusterId(Hash::of(b"cluster")),
        auditee,
        job: JobId([job; 16]),
        attempt: 1,
        stage: 0,
        receipt: Hash::of(&[job]),
        outcome,
        blocks: 3,
        exact: 3,
        class: CLASS,
        proof: (outcome == Outcome::Fraud).then(|| Hash::of(b"proof")),
        at_ms,
    };
    Signed::sign(auditor, said)
}

fn parsed<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

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
    assert_eq!(node.error("audit_list", json!({"after": Hash::of(b"gone")})).await.0, -32001);

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
        sampling: Sampling::default(),
        prompt_len: 1,
        max_positions: 8,
        payer: node.key.node_id(),
        challenge: Hash::of(b"challenge"),
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

#[tokio::test]
async fn bad_parameters_and_unknown_methods_are_named() {
    let node = Node::start().await;
    for (method, params, word) in [
        ("reputation_list", json!({"limit": 0}), "limit: 1 to 100"),
        ("reputation_list", json!({"limit": 101}), "limit: 1 to 100"),
        ("reputation_list", json!({"limit": -1}), "invalid value"),
        ("reputation_list", json!({"after": "12D3"}), "PeerId"),
        ("reputation_list", json!({"page": 3}), "unknown field `page`"),
        ("reputation_get", json!({}), "missing field `peer_id`"),
        ("reputation_evidence", json!({"peer_id": 7}), "PeerId"),
        ("reputation_evidence", json!({"peer_id": other(2).node_id(), "limit": 201}), "limit: 1 to 200"),
        ("audit_list", json!({"limit": 1000}), "limit: 1 to 200"),
        ("audit_get", json!({"digest": "zz"}), "64 hexadecimal digits"),
        ("ledger_statement", json!({"owner": "someone"}), "not an account"),
        ("ledger_head", json!({"size": 1}), "unknown field"),
        ("node_status", json!("x"), "invalid type"),
    ] {
        let (code, message) = node.error(method, params.clone()).await;
        assert_eq!(code, -32602, "{method} {params}: {message}");
        assert!(message.contains(word), "{method} {params}: {message}");
        assert!(!message.contains(" at line "), "{message}");
    }
    let (code, message) = node.error("ledger_deposit", json!({})).await;
    assert_eq!(code, -32601);
    assert!(message.contains("ledger_deposit") && message.contains("rpc.discover"), "{message}");
}

#[tokio::test]
async fn what_is_no_request_is_refused_in_shape() {
    let node = Node::start().await;
    for (body, code, id) in [
        ("{", -32700, Value::Null),
        ("", -32700, Value::Null),
        ("[{]", -32700, Value::Null),
        ("[]", -32600, Value::Null),
        ("7", -32600, Value::Null),
        (r#"{"jsonrpc": "2.0", "id": 4, "method": 5}"#, -32600, json!(4)),
        (r#"{"jsonrpc": "1.0", "id": 4, "method": "node_status"}"#, -32600, json!(4)),
        (r#"{"id": "a", "method": "node_status"}"#, -32600, json!("a")),
    ] {
        let response = node.post(body).await;
        assert_eq!(response.status(), StatusCode::OK, "{body}");
        let answer: Value = response.json().await.unwrap();
        assert_eq!((&answer["error"]["code"], &answer["id"]), (&json!(code), &id), "{body}: {answer}");
    }
    let latin = node.client.post(format!("http://{}/rpc", node.address)).body(vec![b'{', 0xff]).send().await.unwrap();
    assert_eq!(latin.status(), StatusCode::BAD_REQUEST);
    let form = node.client.post(format!("http://{}/rpc", node.address)).header("content-type", "text/plain").body("{}");
    assert_eq!(form.send().await.unwrap().status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let get = node.client.get(format!("http://{}/rpc", node.address)).send().await.unwrap();
    assert_eq!(get.status(), StatusCode::METHOD_NOT_ALLOWED);

    let long = format!("{{\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": \"node_status\"{}}}", " ".repeat(70_000));
    let response = node.post(long).await;
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(response.json::<Value>().await.unwrap()["error"]["code"], -32007);
}

#[tokio::test]
async fn batches_and_notifications() {
    let node = Node::start().await;
    let call = |id: usize, method: &str| json!({"jsonrpc": "2.0", "id": id, "method": method});
    let notification = json!({"jsonrpc": "2.0", "method": "node_status"});
    let batch = json!([call(1, "node_status"), notification, call(2, "nothing"), 3, call(4, "ledger_head")]);
    let answers = node.json(&batch).await;
    let told: Vec<(&Value, bool)> =
        answers.as_array().unwrap().iter().map(|answer| (&answer["id"], answer.get("result").is_some())).collect();
    assert_eq!(told, [(&json!(1), true), (&json!(2), false), (&Value::Null, false), (&json!(4), true)]);

    for silent in [notification.clone(), json!([notification, notification])] {
        let response = node.post(silent.to_string()).await;
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
        assert!(response.bytes().await.unwrap().is_empty());
    }
    let most: Vec<Value> = (0..call::MAX_BATCH).map(|id| call(id, "node_status")).collect();
    assert_eq!(node.json(&json!(most)).await.as_array().unwrap().len(), call::MAX_BATCH);
    let more: Vec<Value> = (0..=call::MAX_BATCH).map(|id| call(id, "node_status")).collect();
    assert_eq!(node.json(&json!(more)).await["error"]["code"], -32010);
}

#[tokio::test]
async fn too_many_calls_are_told_when_to_go_on() {
    let node = Node::start().await;
    let batch: Vec<Value> = (0..32).map(|id| json!({"jsonrpc": "2.0", "id": id, "method": "none"})).collect();
    let batch = json!(batch).to_string();
    let most = limit::BURST as usize / 32;
    for round in 0..200 {
        let response = node.post(batch.clone()).await;
        if response.status() == StatusCode::OK {
            continue;
        }
        assert!(round >= most, "refused after {round} batches");
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        let wait: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["error"]["code"], -32009, "{answer}");
        tokio::time::sleep(Duration::from_secs(wait)).await;
        assert_eq!(node.post(batch).await.status(), StatusCode::OK);
        return;
    }
    panic!("never refused");
}

#[tokio::test]
async fn the_description_is_that_of_the_methods() {
    let node = Node::start().await;
    node.judge(&other(2), 1, Outcome::Pass, wall_ms());
    node.deposit(1);
    node.close();
    let document = node.result("rpc.discover", json!({})).await;
    assert_eq!(document["openrpc"], "1.3.2");
    let described: BTreeSet<&str> =
        document["methods"].as_array().unwrap().iter().map(|method| method["name"].as_str().unwrap()).collect();
    assert_eq!(described, node.rpc.methods().into_iter().collect());
    assert_eq!(document["methods"].as_array().unwrap().len(), described.len());
    for method in document["methods"].as_array().unwrap() {
        let name = method["name"].as_str().unwrap();
        let params = method["params"].as_array().unwrap();
        // What is described is known: a value of a wrong type is refused for its type, what is not described by name.
        for param in params {
            let wrong = json!({param["name"].as_str().unwrap(): {"no": "such type"}});
            let (code, message) = node.error(name, wrong).await;
            assert_eq!(code, -32602, "{name}");
            assert!(!message.contains("unknown field"), "{name} {param}: {message}");
        }
        let required = params.iter().filter(|param| param["required"] == true).count();
        if name != "rpc.discover" {
            assert!(node.error(name, json!({"no_such": 1})).await.1.contains("unknown field"), "{name}");
            let missing = node.call(name, json!({})).await["error"]["message"].to_string().contains("missing field");
            assert_eq!(missing, required > 0, "{name}");
        }
    }
    let some = [
        ("reputation_list", json!({})),
        ("reputation_get", json!({"peer_id": other(2).node_id()})),
        ("reputation_evidence", json!({"peer_id": other(2).node_id()})),
        ("audit_list", json!({})),
        ("ledger_head", json!({})),
        ("ledger_proof", json!({"seq": 0})),
        ("ledger_consistency", json!([1, 1])),
        ("ledger_accounts", json!({})),
        ("ledger_statement", json!(["own/outside"])),
        ("node_status", json!({})),
        ("cluster_status", json!({})),
        ("rpc.discover", json!({})),
    ];
    for (name, params) in some {
        let method = document["methods"].as_array().unwrap().iter().find(|method| method["name"] == name).unwrap();
        let result = node.result(name, params).await;
        for field in method["result"]["schema"]["required"].as_array().unwrap() {
            assert!(result.get(field.as_str().unwrap()).is_some(), "{field} in the result of {name}: {result}");
        }
    }
}

#[tokio::test]
async fn the_guard_stands_before_it() {
    let node = Node::start_with(true).await;
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "node_status"}).to_string();
    assert_eq!(node.post(body.clone()).await.status(), StatusCode::UNAUTHORIZED);
    let (_, secret) = node.keys.create("auditor").unwrap();
    let call = node.client.post(format!("http://{}/rpc", node.address)).bearer_auth(&secret).body(body);
    assert_eq!(call.send().await.unwrap().status(), StatusCode::OK);
}
