//! The election machine, one node at a time; whole clusters are played in simnet's world.

#![allow(clippy::unwrap_used, clippy::panic)]

mod samples;

use std::collections::BTreeMap;
use std::sync::Arc;

use consortium_protocol::election::{
    CEILING_MS, Candidacy, Certificate, Election, ElectionConfig, ElectionMessage, Input, Output, Persisted, Refused,
    RefusedReason, Standing, VoteRequest,
};
use consortium_protocol::{ClusterId, Hash, Millis, NodeId, Signed};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use samples::{cluster, key};

const WALL_MS: u64 = 1_800_000_000_000;

struct Node {
    election: Election,
    rng: ChaCha8Rng,
    now: u64,
}

fn id(who: u8) -> NodeId {
    key(who).node_id()
}

fn standing(term: u64, master: Option<u8>) -> Standing {
    let master = master.map(id);
    Standing { alive: true, willing: true, reputation: 1, uptime_s: 100, capacity: 1, term, master, wall_ms: WALL_MS }
}

/// A certificate by `voters`, for the first of them.
fn certificate(voters: &[u8], term: u64) -> Certificate {
    Certificate::assemble(id(voters[0]), &samples::ballots(voters, term)).unwrap()
}

fn request(who: u8, term: u64, round: u64, basis: Option<Certificate>) -> ElectionMessage {
    let request = VoteRequest { cluster: cluster(), term, round };
    ElectionMessage::Request(Candidacy { request: Signed::sign(&key(who), request), basis })
}

impl Node {
    fn new(who: u8, persisted: Persisted) -> Self {
        let config = ElectionConfig::default();
        Self {
            election: Election::new(Arc::new(key(who)), cluster(), persisted, config, Millis(0)),
            rng: ChaCha8Rng::seed_from_u64(u64::from(who)),
            now: 0,
        }
    }

    fn obeying(who: u8, certificate: Certificate) -> Self {
        Self::new(who, Persisted { obeyed: Some(certificate), ..Persisted::default() })
    }

    fn take(&mut self, input: Input) -> Vec<Output> {
        self.election.handle(input, Millis(self.now), &mut self.rng)
    }

    fn hear(&mut self, from: u8, message: ElectionMessage) -> Vec<Output> {
        self.take(Input::Message { from: id(from), message })
    }

    fn see(&mut self, members: &[(u8, Standing)]) -> Vec<Output> {
        self.take(Input::View(members.iter().map(|(who, standing)| (id(*who), *standing)).collect()))
    }

    /// Ticks every 100 ms for `time`.
    fn wait(&mut self, time: u64) -> Vec<Output> {
        let end = self.now + time;
        let mut out = Vec::new();
        while self.now < end {
            self.now += 100;
            out.extend(self.take(Input::Tick));
        }
        out
    }
}

fn votes(outputs: &[Output]) -> Vec<(NodeId, u64, u64)> {
    let vote = |output: &Output| match output {
        Output::Send { message: ElectionMessage::Vote(ballot), .. } => {
            let vote = ballot.vote.payload();
            Some((vote.candidate, vote.term, vote.round))
        }
        _ => None,
    };
    outputs.iter().filter_map(vote).collect()
}

fn refusals(outputs: &[Output]) -> Vec<RefusedReason> {
    let refusal = |output: &Output| match output {
        Output::Send { message: ElectionMessage::Refused(refused), .. } => Some(refused.reason),
        _ => None,
    };
    outputs.iter().filter_map(refusal).collect()
}

#[test]
fn a_node_alone_listens_first_and_then_elects_itself() {
    let mut node = Node::new(1, Persisted::default());
    node.see(&[(1, standing(0, None))]);
    assert_eq!(node.wait(1400), []);
    let out = node.wait(500);
    let [Output::Persist(vote), Output::Persist(won), Output::Broadcast(told), Output::Master(master)] = &out[..]
    else {
        panic!("{out:?}");
    };
    assert!(vote.obeyed.is_none() && vote.voted.is_some());
    assert_eq!(won.obeyed.as_ref(), Some(told));
    assert_eq!((master.term(), master.master()), (1, id(1)));
    assert!(node.election.obeys(id(1), 1) && !node.election.obeys(id(1), 2) && !node.election.obeys(id(2), 1));
}

