//! Who may call at all: protection of a local node against web pages, and API keys.
//!
//! A browser on the owner's machine reaches `127.0.0.1` too, on behalf of whatever page is open. Two checks keep
//! such pages out. A page that made its own name resolve to 127.0.0.1 (DNS rebinding) shows in the `Host` header; a
//! page that merely sends requests here shows in `Origin`. There are no CORS headers, so no page can read an answer.
//!
//! Behind a proxy on the same machine every connection comes from this machine. What a proxy has passed on tells of it in
//! its headers ([`PASSED_ON`]) and counts as from elsewhere; and where the node sells to everybody, so that a proxy is
//! likely, what is for this machine alone is for its operator alone, by the token.
//!
//! A credential that was bought (L402) is as good as a key for what costs something, and for its own account; what tells of
//! peers and addresses it does not open. Where the node sells to everybody, what is for sale and its price can be asked
//! for without any: the answer to that is 402.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Uri, header, uri::Authority};
use axum::middleware::Next;
use axum::response::Response;
use consortium_ledger::api_keys::{KeyId, PREFIX};
use consortium_ledger::l402::Terms;
use consortium_ledger::l402::header::is_l402;
use consortium_ledger::l402::terms::{Budget, Capability};
use consortium_ledger::l402::tokens::Admission;

use super::error::ApiError;
use super::{AppState, Shared};
use crate::{operator, rpc};

/// Headers of what a proxy has passed on; those that begin with `x-forwarded-` are others.
const PASSED_ON: [&str; 5] = ["forwarded", "via", "x-real-ip", "true-client-ip", "cf-connecting-ip"];

/// Where a connection comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller(pub(super) SocketAddr);

/// Who asks, and with what right.
#[derive(Clone, Debug)]
pub(super) struct Asking {
    right: Right,
    caller: IpAddr,
    /// From this machine, by a program on it.
    local: bool,
}

/// What a request came with.
#[derive(Clone, Debug)]
enum Right {
    /// Nothing that is known here.
    None,
    /// The operator's token.
    Operator,
    /// An API key.
    Key(KeyId),
    /// A credential that was bought.
    Bought(Box<Admission>),
}

impl Asking {
    /// The account that pays: that of a key, or of a token.
    pub(super) fn key(&self) -> Option<&KeyId> {
        match &self.right {
            Right::Key(key) => Some(key),
            Right::Bought(admission) => Some(&admission.account),
            Right::None | Right::Operator => None,
        }
    }

    /// Whether it is the node's operator.
    pub(super) fn is_operator(&self) -> bool {
        matches!(self.right, Right::Operator)
    }

    /// From where; where a proxy on this machine says it, from where the proxy was asked.
    pub(super) fn caller(&self) -> IpAddr {
        self.caller
    }

    /// Whether a program on this machine asks, and no proxy for somebody else.
    pub(super) fn is_local(&self) -> bool {
        self.local
    }

    /// What a credential's caveats say.
    pub(super) fn terms(&self) -> Option<&Terms> {
        match &self.right {
            Right::Bought(admission) => Some(&admission.terms),
            _ => None,
        }
    }

    /// What the credential may spend.
    pub(super) fn budgets(&self) -> &[Budget] {
        self.terms().map_or(&[], Terms::budgets)
    }

    /// Whether a credential is as it was sold, and not narrowed by whoever passed it on.
    pub(super) fn is_whole(&self) -> bool {
        !matches!(&self.right, Right::Bought(admission) if !admission.whole)
    }

    /// Whether a credential is good for this model.
    pub(super) fn allows_model(&self, model: &str) -> bool {
        self.terms().is_none_or(|terms| terms.allows_model(model))
    }

    /// Checks that a credential is good for this.
    ///
    /// # Errors
    /// 403.
    pub(super) fn allows(&self, capability: Capability) -> Result<(), ApiError> {
        match self.terms().is_none_or(|terms| terms.allows(capability)) {
            true => Ok(()),
            false => Err(ApiError::not_allowed(match capability {
                Capability::Infer => "ask for completions",
                Capability::Account => "look at its account",
                Capability::Refund => "take credit out",
            })),
        }
    }
}

/// Who asks, by the guard's word.
pub(super) fn asking(request: &Request) -> Asking {
    let nobody = || Asking { right: Right::None, caller: Ipv4Addr::UNSPECIFIED.into(), local: false };
    request.extensions().get().cloned().unwrap_or_else(nobody)
}

