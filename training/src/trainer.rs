//! The training loop.

use std::path::PathBuf;
use std::time::Instant;

use crate::checkpoint::{Checkpoint, Progress};
use crate::corpus::Split;
use crate::error::TrainError;
use crate::model::{Llama, LlamaConfig, cross_entropy};
use crate::observer::{Observer, StepReport};
use crate::optimizer::{AdamW, clip_global_norm};
use crate::packing::{Batch, Source};
use crate::recipe::{History, Recipe};
use crate::tokenizer::Tokenizer;

/// Where and how often a run is saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saving {
    /// Directory of the checkpoints.
    pub directory: PathBuf,
    /// Steps between checkpoints.
    pub every: u64,
}

/// A run in progress.
#[derive(Debug)]
pub struct Trainer<'a> {
    recipe: Recipe,
    tokenizer: &'a Tokenizer,
    model: Llama,
    optimizer: AdamW,
    held_out: Batch,
    progress: Progress,
}

impl<'a> Trainer<'a> {
    /// A run from fresh weights.
    ///
    /// # Errors
    /// If a setting makes no sense.
    pub fn start(config: &LlamaConfig, recipe: Recipe, tokenizer: &'a Tokenizer) -> Result<Self, TrainError> {
        let model = Llama::new(config, recipe.seed)?;
        let sizes: Vec<usize> = model.vars().iter().map(|v| v.elem_count()).collect();
        let optimizer = AdamW::new(recipe.adam, &sizes);
        let progress = Progress {
            recipe: identity(config, &recipe)?,
            step: 0,
            next_row: 0,
            seconds: 0.0,
            history: History::default(),
        };
        Self::assemble(recipe, tokenizer, model, optimizer, progress)
    }

    /// A run taken up from a checkpoint of the same shape and recipe. Only the schedule may be another: so a run that has
    /// ended can be made longer.
    ///
    /// # Errors
    /// [`TrainError::Setting`] if the checkpoint is of another recipe or model.
    pub fn resume(
        config: &LlamaConfig,
        recipe: Recipe,
        tokenizer: &'a Tokenizer,
        saved: Checkpoint,
    ) -> Result<Self, TrainError> {
        if without_schedule(&saved.progress.recipe)? != without_schedule(&identity(config, &recipe)?)? {
            let reason = "the checkpoint belongs to a run with other settings".into();
            return Err(TrainError::Setting { name: "resume", reason });
        }
        let sizes = |group: &[Vec<f32>]| group.iter().map(Vec::len).collect::<Vec<_>>();
        let expected: Vec<usize> = config.parameters().iter().map(|(_, s)| s.iter().product()).collect();
        if [&saved.weights, &saved.first, &saved.second].iter().any(|g| sizes(g) != expected) {
            return Err(TrainError::Setting { name: "resume", reason: "the checkpoint has other tensors".into() });
        }
        let model = Llama::from_values(config, saved.weights)?;
        let optimizer = AdamW::restore(recipe.adam, saved.progress.step, saved.first, saved.second);
        let progress = Progress { recipe: identity(config, &recipe)?, ..saved.progress };
        Self::assemble(recipe, tokenizer, model, optimizer, progress)
    }

    fn assemble(
        recipe: Recipe,
        tokenizer: &'a Tokenizer,
        model: Llama,
        optimizer: AdamW,
        progress: Progress,
    ) -> Result<Self, TrainError> {
        if recipe.batch == 0 || recipe.length == 0 || recipe.threads == 0 || recipe.held_out_every == 0 {
            let reason = "batch, length, threads and held-out interval must not be zero".into();
            return Err(TrainError::Setting { name: "recipe", reason });
        }
        let source = Source { seed: recipe.seed, split: Split::HeldOut, length: recipe.length, long: false };
        let held_out = Batch::draw(tokenizer, source, u64::MAX / 2, recipe.held_out_rows)?;
        Ok(Self { recipe, tokenizer, model, optimizer, held_out, progress })
    }

    /// The model as it stands.
    #[must_use]
    pub fn model(&self) -> &Llama {
        &self.model
    }

    /// Steps, losses and time so far.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Trains to the end of the schedule, saving as told.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] if the loss is no number, or whatever saving and computing may answer.
    pub fn run(&mut self, saving: Option<&Saving>, observer: &mut dyn Observer) -> Result<(), TrainError> {
        while self.progress.step < self.recipe.schedule.total {
            let begun = Instant::now();
            let mut report = self.step()?;
            report.tokens_per_second =
                (self.recipe.batch * self.recipe.length) as f64 / begun.elapsed().as_secs_f64().max(1e-9);
            observer.on_step(&report);
            let last = report.step == report.total;
            if last || report.step.is_multiple_of(self.recipe.held_out_every) {
                let loss = self.held_out_loss()?;
                self.progress.history.held_out.push((report.step, loss));
                observer.on_held_out(report.step, loss);
            }
            self.progress.seconds += begun.elapsed().as_secs_f64();
            if let Some(saving) = saving.filter(|s| last || report.step.is_multiple_of(s.every.max(1))) {
                self.checkpoint()?.save(&saving.directory)?;
            }
        }
        Ok(())
    }

