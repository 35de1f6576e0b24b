//! `POST /v1/quote`: what a completion would cost at most, by the body that would ask for it.

use axum::Json;
use axum::extract::{Request, State};
use consortium_ledger::price::Rate;
use serde_json::{Value, json};

use super::error::ApiError;
use super::{AppState, body, chat, completions, guard};

/// Handles the call.
pub(super) async fn create(State(state): State<AppState>, request: Request) -> Result<Json<Value>, ApiError> {
    let asking = guard::asking(&request);
    let fields = body::read(request).await?;
    let (request, _) = if fields.has("messages") { chat::parse(fields)? } else { completions::parse(fields)? };
    let offer = state.app.billing.offer(&state.payer(&asking), &request).await?;
    let mut document = json!({
        "object": "quote",
        "model": request.model,
        "prompt_tokens": offer.prompt_tokens,
        // False where this node has no tokenizer for the model: the prompt has no more tokens than that.
        "prompt_tokens_counted": offer.counted,
        "max_tokens": offer.max_tokens,
        "pricing": pricing(&offer.rate),
        "prompt_msat": offer.quote.prompt.0,
        "work_msat": offer.quote.work.0,
        // A part of the work.
        "master_msat": offer.quote.master.0,
        "fee_msat": offer.quote.fee.0,
        "total_msat": offer.quote.total.0,
    });
    if let Some(key) = asking.key() {
        let free = state.app.billing.account(key).await?.balance.free;
        document["free_msat"] = json!(free);
        document["sufficient"] = json!(i128::from(free) >= i128::from(offer.quote.total.0));
    }
    Ok(Json(document))
}

/// What a token costs, as lists of models have it elsewhere: decimal numbers as text, for each token and each request,
/// but in millisatoshi, and with the fee.
pub(super) fn pricing(rate: &Rate) -> Value {
    let thousandths = u128::from(rate.per_position.0) * (1000 + u128::from(rate.fee));
    let (whole, rest) = (thousandths / 1000, thousandths % 1000);
    let price = match rest {
        0 => whole.to_string(),
        _ => format!("{whole}.{rest:03}").trim_end_matches('0').to_owned(),
    };
    json!({"unit": "msat", "prompt": price, "completion": price, "request": "0", "fee_thousandths": rate.fee})
}

#[cfg(test)]
mod tests {
    use consortium_protocol::msat::Msat;

    use super::*;

    #[test]
    fn prices_are_decimal() {
        let price = |msat, fee| pricing(&Rate { per_position: Msat(msat), master: Msat::ZERO, fee })["prompt"].clone();
        assert_eq!([price(0, 50), price(40, 0), price(40, 50), price(7, 5)], ["0", "40", "42", "7.035"]);
        assert_eq!(price(u64::MAX, 1000), "36893488147419103230");
    }
}
