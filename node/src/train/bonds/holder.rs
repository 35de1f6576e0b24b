//! What a validator does about a bond that it holds: a pure function of the log of the run and of who asks.

use std::collections::BTreeMap;

use consortium_ledger::escrow::machine::JUDGE_GUARD;
use consortium_ledger::escrow::{Escrow, State};
use consortium_protocol::wire::escrow::EscrowId;
use consortium_protocol::wire::train::{Entry, Record, RunSpec};
use consortium_protocol::{Hash, NodeId};
use consortium_training::rounds::bond::{Pledges, is_usable};

/// What the log of a run says so far.
pub(super) struct Known {
    /// The last record.
    pub(super) last: Record,
    /// Which bonds stand for whom.
    pub(super) pledges: Pledges,
    /// Bonds that this node is to take, each by a record.
    pub(super) forfeited: BTreeMap<EscrowId, Hash>,
}

impl Known {
    /// Goes on by a certain entry, as `me`.
    pub(super) fn add(&mut self, me: NodeId, entry: &Entry) {
        for forfeit in self.pledges.add(entry) {
            if forfeit.bond.signer() == me {
                self.forfeited.insert(forfeit.bond.payload().escrow, entry.record.id());
            }
        }
        self.last = entry.record.clone();
    }

    /// The round that goes on.
    pub(super) fn round(&self) -> u64 {
        self.last.round + 1
    }
}

/// A bond that this node holds, or has offered to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bond {
    pub(super) id: EscrowId,
    pub(super) peer: NodeId,
    /// The height at which it goes back; none while nothing is locked.
    deadline: Option<u32>,
    /// Whether this node has decided on it.
    judged: bool,
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Wait,
    /// To say that it is held.
    Say,
    GiveBack,
    /// To keep it, by this record.
    Take(Hash),
}

impl Bond {
    pub(super) fn of(escrow: &Escrow) -> Self {
        let terms = escrow.terms().payload();
        let deadline = escrow.tranches().iter().find_map(|tranche| match tranche.state {
            State::Held { deadline } => Some(deadline),
            _ => None,
        });
        Self { id: terms.id, peer: terms.payer, deadline, judged: escrow.verdict().is_some() }
    }

    /// Whether it stands for its peer, which takes part.
    pub(super) fn stands(&self, known: &Known) -> bool {
        known.pledges.of(self.peer).is_some_and(|word| word.payload().escrow == self.id)
    }

    pub(super) fn is_locked(&self) -> bool {
        self.deadline.is_some()
    }

    /// What `me` is to do now.
    pub(super) fn step(self, known: &Known, spec: &RunSpec, me: NodeId, now: Now) -> Step {
        let Some(deadline) = self.deadline.filter(|_| !self.judged) else { return Step::Wait };
        if let Some(record) = known.forfeited.get(&self.id) {
            return Step::Take(*record);
        }
        if known.last.ended || !now.here {
            return Step::GiveBack;
        }
        let left = spec.bond_blocks(spec.rounds.saturating_sub(known.last.trained));
        let lasts = u64::from(now.height) + u64::from(JUDGE_GUARD) + left <= u64::from(deadline);
        match (self.stands(known), now.asks && lasts && known.last.validator(me).is_some()) {
            (true, _) => Step::Wait,
            (false, true) => Step::Say,
            // Its peer may still join with what was said, or is about to: rounds can be shorter than a message takes.
            (false, false) if is_usable(now.said_in, known.round()) || (now.lately && lasts) => Step::Wait,
            _ => Step::GiveBack,
        }
    }
}

/// What else matters for a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Now {
    /// The height of the chain.
    pub(super) height: u32,
    /// Whether the peer asks.
    pub(super) asks: bool,
    /// Whether it asked, locked the bond, or took part a short time ago.
    pub(super) lately: bool,
    /// The round of this node's last word on the bond, or in which it was first seen here.
    pub(super) said_in: u64,
    /// Whether this node takes part in the run.
    pub(super) here: bool,
}

