//! What config.json says about a model, checked.
//!
//! The layouts follow Hugging Face transformers: the older one with `rope_theta` and `rope_scaling`, and the one of
//! transformers 5 with `rope_parameters`.

use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::error::ModelError;

/// Largest config.json or generation_config.json that is read, bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The shape of a model of the Llama family. Every number is within the bounds that the engine can serve, and they fit
/// each other: heads divide, head_dim is even.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub layers: u16,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even. Not always hidden_size / heads.
    pub head_dim: usize,
    /// Epsilon of RMSNorm.
    pub rms_norm_eps: f32,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// Scaling of the rotary embedding.
    pub rope_scaling: RopeScaling,
    /// Whether the head shares the weights of the embedding.
    pub tie_word_embeddings: bool,
    /// Positions the model was made for.
    pub max_positions: u32,
    /// Tokens that end a generation; may be empty, sorted.
    pub eos: Vec<u32>,
}

/// How the frequencies of the rotary embedding are stretched for longer contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency is divided by the factor (position interpolation).
    Linear {
        /// The factor, at least 1.
        factor: f64,
    },
    /// Low frequencies are divided, high ones kept, those between are blended (Llama 3.1).
    Llama3 {
        /// The factor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_positions / low_freq_factor` are divided in full.
        low_freq_factor: f64,
        /// Wavelengths below `original_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context before the stretching.
        original_positions: f64,
    },
}

impl ModelConfig {
    /// Reads config.json, and generation_config.json where it exists, from a model directory.
    ///
    /// # Errors
    /// Names the file and what about it is missing, malformed or unsupported.
    pub fn read(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        let text = read_bounded(&path)?.ok_or_else(|| ModelError::MissingFile {
            path: path.clone(),
            hint: "a model directory has the config.json of Hugging Face transformers beside its weights; \
                   give the right directory or download the model again",
        })?;
        let generation = dir.join("generation_config.json");
        let eos = match read_bounded(&generation)? {
            Some(text) => {
                serde_json::from_str::<RawGeneration>(&text)
                    .map_err(|e| config_error(&generation, e.to_string()))?
                    .eos_token_id
            }
            None => None,
        };
        Self::parse(&path, &text, eos)
    }

    /// Parses the text of a config.json; `path` is for the errors.
    fn parse(path: &Path, text: &str, eos: Option<Ids>) -> Result<Self, ModelError> {
        let architectures: RawArchitectures =
            serde_json::from_str(text).map_err(|e| config_error(path, e.to_string()))?;
        let architecture = architectures.check(path)?;
        let raw: RawConfig = serde_json::from_str(text).map_err(|e| config_error(path, e.to_string()))?;
        raw.refuse_unsupported(path, architecture)?;
        raw.checked(path, eos)
    }

    /// Number of weights.
    pub fn parameters(&self) -> u64 {
        let (hidden, feed_forward) = (self.hidden_size as u64, self.intermediate_size as u64);
        let attention = hidden * self.qkv_rows() as u64 + (self.heads * self.head_dim) as u64 * hidden;
        let layer = attention + 3 * hidden * feed_forward + 2 * hidden;
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        u64::from(self.layers) * layer + tables * self.vocab_size as u64 * hidden + hidden
    }

