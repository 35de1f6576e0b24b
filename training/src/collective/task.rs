//! What all nodes of a run have in common.

use std::sync::Arc;

use super::recipe::LocalRecipe;
use crate::corpus::Split;
use crate::error::TrainError;
use crate::model::LlamaConfig;
use crate::packing::Batch;
use crate::sparseloco::Layout;
use crate::tokenizer::Tokenizer;

/// Model shape, recipe and data of a run.
#[derive(Debug)]
pub struct Task {
    config: LlamaConfig,
    recipe: LocalRecipe,
    tokenizer: Arc<Tokenizer>,
    layout: Layout,
}

impl Task {
    /// Checks that shape, recipe and tokenizer go together.
    ///
    /// # Errors
    /// [`TrainError::Setting`] naming what does not, or [`TrainError::Sparse`] for tensors that cannot be compressed.
    pub fn new(config: LlamaConfig, recipe: LocalRecipe, tokenizer: Tokenizer) -> Result<Self, TrainError> {
        config.check()?;
        recipe.check()?;
        if recipe.length > config.max_position_embeddings {
            return Err(TrainError::Setting { name: "length", reason: "is longer than the model's context".into() });
        }
        if tokenizer.vocabulary() > config.vocab_size {
            return Err(TrainError::Setting { name: "vocab_size", reason: "is smaller than the tokenizer's".into() });
        }
        let layout = Layout::new(&shapes(&config))?;
        Ok(Self { config, recipe, tokenizer: Arc::new(tokenizer), layout })
    }

    /// The same but for the recipe.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for a recipe that makes no sense.
    pub fn with_recipe(&self, recipe: LocalRecipe) -> Result<Self, TrainError> {
        recipe.check()?;
        let (tokenizer, layout) = (Arc::clone(&self.tokenizer), self.layout.clone());
        Ok(Self { config: self.config.clone(), recipe, tokenizer, layout })
    }

    /// The model's shape.
    #[must_use]
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// How peers train.
    #[must_use]
    pub fn recipe(&self) -> &LocalRecipe {
        &self.recipe
    }

    /// How updates are laid out.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Rows of a split by their numbers.
    ///
    /// # Errors
    /// If a document cannot be encoded.
    pub fn batch(&self, split: Split, rows: &[u64]) -> Result<Batch, TrainError> {
        Batch::of(&self.tokenizer, self.recipe.source(split), rows.iter().copied())
    }

    /// What a saved state must agree with.
    pub(super) fn identity(&self) -> Result<String, TrainError> {
        Ok(serde_json::to_string(&(&self.config, &self.recipe))?)
    }
}

/// Shapes of the model's tensors in order.
pub(super) fn shapes(config: &LlamaConfig) -> Vec<Vec<usize>> {
    config.parameters().into_iter().map(|p| p.1).collect()
}
