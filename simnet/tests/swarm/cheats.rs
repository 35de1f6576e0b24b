//! A dishonest worker is caught by the first audit of its work, shut out by everyone who checks the proof, and the
//! swarm goes on without it.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Place, eventually};

fn post(url: &str, body: &Value) -> Value {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(120)).build().unwrap();
        client.post(url).json(body).send().await.unwrap().json().await.unwrap()
    })
}

fn answer(api_base: &str) -> Value {
    let request = json!({
        "model": "consortium-tiny", "temperature": 0, "max_tokens": 40, "ignore_eos": true,
        "messages": [{"role": "user", "content": "Tell me a story."}],
    });
    post(&format!("{api_base}/chat/completions"), &request)["choices"][0]["message"]["content"].clone()
}

/// What the node behind `api_base` thinks of the others.
fn reputations(api_base: &str) -> Vec<Value> {
    let url = format!("{}/rpc", api_base.trim_end_matches("/v1"));
    let reply = post(&url, &json!({"jsonrpc": "2.0", "id": 1, "method": "reputation_list", "params": {}}));
    reply["result"]["nodes"].as_array().cloned().unwrap_or_default()
}

#[test]
fn a_cheat_is_caught_and_shut_out_and_nobody_else_is() {
    let place = Place::new();
    let up = ["up", "5", "--cheat", "node2=int8", "--detach"];
    assert!(place.simnet("c", &up).stdout(Stdio::null()).status().unwrap().success());
    let nodes = place.nodes("c");
    let cheat = nodes.iter().find(|node| node["name"] == "node-2").unwrap()["peer_id"].as_str().unwrap();
    let honest: Vec<&str> =
        nodes.iter().filter(|node| node["peer_id"] != cheat).map(|node| node["api_base"].as_str().unwrap()).collect();
    // The completion that made the swarm ready may have given it away already; if not, these do.
    for api_base in &honest {
        answer(api_base);
    }
    for api_base in &honest {
        eventually("everyone has seen the proof", || {
            reputations(api_base).iter().any(|node| node["peer_id"] == cheat && node["score"] == 0.0)
        });
        for node in reputations(api_base) {
            let failed = node["failed_audits"].as_u64().unwrap();
            assert_eq!(node["peer_id"] == cheat, failed > 0, "{node}");
            assert_eq!(node["peer_id"] == cheat, node["banned_until_ms"].is_u64(), "{node}");
        }
    }
    let all_ready = b"5 of 5 ready";
    eventually("the layers are with others", || {
        place.run("c", &["status"]).stdout.windows(all_ready.len()).any(|window| window == all_ready)
    });
    let answers: Vec<Value> = honest.iter().map(|api_base| answer(api_base)).collect();
    assert!(answers[0].as_str().is_some_and(|text| !text.is_empty()), "{answers:?}");
    assert!(answers.iter().all(|other| other == &answers[0]), "{answers:?}");
    place.succeed("c", &["down"]);
}
