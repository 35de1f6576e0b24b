//! The HTTP API over a real socket, with the swarm's end of the gateway played by the test.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use consortium_ledger::api_keys::ApiKeys;
use consortium_ledger::ledger::Ledger;
use consortium_ledger::reputation::AuditPolicy;
use consortium_node::audit::proof::Proofs;
use consortium_node::gateway::{Gateway, Submission};
use consortium_node::http::{HttpApp, serve};
use consortium_node::library::Library;
use consortium_node::rpc::{Rpc, Sources};
use consortium_node::status::{ModelStatus, NodeStatus};
use consortium_node::storage::Storage;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::RootKey;
use consortium_protocol::wire::heartbeat::ModelRef;
use consortium_protocol::wire::job::{FinishReason, JobError, JobErrorCode, JobEvent, JobRequest, Prompt, Usage};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

mod auditing;

use auditing::{Auditing, Means};

/// Far above what any step takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const MODEL: &str = "org/tiny";

struct Node {
    address: SocketAddr,
    client: reqwest::Client,
    queue: mpsc::Receiver<Submission>,
    status: watch::Sender<NodeStatus>,
    keys: Arc<ApiKeys>,
    shutdown: CancellationToken,
    served: JoinHandle<std::io::Result<()>>,
    _dir: tempfile::TempDir,
}

impl Node {
    async fn start() -> Self {
        Self::start_with("127.0.0.1:0", false, 8).await
    }

    async fn start_with(bind: &str, require_key: bool, capacity: usize) -> Self {
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
        let rpc = Rpc::new(Sources {
            ledger,
            policy: AuditPolicy::default(),
            storage,
            proofs,
            desk,
            status: status_reader.clone(),
        });
        let app = HttpApp { gateway, status: status_reader, rpc, keys: Arc::clone(&keys), require_key };
        let served = tokio::spawn(serve(listener, app, shutdown.clone()));
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Self { address, client, queue, status, keys, shutdown, served, _dir: dir }
    }

    fn call(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://127.0.0.1:{}{path}", self.address.port()))
    }

    fn post(&self, path: &str, body: &Value) -> JoinHandle<Response> {
        let call = self.call(Method::POST, path).json(body);
        tokio::spawn(async move { call.send().await.unwrap() })
    }

    /// Posts what is expected to be refused before it reaches the swarm.
    async fn refusal(&mut self, path: &str, body: &Value) -> (StatusCode, Value) {
        let answer = error(self.post(path, body).await.unwrap()).await;
        assert!(self.queue.try_recv().is_err(), "{body} reached the swarm");
        answer
    }

    async fn submission(&mut self) -> Submission {
        tokio::time::timeout(PATIENCE, self.queue.recv()).await.unwrap().unwrap()
    }

    /// The request that a body becomes.
    async fn parsed(&mut self, path: &str, body: &Value) -> JobRequest {
        let response = self.post(path, body);
        let submission = self.submission().await;
        answer(&submission, &["x"], "").await;
        let response = response.await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{body}: {}", response.text().await.unwrap());
        submission.request
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap()
}

fn accepted() -> JobEvent {
    let model = ModelRef { name: MODEL.to_owned(), digest: Hash::of(b"model"), layers: 4, context: 128 };
    JobEvent::Accepted { model, term: 3, prompt_tokens: 7, seed: 1 }
}

fn token(index: u32, text: &str) -> JobEvent {
    JobEvent::Token { index, id: 100 + index, text: text.to_owned() }
}

async fn send(submission: &Submission, event: JobEvent) {
    within(submission.events.send(event)).await.unwrap();
}

async fn answer(submission: &Submission, tokens: &[&str], tail: &str) {
    send(submission, accepted()).await;
    for (index, text) in tokens.iter().enumerate() {
        send(submission, token(u32::try_from(index).unwrap(), text)).await;
    }
    let completion_tokens = u32::try_from(tokens.len()).unwrap();
    let usage = Usage { prompt_tokens: 7, completion_tokens };
    send(submission, JobEvent::Done { finish: FinishReason::Stop, usage, text: tail.to_owned() }).await;
}

fn failure(code: JobErrorCode) -> JobEvent {
    JobEvent::Failed { error: JobError { code, message: "what went wrong".to_owned(), param: None } }
}

fn chat(more: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]});
    let Value::Object(more) = more else { panic!("not an object") };
    body.as_object_mut().unwrap().extend(more);
    body
}

fn text(more: Value) -> Value {
    let mut body = json!({"model": MODEL, "prompt": "Once"});
    let Value::Object(more) = more else { panic!("not an object") };
    body.as_object_mut().unwrap().extend(more);
    body
}

/// An error in OpenAI's shape.
async fn error(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let body: Value = within(response.json()).await.unwrap();
    let object = body.as_object().unwrap();
    assert_eq!(object.len(), 1, "{body}");
    let error = object["error"].as_object().unwrap();
    let fields: Vec<_> = error.keys().map(String::as_str).collect();
    assert_eq!(fields, ["message", "type", "param", "code"], "{body}");
    assert!(error["message"].is_string() && error["type"].is_string(), "{body}");
    (status, body["error"].clone())
}

