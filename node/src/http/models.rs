//! `GET /v1/models` and `GET /v1/models/{id}`: what the cluster serves now.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::error::ApiError;
use super::{AppState, Shared};
use crate::status::ModelStatus;

/// Lists the models.
pub(super) async fn list(State(state): State<AppState>) -> Json<Value> {
    let models: Vec<_> = state.app.status.borrow().models.iter().map(|model| document(&state, model)).collect();
    Json(json!({"object": "list", "data": models}))
}

/// Shows one model.
pub(super) async fn retrieve(State(state): State<AppState>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let status = state.app.status.borrow();
    let model = status.models.iter().find(|model| model.name == id);
    model.map(|model| Json(document(&state, model))).ok_or_else(|| ApiError::unknown_model(&id))
}

fn document(shared: &Shared, model: &ModelStatus) -> Value {
    json!({
        "id": model.name,
        "object": "model",
        // When this node began to serve: a model's own age is not known here.
        "created": shared.started_s,
        "owned_by": "consortium",
        "context_length": model.context,
        "layers": model.layers,
        "digest": model.digest,
    })
}
