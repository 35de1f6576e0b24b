//! The models that a plan can name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::model::LlamaConfig;

/// A shape of known use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelSize {
    /// 10 thousand parameters: for tests. It learns, but nothing worth reading.
    Nano,
    /// 99 thousand parameters, two layers: a round takes seconds on any machine.
    Small,
    /// `consortium-tiny`: 2.3 million parameters, ten layers; tells stories.
    #[default]
    Tiny,
}

impl ModelSize {
    /// All of them, the smallest first.
    pub const ALL: [Self; 3] = [Self::Nano, Self::Small, Self::Tiny];

    /// Its name in a plan.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nano => "nano",
            Self::Small => "small",
            Self::Tiny => "tiny",
        }
    }

    /// Its shape.
    #[must_use]
    pub fn config(self) -> LlamaConfig {
        let tiny = LlamaConfig::tiny();
        match self {
            Self::Nano => LlamaConfig {
                vocab_size: 300,
                hidden_size: 16,
                intermediate_size: 24,
                num_hidden_layers: 2,
                num_attention_heads: 4,
                num_key_value_heads: 2,
                head_dim: 6,
                max_position_embeddings: 64,
                ..tiny
            },
            Self::Small => LlamaConfig {
                vocab_size: 384,
                hidden_size: 64,
                intermediate_size: 128,
                num_hidden_layers: 2,
                num_attention_heads: 4,
                num_key_value_heads: 2,
                head_dim: 16,
                max_position_embeddings: 64,
                ..tiny
            },
            Self::Tiny => tiny,
        }
    }

    /// Documents of the corpus that its tokenizer is trained on.
    pub(super) fn documents(self) -> u64 {
        match self {
            Self::Nano => 100,
            Self::Small => 300,
            Self::Tiny => 8_000,
        }
    }
}

impl fmt::Display for ModelSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ModelSize {
    type Err = TrainError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|size| size.name() == text).ok_or_else(|| TrainError::Setting {
            name: "model",
            reason: format!("`{text}` is none of {}", Self::ALL.map(Self::name).join(", ")),
        })
    }
}