/// The payloads of an event stream.
async fn events(response: Response) -> Vec<String> {
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = within(response.text()).await.unwrap();
    assert!(text.is_empty() || text.ends_with("\n\n"), "{text:?}");
    let payload = |event: &str| event.strip_prefix("data: ").map(str::to_owned);
    text.split("\n\n").filter_map(payload).collect()
}

fn documents(events: &[String]) -> Vec<Value> {
    events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

#[tokio::test]
async fn chat_in_one_piece() {
    let mut node = Node::start().await;
    let response = node.post("/v1/chat/completions", &chat(json!({"seed": 5, "max_tokens": 3})));
    let submission = node.submission().await;
    answer(&submission, &["Hel", "", "lo"], " there").await;
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let request_id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(request_id, submission.request.job.to_string());
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["id"], format!("chatcmpl-{request_id}"));
    assert_eq!(body["object"], "chat.completion");
    assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(body["model"], MODEL);
    assert!(body["system_fingerprint"].as_str().unwrap().starts_with("fp_"));
    assert_eq!(
        body["choices"],
        json!([{
            "index": 0,
            "message": {"role": "assistant", "content": "Hello there", "refusal": null},
            "logprobs": null,
            "finish_reason": "stop",
        }])
    );
    assert_eq!(body["usage"], json!({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}));
}

#[tokio::test]
async fn chat_as_a_stream() {
    let mut node = Node::start().await;
    let response = node.post("/v1/chat/completions", &chat(json!({"stream": true})));
    answer(&node.submission().await, &["Hel", "", "lo"], "!").await;
    let mut events = events(response.await.unwrap()).await;
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let chunks = documents(&events);
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["id"], chunks[0]["id"]);
        assert!(chunk.get("usage").is_none());
    }
    let deltas: Vec<_> = chunks.iter().map(|chunk| chunk["choices"][0]["delta"].clone()).collect();
    assert_eq!(
        deltas,
        [
            json!({"role": "assistant", "content": ""}),
            json!({"content": "Hel"}),
            json!({"content": "lo"}),
            json!({"content": "!"}),
            json!({}),
        ]
    );
    let reasons: Vec<_> = chunks.iter().map(|chunk| chunk["choices"][0]["finish_reason"].clone()).collect();
    assert_eq!(reasons, [json!(null), json!(null), json!(null), json!(null), json!("stop")]);
}

#[tokio::test]
async fn streamed_usage_comes_last() {
    let mut node = Node::start().await;
    for (path, body) in [("/v1/chat/completions", chat(json!({}))), ("/v1/completions", text(json!({})))] {
        let mut body = body;
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let response = node.post(path, &body);
        answer(&node.submission().await, &["a", "b"], "").await;
        let mut events = events(response.await.unwrap()).await;
        assert_eq!(events.pop().unwrap(), "[DONE]");
        let mut chunks = documents(&events);
        let last = chunks.pop().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"], json!({"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}));
        assert!(chunks.iter().all(|chunk| chunk["usage"] == Value::Null && chunk["choices"][0].is_object()));
    }
}

#[tokio::test]
async fn text_completions() {
    let mut node = Node::start().await;
    let response = node.post("/v1/completions", &text(json!({})));
    answer(&node.submission().await, &[" upon", " a"], " time").await;
    let body: Value = response.await.unwrap().json().await.unwrap();
    assert!(body["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(body["object"], "text_completion");
    assert_eq!(
        body["choices"],
        json!([{"text": " upon a time", "index": 0, "logprobs": null, "finish_reason": "stop"}])
    );
    assert_eq!(body["usage"]["total_tokens"], 9);

    let response = node.post("/v1/completions", &text(json!({"stream": true})));
    answer(&node.submission().await, &[" upon", " a"], "").await;
    let mut events = events(response.await.unwrap()).await;
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let choices: Vec<_> = documents(&events).into_iter().map(|chunk| chunk["choices"][0].clone()).collect();
    assert_eq!(choices[0], json!({"text": " upon", "index": 0, "logprobs": null, "finish_reason": null}));
    assert_eq!(choices[2], json!({"text": "", "index": 0, "logprobs": null, "finish_reason": "stop"}));
}

#[tokio::test]
async fn parameters_reach_the_job() {
    let mut node = Node::start().await;
    let body = chat(json!({
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1,
        "frequency_penalty": -0.5, "presence_penalty": 2, "seed": -1, "max_completion_tokens": 9,
        "stop": ["a", "b"], "ignore_eos": true,
        "messages": [
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
            {"role": "assistant", "content": "three", "refusal": null, "tool_calls": null, "annotations": []},
            {"role": "user", "content": ""},
        ],
    }));
    let request = node.parsed("/v1/chat/completions", &body).await;
    assert_eq!(request.model, MODEL);
    let Prompt::Chat(messages) = &request.prompt else { panic!("{:?}", request.prompt) };
    let messages: Vec<_> = messages.iter().map(|message| (message.role.as_str(), message.content.as_str())).collect();
    assert_eq!(messages, [("system", "Be kind."), ("user", "one\ntwo"), ("assistant", "three"), ("user", "")]);
    let sampling = &request.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p), (0.5, 0.9, 40, 0.05));
    assert_eq!(sampling.repetition_penalty, 1.1);
    assert_eq!((sampling.frequency_penalty, sampling.presence_penalty), (-0.5, 2.0));
    assert_eq!(sampling.seed, u64::MAX);
    assert_eq!(request.max_tokens, Some(9));
    assert_eq!(request.stop, ["a", "b"]);
    assert!(request.ignore_eos && request.emitted.is_empty());

    let plain = node.parsed("/v1/chat/completions", &chat(json!({}))).await;
    let again = node.parsed("/v1/chat/completions", &chat(json!({}))).await;
    assert_ne!(plain.sampling.seed, again.sampling.seed, "a seed is drawn for each request");
    assert_ne!(plain.job, again.job);
    assert_eq!((plain.max_tokens, plain.ignore_eos), (None, false));
    assert_eq!((plain.sampling.temperature, plain.sampling.top_p, plain.sampling.top_k), (1.0, 1.0, 0));
    let greedy = node.parsed("/v1/chat/completions", &chat(json!({"temperature": 0, "top_p": 0}))).await;
    assert_eq!(greedy.sampling.temperature, 0.0);
    assert!(greedy.sampling.top_p > 0.0 && greedy.sampling.top_p < 1e-30);
    let single = node.parsed("/v1/chat/completions", &chat(json!({"stop": "END", "top_k": -1}))).await;
    assert_eq!((single.stop, single.sampling.top_k), (vec!["END".to_owned()], 0));
}

