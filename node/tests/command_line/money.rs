//! A key, its credit and its statement, on a real node with a real model.

use serde_json::{Value, json};

use crate::support::{Running, run, tiny};

fn shown(data: &std::path::Path, arguments: &[&str]) -> String {
    let output = run(data, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Asks until `right`, for a minute.
fn until(mut ask: impl FnMut() -> Value, right: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..600 {
        let answer = ask();
        if right(&answer) {
            return answer;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("the answer stays {}", ask());
}

#[test]
fn a_chat_is_charged_to_its_key_to_the_millisatoshi() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path();
    let secret = shown(data, &["key", "create", "--label", "customer", "--trial-credit", "10000"]);
    let secret = secret.trim();
    let keys = shown(data, &["key", "list"]);
    let id = keys.lines().nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    assert!(keys.contains(" 10000 ") && keys.contains("customer"), "{keys}");

    let model = tiny();
    let prices = ["--price", "2", "--price-max-load", "1000", "--price-full-load", "1", "--fee", "100"];
    let node = Running::start(data, &[&["--model", model.to_str().unwrap()][..], &prices[..]].concat());
    let status = || serde_json::from_str(&shown(data, &["status", "--json"])).unwrap();
    until(status, |status: &Value| status["ready"] == true);
    let layers = status()["models"][0]["layers"].as_u64().unwrap();

    let chat = ["chat", "Once upon a time", "--max-tokens", "8", "--seed", "1", "--api-key", secret];
    let output = run(data, &chat);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1000 tokens of") && said.contains("cost "), "{said}");
    let account = || {
        let accounts: Value = serde_json::from_str(&shown(data, &["ledger", "accounts", "--json"])).unwrap();
        let owner = json!(format!("key/{id}"));
        accounts.as_array().unwrap().iter().find(|account| account["owner"] == owner).unwrap().clone()
    };
    let after = until(account, |account| account["spent"] != 0 && account["balance"]["bonded"] == 0);
    let spent = after["spent"].as_i64().unwrap();
    assert_eq!(after["balance"]["free"].as_i64().unwrap(), 10_000 - spent);

    // The whole model is on this node: what the key pays is this node's earnings and its fee of a tenth.
    let statement: Value =
        serde_json::from_str(&shown(data, &["ledger", "statement", &format!("key/{id}"), "--json"])).unwrap();
    let lines = statement["lines"].as_array().unwrap();
    let work = &lines.iter().find(|line| line["kind"] == "work").unwrap()["work"];
    let (tokens, fee) = (work["tokens"].as_u64().unwrap(), work["fee"].as_u64().unwrap());
    assert!(tokens > 8, "{work}");
    assert_eq!(u64::try_from(spent).unwrap(), tokens * layers * 2 + fee);
    assert_eq!(fee, tokens * layers * 2 / 10);
    let text = shown(data, &["status"]);
    assert!(text.contains("earned ") && text.contains("fees ") && text.contains("api keys   1 with"), "{text}");
    let invoice = shown(data, &["ledger", "statement", &format!("key/{id}")]);
    assert!(invoice.contains("credit to try it") && invoice.contains(&format!(" {tokens} ")), "{invoice}");

    // Too little for an answer as long as the context.
    let refused = run(data, &["chat", "Hello", "--api-key", secret]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("msat of credit left"), "{said}");
    shown(data, &["key", "credit", &id, "100000"]);
    assert!(run(data, &[&chat[..2], &["--max-tokens", "2", "--api-key", secret]].concat()).status.success());
    drop(node);
    assert!(shown(data, &["ledger", "verify"]).ends_with("to the millisatoshi\n"));
}

#[test]
fn what_a_crash_left_reserved_is_free_after_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path();
    shown(data, &["key", "create", "--credit", "1000"]);
    let key = consortium_node::keyfile::load_or_create(data).unwrap();
    let ledger = consortium_ledger::Ledger::open(&data.join("ledger.db"), key.node_id()).unwrap();
    let owner = ledger.accounts(None, 1).unwrap().remove(0).owner;
    let job = consortium_protocol::wire::job::JobId([7; 16]);
    ledger.reserve(&owner, job, consortium_protocol::Msat(600), 1).unwrap();
    let _node = Running::start(data, &[]);
    let balance = || serde_json::to_value(ledger.account(&owner).unwrap().balance).unwrap();
    until(balance, |balance| balance["free"] == 1000 && balance["bonded"] == 0);
}
