//! Bounds, deadlines and ends.

use crate::support::*;

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
