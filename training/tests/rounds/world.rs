//! Time, network, crashes, and what must always hold.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use consortium_protocol::wire::Message;
use consortium_protocol::wire::escrow::EscrowId;
use consortium_protocol::wire::train::{Entry, Pledged, RunSpec, TrainMessage};
use consortium_protocol::{Hash, NodeId, Signed};
use consortium_training::rounds::{FetchFailure, Input, Stored, replay};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::host::{Effect, Host, Nature, To};
use crate::samples::{id, key, signed, spec};

/// What links do to packets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) delay: (u64, u64),
    pub(crate) loss: f64,
    pub(crate) duplication: f64,
}

/// A network without faults, well within `delta`.
pub(crate) const GOOD: Link = Link { delay: (1, 30), loss: 0.0, duplication: 0.0 };
/// One that delays for longer than views last, and loses a part.
pub(crate) const BAD: Link = Link { delay: (1, 1500), loss: 0.2, duplication: 0.2 };

enum Event {
    Deliver { to: usize, from: NodeId, message: Box<TrainMessage> },
    Tick { host: usize, life: u32 },
    Work { host: usize, life: u32, input: Box<Input> },
    Start(usize),
    Crash(usize),
    Weather(Link),
}

/// A world in motion.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) spec: Signed<RunSpec>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) owed: BTreeMap<(NodeId, u64), u64>,
    /// Rounds whose aggregate is found to do harm in the next.
    pub(crate) harmful: BTreeSet<u64>,
    /// A round of which two records were sealed.
    pub(crate) split: Option<u64>,
    /// Whether messages go through their bytes.
    pub(crate) encodes: bool,
    /// For hosts at these places, again and again: the key that says that it holds their bond, and in which escrow.
    pub(crate) words: BTreeMap<usize, (usize, u8)>,
    rng: ChaCha8Rng,
    now: u64,
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: BTreeMap<usize, Event>,
    link: Link,
    published: BTreeSet<Hash>,
    certain: BTreeMap<u64, Hash>,
    seals: BTreeMap<(u64, u64, Hash), BTreeSet<NodeId>>,
}

impl World {
    pub(crate) fn new(seed: u64, spec_of: RunSpec, natures: &[Nature]) -> Self {
        let initial = spec_of.model.initial;
        let mut validators = 0;
        let mut others = 100;
        let hosts = natures
            .iter()
            .map(|nature| {
                let is_validator = matches!(nature, Nature::Honest | Nature::Liar | Nature::Withholder);
                let number = if is_validator { &mut validators } else { &mut others };
                *number += 1;
                Host::new(key(*number - 1), *nature, Some(initial))
            })
            .collect();
        let mut world = Self {
            seed,
            spec: signed(spec_of),
            hosts,
            owed: BTreeMap::new(),
            harmful: BTreeSet::new(),
            split: None,
            encodes: false,
            words: BTreeMap::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            now: 1000,
            order: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            link: GOOD,
            published: BTreeSet::new(),
            certain: BTreeMap::new(),
            seals: BTreeMap::new(),
        };
        for host in 0..world.hosts.len() {
            let at = world.now + world.rng.random_range(0..50);
            world.push(at, Event::Start(host));
        }
        world
    }

    /// With `validators` honest ones, and these peers.
    pub(crate) fn honest(seed: u64, validators: usize, quorum: u32, peers: &[Nature], rounds: u64) -> Self {
        let natures: Vec<Nature> =
            [Nature::Honest].repeat(validators).into_iter().chain(peers.iter().copied()).collect();
        Self::new(seed, spec(validators, quorum, 0, rounds), &natures)
    }

    fn push(&mut self, at: u64, event: Event) {
        self.order += 1;
        let name = self.order as usize;
        self.events.insert(name, event);
        self.queue.push(Reverse((at, self.order, name)));
    }

    pub(crate) fn crash_at(&mut self, at: u64, host: usize) {
        self.push(at, Event::Crash(host));
    }

    pub(crate) fn start_at(&mut self, at: u64, host: usize) {
        self.push(at, Event::Start(host));
    }

    pub(crate) fn weather_at(&mut self, at: u64, link: Link) {
        self.push(at, Event::Weather(link));
    }

    pub(crate) fn random(&mut self) -> &mut ChaCha8Rng {
        &mut self.rng
    }

