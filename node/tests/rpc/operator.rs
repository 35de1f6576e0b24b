//! What only the operator may ask for.

use consortium_node::operator::{HEADER, OperatorToken};
use consortium_node::rpc::{Answer, Caller, NOT_FOR_YOU, WALLET_REFUSED};
use serde_json::{Value, json};

use super::support::Node;

/// What moves money or changes the wallet, with parameters that are in order.
fn orders() -> Vec<(&'static str, Value)> {
    vec![
        ("wallet_address", json!({})),
        ("wallet_invoice", json!({"msat": 5})),
        ("wallet_send", json!({"address": "bcrt1", "sat": 1000})),
        ("wallet_pay", json!({"invoice": "lnbcrt1"})),
        ("wallet_receipt", json!({"hash": "00".repeat(32)})),
        ("wallet_open", json!({"peer": "02@h:1", "sat": 50_000})),
        ("wallet_close", json!({"channel": "00"})),
        ("wallet_connect", json!({"peer": "02@h:1"})),
        ("wallet_backup", json!({})),
        ("escrow_offer", json!({"kind": "bond", "payer": someone(), "unit_msat": 5, "subject": "00".repeat(32)})),
        ("escrow_agree", json!({"escrow": "00".repeat(16)})),
        ("escrow_decline", json!({"escrow": "00".repeat(16)})),
        ("escrow_judge", json!({"escrow": "00".repeat(16), "finding": "missed", "evidence": "00".repeat(32)})),
        ("escrow_misconduct", json!({"escrow": "00".repeat(16)})),
    ]
}

fn someone() -> consortium_protocol::identity::NodeId {
    consortium_protocol::identity::RootKey::from_seed([7; 32]).node_id()
}

async fn code(node: &Node, call: &Value, token: Option<&str>, headers: &[(&'static str, &str)]) -> Value {
    let url = format!("http://{}/rpc", node.address);
    let mut request = node.client.post(url).body(call.to_string());
    if let Some(token) = token {
        request = request.header(HEADER, token);
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap().json::<Value>().await.unwrap()["error"]["code"].clone()
}

#[tokio::test]
async fn orders_are_taken_from_the_operator_alone() {
    let node = Node::start().await;
    let token = OperatorToken::read(node.dir.path()).unwrap();
    let wrong = "0".repeat(token.len());
    for (method, params) in orders() {
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        for given in [None, Some(""), Some(wrong.as_str()), Some(&token[1..])] {
            assert_eq!(code(&node, &call, given, &[]).await, NOT_FOR_YOU, "{method} {given:?}");
        }
        // This node has no wallet: whoever hears that was let through.
        assert_eq!(code(&node, &call, Some(&token), &[]).await, WALLET_REFUSED, "{method}");
        // A page in a browser is turned away before, even if it knew the token.
        let page = [("origin", "https://evil.example")];
        assert_eq!(code(&node, &call, Some(&token), &page).await, "origin_not_allowed", "{method}");
        let rebound = [("host", "evil.example")];
        assert_eq!(code(&node, &call, Some(&token), &rebound).await, "host_not_allowed", "{method}");
        // From elsewhere the token is worth nothing.
        let elsewhere = Caller { address: "192.0.2.9".parse().unwrap(), local: false, operator: Some(&token) };
        let Answer::Document(answer) = node.rpc.answer_to(&call.to_string(), elsewhere).await else { panic!() };
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["error"]["code"], NOT_FOR_YOU, "{method}");
    }
}

#[tokio::test]
async fn an_api_key_is_no_operator() {
    let node = Node::start_with(true).await;
    let (_, secret) = node.keys.create("somebody").unwrap();
    let key = format!("Bearer {}", secret.as_str());
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "wallet_backup", "params": {}});
    assert_eq!(code(&node, &call, None, &[("authorization", &key)]).await, NOT_FOR_YOU);
}

#[tokio::test]
async fn looking_needs_no_token_on_this_machine() {
    let node = Node::start().await;
    for method in ["wallet_status", "wallet_channels", "wallet_history"] {
        let (code, message) = node.error(method, json!({})).await;
        assert_eq!(code, i64::from(WALLET_REFUSED), "{method}");
        assert!(message.contains("--lightning"), "{message}");
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": method}).to_string();
        let from_elsewhere = "192.0.2.9".parse().unwrap();
        let Answer::Document(answer) = node.rpc.answer(&call, from_elsewhere).await else { panic!() };
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["error"]["code"], NOT_FOR_YOU, "{method}");
    }
}
