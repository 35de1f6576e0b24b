//! A node's API over a real socket and a real ledger, with the swarm's end of the gateway played by the test.

pub(crate) use std::net::SocketAddr;
use std::sync::Arc;
pub(crate) use std::time::Duration;

use consortium_ledger::api_keys::ApiKeys;
use consortium_ledger::ledger::Ledger;
use consortium_ledger::reputation::AuditPolicy;
use consortium_node::audit::proof::Proofs;
use consortium_node::billing::Billing;
pub(crate) use consortium_node::gateway::{Gateway, Submission};
use consortium_node::http::{HttpApp, serve};
use consortium_node::library::Library;
use consortium_node::operator::OperatorToken;
use consortium_node::rpc::{Operated, Rpc, Sources};
pub(crate) use consortium_node::status::{MemberStatus, ModelStatus, NodeStatus, Role, StageStatus};
use consortium_node::storage::Storage;
use consortium_node::till::{Till, TillSettings};
pub(crate) use consortium_protocol::hash::Hash;
pub(crate) use consortium_protocol::identity::RootKey;
use consortium_protocol::wire::heartbeat::ModelRef;
pub(crate) use consortium_protocol::wire::job::{
    FinishReason, JobError, JobErrorCode, JobEvent, JobRequest, Prompt, Usage,
};
pub(crate) use reqwest::{Method, RequestBuilder, Response, StatusCode};
pub(crate) use serde_json::{Value, json};
pub(crate) use tokio::io::{AsyncReadExt, AsyncWriteExt};
pub(crate) use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
pub(crate) use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::auditing::{Auditing, Means};
use crate::purse::Purse;

/// Far above what any step takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const MODEL: &str = "org/tiny";
/// What the node takes of its API keys, in thousandths.
pub(crate) const FEE: u16 = 50;

pub(crate) struct Node {
    pub(crate) address: SocketAddr,
    pub(crate) client: reqwest::Client,
    pub(crate) queue: mpsc::Receiver<Submission>,
    pub(crate) status: watch::Sender<NodeStatus>,
    pub(crate) keys: Arc<ApiKeys>,
    pub(crate) ledger: Ledger,
    /// The token of its operator.
    pub(crate) operator: String,
    pub(crate) shutdown: CancellationToken,
    pub(crate) served: JoinHandle<std::io::Result<()>>,
    pub(crate) _dir: tempfile::TempDir,
}

impl Node {
    pub(crate) async fn start() -> Self {
        Self::start_with("127.0.0.1:0", false, 8).await
    }

    pub(crate) async fn start_with(bind: &str, require_key: bool, capacity: usize) -> Self {
        Self::start_selling(bind, require_key, capacity, None).await
    }

    /// A node with a till over a purse of the test's.
    pub(crate) async fn start_selling(
        bind: &str,
        require_key: bool,
        capacity: usize,
        sale: Option<(Arc<Purse>, TillSettings)>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = Arc::new(ApiKeys::open(&dir.path().join("ledger.db")).unwrap());
        let (gateway, queue) = Gateway::channel(capacity);
        let (status, status_reader) = watch::channel(NodeStatus::default());
        let listener = TcpListener::bind(bind).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let key = RootKey::from_seed([1; 32]);
        let ledger = Ledger::open(&dir.path().join("ledger.db"), key.node_id()).unwrap();
        let (storage, proofs) = (Storage::open(&dir.path().join("node.db")).unwrap(), Proofs::new(dir.path()));
        let (library, auditors) = (Library::default(), Vec::new());
        let means = Means { key, library, auditors, ledger: &ledger, storage: &storage, proofs: &proofs };
        let desk = Auditing::start(means, shutdown.clone()).desk();
        let sources = Sources {
            ledger: ledger.clone(),
            policy: AuditPolicy::default(),
            storage,
            proofs,
            desk,
            status: status_reader.clone(),
        };
        let token = OperatorToken::create(dir.path()).unwrap();
        let rpc = Rpc::operated(sources, Operated { token: Some(token), ..Operated::default() });
        let operator = OperatorToken::read(dir.path()).unwrap();
        let till = sale.map(|(purse, settings)| Till::open(ledger.clone(), purse, settings, shutdown.clone()));
        let billing = Billing::new(ledger.clone(), FEE, &[], status_reader.clone());
        let app = HttpApp { gateway, billing, status: status_reader, rpc, keys: Arc::clone(&keys), require_key, till };
        let served = tokio::spawn(serve(listener, app, shutdown.clone()));
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Self { address, client, queue, status, keys, ledger, operator, shutdown, served, _dir: dir }
    }

