//! `GET /v1/models` and `GET /v1/models/{id}`: what the cluster serves now, and at which
//! price while its pipeline stands.

use axum::Json;
use axum::extract::{Path, Request, State};
use serde_json::{Value, json};

use super::error::ApiError;
use super::{AppState, Shared, guard, quote};
use crate::billing::Payer;
use crate::status::ModelStatus;

/// Lists the models.
pub(super) async fn list(State(state): State<AppState>, request: Request) -> Json<Value> {
    let payer = state.payer(&guard::asking(&request));
    let models = state.app.status.borrow().models.clone();
    let models: Vec<_> = models.iter().map(|model| document(&state, model, &payer)).collect();
    Json(json!({"object": "list", "data": models}))
}

/// Shows one model.
pub(super) async fn retrieve(
    State(state): State<AppState>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let payer = state.payer(&guard::asking(&request));
    let model = state.app.status.borrow().models.iter().find(|model| model.name == id).cloned();
    let model = model.ok_or_else(|| ApiError::unknown_model(&id))?;
    Ok(Json(document(&state, &model, &payer)))
}

fn document(shared: &Shared, model: &ModelStatus, payer: &Payer) -> Value {
    let mut document = json!({
        "id": model.name,
        "object": "model",
        // When this node began to serve: a model's own age is not known here.
        "created": shared.started_s,
        "owned_by": "consortium",
        "context_length": model.context,
        "layers": model.layers,
        "digest": model.digest,
    });
    if let Some(rate) = shared.app.billing.rate(&model.name, payer) {
        document["pricing"] = quote::pricing(&rate);
    }
    document
}