#[test]
fn the_unwilling_do_not_stand_and_those_who_step_down_stop() {
    let mut node = Node::new(1, Persisted::default());
    node.see(&[(1, Standing { willing: false, ..standing(0, None) })]);
    assert_eq!(node.wait(20_000), []);
    let mut node = Node::new(1, Persisted::default());
    node.see(&[(1, standing(0, None))]);
    node.take(Input::StepDown);
    assert_eq!(node.wait(20_000), []);
}

#[test]
fn a_vote_is_durable_before_it_leaves_and_is_given_once_a_round() {
    let mut node = Node::new(1, Persisted::default());
    let all = [(1, standing(0, None)), (2, standing(0, None)), (3, standing(0, None))];
    node.see(&all);
    node.wait(1200);
    let out = node.hear(2, request(2, 1, 1, None));
    let [Output::Persist(persisted), Output::Send { to, message: ElectionMessage::Vote(ballot) }] = &out[..] else {
        panic!("{out:?}");
    };
    assert_eq!((persisted.voted.as_ref(), *to), (Some(ballot), id(2)));
    assert!(ballot.check().is_ok());

    assert_eq!(refusals(&node.hear(3, request(3, 1, 1, None))), [RefusedReason::Voted], "another, same round");
    assert_eq!(votes(&node.hear(2, request(2, 1, 1, None))), [(id(2), 1, 1)], "the same vote again");
    // The same after a restart.
    let mut again = Node::new(1, persisted.clone());
    again.see(&all);
    again.wait(1200);
    assert_eq!(refusals(&again.hear(3, request(3, 1, 1, None))), [RefusedReason::Voted]);
    assert_eq!(votes(&again.hear(3, request(3, 1, 2, None))), [(id(3), 1, 2)], "a later round");
    assert_eq!(refusals(&again.hear(2, request(2, 1, 1, None))), [RefusedReason::Voted], "no way back");
}

#[test]
fn only_the_next_term_is_voted_for() {
    let mut node = Node::obeying(1, certificate(&[2, 1, 3], 5));
    // Master 2 is gone.
    let gone = Standing { alive: false, ..standing(5, Some(2)) };
    // Itself it does not stand.
    let unwilling = Standing { willing: false, ..standing(5, Some(2)) };
    node.see(&[(1, unwilling), (2, gone), (3, standing(5, Some(2)))]);
    node.wait(2000);
    for term in [1, 5] {
        let out = node.hear(3, request(3, term, 1, None));
        let newer = Output::Send { to: id(3), message: ElectionMessage::Certificate(certificate(&[2, 1, 3], 5)) };
        assert_eq!(out, [newer], "a stale claim is answered with the newer certificate");
    }
    for term in [1 << 40, 1 << 62, 7] {
        assert_eq!(refusals(&node.hear(3, request(3, term, 1, None))), [RefusedReason::Behind]);
        // A certificate of one's own making, far above the ceiling, entitles to nothing.
        let out = node.hear(3, request(3, term, 1, Some(certificate(&[9], term - 1))));
        assert_eq!(votes(&out).len(), usize::from(term == 7), "{out:?}");
    }
    assert_eq!(node.hear(3, request(3, u64::MAX, 1, None)), []);
}

#[test]
fn the_incumbent_is_sticky_unless_it_leaves() {
    let mut node = Node::obeying(1, certificate(&[2, 1, 3], 5));
    let unwilling = Standing { willing: false, ..standing(5, Some(2)) };
    let members = |two: Standing| [(1, unwilling), (2, two), (3, standing(5, Some(2)))];
    node.see(&members(standing(5, Some(2))));
    node.wait(3000);
    assert_eq!(refusals(&node.hear(3, request(3, 6, 1, None))), [RefusedReason::Preferred]);
    node.see(&members(Standing { willing: false, ..standing(5, Some(2)) }));
    node.wait(1000);
    assert_eq!(votes(&node.hear(3, request(3, 6, 1, None))), [(id(3), 6, 1)]);
}

