//! The decoder of the Llama family, cut into ranges of layers.
//!
//! RMSNorm, rotary embedding (rotate-half), grouped-query attention, SwiGLU, as in Touvron et al. 2023
//! (arXiv:2302.13971) and Hugging Face's `modeling_llama.py`. Activations are f32; the arithmetic is in `kernels`.

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use consortium_protocol::wire::heartbeat::LayerRange;

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::kernels::{Heads, Kernels, Matrix, attend, rms_norm, swiglu};
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

/// What leaves a stage, and the hidden states that an audit looks at.
#[derive(Debug)]
pub struct Forwarded {
    /// What leaves the stage.
    pub output: StageOutput,
    /// `[rows, hidden]`, f32, behind the last layer of the stage; on the last stage before the final norm and the head.
    /// On other stages the same tensor as `output`.
    pub hidden: Tensor,
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
    kernels: Kernels,
    embedding: Option<Arc<Matrix>>,
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
        Self::load_with(dir, range, device, Kernels::for_device(device))
    }

    pub(crate) fn load_with(
        dir: &ModelDir,
        range: LayerRange,
        device: &Device,
        kernels: Kernels,
    ) -> std::result::Result<Self, ModelError> {
        dir.check_range(range)?;
        let config = dir.config().clone();
        let reader = Reader { dir, device, kernels };
        let first = range.first == 0;
        let last = range.last + 1 == config.layers;
        let embedding = match first || (last && config.tie_word_embeddings) {
            true => Some(Arc::new(reader.vocabulary(EMBEDDING)?)),
            false => None,
        };
        let head = match (last, &embedding) {
            (false, _) => None,
            (true, Some(embedding)) if config.tie_word_embeddings => Some(Arc::clone(embedding)),
            (true, _) => Some(Arc::new(reader.vocabulary(HEAD)?)),
        };
        let head = match head {
            Some(weight) => Some(Head { norm: reader.vector(FINAL_NORM)?, weight }),
            None => None,
        };
        let layers =
            (range.first..=range.last).map(|layer| reader.layer(layer)).collect::<std::result::Result<_, _>>()?;
        Ok(Self {
            rotary: Rotary::new(&config),
            config,
            range,
            device: device.clone(),
            kernels,
            embedding: embedding.filter(|_| first),
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
        self.forward_keeping(cache, input, pos, rows_of_head).map(|forwarded| forwarded.output)
    }

    /// As [`Shard::forward_rows`], with the hidden states that the last stage does not send.
    ///
    /// # Errors
    /// As [`Shard::forward_rows`].
    pub fn forward_keeping(
        &self,
        cache: &mut KvCache,
        input: StageInput<'_>,
        pos: usize,
        rows_of_head: HeadRows,
    ) -> Result<Forwarded> {
        if pos != cache.length() {
            candle_core::bail!("rows for position {pos} and a cache of {} positions", cache.length());
        }
        let mut x = self.embed(input)?;
        let rows = x.dim(0)?;
        cache.reserve(rows)?;
        let (cos, sin) = self.rotary.rows(pos, rows, &self.device)?;
        let (cos, sin) = (self.kernels.round(cos)?, self.kernels.round(sin)?);
        for (index, layer) in self.layers.iter().enumerate() {
            x = self.run_layer(layer, index, &x, cache, (&cos, &sin))?;
        }
        cache.advance(rows);
        let output = match (&self.head, rows_of_head) {
            (None, _) => StageOutput::Hidden(x.clone()),
            (Some(_), HeadRows::None) => StageOutput::Nothing,
            (Some(head), HeadRows::Last) => StageOutput::Logits(self.logits(head, &x.narrow(0, rows - 1, 1)?)?),
            (Some(head), HeadRows::All) => StageOutput::Logits(self.logits(head, &x)?),
        };
        Ok(Forwarded { output, hidden: x })
    }

    /// The logits `[rows, vocab]` of hidden states `[rows, hidden]` of the last stage, both f32.
    ///
    /// # Errors
    /// When this is not the last stage, or the tensor has another shape or type.
    pub fn head_logits(&self, hidden: &Tensor) -> Result<Tensor> {
        match &self.head {
            Some(head) => self.logits(head, hidden),
            None => candle_core::bail!("logits from a stage without a head"),
        }
    }

    fn embed(&self, input: StageInput<'_>) -> Result<Tensor> {
        match (input, &self.embedding) {
            (StageInput::Tokens([]), _) => candle_core::bail!("a step without rows"),
            (StageInput::Tokens(tokens), Some(embedding)) => {
                if let Some(token) = tokens.iter().find(|t| **t as usize >= self.config.vocab_size) {
                    candle_core::bail!("token {token} is outside the vocabulary of {}", self.config.vocab_size);
                }
                embedding.gather(tokens, &self.device)
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
                self.kernels.round(hidden.contiguous()?)
            }
            (StageInput::Tokens(_), None) => candle_core::bail!("tokens for a stage that does not embed"),
            (StageInput::Hidden(_), Some(_)) => candle_core::bail!("hidden states for the first stage"),
        }
    }

    fn logits(&self, head: &Head, x: &Tensor) -> Result<Tensor> {
        let x = rms_norm(&x.contiguous()?, &head.norm, self.config.rms_norm_eps, self.kernels)?;
        head.weight.apply(&x)
    }

    fn run_layer(
        &self,
        layer: &Layer,
        index: usize,
        x: &Tensor,
        cache: &KvCache,
        rotation: (&Tensor, &Tensor),
    ) -> Result<Tensor> {
        let c = &self.config;
        let heads = Heads { queries: c.heads, keys: c.kv_heads, dim: c.head_dim };
        let normed = rms_norm(x, &layer.attention_norm, c.rms_norm_eps, self.kernels)?;
        let qkv = layer.qkv.apply(&normed)?;
        let mixed = attend(&qkv, rotation, heads, cache, index, self.kernels)?;
        let x = self.kernels.round((x + layer.output.apply(&mixed)?)?)?;
        let normed = rms_norm(&x, &layer.feed_forward_norm, c.rms_norm_eps, self.kernels)?;
        let gate_up = layer.gate_up.apply(&normed)?;
        let inner = swiglu(&gate_up, c.intermediate_size, self.kernels)?;
        self.kernels.round((x + layer.down.apply(&inner)?)?)
    }
}

/// One decoder layer. Projections that read the same input are fused.
struct Layer {
    attention_norm: Tensor,
    /// Queries, keys, values, in this order.
    qkv: Matrix,
    output: Matrix,
    feed_forward_norm: Tensor,
    /// Gate, then up.
    gate_up: Matrix,
    down: Matrix,
}

struct Head {
    norm: Tensor,
    weight: Arc<Matrix>,
}

/// Angles of the rotary embedding.
struct Rotary {
    inverse_frequencies: Vec<f64>,
}

impl Rotary {
    fn new(config: &ModelConfig) -> Self {
        Self { inverse_frequencies: config.inverse_frequencies() }
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
    kernels: Kernels,
}

impl Reader<'_> {
    /// A tensor of the hidden size: the weights of a norm.
    fn vector(&self, name: &str) -> std::result::Result<Tensor, ModelError> {
        let width = self.dir.config().hidden_size;
        let values = self.dir.weights().read(name, &[width])?;
        Ok(self.kernels.round(Tensor::from_vec(values, width, self.device)?)?)
    }

    /// Embedding or head.
    fn vocabulary(&self, name: &str) -> std::result::Result<Matrix, ModelError> {
        let c = self.dir.config();
        self.matrix(&[(name.to_owned(), c.vocab_size)], c.hidden_size)
    }

    /// One matrix of several, given with their rows, one below the other.
    fn matrix(&self, parts: &[(String, usize)], columns: usize) -> std::result::Result<Matrix, ModelError> {
        Matrix::read(self.dir.weights(), parts, columns, self.kernels, self.device)
    }

    fn layer(&self, layer: u16) -> std::result::Result<Layer, ModelError> {
        let c = self.dir.config();
        let query = c.heads * c.head_dim;
        let key = c.kv_heads * c.head_dim;
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let name = |tensor: &str| layer_tensor(layer, tensor);
        let qkv = [(name("self_attn.q_proj"), query), (name("self_attn.k_proj"), key), (name("self_attn.v_proj"), key)];
        let gate_up = [(name("mlp.gate_proj"), inner), (name("mlp.up_proj"), inner)];
        Ok(Layer {
            attention_norm: self.vector(&name("input_layernorm"))?,
            qkv: self.matrix(&qkv, hidden)?,
            output: self.matrix(&[(name("self_attn.o_proj"), hidden)], query)?,
            feed_forward_norm: self.vector(&name("post_attention_layernorm"))?,
            gate_up: self.matrix(&gate_up, hidden)?,
            down: self.matrix(&[(name("mlp.down_proj"), hidden)], inner)?,
        })
    }
}

#[cfg(test)]
#[path = "llama_tests.rs"]
mod tests;
