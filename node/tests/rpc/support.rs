//! A node's API over a real socket and real databases, with a swarm in memory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use consortium_ledger::accounts::Owner;
use consortium_ledger::api_keys::ApiKeys;
use consortium_ledger::batches::BatchPolicy;
use consortium_ledger::ledger::Ledger;
use consortium_ledger::reputation::AuditPolicy;
use consortium_node::audit::proof::Proofs;
use consortium_node::audit::standings::Standings;
use consortium_node::billing::Billing;
use consortium_node::clock::wall_ms;
use consortium_node::config::TabRules;
use consortium_node::gateway::Gateway;
use consortium_node::http::{HttpApp, serve};
use consortium_node::library::Library;
use consortium_node::operator::OperatorToken;
use consortium_node::rpc::{Operated, Rpc, Sources};
use consortium_node::status::NodeStatus;
use consortium_node::storage::Storage;
use consortium_node::tabs::{TabParts, Tabs};
use consortium_protocol::Msat;
use consortium_protocol::cluster::ClusterId;
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::{NodeId, RootKey};
use consortium_protocol::wire::audit::{Compute, KernelFamily, NumericClass, Outcome, Verdict};
use consortium_protocol::wire::job::JobId;
use consortium_protocol::wire::ledger::TreeHead;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::auditing::{Auditing, Means};

/// Far above what any step takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const CLASS: NumericClass =
    NumericClass { compute: Compute::F32, kernels: KernelFamily::Invariant, engine: 1 };

pub(crate) struct Node {
    pub(crate) address: SocketAddr,
    pub(crate) client: reqwest::Client,
    pub(crate) key: RootKey,
    pub(crate) ledger: Ledger,
    pub(crate) storage: Storage,
    pub(crate) proofs: Proofs,
    pub(crate) auditing: Auditing,
    pub(crate) status: watch::Sender<NodeStatus>,
    pub(crate) rpc: Rpc,
    pub(crate) keys: Arc<ApiKeys>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) dir: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub(crate) fn other(n: u8) -> RootKey {
    RootKey::from_seed([n; 32])
}

impl Node {
    pub(crate) async fn start() -> Self {
        Self::start_with(false).await
    }

    pub(crate) async fn start_with(require_key: bool) -> Self {
        Self::start_full(require_key, Library::default(), Vec::new()).await
    }

    /// A node that holds models, and has its jobs audited by `auditors`.
    pub(crate) async fn start_full(require_key: bool, library: Library, auditors: Vec<NodeId>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = other(1);
        let keys = Arc::new(ApiKeys::open(&dir.path().join("ledger.db")).unwrap());
        let ledger = Ledger::open(&dir.path().join("ledger.db"), key.node_id()).unwrap();
        let storage = Storage::open(&dir.path().join("node.db")).unwrap();
        let proofs = Proofs::new(dir.path());
        let shutdown = CancellationToken::new();
        let means = Means { key: other(1), library, auditors, ledger: &ledger, storage: &storage, proofs: &proofs };
        let auditing = Auditing::start(means, shutdown.clone());
        let (status, reader) =
            watch::channel(NodeStatus { peer_id: key.node_id().to_string(), ..NodeStatus::default() });
        let sources = Sources {
            ledger: ledger.clone(),
            policy: AuditPolicy::default(),
            storage: storage.clone(),
            proofs: proofs.clone(),
            desk: auditing.desk(),
            status: reader.clone(),
        };
        let token = Some(OperatorToken::create(dir.path()).unwrap());
        let key_of_tabs = Arc::new(other(1));
        let standings = Standings::open(ledger.clone(), Arc::clone(&key_of_tabs), AuditPolicy::default(), 0).unwrap();
        let tabs = Tabs::new(TabParts {
            key: key_of_tabs,
            storage: storage.clone(),
            standings,
            rules: TabRules::default(),
            #[cfg(feature = "lightning")]
            wallet: None,
        });
        let rpc = Rpc::operated(sources, Operated { token, tabs: Some(tabs), ..Operated::default() });
        let (gateway, _jobs) = Gateway::channel(1);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let billing = Billing::new(ledger.clone(), 0, &[], reader.clone());
        let app = HttpApp {
            gateway,
            billing,
            status: reader,
            rpc: rpc.clone(),
            keys: Arc::clone(&keys),
            require_key,
            till: None,
        };
        tokio::spawn(serve(listener, app, shutdown.clone()));
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Self { address, client, key, ledger, storage, proofs, auditing, status, rpc, keys, shutdown, dir }
    }

    pub(crate) async fn post(&self, body: impl Into<String>) -> Response {
        let call = self.client.post(format!("http://{}/rpc", self.address)).header("content-type", "application/json");
        call.body(body.into()).send().await.unwrap()
    }

    pub(crate) async fn json(&self, body: &Value) -> Value {
        let response = self.post(body.to_string()).await;
        assert_eq!(response.status(), StatusCode::OK);
        response.json().await.unwrap()
    }

    pub(crate) async fn call(&self, method: &str, params: Value) -> Value {
        let body = json!({"jsonrpc": "2.0", "id": "an id", "method": method, "params": params});
        let answer = self.json(&body).await;
        assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), &json!("an id")), "{answer}");
        answer
    }

    pub(crate) async fn result(&self, method: &str, params: Value) -> Value {
        let mut answer = self.call(method, params).await;
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].take()
    }

    pub(crate) async fn error(&self, method: &str, params: Value) -> (i64, String) {
        let answer = self.call(method, params).await;
        assert!(answer.get("result").is_none(), "{method}: {answer}");
        (answer["error"]["code"].as_i64().unwrap(), answer["error"]["message"].as_str().unwrap().to_owned())
    }

    /// A verdict of this node about another.
    pub(crate) fn judge(&self, auditee: &RootKey, job: u8, outcome: Outcome, at_ms: u64) -> Signed<Verdict> {
        let verdict = verdict(&self.key, auditee.node_id(), job, outcome, at_ms);
        self.ledger.observe(&auditee.node_id(), true, 10, at_ms).unwrap();
        self.ledger.note_verdict(&verdict, at_ms).unwrap();
        verdict
    }

    pub(crate) fn deposit(&self, n: u64) {
        let reference = Hash::of(&n.to_le_bytes());
        self.ledger.deposit(&Owner::Peer(other(2).node_id()), Msat(10 + n), reference, 1000 + n).unwrap();
    }

    /// Changes a row behind the ledger's back.
    pub(crate) fn alter(&self, statement: &str, digest: &Hash) {
        let database = rusqlite::Connection::open(self.dir.path().join("ledger.db")).unwrap();
        assert_eq!(database.execute(statement, [digest.as_bytes()]).unwrap(), 1);
    }

    pub(crate) fn close(&self) -> Signed<TreeHead> {
        let at_once = BatchPolicy { entries: 1, every_ms: 0 };
        self.ledger.close_batch(&self.key, &at_once, wall_ms()).unwrap().unwrap()
    }
}

pub(crate) fn verdict(auditor: &RootKey, auditee: NodeId, job: u8, outcome: Outcome, at_ms: u64) -> Signed<Verdict> {
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

pub(crate) fn parsed<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}
