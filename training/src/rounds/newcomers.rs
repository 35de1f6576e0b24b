//! Who said that it comes or goes.
//!
//! Names cost nothing, so that whoever makes many of them must not come before others: not by being first, nor by what the
//! names are. When there are too many to remember, a draw that nobody else knows says which are forgotten; which of the
//! others come first is drawn by the validators' nonces, for those alone that were heard of before these were opened.

use std::collections::BTreeMap;

use consortium_protocol::wire::train::{Beacon, Join, MAX_ACCOUNTS, MAX_PEERS, Record};
use consortium_protocol::{NodeId, Signed};

use super::outcome::join_counts;
use super::people::{is_fresh, place};

/// What was said by nodes that come or go.
pub(super) struct Newcomers {
    secret: [u8; 32],
    heard: BTreeMap<NodeId, Heard>,
}

struct Heard {
    join: Signed<Join>,
    /// The first round in whose record it may be.
    since: u64,
}

/// Whether it is to be in the record after `last`, as far as that follows from the record.
fn counts(join: &Signed<Join>, last: &Record) -> bool {
    let (said, account) = (join.payload(), last.member(join.signer()));
    let goes = !said.stays && account.is_some_and(|account| account.active && said.round >= account.since);
    is_fresh(said.round, last.round + 1)
        && last.validator(join.signer()).is_none()
        && (goes || said.stays && join_counts(said, account))
}

impl Newcomers {
    /// None yet; `secret` draws whom to forget.
    pub(super) fn new(secret: [u8; 32]) -> Self {
        Self { secret, heard: BTreeMap::new() }
    }

    /// Takes note of what a node says in the round after `last`; `opened` tells whether the draw of that round may be known.
    pub(super) fn hear(&mut self, join: Signed<Join>, last: &Record, opened: bool) {
        let (node, round) = (join.signer(), last.round + 1);
        let said = join.payload();
        let known = self.heard.get(&node);
        // Who is a round ahead of this node has no news for it yet, but will have.
        if said.round > round + 1 || known.is_some_and(|known| known.join.payload().round >= said.round) {
            return;
        }
        let stays_known = known.filter(|known| known.join.payload().stays).map(|known| known.since);
        let now = if opened && said.stays { round + 1 } else { round };
        let since = stays_known.map_or(now, |since| since.min(now));
        self.heard.insert(node, Heard { join, since });
        if self.heard.len() > MAX_ACCOUNTS {
            let last_of_all = self.heard.keys().max_by_key(|node| self.rank(last, **node)).copied();
            last_of_all.and_then(|node| self.heard.remove(&node));
        }
    }

    /// Peers that have an account are remembered first; of the others whoever is drawn.
    fn rank(&self, last: &Record, node: NodeId) -> (bool, [u8; 32]) {
        let drawn = blake3::keyed_hash(&self.secret, &[&last.round.to_be_bytes(), node.as_bytes().as_slice()].concat());
        (last.member(node).is_none(), *drawn.as_bytes())
    }

    /// Forgets what does not hold any more in `round`.
    pub(super) fn go_on(&mut self, round: u64) {
        let holds = |said_in: u64| is_fresh(said_in, round) || said_in > round;
        self.heard.retain(|_, heard| holds(heard.join.payload().round));
    }

