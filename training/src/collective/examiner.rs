//! A validator's part of a round: what each update does to losses.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::assignment::{Assignment, held_out_rows};
use super::parameters::Parameters;
use super::patch::with_update;
use super::task::Task;
use crate::corpus::Split;
use crate::error::TrainError;
use crate::gauntlet::Losses;
use crate::model::Llama;
use crate::packing::Batch;
use crate::sparseloco::Update;
use crate::trainer::mean_loss;

/// Updates are tried at no smaller part of the outer step than one in so many: what they do would drown in what losses may be
/// off by.
const MOST_PARTS: usize = 16;

/// How updates are examined; part of a run's specification.
///
/// An update costs as many forward passes over rows as [`Self::passes`] says, its round of training three for each row that
/// is trained on: the share of validation in the compute of a round follows from these alone, and is the same for any number
/// of peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examination {
    /// Held-out batches, which do not overlap.
    pub held_out: usize,
    /// Rows of each of these.
    pub held_out_rows: usize,
    /// Batches of the peer's own rows, and of rows that nobody was assigned.
    pub own: usize,
    /// Rows of each of these.
    pub own_rows: usize,
}

impl Examination {
    /// Rows that are computed forward for each update. The losses before it on held-out and unassigned rows are computed
    /// once for all and do not count.
    #[must_use]
    pub fn passes(&self) -> usize {
        self.held_out * self.held_out_rows + 3 * self.own * self.own_rows
    }

    /// What examining an update costs, as a part of the training that it came from: a step's way back costs two ways forth.
    #[must_use]
    pub fn share(&self, rows_each: usize) -> f64 {
        self.passes() as f64 / (3 * rows_each.max(1)) as f64
    }
}

/// Losses before and after one update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// On held-out batches.
    pub held_out: Vec<Losses>,
    /// On rows that were assigned to the peer.
    pub assigned: Vec<Losses>,
    /// On rows that were assigned to nobody.
    pub unassigned: Vec<Losses>,
}

/// A batch and its loss with the common parameters.
#[derive(Debug)]
struct Question {
    batch: Batch,
    before: f64,
}

impl Question {
    fn new(model: &Llama, batch: Batch) -> Result<Self, TrainError> {
        Ok(Self { before: mean_loss(model, &batch)?, batch })
    }

    fn answer(&self, model: &Llama) -> Result<Losses, TrainError> {
        Ok(Losses { before: self.before, after: mean_loss(model, &self.batch)? })
    }
}

fn answers(questions: &[Question], model: &Llama) -> Result<Vec<Losses>, TrainError> {
    questions.par_iter().map(|question| question.answer(model)).collect()
}

/// Examines the updates of one round. The same questions are put to all of them, but for each peer's own rows. Batches are
/// computed beside each other, on the threads of the rayon pool of who calls.
#[derive(Debug)]
pub struct Examiner<'a> {
    task: &'a Task,
    examination: Examination,
    assignment: &'a Assignment,
    beacon: [u8; 32],
    round: u64,
    model: Llama,
    held_out: Vec<Question>,
    unassigned: Vec<Question>,
}

impl<'a> Examiner<'a> {
    /// Draws the round's questions by `beacon`, which must be fixed after all updates were committed to, and computes what
    /// the common parameters answer.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn new(
        task: &'a Task,
        examination: Examination,
        assignment: &'a Assignment,
        common: &Parameters,
        beacon: [u8; 32],
        round: u64,
    ) -> Result<Self, TrainError> {
        let model = common.model()?;
        let Examination { held_out, held_out_rows: size, own, own_rows } = examination;
        let ask = |split, rows: &[u64]| Question::new(&model, task.batch(split, rows)?);
        let held_out = held_out_rows(&beacon, round, task.recipe().data.rows(Split::HeldOut), held_out, size);
        let held_out = held_out.par_iter().map(|rows| ask(Split::HeldOut, rows)).collect::<Result<_, _>>()?;
        let unassigned = assignment.unassigned(&beacon, round, own * own_rows);
        let unassigned =
            unassigned.par_chunks(own_rows.max(1)).map(|rows| ask(Split::Train, rows)).collect::<Result<_, _>>()?;
        Ok(Self { task, examination, assignment, beacon, round, model, held_out, unassigned })
    }

    /// Examines the update of the peer with this number in the assignment, each tensor of it clipped to the median norm, at
    /// its part of the outer step: the round's mean divides it by the number of peers. A whole step by one update alone goes
    /// much too far once the model has learnt something: then honest updates harm as often as not. With four honest peers and
    /// rounds of 30 steps of 8 rows, of 236 updates 95 were let in when whole steps were tried, and 226 of 240 at a quarter.
    ///
    /// # Errors
    /// [`TrainError::Sparse`] if update or medians are of another model, or a tensor operation fails. The examiner can go on
    /// to the next.
    pub fn examine(&self, peer: usize, update: &Update, medians: &[f64]) -> Result<Measured, TrainError> {
        let Examination { own, own_rows, .. } = self.examination;
        let rows = self.assignment.examined(&self.beacon, self.round, peer, own * own_rows);
        let ask = |rows: &[u64]| Question::new(&self.model, self.task.batch(Split::Train, rows)?);
        let assigned = rows.par_chunks(own_rows.max(1)).map(ask).collect::<Result<Vec<_>, _>>()?;
        let share = 1.0 / self.assignment.peers().clamp(1, MOST_PARTS) as f64;
        with_update(&self.model, update, medians, share, |model| {
            Ok(Measured {
                held_out: answers(&self.held_out, model)?,
                assigned: answers(&assigned, model)?,
                unassigned: answers(&self.unassigned, model)?,
            })
        })
    }

    /// Losses on the round's held-out batches with the parameters before the last outer step, and with the common ones:
    /// what the last aggregate did.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn last_step(&self, previous: &Parameters) -> Result<Vec<Losses>, TrainError> {
        let swapped = |losses: Losses| Losses { before: losses.after, after: losses.before };
        Ok(self.compare(previous)?.into_iter().map(swapped).collect())
    }

    /// Losses on the round's held-out batches before and after a whole step to `next`: what an aggregate would do.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn compare(&self, next: &Parameters) -> Result<Vec<Losses>, TrainError> {
        answers(&self.held_out, &next.model()?)
    }
}
