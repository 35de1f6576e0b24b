//! `GET /v1/account` and `GET /v1/account/statement`: what stands on the account of the key that asks, and what moved
//! on it. Nobody sees another's.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use consortium_ledger::accounts::Owner;
use consortium_ledger::api_keys::KeyId;
use consortium_ledger::l402::terms::Capability;
use consortium_ledger::statement::MAX_LINES;
use serde_json::{Value, json};

use super::error::ApiError;
use super::{AppState, guard};
use crate::{calendar, invoice};

/// Lines of a statement where the caller does not say how many.
const LINES: u32 = 100;

/// Shows the balance.
pub(super) async fn show(State(state): State<AppState>, request: Request) -> Result<Json<Value>, ApiError> {
    let (asking, key) = (guard::asking(&request), own_key(&request)?);
    let view = state.app.billing.account(&key).await?;
    let mut document = json!({
        "object": "account",
        "account": view.owner,
        "free_msat": view.balance.free,
        // Put aside for requests in progress.
        "reserved_msat": view.balance.bonded,
        "balance_msat": i64::try_from(view.balance.total()).unwrap_or(i64::MAX),
        "spent_msat": view.spent,
    });
    if state.selling().is_some() {
        // The largest invoice that /v1/account/refund would pay.
        document["refundable_msat"] = json!(state.app.billing.refundable(&key).await?.0);
    }
    if let Some(terms) = asking.terms() {
        document["expires_at"] = json!(terms.valid_until_s());
        document["budget_left_msat"] = json!(state.app.billing.budget_left(asking.budgets()).await?);
    }
    Ok(Json(document))
}

/// Shows what moved, as JSON or as a table for spreadsheets.
pub(super) async fn statement(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let key = own_key(&request)?;
    let mut asked = Asked::read(&request)?;
    let (from, to) = (asked.time("from")?.unwrap_or(0), asked.time("to")?.unwrap_or(u64::MAX));
    let after = asked.number("after", u64::MAX)?;
    let limit =
        asked.number("limit", u64::from(MAX_LINES))?.map_or(LINES, |lines| u32::try_from(lines).unwrap_or(LINES));
    let as_csv = asked.format(request.headers())?;
    asked.finish()?;
    let statement = state.app.billing.statement(&key, (from, to), after, limit).await?;
    if !as_csv {
        return Ok(Json(statement).into_response());
    }
    let name = format!("attachment; filename=\"statement-{}.csv\"", file_name(&statement.owner));
    let mut response = ([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], invoice::csv(&statement)).into_response();
    if let Ok(name) = HeaderValue::from_str(&name) {
        response.headers_mut().insert(header::CONTENT_DISPOSITION, name);
    }
    if let Some(next) = statement.next {
        response.headers_mut().insert("x-next-after", HeaderValue::from(next));
    }
    Ok(response)
}

fn file_name(owner: &Owner) -> String {
    owner.to_string().replace('/', "-")
}

/// The key or token that asks.
fn own_key(request: &Request) -> Result<KeyId, ApiError> {
    guard::asking(request).allows(Capability::Account)?;
    guard::own_key(request)
}

/// The parameters of a query, taken out one by one.
struct Asked(BTreeMap<String, String>);

impl Asked {
    fn read(request: &Request) -> Result<Self, ApiError> {
        let mut asked = BTreeMap::new();
        // Names and values that mean something here need no encoding, and what is encoded is none of them.
        for pair in request.uri().query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if asked.insert(name.to_owned(), value.to_owned()).is_some() {
                return Err(ApiError::field(name, "invalid_value", format!("'{name:.40}' comes twice.")));
            }
        }
        Ok(Self(asked))
    }

    /// A day, or a time in milliseconds since 1970.
    fn time(&mut self, name: &str) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.0.remove(name) else { return Ok(None) };
        let time = calendar::day(&text).or_else(|| text.parse().ok());
        time.map(Some).ok_or_else(|| {
            let message = format!("'{name}' must be a day such as 2026-11-20, or milliseconds since 1970.");
            ApiError::field(name, "invalid_value", message)
        })
    }

    fn number(&mut self, name: &str, most: u64) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.0.remove(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) if number <= most => Ok(Some(number)),
            _ => Err(ApiError::field(name, "invalid_value", format!("'{name}' must be a number up to {most}."))),
        }
    }

    /// Whether a table for spreadsheets is wanted.
    fn format(&mut self, headers: &HeaderMap) -> Result<bool, ApiError> {
        match self.0.remove("format").as_deref() {
            Some("csv") => Ok(true),
            Some("json") => Ok(false),
            Some(_) => Err(ApiError::field("format", "invalid_value", "'format' must be 'json' or 'csv'.")),
            None => Ok(headers
                .get(header::ACCEPT)
                .and_then(|accept| accept.to_str().ok())
                .is_some_and(|accept| accept.split([',', ';']).any(|kind| kind.trim() == "text/csv"))),
        }
    }

    fn finish(self) -> Result<(), ApiError> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(ApiError::unknown_field(&name)),
        }
    }
}
