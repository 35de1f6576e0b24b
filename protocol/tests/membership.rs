//! The membership machine.

#![allow(clippy::unwrap_used, clippy::panic)]

mod samples;

use consortium_protocol::membership::{
    Input, LeaveReason, MemberState, Membership, MembershipConfig, Output, RejectReason,
};
use consortium_protocol::wire::heartbeat::Heartbeat;
use consortium_protocol::{ClusterId, Hash, Millis, NodeId, RootKey, Signed};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

struct Node {
    membership: Membership,
    rng: ChaCha8Rng,
}

impl Node {
    fn new() -> Self {
        let me = samples::key(0).node_id();
        Self {
            membership: Membership::new(me, samples::cluster(), MembershipConfig::default()),
            rng: ChaCha8Rng::seed_from_u64(1),
        }
    }

    fn take(&mut self, input: Input, now: u64) -> Vec<Output> {
        self.membership.handle(input, Millis(now), &mut self.rng)
    }

    fn hear(&mut self, who: u8, incarnation: u64, seq: u64, now: u64) -> Vec<Output> {
        self.take(Input::Heartbeat(beat(&samples::key(who), incarnation, seq, |_| {})), now)
    }

    /// Ticks every 100 ms from `from` to `to`, and tells what came out and when.
    fn wait(&mut self, from: u64, to: u64) -> Vec<(u64, Output)> {
        let times = (from..=to).step_by(100);
        times.flat_map(|now| self.take(Input::Tick, now).into_iter().map(move |out| (now, out))).collect()
    }
}

fn id(who: u8) -> NodeId {
    samples::key(who).node_id()
}

fn beat(key: &RootKey, incarnation: u64, seq: u64, change: impl Fn(&mut Heartbeat)) -> Signed<Heartbeat> {
    let mut heartbeat = samples::heartbeat();
    heartbeat.incarnation = incarnation;
    heartbeat.seq = seq;
    heartbeat.sent_at_ms = incarnation + seq * 500;
    change(&mut heartbeat);
    Signed::sign(key, heartbeat)
}

#[test]
fn members_join_fall_silent_come_back_and_leave() {
    let mut node = Node::new();
    assert_eq!(node.hear(1, 1000, 1, 0), [Output::Joined(id(1))]);
    for seq in 2..=10 {
        assert_eq!(node.hear(1, 1000, seq, (seq - 1) * 500), []);
        assert_eq!(node.take(Input::Tick, (seq - 1) * 500 + 100), []);
    }
    assert_eq!(node.membership.view().len(), 2);
    let silent = node.wait(4600, 7000);
    assert_eq!(silent, [(6100, Output::Suspected(id(1)))], "after 1.5 seconds");
    assert_eq!(node.membership.member(&id(1)).unwrap().state(), MemberState::Suspect);
    assert_eq!(node.hear(1, 1000, 11, 7000), [Output::Recovered(id(1))]);
    let out = node.wait(7100, 20_000);
    assert_eq!(out.len(), 2);
    assert_eq!(out[0].1, Output::Suspected(id(1)));
    assert!(out[0].0 - 7000 <= 4100, "never later than max_suspicion: {}", out[0].0);
    assert_eq!(out[1], (13_100, Output::Left(id(1), LeaveReason::Silent)));
    assert_eq!(node.membership.view().into_iter().collect::<Vec<_>>(), [id(0)]);
}

#[test]
fn suspicion_adapts_to_the_delays_seen() {
    let patience = |intervals: &[u64]| {
        let mut node = Node::new();
        let mut now = 0;
        node.hear(1, 1000, 1, now);
        for (seq, interval) in (2..).zip(intervals) {
            now += interval;
            node.hear(1, 1000, seq, now);
        }
        node.membership.member(&id(1)).unwrap().patience(&MembershipConfig::default())
    };
    assert_eq!(patience(&[500; 20]), Millis(1500));
    let busy = patience(&[200, 1400, 100, 900, 300, 1200, 500, 100, 1300, 200]);
    assert!(busy > Millis(2500) && busy <= Millis(4000), "{busy}");
    assert_eq!(patience(&[3000, 100, 3000, 100]), Millis(4000));
}

#[test]
fn old_heartbeats_are_refused_even_after_leaving() {
    let stale = |who| Output::Rejected { from: id(who), why: RejectReason::Stale };
    let mut node = Node::new();
    node.hear(1, 1000, 5, 0);
    assert_eq!(node.hear(1, 1000, 5, 10), [stale(1)], "the same again");
    assert_eq!(node.hear(1, 1000, 4, 20), [stale(1)], "an older one");
    assert_eq!(node.hear(1, 999, 900, 30), [stale(1)], "an older life");
    assert_eq!(node.hear(1, 2000, 1, 40), [], "a newer life");
    assert_eq!(node.hear(1, 1000, 6, 50), [stale(1)]);
    node.wait(100, 10_000);
    assert_eq!(node.membership.view().len(), 1);
    assert_eq!(node.hear(1, 2000, 1, 10_000), [stale(1)], "it does not bring back who has left");
    assert_eq!(node.hear(1, 2000, 2, 10_100), [Output::Joined(id(1))]);
}