    /// The state of the run.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn checkpoint(&self) -> Result<Checkpoint, TrainError> {
        let (first, second) = self.optimizer.moments();
        Ok(Checkpoint {
            progress: self.progress.clone(),
            weights: self.model.values()?,
            first: first.to_vec(),
            second: second.to_vec(),
        })
    }

    /// Mean loss on held-out documents, nats per token.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn held_out_loss(&self) -> Result<f32, TrainError> {
        Ok(mean_loss(&self.model, &self.held_out)? as f32)
    }

    fn next_batch(&mut self) -> Result<Batch, TrainError> {
        let r = &self.recipe;
        let long = r.long_every > 0 && (self.progress.step + 1).is_multiple_of(r.long_every);
        let (length, rows) = if long { (2 * r.length, r.batch.div_ceil(2)) } else { (r.length, r.batch) };
        let source = Source { seed: r.seed, split: Split::Train, length, long };
        let batch = Batch::draw(self.tokenizer, source, self.progress.next_row, rows)?;
        self.progress.next_row += rows as u64;
        Ok(batch)
    }

    fn step(&mut self) -> Result<StepReport, TrainError> {
        let step = self.progress.step;
        let batch = self.next_batch()?;
        let (loss, mut grads) = gradients(&self.model, &batch, self.recipe.threads)?;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step, loss });
        }
        let gradient_norm = clip_global_norm(&mut grads, self.recipe.clip);
        let rate = self.recipe.schedule.rate(step);
        self.optimizer.step(self.model.vars(), &grads, rate)?;
        self.progress.step += 1;
        self.progress.history.train.push((step + 1, loss));
        let total = self.recipe.schedule.total;
        Ok(StepReport { step: step + 1, total, loss, rate, tokens_per_second: 0.0, gradient_norm })
    }
}

/// What a checkpoint must agree with: everything that decides the result.
fn identity(config: &LlamaConfig, recipe: &Recipe) -> Result<String, TrainError> {
    Ok(serde_json::to_string(&(config, recipe))?)
}

/// An identity less the schedule.
fn without_schedule(identity: &str) -> Result<serde_json::Value, TrainError> {
    let mut value: serde_json::Value = serde_json::from_str(identity)?;
    if let Some(recipe) = value.get_mut(1).and_then(serde_json::Value::as_object_mut) {
        recipe.remove("schedule");
    }
    Ok(value)
}

fn loss_sum(model: &Llama, batch: &Batch) -> Result<candle_core::Tensor, TrainError> {
    let hidden = model.hidden(&batch.tokens, &batch.starts, batch.rows)?;
    Ok(cross_entropy(&model.logits(&hidden)?, &batch.targets)?)
}

/// Mean loss of `batch`, nats per token. Eight rows are computed at a time, whatever the machine.
///
/// # Errors
/// If a tensor operation fails.
pub fn mean_loss(model: &Llama, batch: &Batch) -> Result<f64, TrainError> {
    let mut sum = 0f64;
    for part in batch.split(batch.rows.div_ceil(8)) {
        sum += f64::from(loss_sum(model, &part)?.to_scalar::<f32>()?);
    }
    Ok(sum / batch.learnt().max(1.0))
}

/// Mean loss of `batch` and its gradient, parameter by parameter. Rows are shared between `threads`.
///
/// # Errors
/// If a tensor operation fails.
pub fn gradients(model: &Llama, batch: &Batch, threads: usize) -> Result<(f32, Vec<Vec<f32>>), TrainError> {
    let learnt = batch.learnt().max(1.0);
    let parts = batch.split(threads);
    if let [whole] = &parts[..] {
        let (loss, grads) = part_gradients(model, whole, learnt)?;
        return Ok((loss as f32, grads));
    }
    let results: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = parts.iter().map(|p| scope.spawn(move || part_gradients(model, p, learnt))).collect();
        workers.into_iter().map(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let mut total: Option<(f64, Vec<Vec<f32>>)> = None;
    for result in results {
        let (loss, grads) = result?;
        total = Some(match total {
            None => (loss, grads),
            Some((sum, mut all)) => {
                for (a, g) in all.iter_mut().flatten().zip(grads.iter().flatten()) {
                    *a += g;
                }
                (sum + loss, all)
            }
        });
    }
    let (loss, grads) =
        total.ok_or_else(|| TrainError::Setting { name: "batch", reason: "a batch needs a row".into() })?;
    Ok((loss as f32, grads))
}

fn part_gradients(model: &Llama, part: &Batch, learnt: f64) -> Result<(f64, Vec<Vec<f32>>), TrainError> {
    let loss = (loss_sum(model, part)? * learnt.recip())?;
    let store = loss.backward()?;
    let read = |var: &candle_core::Var| match store.get(var) {
        Some(grad) => Ok(grad.flatten_all()?.to_vec1()?),
        None => Ok(vec![0.0; var.elem_count()]),
    };
    let grads = model.vars().iter().map(read).collect::<Result<_, TrainError>>()?;
    Ok((f64::from(loss.to_scalar::<f32>()?), grads))
}

#[cfg(test)]
mod tests;
