//! Who may call at all: protection of a local node against web pages, and API keys.
//!
//! A browser on the owner's machine reaches `127.0.0.1` too, on behalf of whatever page is open. Two checks keep
//! such pages out. A page that made its own name resolve to 127.0.0.1 (DNS rebinding) shows in the `Host` header; a
//! page that merely sends requests here shows in `Origin`. There are no CORS headers, so no page can read an answer.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Uri, header, uri::Authority};
use axum::middleware::Next;
use axum::response::Response;
use consortium_ledger::api_keys::{KeyId, PREFIX};

use super::error::ApiError;
use super::{AppState, Shared};

/// Where a connection comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller(pub(super) SocketAddr);

/// The API key that a request came with, if it came with a valid one.
#[derive(Clone, Debug)]
struct Asking(Option<KeyId>);

/// The key that a request came with, by the guard's word.
pub(super) fn key(request: &Request) -> Option<KeyId> {
    request.extensions().get::<Asking>().and_then(|asking| asking.0.clone())
}

/// Lets a request pass, or answers in its place.
pub(super) async fn check(
    State(shared): State<AppState>,
    Extension(caller): Extension<Caller>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let host = asked_host(request.uri(), request.headers())?;
    if shared.loopback {
        check_host(&host)?;
    }
    check_origin(request.headers(), &host)?;
    let path = request.uri().path();
    let key = match bearer(request.headers()) {
        Some(secret) if path != "/health" => find_key(&shared, secret).await?,
        _ => None,
    };
    if key.is_none() && needs_key(&shared, caller, path) {
        return Err(if bearer(request.headers()).is_some() { ApiError::bad_key() } else { ApiError::no_key() });
    }
    request.extensions_mut().insert(Asking(key));
    Ok(next.run(request).await)
}

/// The host the client believes to talk to.
fn asked_host(uri: &Uri, headers: &HeaderMap) -> Result<Authority, ApiError> {
    // A request line with a full address outranks the header (RFC 9112, 3.2.2).
    if let Some(authority) = uri.authority() {
        return Ok(authority.clone());
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next().and_then(|host| Authority::try_from(host.as_bytes()).ok()), hosts.next()) {
        (Some(host), None) => Ok(host),
        _ => Err(ApiError::body("The request needs one valid Host header.")),
    }
}

fn check_host(host: &Authority) -> Result<(), ApiError> {
    if is_loopback(host.host()) {
        return Ok(());
    }
    Err(ApiError::forbidden(
        "host_not_allowed",
        format!(
            "This API is bound to the loopback interface and does not answer for the host '{:.80}'. \
             Use http://127.0.0.1 or http://localhost.",
            host.host()
        ),
    ))
}

fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.eq_ignore_ascii_case("localhost") || bare.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// Only pages served by this very host may call from a browser; other programs send no `Origin`.
fn check_origin(headers: &HeaderMap, host: &Authority) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(());
    };
    let same = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.split_once("://"))
        .is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host.as_str()));
    if same {
        return Ok(());
    }
    Err(ApiError::forbidden(
        "origin_not_allowed",
        "Web pages of other origins may not use this API. Call it from a program or through a server.".to_owned(),
    ))
}

fn needs_key(shared: &Shared, caller: Caller, path: &str) -> bool {
    match path {
        "/health" => false,
        // They name peers and addresses: from elsewhere they take a key in any case.
        "/status.json" | "/rpc" => shared.app.require_key || !caller.0.ip().to_canonical().is_loopback(),
        _ => shared.app.require_key,
    }
}

/// The key whose secret this is. What cannot be one is not looked for.
async fn find_key(shared: &Shared, secret: &str) -> Result<Option<KeyId>, ApiError> {
    if !secret.starts_with(PREFIX) {
        return Ok(None);
    }
    let (keys, secret) = (Arc::clone(&shared.app.keys), secret.to_owned());
    let verified = tokio::task::spawn_blocking(move || keys.verify(&secret)).await;
    match verified {
        Ok(Ok(key)) => Ok(key),
        Ok(Err(error)) => {
            tracing::error!(%error, "an API key could not be checked");
            Err(ApiError::internal("The node could not check the API key."))
        }
        Err(_) => Err(ApiError::internal("The check of the API key was cut short.")),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, secret) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let secret = secret.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !secret.is_empty()).then_some(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_names() {
        for name in ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.1", "[::1]"] {
            assert!(is_loopback(name), "{name}");
        }
        for name in ["evil.example", "localhost.evil.example", "192.168.1.2", "0.0.0.0", "[::]", "", "127.0.0.1.nip.io"]
        {
            assert!(!is_loopback(name), "{name}");
        }
    }

    #[test]
    fn origins() {
        let host: Authority = "127.0.0.1:8080".parse().unwrap();
        let from = |origin: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ORIGIN, origin.parse().unwrap());
            check_origin(&headers, &host).is_ok()
        };
        assert!(from("http://127.0.0.1:8080"));
        for other in ["null", "http://127.0.0.1:3000", "http://localhost:8080", "https://evil.example", ""] {
            assert!(!from(other), "{other}");
        }
    }
}
