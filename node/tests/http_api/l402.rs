//! Customers who pay by the bundle: asked, let in, charged, topped up, paid back.

use std::sync::Arc;

use consortium_ledger::accounts::Owner;
use consortium_ledger::api_keys::KeyId;
use consortium_ledger::l402::{Challenge, Macaroon};
use consortium_ledger::payments::{Direction, Moved};
use consortium_node::till::TillSettings;
use consortium_protocol::msat::Msat;

use crate::purse::{Purse, sha256};
use crate::support::*;

/// A node that sells to everybody, at 21 msat a token with the fee; a bundle is 2 sat, and an account may have 10.
struct Stall {
    node: Node,
    purse: Arc<Purse>,
}

/// What a customer has after it paid.
struct Customer {
    macaroon: String,
    preimage: String,
    account: KeyId,
}

impl Customer {
    fn header(&self) -> String {
        format!("L402 {}:{}", self.macaroon, self.preimage)
    }

    /// The credential of somebody to whom the macaroon was given with these caveats.
    fn narrowed(&self, caveats: &[&str]) -> String {
        let macaroon = Macaroon::from_text(&self.macaroon).unwrap();
        let narrow = caveats.iter().try_fold(macaroon, |m, caveat| m.with_caveat(caveat)).unwrap();
        format!("L402 {}:{}", narrow.to_text(), self.preimage)
    }
}