    /// Shows a pipeline of two stages with two layers each: this node's own, and that of a node which asks `price`.
    pub(crate) fn serve_at(&self, price: u64) {
        let stage = |peer: &str, layers: &str| StageStatus { peer_id: peer.to_owned(), layers: layers.to_owned() };
        self.status.send_modify(|status| {
            status.ready = true;
            status.peer_id = "me".to_owned();
            status.models =
                vec![ModelStatus { name: MODEL.to_owned(), digest: "00".repeat(32), layers: 4, context: 128 }];
            status.stages = vec![stage("me", "0-1"), stage("other", "2-3")];
            status.members = vec![member("me", price.min(1)), member("other", price)];
        });
    }

    pub(crate) fn call(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://127.0.0.1:{}{path}", self.address.port()))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> JoinHandle<Response> {
        let call = self.call(Method::POST, path).json(body);
        tokio::spawn(async move { call.send().await.unwrap() })
    }

    /// Posts what is expected to be refused before it reaches the swarm.
    pub(crate) async fn refusal(&mut self, path: &str, body: &Value) -> (StatusCode, Value) {
        let answer = error(self.post(path, body).await.unwrap()).await;
        assert!(self.queue.try_recv().is_err(), "{body} reached the swarm");
        answer
    }

    pub(crate) async fn submission(&mut self) -> Submission {
        tokio::time::timeout(PATIENCE, self.queue.recv()).await.unwrap().unwrap()
    }

    /// The request that a body becomes.
    pub(crate) async fn parsed(&mut self, path: &str, body: &Value) -> JobRequest {
        let response = self.post(path, body);
        let submission = self.submission().await;
        answer(&submission, &["x"], "").await;
        let response = response.await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{body}: {}", response.text().await.unwrap());
        submission.request
    }
}

fn member(peer: &str, price_msat: u64) -> MemberStatus {
    MemberStatus {
        peer_id: peer.to_owned(),
        state: "alive".to_owned(),
        role: Role::Worker,
        layers: String::new(),
        memory_bytes: 0,
        layer_micros: 0,
        active_jobs: 0,
        rtt_ms: None,
        uptime_s: 0,
        price_msat,
        master_fee_msat: 0,
        addresses: Vec::new(),
    }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap()
}

pub(crate) fn accepted() -> JobEvent {
    let model = ModelRef { name: MODEL.to_owned(), digest: Hash::of(b"model"), layers: 4, context: 128 };
    JobEvent::Accepted { model, term: 3, prompt_tokens: 7, seed: 1 }
}

pub(crate) fn token(index: u32, text: &str) -> JobEvent {
    JobEvent::Token { index, id: 100 + index, text: text.to_owned() }
}

pub(crate) async fn send(submission: &Submission, event: JobEvent) {
    within(submission.events.send(event)).await.unwrap();
}

pub(crate) async fn answer(submission: &Submission, tokens: &[&str], tail: &str) {
    send(submission, accepted()).await;
    for (index, text) in tokens.iter().enumerate() {
        send(submission, token(u32::try_from(index).unwrap(), text)).await;
    }
    let completion_tokens = u32::try_from(tokens.len()).unwrap();
    let usage = Usage { prompt_tokens: 7, completion_tokens };
    send(submission, JobEvent::Done { finish: FinishReason::Stop, usage, text: tail.to_owned() }).await;
}

pub(crate) fn failure(code: JobErrorCode) -> JobEvent {
    JobEvent::Failed { error: JobError { code, message: "what went wrong".to_owned(), param: None } }
}

pub(crate) fn chat(more: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]});
    let Value::Object(more) = more else { panic!("not an object") };
    body.as_object_mut().unwrap().extend(more);
    body
}

pub(crate) fn text(more: Value) -> Value {
    let mut body = json!({"model": MODEL, "prompt": "Once"});
    let Value::Object(more) = more else { panic!("not an object") };
    body.as_object_mut().unwrap().extend(more);
    body
}

/// An error in OpenAI's shape.
pub(crate) async fn error(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let body: Value = within(response.json()).await.unwrap();
    let object = body.as_object().unwrap();
    assert_eq!(object.len(), 1, "{body}");
    let error = object["error"].as_object().unwrap();
    // Where paying helps, how to pay comes after what OpenAI has.
    let fields: Vec<_> = error.keys().map(String::as_str).filter(|field| *field != "payment").collect();
    assert_eq!(fields, ["message", "type", "param", "code"], "{body}");
    assert!(error["message"].is_string() && error["type"].is_string(), "{body}");
    (status, body["error"].clone())
}

/// The payloads of an event stream.
pub(crate) async fn events(response: Response) -> Vec<String> {
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = within(response.text()).await.unwrap();
    assert!(text.is_empty() || text.ends_with("\n\n"), "{text:?}");
    let payload = |event: &str| event.strip_prefix("data: ").map(str::to_owned);
    text.split("\n\n").filter_map(payload).collect()
}

pub(crate) fn documents(events: &[String]) -> Vec<Value> {
    events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}