#[test]
fn the_better_have_the_first_word() {
    let gone = Standing { alive: false, ..standing(5, Some(2)) };
    let better = Standing { reputation: 5, ..standing(5, Some(2)) };
    let mut node = Node::obeying(1, certificate(&[2, 1, 3], 5));
    let low = Standing { reputation: 0, ..standing(5, Some(2)) };
    node.see(&[(1, better), (2, gone), (3, low), (4, better), (5, better), (6, better)]);
    node.wait(100);
    assert_eq!(refusals(&node.hear(3, request(3, 6, 1, None))), [RefusedReason::Preferred]);
    assert_eq!(
        votes(&node.hear(4, request(4, 6, 1, None))).len() + votes(&node.hear(1, request(1, 6, 1, None))).len(),
        {
            // Who of the equals is first is a matter of ids.
            usize::from(id(4) < id(1) && id(4) < id(5) && id(4) < id(6))
        }
    );
    node.wait(800);
    assert_eq!(votes(&node.hear(3, request(3, 6, 2, None))), [(id(3), 6, 2)], "but not for ever");
}

#[test]
fn a_puppet_certificate_moves_nobody_in_a_cluster_of_eight() {
    let ours = certificate(&[1, 2, 3, 4, 5], 3);
    for term in [4, 5, 1000, WALL_MS / CEILING_MS, 1 << 40, 1 << 62, u64::MAX] {
        for liars in [&[9][..], &[9, 10, 11, 12, 13, 14, 15, 16, 17, 18]] {
            let mut node = Node::obeying(2, ours.clone());
            let mut members: Vec<_> = (1..=8).map(|who| (who, standing(3, Some(1)))).collect();
            members.push((9, standing(term, Some(9))));
            node.see(&members);
            node.take(Input::Certificate(certificate(liars, term)));
            node.hear(9, ElectionMessage::Certificate(certificate(liars, term)));
            node.see(&members);
            node.wait(20_000);
            assert!(node.election.obeys(id(1), 3), "term {term}");
        }
    }
}

#[test]
fn a_newcomer_obeys_what_the_members_obey() {
    // Founded alone, joined by others since: only the founder voted.
    let ours = certificate(&[1], 1);
    let mut node = Node::new(4, Persisted::default());
    node.see(&[
        (1, standing(1, Some(1))),
        (2, standing(1, Some(1))),
        (3, standing(1, Some(1))),
        (4, standing(0, None)),
    ]);
    let out = node.wait(100);
    let asks = out.iter().filter(|out| matches!(out, Output::Send { message: ElectionMessage::Ask, .. })).count();
    assert_eq!(asks, 3, "the heartbeats speak of a certificate it lacks");
    let out = node.hear(2, ElectionMessage::Certificate(ours.clone()));
    let persisted = Persisted { obeyed: Some(ours.clone()), ..Persisted::default() };
    assert_eq!(out, [Output::Persist(persisted), Output::Master(ours)]);
}

#[test]
fn a_loner_with_a_higher_term_gets_the_cluster_to_renew_above_it() {
    let lone = certificate(&[4], 50);
    let mut master = Node::obeying(1, certificate(&[1, 2, 3], 3));
    let members =
        [(1, standing(3, Some(1))), (2, standing(3, Some(1))), (3, standing(3, Some(1))), (4, standing(50, Some(4)))];
    master.see(&members);
    let out = master.wait(500);
    assert!(out.contains(&Output::Send { to: id(4), message: ElectionMessage::Ask }));
    master.hear(4, ElectionMessage::Certificate(lone.clone()));
    assert!(master.election.obeys(id(1), 3), "one loner does not take over");
    let out = master.wait(3000);
    let asked: Vec<_> = out
        .iter()
        .filter_map(|out| match out {
            Output::Send { to, message: ElectionMessage::Request(candidacy) } => {
                Some((*to, candidacy.request.payload().term, candidacy.basis.is_some()))
            }
            _ => None,
        })
        .collect();
    assert!(asked.contains(&(id(2), 51, true)), "with the proof for those who lack it: {asked:?}");
    assert!(asked.contains(&(id(4), 51, false)));

    // The loner votes for it: it sees that the others obey its better.
    let mut loner = Node::obeying(4, lone);
    loner.see(&members);
    loner.hear(1, ElectionMessage::Certificate(certificate(&[1, 2, 3], 3)));
    loner.wait(200);
    assert_eq!(votes(&loner.hear(1, request(1, 51, 1, None))), [(id(1), 51, 1)]);
    let out = loner.take(Input::Certificate(certificate(&[1, 2, 4], 51)));
    assert!(matches!(&out[..], [Output::Persist(_), Output::Master(_)]), "{out:?}");
    // And once there is a new master, no older or equal one.
    loner.take(Input::Certificate(certificate(&[2, 1, 3], 51)));
    loner.take(Input::Certificate(certificate(&[2, 1, 3], 50)));
    assert!(loner.election.obeys(id(1), 51));
}