    /// What the record after `last` is to heed of what `fits`, in ascending order of the nodes: of those that come, the first by
    /// `draw`.
    pub(super) fn joins(&self, last: &Record, draw: Beacon, fits: impl Fn(&Signed<Join>) -> bool) -> Vec<Signed<Join>> {
        let timely = self
            .heard
            .values()
            .filter(|heard| heard.since <= last.round + 1 && counts(&heard.join, last) && fits(&heard.join));
        let mut joins: Vec<&Signed<Join>> = timely.map(|heard| &heard.join).collect();
        joins.sort_by_cached_key(|join| (join.payload().stays, place(draw, join.signer())));
        joins.truncate(MAX_PEERS);
        joins.sort_by_key(|join| join.signer());
        joins.into_iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use consortium_protocol::wire::train::{Member, RunId};
    use consortium_protocol::{Hash, RootKey};

    use super::*;
    use crate::rounds::people::newcomer;

    const ROUND: u64 = 5;

    fn key(n: u64) -> RootKey {
        let mut seed = [3; 32];
        seed[..8].copy_from_slice(&n.to_le_bytes());
        RootKey::from_seed(seed)
    }

    fn join(n: u64, round: u64, stays: bool) -> Signed<Join> {
        Signed::sign(&key(n), Join { run: RunId(Hash::of(b"run")), round, stays, bond: None })
    }

    fn last(members: Vec<Member>) -> Record {
        let (run, hash) = (RunId(Hash::of(b"run")), Hash::of(b"something"));
        Record {
            run,
            round: ROUND - 1,
            view: 0,
            at_ms: 0,
            previous: hash,
            body: hash,
            base: hash,
            reverts: false,
            trained: 0,
            ended: false,
            outcomes: Vec::new(),
            payouts: Vec::new(),
            members,
            validators: Vec::new(),
            candidates: Vec::new(),
            assignment: Beacon(hash),
            ahead: None,
        }
    }

    fn named(joins: &[Signed<Join>]) -> Vec<NodeId> {
        joins.iter().map(Signed::signer).collect()
    }

    #[test]
    fn of_too_many_the_first_are_no_better_off_and_members_are_heard() {
        let member = newcomer(key(9000).node_id(), 1);
        let (last, mut newcomers) = (last(vec![member]), Newcomers::new([7; 32]));
        newcomers.hear(join(9000, ROUND, false), &last, false);
        for n in 0..4 * MAX_ACCOUNTS as u64 {
            newcomers.hear(join(n, ROUND, true), &last, false);
        }
        assert_eq!(newcomers.heard.len(), MAX_ACCOUNTS);
        let early = (0..MAX_ACCOUNTS as u64).filter(|n| newcomers.heard.contains_key(&key(*n).node_id())).count();
        assert!((5..80).contains(&early), "a quarter of those remembered, or so: {early}");
        let joins = newcomers.joins(&last, Beacon(Hash::of(b"a draw")), |_| true);
        assert_eq!(joins.len(), MAX_PEERS);
        assert!(named(&joins).contains(&key(9000).node_id()), "who goes makes room");
        let lowest: Vec<NodeId> = newcomers.heard.keys().take(MAX_PEERS).copied().collect();
        assert_ne!(named(&joins), lowest);
        assert_ne!(joins, newcomers.joins(&last, Beacon(Hash::of(b"another")), |_| true));
        assert!(named(&joins).is_sorted());
    }

    #[test]
    fn who_says_so_when_the_draw_may_be_known_comes_a_round_later() {
        let (last, mut newcomers) = (last(Vec::new()), Newcomers::new([7; 32]));
        let draw = Beacon(Hash::of(b"a draw"));
        newcomers.hear(join(1, ROUND - 1, true), &last, false);
        // It was heard in time, and says it again.
        newcomers.hear(join(1, ROUND, true), &last, true);
        newcomers.hear(join(2, ROUND, true), &last, true);
        newcomers.hear(join(3, ROUND + 2, true), &last, false);
        assert_eq!(named(&newcomers.joins(&last, draw, |_| true)), [key(1).node_id()]);
        newcomers.go_on(ROUND + 1);
        let next = Record { round: ROUND, ..last };
        assert_eq!(newcomers.joins(&next, draw, |_| true).len(), 2);
        newcomers.go_on(ROUND + 3);
        assert!(newcomers.heard.is_empty());
    }

    #[test]
    fn who_did_not_deliver_and_strangers_that_leave_are_not_heeded() {
        let out = Member { active: false, since: ROUND, ..newcomer(key(1).node_id(), 1) };
        let (last, mut newcomers) = (last(vec![out]), Newcomers::new([7; 32]));
        newcomers.hear(join(1, ROUND, true), &last, false);
        newcomers.hear(join(2, ROUND, false), &last, false);
        assert!(newcomers.joins(&last, Beacon(Hash::of(b"a draw")), |_| true).is_empty());
    }
}
