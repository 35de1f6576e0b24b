//! Who takes part: peers that come and go, validators that are replaced.

use std::collections::BTreeMap;

use consortium_protocol::wire::train::{
    Beacon, Body, Candidacy, Fate, Finite, MAX_ACCOUNTS, MAX_CANDIDATES, Member, Outcome, Record, Refusal, RunSpec,
    ScoreCard, Validator,
};
use consortium_protocol::{Hash, Msat, NodeId, Signed};

use super::bond;
use super::outcome::join_counts;
use crate::gauntlet::Standing;

/// For how many rounds it holds that someone would join, or be a validator.
const FRESH: u64 = 3;
/// Rounds that who did not deliver sits out before it may say again that it joins.
const BACK_OFF: u64 = 2;

/// Whether what was said in one round still holds in another.
pub(super) fn is_fresh(said_in: u64, round: u64) -> bool {
    said_in <= round && round - said_in < FRESH
}

/// The account of a peer that was never heard of.
pub(super) fn newcomer(peer: NodeId, since: u64) -> Member {
    let new = Standing::default();
    let number = |value| Finite::new(value).unwrap_or_default();
    Member {
        peer,
        active: true,
        since,
        mu: number(new.rating.mu),
        sigma: number(new.rating.sigma),
        reliability: number(new.reliability),
        merit: number(new.merit.sum),
        merit_variance: number(new.merit.variance),
        earned: Msat::ZERO,
        fees: Msat::ZERO,
        paid: Msat::ZERO,
    }
}

/// A node's place among those that would join, the lowest first: drawn when nobody can choose a name for it any more.
pub(super) fn place(draw: Beacon, node: NodeId) -> Hash {
    Hash::of(&[b"consortium/train/place\0".as_slice(), draw.0.as_bytes(), node.as_bytes()].concat())
}

/// Lets go of peers that left, did not deliver, or forfeited their bond, and lets in those that would join while there are
/// seats, in the order of `draw`.
pub(super) fn admit(
    spec: &RunSpec,
    before: &Record,
    body: &Body,
    outcomes: &[Outcome],
    draw: Beacon,
    accounts: &mut BTreeMap<NodeId, Member>,
) {
    let round = before.round + 1;
    // Who trains for the next round already is one of its peers, whatever becomes of it here.
    let ahead: Vec<NodeId> = if before.ahead.is_some() { before.peers().collect() } else { Vec::new() };
    for outcome in outcomes {
        let silent = matches!(outcome.fate, Fate::Refused(Refusal::Missing | Refusal::Late | Refusal::Withheld));
        let lost = silent || (spec.has_bond() && bond::abuse(body, outcome.peer).is_some());
        if let Some(account) = accounts.get_mut(&outcome.peer) {
            // Who left while it trained ahead stays away.
            account.active = account.active && !lost;
            account.since = if lost { round.saturating_add(BACK_OFF) } else { round };
        }
    }
    for join in body.joins.iter().filter(|join| !join.payload().stays) {
        // Whoever leaves says so in the round it took part in: only what is older than that round is void.
        if let Some(account) = accounts.get_mut(&join.signer()).filter(|a| join.payload().round >= a.since) {
            account.active = false;
            account.since = round;
        }
    }
    let mut coming: Vec<_> = body.joins.iter().filter(|join| join.payload().stays).collect();
    coming.sort_by_key(|join| place(draw, join.signer()));
    for join in coming {
        let seats = accounts.values().filter(|account| account.active).count() < spec.most_peers as usize;
        let counts = join_counts(join.payload(), accounts.get(&join.signer()));
        if seats && counts && (accounts.contains_key(&join.signer()) || make_room(spec.pay.unit, &ahead, accounts)) {
            let account = accounts.entry(join.signer()).or_insert_with(|| newcomer(join.signer(), round));
            account.active = true;
            account.since = round;
        }
    }
}

