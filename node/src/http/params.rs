//! Fields that chat and text completions share.

use consortium_protocol::hash::Hash;
use consortium_protocol::wire::job::{JobId, JobRequest, MAX_STOP, Prompt, Sampling};
use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, Harmless, wrong_type};

/// How the answer is to be delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Delivery {
    /// As events while it is made.
    pub(super) stream: bool,
    /// The last event before the end tells the usage.
    pub(super) include_usage: bool,
}

/// Fields of both requests that pass while they ask for nothing special.
const HARMLESS: &[Harmless] = &[
    Harmless { name: "n", passes: is_one, allowed: "1" },
    Harmless { name: "user", passes: Value::is_string, allowed: "a string" },
    Harmless { name: "logit_bias", passes: is_empty, allowed: "empty" },
];

/// Reads what both kinds of completion have in common, and ends the reading: `fields` must hold nothing else.
///
/// `max_tokens` is what is allowed when the caller does not say.
///
/// # Errors
/// 400 naming the field.
pub(super) fn read(
    mut fields: Fields,
    prompt: Prompt,
    max_tokens: Option<u32>,
) -> Result<(JobRequest, Delivery), ApiError> {
    fields.harmless(HARMLESS)?;
    let model = fields.string("model")?.ok_or_else(|| ApiError::missing("model"))?;
    let max_tokens = read_max_tokens(&mut fields)?.or(max_tokens);
    let sampling = read_sampling(&mut fields)?;
    let stop = read_stop(&mut fields)?;
    let ignore_eos = fields.boolean("ignore_eos")?.unwrap_or(false);
    let delivery = read_delivery(&mut fields)?;
    fields.finish()?;
    let request = JobRequest {
        job: JobId(rand::random()),
        model,
        prompt,
        sampling,
        max_tokens,
        stop,
        ignore_eos,
        emitted: Vec::new(),
        // Set with the nonce when the job is submitted.
        challenge: Hash::from_bytes([0; 32]),
    };
    Ok((request, delivery))
}

fn read_max_tokens(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let range = 1..=i128::from(u32::MAX);
    let mut take = |name| -> Result<Option<u32>, ApiError> {
        Ok(fields.integer(name, range.clone())?.and_then(|count| u32::try_from(count).ok()))
    };
    match (take("max_tokens")?, take("max_completion_tokens")?) {
        (Some(old), Some(new)) if old != new => Err(ApiError::field(
            "max_tokens",
            "invalid_value",
            "'max_tokens' and 'max_completion_tokens' say different things; send one of them.",
        )),
        (old, new) => Ok(new.or(old)),
    }
}

fn read_sampling(fields: &mut Fields) -> Result<Sampling, ApiError> {
    let default = Sampling::default();
    // -1 turns top_k off in some servers, 0 in others: both do here.
    let top_k = fields.integer("top_k", -1..=i128::from(u32::MAX))?;
    let seed = fields.integer("seed", i128::from(i64::MIN)..=i128::from(u64::MAX))?;
    let repetition_penalty = fields.number("repetition_penalty", 0.0..=10.0)?;
    if repetition_penalty == Some(0.0) {
        let message = "'repetition_penalty' must be above 0.";
        return Err(ApiError::field("repetition_penalty", "out_of_range", message));
    }
    Ok(Sampling {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(default.temperature),
        // OpenAI takes 0 too; it leaves the likeliest token alone, as does the smallest number above it.
        top_p: fields.number("top_p", 0.0..=1.0)?.map_or(default.top_p, |top_p| top_p.max(f32::MIN_POSITIVE)),
        top_k: top_k.map_or(default.top_k, |count| u32::try_from(count).unwrap_or(0)),
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(default.min_p),
        repetition_penalty: repetition_penalty.unwrap_or(default.repetition_penalty),
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(default.frequency_penalty),
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(default.presence_penalty),
        seed: seed.map_or_else(rand::random, wrap_seed),
    })
}

/// OpenAI's seeds are signed: a negative one stands for its two's complement.
fn wrap_seed(seed: i128) -> u64 {
    u64::try_from(seed).unwrap_or_else(|_| i64::try_from(seed).map_or(0, i64::cast_unsigned))
}

fn read_stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let values = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values,
        Some(single @ Value::String(_)) => vec![single],
        Some(other) => {
            return Err(wrong_type("stop", "a string or an array of strings", &other));
        }
    };
    let (most, longest) = MAX_STOP;
    if values.len() > most {
        let message = format!("'stop' holds at most {most} strings, not {}.", values.len());
        return Err(ApiError::field("stop", "array_above_max_length", message));
    }
    let mut stops = Vec::with_capacity(values.len());
    for value in values {
        match value {
            Value::String(text) if text.is_empty() || text.len() > longest => {
                let message = format!("A string in 'stop' has 1 to {longest} bytes, not {}.", text.len());
                return Err(ApiError::field("stop", "invalid_value", message));
            }
            Value::String(text) => stops.push(text),
            other => {
                return Err(wrong_type("stop", "a string or an array of strings", &other));
            }
        }
    }
    Ok(stops)
}

fn read_delivery(fields: &mut Fields) -> Result<Delivery, ApiError> {
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let Some(options) = fields.take("stream_options") else {
        return Ok(Delivery { stream, include_usage: false });
    };
    if !stream {
        let message = "'stream_options' is only allowed when 'stream' is true.";
        return Err(ApiError::field("stream_options", "invalid_value", message));
    }
    let mut options = Fields::nested(options, "stream_options")?;
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    options.harmless(&[Harmless { name: "include_obfuscation", passes: is_false, allowed: "false" }])?;
    options.finish()?;
    Ok(Delivery { stream, include_usage })
}

/// The value is the number 1.
pub(super) fn is_one(value: &Value) -> bool {
    value.as_u64() == Some(1)
}

/// The value is false.
pub(super) fn is_false(value: &Value) -> bool {
    value.as_bool() == Some(false)
}

/// The value is an empty object, array or string.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// Nothing passes.
pub(super) fn never(_: &Value) -> bool {
    false
}
