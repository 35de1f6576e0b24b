//! What follows from a round: a pure function of the specification, the record before, and the body.

use std::collections::BTreeMap;

use consortium_protocol::wire::train::{
    Ahead, Beacon, Body, Fate, Finite, Join, Member, Outcome, Purpose, Record, Refusal, RunId, RunSpec, ScoreCard,
    Validator, beacon, commitment, nonce_lock,
};
use consortium_protocol::{Hash, Msat, NodeId, Signed};

use super::evidence::{Agreed, agree, median_pairs, most_frequent, score, strayed};
use super::{bond, pay, people};
use crate::gauntlet::{self, Evidence, Merit, Rating, Standing, Verdict, take_round};

/// A run ends after as many rounds in which nothing was trained.
const MOST_IN_VAIN: u64 = 100_000;

/// Why a body gives no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The run has ended.
    #[error("the run has ended")]
    Ended,
    /// Too few validators sent a card.
    #[error("fewer cards than the quorum")]
    FewCards,
    /// A card is not about this round, not by a validator, or not about its peers; or its nonce is not the locked one.
    #[error("a card does not fit the round")]
    Card,
    /// An evaluation nonce is not the locked one.
    #[error("a nonce is not the one that was locked")]
    Nonce,
    /// A commitment is not about this round, or not by one of its peers.
    #[error("a commitment does not fit the round")]
    Commit,
    /// What was revealed is not what was committed to, or is too long.
    #[error("what was revealed is not what was committed to")]
    Reveal,
    /// Someone joins who may not, said so too long ago, or has not pledged what the run wants.
    #[error("a join or a candidate does not fit the round")]
    Join,
    /// Most validators do not hold the same parameters.
    #[error("most validators do not hold the same parameters")]
    Diverged,
    /// A sum is above what money can be.
    #[error("a sum is out of bounds")]
    Sum,
}

/// The record before the first, which follows from the specification alone.
#[must_use]
pub fn genesis(spec: &Signed<RunSpec>) -> Record {
    let run = RunId::of(spec);
    let validator = |id: &NodeId| Validator { id: *id, silent: 0, strayed: 0, locks: None };
    Record {
        run,
        round: 0,
        view: 0,
        at_ms: spec.payload().starts_at_ms,
        previous: run.0,
        body: Body::default().digest(),
        base: spec.payload().model.initial,
        reverts: false,
        trained: 0,
        ended: false,
        outcomes: Vec::new(),
        payouts: Vec::new(),
        members: Vec::new(),
        validators: spec.payload().validators.iter().map(validator).collect(),
        candidates: Vec::new(),
        assignment: beacon(run, 1, Purpose::Assignment, run.0, []),
        ahead: spec
            .payload()
            .training
            .overlap
            .then(|| Ahead { peers: Vec::new(), assignment: beacon(run, 2, Purpose::Assignment, run.0, []) }),
    }
}

/// The peers that train in the round after `before`, in ascending order: none if they are too few.
#[must_use]
pub fn peers_of_round(spec: &RunSpec, before: &Record) -> Vec<NodeId> {
    enough(spec, before.ahead.as_ref().map_or_else(|| before.peers().collect(), |ahead| ahead.peers.clone()))
}

/// In a run whose peers train while a round is judged: those of the round after the one after `last`.
pub(super) fn peers_ahead(spec: &RunSpec, last: &Record) -> Vec<NodeId> {
    enough(spec, last.peers().collect())
}

fn enough(spec: &RunSpec, peers: Vec<NodeId>) -> Vec<NodeId> {
    if peers.len() < spec.least_peers as usize { Vec::new() } else { peers }
}

/// The state hash of the parameters that the local steps of the round after `before` begin from, for a node that has those
/// after `before`, which hash to `held`.
#[must_use]
pub fn trained_from(before: &Record, held: Hash) -> Hash {
    if before.ahead.is_some() { before.base } else { held }
}

/// The state hash of the parameters before the aggregate that the round after `before` has to judge, if there is one.
#[must_use]
pub fn aggregate_to_judge(before: &Record) -> Option<Hash> {
    before.accepted().next().map(|_| before.base)
}

