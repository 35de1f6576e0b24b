//! Parameters and forward pass.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::config::LlamaConfig;
use super::kernels::{RotaryTable, attention_weights, rms_norm, rotate, swiglu};
use crate::error::TrainError;

const PER_LAYER: usize = 9;

/// A Llama whose parameters can be trained, on the CPU in `f32`.
#[derive(Debug)]
pub struct Llama {
    config: LlamaConfig,
    names: Vec<String>,
    vars: Vec<Var>,
    rotary: Arc<RotaryTable>,
}

impl Llama {
    /// Fresh parameters drawn from `seed`.
    ///
    /// # Errors
    /// If the configuration is refused or a tensor cannot be made.
    pub fn new(config: &LlamaConfig, seed: u64) -> Result<Self, TrainError> {
        config.check()?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let residual = (2.0 * config.num_hidden_layers as f32).sqrt().recip();
        let mut values = Vec::new();
        for (name, shape) in config.parameters() {
            let count = shape.iter().product();
            let value = match shape[..] {
                [_] => vec![1.0; count],
                _ if name.contains("embed") => normal(&mut rng, count, 0.02),
                _ => {
                    let spread = 0.5 / (shape[1] as f32).sqrt();
                    let last = name.contains("o_proj") || name.contains("down_proj");
                    normal(&mut rng, count, if last { spread * residual } else { spread })
                }
            };
            values.push(value);
        }
        Self::from_values(config, values)
    }

    /// A model with given parameters, one vector for each of [`LlamaConfig::parameters`].
    ///
    /// # Errors
    /// If the configuration is refused, or a vector has the wrong length.
    pub fn from_values(config: &LlamaConfig, values: Vec<Vec<f32>>) -> Result<Self, TrainError> {
        config.check()?;
        let parameters = config.parameters();
        if parameters.len() != values.len() {
            return Err(TrainError::Setting { name: "parameters", reason: "wrong number of tensors".into() });
        }
        let (mut names, mut vars) = (Vec::new(), Vec::new());
        for ((name, shape), value) in parameters.into_iter().zip(values) {
            vars.push(Var::from_tensor(&Tensor::from_vec(value, shape, &Device::Cpu)?)?);
            names.push(name);
        }
        let rotary = RotaryTable::new(config.max_position_embeddings, config.head_dim, config.rope_theta);
        Ok(Self { config: config.clone(), names, vars, rotary: Arc::new(rotary) })
    }

    /// The model's shape.
    #[must_use]
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Parameter names in order.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Parameters in order.
    #[must_use]
    pub fn vars(&self) -> &[Var] {
        &self.vars
    }

    /// How many numbers the model is made of.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        self.vars.iter().map(|v| v.elem_count()).sum()
    }

    /// All parameters as plain numbers, in order.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn values(&self) -> Result<Vec<Vec<f32>>, TrainError> {
        Ok(self.vars.iter().map(|v| v.flatten_all()?.to_vec1()).collect::<candle_core::Result<_>>()?)
    }

    /// Final hidden states `[rows * positions, hidden]`, normed, for `tokens` (`rows * positions` ids, row after row).
    /// `starts` holds for each token the position in its row where its document begins: attention looks no further.
    ///
    /// # Errors
    /// If the lengths disagree, or a row is longer than `max_position_embeddings`.
    pub fn hidden(&self, tokens: &[u32], starts: &Arc<Vec<u32>>, rows: usize) -> Result<Tensor, TrainError> {
        let positions = tokens.len() / rows.max(1);
        if rows == 0 || positions * rows != tokens.len() || positions > self.config.max_position_embeddings {
            return Err(TrainError::Setting { name: "tokens", reason: "not a rectangle within the context".into() });
        }
        let ids = Tensor::from_slice(tokens, tokens.len(), &Device::Cpu)?;
        let mut x = self.vars[0].index_select(&ids, 0)?;
        for layer in 0..self.config.num_hidden_layers {
            let p = &self.vars[1 + layer * PER_LAYER..][..PER_LAYER];
            x = (&x + self.attention(p, &x, starts, (rows, positions))?)?;
            let n = rms_norm(&x, &p[5], self.config.rms_norm_eps)?;
            let inner = swiglu(&linear(&n, &p[6])?, &linear(&n, &p[7])?)?;
            x = (&x + linear(&inner, &p[8])?)?;
        }
        Ok(rms_norm(&x, &self.vars[self.vars.len() - 1], self.config.rms_norm_eps)?)
    }

    /// Scores of the next token, `[.., vocabulary]`, from hidden states `[.., hidden]`.
    ///
    /// # Errors
    /// If the width is wrong.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor, TrainError> {
        Ok(linear(hidden, &self.vars[0])?)
    }

    fn attention(
        &self,
        p: &[Var],
        x: &Tensor,
        starts: &Arc<Vec<u32>>,
        (rows, positions): (usize, usize),
    ) -> candle_core::Result<Tensor> {
        let (heads, groups, dim) =
            (self.config.num_attention_heads, self.config.num_key_value_heads, self.config.head_dim);
        let n = rms_norm(x, &p[0], self.config.rms_norm_eps)?;
        let q = rotate(&linear(&n, &p[1])?.reshape((rows, positions, heads, dim))?, &self.rotary)?;
        let k = rotate(&linear(&n, &p[2])?.reshape((rows, positions, groups, dim))?, &self.rotary)?;
        let v = linear(&n, &p[3])?.reshape((rows, positions, groups, dim))?;
        // Query heads of one group share their keys, so they become extra rows of one product.
        let q = q.transpose(1, 2)?.reshape((rows * groups, heads / groups * positions, dim))?;
        let k = k.transpose(1, 2)?.reshape((rows * groups, positions, dim))?;
        let v = v.transpose(1, 2)?.reshape((rows * groups, positions, dim))?;
        let scores = q.matmul(&k.t()?)?.reshape((rows, heads * positions, positions))?;
        let weights = attention_weights(&scores, starts, (dim as f32).sqrt().recip())?;
        let weights = weights.reshape((rows * groups, heads / groups * positions, positions))?;
        let mixed = weights.matmul(&v)?.reshape((rows, heads, positions, dim))?;
        linear(&mixed.transpose(1, 2)?.reshape((rows * positions, heads * dim))?, &p[4])
    }
}

fn linear(x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
    x.matmul(&weight.t()?)
}

/// Normal deviates by Box and Muller's method.
fn normal(rng: &mut ChaCha8Rng, count: usize, spread: f32) -> Vec<f32> {
    let mut draw = || {
        let (u, v): (f64, f64) = (rng.random(), rng.random());
        ((-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32 * spread
    };
    (0..count).map(|_| draw()).collect()
}
