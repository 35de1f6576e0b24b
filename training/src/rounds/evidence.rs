//! What several validators' cards say together about one peer.

use consortium_protocol::wire::train::{Body, Finding, Loss, LossPair, Measure, Refusal, Reveal, ScoreCard};
use consortium_protocol::{Hash, NodeId};

use crate::gauntlet::{Evidence, Losses, TOLERANCE};

/// Medians over the cards that measured an update.
pub(super) struct Agreed {
    pub(super) update: Reveal,
    pub(super) norms: Hash,
    pub(super) assigned: Vec<LossPair>,
    pub(super) unassigned: Vec<LossPair>,
    pub(super) held_out: Vec<LossPair>,
    drift: u64,
    copy: bool,
}

impl Agreed {
    /// For the Gauntlet to judge.
    pub(super) fn evidence(&self) -> Evidence {
        Evidence {
            assigned: self.assigned.iter().map(losses).collect(),
            unassigned: self.unassigned.iter().map(losses).collect(),
            held_out: self.held_out.iter().map(losses).collect(),
            drift: self.drift as f64 / 1e6,
            copy: self.copy,
        }
    }
}

fn losses(pair: &LossPair) -> Losses {
    Losses { before: pair.0.nats(), after: pair.1.nats() }
}

/// The part of the loss that was taken off a batch.
pub(super) fn score(pair: &LossPair) -> f64 {
    losses(pair).score()
}

/// For each batch, of all cards' pairs the one with the median score; of an even number the lower.
pub(super) fn median_pairs(cards: &[&[LossPair]]) -> Vec<LossPair> {
    let batches = cards.iter().map(|pairs| pairs.len()).min().unwrap_or(0);
    (0..batches)
        .filter_map(|batch| {
            let mut all: Vec<LossPair> = cards.iter().map(|pairs| pairs[batch]).collect();
            all.sort_by(|a, b| score(a).total_cmp(&score(b)).then(a.cmp(b)));
            all.get((all.len() - 1) / 2).copied()
        })
        .collect()
}

/// The most frequent item; of equally frequent ones the least.
pub(super) fn most_frequent<T: Ord + Copy>(items: impl IntoIterator<Item = T>) -> Option<(T, usize)> {
    let mut sorted: Vec<T> = items.into_iter().collect();
    sorted.sort_unstable();
    let mut best = None;
    for run in sorted.chunk_by(|a, b| a == b) {
        if best.is_none_or(|(_, count)| run.len() > count) {
            best = Some((run[0], run.len()));
        }
    }
    best
}

/// What the cards of `body` say of `peer`: medians if most of them measured the update it revealed, else why not.
pub(super) fn agree(body: &Body, peer: NodeId) -> Result<Agreed, Refusal> {
    let commits = body.commits.iter().filter(|commit| commit.signer() == peer).count();
    if commits > 1 {
        return Err(Refusal::Equivocated);
    }
    let findings: Vec<&Finding> = body.cards.iter().filter_map(|card| card.payload().finding(peer)).collect();
    let refused = findings.iter().filter_map(|finding| match finding {
        Finding::Refused(refusal) => Some(*refusal),
        Finding::Measured(_) => None,
    });
    let refused: Vec<Refusal> = refused.collect();
    if 2 * refused.len() > body.cards.len() {
        return Err(most_frequent(refused).map_or(Refusal::Disputed, |(refusal, _)| refusal));
    }
    let reveal = body.reveals.iter().find(|reveal| reveal.signer() == peer);
    let Some(reveal) = reveal.filter(|_| commits == 1) else {
        return Err(Refusal::Disputed);
    };
    let measures: Vec<&Measure> = findings
        .iter()
        .filter_map(|finding| match finding {
            Finding::Measured(measure) if measure.update == reveal.payload().update => Some(measure),
            _ => None,
        })
        .collect();
    if 2 * measures.len() <= body.cards.len() {
        return Err(Refusal::Disputed);
    }
    Ok(medians(*reveal.payload(), &measures))
}

fn medians(update: Reveal, measures: &[&Measure]) -> Agreed {
    let of = |kind: fn(&Measure) -> &[LossPair]| median_pairs(&measures.iter().map(|m| kind(m)).collect::<Vec<_>>());
    let mut drifts: Vec<u64> = measures.iter().map(|m| m.drift).collect();
    drifts.sort_unstable();
    Agreed {
        update,
        norms: most_frequent(measures.iter().map(|m| m.norms)).map_or(update.update, |(norms, _)| norms),
        assigned: of(|m| &m.assigned),
        unassigned: of(|m| &m.unassigned),
        held_out: of(|m| &m.held_out),
        drift: drifts.get(drifts.len().saturating_sub(1) / 2).copied().unwrap_or(0),
        copy: 2 * measures.iter().filter(|m| m.copy).count() > measures.len(),
    }
}

/// How many losses of a card are off from the medians by more than machines differ. Held-out batches are compared among
/// cards that drew them alike.
pub(super) fn strayed(card: &ScoreCard, cards: &[&ScoreCard]) -> u32 {
    let alike: Vec<&ScoreCard> = cards.iter().filter(|other| other.drawn_with == card.drawn_with).copied().collect();
    let mut count = 0;
    for (peer, finding) in &card.findings {
        let Finding::Measured(measure) = finding else { continue };
        let others = |cards: &[&ScoreCard], kind: fn(&Measure) -> &[LossPair]| {
            let measured = cards.iter().filter_map(|card| match card.finding(*peer) {
                Some(Finding::Measured(other)) if other.update == measure.update => Some(kind(other).to_vec()),
                _ => None,
            });
            stray_of(kind(measure), &measured.collect::<Vec<_>>())
        };
        count += others(cards, |m| &m.assigned) + others(cards, |m| &m.unassigned) + others(&alike, |m| &m.held_out);
    }
    let aggregates: Vec<Vec<LossPair>> = alike.iter().map(|card| card.aggregate.clone()).collect();
    count + stray_of(&card.aggregate, &aggregates)
}

fn stray_of(said: &[LossPair], all: &[Vec<LossPair>]) -> u32 {
    let off = |loss: Loss, others: Vec<Loss>| u32::from(is_off(loss, others));
    said.iter()
        .enumerate()
        .map(|(batch, pair)| {
            let of = |part: fn(&LossPair) -> Loss| all.iter().filter_map(|p| p.get(batch)).map(part).collect();
            off(pair.0, of(|p| p.0)) + off(pair.1, of(|p| p.1))
        })
        .sum()
}

fn is_off(loss: Loss, mut others: Vec<Loss>) -> bool {
    others.sort_unstable();
    let median = others.get(others.len().saturating_sub(1) / 2).copied().unwrap_or(loss);
    loss.0.abs_diff(median.0) as f64 > TOLERANCE * median.0 as f64
}
