//! The decoder of the Llama family, cut into ranges of layers.
//!
//! RMSNorm, rotary embedding (rotate-half), grouped-query attention, SwiGLU, as in Touvron et al. 2023
//! (arXiv:2302.13971) and Hugging Face's `modeling_llama.py`. Weights and activations are f32.

use std::fmt;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops::{rms_norm, silu, softmax_last_dim};
use candle_nn::rotary_emb::rope;

use consortium_protocol::wire::heartbeat::LayerRange;

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::kv_cache::KvCache;
use crate::model_dir::{EMBEDDING, FINAL_NORM, HEAD, ModelDir, layer_tensor};

/// What enters a stage.
#[derive(Debug)]
pub enum StageInput<'a> {
    /// Token ids, for the stage that holds the first layer.
    Tokens(&'a [u32]),
    /// Output of the stage before: `[rows, hidden]`, f32.
    Hidden(Tensor),
}

/// What leaves a stage.
#[derive(Debug)]
pub enum StageOutput {
    /// `[rows, hidden]`, f32, for the next stage.
    Hidden(Tensor),
    /// `[rows, vocab]`, f32, from the last stage; of all rows or of the last alone.
    Logits(Tensor),
    /// The last stage ran without its head.
    Nothing,
}

/// Of which rows the last stage computes logits. The head is the most expensive matrix of a small model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadRows {
    /// Of none: the step only fills the cache.
    None,
    /// Of the last row.
    Last,
    /// Of all rows.
    All,
}

/// A contiguous range of layers of a model in memory, with the embedding if it holds the first and norm and head if it
/// holds the last.
pub struct Shard {
    config: ModelConfig,
    range: LayerRange,
    device: Device,
    embedding: Option<Tensor>,
    layers: Vec<Layer>,
    head: Option<Head>,
    rotary: Rotary,
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard").field("range", &self.range).finish_non_exhaustive()
    }
}

impl Shard {
    /// Reads the tensors of a range of layers, and of nothing else.
    ///
    /// # Errors
    /// [`ModelError::Range`] for a range outside the model, [`ModelError::Io`] or [`ModelError::Changed`] if the files
    /// cannot be read as they were opened, [`ModelError::Device`] if the device refuses them.
    pub fn load(dir: &ModelDir, range: LayerRange, device: &Device) -> std::result::Result<Self, ModelError> {
        dir.check_range(range)?;
        let config = dir.config().clone();
        let reader = Reader { dir, device };
        let vocabulary = [config.vocab_size, config.hidden_size];
        let last = range.last + 1 == config.layers;
        let embedding = match range.first {
            0 => Some(reader.tensor(EMBEDDING, &vocabulary)?),
            _ => None,
        };
        let head = match (last, config.tie_word_embeddings, &embedding) {
            (false, _, _) => None,
            (true, true, Some(embedding)) => Some(reader.head(embedding.clone())?),
            (true, true, None) => Some(reader.head(reader.tensor(EMBEDDING, &vocabulary)?)?),
            (true, false, _) => Some(reader.head(reader.tensor(HEAD, &vocabulary)?)?),
        };
        let layers = (range.first..=range.last)
            .map(|layer| reader.layer(layer))
            .collect::<std::result::Result<_, _>>()?;
        Ok(Self {
            rotary: Rotary::new(&config),
            config,
            range,
            device: device.clone(),
            embedding,
            layers,
            head,
        })
    }

    /// The layers of this shard.
    pub fn range(&self) -> LayerRange {
        self.range
    }

    /// The shape of the whole model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether this shard embeds tokens.
    pub fn is_first(&self) -> bool {
        self.embedding.is_some()
    }

    /// Whether this shard computes logits.
    pub fn is_last(&self) -> bool {
        self.head.is_some()
    }

    /// An empty cache that fits this shard.
    ///
    /// # Errors
    /// When the device has no memory for it.
    pub fn cache(&self, max_positions: u32) -> Result<KvCache> {
        KvCache::new(&self.config, self.range, max_positions, &self.device)
    }

    /// Runs rows that follow the `pos` positions in the cache through the layers, with logits of the last row.
    ///
    /// # Errors
    /// As [`Shard::forward_rows`].
    pub fn forward(&self, cache: &mut KvCache, input: StageInput<'_>, pos: usize) -> Result<StageOutput> {
        self.forward_rows(cache, input, pos, HeadRows::Last)
    }