    /// Plays until all running hosts know the last record, at most until `end`; tells when they did.
    pub(crate) fn play(&mut self, end: u64) -> Option<u64> {
        while let Some(Reverse((at, _, name))) = self.queue.pop() {
            if at > end {
                return None;
            }
            self.now = at;
            let event = self.events.remove(&name).unwrap();
            self.happen(event);
            let over = |host: &Host| host.machine.as_ref().is_none_or(|machine| machine.chain().last().ended);
            if self.hosts.iter().any(|host| host.machine.is_some()) && self.hosts.iter().all(over) {
                return Some(self.now);
            }
        }
        None
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deliver { to, from, message } => self.handle(to, Input::Message { from, message: *message }),
            Event::Tick { host, life } if self.lives(host, life) => {
                if let Some(bond) = self.word(host) {
                    self.handle(host, Input::Pledged(bond));
                }
                self.handle(host, Input::Tick);
                self.push(self.now + 40, Event::Tick { host, life });
            }
            Event::Work { host, life, input } if self.lives(host, life) => self.handle(host, *input),
            Event::Tick { .. } | Event::Work { .. } => {}
            Event::Start(host) => {
                if self.hosts[host].machine.is_none() {
                    self.hosts[host].start(&self.spec, self.now);
                    let life = self.hosts[host].life;
                    self.push(self.now, Event::Tick { host, life });
                }
            }
            Event::Crash(host) => self.hosts[host].machine = None,
            Event::Weather(link) => self.link = link,
        }
    }

    fn word(&self, host: usize) -> Option<Signed<Pledged>> {
        let (by, escrow) = self.words.get(&host)?;
        let chain = self.hosts[host].machine.as_ref()?.chain();
        let (peer, escrow) = (self.hosts[host].id(), EscrowId([*escrow; 16]));
        Some(Signed::sign(&key(*by), Pledged { run: chain.run(), round: chain.round(), peer, escrow }))
    }

    fn lives(&self, host: usize, life: u32) -> bool {
        self.hosts[host].machine.is_some() && self.hosts[host].life == life
    }

    fn handle(&mut self, host: usize, input: Input) {
        let natures: Vec<(NodeId, Nature)> = self.hosts.iter().map(|host| (host.id(), host.nature)).collect();
        let harmful = self.harmful.clone();
        let harms = move |round: u64| harmful.contains(&(round - 1));
        let effects = self.hosts[host].handle(input, self.now, &natures, &harms, &mut self.rng);
        let life = self.hosts[host].life;
        for effect in effects {
            match effect {
                Effect::Tell(to, message) => self.tell(host, to, &message),
                Effect::Work(after, input) => {
                    self.push(self.now + after, Event::Work { host, life, input: Box::new(input) });
                }
                Effect::Published(update) => {
                    self.published.insert(update);
                }
                Effect::Wanted(input, update) => {
                    let input = match *input {
                        Input::Fetched { round, peer, .. } if !self.published.contains(&update) => {
                            Input::Fetched { round, peer, result: Err(FetchFailure::Missing) }
                        }
                        other => other,
                    };
                    let after = self.rng.random_range(5..60);
                    self.push(self.now + after, Event::Work { host, life, input: Box::new(input) });
                }
                Effect::Stored(stored) => self.store(host, *stored),
                Effect::Owed(peer, round, amount) => {
                    let before = self.owed.insert((peer, round), amount);
                    assert!(before.is_none_or(|before| before == amount), "seed {}", self.seed);
                }
            }
        }
    }

    fn store(&mut self, host: usize, stored: Stored) {
        if let Stored::Entries(entries) = &stored {
            entries.iter().for_each(|entry| self.note(entry));
        }
        self.hosts[host].disk.push(stored);
    }

    fn note(&mut self, entry: &Entry) {
        let (round, id) = (entry.record.round, entry.record.id());
        let known = *self.certain.entry(round).or_insert(id);
        if known != id {
            self.split = Some(round);
        }
        let pay: u64 = entry.record.outcomes.iter().map(|outcome| outcome.pay.0).sum();
        assert!(pay <= self.spec.payload().pay.budget.0, "seed {}: above the budget", self.seed);
    }

    fn tell(&mut self, from: usize, to: To, message: &TrainMessage) {
        if let TrainMessage::Seal(seal) = message {
            let said = seal.payload();
            self.seals.entry((said.round, said.view, said.record)).or_default().insert(seal.signer());
            self.check_seals(said.round);
        }
        let sender = self.hosts[from].id();
        for place in 0..self.hosts.len() {
            let meant = match to {
                To::All => true,
                To::One(id) => self.hosts[place].id() == id,
                To::Half(half) => place % 2 == half,
            };
            if place == from || !meant || self.rng.random_bool(self.link.loss) {
                continue;
            }
            let copies = if self.rng.random_bool(self.link.duplication) { 2 } else { 1 };
            for _ in 0..copies {
                let message = if self.encodes {
                    TrainMessage::decode(&message.encode()).unwrap_or_else(|e| panic!("{e}: {message:?}"))
                } else {
                    message.clone()
                };
                let at = self.now + self.rng.random_range(self.link.delay.0..=self.link.delay.1);
                self.push(at, Event::Deliver { to: place, from: sender, message: Box::new(message) });
            }
        }
    }

    /// Whether two records of a round are sealed by a quorum each, even if nobody put the seals together.
    fn check_seals(&mut self, round: u64) {
        let quorum = self.spec.payload().quorum as usize;
        let sealed = self.seals.iter().filter(|((r, ..), by)| *r == round && by.len() >= quorum);
        let records: BTreeSet<Hash> = sealed.map(|((_, _, record), _)| *record).collect();
        if records.len() > 1 {
            self.split = Some(round);
        }
    }

    /// The log that a host has, replayed.
    pub(crate) fn log(&self, host: usize) -> Vec<Entry> {
        let log: Vec<Entry> = self.hosts[host].log().cloned().collect();
        let replayed = replay(self.spec.clone(), &log).unwrap_or_else(|(round, bad)| {
            panic!("seed {}: round {round} of host {host} does not replay: {bad}", self.seed)
        });
        assert_eq!(Some(&replayed.last), log.last().map(|entry| &entry.record));
        log
    }

    /// Where everybody stands, for failures.
    pub(crate) fn describe(&self) -> String {
        let line = |host: &Host| match &host.machine {
            None => format!("{} {:?} is down", host.id().short(), host.nature),
            Some(machine) => {
                let last = machine.chain().last();
                let held = machine.held().map(|held| held.round);
                format!(
                    "{} {:?} round {} view {} holds {held:?}",
                    host.id().short(),
                    host.nature,
                    last.round,
                    last.view
                )
            }
        };
        self.hosts.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// The id of the `n`th peer.
    pub(crate) fn peer(n: usize) -> NodeId {
        id(100 + n)
    }
}