/// Whether a card fits the round after `before`.
#[must_use]
pub fn card_fits(spec: &RunSpec, before: &Record, card: &Signed<ScoreCard>) -> bool {
    let said = card.payload();
    let Some(validator) = before.validator(card.signer()) else { return false };
    let judged = if aggregate_to_judge(before).is_some() { spec.batches.held_out as usize } else { 0 };
    let about = (said.run, said.round) == (before.run, before.round + 1);
    let peers = said.findings.iter().map(|(peer, _)| *peer).eq(peers_of_round(spec, before));
    let batches = said.findings.iter().all(|(_, finding)| match finding {
        consortium_protocol::wire::train::Finding::Measured(measure) => {
            (measure.assigned.len(), measure.unassigned.len(), measure.held_out.len())
                == (spec.batches.assigned as usize, spec.batches.unassigned as usize, spec.batches.held_out as usize)
        }
        consortium_protocol::wire::train::Finding::Refused(_) => true,
    });
    let lock =
        said.opened.map(|nonce| nonce_lock(before.run, before.round + 1, Purpose::Assignment, card.signer(), &nonce));
    about
        && peers
        && batches
        && said.aggregate.len() == judged
        && lock == validator.locks.map(|locks| locks.assignment)
        && said.drawn_with.iter().all(|id| before.validator(*id).is_some_and(|v| v.locks.is_some()))
}

/// The record that follows from `body` in the round after `before`, first proposed in `view` at `at_ms`.
///
/// # Errors
/// The body has something in it that does not belong there, or too few cards.
pub fn outcome(spec: &RunSpec, before: &Record, body: &Body, view: u64, at_ms: u64) -> Result<Record, Unfit> {
    check_body(spec, before, body)?;
    let round = before.round + 1;
    let peers = peers_of_round(spec, before);
    let cards: Vec<&ScoreCard> = body.cards.iter().map(Signed::payload).collect();
    let (base, count) = most_frequent(cards.iter().map(|card| card.base)).ok_or(Unfit::FewCards)?;
    if 2 * count <= cards.len() {
        return Err(Unfit::Diverged);
    }
    let aggregates: Vec<&[_]> = cards.iter().map(|card| card.aggregate.as_slice()).collect();
    let judged: Vec<f64> = median_pairs(&aggregates).iter().map(score).collect();
    let reverts = aggregate_to_judge(before).is_some() && gauntlet::harms(&judged, spec.batches.doubt.get());

    let mut accounts: BTreeMap<NodeId, Member> = before.members.iter().map(|m| (m.peer, m.clone())).collect();
    let outcomes = judge(spec, body, &peers, reverts, &mut accounts)?;
    let draw = next_draw(before, body);
    people::admit(spec, before, body, &outcomes, draw, &mut accounts);
    // Who holds a seat and delivers nothing does not use up a round.
    let trained = before.trained + u64::from(outcomes.iter().any(|outcome| outcome.score.is_some()));
    let ended = trained >= spec.rounds || round - trained >= MOST_IN_VAIN;
    let payouts = pay_out(spec, ended, &mut accounts)?;
    let (validators, candidates) = people::validators(spec, before, body, |card| strayed(card, &cards));
    let (assignment, ahead) = match &before.ahead {
        None => (draw, None),
        Some(ahead) => (ahead.assignment, Some(Ahead { peers: before.peers().collect(), assignment: draw })),
    };
    Ok(Record {
        run: before.run,
        round,
        view,
        at_ms,
        previous: before.id(),
        body: body.digest(),
        base,
        reverts,
        trained,
        ended,
        outcomes,
        payouts,
        members: accounts.into_values().collect(),
        validators,
        candidates,
        assignment,
        ahead,
    })
}

/// The draw that the cards of `body` make for the first round whose training has not begun by then: of the assignment, and of
/// who comes first among those that would join. Nobody knows it before the cards are opened.
pub(super) fn next_draw(before: &Record, body: &Body) -> Beacon {
    let nonces = body.cards.iter().filter_map(|card| Some((card.signer(), card.payload().opened.as_ref()?)));
    let round = before.round + 2 + u64::from(before.ahead.is_some());
    beacon(before.run, round, Purpose::Assignment, before.id(), nonces)
}