/// Whether this node would offer a peer to hold its bond.
pub(super) fn would_hold(known: &Known, spec: &RunSpec, me: NodeId, peer: NodeId) -> bool {
    let last = &known.last;
    let (peers, seats) = (last.peers().count(), spec.most_peers as usize);
    let judges = |node| last.validator(node).is_some();
    !last.ended && judges(me) && !judges(peer) && known.pledges.of(peer).is_none() && peers < seats
}

#[cfg(test)]
mod tests {
    use consortium_protocol::wire::train::{
        Body, Certified, Commit, Fate, Finite, Join, Member, Outcome, Pledged, Refusal,
    };
    use consortium_protocol::{Msat, RootKey, Signed};
    use consortium_training::rounds::genesis;
    use consortium_training::run::{ModelSize, PayPlan, RunPlan};

    use super::*;

    fn key(n: u8) -> RootKey {
        RootKey::from_seed([n; 32])
    }

    fn id(n: u8) -> NodeId {
        key(n).node_id()
    }

    /// A run of ten rounds, judged by keys 0 to 2, as it stands before the first; with bonds.
    fn run() -> (Known, RunSpec) {
        let plan = RunPlan::new(ModelSize::Nano, [0, 1, 2].map(id).to_vec());
        let pay = PayPlan { escrow: true, bond_sat: 5000, ..PayPlan::default() };
        let made = RunPlan { tokens_per_second: Some(10_000.0), pay, ..plan }.prepare(1).unwrap();
        let last = genesis(&Signed::sign(&key(4), made.spec.clone()));
        (Known { last, pledges: Pledges::default(), forfeited: BTreeMap::new() }, made.spec)
    }

    const HELD: EscrowId = EscrowId([1; 16]);

    fn held() -> Bond {
        Bond { id: HELD, peer: id(9), deadline: Some(1105), judged: false }
    }

    fn now() -> Now {
        Now { height: 1000, asks: false, lately: false, said_in: 1, here: true }
    }

    /// Adds a round after which key 9 is active, or not; it joined with an escrow, or committed so often.
    fn add(known: &mut Known, active: bool, joined: Option<(u8, EscrowId)>, commits: u8) {
        let run = known.last.run;
        let mut record = known.last.clone();
        record.round += 1;
        record.members = vec![Member { active, since: record.round, ..member() }];
        record.outcomes = (commits > 0).then(outcome).into_iter().collect();
        let mut body = Body::default();
        if let Some((by, escrow)) = joined {
            let word = Pledged { run, round: record.round, peer: id(9), escrow };
            let bond = Some(Signed::sign(&key(by), word));
            body.joins.push(Signed::sign(&key(9), Join { run, round: record.round, stays: true, bond }));
        }
        for n in 0..commits {
            let (commitment, base) = (Hash::of(&[n]), record.base);
            let commit = Commit { run, round: record.round, commitment, base };
            body.commits.push(Signed::sign(&key(9), commit));
        }
        let seals = Certified { run, round: record.round, view: 0, record: record.id(), seals: Vec::new() };
        known.add(id(0), &Entry { record, body, seals });
    }

    fn member() -> Member {
        let zero = Finite::default();
        Member {
            peer: id(9),
            active: true,
            since: 0,
            mu: zero,
            sigma: zero,
            reliability: zero,
            merit: zero,
            merit_variance: zero,
            earned: Msat::ZERO,
            fees: Msat::ZERO,
            paid: Msat::ZERO,
        }
    }

    fn outcome() -> Outcome {
        Outcome {
            peer: id(9),
            fate: Fate::Refused(Refusal::Equivocated),
            score: None,
            assigned: Vec::new(),
            unassigned: Vec::new(),
            held_out: Vec::new(),
            pay: Msat::ZERO,
            fee: Msat::ZERO,
        }
    }

