//! What cards say against what is measured.

use std::collections::BTreeMap;

use consortium_protocol::wire::train::{
    Beacon, Entry, Finding, LossPair, Measure, Outcome, Purpose, Record, Refusal, ScoreCard, beacon,
};
use consortium_protocol::{Hash, NodeId, Signed};
use serde::Serialize;

use super::{ReplayError, World};
use crate::error::TrainError;
use crate::gauntlet::TOLERANCE;
use crate::rounds::{aggregate_to_judge, peers_of_round};
use crate::run::measure::{Answer, Question, Submitted, measure};

/// Differences that are remembered one by one; the rest is counted.
const MOST_TOLD: usize = 100;

/// A loss that was signed, and what it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The round.
    pub round: u64,
    /// Who signed it.
    pub validator: NodeId,
    /// Whose update it is about; none for the last aggregate.
    pub peer: Option<NodeId>,
    /// On which batch: `held-out`, `assigned`, `unassigned` or `aggregate`, and its number from 1.
    pub batch: String,
    /// What was signed, in nats.
    pub said: f64,
    /// What it is, in nats.
    pub found: f64,
}

impl Difference {
    /// The difference as a part of what it is.
    #[must_use]
    pub fn part(&self) -> f64 {
        (self.said - self.found).abs() / self.found.abs().max(f64::MIN_POSITIVE)
    }
}

/// An update that was refused for what it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FalseRefusal {
    /// The round.
    pub round: u64,
    /// Who signed it.
    pub validator: NodeId,
    /// Whose update it is.
    pub peer: NodeId,
    /// What it was refused for: that it is none, or has no loss.
    pub refusal: Refusal,
}

/// All losses of a run, measured again.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Losses {
    /// Cards whose losses were measured again.
    pub cards: u64,
    /// Their losses.
    pub losses: u64,
    /// Cards that could not be measured again, since something that they measured was not kept.
    pub unchecked_cards: u64,
    /// The largest difference of all.
    pub largest: Option<Difference>,
    /// Differences of more than 1e-4 of the loss, the first hundred.
    pub beyond: Vec<Difference>,
    /// How many there are.
    pub beyond_count: u64,
    /// Updates that a card calls malformed or without a loss, and that can be read and measured: the first hundred.
    pub false_refusals: Vec<FalseRefusal>,
    /// Losses in records, which scores and pay follow from, that are none of those measured.
    pub false_medians: u64,
}

impl Losses {
    /// Whether all signed losses are true.
    #[must_use]
    pub fn hold(&self) -> bool {
        self.beyond_count == 0 && self.false_medians == 0 && self.false_refusals.is_empty()
    }

    /// Whether the losses are true that scores and pay follow from.
    #[must_use]
    pub fn medians_hold(&self) -> bool {
        self.false_medians == 0
    }

    /// Measures what the cards of an entry measured; `before` is the record before it.
    pub(super) fn compare(&mut self, world: &World<'_>, before: &Record, entry: &Entry) -> Result<(), ReplayError> {
        let mut answers: BTreeMap<(Beacon, Vec<Hash>), Answer> = BTreeMap::new();
        let mut complete = true;
        for card in &entry.body.cards {
            let Some(updates) = measured_by(world, entry, card.payload())? else {
                (complete, self.unchecked_cards) = (false, self.unchecked_cards + 1);
                continue;
            };
            let evaluation = drawn(before, entry, card.payload());
            let key = (evaluation, updates.iter().map(|submitted| submitted.hash).collect());
            if !answers.contains_key(&key) {
                answers.insert(key.clone(), ask(world, before, evaluation, &updates)?);
            }
            self.card(card, &answers[&key]);
            self.refusals(world, entry, card, &answers[&key])?;
        }
        if complete {
            let answers: Vec<&Answer> = answers.values().collect();
            let false_ones = entry.record.outcomes.iter().map(|outcome| false_medians(outcome, &answers));
            self.false_medians += false_ones.sum::<u64>();
        }
        Ok(())
    }

    fn card(&mut self, card: &Signed<ScoreCard>, answer: &Answer) {
        self.cards += 1;
        let said = card.payload();
        let mut of = |peer, kind: &str, said_pairs: &[LossPair], found: &[LossPair]| {
            for (number, (a, b)) in said_pairs.iter().zip(found).enumerate() {
                for (a, b) in [(a.0, b.0), (a.1, b.1)] {
                    self.note(Difference {
                        round: said.round,
                        validator: card.signer(),
                        peer,
                        batch: format!("{kind} {}", number + 1),
                        said: a.nats(),
                        found: b.nats(),
                    });
                }
            }
        };
        of(None, "aggregate", &said.aggregate, &answer.aggregate);
        for (peer, found) in &answer.findings {
            if let (Some(Finding::Measured(said)), Ok(found)) = (said.finding(*peer), found) {
                of(Some(*peer), "held-out", &said.held_out, &found.held_out);
                of(Some(*peer), "assigned", &said.assigned, &found.assigned);
                of(Some(*peer), "unassigned", &said.unassigned, &found.unassigned);
            }
        }
    }