    /// Runs rows that follow the `pos` positions in the cache through the layers.
    ///
    /// # Errors
    /// When `pos` is not the length of the cache, the input is not what this stage takes or has another width, a token
    /// is outside the vocabulary, or the cache cannot grow. The cache is unusable after an error.
    pub fn forward_rows(
        &self,
        cache: &mut KvCache,
        input: StageInput<'_>,
        pos: usize,
        rows_of_head: HeadRows,
    ) -> Result<StageOutput> {
        if pos != cache.length() {
            candle_core::bail!("rows for position {pos} and a cache of {} positions", cache.length());
        }
        let mut x = self.embed(input)?;
        let rows = x.dim(0)?;
        cache.reserve(rows)?;
        let (cos, sin) = self.rotary.rows(pos, rows, &self.device)?;
        for (index, layer) in self.layers.iter().enumerate() {
            x = self.run_layer(layer, index, &x, cache, (&cos, &sin))?;
        }
        cache.advance(rows);
        match (&self.head, rows_of_head) {
            (None, _) => Ok(StageOutput::Hidden(x)),
            (Some(_), HeadRows::None) => Ok(StageOutput::Nothing),
            (Some(head), HeadRows::Last) => self.logits(head, &x.narrow(0, rows - 1, 1)?),
            (Some(head), HeadRows::All) => self.logits(head, &x),
        }
    }

    fn embed(&self, input: StageInput<'_>) -> Result<Tensor> {
        match (input, &self.embedding) {
            (StageInput::Tokens([]), _) => candle_core::bail!("a step without rows"),
            (StageInput::Tokens(tokens), Some(embedding)) => {
                if let Some(token) = tokens.iter().find(|t| **t as usize >= self.config.vocab_size) {
                    candle_core::bail!(
                        "token {token} is outside the vocabulary of {}",
                        self.config.vocab_size
                    );
                }
                embedding.index_select(&Tensor::new(tokens, &self.device)?, 0)
            }
            (StageInput::Hidden(hidden), None) => {
                let (rows, width) = hidden.dims2()?;
                if rows == 0 || width != self.config.hidden_size || hidden.dtype() != DType::F32 {
                    candle_core::bail!(
                        "hidden states of {rows} x {width} {:?}, the model is {} wide in f32",
                        hidden.dtype(),
                        self.config.hidden_size
                    );
                }
                hidden.contiguous()
            }
            (StageInput::Tokens(_), None) => candle_core::bail!("tokens for a stage that does not embed"),
            (StageInput::Hidden(_), Some(_)) => candle_core::bail!("hidden states for the first stage"),
        }
    }

    fn logits(&self, head: &Head, x: &Tensor) -> Result<StageOutput> {
        let x = rms_norm(&x.contiguous()?, &head.norm, self.config.rms_norm_eps)?;
        Ok(StageOutput::Logits(linear(&x, &head.weight)?))
    }

    fn run_layer(
        &self,
        layer: &Layer,
        index: usize,
        x: &Tensor,
        cache: &KvCache,
        rotation: (&Tensor, &Tensor),
    ) -> Result<Tensor> {
        let eps = self.config.rms_norm_eps;
        let normed = rms_norm(x, &layer.attention_norm, eps)?;
        let attended = self.attend(layer, index, &normed, cache, rotation)?;
        let x = (x + attended)?;
        let normed = rms_norm(&x, &layer.feed_forward_norm, eps)?;
        let gate_up = linear(&normed, &layer.gate_up)?;
        let width = self.config.intermediate_size;
        let gate = silu(&gate_up.narrow(D::Minus1, 0, width)?.contiguous()?)?;
        let up = gate_up.narrow(D::Minus1, width, width)?;
        x + linear(&(gate * up)?, &layer.down)?
    }

    fn attend(
        &self,
        layer: &Layer,
        index: usize,
        x: &Tensor,
        cache: &KvCache,
        (cos, sin): (&Tensor, &Tensor),
    ) -> Result<Tensor> {
        let c = &self.config;
        let rows = x.dim(0)?;
        let past = cache.length();
        let total = past + rows;
        let qkv = linear(x, &layer.qkv)?;
        let heads_first = |start: usize, heads: usize| {
            qkv.narrow(1, start * c.head_dim, heads * c.head_dim)?
                .reshape((rows, heads, c.head_dim))?
                .transpose(0, 1)?
                .contiguous()
        };
        let rotate = |t: Tensor| rope(&t.unsqueeze(0)?, cos, sin)?.squeeze(0);
        let queries = rotate(heads_first(0, c.heads)?)?;
        let keys = rotate(heads_first(c.heads, c.kv_heads)?)?;
        let values = heads_first(c.heads + c.kv_heads, c.kv_heads)?;
        let kept = cache.write(index, &keys, &values)?;
        let keys = kept.keys.narrow(1, 0, total)?;
        let values = kept.values.narrow(1, 0, total)?;
        // Query heads that share a key head are rows of one product: nothing is repeated.
        let grouped = queries.reshape((c.kv_heads, c.heads / c.kv_heads * rows, c.head_dim))?;
        let scale = 1.0 / (c.head_dim as f64).sqrt();
        let scores = (grouped.matmul(&keys.transpose(1, 2)?)? * scale)?;
        let scores = match rows {
            1 => scores,
            _ => scores
                .reshape((c.heads, rows, total))?
                .broadcast_add(&causal_mask(rows, past, &self.device)?)?
                .reshape(grouped_shape(c, rows, total))?,
        };
        let mixed = softmax_last_dim(&scores)?.matmul(&values)?;
        let merged = mixed
            .reshape((c.heads, rows, c.head_dim))?
            .transpose(0, 1)?
            .reshape((rows, c.heads * c.head_dim))?;
        linear(&merged, &layer.output)
    }
}