    /// Rows of the fused query, key and value projection.
    pub fn qkv_rows(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Bytes of keys and values that one layer keeps for one position, in f32.
    pub fn kv_bytes_per_position(&self) -> u64 {
        2 * self.kv_heads as u64 * self.head_dim as u64 * 4
    }

    /// Inverse frequencies of the rotary embedding: head_dim / 2 of them, highest first.
    pub fn inverse_frequencies(&self) -> Vec<f64> {
        (0..self.head_dim / 2)
            .map(|i| self.rope_theta.powf(-((2 * i) as f64) / self.head_dim as f64))
            .map(|f| self.rope_scaling.apply(f))
            .collect()
    }
}

impl RopeScaling {
    /// Stretches one inverse frequency.
    fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                let wavelength = std::f64::consts::TAU / frequency;
                if wavelength < original_positions / high_freq_factor {
                    frequency
                } else if wavelength > original_positions / low_freq_factor {
                    frequency / factor
                } else {
                    let smooth =
                        (original_positions / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}

/// The two architectures that the engine serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Architecture {
    Llama,
    Mistral,
}

#[derive(Deserialize)]
struct RawArchitectures {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
}

impl RawArchitectures {
    fn check(&self, path: &Path) -> Result<Architecture, ModelError> {
        let named = self.architectures.as_deref().unwrap_or_default();
        match (named, self.model_type.as_deref()) {
            ([one], _) if one == "LlamaForCausalLM" => Ok(Architecture::Llama),
            ([one], _) if one == "MistralForCausalLM" => Ok(Architecture::Mistral),
            ([], Some("llama")) => Ok(Architecture::Llama),
            ([], Some("mistral")) => Ok(Architecture::Mistral),
            ([], None) => Err(config_error(path, "it names no architecture".into())),
            ([], Some(model_type)) => {
                Err(ModelError::UnsupportedArchitecture { path: path.into(), found: model_type.into() })
            }
            (names, _) => Err(ModelError::UnsupportedArchitecture { path: path.into(), found: names.join(", ") }),
        }
    }
}

/// One id or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(i64),
    Many(Vec<i64>),
}

#[derive(Deserialize)]
struct RawGeneration {
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
struct RawConfig {
    vocab_size: u64,
    hidden_size: u64,
    intermediate_size: u64,
    num_hidden_layers: u64,
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    tie_word_embeddings: Option<bool>,
    max_position_embeddings: Option<u64>,
    sliding_window: Option<u64>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    partial_rotary_factor: Option<f64>,
    quantization_config: Option<serde_json::Value>,
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
struct RawRope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    #[serde(rename = "type")]
    old_type: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    partial_rotary_factor: Option<f64>,
}

impl RawConfig {
    fn refuse_unsupported(&self, path: &Path, architecture: Architecture) -> Result<(), ModelError> {
        let refuse = |feature: String| Err(ModelError::UnsupportedFeature { path: path.into(), feature });
        if let Some(act) = self.hidden_act.as_deref().filter(|a| *a != "silu") {
            return refuse(format!("hidden_act {act}"));
        }
        if self.attention_bias == Some(true) {
            return refuse("attention_bias".into());
        }
        if self.mlp_bias == Some(true) {
            return refuse("mlp_bias".into());
        }
        if let Some(quantization) = &self.quantization_config {
            let method = quantization.get("quant_method").and_then(|m| m.as_str());
            return refuse(format!("quantisation {}", method.unwrap_or("of unknown method")));
        }
        let rope = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let partial = self.partial_rotary_factor.or_else(|| rope.and_then(|r| r.partial_rotary_factor));
        if let Some(partial) = partial.filter(|p| *p != 1.0) {
            return refuse(format!("partial_rotary_factor {partial}"));
        }
        match (architecture, self.sliding_window) {
            (Architecture::Mistral, Some(window)) if self.max_position_embeddings.is_none_or(|max| window < max) => {
                refuse(format!("a sliding window of {window} positions"))
            }
            _ => Ok(()),
        }
    }

    fn checked(self, path: &Path, eos: Option<Ids>) -> Result<ModelConfig, ModelError> {
        let bounded = |name: &str, value: u64, max: u64| match value {
            1.. if value <= max => Ok(value as usize),
            _ => Err(config_error(path, format!("{name} is {value}, outside 1 to {max}"))),
        };
        let vocab_size = bounded("vocab_size", self.vocab_size, 1 << 22)?;
        let hidden_size = bounded("hidden_size", self.hidden_size, 1 << 16)?;
        let intermediate_size = bounded("intermediate_size", self.intermediate_size, 1 << 20)?;
        let layers = bounded("num_hidden_layers", self.num_hidden_layers, 1024)? as u16;
        let heads = bounded("num_attention_heads", self.num_attention_heads, 1024)?;
        let kv_heads = match self.num_key_value_heads {
            Some(n) => bounded("num_key_value_heads", n, 1024)?,
            None => heads,
        };
        if heads % kv_heads != 0 {
            let reason = format!("{heads} attention heads do not divide over {kv_heads} key-value heads");
            return Err(config_error(path, reason));
        }
        let head_dim = match self.head_dim {
            Some(dim) => bounded("head_dim", dim, 1024)?,
            None if hidden_size % heads == 0 => hidden_size / heads,
            None => {
                let reason = format!("hidden_size {hidden_size} does not divide over {heads} heads");
                return Err(config_error(path, reason));
            }
        };
        if head_dim % 2 != 0 || head_dim > 1024 {
            let reason = format!("head_dim {head_dim} is odd or above 1024");
            return Err(config_error(path, reason));
        }
        let max_positions = match self.max_position_embeddings {
            Some(n) => bounded("max_position_embeddings", n, 1 << 24)? as u32,
            None => 2048,
        };
        let rms_norm_eps = in_range(path, "rms_norm_eps", self.rms_norm_eps.unwrap_or(1e-6), 0.0, 1.0)?;
        let (rope_theta, rope_scaling) = self.rope(path, f64::from(max_positions))?;
        let eos = eos.or(self.eos_token_id).map_or(Ok(Vec::new()), |ids| checked_ids(path, ids, vocab_size))?;
        Ok(ModelConfig {
            vocab_size,
            hidden_size,
            intermediate_size,
            layers,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps: rms_norm_eps as f32,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
            max_positions,
            eos,
        })
    }

