//! A model of the shape of `consortium-tiny`, by one optimiser: from nothing to a finished model directory.

use std::path::PathBuf;

use crate::card::model_card;
use crate::checkpoint::Checkpoint;
use crate::curve::loss_curve;
use crate::error::TrainError;
use crate::export::export;
use crate::model::LlamaConfig;
use crate::observer::Observer;
use crate::optimizer::{AdamWSettings, Schedule};
use crate::recipe::Recipe;
use crate::tensor_file::write_atomically;
use crate::tokenizer::Tokenizer;
use crate::trainer::{Saving, Trainer};

/// Largest size of weights and tokenizer files together.
pub const SIZE_LIMIT: u64 = 8 << 20;
const TOKENIZER_DOCUMENTS: u64 = 8_000;

/// What may be chosen about a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TinyOptions {
    /// Directory of the finished model.
    pub out: PathBuf,
    /// Directory of checkpoints; by default `<out>.checkpoints` beside the model.
    pub checkpoints: Option<PathBuf>,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Go on from the newest checkpoint.
    pub resume: bool,
    /// Names corpus and initial weights.
    pub seed: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// Rows of 256 positions per step.
    pub batch: usize,
    /// Threads that share the rows. Products are small: with `RAYON_NUM_THREADS=1` they stay within these threads, which
    /// is fastest.
    pub threads: usize,
}

impl TinyOptions {
    /// Settings with which one optimiser comes to a held-out loss of 0.183 in 40 minutes on two cores. The model in this
    /// repository was trained by several peers together: see its card.
    #[must_use]
    pub fn new(out: PathBuf) -> Self {
        Self {
            out,
            checkpoints: None,
            checkpoint_every: 100,
            resume: false,
            seed: 1,
            steps: 1500,
            batch: 8,
            threads: 2,
        }
    }

    /// Where checkpoints are kept.
    #[must_use]
    pub fn checkpoint_directory(&self) -> PathBuf {
        self.checkpoints.clone().unwrap_or_else(|| {
            let mut name = self.out.file_name().map(std::ffi::OsStr::to_os_string).unwrap_or_default();
            name.push(".checkpoints");
            self.out.with_file_name(name)
        })
    }

    /// The recipe that follows from these options.
    #[must_use]
    pub fn recipe(&self) -> Recipe {
        let peak = 2.5e-3;
        Recipe {
            seed: self.seed,
            batch: self.batch,
            length: 256,
            long_every: 5,
            schedule: Schedule { peak, floor: peak / 20.0, warmup: (self.steps / 20).clamp(1, 60), total: self.steps },
            adam: AdamWSettings::default(),
            clip: 1.0,
            held_out_rows: 24,
            held_out_every: 50,
            threads: self.threads,
        }
    }
}

/// What came out of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct TinyReport {
    /// Numbers in the model.
    pub parameters: usize,
    /// Mean training loss of the last 50 steps, nats per token.
    pub train_loss: f32,
    /// Held-out loss of the finished model, nats per token.
    pub held_out_loss: f32,
    /// Seconds of training, over all sittings.
    pub seconds: f64,
    /// Bytes of weights and tokenizer files.
    pub bytes: u64,
}

/// Trains tokenizer and model and writes the model directory: weights, configuration, tokenizer, `loss.svg` and
/// `README.md`. The same options give the same model on the same kind of machine.
///
/// # Errors
/// Any [`TrainError`]; what was saved before it can be resumed from.
pub fn train_tiny(options: &TinyOptions, observer: &mut dyn Observer) -> Result<TinyReport, TrainError> {
    let config = LlamaConfig::tiny();
    let tokenizer = Tokenizer::train(options.seed, TOKENIZER_DOCUMENTS, config.vocab_size)?;
    let directory = options.checkpoint_directory();
    let mut trainer = if options.resume {
        Trainer::resume(&config, options.recipe(), &tokenizer, Checkpoint::newest(&directory)?)?
    } else {
        Trainer::start(&config, options.recipe(), &tokenizer)?
    };
    trainer.run(Some(&Saving { directory, every: options.checkpoint_every }), observer)?;
    finish(options, &trainer, &tokenizer)
}

fn finish(options: &TinyOptions, trainer: &Trainer<'_>, tokenizer: &Tokenizer) -> Result<TinyReport, TrainError> {
    let progress = trainer.progress();
    let bytes = export(trainer.model(), tokenizer, &options.out)?;
    if bytes > SIZE_LIMIT {
        return Err(TrainError::TooLarge { bytes, limit: SIZE_LIMIT });
    }
    let tail = &progress.history.train[progress.history.train.len().saturating_sub(50)..];
    let report = TinyReport {
        parameters: trainer.model().parameter_count(),
        train_loss: tail.iter().map(|p| p.1).sum::<f32>() / tail.len().max(1) as f32,
        held_out_loss: trainer.held_out_loss()?,
        seconds: progress.seconds,
        bytes,
    };
    let svg = loss_curve("consortium-tiny", &progress.history)?;
    write_atomically(&options.out.join("loss.svg"), svg.as_bytes())?;
    write_atomically(&options.out.join("README.md"), model_card(options, &report).as_bytes())?;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::Silent;

    #[test]
    fn a_short_run_leaves_a_whole_model_directory() {
        let directory = tempfile::tempdir().unwrap();
        let mut options = TinyOptions::new(directory.path().join("model"));
        options.steps = 1;
        options.batch = 1;
        options.threads = 1;
        let report = train_tiny(&options, &mut Silent).unwrap();
        assert!(report.bytes <= SIZE_LIMIT && report.parameters > 2_000_000);
        for name in crate::export::MODEL_FILES.into_iter().chain(["loss.svg", "README.md"]) {
            assert!(options.out.join(name).is_file(), "{name}");
        }
        let card = std::fs::read_to_string(options.out.join("README.md")).unwrap();
        assert!(card.contains("consortium-node train tiny --out DIR --steps 1 --batch 1"), "{card}");
        options.resume = true;
        let again = train_tiny(&options, &mut Silent).unwrap();
        assert!((again.seconds - report.seconds).abs() < 1e-6, "JSON keeps all but the last bit of a double");
        assert_eq!(again, TinyReport { seconds: again.seconds, ..report });
    }

    #[test]
    fn resuming_without_a_checkpoint_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let mut options = TinyOptions::new(directory.path().join("model"));
        options.resume = true;
        assert!(matches!(train_tiny(&options, &mut Silent), Err(TrainError::NoCheckpoint(_))));
    }
}