#[tokio::test]
async fn prompts_of_text_completions() {
    let mut node = Node::start().await;
    for (prompt, expected) in [
        (json!("Once"), Prompt::Text("Once".to_owned())),
        (json!(["Once"]), Prompt::Text("Once".to_owned())),
        (json!([1, 2, 3]), Prompt::Tokens(vec![1, 2, 3])),
        (json!([5]), Prompt::Tokens(vec![5])),
        (json!([[1, 2]]), Prompt::Tokens(vec![1, 2])),
    ] {
        let request = node.parsed("/v1/completions", &text(json!({"prompt": prompt}))).await;
        assert_eq!(request.prompt, expected);
        assert_eq!(request.max_tokens, Some(16));
    }
    for (prompt, code) in [
        (json!(["a", "b"]), "unsupported_value"),
        (json!([[1], [2]]), "unsupported_value"),
        (json!([1, "a"]), "unsupported_value"),
        (json!([]), "empty_array"),
        (json!([[]]), "invalid_type"),
        (json!([-1]), "invalid_type"),
        (json!([1.5, 2]), "invalid_type"),
        (json!([4_294_967_296_u64]), "invalid_type"),
        (json!(7), "invalid_type"),
        (json!({}), "invalid_type"),
        (json!(null), "missing_required_parameter"),
    ] {
        let (status, error) = node.refusal("/v1/completions", &text(json!({"prompt": prompt}))).await;
        assert_eq!((status, &error["code"]), (StatusCode::BAD_REQUEST, &json!(code)), "{prompt}: {error}");
        assert_eq!(error["param"], "prompt");
    }
}

#[tokio::test]
async fn harmless_values_pass() {
    let mut node = Node::start().await;
    let body = chat(json!({
        "n": 1, "user": "me", "metadata": {"a": "b"}, "store": false, "logprobs": false, "top_logprobs": 0,
        "response_format": {"type": "text"}, "tool_choice": "none", "tools": [], "functions": [],
        "function_call": "none", "parallel_tool_calls": true, "service_tier": "auto", "logit_bias": {},
        "modalities": ["text"], "prompt_cache_key": "k", "safety_identifier": "s", "reasoning_effort": "none",
        "verbosity": "medium", "audio": null, "prediction": null, "web_search_options": null, "stop": [],
        "stream": false, "stream_options": null, "seed": null, "temperature": null, "max_tokens": null,
    }));
    node.parsed("/v1/chat/completions", &body).await;
    let body = text(json!({
        "n": 1, "best_of": 1, "echo": false, "suffix": "", "logprobs": null, "user": "me", "logit_bias": {},
    }));
    node.parsed("/v1/completions", &body).await;
}