    /// Base and scaling of the rotary embedding, in either layout.
    fn rope(&self, path: &Path, max_positions: f64) -> Result<(f64, RopeScaling), ModelError> {
        let rope = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = rope.and_then(|r| r.rope_theta).or(self.rope_theta).unwrap_or(10_000.0);
        let theta = in_range(path, "rope_theta", theta, 1.0, 1e12)?;
        let Some(rope) = rope else {
            return Ok((theta, RopeScaling::None));
        };
        let kind = rope.rope_type.as_deref().or(rope.old_type.as_deref());
        let need = |name: &str, value: Option<f64>, low: f64, high: f64| {
            let value = value.ok_or_else(|| config_error(path, format!("the rope scaling has no {name}")))?;
            in_range(path, name, value, low, high)
        };
        let scaling = match kind.unwrap_or("default") {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: need("factor", rope.factor, 0.99, 1e4)? },
            "llama3" => {
                let low_freq_factor = need("low_freq_factor", rope.low_freq_factor, 1e-6, 1e6)?;
                let high_freq_factor = need("high_freq_factor", rope.high_freq_factor, 1e-6, 1e6)?;
                if high_freq_factor <= low_freq_factor {
                    let reason = "high_freq_factor is not above low_freq_factor";
                    return Err(config_error(path, reason.into()));
                }
                let original = rope.original_max_position_embeddings.or(Some(max_positions));
                RopeScaling::Llama3 {
                    factor: need("factor", rope.factor, 0.99, 1e4)?,
                    low_freq_factor,
                    high_freq_factor,
                    original_positions: need("original_max_position_embeddings", original, 0.5, 1e8)?,
                }
            }
            other => {
                return Err(ModelError::UnsupportedFeature {
                    path: path.into(),
                    feature: format!("rope scaling of type {other}"),
                });
            }
        };
        Ok((theta, scaling))
    }
}

/// `value` if it is finite, above `low` and at most `high`.
fn in_range(path: &Path, name: &str, value: f64, low: f64, high: f64) -> Result<f64, ModelError> {
    if value > low && value <= high {
        Ok(value)
    } else {
        let reason = format!("{name} is {value}, outside {low} to {high}");
        Err(config_error(path, reason))
    }
}

/// The ids, sorted; a negative id means none in some configs.
fn checked_ids(path: &Path, ids: Ids, vocab_size: usize) -> Result<Vec<u32>, ModelError> {
    let ids = match ids {
        Ids::One(id) => vec![id],
        Ids::Many(ids) => ids,
    };
    let mut checked = Vec::with_capacity(ids.len().min(64));
    for id in ids.into_iter().filter(|id| *id >= 0) {
        match u32::try_from(id) {
            Ok(id) if (id as usize) < vocab_size => checked.push(id),
            _ => {
                let reason = format!("eos_token_id {id} is outside the vocabulary of {vocab_size}");
                return Err(config_error(path, reason));
            }
        }
    }
    checked.sort_unstable();
    checked.dedup();
    Ok(checked)
}

fn config_error(path: &Path, reason: String) -> ModelError {
    ModelError::Config { path: path.into(), reason }
}

/// The text of a small file; `None` if there is no such file.
pub(crate) fn read_bounded(path: &Path) -> Result<Option<String>, ModelError> {
    read_text(path, MAX_CONFIG_BYTES)
}

/// The text of a file of at most `max` bytes; `None` if there is no such file.
pub(crate) fn read_text(path: &Path, max: u64) -> Result<Option<String>, ModelError> {
    let io = |source| ModelError::Io { path: path.into(), source };
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
    };
    if length > max {
        let reason = format!("it has {length} bytes, more than the {max} that such a file may have");
        return Err(config_error(path, reason));
    }
    fs::read_to_string(path).map(Some).map_err(io)
}
