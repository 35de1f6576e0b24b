//! What all nodes of a run have in common.

use std::sync::Arc;

use super::recipe::{Data, LocalRecipe};
use crate::corpus::Split;
use crate::dataset::Rows;
use crate::error::TrainError;
use crate::model::LlamaConfig;
use crate::packing::{Batch, Source};
use crate::sparseloco::Layout;
use crate::tokenizer::Tokenizer;

/// Model shape, recipe and data of a run.
#[derive(Debug)]
pub struct Task {
    config: LlamaConfig,
    recipe: LocalRecipe,
    tokenizer: Arc<Tokenizer>,
    /// The data, where they are a file.
    rows: Option<Arc<Rows>>,
    layout: Layout,
}

impl Task {
    /// Checks that shape, recipe and tokenizer go together. `rows` are those of the recipe's [`Data::Rows`]; none for stories.
    ///
    /// # Errors
    /// [`TrainError::Setting`] naming what does not, or [`TrainError::Sparse`] for tensors that cannot be compressed.
    pub fn new(
        config: LlamaConfig,
        recipe: LocalRecipe,
        tokenizer: Tokenizer,
        rows: Option<Rows>,
    ) -> Result<Self, TrainError> {
        Self::check(&config, &recipe)?;
        if tokenizer.vocabulary() > config.vocab_size {
            return Err(TrainError::Setting { name: "vocab_size", reason: "is smaller than the tokenizer's".into() });
        }
        if rows.is_some() != matches!(recipe.data, Data::Rows { .. }) {
            return Err(TrainError::Setting { name: "data", reason: "are a file, or generated: one of these".into() });
        }
        let layout = Layout::new(&shapes(&config))?;
        Ok(Self { config, recipe, tokenizer: Arc::new(tokenizer), rows: rows.map(Arc::new), layout })
    }

    /// That a shape and a recipe go together.
    ///
    /// # Errors
    /// [`TrainError::Setting`].
    pub fn check(config: &LlamaConfig, recipe: &LocalRecipe) -> Result<(), TrainError> {
        config.check()?;
        recipe.check()?;
        if recipe.length > config.max_position_embeddings {
            return Err(TrainError::Setting { name: "length", reason: "is longer than the model's context".into() });
        }
        Ok(())
    }

    /// The same but for the recipe, on the same data.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for a recipe that makes no sense.
    pub fn with_recipe(&self, recipe: LocalRecipe) -> Result<Self, TrainError> {
        recipe.check()?;
        if (recipe.data, recipe.length) != (self.recipe.data, self.recipe.length) {
            return Err(TrainError::Setting {
                name: "data",
                reason: "are others, or in rows of another length".into(),
            });
        }
        let (tokenizer, rows, layout) = (Arc::clone(&self.tokenizer), self.rows.clone(), self.layout.clone());
        Ok(Self { config: self.config.clone(), recipe, tokenizer, rows, layout })
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
    /// If a document cannot be encoded, or the file of the data not be read.
    pub fn batch(&self, split: Split, rows: &[u64]) -> Result<Batch, TrainError> {
        match (&self.rows, self.recipe.data) {
            (Some(file), _) => file.batch(split, rows),
            (None, Data::Stories { seed, .. }) => {
                let source = Source { seed, split, length: self.recipe.length, long: false };
                Batch::of(&self.tokenizer, source, rows.iter().copied())
            }
            (None, Data::Rows { .. }) => {
                Err(TrainError::Setting { name: "data", reason: "are a file that was not opened".into() })
            }
        }
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
