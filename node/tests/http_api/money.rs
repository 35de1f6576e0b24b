//! What it costs, told before, reserved while it is made, and charged after.

use consortium_ledger::accounts::{Balances, Owner};
use consortium_ledger::api_keys::KeyId;
use consortium_ledger::cells::Cells;
use consortium_ledger::metering::{JobRecord, StageWork, Terms};
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::heartbeat::LayerRange;

use crate::support::*;

/// A node whose pipeline costs 2 * 1 + 2 * 9 = 20 msat a token, and 1 msat of fee, with a key that has some credit.
struct Shop {
    node: Node,
    id: KeyId,
    secret: String,
}

impl Shop {
    async fn open(credit: u64) -> Self {
        let node = Node::start().await;
        node.serve_at(9);
        let (id, secret) = node.keys.create("customer").unwrap();
        node.ledger.grant_trial(&id, Msat(credit), 1).unwrap();
        Self { node, id, secret }
    }

    fn post(&self, path: &str, body: &Value) -> JoinHandle<Response> {
        let call = self.node.call(Method::POST, path).bearer_auth(&self.secret).json(body);
        tokio::spawn(async move { call.send().await.unwrap() })
    }

    async fn get(&self, path: &str) -> Response {
        self.node.call(Method::GET, path).bearer_auth(&self.secret).send().await.unwrap()
    }

    fn owner(&self) -> Owner {
        Owner::Key(self.id.clone())
    }

    fn balance(&self) -> (i64, i64) {
        let Balances { free, bonded, .. } = self.node.ledger.account(&self.owner()).unwrap().balance;
        (free, bonded)
    }

