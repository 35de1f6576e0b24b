//! A peer's part of a round.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::parameters::Parameters;
use super::task::Task;
use crate::corpus::Split;
use crate::error::TrainError;
use crate::optimizer::{AdamW, clip_global_norm};
use crate::sparseloco::compress;
use crate::tensor_file::TensorFile;
use crate::trainer::gradients;

const FORMAT: &str = "consortium-training-peer/1";

/// What local steps made of the common parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalRun {
    /// The pseudo-gradient: parameters before less those after, tensor by tensor.
    pub delta: Vec<Vec<f32>>,
    /// Mean loss of every step's batch, nats per token.
    pub losses: Vec<f32>,
}

/// Trains from the common parameters on `rows` of the training split, a batch for every local step of round `round`, and
/// moves the moments of `adam` on.
///
/// # Errors
/// [`TrainError::Diverged`] if a loss is no number, [`TrainError::Setting`] for another number of rows than the steps take;
/// the moments are of no use then.
pub fn local_steps(
    task: &Task,
    common: &Parameters,
    adam: &mut AdamW,
    round: u64,
    rows: &[u64],
) -> Result<LocalRun, TrainError> {
    local_steps_while(task, common, adam, round, rows, &mut |_| true)
}

/// As [`local_steps`]; asks `go_on` before each step, and tells it how many were taken.
fn local_steps_while(
    task: &Task,
    common: &Parameters,
    adam: &mut AdamW,
    round: u64,
    rows: &[u64],
    go_on: &mut dyn FnMut(u64) -> bool,
) -> Result<LocalRun, TrainError> {
    let recipe = task.recipe();
    if rows.len() != recipe.rows_each() {
        let reason = format!("{} rows for {} steps of {}", rows.len(), recipe.steps, recipe.batch);
        return Err(TrainError::Setting { name: "rows", reason });
    }
    let (model, mut losses) = (common.model()?, Vec::new());
    for (step, rows) in (0..).zip(rows.chunks(recipe.batch)) {
        if !go_on(step) {
            return Err(TrainError::Stopped);
        }
        let batch = task.batch(Split::Train, rows)?;
        let (loss, mut grads) = gradients(&model, &batch, recipe.parts)?;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step, loss });
        }
        clip_global_norm(&mut grads, recipe.clip);
        let rate = recipe.rate(round, step, adam.steps());
        adam.step(model.vars(), &grads, rate)?;
        losses.push(loss);
    }
    let trained = model.values()?;
    let difference = |(before, after): (&Vec<f32>, &Vec<f32>)| before.iter().zip(after).map(|(b, a)| b - a).collect();
    Ok(LocalRun { delta: common.values().iter().zip(&trained).map(difference).collect(), losses })
}

/// A peer with the state that is its own.
#[derive(Debug)]
pub struct Peer {
    task: Arc<Task>,
    adam: AdamW,
    feedback: Vec<Vec<f32>>,
    last: Option<Last>,
}

/// The last update that was made.
#[derive(Clone, Debug, PartialEq)]
struct Last {
    round: u64,
    losses: Vec<f32>,
    message: Vec<u8>,
}

/// The header of a saved state.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    task: String,
    steps: u64,
    last: Option<(u64, Vec<f32>)>,
}

impl Peer {
    /// A peer that joins: no moments, and nothing left unsaid.
    #[must_use]
    pub fn join(task: Arc<Task>) -> Self {
        let feedback = task.layout().zeros();
        let sizes: Vec<usize> = feedback.iter().map(Vec::len).collect();
        Self { adam: AdamW::new(task.recipe().adam, &sizes), feedback, task, last: None }
    }

    /// The last round that it trained in.
    #[must_use]
    pub fn trained(&self) -> Option<u64> {
        self.last.as_ref().map(|last| last.round)
    }

