//! A validator's part of a round: what it says of each update in its card.

use consortium_protocol::wire::train::{Beacon, Loss, LossPair, Measure, Refusal};
use consortium_protocol::{Hash, NodeId};

use super::submission::Submission;
use super::task::assignment_of;
use crate::collective::{Examination, Examiner, Parameters, SyncProbe, Task};
use crate::error::TrainError;
use crate::gauntlet::{Losses, copies};
use crate::sparseloco::{Update, median_norms, overlaps};

/// The highest loss that a card can say: a thousand nats.
const WORST: Loss = Loss(1_000_000_000_000);
/// The highest drift that a card can say, in millionths.
const FURTHEST: f64 = 1e12;

/// What all updates of a round are asked.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The round.
    pub round: u64,
    /// Drew the peers' own rows, and those that are nobody's.
    pub assignment: Beacon,
    /// Among whom, in this order.
    pub peers: &'a [NodeId],
    /// Draws the held-out rows.
    pub evaluation: Beacon,
    /// The parameters that the round began from.
    pub common: &'a Parameters,
    /// Those that the peers trained from; where they do not wait for the round before they are older.
    pub from: &'a Parameters,
    /// Those before the last aggregate, if that is to be judged.
    pub before: Option<&'a Parameters>,
}

/// An update that is at hand.
#[derive(Clone, Debug)]
pub struct Submitted {
    /// Whose it is.
    pub peer: NodeId,
    /// BLAKE3 of what was handed in.
    pub hash: Hash,
    /// What that says.
    pub submission: Submission,
}

/// What a card says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What the last aggregate did to the held-out batches; none if that was not asked.
    pub aggregate: Vec<LossPair>,
    /// Of every update, in the order given.
    pub findings: Vec<(NodeId, Result<Measure, Refusal>)>,
}

/// Measures `updates`, which are in the order in which they were committed to. `earlier` are those of the round before, to
/// find copies of them.
///
/// # Errors
/// [`TrainError::Setting`] for too few rows, [`TrainError::Sparse`] for updates or parameters of another model.
pub fn measure(
    task: &Task,
    examination: Examination,
    question: &Question<'_>,
    updates: &[Submitted],
    earlier: &[Update],
) -> Result<Answer, TrainError> {
    let Question { round, common, from, .. } = *question;
    let assignment = assignment_of(task, round, question.assignment, question.peers.len())?;
    let evaluation = *question.evaluation.0.as_bytes();
    let examiner = Examiner::new(task, examination, &assignment, common, evaluation, round)?;
    let aggregate = match question.before {
        Some(before) => examiner.last_step(before)?.iter().map(worst_at_most).collect(),
        None => Vec::new(),
    };
    let last_step = question.before.map_or(0.0, |before| common.distance(before));
    let probe = SyncProbe::new(question.assignment.0.as_bytes(), round, from);
    let all: Vec<&Update> = updates.iter().map(|submitted| &submitted.submission.update).collect();
    let medians = if all.is_empty() { Vec::new() } else { median_norms(task.layout(), &all)? };
    let likeness = likeness(task, earlier, &all)?;
    let mut findings = Vec::with_capacity(updates.len());
    for (submitted, (overlap, copy)) in updates.iter().zip(likeness) {
        let Some(place) = question.peers.iter().position(|peer| *peer == submitted.peer) else { continue };
        let Submission { sample, update } = &submitted.submission;
        let measured = examiner.examine(place, update, &medians)?;
        let measure = || {
            Some(Measure {
                update: submitted.hash,
                assigned: pairs(&measured.assigned)?,
                unassigned: pairs(&measured.unassigned)?,
                held_out: pairs(&measured.held_out)?,
                drift: (probe.drift(from, sample, last_step) * 1e6).min(FURTHEST) as u64,
                overlap: (overlap * 1e6).clamp(0.0, 1e6) as u32,
                copy,
                norms: digest_of_norms(update),
            })
        };
        findings.push((submitted.peer, measure().ok_or(Refusal::NoLoss)));
    }
    Ok(Answer { aggregate, findings })
}

/// The digest of the norms of an update's tensors: BLAKE3 over their bits, little-endian.
fn digest_of_norms(update: &Update) -> Hash {
    Hash::of(&update.norms().iter().flat_map(|norm| norm.to_le_bytes()).collect::<Vec<_>>())
}

fn pairs(losses: &[Losses]) -> Option<Vec<LossPair>> {
    let pair = |l: &Losses| Some(LossPair(Loss::from_nats(l.before)?, Loss::from_nats(l.after)?));
    losses.iter().map(pair).collect()
}

/// What is too high for a card, or no number, is the highest: an aggregate must be judged in any case.
fn worst_at_most(losses: &Losses) -> LossPair {
    let loss = |nats| Loss::from_nats(nats).unwrap_or(WORST);
    LossPair(loss(losses.before), loss(losses.after))
}

/// How much each update has in common with one before it, at most, and whether that makes it a copy.
fn likeness(task: &Task, earlier: &[Update], updates: &[&Update]) -> Result<Vec<(f64, bool)>, TrainError> {
    if updates.is_empty() {
        return Ok(Vec::new());
    }
    let all: Vec<&Update> = earlier.iter().chain(updates.iter().copied()).collect();
    let overlaps = overlaps(task.layout(), &all)?;
    let copied = copies(all.len(), |earlier, later| overlaps[earlier][later]);
    let most = |later: usize| (0..later).map(|earlier| overlaps[earlier][later]).fold(0.0, f64::max);
    Ok((earlier.len()..all.len()).map(|later| (most(later), copied[later])).collect())
}