    /// What is given back is given back by another thread.
    async fn balance_becomes(&self, expected: (i64, i64)) {
        let wait = async {
            while self.balance() != expected {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        assert!(waited.is_ok(), "{:?}, not {expected:?}", self.balance());
    }
}

/// Books what the stages did, as the node does with the receipts of a job: 20 msat a position.
fn book(shop: &Shop, submission: &Submission, positions: u32) {
    let work = |stage: u16, worker: u8, layers: (u16, u16), price| StageWork {
        stage,
        worker: RootKey::from_seed([worker; 32]).node_id(),
        cells: Cells { layers: LayerRange { first: layers.0, last: layers.1 }, start: 0, stop: positions },
        price: Msat(price),
        receipt: Hash::of(&[worker]),
        drawn: false,
    };
    let record = JobRecord {
        job: submission.request.job,
        attempt: 1,
        payer: submission.account.owner(),
        fee: FEE,
        stages: vec![work(0, 1, (0, 1), 1), work(1, 2, (2, 3), 9)],
    };
    shop.node.ledger.record_job(&record, &Terms::default(), 2).unwrap();
}

/// A prompt of 10 tokens.
fn ten(more: Value) -> Value {
    let mut body = text(more);
    body["prompt"] = json!([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    body
}

#[tokio::test]
async fn a_job_is_charged_to_its_key() {
    let mut shop = Shop::open(1000).await;
    let response = shop.post("/v1/completions", &ten(json!({"max_tokens": 20})));
    let submission = shop.node.submission().await;
    assert_eq!(submission.account.owner(), shop.owner());
    assert_eq!(shop.balance(), (1000 - 30 * 21, 30 * 21), "prompt and max_tokens, with the fee");
    answer(&submission, &["a", "b", "c"], "").await;
    let body: Value = response.await.unwrap().json().await.unwrap();
    // The test's swarm says 7 tokens of prompt.
    assert_eq!(
        body["usage"],
        json!({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "cost_msat": 210})
    );
    shop.balance_becomes((790, 210)).await;
    book(&shop, &submission, 9);
    drop(submission);
    // 18 and 162 for the stages, and of each the fee in whole msat.
    shop.balance_becomes((1000 - 180 - 8, 0)).await;
    let sums = shop.node.ledger.reconcile().unwrap();
    assert!(sums.is_exact(), "{sums:?}");
}

#[tokio::test]
async fn who_has_too_little_is_told_how_much_is_wanting() {
    let mut shop = Shop::open(1000).await;
    let answer_402 = |response: Response| async move {
        let (status, error) = error(response).await;
        assert_eq!((status, &error["type"]), (StatusCode::PAYMENT_REQUIRED, &json!("insufficient_quota")));
        assert_eq!((&error["code"], &error["param"]), (&json!("insufficient_quota"), &Value::Null));
        error["message"].as_str().unwrap().to_owned()
    };
    // Without max_tokens, all that the context leaves.
    let chat_body = chat(json!({}));
    let message = answer_402(shop.post("/v1/chat/completions", &chat_body).await.unwrap()).await;
    assert!(message.contains("up to 2688 msat") && message.contains("has 1000 msat"), "{message}");
    let first = shop.post("/v1/completions", &ten(json!({"max_tokens": 30})));
    let submission = shop.node.submission().await;
    let message = answer_402(shop.post("/v1/completions", &ten(json!({"max_tokens": 0x10}))).await.unwrap()).await;
    assert!(message.contains("has 160 msat") && message.contains("840 msat are put aside"), "{message}");
    assert!(shop.node.queue.try_recv().is_err(), "what cannot be paid does not reach the swarm");
    drop(submission);
    let (status, _) = error(first.await.unwrap()).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    shop.balance_becomes((1000, 0)).await;
}

#[tokio::test]
async fn failures_and_clients_that_leave_cost_nothing() {
    let mut shop = Shop::open(1000).await;
    let body = ten(json!({"max_tokens": 20, "stream": true}));
    let response = shop.post("/v1/completions", &body);
    let submission = shop.node.submission().await;
    send(&submission, failure(JobErrorCode::WorkerLost)).await;
    assert_eq!(response.await.unwrap().status(), StatusCode::BAD_GATEWAY);
    drop(submission);
    shop.balance_becomes((1000, 0)).await;

    let response = shop.post("/v1/completions", &body);
    let submission = shop.node.submission().await;
    send(&submission, accepted()).await;
    send(&submission, token(0, "a")).await;
    drop(response.await.unwrap());
    within(submission.events.closed()).await;
    assert_eq!(shop.balance().1, 630, "the job is not over before the swarm has let go of it");
    drop(submission);
    shop.balance_becomes((1000, 0)).await;
}

#[tokio::test]
async fn a_queue_that_is_full_gives_everything_back() {
    let node = Node::start_with("127.0.0.1:0", false, 1).await;
    node.serve_at(9);
    let (id, secret) = node.keys.create("customer").unwrap();
    node.ledger.grant_trial(&id, Msat(1000), 1).unwrap();
    let mut shop = Shop { node, id, secret };
    let body = ten(json!({"max_tokens": 5}));
    let first = shop.post("/v1/completions", &body);
    shop.balance_becomes((1000 - 315, 315)).await;
    // The first one is in the queue as soon as its credit is put aside, or an instant later.
    let mut refused = StatusCode::OK;
    while refused != StatusCode::TOO_MANY_REQUESTS {
        let call = shop.node.call(Method::POST, "/v1/completions").bearer_auth(&shop.secret).json(&body);
        refused = within(call.send()).await.unwrap().status();
    }
    shop.balance_becomes((1000 - 315, 315)).await;
    answer(&shop.node.submission().await, &["x"], "").await;
    assert_eq!(first.await.unwrap().status(), StatusCode::OK);
    shop.balance_becomes((1000, 0)).await;
}

#[tokio::test]
async fn what_is_free_is_refused_to_nobody() {
    let mut shop = Shop::open(0).await;
    shop.node.serve_at(0);
    let response = shop.post("/v1/chat/completions", &chat(json!({})));
    let submission = shop.node.submission().await;
    assert_eq!(submission.account.owner(), shop.owner());
    answer(&submission, &["a"], "").await;
    let body: Value = response.await.unwrap().json().await.unwrap();
    assert_eq!(body["usage"]["cost_msat"], 0);
    assert_eq!(shop.node.ledger.length().unwrap(), 1, "nothing was booked but the credit of zero");
}

#[tokio::test]
async fn without_a_key_the_node_pays_and_nothing_is_reserved() {
    let mut shop = Shop::open(0).await;
    for key in [None, Some("sk-anything"), Some("ck-unknown")] {
        let mut call = shop.node.call(Method::POST, "/v1/chat/completions").json(&chat(json!({})));
        if let Some(key) = key {
            call = call.bearer_auth(key);
        }
        let response = tokio::spawn(async move { call.send().await.unwrap() });
        let submission = shop.node.submission().await;
        assert_eq!(submission.account.owner().to_string(), "own/spent");
        answer(&submission, &["a", "b", "c"], "").await;
        let body: Value = response.await.unwrap().json().await.unwrap();
        assert_eq!(body["usage"]["cost_msat"], 180, "of which its own stage is none");
    }
}

#[tokio::test]
async fn nothing_begins_before_its_price_is_known() {
    let mut shop = Shop::open(1000).await;
    shop.node.status.send_modify(|status| status.ready = false);
    let response = shop.post("/v1/completions", &ten(json!({"max_tokens": 5})));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(shop.node.queue.try_recv().is_err());
    shop.node.status.send_modify(|status| status.ready = true);
    answer(&shop.node.submission().await, &["x"], "").await;
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);

    // A model that nobody serves is the master's to refuse.
    let mut other = ten(json!({}));
    other["model"] = json!("other");
    let response = shop.post("/v1/completions", &other);
    send(&shop.node.submission().await, failure(JobErrorCode::ModelNotFound)).await;
    assert_eq!(response.await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn quotes_are_given_beforehand() {
    let mut shop = Shop::open(1000).await;
    let quote: Value = shop.post("/v1/quote", &ten(json!({"max_tokens": 40}))).await.unwrap().json().await.unwrap();
    let pricing = json!({"unit": "msat", "prompt": "21", "completion": "21", "request": "0", "fee_thousandths": 50});
    assert_eq!(
        quote,
        json!({
            "object": "quote", "model": MODEL, "prompt_tokens": 10, "prompt_tokens_counted": false, "max_tokens": 40,
            "pricing": pricing, "prompt_msat": 200, "work_msat": 1000, "master_msat": 0, "fee_msat": 50,
            "total_msat": 1050, "free_msat": 1000, "sufficient": false,
        })
    );
    let quote: Value = shop.post("/v1/quote", &chat(json!({}))).await.unwrap().json().await.unwrap();
    assert_eq!((&quote["total_msat"], &quote["prompt_tokens_counted"]), (&json!(128 * 21), &json!(false)));
    // To the node itself its own stage costs nothing, and it takes no fee from itself.
    let quote: Value =
        shop.node.post("/v1/quote", &ten(json!({"max_tokens": 40}))).await.unwrap().json().await.unwrap();
    assert_eq!((&quote["total_msat"], quote.get("sufficient")), (&json!(900), None));

    let models: Value = shop.get("/v1/models").await.json().await.unwrap();
    assert_eq!(models["data"][0]["pricing"], pricing);
    let (status, refused) = error(shop.post("/v1/quote", &text(json!({"max_tokens": 0}))).await.unwrap()).await;
    assert_eq!((status, &refused["param"]), (StatusCode::BAD_REQUEST, &json!("max_tokens")));
    let mut other = ten(json!({}));
    other["model"] = json!("other");
    let (status, refused) = error(shop.post("/v1/quote", &other).await.unwrap()).await;
    assert_eq!((status, &refused["code"]), (StatusCode::NOT_FOUND, &json!("model_not_found")));
    shop.node.status.send_modify(|status| status.stages.clear());
    let (status, _) = error(shop.post("/v1/quote", &ten(json!({}))).await.unwrap()).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(shop.node.queue.try_recv().is_err(), "asking is not ordering");
}

#[tokio::test]
async fn a_quote_tells_what_the_master_gets() {
    let shop = Shop::open(1000).await;
    shop.node.status.send_modify(|status| {
        let master = &mut status.members[0];
        master.master_fee_msat = 5;
        status.master = Some(master.peer_id.clone());
    });
    let quote: Value = shop.post("/v1/quote", &ten(json!({"max_tokens": 40}))).await.unwrap().json().await.unwrap();
    let told = ["master_msat", "work_msat", "fee_msat", "total_msat"].map(|field| quote[field].as_u64().unwrap());
    assert_eq!(told, [250, 1250, 62, 1312]);
}

#[tokio::test]
async fn a_key_sees_its_own_account_and_no_other() {
    let mut shop = Shop::open(1000).await;
    let (stranger, _) = shop.node.keys.create("stranger").unwrap();
    shop.node.ledger.grant_trial(&stranger, Msat(5), 1).unwrap();
    let response = shop.post("/v1/completions", &ten(json!({"max_tokens": 20})));
    let submission = shop.node.submission().await;
    let account: Value = shop.get("/v1/account").await.json().await.unwrap();
    let expected = json!({
        "object": "account", "account": format!("key/{}", shop.id), "free_msat": 370, "reserved_msat": 630,
        "balance_msat": 1000, "spent_msat": 0,
    });
    assert_eq!(account, expected);
    answer(&submission, &["a", "b", "c"], "").await;
    response.await.unwrap();
    book(&shop, &submission, 9);
    let job = submission.request.job.to_string();
    drop(submission);
    shop.balance_becomes((812, 0)).await;

    let mut whole: Value = shop.get("/v1/account/statement").await.json().await.unwrap();
    assert_eq!((&whole["opening"]["free"], &whole["closing"]["free"]), (&json!(0), &json!(812)));
    let lines = whole["lines"].as_array_mut().unwrap();
    assert_eq!((&lines[0]["kind"], &lines[1]["kind"]), (&json!("trial"), &json!("reserved")));
    let work = lines.iter().find(|line| line["kind"] == "work").unwrap();
    assert_eq!(work["work"], json!({"job": job, "tokens": 9, "fee": 8}));
    let page: Value = shop.get("/v1/account/statement?limit=1&after=0&from=1970-01-01").await.json().await.unwrap();
    assert_eq!((page["lines"].as_array().unwrap().len(), page["next"].is_u64()), (1, true));
    let before: Value = shop.get("/v1/account/statement?to=1").await.json().await.unwrap();
    assert_eq!(before["lines"], json!([]));

    let table = shop.get("/v1/account/statement?format=csv").await;
    assert_eq!(table.headers()["content-type"], "text/csv; charset=utf-8");
    let table = table.text().await.unwrap();
    assert!(table.contains(&format!(",work,{job},9,8,-188,")), "{table}");
    let call = shop.node.call(Method::GET, "/v1/account/statement?limit=1").bearer_auth(&shop.secret);
    let accepted = call.header("accept", "text/csv;q=0.9, */*").send().await.unwrap();
    assert_eq!(
        (&accepted.headers()["content-type"], accepted.headers().contains_key("x-next-after")),
        (&reqwest::header::HeaderValue::from_static("text/csv; charset=utf-8"), true)
    );

    for query in ["owner=own/earned", "from=yesterday", "limit=100000", "format=xml", "limit=1&limit=2", "after=-1"] {
        let (status, _) = error(shop.get(&format!("/v1/account/statement?{query}")).await).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}");
    }
    for path in ["/v1/account", "/v1/account/statement"] {
        let (status, error) = error(shop.node.call(Method::GET, path).send().await.unwrap()).await;
        assert_eq!((status, &error["code"]), (StatusCode::UNAUTHORIZED, &json!("missing_api_key")));
    }
}
