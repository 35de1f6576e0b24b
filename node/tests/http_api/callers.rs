//! Who may ask, and what is shown to them.

use crate::support::*;

#[tokio::test]
async fn models_are_listed() {
    let node = Node::start().await;
    let empty: Value = node.call(Method::GET, "/v1/models").send().await.unwrap().json().await.unwrap();
    assert_eq!(empty, json!({"object": "list", "data": []}));
    node.status.send_modify(|status| {
        status.models = vec![ModelStatus { name: MODEL.to_owned(), digest: "00".repeat(32), layers: 4, context: 128 }];
    });
    let list: Value = node.call(Method::GET, "/v1/models").send().await.unwrap().json().await.unwrap();
    let model = &list["data"][0];
    assert_eq!((&model["id"], &model["object"]), (&json!(MODEL), &json!("model")));
    assert!(model["created"].is_u64() && model["owned_by"].is_string());
    for path in ["/v1/models/org/tiny", "/v1/models/org%2Ftiny"] {
        let one: Value = node.call(Method::GET, path).send().await.unwrap().json().await.unwrap();
        assert_eq!(&one, model);
    }
    let (status, error) = error(node.call(Method::GET, "/v1/models/other").send().await.unwrap()).await;
    assert_eq!((status, &error["code"]), (StatusCode::NOT_FOUND, &json!("model_not_found")));
}

#[tokio::test]
async fn health_and_status() {
    let node = Node::start().await;
    let health = node.call(Method::GET, "/health").send().await.unwrap();
    assert_eq!(health.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(health.json::<Value>().await.unwrap(), json!({"status": "starting", "ready": false}));
    node.status.send_modify(|status| {
        status.ready = true;
        status.term = 12;
    });
    let health = node.call(Method::GET, "/health").send().await.unwrap();
    assert_eq!(health.status(), StatusCode::OK);
    assert_eq!(health.json::<Value>().await.unwrap(), json!({"status": "ok", "ready": true}));
    let status: NodeStatus = node.call(Method::GET, "/status.json").send().await.unwrap().json().await.unwrap();
    assert_eq!(status, *node.status.borrow());
}

#[tokio::test]
async fn keys_where_they_are_required() {
    let mut node = Node::start_with("127.0.0.1:0", true, 8).await;
    node.serve_at(0);
    let (id, secret) = node.keys.create("test").unwrap();
    for path in ["/v1/models", "/v1/chat/completions", "/status.json", "/nowhere"] {
        for (header, code) in [
            (None, "missing_api_key"),
            (Some("Bearer".to_owned()), "missing_api_key"),
            (Some(format!("Basic {secret}")), "missing_api_key"),
            (Some("Bearer ck-wrong".to_owned()), "invalid_api_key"),
            (Some(format!("Bearer {secret}x")), "invalid_api_key"),
        ] {
            let mut call = node.call(Method::GET, path);
            if let Some(header) = header {
                call = call.header("authorization", header);
            }
            let response = call.send().await.unwrap();
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
            let (status, error) = error(response).await;
            assert_eq!((status, &error["code"]), (StatusCode::UNAUTHORIZED, &json!(code)), "{path}");
            assert_eq!(error["type"], "invalid_request_error");
        }
    }
    let health = node.call(Method::GET, "/health").send().await.unwrap();
    assert_eq!(health.status(), StatusCode::OK);
    for path in ["/v1/models", "/status.json"] {
        let response = node.call(Method::GET, path).bearer_auth(&secret).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
    let call = node.call(Method::POST, "/v1/chat/completions").bearer_auth(&secret).json(&chat(json!({})));
    let response = tokio::spawn(async move { call.send().await.unwrap() });
    answer(&node.submission().await, &["x"], "").await;
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);

    node.keys.revoke(&id).unwrap();
    let response = node.call(Method::GET, "/v1/models").bearer_auth(&secret).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn any_key_passes_where_none_is_required() {
    let node = Node::start().await;
    let response = node.call(Method::GET, "/v1/models").bearer_auth("sk-anything").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

/// Sends bytes as they are and returns the status code, or none where the connection is closed without an answer.
async fn raw(address: SocketAddr, request: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    within(stream.read_to_end(&mut answer)).await.unwrap();
    let line = String::from_utf8_lossy(&answer);
    line.split(' ').nth(1).map(|code| code.parse().unwrap())
}

#[tokio::test]
async fn other_hosts_and_origins_are_refused() {
    let node = Node::start().await;
    let port = node.address.port();
    let get = |target: &str, headers: &str| format!("GET {target} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
    for host in ["localhost", "127.0.0.1", "127.0.0.1:1", "[::1]:8080", "LocalHost:80"] {
        assert_eq!(raw(node.address, &get("/v1/models", &format!("Host: {host}\r\n"))).await, Some(200), "{host}");
    }
    for host in ["evil.example", "evil.example:8080", "192.168.1.5", "localhost.evil.example", "0.0.0.0"] {
        for path in ["/v1/models", "/status.json", "/health", "/nowhere"] {
            assert_eq!(raw(node.address, &get(path, &format!("Host: {host}\r\n"))).await, Some(403), "{host} {path}");
        }
    }
    for headers in ["", "Host: \r\n", "Host: a b\r\n", "Host: localhost\r\nHost: evil.example\r\n"] {
        assert_eq!(raw(node.address, &get("/v1/models", headers)).await, Some(400), "{headers:?}");
    }
    let absolute = get("http://evil.example/v1/models", "Host: localhost\r\n");
    assert_eq!(raw(node.address, &absolute).await, Some(403));

    let origin = |origin: &str| get("/v1/models", &format!("Host: 127.0.0.1:{port}\r\nOrigin: {origin}\r\n"));
    assert_eq!(raw(node.address, &origin(&format!("http://127.0.0.1:{port}"))).await, Some(200));
    for other in ["http://evil.example", "null", "http://127.0.0.1:1"] {
        assert_eq!(raw(node.address, &origin(other)).await, Some(403), "{other}");
    }
}

#[tokio::test]
async fn public_addresses_take_any_host() {
    let node = Node::start_with("0.0.0.0:0", false, 8).await;
    let address = SocketAddr::from(([127, 0, 0, 1], node.address.port()));
    let request = "GET /v1/models HTTP/1.1\r\nConnection: close\r\nHost: my.node.example\r\n\r\n";
    assert_eq!(raw(address, request).await, Some(200));
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let node = Node::start().await;
    let request = format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(128 * 1024));
    let mut stream = TcpStream::connect(node.address).await.unwrap();
    // The node may close before it has all of it.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = within(stream.read_to_end(&mut answer)).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
}
