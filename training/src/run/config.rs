//! The `config.json` of a run.

use crate::error::TrainError;
use crate::model::LlamaConfig;

/// Most parameters of a model.
pub const MAX_PARAMETERS: u64 = 1 << 32;

fn refuse(reason: impl Into<String>) -> TrainError {
    TrainError::Run { what: "config.json", reason: reason.into() }
}

/// Reads a model's shape. Fields that this program does not know could change what is to be computed, so that they are
/// refused, like values of known ones that it does not compute with.
///
/// # Errors
/// [`TrainError::Run`] naming what is wrong, or [`TrainError::Setting`] for dimensions that do not go together.
pub fn config_of(text: &str) -> Result<LlamaConfig, TrainError> {
    let given: serde_json::Value = serde_json::from_str(text).map_err(|e| refuse(format!("is no JSON: {e}")))?;
    let config: LlamaConfig =
        serde_json::from_value(given.clone()).map_err(|e| refuse(format!("is not that of a Llama: {e}")))?;
    let known = serde_json::to_value(&config)?;
    if let (Some(given), Some(known)) = (given.as_object(), known.as_object())
        && let Some(field) = given.keys().find(|field| !known.contains_key(*field))
    {
        return Err(refuse(format!("has a field `{field}`, which this program does not know")));
    }
    check_kind(&config)?;
    check_size(&config)?;
    config.check()?;
    Ok(config)
}

/// That it is of the one kind that is computed here.
fn check_kind(config: &LlamaConfig) -> Result<(), TrainError> {
    let here = LlamaConfig::tiny();
    let fields = [
        ("architectures", config.architectures == here.architectures),
        ("model_type", config.model_type == here.model_type),
        ("hidden_act", config.hidden_act == here.hidden_act),
        ("tie_word_embeddings", config.tie_word_embeddings == here.tie_word_embeddings),
        ("attention_bias", config.attention_bias == here.attention_bias),
        ("mlp_bias", config.mlp_bias == here.mlp_bias),
        ("rope_theta", config.rope_theta.is_finite() && config.rope_theta > 0.0),
        ("rms_norm_eps", config.rms_norm_eps.is_finite() && config.rms_norm_eps > 0.0),
        ("bos_token_id", config.bos_token_id == here.bos_token_id),
        ("eos_token_id", config.eos_token_id == here.eos_token_id),
        ("pad_token_id", config.pad_token_id == here.pad_token_id),
    ];
    match fields.iter().find(|(_, holds)| !holds) {
        Some((field, _)) => Err(refuse(format!("has a `{field}` that is not computed with here"))),
        None => Ok(()),
    }
}

/// That its dimensions, and all parameters together, are within bounds.
fn check_size(config: &LlamaConfig) -> Result<(), TrainError> {
    let dimensions = [
        ("vocab_size", config.vocab_size, 1 << 20),
        ("hidden_size", config.hidden_size, 1 << 16),
        ("intermediate_size", config.intermediate_size, 1 << 18),
        ("num_hidden_layers", config.num_hidden_layers, 512),
        ("num_attention_heads", config.num_attention_heads, 1024),
        ("num_key_value_heads", config.num_key_value_heads, 1024),
        ("head_dim", config.head_dim, 1024),
        ("max_position_embeddings", config.max_position_embeddings, 1 << 20),
    ];
    if let Some((field, value, most)) = dimensions.iter().find(|(_, value, most)| !(1..=*most).contains(value)) {
        return Err(refuse(format!("has a `{field}` of {value}, and may have 1 to {most}")));
    }
    let wide = |n: usize| n as u128;
    let h = wide(config.hidden_size);
    let heads = 2 * wide(config.num_attention_heads) + 2 * wide(config.num_key_value_heads);
    let layer = heads * wide(config.head_dim) * h + 3 * h * wide(config.intermediate_size) + 2 * h;
    let all = wide(config.vocab_size) * h + wide(config.num_hidden_layers) * layer + h;
    if all > u128::from(MAX_PARAMETERS) {
        return Err(refuse(format!("is of a model of {all} parameters, and {MAX_PARAMETERS} are the most")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn with(field: &str, value: Value) -> String {
        let mut config = serde_json::to_value(LlamaConfig::tiny()).unwrap();
        config[field] = value;
        config.to_string()
    }

    #[test]
    fn what_is_written_is_read() {
        let text = serde_json::to_string(&LlamaConfig::tiny()).unwrap();
        assert_eq!(config_of(&text).unwrap(), LlamaConfig::tiny());
    }

    #[test]
    fn shapes_out_of_bounds_are_refused_by_name() {
        for (field, value) in [
            ("vocab_size", json!(1u64 << 40)),
            ("hidden_size", json!(0)),
            ("num_hidden_layers", json!(1_000_000)),
            ("head_dim", json!(31)),
            ("num_key_value_heads", json!(3)),
            ("hidden_act", json!("gelu")),
            ("tie_word_embeddings", json!(false)),
            ("rope_theta", json!(0.0)),
            ("rope_scaling", json!({ "type": "linear" })),
        ] {
            let error = config_of(&with(field, value)).unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
        let huge =
            with("hidden_size", json!(65_536)).replace("\"intermediate_size\":416", "\"intermediate_size\":262144");
        let error = config_of(&huge).unwrap_err().to_string();
        assert!(error.contains("parameters"), "{error}");
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for text in ["", "{", "[]", "{}", "null", "\u{feff}{}"] {
            let error = config_of(text).unwrap_err().to_string();
            assert!(error.contains("config.json"), "{text:?}: {error}");
        }
    }
}