fn check_body(spec: &RunSpec, before: &Record, body: &Body) -> Result<(), Unfit> {
    let (run, round) = (before.run, before.round + 1);
    let unless = |holds: bool, unfit: Unfit| if holds { Ok(()) } else { Err(unfit) };
    unless(!before.ended, Unfit::Ended)?;
    unless(body.cards.len() >= spec.quorum as usize, Unfit::FewCards)?;
    for nonce in &body.nonces {
        unless(nonce_fits(before, nonce.signer(), nonce.payload()), Unfit::Nonce)?;
    }
    let has_nonce = |id: &NodeId| body.nonces.iter().any(|nonce| nonce.signer() == *id);
    for card in &body.cards {
        unless(card_fits(spec, before, card) && card.payload().drawn_with.iter().all(has_nonce), Unfit::Card)?;
    }
    let peers = peers_of_round(spec, before);
    for (place, commit) in body.commits.iter().enumerate() {
        let said = commit.payload();
        let third = place >= 2 && body.commits[place - 2].signer() == commit.signer();
        let fits = (said.run, said.round) == (run, round) && peers.binary_search(&commit.signer()).is_ok() && !third;
        unless(fits, Unfit::Commit)?;
    }
    for reveal in &body.reveals {
        let said = reveal.payload();
        let committed = commitment(run, round, reveal.signer(), said.update);
        let same = |c: &&Signed<_>| c.signer() == reveal.signer();
        let shown = body.commits.iter().filter(same).any(|commit| commit.payload().commitment == committed);
        let fits = (said.run, said.round) == (run, round) && shown && said.bytes <= spec.max_update_bytes;
        unless(fits, Unfit::Reveal)?;
    }
    unless(body.joins.iter().all(|join| bond::fits(spec, before, join)), Unfit::Join)?;
    let joins = body.joins.iter().map(|join| (join.signer(), join.payload().run, join.payload().round));
    let candidates = body.candidates.iter().map(|c| (c.signer(), c.payload().run, c.payload().round));
    for (who, of, said_in) in joins.chain(candidates) {
        unless(of == run && people::is_fresh(said_in, round) && before.validator(who).is_none(), Unfit::Join)?;
    }
    Ok(())
}

/// Whether an evaluation nonce is the one its validator locked for the round after `before`.
#[must_use]
pub(super) fn nonce_fits(
    before: &Record,
    validator: NodeId,
    said: &consortium_protocol::wire::train::EvalNonce,
) -> bool {
    let round = before.round + 1;
    let lock = nonce_lock(before.run, round, Purpose::Evaluation, validator, &said.nonce);
    let locked = before.validator(validator).and_then(|v| v.locks).map(|locks| locks.evaluation);
    (said.run, said.round) == (before.run, round) && locked == Some(lock)
}

/// Whether a [`Join`] may still change something for this account.
pub(super) fn join_counts(join: &Join, account: Option<&Member>) -> bool {
    account.is_none_or(|account| join.round > account.since && join.stays != account.active)
}

fn refusal_of(refusal: gauntlet::Refusal) -> Refusal {
    match refusal {
        gauntlet::Refusal::NoScore => Refusal::NoLoss,
        gauntlet::Refusal::Copy => Refusal::Copy,
        gauntlet::Refusal::OutOfSync => Refusal::OutOfSync,
        gauntlet::Refusal::Harm => Refusal::Harm,
        gauntlet::Refusal::BelowMargin => Refusal::BelowMargin,
    }
}

