//! `POST /v1/account/topup` and `POST /v1/account/refund`: credit bought before it is needed, and given back.

use axum::Json;
use axum::extract::{Request, State};
use consortium_ledger::api_keys::KeyId;
use consortium_ledger::l402::terms::Capability;
use consortium_protocol::msat::Msat;
use serde_json::{Value, json};

use super::error::ApiError;
use super::guard::{self, Asking};
use super::{AppState, Shared, body};
use crate::till::Till;

/// All bitcoin that there will be, in sat.
const MAX_SATS: i128 = 2_100_000_000_000_000;
/// Longest invoice that is looked at, in bytes.
const MAX_INVOICE: usize = 8 * 1024;

/// Gives an invoice; when it is paid, its amount is credited to the account that asks.
pub(super) async fn topup(State(state): State<AppState>, request: Request) -> Result<Json<Value>, ApiError> {
    let (asking, key, till) = customer(&state, &request)?;
    if !asking.is_whole() {
        return Err(ApiError::not_allowed("top up its account"));
    }
    let mut fields = body::read(request).await?;
    let sats = fields.integer("sats", 1..=MAX_SATS)?.ok_or_else(|| ApiError::missing("sats"))?;
    fields.finish()?;
    // Both ends of the range fit.
    let amount = Msat(u64::try_from(sats).unwrap_or(0).saturating_mul(1000));
    let asked = till.ask_for(asking.caller(), Some(&key), amount, amount).await?;
    Ok(Json(json!({
        "object": "invoice",
        "account": format!("key/{}", asked.account),
        "invoice": asked.challenge.invoice,
        "amount_msat": asked.amount.0,
        "payment_hash": asked.payment_hash,
        "expires_at": asked.expires_s,
    })))
}

/// Pays an invoice of the customer's from the account's credit.
pub(super) async fn refund(State(state): State<AppState>, request: Request) -> Result<Json<Value>, ApiError> {
    let (asking, key, till) = customer(&state, &request)?;
    // Where the node does not sell, only its operator moves money out of its wallet.
    if state.selling().is_none() {
        return Err(ApiError::no_refunds());
    }
    asking.allows(Capability::Refund)?;
    if !asking.is_whole() {
        return Err(ApiError::not_allowed("take credit out"));
    }
    let mut fields = body::read(request).await?;
    let invoice = fields.string("invoice")?.ok_or_else(|| ApiError::missing("invoice"))?;
    fields.finish()?;
    if invoice.len() > MAX_INVOICE {
        return Err(ApiError::field("invoice", "invalid_value", "'invoice' is too long for an invoice."));
    }
    let refunded = till.refund(key, invoice).await?;
    Ok(Json(json!({
        "object": "refund",
        // `open`: on its way, and its outcome not known yet.
        "status": if refunded.paid { "paid" } else { "open" },
        "amount_msat": refunded.amount.0,
        "fee_msat": refunded.fee.0,
        "payment_hash": refunded.hash.to_string(),
    })))
}

/// Who asks, and where it pays.
fn customer(state: &Shared, request: &Request) -> Result<(Asking, KeyId, Till), ApiError> {
    let asking = guard::asking(request);
    let key = guard::own_key(request)?;
    let till = state.app.till.clone().ok_or_else(ApiError::no_wallet)?;
    Ok((asking, key, till))
}
