//! The HTTP API: what the OpenAI clients speak, served by every node.
//!
//! A request goes through [`guard`] (may this caller ask at all?), [`body`] (bytes, bounded in size and time),
//! [`chat`] or [`completions`] (fields checked one by one with [`fields`] and [`params`]: what is unknown or not
//! supported is refused by name, never ignored), [`job`] (the gateway, with deadlines) and comes back as one JSON
//! document ([`response`]) or as server-sent events ([`sse`]). What it costs is told beforehand by [`quote`], and to a
//! key by [`account`]; who pays, and how, is in [`payment`] and [`credit`]. Every failure leaves as an [`error::ApiError`] in
//! OpenAI's shape. [`rpc`] serves [`crate::rpc`] beside it, behind the same guard. [`server`] owns sockets, deadlines and the orderly end.
//!
//! A client that goes away drops the handler or the event stream, and with it the receiver of the job's events:
//! that cancels the job on every stage.

mod account;
mod body;
mod chat;
mod completions;
mod credit;
mod error;
mod fields;
mod guard;
mod job;
mod models;
mod params;
mod payment;
mod quote;
mod response;
mod rpc;
mod server;
mod sse;
mod stall;
mod status;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use consortium_ledger::api_keys::ApiKeys;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::billing::Billing;
use crate::clock;
use crate::gateway::Gateway;
use crate::rpc::Rpc;
use crate::status::NodeStatus;
use crate::till::Till;
use error::ApiError;
pub use server::serve;

/// Completions in progress at once; more are answered with 429.
const MAX_JOBS: usize = 128;

/// What the API needs of the node.
#[derive(Clone, Debug)]
pub struct HttpApp {
    /// Takes the jobs.
    pub gateway: Gateway,
    /// Tells what they cost, and whose account they are charged to.
    pub billing: Billing,
    /// What `/health`, `/status.json` and the list of models show.
    pub status: watch::Receiver<NodeStatus>,
    /// What `/rpc` answers from.
    pub rpc: Rpc,
    /// Who may ask, where that is asked.
    pub keys: Arc<ApiKeys>,
    /// Whether every call but `/health` needs a key. Without it any key, or none, is accepted, and a valid one pays.
    pub require_key: bool,
    /// Where customers pay; none where the node has no wallet.
    pub till: Option<Till>,
}

/// What all handlers share.
#[derive(Debug)]
struct Shared {
    app: HttpApp,
    /// The listener can be reached from this machine only.
    loopback: bool,
    /// Seconds since 1970 when the API started.
    started_s: u64,
    jobs: Arc<Semaphore>,
    /// Set when answers in progress have to end now.
    closing: CancellationToken,
}

type AppState = Arc<Shared>;

/// The routes, for a listener bound to `bound`.
fn router(app: HttpApp, bound: SocketAddr, closing: CancellationToken) -> Router {
    let state = Arc::new(Shared {
        app,
        loopback: bound.ip().is_loopback(),
        started_s: clock::since_epoch().as_secs(),
        jobs: Arc::new(Semaphore::new(MAX_JOBS)),
        closing,
    });
    Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/models", get(models::list))
        // Names of models contain slashes, and not every client encodes them.
        .route("/v1/models/{*id}", get(models::retrieve))
        .route("/v1/quote", post(quote::create))
        .route("/v1/account", get(account::show))
        .route("/v1/account/statement", get(account::statement))
        .route("/v1/account/topup", post(credit::topup))
        .route("/v1/account/refund", post(credit::refund))
        .route("/rpc", post(rpc::answer))
        .route("/health", get(status::health))
        .route("/status.json", get(status::document))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(&state), guard::check))
        .with_state(state)
}

async fn unknown_path(method: Method, uri: Uri) -> ApiError {
    ApiError::unknown_path(&method, uri.path())
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::wrong_method(&method, uri.path())
}