/// Judges all peers of the round, rates them, pays them.
fn judge(
    spec: &RunSpec,
    body: &Body,
    peers: &[NodeId],
    reverts: bool,
    accounts: &mut BTreeMap<NodeId, Member>,
) -> Result<Vec<Outcome>, Unfit> {
    let found: Vec<Result<Agreed, Refusal>> = peers.iter().map(|peer| agree(body, *peer)).collect();
    let mut standings: Vec<Standing> = peers.iter().map(|peer| standing(accounts.get(peer))).collect();
    let evidence: Vec<Option<Evidence>> = found.iter().map(|f| f.as_ref().ok().map(Agreed::evidence)).collect();
    let showings = gauntlet::showings(&evidence, &standings, spec.batches.doubt.get());
    // A round that is taken back says nothing about its peers: they trained from what harmed.
    let qualities = match reverts {
        true => vec![0.0; peers.len()],
        false => {
            take_round(&mut standings, &showings);
            standings.iter().zip(&showings).map(|(standing, showing)| standing.quality(showing.verdict)).collect()
        }
    };
    let shares = pay::shares(&spec.pay, &qualities);
    let mut outcomes = Vec::with_capacity(peers.len());
    for (place, peer) in peers.iter().enumerate() {
        let fate = fate(&found[place], showings[place].verdict, reverts);
        let fee = match fate {
            Fate::Refused(refusal) if refusal.costs_fee() => spec.pay.fee,
            _ => Msat::ZERO,
        };
        let account = accounts.entry(*peer).or_insert_with(|| people::newcomer(*peer, 0));
        settle(account, standings[place], shares[place], fee)?;
        let agreed = found[place].as_ref().ok();
        outcomes.push(Outcome {
            peer: *peer,
            fate,
            score: Finite::new(showings[place].score),
            assigned: agreed.map(|a| a.assigned.clone()).unwrap_or_default(),
            unassigned: agreed.map(|a| a.unassigned.clone()).unwrap_or_default(),
            held_out: agreed.map(|a| a.held_out.clone()).unwrap_or_default(),
            pay: shares[place],
            fee,
        });
    }
    Ok(outcomes)
}

fn fate(found: &Result<Agreed, Refusal>, verdict: Verdict, reverts: bool) -> Fate {
    match (found, verdict) {
        (Err(refusal), _) => Fate::Refused(*refusal),
        (Ok(_), _) if reverts => Fate::Refused(Refusal::Reverted),
        (Ok(agreed), Verdict::Accepted(_)) => {
            Fate::Accepted { update: agreed.update.update, bytes: agreed.update.bytes, norms: agreed.norms }
        }
        (Ok(_), Verdict::Refused(refusal)) => Fate::Refused(refusal_of(refusal)),
    }
}

fn standing(account: Option<&Member>) -> Standing {
    account.map_or_else(Standing::default, |account| Standing {
        rating: Rating { mu: account.mu.get(), sigma: account.sigma.get() },
        reliability: account.reliability.get(),
        merit: Merit { sum: account.merit.get(), variance: account.merit_variance.get() },
    })
}

fn settle(account: &mut Member, standing: Standing, pay: Msat, fee: Msat) -> Result<(), Unfit> {
    let finite = |number: f64| Finite::new(number).ok_or(Unfit::Sum);
    account.mu = finite(standing.rating.mu)?;
    account.sigma = finite(standing.rating.sigma)?;
    account.reliability = finite(standing.reliability)?;
    account.merit = finite(standing.merit.sum)?;
    account.merit_variance = finite(standing.merit.variance)?;
    account.earned = account.earned.checked_add(pay).ok_or(Unfit::Sum)?;
    account.fees = account.fees.checked_add(fee).ok_or(Unfit::Sum)?;
    Ok(())
}

/// Pays out what has come together: enough units from who goes on, every whole unit to who does not.
fn pay_out(spec: &RunSpec, ended: bool, accounts: &mut BTreeMap<NodeId, Member>) -> Result<Vec<(NodeId, u32)>, Unfit> {
    let mut payouts = Vec::new();
    for account in accounts.values_mut() {
        let units = (account.due().0 / spec.pay.unit.0).min(4095);
        let least = if account.active && !ended { u64::from(spec.pay.least_units) } else { 1 };
        if units >= least {
            let amount = spec.pay.unit.checked_mul(units).ok_or(Unfit::Sum)?;
            account.paid = account.paid.checked_add(amount).ok_or(Unfit::Sum)?;
            payouts.push((account.peer, u32::try_from(units).map_err(|_| Unfit::Sum)?));
        }
    }
    Ok(payouts)
}
