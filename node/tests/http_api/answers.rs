//! Answers, whole and as streams.

use crate::support::*;

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
        (Code::Unpaid, 503, "server_error", "tab_unpaid", true),
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
