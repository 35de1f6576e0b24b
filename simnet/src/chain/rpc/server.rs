//! The HTTP server: loopback only, Basic authentication for JSON-RPC and none for REST, everything bounded.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use super::credentials::Credentials;
use super::error::{INTERNAL, RpcError};
use super::{envelope, rest};
use crate::chain::Regtest;

/// Longest body of a request: a block of the greatest weight in hexadecimal, and what is around it.
const MAX_BODY: usize = 9 * 1024 * 1024;
/// Connections at a time; one more waits.
const MAX_CONNECTIONS: usize = 256;
/// How long a head may take to come, and for which an idle connection is kept.
const HEADER_DEADLINE: Duration = Duration::from_secs(30);
/// How long a body may take to come.
const BODY_DEADLINE: Duration = Duration::from_secs(30);
/// What a wrong password costs: guessing is slow, as with bitcoind.
const WRONG_PASSWORD: Duration = Duration::from_millis(250);
/// Pause after a failure to accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Somebody panicked half-way: what the chain holds now may be wrong.
const BROKEN: &str = "the chain is broken";

/// A chain that is served, on a thread of its own. It ends with the value.
#[derive(Debug)]
pub struct RpcServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What every connection shares.
struct Service {
    regtest: Mutex<Regtest>,
    credentials: Credentials,
}

impl RpcServer {
    /// Serves `regtest` on a loopback port that the system picks, to whoever has the credentials.
    ///
    /// # Errors
    /// When the system gives no port or no thread.
    pub fn start(regtest: Regtest, credentials: Credentials) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let service = Arc::new(Service { regtest: Mutex::new(regtest), credentials });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("chain".to_owned()).spawn(move || {
            if let Err(error) = runtime.block_on(serve(listener, service, stopped)) {
                tracing::error!(%error, "the chain is not served any more");
            }
        })?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Base URL, without credentials.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for RpcServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, service: Arc<Service>, mut stopped: oneshot::Receiver<()>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((listener.accept().await?.0, place))
        };
        tokio::select! {
            _ = &mut stopped => return Ok(()),
            Some(_) = connections.join_next() => {}
            accepted = next => match accepted {
                Ok((stream, place)) => {
                    let service = Arc::clone(&service);
                    connections.spawn(async move {
                        connection(stream, service).await;
                        drop(place);
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
}

async fn connection(stream: TcpStream, service: Arc<Service>) {
    // Requests and answers are small, and whoever polls waits for each.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let handle = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(service.respond(request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .serve_connection(TokioIo::new(stream), handle)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the chain ended early");
    }
}

impl Service {
    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if let (&Method::GET, Some(path)) = (request.method(), request.uri().path().strip_prefix(rest::ROOT)) {
            return self.read(path, request.uri().query().unwrap_or_default());
        }
        if request.method() != Method::POST {
            let mut refusal = response(StatusCode::METHOD_NOT_ALLOWED, "JSONRPC server handles only POST requests");
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return refusal;
        }
        let allowed = request.headers().get(AUTHORIZATION).map(|value| self.credentials.allow(value.as_bytes()));
        if allowed != Some(true) {
            if allowed.is_some() {
                tokio::time::sleep(WRONG_PASSWORD).await;
            }
            let mut refusal = response(StatusCode::UNAUTHORIZED, "");
            refusal.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"jsonrpc\""));
            return refusal;
        }
        let path = request.uri().path();
        if path != "/" && !path.starts_with("/wallet/") {
            return response(StatusCode::NOT_FOUND, "");
        }
        if request.body().size_hint().lower() > MAX_BODY as u64 {
            return response(StatusCode::PAYLOAD_TOO_LARGE, "");
        }
        let body = Limited::new(request.into_body(), MAX_BODY).collect();
        let Ok(body) = tokio::time::timeout(BODY_DEADLINE, body).await else {
            return response(StatusCode::REQUEST_TIMEOUT, "");
        };
        match body {
            Ok(body) => self.answer(&body.to_bytes()),
            Err(_) => response(StatusCode::PAYLOAD_TOO_LARGE, ""),
        }
    }

    fn read(&self, path: &str, query: &str) -> Response<Full<Bytes>> {
        let answer = match self.regtest.lock() {
            Ok(mut regtest) => rest::answer(&mut regtest, path, query),
            Err(_) => rest::failure(StatusCode::INTERNAL_SERVER_ERROR, BROKEN.to_owned()),
        };
        let mut response = response(answer.status, answer.body);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
        response
    }

    fn answer(&self, body: &[u8]) -> Response<Full<Bytes>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (status, answer) = match self.regtest.lock() {
            Ok(mut regtest) => envelope::answer(body, |method, params| super::call(&mut regtest, method, params, now)),
            Err(_) => envelope::failure(&RpcError::new(INTERNAL, BROKEN)),
        };
        let mut response = response(status, answer.map(|answer| format!("{answer}\n")).unwrap_or_default());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

fn response(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}
