//! A node: its machine, its disk, its work, and what it does that it should not.

use std::collections::BTreeMap;
use std::sync::Arc;

use consortium_protocol::wire::train::{
    Commit, Entry, Finding, Loss, LossPair, Measure, Proposal, Refusal, RunSpec, ScoreCard, Seal, TrainMessage, Vote,
    commitment,
};
use consortium_protocol::{Hash, Millis, NodeId, RootKey, Signed};
use consortium_training::rounds::{Config, Held, Input, Machine, Output, Stored, Wish};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// What a node is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Nature {
    /// A validator that keeps the rules.
    Honest,
    /// A validator that as a lead says two things, votes and seals whatever it sees, and lies about losses.
    Liar,
    /// A validator that keeps its nonces to itself.
    Withholder,
    /// A node that would become a validator.
    Candidate,
    /// A peer whose updates take this part off held-out loss, and twice as much off its own rows' loss.
    Worth(f64),
    /// A peer whose updates are found to be copies.
    Copycat,
    /// A peer that commits to two things.
    TwoFaced,
    /// A peer that commits to what an earlier one of the round committed to.
    Echo,
    /// A peer that trains for too long.
    Late,
    /// An outsider that says again what it heard in earlier rounds, and what it hears in its own name.
    Meddler,
    /// A peer that reveals nothing.
    Silent,
}

/// To whom a message goes: by a filter on places, so that liars can tell different things to different nodes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum To {
    All,
    One(NodeId),
    /// Nodes at even places, or at odd ones.
    Half(usize),
}

/// What comes out of a host.
pub(crate) enum Effect {
    Tell(To, TrainMessage),
    /// Work that takes some time and then says this to the machine.
    Work(u64, Input),
    /// An update can be had from now on.
    Published(Hash),
    /// An update is wanted.
    Wanted(Box<Input>, Hash),
    Stored(Box<Stored>),
    Owed(NodeId, u64, u64),
}

pub(crate) struct Host {
    pub(crate) key: Arc<RootKey>,
    pub(crate) nature: Nature,
    pub(crate) machine: Option<Machine>,
    pub(crate) life: u32,
    pub(crate) disk: Vec<Stored>,
    pub(crate) held: Option<Held>,
    /// Parameters that came out otherwise than those of the others, once, after this round.
    pub(crate) slips_at: Option<u64>,
    pub(crate) resyncs: u32,
    /// How far its clock is ahead, in milliseconds.
    pub(crate) clock_ahead: u64,
    /// How long parameters are fetched for, in milliseconds.
    pub(crate) fetches_for: (u64, u64),
    echoed: u64,
    heard: Vec<TrainMessage>,
    talked: BTreeMap<(u64, u64, Hash), u32>,
}

/// What updates are worth: peers carry it in their update's bytes, so to speak.
pub(crate) fn worth_of(natures: &[(NodeId, Nature)], peer: NodeId) -> f64 {
    match natures.iter().find(|(id, _)| *id == peer) {
        Some((_, Nature::Worth(worth))) => *worth,
        _ => 0.01,
    }
}

impl Host {
    pub(crate) fn new(key: RootKey, nature: Nature, initial: Option<Hash>) -> Self {
        let held = initial.map(|state| Held { round: 0, state });
        let key = Arc::new(key);
        Self {
            key,
            nature,
            machine: None,
            life: 0,
            disk: Vec::new(),
            held,
            slips_at: None,
            resyncs: 0,
            clock_ahead: 0,
            fetches_for: (50, 200),
            echoed: 0,
            heard: Vec::new(),
            talked: BTreeMap::new(),
        }
    }

    pub(crate) fn id(&self) -> NodeId {
        self.key.node_id()
    }

    fn wish(&self) -> Wish {
        match self.nature {
            Nature::Honest | Nature::Liar | Nature::Withholder | Nature::Candidate => Wish::Validate,
            Nature::Meddler => Wish::Watch,
            _ => Wish::Train,
        }
    }

    pub(crate) fn start(&mut self, spec: &Signed<RunSpec>, now: u64) {
        let config = Config { key: Arc::clone(&self.key), wish: self.wish(), resend: Millis(300), held: self.held };
        let machine = Machine::new(config, spec.clone(), self.disk.iter().cloned(), Millis(now + self.clock_ahead));
        self.machine = Some(machine.expect("what a machine stored fits"));
        self.life += 1;
    }

