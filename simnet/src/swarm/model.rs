//! What a model asks of the memory of a node, read from its files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Largest header of a safetensors file that is read: that of a model with a hundred thousand tensors.
const MAX_HEADER: u64 = 16 * 1024 * 1024;

/// Bytes of one number as nodes keep it in memory (f32).
const NUMBER: u64 = 4;

/// Part of everything that placement sets aside for activations and fragmentation.
const HEADROOM: u64 = 32;

/// Memory that the parts of a model take on a node, in bytes, as placement counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Demand {
    /// Number of decoder layers.
    pub(crate) layers: usize,
    /// Weights of one decoder layer (the largest), and its keys and values for one session of the whole context.
    pub(crate) layer_bytes: u64,
    /// Embedding, final norm and head together; a head tied to the embedding counts again.
    pub(crate) ends_bytes: u64,
}

#[derive(Deserialize)]
struct Config {
    num_hidden_layers: usize,
    #[serde(default)]
    hidden_size: u64,
    #[serde(default)]
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    #[serde(default)]
    max_position_embeddings: u64,
    #[serde(default)]
    tie_word_embeddings: bool,
}

#[derive(Deserialize)]
struct Tensor {
    shape: Vec<u64>,
}

impl Demand {
    /// Reads the demand of the model in `dir`: sizes come from the headers of its safetensors files.
    ///
    /// # Errors
    /// Names the file that is missing or malformed.
    pub(crate) fn of(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("no model in {}: cannot read config.json", dir.display()))?;
        let config: Config =
            serde_json::from_str(&text).with_context(|| format!("{} is not the config of a model", path.display()))?;
        if config.num_hidden_layers == 0 {
            bail!("{} says that the model has no layers", path.display());
        }
        let mut layers: BTreeMap<usize, u64> = BTreeMap::new();
        let mut ends: u64 = 0;
        for file in weight_files(dir)? {
            for (name, bytes) in tensors(&file)? {
                match layer_of(&name) {
                    Some(layer) => *layers.entry(layer).or_default() += bytes,
                    None if config.tie_word_embeddings && name.contains("embed") => {
                        ends += 2 * bytes;
                    }
                    None => ends += bytes,
                }
            }
        }
        let weights = layers.values().copied().max().unwrap_or_default();
        if layers.len() < config.num_hidden_layers {
            bail!("the files in {} hold {} layers of {}", dir.display(), layers.len(), config.num_hidden_layers);
        }
        Ok(Self {
            layers: config.num_hidden_layers,
            layer_bytes: with_headroom(weights.saturating_add(config.key_value_bytes())),
            ends_bytes: with_headroom(ends),
        })
    }

    /// Memory of a stage of `layers` layers that also embeds and samples.
    pub(crate) fn stage_bytes(&self, layers: usize) -> u64 {
        self.layer_bytes.saturating_mul(layers as u64).saturating_add(self.ends_bytes)
    }
}

impl Config {
    /// Keys and values of one layer over the whole context.
    fn key_value_bytes(&self) -> u64 {
        let heads = self.num_key_value_heads.unwrap_or(self.num_attention_heads);
        let width =
            self.head_dim.unwrap_or_else(|| self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0));
        let positions = self.max_position_embeddings;
        [2, NUMBER, heads, width, positions].into_iter().fold(1, u64::saturating_mul)
    }
}

fn with_headroom(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / HEADROOM)
}

fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "safetensors") {
            files.push(path);
        }
    }
    if files.is_empty() {
        bail!("no model in {}: it has no .safetensors file", dir.display());
    }
    files.sort();
    Ok(files)
}

/// Names and f32 sizes of the tensors in one file, from its header (8 bytes of length, then JSON).
fn tensors(path: &Path) -> Result<Vec<(String, u64)>> {
    let malformed = || format!("{} is not a safetensors file", path.display());
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut length = [0; 8];
    file.read_exact(&mut length).with_context(malformed)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        bail!("{} is not a safetensors file: its header has {length} bytes", path.display());
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header)?;
    let header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&header).with_context(malformed)?;
    header
        .into_iter()
        .filter(|(name, _)| name != "__metadata__")
        .map(|(name, value)| {
            let tensor: Tensor = serde_json::from_value(value).with_context(malformed)?;
            let bytes = tensor.shape.into_iter().fold(NUMBER, u64::saturating_mul);
            Ok((name, bytes))
        })
        .collect()
}

/// `3` of `model.layers.3.mlp.up_proj.weight`.
fn layer_of(tensor: &str) -> Option<usize> {
    let mut parts = tensor.split('.').skip_while(|part| *part != "layers");
    parts.next()?;
    parts.next()?.parse().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Writes a model of `layers` layers with a header and no data behind it.
    pub(crate) fn write_model(dir: &Path, layers: usize) {
        std::fs::write(
            dir.join("config.json"),
            serde_json::json!({
                "num_hidden_layers": layers, "hidden_size": 16, "num_attention_heads": 4,
                "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": true,
            })
            .to_string(),
        )
        .unwrap();
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), serde_json::json!({"format": "pt"}));
        header.insert("model.embed_tokens.weight".into(), tensor(&[100, 16]));
        header.insert("model.norm.weight".into(), tensor(&[16]));
        for layer in 0..layers {
            header.insert(format!("model.layers.{layer}.a.weight"), tensor(&[16, 16]));
            header.insert(format!("model.layers.{layer}.b.weight"), tensor(&[16]));
        }
        let header = serde_json::to_vec(&header).unwrap();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(&header);
        std::fs::write(dir.join("model.safetensors"), file).unwrap();
    }

    fn tensor(shape: &[u64]) -> serde_json::Value {
        serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]})
    }

    #[test]
    fn sizes_come_from_headers() {
        let temp = tempfile::tempdir().unwrap();
        write_model(temp.path(), 3);
        let demand = Demand::of(temp.path()).unwrap();
        let key_values = 2 * 4 * 2 * 4 * 64;
        assert_eq!(
            demand,
            Demand {
                layers: 3,
                layer_bytes: with_headroom(4 * (256 + 16) + key_values),
                ends_bytes: with_headroom(4 * (2 * 1600 + 16)),
            }
        );
        assert_eq!(demand.stage_bytes(2), 2 * demand.layer_bytes + demand.ends_bytes);
    }

    #[test]
    fn broken_models_are_named() {
        let temp = tempfile::tempdir().unwrap();
        let says = || format!("{:#}", Demand::of(temp.path()).unwrap_err());
        assert!(says().contains("config.json"), "{}", says());
        write_model(temp.path(), 3);
        let file = temp.path().join("model.safetensors");
        std::fs::write(&file, [255; 20]).unwrap();
        assert!(says().contains("is not a safetensors file"), "{}", says());
        std::fs::write(&file, [1]).unwrap();
        assert!(says().contains("is not a safetensors file"), "{}", says());
        std::fs::remove_file(&file).unwrap();
        assert!(says().contains("no .safetensors file"), "{}", says());
    }
}
