//! Request bodies: bounded in size and time before anything is made of them.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, header};
use futures::StreamExt;

use super::error::ApiError;
use super::fields::Fields;

/// Largest body accepted.
const MAX_BODY: usize = 2 * 1024 * 1024;
/// A larger body is read on, and thrown away, up to here: most clients look for an answer only after sending.
const MAX_DISCARDED: usize = 32 * 1024 * 1024;
/// Time in which a body must arrive.
const DEADLINE: Duration = Duration::from_secs(30);

/// Reads a JSON object.
///
/// # Errors
/// 400 for what is not a JSON object in UTF-8, 408 when it comes too slowly, 413 when it is too large, 415 when it
/// says to be something else.
pub(super) async fn read(request: Request) -> Result<Fields, ApiError> {
    Fields::parse(&text(request, MAX_BODY).await?)
}

/// Reads a JSON text of at most `limit` bytes; what it says is not looked at.
///
/// # Errors
/// As [`read`], but for what is in the text.
pub(super) async fn text(request: Request, limit: usize) -> Result<String, ApiError> {
    check_content_type(request.headers())?;
    if announced(request.headers()) > limit && request.headers().contains_key(header::EXPECT) {
        // The client waits for leave to send. It does not get it.
        return Err(ApiError::too_large(limit));
    }
    let bytes =
        tokio::time::timeout(DEADLINE, collect(request, limit)).await.map_err(|_| ApiError::body_timeout())??;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        ApiError::body(format!("The body is not UTF-8: invalid byte at {at}."))
    })
}

async fn collect(request: Request, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::with_capacity(announced(request.headers()).min(limit));
    let mut seen = 0_usize;
    let mut stream = request.into_body().into_data_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| ApiError::body("The body was cut short."))?;
        seen = seen.saturating_add(chunk.len());
        if seen <= limit {
            bytes.extend_from_slice(&chunk);
        } else if seen > MAX_DISCARDED {
            break;
        }
    }
    if seen > limit { Err(ApiError::too_large(limit)) } else { Ok(bytes) }
}

fn announced(headers: &HeaderMap) -> usize {
    headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(0)
}

/// JSON, or nothing said. Other types are refused because a browser lets any page send those without asking first.
fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let text = value.to_str().unwrap_or("?");
    let essence = text.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") { Ok(()) } else { Err(ApiError::content_type(text)) }
}