    pub(crate) fn handle(
        &mut self,
        input: Input,
        now: u64,
        natures: &[(NodeId, Nature)],
        harms: &dyn Fn(u64) -> bool,
        rng: &mut ChaCha8Rng,
    ) -> Vec<Effect> {
        if self.machine.is_none() {
            return Vec::new();
        }
        let seen = match &input {
            Input::Message { message, .. } if self.nature == Nature::Liar => self.double_talk(message),
            Input::Message { message: TrainMessage::Commit(commit), .. } if self.nature == Nature::Echo => {
                let said = *commit.payload();
                let first = self.echoed < said.round && commit.signer() != self.key.node_id();
                self.echoed = self.echoed.max(said.round);
                let echo = TrainMessage::Commit(Signed::sign(&self.key, said));
                if first { vec![Effect::Tell(To::All, echo)] } else { Vec::new() }
            }
            Input::Message { message, .. } if self.nature == Nature::Meddler => {
                self.heard.push(message.clone());
                let older = self.heard[rng.random_range(0..self.heard.len())].clone();
                let own = in_its_name(&self.key, message);
                own.into_iter().chain([older]).map(|message| Effect::Tell(To::All, message)).collect()
            }
            _ => Vec::new(),
        };
        if let Input::Applied(held) = &input {
            self.held = Some(*held);
        }
        let now = Millis(now + self.clock_ahead);
        let outputs = self.machine.as_mut().map(|machine| machine.handle(input, now)).unwrap_or_default();
        let mut effects = seen;
        for output in outputs {
            self.effect(output, natures, harms, rng, &mut effects);
        }
        effects
    }

    /// The entries on its disk.
    pub(crate) fn log(&self) -> impl Iterator<Item = &Entry> {
        fn entries(stored: &Stored) -> &[Entry] {
            match stored {
                Stored::Entries(entries) => entries,
                _ => &[],
            }
        }
        self.disk.iter().flat_map(entries)
    }

    fn effect(
        &mut self,
        output: Output,
        natures: &[(NodeId, Nature)],
        harms: &dyn Fn(u64) -> bool,
        rng: &mut ChaCha8Rng,
        effects: &mut Vec<Effect>,
    ) {
        let mut work = |from: u64, to: u64, input| Effect::Work(rng.random_range(from..to), input);
        match output {
            Output::Broadcast(message) => self.broadcast(message, effects),
            Output::Send { to, message } => effects.push(Effect::Tell(To::One(to), message)),
            Output::SendEntries { to, round } => {
                let mut entries = self.log().skip_while(|entry| entry.record.round < round).cloned();
                let first = Box::new(entries.next().expect("it was stored"));
                // So few that some are left to be asked for.
                let message = TrainMessage::Entries(first, entries.take(2).collect());
                effects.push(Effect::Tell(To::One(to), message));
            }
            Output::Persist(stored) => effects.push(Effect::Stored(Box::new(stored))),
            Output::Train { round, base, beacon, .. } => {
                let text = format!("{} {round} {base} {beacon:?}", self.id());
                let input = Input::Trained { round, update: Hash::of(text.as_bytes()), bytes: 1000 };
                let (from, to) = if self.nature == Nature::Late { (900, 1000) } else { (200, 400) };
                effects.push(work(from, to, input));
            }
            Output::Publish { update, .. } if self.nature != Nature::Silent => effects.push(Effect::Published(update)),
            Output::Publish { .. } | Output::Ended => {}
            Output::Fetch { round, peer, update, .. } => {
                let input = Input::Fetched { round, peer, result: Ok(()) };
                effects.push(Effect::Wanted(Box::new(input), update));
            }
            Output::Evaluate { round, evaluation, judge, updates, .. } => {
                let drawn = Draw { seed: evaluation.0, natures };
                let findings = updates.iter().map(|(peer, update)| (*peer, drawn.measure(*peer, *update))).collect();
                let change = if harms(round) { -0.02 } else { 0.01 };
                let aggregate = judge.map(|_| drawn.pairs(change, 2)).unwrap_or_default();
                effects.push(work(50, 250, Input::Evaluated { round, aggregate, findings }));
            }
            Output::Aggregate { round, base, updates } => {
                assert_eq!(Some(base), self.held.map(|held| held.state));
                let mut state = format!("{base} {updates:?}");
                if self.slips_at == Some(round) {
                    state.push_str(" and a flipped bit");
                }
                let state = Hash::of(state.as_bytes());
                effects.push(work(10, 100, Input::Applied(Held { round, state })));
            }
            Output::Revert { round, to } => {
                effects.push(work(10, 50, Input::Applied(Held { round, state: to })));
            }
            Output::Resync { round, state, .. } => {
                self.resyncs += 1;
                let (from, to) = self.fetches_for;
                effects.push(work(from, to, Input::Applied(Held { round, state })));
            }
            Output::Owe { peer, round, amount, .. } => effects.push(Effect::Owed(peer, round, amount.0)),
        }
    }

