//! Bonds of a run's peers: who may come, what forfeits a bond, and which one stands for whom.
//!
//! Where the specification wants one, a peer pledges a bond to one of the validators, which signs that it holds it
//! ([`Pledged`]), and a join counts only with that word. So each node decides alike, and the log says by whose word a peer
//! came, and which escrow stands for it: [`Pledges`] reads it from there.
//!
//! # Forfeit
//! A bond is forfeited to the validator that holds it, by what a certain entry proves against its peer ([`abuse`]), and by
//! nothing else: scores, harm, lateness and silence never cost it. Who forfeited a bond is out, and comes back by another.
//!
//! # What a liar can do
//! *A validator* can say that it holds a bond that it does not. That lets in a peer that has nothing to lose, whose updates
//! are examined like any; its word stays in the log. It can take the bond of an honest peer, once: what it must sign for
//! that is refuted by the log. It can withhold a bond until its time is over, when Lightning gives it back; if it is gone
//! for good, so are the bonds that it holds as a threat, until then. *A peer* can use each word for the three rounds after
//! it was given, and not again once it has taken part and left: in that time its bond does not go back.

use std::collections::BTreeMap;

use consortium_protocol::wire::train::{Body, Entry, Finding, Join, Pledged, Record, Refusal, RunSpec};
use consortium_protocol::{NodeId, Signed};

use super::people::is_fresh;

/// What a peer did that an entry proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Abuse {
    /// It signed two commitments in one round.
    Equivocated,
    /// It signed the hash of a file that is no update of the model, as more than half of all cards say; whoever has the
    /// file can see it.
    Malformed,
}

/// What the statements of a round prove against a peer.
#[must_use]
pub fn abuse(body: &Body, peer: NodeId) -> Option<Abuse> {
    if body.commits.iter().filter(|commit| commit.signer() == peer).count() > 1 {
        return Some(Abuse::Equivocated);
    }
    let is_malformed = |finding| finding == Some(&Finding::Refused(Refusal::Malformed));
    let malformed = body.cards.iter().filter(|card| is_malformed(card.payload().finding(peer))).count();
    let shown = body.reveals.iter().any(|reveal| reveal.signer() == peer);
    (shown && 2 * malformed > body.cards.len()).then_some(Abuse::Malformed)
}

/// Whether a word that was given in one round may still be used in another.
#[must_use]
pub fn is_usable(given_in: u64, round: u64) -> bool {
    is_fresh(given_in, round)
}

/// Whether a join comes with the bond that the run wants, whatever the round: that is, with the word of a validator of the
/// round after `before`; or without, where none is wanted.
pub(super) fn is_backed(spec: &RunSpec, before: &Record, join: &Signed<Join>) -> bool {
    let said = join.payload();
    match &said.bond {
        Some(bond) if said.stays && spec.has_bond() => {
            let word = bond.payload();
            (word.run, word.peer) == (before.run, join.signer()) && before.validator(bond.signer()).is_some()
        }
        Some(_) => false,
        None => !said.stays || !spec.has_bond(),
    }
}

/// Whether it does, and the word is not too old for the round after `before`: nor of before the peer was here last, for its
/// bond may have gone back since.
pub(super) fn fits(spec: &RunSpec, before: &Record, join: &Signed<Join>) -> bool {
    let since = before.member(join.signer()).map(|member| member.since);
    let holds =
        |word: &Pledged| is_usable(word.round, before.round + 1) && since.is_none_or(|since| word.round > since);
    is_backed(spec, before, join) && join.payload().bond.as_ref().is_none_or(|bond| holds(bond.payload()))
}

/// A bond that an entry forfeits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forfeit {
    /// The word of the validator that holds it: whose it is, and in which escrow.
    pub bond: Signed<Pledged>,
    /// For what.
    pub abuse: Abuse,
}

/// The bonds that stand for the peers of a run, by its log.
#[derive(Clone, Debug, Default)]
pub struct Pledges(BTreeMap<NodeId, Signed<Pledged>>);

impl Pledges {
    /// Goes on by a certain entry; gives the bonds that it forfeits.
    pub fn add(&mut self, entry: &Entry) -> Vec<Forfeit> {
        let (record, body) = (&entry.record, &entry.body);
        let peers = record.outcomes.iter().map(|outcome| outcome.peer);
        let forfeited = peers.filter_map(|peer| {
            let abuse = abuse(body, peer)?;
            Some(Forfeit { bond: self.0.remove(&peer)?, abuse })
        });
        let forfeited = forfeited.collect();
        let active = |peer: &NodeId| record.member(*peer).is_some_and(|member| member.active);
        let ahead = |peer: &NodeId| record.ahead.iter().any(|ahead| ahead.peers.binary_search(peer).is_ok());
        self.0.retain(|peer, _| active(peer) || ahead(peer));
        // Who was active before goes on with the bond that it came with.
        for join in body.joins.iter().filter(|join| active(&join.signer())) {
            if let Some(bond) = &join.payload().bond {
                self.0.entry(join.signer()).or_insert_with(|| bond.clone());
            }
        }
        forfeited
    }

    /// The bond that stands for a peer, while it takes part, or trains for one more round.
    #[must_use]
    pub fn of(&self, peer: NodeId) -> Option<&Signed<Pledged>> {
        self.0.get(&peer)
    }
}
