//! A model on disk: its config, where its tensors lie, its digest, and what parts of it weigh.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use consortium_protocol::Hash;
use consortium_protocol::wire::heartbeat::{LayerRange, ModelRef};

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::weights::{WeightType, Weights};

/// Longest name of a model, bytes: what [`ModelRef`] carries.
const MAX_NAME_BYTES: usize = 96;

/// Files besides the weights that decide what a model says.
const DIGESTED: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
];

/// A model directory whose config and tensor headers have been read and checked. The weights stay on disk.
#[derive(Debug)]
pub struct ModelDir {
    path: PathBuf,
    name: String,
    config: ModelConfig,
    weights: Weights,
    digest: OnceLock<Hash>,
}

impl ModelDir {
    /// Opens a directory in the layout of the Hugging Face hub, and checks that every tensor of the architecture exists
    /// in the right shape, has a dtype that can be read, and lies inside its file.
    ///
    /// # Errors
    /// One distinct error for each defect; see [`ModelError`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        if !path.is_dir() {
            return Err(ModelError::NotADirectory { path: path.into() });
        }
        let config = ModelConfig::read(path)?;
        let weights = Weights::open(path)?;
        let dir = Self { name: name_of(path)?, path: path.into(), config, weights, digest: OnceLock::new() };
        dir.check_tensors()?;
        Ok(dir)
    }

    /// Where the model lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of the directory, which is the name of the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// All layers of the model.
    pub fn all_layers(&self) -> LayerRange {
        LayerRange { first: 0, last: self.config.layers - 1 }
    }

    /// BLAKE3 over (name, BLAKE3 of content) of config, weights, tokenizer and template files, sorted by name. Computed
    /// on first use (about a second for two gigabytes), then kept.
    ///
    /// # Errors
    /// [`ModelError::Io`] if a file cannot be read.
    pub fn digest(&self) -> Result<Hash, ModelError> {
        if let Some(digest) = self.digest.get() {
            return Ok(*digest);
        }
        let mut files: BTreeMap<String, PathBuf> = DIGESTED
            .iter()
            .map(|name| ((*name).to_owned(), self.path.join(name)))
            .filter(|(_, path)| path.is_file())
            .collect();
        for path in self.weights.files() {
            if let Some(name) = path.file_name() {
                files.insert(name.to_string_lossy().into_owned(), path.clone());
            }
        }
        let mut hasher = blake3::Hasher::new_derive_key("consortium model digest 1");
        for (name, path) in &files {
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(hash_file(path)?.as_bytes());
        }
        let digest = Hash::from_bytes(*hasher.finalize().as_bytes());
        Ok(*self.digest.get_or_init(|| digest))
    }

    /// What other nodes are told of this model.
    ///
    /// # Errors
    /// As [`ModelDir::digest`].
    pub fn model_ref(&self) -> Result<ModelRef, ModelError> {
        Ok(ModelRef {
            name: self.name.clone(),
            digest: self.digest()?,
            layers: self.config.layers,
            context: self.config.max_positions,
        })
    }

    /// Resident bytes of the weights of these layers, without embedding and head. Matrices in BF16 stay so in memory,
    /// everything else is widened to f32.
    pub fn layer_bytes(&self, range: LayerRange) -> u64 {
        let tensors = layer_tensors(&self.config);
        (range.first..=range.last.min(self.config.layers - 1))
            .flat_map(|layer| {
                tensors.iter().map(move |(tensor, shape)| self.resident(&layer_tensor(layer, tensor), shape))
            })
            .sum()
    }

    /// Resident bytes of the embedding, which the first stage holds.
    pub fn embed_bytes(&self) -> u64 {
        self.resident(EMBEDDING, &[self.config.vocab_size, self.config.hidden_size])
    }

    /// Resident bytes of the last norm and the head, which the last stage holds.
    pub fn head_bytes(&self) -> u64 {
        let vocabulary = [self.config.vocab_size, self.config.hidden_size];
        let head = match self.config.tie_word_embeddings {
            true => EMBEDDING,
            false => HEAD,
        };
        self.resident(head, &vocabulary) + self.resident(FINAL_NORM, &[self.config.hidden_size])
    }

    fn resident(&self, name: &str, shape: &[usize]) -> u64 {
        let elements: usize = shape.iter().product();
        match self.weights.dtype(name, shape) {
            Ok(WeightType::Bf16) if shape.len() == 2 => 2 * elements as u64,
            _ => 4 * elements as u64,
        }
    }

    /// Resident bytes of the weights of a stage: its layers, the embedding if it is the first, norm and head if it is
    /// the last. A stage that is both holds tied weights once.
    pub fn shard_bytes(&self, range: LayerRange) -> u64 {
        let first = range.first == 0;
        let last = range.last + 1 == self.config.layers;
        let mut bytes = self.layer_bytes(range);
        if first {
            bytes += self.embed_bytes();
        }
        if last {
            bytes += self.head_bytes();
        }
        if first && last && self.config.tie_word_embeddings {
            bytes -= self.embed_bytes();
        }
        bytes
    }

    /// Bytes of keys and values that these layers keep for so many positions of one session.
    pub fn kv_bytes(&self, range: LayerRange, positions: u32) -> u64 {
        self.config.kv_bytes_per_position() * layers_in(range) * u64::from(positions)
    }

    /// Checks that a range lies in the model.
    ///
    /// # Errors
    /// [`ModelError::Range`].
    pub fn check_range(&self, range: LayerRange) -> Result<(), ModelError> {
        if range.first <= range.last && range.last < self.config.layers {
            Ok(())
        } else {
            Err(ModelError::Range { range, layers: self.config.layers })
        }
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    fn check_tensors(&self) -> Result<(), ModelError> {
        let c = &self.config;
        let weights = &self.weights;
        weights.check(EMBEDDING, &[c.vocab_size, c.hidden_size])?;
        weights.check(FINAL_NORM, &[c.hidden_size])?;
        if !c.tie_word_embeddings {
            weights.check(HEAD, &[c.vocab_size, c.hidden_size])?;
        }
        for layer in 0..c.layers {
            for (tensor, shape) in layer_tensors(c) {
                weights.check(&layer_tensor(layer, tensor), &shape)?;
            }
            for biased in ["self_attn.q_proj", "mlp.gate_proj"] {
                let bias = format!("model.layers.{layer}.{biased}.bias");
                if weights.contains(&bias) {
                    return Err(ModelError::UnsupportedFeature {
                        path: self.path.clone(),
                        feature: format!("the bias {bias}"),
                    });
                }
            }
        }
        Ok(())
    }
}