#[test]
fn strangers_and_crowds_are_refused() {
    let mut node = Node::new();
    let foreign = beat(&samples::key(1), 1, 1, |heartbeat| heartbeat.cluster = ClusterId(Hash::of(b"other")));
    let out = node.take(Input::Heartbeat(foreign), 0);
    assert_eq!(out, [Output::Rejected { from: id(1), why: RejectReason::Cluster }]);
    for who in 1..=63 {
        assert_eq!(node.hear(who, 1, 1, 0), [Output::Joined(id(who))]);
    }
    assert_eq!(node.hear(64, 1, 1, 0), [Output::Rejected { from: id(64), why: RejectReason::Full }]);
    assert_eq!(node.membership.view().len(), 64);
    assert_eq!(node.membership.members().count(), 63);
}

#[test]
fn two_holders_of_one_key_are_noticed() {
    let mut node = Node::new();
    // The elder lives on after the younger began.
    let mut noticed = 0;
    for step in 0..12 {
        let now = 5000 + step * 500;
        node.hear(1, 3000, 1 + step, now);
        let elder = beat(&samples::key(1), 1000, 100 + step, |heartbeat| heartbeat.sent_at_ms = now);
        let out = node.take(Input::Heartbeat(elder), now + 1);
        noticed += out.iter().filter(|out| **out == Output::DuplicateIdentity(id(1))).count();
    }
    assert_eq!(noticed, 4, "every third");
    // A restart is no duplicate, nor are recordings of the former life.
    let mut node = Node::new();
    let old: Vec<_> = (1..20).map(|seq| beat(&samples::key(1), 1000, seq, |_| {})).collect();
    node.hear(1, 20_000, 1, 0);
    for heartbeat in old {
        let out = node.take(Input::Heartbeat(heartbeat), 100);
        assert_eq!(out, [Output::Rejected { from: id(1), why: RejectReason::Stale }]);
    }
}

#[test]
fn another_holder_of_this_nodes_own_key_is_noticed() {
    let mut node = Node::new();
    let own = beat(&samples::key(0), 5000, 1, |_| {});
    node.take(Input::Sent(own.clone()), 0);
    let refused = Output::Rejected { from: id(0), why: RejectReason::Own };
    assert_eq!(node.take(Input::Heartbeat(own), 10), std::slice::from_ref(&refused), "an echo");
    let mut noticed = false;
    for seq in 1..=3 {
        let other = beat(&samples::key(0), 4000, seq, |heartbeat| heartbeat.sent_at_ms = 6000 + seq);
        let out = node.take(Input::Heartbeat(other), 20);
        assert_eq!(out[0], refused);
        noticed = out.contains(&Output::DuplicateIdentity(id(0)));
    }
    assert!(noticed);
}

#[test]
fn a_node_that_slept_does_not_blame_the_others() {
    let mut node = Node::new();
    for seq in 1..=5 {
        node.hear(1, 1000, seq, seq * 500);
    }
    // Three seconds without any input, then a tick: the heartbeats of that time are still on their way.
    assert_eq!(node.take(Input::Tick, 5500), []);
    assert_eq!(node.hear(1, 1000, 6, 5600), []);
    assert_eq!(node.wait(5700, 6900), []);
}

#[test]
fn a_lost_connection_and_a_farewell_shorten_the_wait() {
    let mut node = Node::new();
    for seq in 1..=5 {
        node.hear(1, 1000, seq, seq * 500);
        node.hear(2, 1000, seq, seq * 500);
    }
    let goodbye = beat(&samples::key(2), 1000, 6, |heartbeat| heartbeat.leaving = true);
    node.take(Input::Heartbeat(goodbye), 2600);
    node.take(Input::Disconnected(id(1)), 2600);
    let out = node.wait(2700, 4200);
    assert_eq!(out[0], (3300, Output::Suspected(id(1))));
    assert_eq!(out[1..], [(4200, Output::Suspected(id(2))), (4200, Output::Left(id(2), LeaveReason::Announced))]);
}

#[test]
fn standings_speak_for_everyone() {
    let mut node = Node::new();
    node.hear(1, 1000, 1, 0);
    let standings = node.membership.standings(|_| 9);
    assert!(!standings[&id(0)].willing && standings[&id(0)].alive);
    assert_eq!(standings[&id(1)].master, Some(id(2)));
    assert_eq!((standings[&id(1)].reputation, standings[&id(1)].capacity), (9, 8 << 30));
    node.take(Input::Sent(beat(&samples::key(0), 1, 1, |_| {})), 0);
    assert!(node.membership.standings(|_| 9)[&id(0)].willing);
}

proptest! {
    #[test]
    fn no_sequence_of_inputs_breaks_it(
        steps in prop::collection::vec((0_u8..4, 0_u8..5, 0_u64..4, any::<u64>(), any::<u64>(), 0_u64..5000), 0..60)
    ) {
        let mut node = Node::new();
        let mut now = 0_u64;
        for (kind, who, incarnation, seq, sent, pause) in steps {
            now += pause;
            let heartbeat = || beat(&samples::key(who), 0, 0, |heartbeat| {
                heartbeat.incarnation = if incarnation == 3 { u64::MAX } else { incarnation };
                heartbeat.seq = seq;
                heartbeat.sent_at_ms = sent;
            });
            match kind {
                0 => node.take(Input::Heartbeat(heartbeat()), now),
                1 => node.take(Input::Sent(heartbeat()), now),
                2 => node.take(Input::Disconnected(id(who)), now),
                _ => node.take(Input::Tick, now),
            };
            let view = node.membership.view();
            prop_assert!(view.contains(&id(0)) && view.len() <= 64);
            prop_assert_eq!(view, node.membership.standings(|_| 0).into_keys().collect());
        }
    }
}