    /// Trains in a round and answers with the update's message and the losses of the local steps. For the round that it
    /// trained in last, as after a crash, it answers with what it made then: an update that was committed to is not made
    /// twice.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for a round that is over; otherwise as [`local_steps`]. The peer is then as it was before.
    pub fn train(&mut self, round: u64, common: &Parameters, rows: &[u64]) -> Result<(&[u8], &[f32]), TrainError> {
        self.train_while((round, round), common, rows, &mut |_| true)
    }

    /// As [`Self::train`], in a round and at its place in the schedule of the learning rate, which rounds without training
    /// move apart; asks `go_on` before each local step whether it is still wanted, and tells it how many were taken.
    ///
    /// # Errors
    /// As [`Self::train`], and [`TrainError::Stopped`] if it was not. The peer is then as it was before.
    pub fn train_while(
        &mut self,
        (round, place): (u64, u64),
        common: &Parameters,
        rows: &[u64],
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(&[u8], &[f32]), TrainError> {
        let last = match self.last.take() {
            Some(last) if last.round == round => last,
            earlier => {
                let made = match &earlier {
                    Some(last) if last.round > round => Err(over(round, last.round)),
                    _ => self.make((round, place), common, rows, go_on),
                };
                // Should it fail, what was made before stays.
                self.last = earlier;
                made?
            }
        };
        let last = self.last.insert(last);
        Ok((&last.message, &last.losses))
    }

    fn make(
        &mut self,
        (round, place): (u64, u64),
        common: &Parameters,
        rows: &[u64],
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Last, TrainError> {
        let mut adam = self.adam.clone();
        let run = local_steps_while(&self.task, common, &mut adam, place, rows, go_on)?;
        let message = compress(self.task.layout(), &mut self.feedback, &run.delta)?;
        self.adam = adam;
        Ok(Last { round, losses: run.losses, message })
    }

    /// Saves moments, error feedback and the last update, atomically. To be called before the update is committed to.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the file cannot be written; what was there before stays.
    pub fn save(&self, path: &Path) -> Result<(), TrainError> {
        let (first, second) = self.adam.moments();
        let header = Header {
            task: self.task.identity()?,
            steps: self.adam.steps(),
            last: self.last.as_ref().map(|last| (last.round, last.losses.clone())),
        };
        let groups = [("first", first), ("second", second), ("feedback", &self.feedback)];
        let message = self.last.iter().map(|last| ("message".to_owned(), last.message.clone()));
        let file = TensorFile {
            header: serde_json::to_string(&header)?,
            floats: groups.map(|(group, tensors)| (group.to_owned(), tensors.to_vec())).into(),
            bytes: message.collect(),
        };
        file.write(path, FORMAT)
    }

    /// Takes a peer up where it was saved. What it trains next is the same to the bit as without the crash.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the file cannot be read, [`TrainError::Checkpoint`] if it is damaged or of another run.
    pub fn resume(task: Arc<Task>, path: &Path) -> Result<Self, TrainError> {
        let mut file = TensorFile::read(path, FORMAT)?;
        let refuse = |reason: String| TrainError::Checkpoint { path: path.to_path_buf(), reason };
        let header: Header = serde_json::from_str(&file.header).map_err(|e| refuse(format!("header: {e}")))?;
        if header.task != task.identity()? {
            return Err(refuse("it belongs to a run with another model or recipe".into()));
        }
        let [first, second, feedback] = ["first", "second", "feedback"].map(|group| file.take(group));
        if [&first, &second, &feedback].iter().any(|tensors| task.layout().fits(tensors).is_err()) {
            return Err(refuse("it has other tensors than the model".into()));
        }
        let last = match (header.last, file.bytes.remove("message")) {
            (Some((round, losses)), Some(message)) => Some(Last { round, losses, message }),
            (None, None) => None,
            _ => return Err(refuse("its last update is missing".into())),
        };
        let adam = AdamW::restore(task.recipe().adam, header.steps, first, second);
        Ok(Self { task, adam, feedback, last })
    }
}

fn over(round: u64, last: u64) -> TrainError {
    TrainError::Setting { name: "round", reason: format!("round {round} is over: the last one trained in is {last}") }
}