/// The embedding, rows of the vocabulary.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The norm before the head.
pub(crate) const FINAL_NORM: &str = "model.norm.weight";
/// The head, absent where it is tied to the embedding.
pub(crate) const HEAD: &str = "lm_head.weight";

/// The full name of a tensor of a layer.
pub(crate) fn layer_tensor(layer: u16, tensor: &str) -> String {
    format!("model.layers.{layer}.{tensor}.weight")
}

/// The tensors of every layer, with their shapes.
fn layer_tensors(c: &ModelConfig) -> [(&'static str, Vec<usize>); 9] {
    let query = c.heads * c.head_dim;
    let key = c.kv_heads * c.head_dim;
    [
        ("input_layernorm", vec![c.hidden_size]),
        ("self_attn.q_proj", vec![query, c.hidden_size]),
        ("self_attn.k_proj", vec![key, c.hidden_size]),
        ("self_attn.v_proj", vec![key, c.hidden_size]),
        ("self_attn.o_proj", vec![c.hidden_size, query]),
        ("post_attention_layernorm", vec![c.hidden_size]),
        ("mlp.gate_proj", vec![c.intermediate_size, c.hidden_size]),
        ("mlp.up_proj", vec![c.intermediate_size, c.hidden_size]),
        ("mlp.down_proj", vec![c.hidden_size, c.intermediate_size]),
    ]
}

fn layers_in(range: LayerRange) -> u64 {
    u64::from(range.last.saturating_sub(range.first)) + 1
}

/// The last component of the path, `.` and links resolved.
fn name_of(path: &Path) -> Result<String, ModelError> {
    let absolute = path.canonicalize().map_err(|source| ModelError::Io { path: path.into(), source })?;
    let given = path.file_name().or_else(|| absolute.file_name());
    match given.and_then(|name| name.to_str()) {
        Some(name) if name.len() <= MAX_NAME_BYTES => Ok(name.to_owned()),
        _ => Err(ModelError::Config {
            path: path.into(),
            reason: format!(
                "the name of the directory is the name of the model, and must be UTF-8 of at most {MAX_NAME_BYTES} bytes"
            ),
        }),
    }
}

fn hash_file(path: &Path) -> Result<blake3::Hash, ModelError> {
    let io = |source| ModelError::Io { path: path.into(), source };
    let mut file = File::open(path).map_err(io)?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut piece).map_err(io)?;
        if read == 0 {
            return Ok(hasher.finalize());
        }
        hasher.update(&piece[..read]);
    }
}