    /// Looks for updates that a card refuses for what they are not. Whether one came in time cannot be seen any more.
    fn refusals(
        &mut self,
        world: &World<'_>,
        entry: &Entry,
        card: &Signed<ScoreCard>,
        answer: &Answer,
    ) -> Result<(), TrainError> {
        for (peer, finding) in &card.payload().findings {
            let Finding::Refused(refusal) = *finding else { continue };
            let is_false = match refusal {
                Refusal::NoLoss => answer.findings.iter().any(|(other, found)| other == peer && found.is_ok()),
                Refusal::Malformed => match revealed(entry, *peer) {
                    Some(hash) => matches!(world.submission(hash)?, Some(Ok(_))),
                    None => false,
                },
                _ => false,
            };
            if is_false && self.false_refusals.len() < MOST_TOLD {
                let (round, validator) = (entry.record.round, card.signer());
                self.false_refusals.push(FalseRefusal { round, validator, peer: *peer, refusal });
            }
        }
        Ok(())
    }

    fn note(&mut self, difference: Difference) {
        self.losses += 1;
        if difference.part() > TOLERANCE {
            self.beyond_count += 1;
            if self.beyond.len() < MOST_TOLD {
                self.beyond.push(difference.clone());
            }
        }
        if self.largest.as_ref().is_none_or(|largest| largest.part() < difference.part()) {
            self.largest = Some(difference);
        }
    }
}

/// What a card's validator drew its held-out rows with.
fn drawn(before: &Record, entry: &Entry, card: &ScoreCard) -> Beacon {
    let nonces = entry.body.nonces.iter().filter(|nonce| card.drawn_with.binary_search(&nonce.signer()).is_ok());
    let nonces = nonces.map(|nonce| (nonce.signer(), &nonce.payload().nonce));
    beacon(before.run, entry.record.round, Purpose::Evaluation, before.id(), nonces)
}

/// The updates that a card's validator had; none if one of them was not kept. (An update without a loss was one of them, and
/// has its part in the medians that clip.)
fn measured_by(world: &World<'_>, entry: &Entry, card: &ScoreCard) -> Result<Option<Vec<Submitted>>, TrainError> {
    let mut updates = Vec::new();
    for (peer, finding) in &card.findings {
        let hash = match finding {
            Finding::Measured(measure) => Some(measure.update),
            Finding::Refused(Refusal::NoLoss) => revealed(entry, *peer),
            Finding::Refused(_) => None,
        };
        let Some(hash) = hash else { continue };
        match world.submission(hash)? {
            Some(Ok(submission)) => updates.push(Submitted { peer: *peer, hash, submission }),
            Some(Err(_)) | None => return Ok(None),
        }
    }
    Ok(Some(updates))
}

/// The hash of what a peer revealed in the round.
fn revealed(entry: &Entry, peer: NodeId) -> Option<Hash> {
    let reveal = entry.body.reveals.iter().find(|reveal| reveal.signer() == peer)?;
    Some(reveal.payload().update)
}

fn ask(world: &World<'_>, before: &Record, evaluation: Beacon, updates: &[Submitted]) -> Result<Answer, ReplayError> {
    let peers = peers_of_round(world.spec.payload(), before);
    let question = Question {
        round: before.round + 1,
        assignment: before.assignment,
        peers: &peers,
        evaluation,
        common: &world.common,
        from: if before.ahead.is_some() { &world.before } else { &world.common },
        before: aggregate_to_judge(before).map(|_| &world.before),
    };
    if peers.is_empty() && question.before.is_none() {
        return Ok(Answer { aggregate: Vec::new(), findings: Vec::new() });
    }
    Ok(measure(&world.task, world.examination, &question, updates, &[])?)
}

/// How many of an outcome's losses are far from all that was measured.
fn false_medians(outcome: &Outcome, answers: &[&Answer]) -> u64 {
    let measures: Vec<&Measure> = answers
        .iter()
        .flat_map(|answer| &answer.findings)
        .filter_map(|(peer, found)| found.as_ref().ok().filter(|_| *peer == outcome.peer))
        .collect();
    let near = |a: &LossPair, b: &LossPair| {
        [(a.0, b.0), (a.1, b.1)].iter().all(|(a, b)| a.0.abs_diff(b.0) as f64 <= TOLERANCE * b.0 as f64)
    };
    let of = |said: &[LossPair], kind: fn(&Measure) -> &[LossPair]| {
        let far = said.iter().enumerate().filter(|(batch, pair)| {
            !measures.iter().any(|measure| kind(measure).get(*batch).is_some_and(|found| near(pair, found)))
        });
        far.count() as u64
    };
    of(&outcome.held_out, |m| &m.held_out)
        + of(&outcome.assigned, |m| &m.assigned)
        + of(&outcome.unassigned, |m| &m.unassigned)
}