const SALE: TillSettings =
    TillSettings { open_to_all: true, bundle: Msat(2000), max_credit: Msat(10_000), max_custody: Msat(40_000) };

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Stall {
    async fn open() -> Self {
        Self::with("127.0.0.1:0", false, SALE).await
    }

    async fn with(bind: &str, require_key: bool, sale: TillSettings) -> Self {
        let purse = Arc::new(Purse::default());
        let node = Node::start_selling(bind, require_key, 8, Some((Arc::clone(&purse), sale))).await;
        node.serve_at(9);
        Self { node, purse }
    }

    async fn send(&self, method: Method, path: &str, credential: Option<&str>, body: Option<&Value>) -> Response {
        let mut call = self.node.call(method, path);
        if let Some(credential) = credential {
            call = call.header("authorization", credential);
        }
        if let Some(body) = body {
            call = call.json(body);
        }
        call.send().await.unwrap()
    }

    async fn ask(&self, credential: Option<&str>, body: &Value) -> Response {
        self.send(Method::POST, "/v1/completions", credential, Some(body)).await
    }

    /// Books the payment of an invoice, as the bookkeeper does.
    fn book(&self, invoice: &str) -> String {
        let (preimage, amount) = self.purse.opened(invoice);
        let moved = Moved { direction: Direction::Incoming, hash: sha256(&preimage), amount, fee: Msat(0) };
        self.node.ledger.book_payment(&moved, 1).unwrap();
        hex(&preimage)
    }

    fn pay(&self, response: &Response) -> Customer {
        let challenge = challenge(response);
        let preimage = self.book(&challenge.invoice);
        let hash = sha256(&self.purse.opened(&challenge.invoice).0);
        let payment = self.node.ledger.payment(Direction::Incoming, &hash).unwrap().unwrap();
        let Owner::Key(account) = payment.owner else { panic!("{payment:?}") };
        Customer { macaroon: challenge.macaroon, preimage, account }
    }

    /// Somebody with a bundle.
    async fn customer(&self) -> Customer {
        let response = self.ask(None, &ten(20)).await;
        assert_eq!(response.status(), StatusCode::PAYMENT_REQUIRED);
        self.pay(&response)
    }

    fn balance(&self, customer: &Customer) -> (i64, i64) {
        let balance = self.node.ledger.account(&Owner::Key(customer.account.clone())).unwrap().balance;
        (balance.free, balance.bonded)
    }

    async fn balance_becomes(&self, customer: &Customer, expected: (i64, i64)) {
        let waiting = async {
            while self.balance(customer) != expected {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(waited.is_ok(), "{:?}, not {expected:?}", self.balance(customer));
    }

    /// A request that is let in and answered with `tokens` tokens; the work is not booked.
    async fn served(&mut self, credential: &str, body: &Value, tokens: usize) -> Value {
        let call = self.node.call(Method::POST, "/v1/completions").header("authorization", credential).json(body);
        let response = tokio::spawn(async move { call.send().await.unwrap() });
        let submission = self.node.submission().await;
        answer(&submission, &vec!["x"; tokens], "").await;
        let response = response.await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.json().await.unwrap()
    }
}

fn challenge(response: &Response) -> Challenge {
    let header = response.headers()["www-authenticate"].to_str().unwrap();
    assert!(header.starts_with("L402 macaroon=\""), "{header}");
    assert!(header.contains(", version=\"0\", token=\""), "{header}");
    Challenge::parse(header).unwrap()
}

/// A prompt of 10 tokens.
fn ten(max_tokens: u32) -> Value {
    text(json!({"prompt": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "max_tokens": max_tokens}))
}

async fn refusal(response: Response) -> (StatusCode, String) {
    let (status, error) = error(response).await;
    (status, error["code"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn who_has_nothing_is_asked_pays_and_is_served_many_times() {
    let mut stall = Stall::open().await;
    let response = stall.ask(None, &ten(20)).await;
    assert_eq!(
        (response.status(), &response.headers()["cache-control"]),
        (StatusCode::PAYMENT_REQUIRED, &"no-store".parse().unwrap())
    );
    let customer = stall.pay(&response);
    let body: Value = response.json().await.unwrap();
    let (error, payment) = (&body["error"], &body["error"]["payment"]);
    assert_eq!((&error["type"], &error["code"]), (&json!("insufficient_quota"), &json!("payment_required")));
    assert_eq!((&payment["amount_msat"], &payment["needed_msat"]), (&json!(2000), &json!(630)));
    assert_eq!(payment["account"], json!(format!("key/{}", customer.account)));
    assert!(payment["expires_at"].as_u64() > Some(crate::purse::now_s()) && payment["invoice"] == "invoice0");
    assert!(stall.node.queue.try_recv().is_err(), "nobody works for it yet");

    for left in [2000, 2000 - 210] {
        assert_eq!(stall.balance(&customer).0, left);
        let body = stall.served(&customer.header(), &ten(20), 3).await;
        // The test's swarm says 7 tokens of prompt.
        assert_eq!(body["usage"]["cost_msat"], json!(210));
        // No work is booked in this test, so that all of it comes back.
        stall.balance_becomes(&customer, (left, 0)).await;
        if left == 2000 {
            let owner = Owner::Key(customer.account.clone());
            stall.node.ledger.withdraw(&owner, Msat(210), Hash::of(b"used"), 1).unwrap();
        }
    }
}

#[tokio::test]
async fn what_is_reserved_comes_back_when_the_customer_stops() {
    let mut stall = Stall::open().await;
    let customer = stall.customer().await;
    let mut body = ten(20);
    body["stream"] = json!(true);
    let call = stall.node.call(Method::POST, "/v1/completions").header("authorization", customer.header()).json(&body);
    let response = tokio::spawn(async move { call.send().await.unwrap() });
    let submission = stall.node.submission().await;
    send(&submission, accepted()).await;
    send(&submission, token(0, "x")).await;
    assert_eq!(stall.balance(&customer), (2000 - 630, 630));
    drop(response.await.unwrap());
    within(submission.events.closed()).await;
    drop(submission);
    stall.balance_becomes(&customer, (2000, 0)).await;
}

#[tokio::test]
async fn the_operator_is_served_free_of_charge() {
    let mut stall = Stall::open().await;
    let token = stall.node.operator.clone();
    let call = stall.node.call(Method::POST, "/v1/completions").header("consortium-operator", token).json(&ten(20));
    let response = tokio::spawn(async move { call.send().await.unwrap() });
    let submission = stall.node.submission().await;
    assert_eq!(submission.account.owner().to_string(), "own/spent");
    answer(&submission, &["x"], "").await;
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);
    let call = stall.node.call(Method::POST, "/v1/completions").header("consortium-operator", "0".repeat(64));
    assert_eq!(call.json(&ten(20)).send().await.unwrap().status(), StatusCode::PAYMENT_REQUIRED);
}

#[tokio::test]
async fn what_costs_nothing_is_free_for_all() {
    let mut stall = Stall::open().await;
    stall.node.serve_at(0);
    let call = stall.node.post("/v1/completions", &ten(20));
    let submission = stall.node.submission().await;
    answer(&submission, &["x"], "").await;
    assert_eq!(call.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn bad_credentials_are_refused() {
    let stall = Stall::open().await;
    let customer = stall.customer().await;
    let unpaid = challenge(&stall.ask(None, &ten(20)).await);
    let revoked = stall.customer().await;
    stall.node.ledger.l402_revoke(&revoked.account, 1).unwrap();
    let expired = customer.narrowed(&["consortium_valid_until=1"]);
    let widened = customer.narrowed(&["consortium_models=a", "consortium_models=b"]);
    for wrong in [
        format!("L402 {}:{}", customer.macaroon, "ff".repeat(32)),
        format!("L402 {}:{}", unpaid.macaroon, customer.preimage),
        format!("L402 {}", customer.macaroon),
        "L402 x:y".to_owned(),
        "L402".to_owned(),
        revoked.header(),
        expired,
        widened,
    ] {
        for path in ["/v1/completions", "/v1/models", "/v1/account"] {
            let method = if path == "/v1/completions" { Method::POST } else { Method::GET };
            let response = stall.send(method, path, Some(&wrong), Some(&ten(20))).await;
            assert_eq!(refusal(response).await, (StatusCode::UNAUTHORIZED, "invalid_credential".to_owned()), "{wrong}");
        }
    }
    let secret = "ck-1111111111111111111111111111";
    let response = stall.ask(Some(&format!("Bearer {secret}")), &ten(20)).await;
    assert_eq!(refusal(response).await, (StatusCode::UNAUTHORIZED, "invalid_api_key".to_owned()));
    // Many clients cannot do without a key: what is none asks for payment like none.
    assert_eq!(stall.ask(Some("Bearer sk-x"), &ten(20)).await.status(), StatusCode::PAYMENT_REQUIRED);
}

#[tokio::test]
async fn a_payment_that_is_on_its_way_into_the_books_is_waited_for() {
    let mut stall = Stall::open().await;
    let asked = challenge(&stall.ask(None, &ten(20)).await);
    let credential = format!("L402 {}:{}", asked.macaroon, hex(&stall.purse.opened(&asked.invoice).0));
    let call = stall.node.call(Method::POST, "/v1/completions").header("authorization", credential).json(&ten(20));
    let response = tokio::spawn(async move { call.send().await.unwrap() });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!response.is_finished());
    stall.book(&asked.invoice);
    answer(&stall.node.submission().await, &["x"], "").await;
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_token_whose_credit_runs_out_is_topped_up() {
    let mut stall = Stall::open().await;
    let customer = stall.customer().await;
    let owner = Owner::Key(customer.account.clone());
    stall.node.ledger.withdraw(&owner, Msat(1500), Hash::of(b"used"), 1).unwrap();
    let response = stall.ask(Some(&customer.header()), &ten(20)).await;
    assert_eq!(response.status(), StatusCode::PAYMENT_REQUIRED);
    let again = stall.pay(&response);
    let body: Value = response.json().await.unwrap();
    assert!(body["error"]["message"].as_str().unwrap().contains("has 500 msat"), "{body}");
    assert_eq!((&again.account, stall.balance(&customer)), (&customer.account, (2500, 0)));
    // Either credential spends the credit of both.
    stall.served(&customer.header(), &ten(60), 1).await;
    stall.served(&again.header(), &ten(60), 1).await;
    // More than a bundle is asked for where it is needed, in whole sats, and never more than an account may have.
    let response = stall.ask(None, &ten(118)).await;
    let payment = response.json::<Value>().await.unwrap()["error"]["payment"].clone();
    assert_eq!((&payment["needed_msat"], &payment["amount_msat"]), (&json!(2688), &json!(3000)));
    stall.node.serve_at(100);
    let response = stall.ask(None, &ten(118)).await;
    assert!(!response.headers().contains_key("www-authenticate"));
    let (status, error) = error(response).await;
    let message = error["message"].as_str().unwrap();
    assert!(status == StatusCode::PAYMENT_REQUIRED && message.contains("may have 10000 msat"), "{message}");
}

#[tokio::test]
async fn a_narrowed_credential_is_held_to_its_caveats() {
    let mut stall = Stall::open().await;
    let customer = stall.customer().await;
    let refused = async |stall: &Stall, caveat: &str, body: &Value| {
        refusal(stall.ask(Some(&customer.narrowed(&[caveat])), body).await).await
    };
    let forbidden = |code: &str| (StatusCode::FORBIDDEN, code.to_owned());
    assert_eq!(refused(&stall, "consortium_models=other", &ten(20)).await, forbidden("credential_not_allowed"));
    assert_eq!(refused(&stall, "consortium_capabilities=account", &ten(20)).await, forbidden("credential_not_allowed"));
    assert_eq!(refused(&stall, "consortium_budget_msat=629", &ten(20)).await, forbidden("budget_exhausted"));

    let budget = customer.narrowed(&["consortium_budget_msat=700", &format!("consortium_models={MODEL}")]);
    stall.served(&budget, &ten(20), 3).await;
    stall.balance_becomes(&customer, (2000, 0)).await;
    let view: Value = stall.send(Method::GET, "/v1/account", Some(&budget), None).await.json().await.unwrap();
    assert_eq!((&view["free_msat"], &view["budget_left_msat"]), (&json!(2000), &json!(700)));

    let slow = customer.narrowed(&["consortium_requests_per_minute=1"]);
    stall.served(&slow, &ten(20), 1).await;
    let response = stall.ask(Some(&slow), &ten(20)).await;
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(refusal(response).await, (StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded".to_owned()));

    // It takes nothing out, and a top-up would be of an account of its own: nobody buys a wide one with a narrow one.
    for path in ["/v1/account/refund", "/v1/account/topup"] {
        let body = json!({"invoice": "theirs:1000", "sats": 1});
        let response = stall.send(Method::POST, path, Some(&budget), Some(&body)).await;
        assert_eq!(refusal(response).await, forbidden("credential_not_allowed"), "{path}");
    }
    let response = stall.ask(Some(&customer.narrowed(&["x=y"])), &ten(110)).await;
    assert_eq!(response.status(), StatusCode::PAYMENT_REQUIRED);
    assert_ne!(stall.pay(&response).account, customer.account);
}

#[tokio::test]
async fn an_api_key_is_topped_up_too() {
    // A node that has a wallet and sells to nobody but its keys.
    let mut stall = Stall::with("127.0.0.1:0", false, TillSettings { open_to_all: false, ..SALE }).await;
    let (id, secret) = stall.node.keys.create("").unwrap();
    stall.node.ledger.grant_trial(&id, Msat(100), 1).unwrap();
    let bearer = format!("Bearer {secret}");
    let response = stall.ask(Some(&bearer), &ten(20)).await;
    assert_eq!(response.status(), StatusCode::PAYMENT_REQUIRED);
    let customer = stall.pay(&response);
    assert_eq!((&customer.account, stall.balance(&customer)), (&id, (2100, 0)));
    stall.served(&bearer, &ten(20), 1).await;
    stall.served(&customer.header(), &ten(20), 1).await;

    let topup = json!({"sats": 3});
    let response = stall.send(Method::POST, "/v1/account/topup", Some(&bearer), Some(&topup)).await;
    let body: Value = response.json().await.unwrap();
    assert_eq!((&body["amount_msat"], &body["account"]), (&json!(3000), &json!(format!("key/{id}"))));
    stall.book(body["invoice"].as_str().unwrap());
    stall.balance_becomes(&customer, (5100, 0)).await;
    for (sats, code) in [(json!(5), "above_limit"), (json!(0), "out_of_range"), (json!("1"), "invalid_type")] {
        let body = json!({"sats": sats});
        let response = stall.send(Method::POST, "/v1/account/topup", Some(&bearer), Some(&body)).await;
        assert_eq!(refusal(response).await, (StatusCode::BAD_REQUEST, code.to_owned()), "{sats}");
    }
    let body = json!({"invoice": "theirs:1000"});
    let response = stall.send(Method::POST, "/v1/account/refund", Some(&bearer), Some(&body)).await;
    assert_eq!(refusal(response).await, (StatusCode::NOT_FOUND, "no_refunds".to_owned()));
    assert!(stall.purse.paid.lock().unwrap().is_empty(), "nothing leaves the wallet of a node that does not sell");
    // Whoever has no key is the operator, as ever.
    let call = stall.node.post("/v1/completions", &ten(20));
    let submission = stall.node.submission().await;
    assert_eq!(submission.account.owner().to_string(), "own/spent");
    answer(&submission, &["x"], "").await;
    assert_eq!(call.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn credit_is_paid_back_once() {
    let stall = Stall::open().await;
    let customer = stall.pay(&stall.ask(None, &ten(20)).await);
    let owner = Owner::Key(customer.account.clone());
    stall.node.ledger.deposit(&owner, Msat(7000), Hash::of(b"more"), 1).unwrap();
    let header = customer.header();
    let refund = async |invoice: &str| {
        let body = json!({"invoice": invoice});
        stall.send(Method::POST, "/v1/account/refund", Some(&header), Some(&body)).await
    };
    let view: Value = stall.send(Method::GET, "/v1/account", Some(&header), None).await.json().await.unwrap();
    assert_eq!((&view["free_msat"], &view["refundable_msat"]), (&json!(9000), &json!(3000)));
    assert_eq!(refusal(refund("nonsense").await).await.0, StatusCode::BAD_REQUEST);
    *stall.purse.fails.lock().unwrap() = Some("there is no way".to_owned());
    let response = refund("theirs:3000").await;
    assert_eq!(refusal(response).await, (StatusCode::BAD_GATEWAY, "refund_failed".to_owned()));
    assert_eq!(stall.balance(&customer), (9000, 0));
    *stall.purse.fails.lock().unwrap() = None;
    // The wallet's event comes a moment later.
    let paying = refund("theirs:3000");
    let booking = async {
        while stall.purse.paid.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let moved = Moved { direction: Direction::Outgoing, hash: sha256(b"theirs"), amount: Msat(3000), fee: Msat(7) };
        stall.node.ledger.book_payment(&moved, 1).unwrap();
    };
    let (response, ()) = tokio::join!(paying, booking);
    let body: Value = response.json().await.unwrap();
    assert_eq!((&body["status"], &body["amount_msat"], &body["fee_msat"]), (&json!("paid"), &json!(3000), &json!(7)));
    assert_eq!(stall.balance(&customer), (9000 - 3007, 0));
    assert_eq!(*stall.purse.paid.lock().unwrap(), [("theirs:3000".to_owned(), Msat(5030))]);
    let often = refund("theirs:3000").await;
    assert_eq!(refusal(often).await.0, StatusCode::TOO_MANY_REQUESTS, "three attempts, then one a minute");
    assert!(stall.node.ledger.reconcile().unwrap().is_exact());
}

#[tokio::test]
async fn a_stranger_finds_what_is_for_sale_and_nothing_else() {
    let stall = Stall::with("0.0.0.0:0", true, SALE).await;
    for path in ["/v1/models", "/v1/models/org/tiny"] {
        let response = stall.send(Method::GET, path, None, None).await;
        let body: Value = response.json().await.unwrap();
        let model = if path == "/v1/models" { &body["data"][0] } else { &body };
        assert_eq!(model["pricing"]["prompt"], "21", "what a customer pays: {body}");
    }
    let quote = stall.send(Method::POST, "/v1/quote", None, Some(&ten(20))).await;
    assert_eq!(quote.json::<Value>().await.unwrap()["total_msat"], 630);
    let customer = stall.customer().await;
    for (path, with_key) in [("/status.json", true), ("/v1/account", false), ("/nowhere", false), ("/rpc", true)] {
        let response = stall.send(Method::GET, path, None, None).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{path}");
        let response = stall.send(Method::GET, path, Some(&customer.header()), None).await;
        assert_eq!(response.status() == StatusCode::UNAUTHORIZED, with_key, "{path}");
    }
}

#[tokio::test]
async fn a_proxy_on_the_machine_lets_nobody_in() {
    let stall = Stall::open().await;
    let (_, secret) = stall.node.keys.create("").unwrap();
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "ledger_accounts", "params": {}});
    let asked = async |headers: &[(&str, &str)]| {
        let status =
            headers.iter().fold(stall.node.call(Method::GET, "/status.json"), |call, (n, v)| call.header(*n, *v));
        let rpc = headers.iter().fold(stall.node.call(Method::POST, "/rpc"), |call, (n, v)| call.header(*n, *v));
        let rpc: Value = rpc.json(&call).send().await.unwrap().json().await.unwrap();
        (status.send().await.unwrap().status(), rpc["result"].is_object())
    };
    let key = format!("Bearer {secret}");
    let operator = stall.node.operator.as_str();
    assert_eq!(asked(&[]).await, (StatusCode::UNAUTHORIZED, false));
    assert_eq!(asked(&[("authorization", &key)]).await, (StatusCode::OK, false), "a key does not make it local");
    assert_eq!(asked(&[("consortium-operator", operator)]).await, (StatusCode::OK, true));
    let passed_on = [("consortium-operator", operator), ("x-forwarded-for", "192.0.2.1")];
    assert_eq!(asked(&passed_on).await, (StatusCode::UNAUTHORIZED, false));
    // A node that does not sell trusts the programs of its machine, and a proxy none the more.
    let node = Node::start().await;
    for (headers, expected) in [(&[] as &[_], StatusCode::OK), (&[("via", "1.1 proxy")], StatusCode::UNAUTHORIZED)] {
        let call = headers.iter().fold(node.call(Method::GET, "/status.json"), |call, (n, v)| call.header(*n, *v));
        assert_eq!(call.send().await.unwrap().status(), expected);
    }
}

#[tokio::test]
async fn a_node_without_a_wallet_takes_no_money() {
    let node = Node::start().await;
    let (_, secret) = node.keys.create("").unwrap();
    for path in ["/v1/account/topup", "/v1/account/refund"] {
        let response =
            node.call(Method::POST, path).bearer_auth(&secret).json(&json!({"sats": 1})).send().await.unwrap();
        assert_eq!(refusal(response).await, (StatusCode::NOT_FOUND, "no_wallet".to_owned()), "{path}");
    }
    let response = node.call(Method::GET, "/v1/models").header("authorization", "L402 a:b").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
}
