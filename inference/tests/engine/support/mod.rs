//! Tiny random models for the tests.

pub(crate) mod reference;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use consortium_protocol::wire::heartbeat::LayerRange;
use half::{bf16, f16};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// What a tiny model is like.
#[derive(Clone)]
pub(crate) struct Tiny {
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) inner: usize,
    pub(crate) vocab: usize,
    pub(crate) positions: usize,
    pub(crate) tied: bool,
    pub(crate) dtype: Dtype,
    pub(crate) files: usize,
    pub(crate) seed: u64,
    /// Merged over the config.json that the other fields imply; null removes a member.
    pub(crate) config: Value,
}

impl Default for Tiny {
    fn default() -> Self {
        Self {
            layers: 8,
            hidden: 48,
            heads: 6,
            kv_heads: 2,
            head_dim: 10,
            inner: 80,
            vocab: 97,
            positions: 640,
            tied: false,
            dtype: Dtype::F32,
            files: 1,
            seed: 1,
            config: json!({}),
        }
    }
}

/// A model directory that is removed when dropped.
pub(crate) struct ModelOnDisk {
    _root: tempfile::TempDir,
    pub(crate) path: PathBuf,
    /// Every tensor as the files hold it, widened.
    pub(crate) tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    pub(crate) tiny: Tiny,
}

impl Tiny {
    pub(crate) fn write(&self) -> ModelOnDisk {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("tiny-model");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("config.json"), self.config_json().to_string()).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut tensors = BTreeMap::new();
        let mut bytes = BTreeMap::new();
        for (name, shape) in self.shapes() {
            let count: usize = shape.iter().product();
            let norm = shape.len() == 1;
            let spread = if norm { 0.2 } else { 2.0 / (*shape.last().unwrap() as f32).sqrt() };
            let values: Vec<f32> =
                (0..count).map(|_| f32::from(norm as u8) + spread * rng.random_range(-1.0..1.0_f32)).collect();
            let (encoded, widened) = encode(self.dtype, &values);
            bytes.insert(name.clone(), (shape.clone(), encoded));
            tensors.insert(name, (shape, widened));
        }
        self.write_files(&path, &bytes);
        ModelOnDisk { _root: root, path, tensors, tiny: self.clone() }
    }

    fn write_files(&self, path: &Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<u8>)>) {
        let mut index = serde_json::Map::new();
        for file in 0..self.files {
            let name = match self.files {
                1 => "model.safetensors".to_owned(),
                files => format!("model-{:05}-of-{files:05}.safetensors", file + 1),
            };
            let views: Vec<(String, TensorView<'_>)> = tensors
                .iter()
                .enumerate()
                .filter(|(i, _)| i % self.files == file)
                .map(|(_, (tensor, (shape, data)))| {
                    index.insert(tensor.clone(), json!(name));
                    let view = TensorView::new(self.dtype, shape.clone(), data).unwrap();
                    (tensor.clone(), view)
                })
                .collect();
            safetensors::serialize_to_file(views, None, &path.join(name)).unwrap();
        }
        if self.files > 1 {
            let index = json!({"metadata": {}, "weight_map": index});
            fs::write(path.join("model.safetensors.index.json"), index.to_string()).unwrap();
        }
    }

    fn config_json(&self) -> Value {
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.positions,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "float32",
            "bos_token_id": 1,
        });
        for (key, value) in self.config.as_object().unwrap() {
            match value {
                Value::Null => config.as_object_mut().unwrap().remove(key),
                value => config.as_object_mut().unwrap().insert(key.clone(), value.clone()),
            };
        }
        config
    }

    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (query, key) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut shapes = vec![
            ("model.embed_tokens.weight".to_owned(), vec![self.vocab, self.hidden]),
            ("model.norm.weight".to_owned(), vec![self.hidden]),
        ];
        if !self.tied {
            shapes.push(("lm_head.weight".to_owned(), vec![self.vocab, self.hidden]));
        }
        for layer in 0..self.layers {
            for (name, shape) in [
                ("input_layernorm", vec![self.hidden]),
                ("self_attn.q_proj", vec![query, self.hidden]),
                ("self_attn.k_proj", vec![key, self.hidden]),
                ("self_attn.v_proj", vec![key, self.hidden]),
                ("self_attn.o_proj", vec![self.hidden, query]),
                ("post_attention_layernorm", vec![self.hidden]),
                ("mlp.gate_proj", vec![self.inner, self.hidden]),
                ("mlp.up_proj", vec![self.inner, self.hidden]),
                ("mlp.down_proj", vec![self.hidden, self.inner]),
            ] {
                shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        shapes
    }
}

impl ModelOnDisk {
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

fn encode(dtype: Dtype, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let mut bytes = Vec::new();
    let mut widened = Vec::new();
    for value in values {
        match dtype {
            Dtype::F16 => {
                let narrow = f16::from_f32(*value);
                bytes.extend(narrow.to_le_bytes());
                widened.push(narrow.to_f32());
            }
            Dtype::BF16 => {
                let narrow = bf16::from_f32(*value);
                bytes.extend(narrow.to_le_bytes());
                widened.push(narrow.to_f32());
            }
            _ => {
                bytes.extend(value.to_le_bytes());
                widened.push(*value);
            }
        }
    }
    (bytes, widened)
}

/// Layers cut into so many ranges of about equal size.
pub(crate) fn split(layers: u16, stages: u16) -> Vec<LayerRange> {
    (0..stages)
        .map(|stage| LayerRange { first: layers * stage / stages, last: layers * (stage + 1) / stages - 1 })
        .collect()
}

/// Tokens drawn evenly from a vocabulary.
pub(crate) fn tokens(count: usize, vocab: usize, seed: u64) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(0..vocab as u32)).collect()
}