/// The account of who asks: there is none without a key or a credential, whether the node asks for one or not.
///
/// # Errors
/// 401.
pub(super) fn own_key(request: &Request) -> Result<KeyId, ApiError> {
    asking(request).key().cloned().ok_or_else(|| match request.headers().contains_key(header::AUTHORIZATION) {
        true => ApiError::bad_key(),
        false => ApiError::no_key(),
    })
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
    let local = is_local(caller, request.headers());
    let right = if path == "/health" { Right::None } else { right(&shared, caller, local, request.headers()).await? };
    let enough = match right {
        Right::Key(_) | Right::Operator => true,
        // Who has paid may use what is paid for, and not look at the node itself.
        Right::Bought(_) if !is_inside(path) => true,
        Right::Bought(_) | Right::None => !needs_key(&shared, local, path),
    };
    if !enough {
        return Err(if bearer(request.headers()).is_some() { ApiError::bad_key() } else { ApiError::no_key() });
    }
    let caller = asked_from(caller, request.headers());
    request.extensions_mut().insert(Asking { right, caller, local });
    Ok(next.run(request).await)
}

/// What a request comes with.
///
/// # Errors
/// 401 for a credential of L402 that does not work, and for a bad key where whoever has none is asked to pay.
async fn right(shared: &Shared, caller: Caller, local: bool, headers: &HeaderMap) -> Result<Right, ApiError> {
    if let Some(token) = headers.get(operator::HEADER).and_then(|token| token.to_str().ok())
        && shared.app.rpc.is_operator(rpc::Caller { address: caller.0.ip(), local, operator: Some(token) })
    {
        return Ok(Right::Operator);
    }
    let given = headers.get(header::AUTHORIZATION).and_then(|given| given.to_str().ok()).unwrap_or_default();
    if is_l402(given) {
        let till = shared.app.till.as_ref().ok_or_else(|| ApiError::bad_credential("nothing is sold here"))?;
        return Ok(Right::Bought(Box::new(till.admit(given).await?)));
    }
    let Some(secret) = bearer(headers) else { return Ok(Right::None) };
    match find_key(shared, secret).await? {
        Some(key) => Ok(Right::Key(key)),
        None if shared.selling().is_some() && secret.starts_with(PREFIX) => Err(ApiError::bad_key()),
        None => Ok(Right::None),
    }
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

/// What names peers and addresses.
fn is_inside(path: &str) -> bool {
    matches!(path, "/status.json" | "/rpc")
}

/// What is sold, and what tells its price.
fn is_for_sale(path: &str) -> bool {
    matches!(path, "/v1/chat/completions" | "/v1/completions" | "/v1/quote" | "/v1/models")
        || path.starts_with("/v1/models/")
}

/// Whether a program on this machine asks, and no proxy for somebody else.
fn is_local(caller: Caller, headers: &HeaderMap) -> bool {
    let passed_on = |name: &str| PASSED_ON.contains(&name) || name.starts_with("x-forwarded-");
    caller.0.ip().to_canonical().is_loopback() && !headers.keys().any(|name| passed_on(name.as_str()))
}

/// Who asks, to tell callers apart and for nothing else. A proxy on this machine says whom it was asked by at the end of
/// its list; what stands before that is the client's own word.
fn asked_from(caller: Caller, headers: &HeaderMap) -> IpAddr {
    let address = caller.0.ip();
    if !address.to_canonical().is_loopback() {
        return address;
    }
    let last = headers.get_all("x-forwarded-for").iter().next_back();
    let last = last.and_then(|list| list.to_str().ok()?.rsplit(',').next()?.trim().parse().ok());
    last.unwrap_or(address)
}

fn needs_key(shared: &Shared, local: bool, path: &str) -> bool {
    match path {
        "/health" => false,
        // From elsewhere they take a key in any case, and so where a proxy may make everyone local.
        _ if is_inside(path) => shared.app.require_key || !local || shared.selling().is_some(),
        _ if shared.selling().is_some() && is_for_sale(path) => false,
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
    fn what_a_proxy_passes_on_is_not_of_this_machine() {
        let asked = |address: &str, given: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in given {
                headers.append(*name, value.parse().unwrap());
            }
            let caller = Caller(SocketAddr::new(address.parse().unwrap(), 1));
            (is_local(caller, &headers), asked_from(caller, &headers).to_string())
        };
        assert_eq!(asked("127.0.0.1", &[("accept", "*/*")]), (true, "127.0.0.1".to_owned()));
        assert!(asked("::ffff:127.0.0.1", &[]).0);
        for name in ["forwarded", "via", "x-real-ip", "x-forwarded-proto", "x-forwarded-host"] {
            assert_eq!(asked("::1", &[(name, "x")]), (false, "::1".to_owned()), "{name}");
        }
        let chain = [("x-forwarded-for", "127.0.0.1, 192.0.2.1"), ("x-forwarded-for", "192.0.2.7, 192.0.2.8")];
        assert_eq!(asked("127.0.0.1", &chain), (false, "192.0.2.8".to_owned()));
        assert_eq!(asked("192.0.2.9", &chain), (false, "192.0.2.9".to_owned()), "that is no proxy of this machine");
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
