//! A stream goes on, with the same words, when nodes disappear under it.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Place, eventually};

/// Enough that there is time to kill a node half way.
const TOKENS: u32 = 250;

/// One streamed answer by way of `api_base`. `midway` is called once, when a part of the answer is there.
fn stream(api_base: &str, model: &str, midway: impl FnOnce()) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(300)).build().unwrap();
        let request = json!({
            "model": model,
            "messages": [{"role": "user", "content": "Tell me a story."}],
            "stream": true, "temperature": 0, "max_tokens": TOKENS, "ignore_eos": true,
        });
        let mut response = client.post(format!("{api_base}/chat/completions")).json(&request).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let mut midway = Some(midway);
        let mut text = String::new();
        let mut unread = Vec::new();
        while let Some(bytes) = response.chunk().await.unwrap() {
            unread.extend_from_slice(&bytes);
            while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = unread.drain(..=end).collect();
                let Some(event) = std::str::from_utf8(&line).unwrap().trim().strip_prefix("data: ") else {
                    continue;
                };
                if event == "[DONE]" {
                    return text;
                }
                let event: Value = serde_json::from_str(event).unwrap();
                assert!(event.get("error").is_none(), "{event}");
                text.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
            }
            if text.len() > 40
                && let Some(midway) = midway.take()
            {
                midway();
            }
        }
        panic!("the stream broke off after: {text}")
    })
}

#[test]
fn a_stream_outlives_a_worker_and_the_master() {
    let place = Place::new();
    let up = place.simnet("a", &["up", "5", "--detach"]).stdout(Stdio::null()).status().unwrap();
    assert!(up.success());
    let nodes = place.nodes("a");
    let not_master: Vec<&Value> = nodes.iter().filter(|node| node["role"] == "worker").collect();
    let gateway = not_master[0]["api_base"].as_str().unwrap();
    let worker = not_master.iter().rev().find(|node| node["layers"].is_string()).unwrap();
    let worker = worker["name"].as_str().unwrap();
    let model = "consortium-tiny";

    let undisturbed = stream(gateway, model, || ());
    assert!(undisturbed.len() > 200, "{undisturbed}");
    let without_worker = stream(gateway, model, || drop(place.succeed("a", &["kill", worker])));
    assert_eq!(without_worker, undisturbed);
    eventually("four ready nodes", || place.run("a", &["status"]).stdout.windows(12).any(|w| w == b"4 of 5 ready"));
    let without_master = stream(gateway, model, || drop(place.succeed("a", &["kill", "master"])));
    assert_eq!(without_master, undisturbed);
    place.succeed("a", &["down"]);
}