#[test]
fn the_owner_hears_when_the_master_goes_and_comes() {
    let ours = certificate(&[2, 1], 5);
    let mut node = Node::obeying(1, ours.clone());
    let two = |alive| [(1, standing(5, Some(2))), (2, Standing { alive, ..standing(5, Some(2)) })];
    assert_eq!(node.see(&two(true)), [Output::Master(ours.clone())]);
    assert_eq!(node.see(&two(true)), []);
    assert_eq!(node.see(&two(false)), [Output::NoMaster]);
    assert!(node.election.obeys(id(2), 5), "fencing stays");
    assert_eq!(node.see(&two(true)), [Output::Master(ours)]);
}

#[test]
fn what_belongs_to_another_cluster_is_dropped() {
    let persisted = samples::persisted();
    let other = ClusterId(Hash::of(b"another"));
    let config = ElectionConfig::default();
    let election = Election::new(Arc::new(key(1)), other, persisted.clone(), config, Millis(0));
    assert_eq!(election.persisted(), &Persisted::default());
    let election = Election::new(Arc::new(key(1)), cluster(), persisted.clone(), config, Millis(0));
    assert_eq!(election.persisted(), &persisted);
}

fn any_message() -> impl Strategy<Value = (u8, ElectionMessage)> {
    let term = prop_oneof![0_u64..8, Just(1 << 40), Just(1 << 62), Just(u64::MAX), Just(WALL_MS / CEILING_MS)];
    let reasons = [RefusedReason::Behind, RefusedReason::Voted, RefusedReason::Preferred, RefusedReason::Unfit];
    (0_u8..5, 1_u8..6, term.clone(), term, prop::sample::select(reasons.to_vec())).prop_map(
        |(kind, from, term, round, reason)| {
            let message = match kind {
                0 => request(from, term, round, (term > 0).then(|| certificate(&[from], term - 1))),
                1 => ElectionMessage::Vote(samples::ballots(&[1, from.max(2)], term)[&id(from.max(2))].clone()),
                2 => ElectionMessage::Refused(Refused { term, round, reason }),
                3 => ElectionMessage::Certificate(certificate(&[from, from + 1], term)),
                _ => ElectionMessage::Ask,
            };
            (from, message)
        },
    )
}

proptest! {
    #[test]
    fn no_sequence_of_messages_breaks_the_rules(
        steps in prop::collection::vec((any_message(), 0_u64..1500, any::<bool>(), 0_u64..8, 1_u8..6), 0..40)
    ) {
        let mut node = Node::new(1, Persisted::default());
        let mut obeyed = BTreeMap::new();
        let mut voted = BTreeMap::new();
        let mut highest = 0;
        for ((from, message), pause, alive, term, master) in steps {
            let mut out = node.hear(from, message);
            let others = Standing { alive, ..standing(term + 1, Some(master)) };
            let (mine, obeys) = (node.election.term(), node.election.master());
            let me = Standing { term: mine, master: obeys, ..standing(0, None) };
            out.extend(node.see(&[(1, me), (2, others), (3, others), (4, standing(0, None))]));
            out.extend(node.wait(pause));
            for (candidate, term, round) in votes(&out) {
                let before = voted.insert((term, round), candidate);
                prop_assert!(before.is_none_or(|before| before == candidate));
            }
            if let Some(current) = node.election.current() {
                prop_assert!(current.term() >= highest);
                highest = current.term();
                let before = obeyed.insert(highest, current.master());
                prop_assert!(before.is_none_or(|before| before == current.master()));
                prop_assert!(current.verify(cluster()).is_ok());
            }
        }
    }
}