#[tokio::test]
async fn what_is_not_supported_is_refused_by_name() {
    let mut node = Node::start().await;
    let both = [("n", json!(2)), ("logit_bias", json!({"50256": -100})), ("user", json!(5))];
    let chats = [
        ("tools", json!([{"type": "function", "function": {"name": "f"}}])),
        ("tool_choice", json!("required")),
        ("tool_choice", json!({"type": "function", "function": {"name": "f"}})),
        ("parallel_tool_calls", json!("yes")),
        ("functions", json!([{"name": "f"}])),
        ("function_call", json!({"name": "f"})),
        ("response_format", json!({"type": "json_object"})),
        ("response_format", json!({"type": "json_schema", "json_schema": {}})),
        ("logprobs", json!(true)),
        ("top_logprobs", json!(3)),
        ("modalities", json!(["text", "audio"])),
        ("audio", json!({"voice": "alloy", "format": "wav"})),
        ("prediction", json!({"type": "content", "content": "x"})),
        ("web_search_options", json!({})),
        ("reasoning_effort", json!("high")),
        ("verbosity", json!("low")),
        ("service_tier", json!("flex")),
        ("store", json!(true)),
        ("metadata", json!("x")),
        ("prompt_cache_retention", json!("24h")),
    ];
    let texts = [
        ("best_of", json!(3)),
        ("echo", json!(true)),
        ("suffix", json!("the end")),
        ("logprobs", json!(0)),
        ("logprobs", json!(5)),
    ];
    let on_chat = both.iter().chain(&chats).map(|field| ("/v1/chat/completions", chat(json!({})), field));
    let on_text = both.iter().chain(&texts).map(|field| ("/v1/completions", text(json!({})), field));
    for (path, mut body, (name, value)) in on_chat.chain(on_text) {
        body[*name] = value.clone();
        let (status, error) = node.refusal(path, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {name} {value}");
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(error["param"], *name);
        assert!(error["message"].as_str().unwrap().contains(&format!("'{name}'")), "{error}");
        let code = error["code"].as_str().unwrap();
        assert!(["unsupported_parameter", "unsupported_value"].contains(&code), "{name}: {code}");
    }
}

#[tokio::test]
async fn types_and_ranges_are_checked() {
    let mut node = Node::start().await;
    let long = "x".repeat(257);
    for (name, value, code) in [
        ("model", json!(null), "missing_required_parameter"),
        ("model", json!(1), "invalid_type"),
        ("model", json!(""), "invalid_value"),
        ("model", json!("m".repeat(97)), "invalid_value"),
        ("stream", json!("true"), "invalid_type"),
        ("stream", json!(1), "invalid_type"),
        ("stream_options", json!({"include_usage": true}), "invalid_value"),
        ("temperature", json!("1"), "invalid_type"),
        ("temperature", json!(2.1), "out_of_range"),
        ("temperature", json!(-0.1), "out_of_range"),
        ("top_p", json!(1.01), "out_of_range"),
        ("top_p", json!(-1), "out_of_range"),
        ("top_k", json!(-2), "out_of_range"),
        ("top_k", json!(1.5), "invalid_type"),
        ("min_p", json!(2), "out_of_range"),
        ("repetition_penalty", json!(0), "out_of_range"),
        ("repetition_penalty", json!(10.5), "out_of_range"),
        ("frequency_penalty", json!(2.5), "out_of_range"),
        ("presence_penalty", json!(-3), "out_of_range"),
        ("presence_penalty", json!([]), "invalid_type"),
        ("seed", json!("x"), "invalid_type"),
        ("seed", json!(1.5), "invalid_type"),
        ("seed", json!(1e30), "invalid_type"),
        ("max_tokens", json!(0), "out_of_range"),
        ("max_tokens", json!(-1), "out_of_range"),
        ("max_tokens", json!(16.0), "invalid_type"),
        ("max_tokens", json!(4_294_967_296_u64), "out_of_range"),
        ("max_completion_tokens", json!(true), "invalid_type"),
        ("stop", json!(["a", "b", "c", "d", "e"]), "array_above_max_length"),
        ("stop", json!(""), "invalid_value"),
        ("stop", json!([""]), "invalid_value"),
        ("stop", json!([long]), "invalid_value"),
        ("stop", json!([1]), "invalid_type"),
        ("stop", json!(1), "invalid_type"),
        ("ignore_eos", json!(0), "invalid_type"),
    ] {
        for (path, mut body) in [("/v1/chat/completions", chat(json!({}))), ("/v1/completions", text(json!({})))] {
            body[name] = value.clone();
            let (status, error) = node.refusal(path, &body).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{name} {value}");
            assert_eq!((&error["param"], &error["code"]), (&json!(name), &json!(code)), "{name} {value}: {error}");
        }
    }
    let (_, error) = node.refusal("/v1/completions", &text(json!({"max_tokens": 1, "max_completion_tokens": 2}))).await;
    assert_eq!(error["param"], "max_tokens");
}

#[tokio::test]
async fn nested_fields_are_checked_by_path() {
    let mut node = Node::start().await;
    for (messages, param, code) in [
        (json!(null), "messages", "missing_required_parameter"),
        (json!([]), "messages", "empty_array"),
        (json!("Hi"), "messages", "invalid_type"),
        (json!(["Hi"]), "messages[0]", "invalid_type"),
        (json!([{"content": "x"}]), "messages[0].role", "missing_required_parameter"),
        (json!([{"role": "tool", "content": "x"}]), "messages[0].role", "unsupported_value"),
        (json!([{"role": "robot", "content": "x"}]), "messages[0].role", "invalid_value"),
        (json!([{"role": "user"}]), "messages[0].content", "missing_required_parameter"),
        (json!([{"role": "user", "content": 5}]), "messages[0].content", "invalid_type"),
        (json!([{"role": "user", "content": "x", "name": "Ann"}]), "messages[0].name", "unsupported_parameter"),
        (json!([{"role": "user", "content": "x", "foo": 1}]), "messages[0].foo", "unknown_parameter"),
        (
            json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "tool_calls": [{}]}]),
            "messages[1].tool_calls",
            "unsupported_value",
        ),
        (
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            "messages[0].content[0].type",
            "unsupported_value",
        ),
        (
            json!([{"role": "user", "content": [{"type": "text", "text": "x", "foo": 1}]}]),
            "messages[0].content[0].foo",
            "unknown_parameter",
        ),
        (
            json!([{"role": "user", "content": [{"type": "text"}]}]),
            "messages[0].content[0].text",
            "missing_required_parameter",
        ),
    ] {
        let (status, error) = node.refusal("/v1/chat/completions", &chat(json!({"messages": messages}))).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!((&error["param"], &error["code"]), (&json!(param), &json!(code)), "{messages}: {error}");
    }
    for (options, param) in [
        (json!({"foo": 1}), "stream_options.foo"),
        (json!({"include_usage": 1}), "stream_options.include_usage"),
        (json!({"include_obfuscation": true}), "stream_options.include_obfuscation"),
        (json!([]), "stream_options"),
    ] {
        let body = chat(json!({"stream": true, "stream_options": options}));
        let (status, error) = node.refusal("/v1/chat/completions", &body).await;
        assert_eq!((status, &error["param"]), (StatusCode::BAD_REQUEST, &json!(param)), "{error}");
    }
}

