//! `GET /health` for load balancers and scripts, `GET /status.json` for people and the command line.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::AppState;
use crate::status::NodeStatus;

/// 200 once a chat would be answered, 503 before. Says nothing about the cluster: it is open to everyone.
pub(super) async fn health(State(state): State<AppState>) -> (StatusCode, Json<Value>) {
    let ready = state.app.status.borrow().ready;
    let (code, status) = if ready { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "starting") };
    (code, Json(json!({"status": status, "ready": ready})))
}

/// The node's own account of itself and its cluster.
pub(super) async fn document(State(state): State<AppState>) -> Json<NodeStatus> {
    Json(state.app.status.borrow().clone())
}