    #[test]
    fn its_word_is_given_to_who_asks_and_the_bond_goes_back_once_no_word_can_be_used() {
        let (mut known, spec) = run();
        let step = |known: &Known, now| held().step(known, &spec, id(0), now);
        assert_eq!(step(&known, Now { asks: true, ..now() }), Step::Say);
        assert_eq!(held().step(&known, &spec, id(5), Now { asks: true, ..now() }), Step::Wait, "no validator");
        let unlocked = Bond { deadline: None, ..held() };
        assert_eq!(unlocked.step(&known, &spec, id(0), Now { asks: true, ..now() }), Step::Wait);
        assert_eq!(step(&known, Now { here: false, ..now() }), Step::GiveBack, "it has left the run");
        // Said in round 1, it can be used in rounds 1, 2 and 3.
        for expected in [Step::Wait, Step::Wait, Step::Wait, Step::GiveBack] {
            assert_eq!(step(&known, now()), expected, "round {}", known.round());
            add(&mut known, false, None, 0);
        }
        assert_eq!(step(&known, Now { asks: true, ..now() }), Step::Say);
        assert_eq!(step(&known, Now { lately: true, ..now() }), Step::Wait, "rounds pass before it can ask again");
        // A block more, and the run may outlast it: what was said before can still be used, and nothing is said any more.
        let last = 1105 - JUDGE_GUARD - u32::try_from(spec.bond_blocks(10)).unwrap();
        assert_eq!(step(&known, Now { asks: true, height: last, ..now() }), Step::Say);
        let late = Now { asks: true, lately: true, height: last + 1, ..now() };
        assert_eq!(
            [step(&known, late), step(&known, Now { said_in: known.round(), ..late })],
            [Step::GiveBack, Step::Wait]
        );
    }

    #[test]
    fn it_stands_while_its_peer_takes_part_and_goes_back_at_the_end() {
        let (mut known, spec) = run();
        add(&mut known, true, Some((0, HELD)), 0);
        for _ in 0..6 {
            assert_eq!(held().step(&known, &spec, id(0), now()), Step::Wait);
            add(&mut known, true, None, 1);
        }
        let other = Bond { id: EscrowId([2; 16]), ..held() };
        assert_eq!(other.step(&known, &spec, id(0), now()), Step::GiveBack, "another one stands");
        assert!(!would_hold(&known, &spec, id(0), id(9)) && would_hold(&known, &spec, id(0), id(8)));
        assert!(!would_hold(&known, &spec, id(0), id(1)), "it judges");
        assert!(!would_hold(&known, &spec, id(5), id(8)));
        known.last.ended = true;
        assert_eq!(held().step(&known, &spec, id(0), now()), Step::GiveBack);
        assert_eq!(Bond { judged: true, ..held() }.step(&known, &spec, id(0), now()), Step::Wait);
        assert!(!would_hold(&known, &spec, id(0), id(8)));
    }

    #[test]
    fn who_commits_to_two_things_forfeits_the_bond_that_stands_and_no_other() {
        let (mut known, spec) = run();
        add(&mut known, true, Some((0, HELD)), 0);
        add(&mut known, false, None, 2);
        let record = known.last.id();
        // Even if the run ends with that, or this node has left it.
        known.last.ended = true;
        assert_eq!(held().step(&known, &spec, id(0), Now { here: false, ..now() }), Step::Take(record));
        let other = Bond { id: EscrowId([2; 16]), ..held() };
        assert_eq!(other.step(&known, &spec, id(0), now()), Step::GiveBack);
        // That of another validator is for that to take.
        let (mut known, _) = run();
        add(&mut known, true, Some((1, HELD)), 0);
        add(&mut known, false, None, 2);
        assert!(known.forfeited.is_empty());
        // What was proved before it came by this bond does not count.
        add(&mut known, true, Some((0, EscrowId([3; 16]))), 0);
        assert!(known.forfeited.is_empty() && known.pledges.of(id(9)).is_some());
    }
}
