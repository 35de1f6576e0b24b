//! Requests that are wrong, too many or too large, batches, and the description.

use std::collections::BTreeSet;
use std::time::Duration;

use consortium_node::clock::wall_ms;
use consortium_node::rpc::{call, limit};
use consortium_protocol::wire::audit::Outcome;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{Node, other};

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
            let is_object = param["schema"]["type"] == "object";
            let value = if is_object { json!(1) } else { json!({"no": "such type"}) };
            let wrong = json!({param["name"].as_str().unwrap(): value});
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
        ("tabs", json!({})),
        ("earnings", json!({"hours": 2, "milliwatts": 65_000, "kwh_msat": 300_000})),
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