/// Makes room for one more account by dropping that of the peer that left longest ago, of those that are not owed a unit and
/// have nothing ahead of them; tells whether there is room. `ahead` is in ascending order.
fn make_room(unit: Msat, ahead: &[NodeId], accounts: &mut BTreeMap<NodeId, Member>) -> bool {
    if accounts.len() < MAX_ACCOUNTS {
        return true;
    }
    let empty = accounts
        .values()
        .filter(|account| !account.active && account.due() < unit && ahead.binary_search(&account.peer).is_err());
    let gone = empty.min_by_key(|account| (account.since, account.peer)).map(|account| account.peer);
    gone.is_some_and(|peer| accounts.remove(&peer).is_some())
}

/// The validators and candidates after a round.
pub(super) fn validators(
    spec: &RunSpec,
    before: &Record,
    body: &Body,
    strayed: impl Fn(&ScoreCard) -> u32,
) -> (Vec<Validator>, Vec<Candidacy>) {
    let round = before.round + 1;
    let mut stay: BTreeMap<NodeId, Validator> = BTreeMap::new();
    for validator in &before.validators {
        let card = body.cards.iter().find(|card| card.signer() == validator.id).map(Signed::payload);
        let silent = match (card, validator.locks) {
            (Some(_), Some(_)) if is_drawn_with(body, validator.id) => 0,
            // It had nothing to open, and so nothing to hold back: that makes up for nothing.
            (Some(_), None) => validator.silent,
            _ => validator.silent.saturating_add(1),
        };
        let (strayed, locks) = (card.map_or(0, &strayed), card.map(|card| card.locks));
        stay.insert(validator.id, Validator { id: validator.id, silent, strayed, locks });
    }
    let mut waiting = ranked(spec, before);
    let mut gone: Vec<(u32, NodeId)> =
        stay.values().filter(|v| v.silent >= spec.replace_after).map(|v| (v.silent, v.id)).collect();
    gone.sort_by(|a, b| b.cmp(a));
    for (_, id) in gone {
        if waiting.is_empty() {
            break;
        }
        stay.remove(&id);
        let next = waiting.remove(0).id;
        stay.insert(next, Validator { id: next, silent: 0, strayed: 0, locks: None });
    }
    let candidates = candidates(spec, before, body, round, &stay);
    (stay.into_values().collect(), candidates)
}

/// Whether most cards were drawn with a validator's nonce: one that it opened too late is as good as held back.
fn is_drawn_with(body: &Body, validator: NodeId) -> bool {
    let with = body.cards.iter().filter(|card| card.payload().drawn_with.binary_search(&validator).is_ok()).count();
    2 * with > body.cards.len()
}

/// Candidates that were listed before, the first to be taken first: by their place among the run's reserves, then by how
/// long they have waited.
fn ranked(spec: &RunSpec, before: &Record) -> Vec<Candidacy> {
    let mut ranked: Vec<Candidacy> = before.candidates.clone();
    ranked.sort_by_key(|candidacy| rank(spec, candidacy));
    ranked
}

fn rank(spec: &RunSpec, candidacy: &Candidacy) -> (usize, u64, NodeId) {
    let place = spec.reserves.iter().position(|id| *id == candidacy.id).unwrap_or(usize::MAX);
    (place, candidacy.since, candidacy.id)
}

fn candidates(
    spec: &RunSpec,
    before: &Record,
    body: &Body,
    round: u64,
    validators: &BTreeMap<NodeId, Validator>,
) -> Vec<Candidacy> {
    let mut all: BTreeMap<NodeId, Candidacy> = before.candidates.iter().map(|c| (c.id, *c)).collect();
    for candidate in &body.candidates {
        let (id, heard) = (candidate.signer(), candidate.payload().round);
        let candidacy = all.entry(id).or_insert(Candidacy { id, since: round, heard });
        candidacy.heard = candidacy.heard.max(heard);
    }
    all.retain(|id, candidacy| is_fresh(candidacy.heard, round) && !validators.contains_key(id));
    let mut kept: Vec<Candidacy> = all.into_values().collect();
    kept.sort_by_key(|candidacy| rank(spec, candidacy));
    kept.truncate(MAX_CANDIDATES);
    kept.sort_by_key(|candidacy| candidacy.id);
    kept
}