#[tokio::test]
async fn unknown_fields_are_named() {
    let mut node = Node::start().await;
    for (path, mut body) in [("/v1/chat/completions", chat(json!({}))), ("/v1/completions", text(json!({})))] {
        body["temprature"] = json!(1);
        let (status, error) = node.refusal(path, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(error["message"], "Unknown field 'temprature'.");
        assert_eq!((&error["param"], &error["code"]), (&json!("temprature"), &json!("unknown_parameter")));
    }
    let name = "y".repeat(100_000);
    let (_, error) = node.refusal("/v1/chat/completions", &chat(json!({name: 1}))).await;
    assert!(error["message"].as_str().unwrap().len() < 200, "a caller's text is not repeated at length");
}

#[tokio::test]
async fn bodies_that_are_no_request() {
    let mut node = Node::start().await;
    let bodies: [&[u8]; 9] = [
        b"",
        b"{",
        b"[]",
        b"\"x\"",
        b"{\"model\": \"m\"} x",
        b"{\"model\": \"\xff\xfe\"}",
        b"{\"model\": \"\\ud800\"}",
        b"{\"model\": \"a\", \"model\": \"b\"}",
        &[b'['; 100_000],
    ];
    for body in bodies {
        let call = node.call(Method::POST, "/v1/chat/completions").body(body.to_vec());
        let (status, error) = error(within(call.send()).await.unwrap()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{:?}", String::from_utf8_lossy(&body[..body.len().min(40)]));
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().len() < 200, "{error}");
    }
    for (kind, status) in [
        ("application/json", StatusCode::OK),
        ("Application/JSON; charset=utf-8", StatusCode::OK),
        ("text/plain", StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("application/x-www-form-urlencoded", StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("multipart/form-data; boundary=x", StatusCode::UNSUPPORTED_MEDIA_TYPE),
    ] {
        let call = node
            .call(Method::POST, "/v1/chat/completions")
            .header("content-type", kind)
            .body(chat(json!({})).to_string());
        let response = tokio::spawn(async move { call.send().await.unwrap() });
        if status == StatusCode::OK {
            answer(&node.submission().await, &["x"], "").await;
        }
        assert_eq!(within(response).await.unwrap().status(), status, "{kind}");
    }
}

#[tokio::test]
async fn large_bodies() {
    let mut node = Node::start().await;
    let body = |size: usize| {
        let empty = chat(json!({"user": ""})).to_string().len();
        chat(json!({"user": "x".repeat(size - empty)}))
    };
    node.parsed("/v1/chat/completions", &body(2 * 1024 * 1024)).await;
    let (status, error_body) = node.refusal("/v1/chat/completions", &body(2 * 1024 * 1024 + 1)).await;
    assert_eq!((status, &error_body["code"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!("request_too_large")));

    // Without a length told beforehand.
    let chunks = futures::stream::iter((0..5 * 16).map(|_| Ok::<_, std::io::Error>(vec![b' '; 64 * 1024])));
    let call = node.call(Method::POST, "/v1/chat/completions").body(reqwest::Body::wrap_stream(chunks));
    let (status, _) = error(within(call.send()).await.unwrap()).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn paths_and_methods() {
    let node = Node::start().await;
    for (method, path, status, code) in [
        (Method::GET, "/", StatusCode::NOT_FOUND, "unknown_url"),
        (Method::POST, "/v1/embeddings", StatusCode::NOT_FOUND, "unknown_url"),
        (Method::GET, "/v1/chat/completions", StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        (Method::OPTIONS, "/v1/chat/completions", StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        (Method::POST, "/v1/models", StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        (Method::DELETE, "/health", StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
    ] {
        let response = node.call(method.clone(), path).send().await.unwrap();
        assert!(response.headers().keys().all(|name| !name.as_str().starts_with("access-control-")));
        assert_eq!(response.headers().contains_key("allow"), status == StatusCode::METHOD_NOT_ALLOWED);
        let (found, error) = error(response).await;
        assert_eq!((found, &error["code"]), (status, &json!(code)), "{method} {path}");
    }
}

#[tokio::test]
async fn failures_before_the_answer() {
    use JobErrorCode as Code;
    let mut node = Node::start().await;
    for (code, status, kind, name, retry) in [
        (Code::ModelNotFound, 404, "invalid_request_error", "model_not_found", false),
        (Code::InvalidRequest, 400, "invalid_request_error", "invalid_value", false),
        (Code::ContextLength, 400, "invalid_request_error", "context_length_exceeded", false),
        (Code::NoMaster, 503, "server_error", "no_master", true),
        (Code::NoCapacity, 503, "server_error", "no_capacity", true),
        (Code::Overloaded, 429, "requests", "rate_limit_exceeded", true),
        (Code::Timeout, 504, "server_error", "timeout", false),
        (Code::WorkerLost, 502, "server_error", "worker_lost", false),
        (Code::Internal, 500, "server_error", "internal_error", false),
    ] {
        for stream in [false, true] {
            let response = node.post("/v1/chat/completions", &chat(json!({"stream": stream})));
            send(&node.submission().await, failure(code)).await;
            let response = response.await.unwrap();
            assert_eq!(response.headers().contains_key("retry-after"), retry);
            let (found, error) = error(response).await;
            assert_eq!(found.as_u16(), status);
            assert_eq!(
                error,
                json!({"message": "what went wrong", "type": kind, "param": null, "code": name}),
                "{name}"
            );
        }
    }
    // The swarm's end goes away, or talks nonsense.
    let response = node.post("/v1/chat/completions", &chat(json!({})));
    drop(node.submission().await);
    assert_eq!(error(response.await.unwrap()).await.0, StatusCode::INTERNAL_SERVER_ERROR);
    let response = node.post("/v1/chat/completions", &chat(json!({})));
    send(&node.submission().await, token(0, "x")).await;
    assert_eq!(error(response.await.unwrap()).await.0, StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn failures_within_the_answer() {
    let mut node = Node::start().await;
    let response = node.post("/v1/chat/completions", &chat(json!({})));
    let submission = node.submission().await;
    send(&submission, accepted()).await;
    send(&submission, token(0, "x")).await;
    send(&submission, failure(JobErrorCode::WorkerLost)).await;
    assert_eq!(error(response.await.unwrap()).await.0, StatusCode::BAD_GATEWAY);

    let response = node.post("/v1/chat/completions", &chat(json!({"stream": true})));
    let submission = node.submission().await;
    send(&submission, accepted()).await;
    send(&submission, token(0, "x")).await;
    send(&submission, failure(JobErrorCode::WorkerLost)).await;
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let events = documents(&events(response).await);
    assert_eq!(events.len(), 3);
    assert_eq!(events[1]["choices"][0]["delta"]["content"], "x");
    assert_eq!(events[2]["error"]["code"], "worker_lost");
}

#[tokio::test]
async fn a_new_master_is_not_seen_by_the_client() {
    let mut node = Node::start().await;
    let response = node.post("/v1/chat/completions", &chat(json!({})));
    let submission = node.submission().await;
    send(&submission, accepted()).await;
    send(&submission, token(0, "a")).await;
    answer(&submission, &["b"], "").await;
    let body: Value = response.await.unwrap().json().await.unwrap();
    assert_eq!(body["choices"][0]["message"]["content"], "ab");
}

#[tokio::test]
async fn a_full_queue_is_told() {
    let mut node = Node::start_with("127.0.0.1:0", false, 1).await;
    let first = node.post("/v1/chat/completions", &chat(json!({})));
    // The second is refused only once the first is in the queue.
    let (status, error) = loop {
        let response = tokio::time::timeout(
            Duration::from_millis(500),
            node.call(Method::POST, "/v1/chat/completions").json(&chat(json!({}))).send(),
        );
        if let Ok(response) = response.await {
            break error(response.unwrap()).await;
        }
        node.submission().await;
    };
    assert_eq!((status, &error["code"]), (StatusCode::TOO_MANY_REQUESTS, &json!("rate_limit_exceeded")));
    first.abort();
}

#[tokio::test]
async fn completions_in_progress_are_limited() {
    let mut node = Node::start_with("127.0.0.1:0", false, 200).await;
    let mut in_progress = Vec::new();
    for _ in 0..128 {
        let response = node.post("/v1/chat/completions", &chat(json!({})));
        in_progress.push((response, node.submission().await));
    }
    let response = node.call(Method::POST, "/v1/chat/completions").json(&chat(json!({}))).send().await.unwrap();
    assert_eq!(response.headers()["retry-after"], "2");
    assert_eq!(error(response).await.0, StatusCode::TOO_MANY_REQUESTS);
    let (response, submission) = in_progress.pop().unwrap();
    answer(&submission, &["x"], "").await;
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);
    node.parsed("/v1/chat/completions", &chat(json!({}))).await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_job() {
    let mut node = Node::start().await;
    // Before the answer began, in one piece and as a stream.
    for stream in [false, true] {
        let response = node.post("/v1/chat/completions", &chat(json!({"stream": stream})));
        let submission = node.submission().await;
        response.abort();
        within(submission.events.closed()).await;
    }
    // While a whole answer is collected.
    let response = node.post("/v1/chat/completions", &chat(json!({})));
    let submission = node.submission().await;
    send(&submission, accepted()).await;
    send(&submission, token(0, "x")).await;
    response.abort();
    within(submission.events.closed()).await;
    // In the middle of a stream.
    let response = node.post("/v1/chat/completions", &chat(json!({"stream": true})));
    let submission = node.submission().await;
    send(&submission, accepted()).await;
    send(&submission, token(0, "x")).await;
    let mut response = response.await.unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    drop(response);
    within(submission.events.closed()).await;
}

#[tokio::test]
async fn a_silent_stream_is_kept_alive() {
    let mut node = Node::start().await;
    let response = node.post("/v1/chat/completions", &chat(json!({"stream": true})));
    let submission = node.submission().await;
    send(&submission, accepted()).await;
    let mut response = response.await.unwrap();
    let mut seen = String::new();
    while !seen.contains("\n:") {
        let chunk = within(response.chunk()).await.unwrap().unwrap();
        seen.push_str(std::str::from_utf8(&chunk).unwrap());
    }
}

#[tokio::test]
async fn models_are_listed() {
    let node = Node::start().await;
    let empty: Value = node.call(Method::GET, "/v1/models").send().await.unwrap().json().await.unwrap();
    assert_eq!(empty, json!({"object": "list", "data": []}));
    node.status.send_modify(|status| {
        status.models = vec![ModelStatus { name: MODEL.to_owned(), digest: "00".repeat(32), layers: 4, context: 128 }];
    });
    let list: Value = node.call(Method::GET, "/v1/models").send().await.unwrap().json().await.unwrap();
    let model = &list["data"][0];
    assert_eq!((&model["id"], &model["object"]), (&json!(MODEL), &json!("model")));
    assert!(model["created"].is_u64() && model["owned_by"].is_string());
    for path in ["/v1/models/org/tiny", "/v1/models/org%2Ftiny"] {
        let one: Value = node.call(Method::GET, path).send().await.unwrap().json().await.unwrap();
        assert_eq!(&one, model);
    }
    let (status, error) = error(node.call(Method::GET, "/v1/models/other").send().await.unwrap()).await;
    assert_eq!((status, &error["code"]), (StatusCode::NOT_FOUND, &json!("model_not_found")));
}

#[tokio::test]
async fn health_and_status() {
    let node = Node::start().await;
    let health = node.call(Method::GET, "/health").send().await.unwrap();
    assert_eq!(health.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(health.json::<Value>().await.unwrap(), json!({"status": "starting", "ready": false}));
    node.status.send_modify(|status| {
        status.ready = true;
        status.term = 12;
    });
    let health = node.call(Method::GET, "/health").send().await.unwrap();
    assert_eq!(health.status(), StatusCode::OK);
    assert_eq!(health.json::<Value>().await.unwrap(), json!({"status": "ok", "ready": true}));
    let status: NodeStatus = node.call(Method::GET, "/status.json").send().await.unwrap().json().await.unwrap();
    assert_eq!(status, *node.status.borrow());
}

#[tokio::test]
async fn keys_where_they_are_required() {
    let mut node = Node::start_with("127.0.0.1:0", true, 8).await;
    let (id, secret) = node.keys.create("test").unwrap();
    for path in ["/v1/models", "/v1/chat/completions", "/status.json", "/nowhere"] {
        for (header, code) in [
            (None, "missing_api_key"),
            (Some("Bearer".to_owned()), "missing_api_key"),
            (Some(format!("Basic {secret}")), "missing_api_key"),
            (Some("Bearer ck-wrong".to_owned()), "invalid_api_key"),
            (Some(format!("Bearer {secret}x")), "invalid_api_key"),
        ] {
            let mut call = node.call(Method::GET, path);
            if let Some(header) = header {
                call = call.header("authorization", header);
            }
            let response = call.send().await.unwrap();
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
            let (status, error) = error(response).await;
            assert_eq!((status, &error["code"]), (StatusCode::UNAUTHORIZED, &json!(code)), "{path}");
            assert_eq!(error["type"], "invalid_request_error");
        }
    }
    let health = node.call(Method::GET, "/health").send().await.unwrap();
    assert_eq!(health.status(), StatusCode::SERVICE_UNAVAILABLE);
    for path in ["/v1/models", "/status.json"] {
        let response = node.call(Method::GET, path).bearer_auth(&secret).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
    let call = node.call(Method::POST, "/v1/chat/completions").bearer_auth(&secret).json(&chat(json!({})));
    let response = tokio::spawn(async move { call.send().await.unwrap() });
    answer(&node.submission().await, &["x"], "").await;
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);

    node.keys.revoke(&id).unwrap();
    let response = node.call(Method::GET, "/v1/models").bearer_auth(&secret).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn any_key_passes_where_none_is_required() {
    let node = Node::start().await;
    let response = node.call(Method::GET, "/v1/models").bearer_auth("sk-anything").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

/// Sends bytes as they are and returns the status code, or none where the connection is closed without an answer.
async fn raw(address: SocketAddr, request: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    within(stream.read_to_end(&mut answer)).await.unwrap();
    let line = String::from_utf8_lossy(&answer);
    line.split(' ').nth(1).map(|code| code.parse().unwrap())
}

#[tokio::test]
async fn other_hosts_and_origins_are_refused() {
    let node = Node::start().await;
    let port = node.address.port();
    let get = |target: &str, headers: &str| format!("GET {target} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
    for host in ["localhost", "127.0.0.1", "127.0.0.1:1", "[::1]:8080", "LocalHost:80"] {
        assert_eq!(raw(node.address, &get("/v1/models", &format!("Host: {host}\r\n"))).await, Some(200), "{host}");
    }
    for host in ["evil.example", "evil.example:8080", "192.168.1.5", "localhost.evil.example", "0.0.0.0"] {
        for path in ["/v1/models", "/status.json", "/health", "/nowhere"] {
            assert_eq!(raw(node.address, &get(path, &format!("Host: {host}\r\n"))).await, Some(403), "{host} {path}");
        }
    }
    for headers in ["", "Host: \r\n", "Host: a b\r\n", "Host: localhost\r\nHost: evil.example\r\n"] {
        assert_eq!(raw(node.address, &get("/v1/models", headers)).await, Some(400), "{headers:?}");
    }
    let absolute = get("http://evil.example/v1/models", "Host: localhost\r\n");
    assert_eq!(raw(node.address, &absolute).await, Some(403));

    let origin = |origin: &str| get("/v1/models", &format!("Host: 127.0.0.1:{port}\r\nOrigin: {origin}\r\n"));
    assert_eq!(raw(node.address, &origin(&format!("http://127.0.0.1:{port}"))).await, Some(200));
    for other in ["http://evil.example", "null", "http://127.0.0.1:1"] {
        assert_eq!(raw(node.address, &origin(other)).await, Some(403), "{other}");
    }
}

#[tokio::test]
async fn public_addresses_take_any_host() {
    let node = Node::start_with("0.0.0.0:0", false, 8).await;
    let address = SocketAddr::from(([127, 0, 0, 1], node.address.port()));
    let request = "GET /v1/models HTTP/1.1\r\nConnection: close\r\nHost: my.node.example\r\n\r\n";
    assert_eq!(raw(address, request).await, Some(200));
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let node = Node::start().await;
    let request = format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(128 * 1024));
    let mut stream = TcpStream::connect(node.address).await.unwrap();
    // The node may close before it has all of it.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = within(stream.read_to_end(&mut answer)).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn answers_in_progress_survive_the_end_of_the_node() {
    let mut node = Node::start().await;
    let response = node.post("/v1/chat/completions", &chat(json!({"stream": true})));
    let submission = node.submission().await;
    send(&submission, accepted()).await;
    let response = response.await.unwrap();
    node.shutdown.cancel();
    send(&submission, token(0, "still here")).await;
    let usage = Usage { prompt_tokens: 7, completion_tokens: 1 };
    send(&submission, JobEvent::Done { finish: FinishReason::Length, usage, text: String::new() }).await;
    let events = events(response).await;
    assert!(events.iter().any(|event| event.contains("still here")));
    assert!(events.iter().any(|event| event.contains("\"finish_reason\":\"length\"")));
    assert_eq!(events.last().unwrap(), "[DONE]");
    within(node.served).await.unwrap().unwrap();
    assert!(TcpStream::connect(node.address).await.is_err());
}

#[tokio::test]
async fn answers_that_do_not_end_are_ended() {
    let mut node = Node::start().await;
    let response = node.post("/v1/chat/completions", &chat(json!({"stream": true})));
    let submission = node.submission().await;
    send(&submission, accepted()).await;
    let response = response.await.unwrap();
    node.shutdown.cancel();
    let events = documents(&events(response).await);
    assert_eq!(events.last().unwrap()["error"]["code"], "shutting_down");
    within(submission.events.closed()).await;
    within(node.served).await.unwrap().unwrap();
}