fn grouped_shape(c: &ModelConfig, rows: usize, total: usize) -> (usize, usize, usize) {
    (c.kv_heads, c.heads / c.kv_heads * rows, total)
}

/// `[rows, past + rows]`: zero where row may look, minus infinity where it may not.
fn causal_mask(rows: usize, past: usize, device: &Device) -> Result<Tensor> {
    let total = past + rows;
    let mask: Vec<f32> = (0..rows)
        .flat_map(|row| {
            (0..total).map(move |position| match position {
                p if p <= past + row => 0.0,
                _ => f32::NEG_INFINITY,
            })
        })
        .collect();
    Tensor::from_vec(mask, (rows, total), device)
}

/// `x` times the transpose of `weight`: `[rows, in] x [out, in] -> [rows, out]`.
fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.t()?)
}

/// One decoder layer. Projections that read the same input are fused.
struct Layer {
    attention_norm: Tensor,
    /// Queries, keys, values, in this order.
    qkv: Tensor,
    output: Tensor,
    feed_forward_norm: Tensor,
    /// Gate, then up.
    gate_up: Tensor,
    down: Tensor,
}

struct Head {
    norm: Tensor,
    weight: Tensor,
}

/// Angles of the rotary embedding.
struct Rotary {
    inverse_frequencies: Vec<f64>,
}

impl Rotary {
    fn new(config: &ModelConfig) -> Self {
        Self {
            inverse_frequencies: config.inverse_frequencies(),
        }
    }

    /// Cosines and sines of some positions, `[rows, head_dim / 2]`. The angle is formed in f32, as transformers does.
    fn rows(&self, pos: usize, rows: usize, device: &Device) -> Result<(Tensor, Tensor)> {
        let half = self.inverse_frequencies.len();
        let mut cos = Vec::with_capacity(rows * half);
        let mut sin = Vec::with_capacity(rows * half);
        for position in pos..pos + rows {
            for frequency in &self.inverse_frequencies {
                let (s, c) = (position as f32 * *frequency as f32).sin_cos();
                cos.push(c);
                sin.push(s);
            }
        }
        let cos = Tensor::from_vec(cos, (rows, half), device)?;
        let sin = Tensor::from_vec(sin, (rows, half), device)?;
        Ok((cos, sin))
    }
}

/// Reads tensors of a model onto a device.
struct Reader<'a> {
    dir: &'a ModelDir,
    device: &'a Device,
}

impl Reader<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> std::result::Result<Tensor, ModelError> {
        self.stacked(&[(name.to_owned(), shape)])
    }

    /// One tensor of several with the same inner dimensions, one behind the other.
    fn stacked(&self, parts: &[(String, &[usize])]) -> std::result::Result<Tensor, ModelError> {
        let mut data = Vec::new();
        let mut rows = 0;
        let mut inner: &[usize] = &[];
        for (name, shape) in parts {
            self.dir.weights().read(name, shape, &mut data)?;
            rows += shape[0];
            inner = &shape[1..];
        }
        let shape: Vec<usize> = std::iter::once(rows).chain(inner.iter().copied()).collect();
        Ok(Tensor::from_vec(data, shape, self.device)?)
    }

    fn head(&self, weight: Tensor) -> std::result::Result<Head, ModelError> {
        let norm = self.tensor(FINAL_NORM, &[self.dir.config().hidden_size])?;
        Ok(Head { norm, weight })
    }

    fn layer(&self, layer: u16) -> std::result::Result<Layer, ModelError> {
        let c = self.dir.config();
        let query = c.heads * c.head_dim;
        let key = c.kv_heads * c.head_dim;
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let name = |tensor: &str| layer_tensor(layer, tensor);
        Ok(Layer {
            attention_norm: self.tensor(&name("input_layernorm"), &[hidden])?,
            qkv: self.stacked(&[
                (name("self_attn.q_proj"), &[query, hidden]),
                (name("self_attn.k_proj"), &[key, hidden]),
                (name("self_attn.v_proj"), &[key, hidden]),
            ])?,
            output: self.tensor(&name("self_attn.o_proj"), &[hidden, query])?,
            feed_forward_norm: self.tensor(&name("post_attention_layernorm"), &[hidden])?,
            gate_up: self.stacked(&[
                (name("mlp.gate_proj"), &[inner, hidden]),
                (name("mlp.up_proj"), &[inner, hidden]),
            ])?,
            down: self.tensor(&name("mlp.down_proj"), &[hidden, inner])?,
        })
    }
}
