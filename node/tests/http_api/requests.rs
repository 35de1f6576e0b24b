//! What a request may say, and how it is refused.

use crate::support::*;

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
