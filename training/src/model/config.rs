//! The shape of the model, in the layout of transformers' `config.json`.

use serde::{Deserialize, Serialize};

use crate::error::TrainError;

/// A Llama architecture; serialises to the `config.json` of `LlamaForCausalLM`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LlamaConfig {
    /// Always `["LlamaForCausalLM"]`.
    pub architectures: Vec<String>,
    /// Always `llama`.
    pub model_type: String,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Longest context.
    pub max_position_embeddings: usize,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// Added to the mean square before its root is taken.
    pub rms_norm_eps: f64,
    /// Activation of the gate.
    pub hidden_act: String,
    /// Whether the output head is the embedding; always true here.
    pub tie_word_embeddings: bool,
    /// Whether attention projections have biases; always false here.
    pub attention_bias: bool,
    /// Whether feed-forward projections have biases; always false here.
    pub mlp_bias: bool,
    /// Begins every sequence.
    pub bos_token_id: u32,
    /// Tokens that end a generation.
    pub eos_token_id: Vec<u32>,
    /// Fills short rows.
    pub pad_token_id: u32,
    /// Type of the stored weights.
    pub torch_dtype: String,
    /// The same under its newer name.
    pub dtype: String,
}

impl LlamaConfig {
    /// The shape of `consortium-tiny`: ten layers, so that it can be spread over ten nodes.
    #[must_use]
    pub fn tiny() -> Self {
        Self {
            architectures: vec!["LlamaForCausalLM".into()],
            model_type: "llama".into(),
            vocab_size: 1024,
            hidden_size: 160,
            intermediate_size: 416,
            num_hidden_layers: 10,
            num_attention_heads: 5,
            num_key_value_heads: 1,
            head_dim: 32,
            max_position_embeddings: 1024,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-5,
            hidden_act: "silu".into(),
            tie_word_embeddings: true,
            attention_bias: false,
            mlp_bias: false,
            bos_token_id: crate::tokenizer::START,
            eos_token_id: vec![crate::tokenizer::END_OF_TEXT, crate::tokenizer::END],
            pad_token_id: crate::tokenizer::END_OF_TEXT,
            torch_dtype: "bfloat16".into(),
            dtype: "bfloat16".into(),
        }
    }

    /// Refuses shapes that cannot be built.
    ///
    /// # Errors
    /// [`TrainError::Setting`] naming the field.
    pub fn check(&self) -> Result<(), TrainError> {
        let refuse = |name, reason: &str| Err(TrainError::Setting { name, reason: reason.into() });
        if self.num_key_value_heads == 0 || !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return refuse("num_key_value_heads", "must divide num_attention_heads");
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return refuse("head_dim", "must be even");
        }
        if self.num_hidden_layers == 0 || self.hidden_size == 0 || self.intermediate_size == 0 || self.vocab_size == 0 {
            return refuse("hidden_size", "no dimension may be zero");
        }
        Ok(())
    }

    /// Names and shapes of all parameters, in a fixed order; matrices are `[out, in]`.
    #[must_use]
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let (h, ff) = (self.hidden_size, self.intermediate_size);
        let q = self.num_attention_heads * self.head_dim;
        let kv = self.num_key_value_heads * self.head_dim;
        let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, h])];
        for layer in 0..self.num_hidden_layers {
            let shapes = [
                ("input_layernorm", vec![h]),
                ("self_attn.q_proj", vec![q, h]),
                ("self_attn.k_proj", vec![kv, h]),
                ("self_attn.v_proj", vec![kv, h]),
                ("self_attn.o_proj", vec![h, q]),
                ("post_attention_layernorm", vec![h]),
                ("mlp.gate_proj", vec![ff, h]),
                ("mlp.up_proj", vec![ff, h]),
                ("mlp.down_proj", vec![h, ff]),
            ];
            all.extend(shapes.into_iter().map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
        }
        all.push(("model.norm.weight".to_owned(), vec![h]));
        all
    }
}