    fn broadcast(&self, message: TrainMessage, effects: &mut Vec<Effect>) {
        let mut tell = |to, message| effects.push(Effect::Tell(to, message));
        match (self.nature, message) {
            (Nature::Withholder, TrainMessage::EvalNonce(_))
            | (Nature::Silent | Nature::Echo, TrainMessage::Reveal(_))
            | (Nature::Echo, TrainMessage::Commit(_)) => {}
            (Nature::Liar, TrainMessage::Card(card)) => tell(To::All, TrainMessage::Card(self.lie(card.payload()))),
            (Nature::Liar, TrainMessage::Proposal(proposal)) => {
                for (half, said) in two_faces(&self.key, proposal.payload()).into_iter().enumerate() {
                    tell(To::Half(half), TrainMessage::Proposal(said));
                }
            }
            (Nature::TwoFaced, TrainMessage::Commit(commit)) => {
                let said = *commit.payload();
                let other = commitment(said.run, said.round, self.id(), Hash::of(b"another"));
                let other = Signed::sign(&self.key, Commit { commitment: other, ..said });
                tell(To::All, TrainMessage::Commit(commit));
                tell(To::All, TrainMessage::Commit(other));
            }
            (_, message) => tell(To::All, message),
        }
    }

    /// Votes and seals for everything that goes by.
    fn double_talk(&mut self, message: &TrainMessage) -> Vec<Effect> {
        let vote = match message {
            TrainMessage::Vote(vote) => *vote.payload(),
            TrainMessage::Proposal(proposal) => *proposal.payload().vote.payload(),
            _ => return Vec::new(),
        };
        let Vote { run, round, view, record } = vote;
        // Twice, for some are lost; not for ever, for liars hear each other.
        let times = self.talked.entry((round, view, record)).or_default();
        *times += 1;
        if *times > 2 {
            return Vec::new();
        }
        let (vote, seal) = (Signed::sign(&self.key, vote), Signed::sign(&self.key, Seal { run, round, view, record }));
        vec![Effect::Tell(To::All, TrainMessage::Vote(vote)), Effect::Tell(To::All, TrainMessage::Seal(seal))]
    }

    /// A card on which all updates are wonderful and the best is harmful.
    fn lie(&self, card: &ScoreCard) -> Signed<ScoreCard> {
        let mut card = card.clone();
        for (place, (_, finding)) in card.findings.iter_mut().enumerate() {
            if let Finding::Measured(measure) = finding {
                let after = if place % 2 == 0 { 3_900_000_000 } else { 100_000_000 };
                measure.held_out.iter_mut().for_each(|pair| *pair = LossPair(pair.0, Loss(after)));
            }
        }
        Signed::sign(&self.key, card)
    }
}

/// Two records that both follow from one body, in the same view.
fn two_faces(key: &RootKey, proposal: &Proposal) -> Vec<Signed<Proposal>> {
    let faces = [0, 1].map(|more| {
        let mut said = proposal.clone();
        if said.locked.is_none() {
            said.record.at_ms += more;
        }
        let record = &said.record;
        let vote = Vote { run: record.run, round: record.round, view: said.view, record: record.id() };
        said.vote = Signed::sign(key, vote);
        Signed::sign(key, said)
    });
    faces.into()
}

/// What someone else said, signed by `key`.
fn in_its_name(key: &RootKey, message: &TrainMessage) -> Option<TrainMessage> {
    Some(match message {
        TrainMessage::Commit(said) => TrainMessage::Commit(Signed::sign(key, *said.payload())),
        TrainMessage::Reveal(said) => TrainMessage::Reveal(Signed::sign(key, *said.payload())),
        TrainMessage::EvalNonce(said) => TrainMessage::EvalNonce(Signed::sign(key, *said.payload())),
        TrainMessage::Card(said) => TrainMessage::Card(Signed::sign(key, said.payload().clone())),
        TrainMessage::Vote(said) => TrainMessage::Vote(Signed::sign(key, *said.payload())),
        TrainMessage::Seal(said) => TrainMessage::Seal(Signed::sign(key, *said.payload())),
        TrainMessage::State(said) => TrainMessage::State(Signed::sign(key, *said.payload())),
        TrainMessage::Proposal(said) => TrainMessage::Proposal(Signed::sign(key, said.payload().clone())),
        _ => return None,
    })
}

/// Losses as a validator would measure them.
struct Draw<'a> {
    seed: Hash,
    natures: &'a [(NodeId, Nature)],
}

impl Draw<'_> {
    fn pairs(&self, worth: f64, count: usize) -> Vec<LossPair> {
        let base = 3.0 + f64::from(self.seed.as_bytes()[0]) / 1000.0;
        (0..count)
            .map(|batch| {
                let before = base + batch as f64 / 100.0;
                LossPair(Loss::from_nats(before).unwrap(), Loss::from_nats(before * (1.0 - worth)).unwrap())
            })
            .collect()
    }

    fn measure(&self, peer: NodeId, update: Hash) -> Result<Measure, Refusal> {
        let worth = worth_of(self.natures, peer);
        let copy = self.natures.contains(&(peer, Nature::Copycat));
        Ok(Measure {
            update,
            assigned: self.pairs(worth * 2.0, 1),
            unassigned: self.pairs(worth, 1),
            held_out: self.pairs(worth, 2),
            drift: 0,
            overlap: if copy { 990_000 } else { 100_000 },
            copy,
            norms: Hash::of(update.as_bytes()),
        })
    }
}
