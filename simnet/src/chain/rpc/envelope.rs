//! JSON-RPC as bitcoind speaks it: version 2.0 where a request says so, else the 1.0 of old clients, whose errors come
//! with an HTTP status; single requests and batches.

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::error::{INVALID_REQUEST, METHOD_NOT_FOUND, PARSE, RpcError};

/// Most requests of one batch.
const MAX_BATCH: usize = 1_000;

/// A request that can be carried out.
struct Request {
    id: Option<Value>,
    /// Whether it says that it is JSON-RPC 2.0.
    modern: bool,
    method: String,
    params: Value,
}

/// Answers the body of a request; `call` carries out a method. No body is sent where nobody asked for an answer.
pub(super) fn answer(
    body: &[u8],
    mut call: impl FnMut(&str, Value) -> Result<Value, RpcError>,
) -> (StatusCode, Option<Value>) {
    match serde_json::from_slice(body) {
        Ok(Value::Array(batch)) if batch.len() > MAX_BATCH => {
            failure(&RpcError::new(INVALID_REQUEST, format!("at most {MAX_BATCH} requests in a batch")))
        }
        Ok(Value::Array(batch)) => {
            let answers: Vec<Value> =
                batch.into_iter().filter_map(|request| answer_one(request, &mut call).1).collect();
            (StatusCode::OK, Some(Value::Array(answers)))
        }
        Ok(request @ Value::Object(_)) => answer_one(request, &mut call),
        Ok(_) => failure(&RpcError::new(PARSE, "Top-level object parse error")),
        Err(_) => failure(&RpcError::new(PARSE, "Parse error")),
    }
}

/// The answer to what is no request.
pub(super) fn failure(error: &RpcError) -> (StatusCode, Option<Value>) {
    (legacy_status(error), Some(json!({"result": null, "error": error.to_json(), "id": null})))
}

fn answer_one(
    request: Value,
    call: &mut impl FnMut(&str, Value) -> Result<Value, RpcError>,
) -> (StatusCode, Option<Value>) {
    let request = match read(request) {
        Ok(request) => request,
        Err(error) => return failure(&error),
    };
    let result = call(&request.method, request.params);
    match (request.modern, request.id) {
        (true, None) => (StatusCode::NO_CONTENT, None),
        (true, Some(id)) => {
            let mut answer = Map::from_iter([("jsonrpc".to_owned(), json!("2.0"))]);
            match result {
                Ok(result) => answer.insert("result".to_owned(), result),
                Err(error) => answer.insert("error".to_owned(), error.to_json()),
            };
            answer.insert("id".to_owned(), id);
            (StatusCode::OK, Some(Value::Object(answer)))
        }
        (false, id) => match result {
            Ok(result) => (StatusCode::OK, Some(json!({"result": result, "error": null, "id": id}))),
            Err(error) => (legacy_status(&error), Some(json!({"result": null, "error": error.to_json(), "id": id}))),
        },
    }
}

fn read(request: Value) -> Result<Request, RpcError> {
    let invalid = |message: &str| RpcError::new(INVALID_REQUEST, message);
    let Value::Object(mut request) = request else { return Err(invalid("Invalid Request object")) };
    let modern = match request.get("jsonrpc") {
        None | Some(Value::Null) => false,
        Some(Value::String(version)) if version == "1.0" || version == "1.1" => false,
        Some(Value::String(version)) if version == "2.0" => true,
        Some(_) => return Err(invalid("JSON-RPC version not supported")),
    };
    let method = match request.remove("method") {
        Some(Value::String(method)) => method,
        Some(_) => return Err(invalid("Method must be a string")),
        None => return Err(invalid("Missing method")),
    };
    let params = request.remove("params").unwrap_or_default();
    Ok(Request { id: request.remove("id"), modern, method, params })
}

fn legacy_status(error: &RpcError) -> StatusCode {
    match error.code {
        INVALID_REQUEST => StatusCode::BAD_REQUEST,
        METHOD_NOT_FOUND => StatusCode::NOT_FOUND,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
