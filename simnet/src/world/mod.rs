//! A world of pure machines: thousands of clusters in a minute, each from one seed.
//!
//! Every host runs the real [`Membership`](consortium_protocol::membership::Membership) and
//! [`Election`](consortium_protocol::election::Election) machines. Time, network, disks, crashes and liars are
//! simulated: one queue of events, one source of randomness, so a seed always plays the same and a failure names the
//! seed to play it again. After every step the invariants of [`check`] are checked.
//!
//! - [`plan`]: what happens to the world, drawn from the seed
//! - [`network`]: delay, loss, duplication, partitions
//! - [`host`]: a node's machines, its drifting clock and its disk
//! - [`liar`]: a member that says whatever may hurt
//! - [`check`]: what must always hold

pub mod check;
pub mod host;
pub mod liar;
pub mod network;
pub mod plan;
mod queue;

use std::fmt;

use consortium_protocol::election::Persisted;
use consortium_protocol::{ClusterId, ClusterName, NodeId};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use check::Witness;
use host::{Action, Host};
use liar::Liar;
use network::{Network, Packet};
use plan::{Fault, Plan};
use queue::Queue;

/// Something that must never happen did.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The seed that plays it again.
    pub seed: u64,
    /// When, in simulated milliseconds.
    pub at: u64,
    /// What.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {} at {} ms: {}", self.seed, self.at, self.what)
    }
}

impl std::error::Error for Violation {}

/// What came of a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Milliseconds from the last fault until all honest live hosts obeyed one live master for good.
    pub settled_after: u64,
    /// The term they obey.
    pub term: u64,
    /// Events played.
    pub steps: u64,
}

enum Event {
    Deliver { to: usize, packet: Packet },
    Tick { host: usize, life: u32 },
    Heartbeat { host: usize, life: u32 },
    Mischief,
    Fault(Fault),
}

/// More events than any world of a minute has, unless its hosts drive each other mad.
const MAX_STEPS: u64 = 1_000_000;

/// A world in motion.
pub struct World {
    plan: Plan,
    rng: ChaCha8Rng,
    now: u64,
    steps: u64,
    queue: Queue<Event>,
    network: Network,
    hosts: Vec<Host>,
    liar: Option<Liar>,
    witness: Witness,
}

impl World {
    /// The world that `plan` describes, at time zero.
    pub fn new(plan: Plan) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
        let cluster = cluster();
        let mut queue = Queue::default();
        let mut hosts: Vec<Host> =
            plan.hosts.iter().enumerate().map(|(index, traits)| Host::new(index, cluster, *traits, &mut rng)).collect();
        for host in &mut hosts {
            if let Some(term) = host.traits().lone_term {
                host.remember(Persisted {
                    obeyed: liar::lone_certificate(host.key(), cluster, term),
                    ..Persisted::default()
                });
            }
        }
        for (host, traits) in plan.hosts.iter().enumerate() {
            queue.push(traits.starts_at, Event::Fault(Fault::Start(host)));
        }
        for (at, fault) in &plan.faults {
            queue.push(*at, Event::Fault(fault.clone()));
        }
        let liar = plan.liar.map(|traits| Liar::new(plan.hosts.len(), cluster, traits));
        if liar.is_some() {
            queue.push(0, Event::Mischief);
        }
        let count = plan.hosts.len() + usize::from(liar.is_some());
        Self {
            network: Network::new(count, plan.link),
            witness: Witness::new(cluster, plan.hosts.len()),
            plan,
            rng,
            now: 0,
            steps: 0,
            queue,
            hosts,
            liar,
        }
    }

    /// Plays to the end of the plan and judges what came of it.
    ///
    /// # Errors
    /// An invariant was broken, or the hosts did not settle on one master in time.
    pub fn play(mut self) -> Result<Outcome, Violation> {
        let quiet = self.plan.quiet_at();
        let end = quiet + self.plan.bound;
        let mut settled: Option<u64> = None;
        let mut agreed_once = false;
        while self.step_before(end)? {
            if self.now < quiet {
                continue;
            }
            let agreed = self.agreed(false);
            agreed_once |= self.agreed(true).is_some();
            match agreed {
                None => settled = None,
                Some(_) => settled = settled.or(Some(self.now - quiet)),
            }
        }
        let term = self.hosts.iter().map(Host::term).max().unwrap_or(0);
        match settled {
            Some(settled_after) if agreed_once => Ok(Outcome { settled_after, term, steps: self.steps }),
            _ => Err(self.violation(format!(
                "no one master {} ms after the last fault: {}",
                self.plan.bound,
                self.describe()
            ))),
        }
    }

    /// Plays until `time`.
    ///
    /// # Errors
    /// An invariant was broken.
    pub fn play_until(&mut self, time: u64) -> Result<(), Violation> {
        while self.step_before(time)? {}
        self.now = time;
        Ok(())
    }

    /// Plays until all live hosts obey one live master, but not beyond `time`; tells when they did.
    ///
    /// # Errors
    /// An invariant was broken.
    pub fn play_until_agreed(&mut self, time: u64) -> Result<Option<u64>, Violation> {
        while self.agreed(true).is_none() {
            if !self.step_before(time)? {
                return Ok(None);
            }
        }
        Ok(Some(self.now))
    }

    /// Makes something happen now.
    pub fn inject(&mut self, fault: Fault) {
        self.queue.push(self.now, Event::Fault(fault));
    }

    /// The simulated time in milliseconds.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// The hosts, in the order of the plan.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Which host has this id.
    pub fn index_of(&self, id: NodeId) -> Option<usize> {
        self.hosts.iter().position(|host| host.id() == id)
    }

    /// The master that all live hosts obey, if they obey one and it runs; `strict`: in the same term, too. A liar may
    /// be master.
    pub fn agreed(&self, strict: bool) -> Option<NodeId> {
        let mut live = self.hosts.iter().filter(|host| host.is_running());
        let first = live.next()?;
        let master = first.master()?;
        let same = |host: &Host| host.master() == Some(master) && (!strict || host.term() == first.term());
        let stands = match self.index_of(master) {
            Some(index) => self.hosts[index].is_running(),
            None => self.liar.as_ref().is_some_and(|liar| liar.id() == master),
        };
        (stands && live.all(same)).then_some(master)
    }

    /// Plays one event if it lies before `end`.
    fn step_before(&mut self, end: u64) -> Result<bool, Violation> {
        let Some((at, event)) = self.queue.pop_before(end) else {
            return Ok(false);
        };
        self.now = at;
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(self.violation("a storm of messages".to_owned()));
        }
        match event {
            Event::Deliver { to, packet } => self.deliver(to, packet)?,
            Event::Tick { host, life } => self.tick(host, life)?,
            Event::Heartbeat { host, life } => self.heartbeat(host, life)?,
            Event::Mischief => self.mischief(),
            Event::Fault(fault) => self.strike(fault),
        }
        Ok(true)
    }

    fn deliver(&mut self, to: usize, packet: Packet) -> Result<(), Violation> {
        if let Some(liar) = self.liar.as_mut().filter(|liar| liar.index() == to) {
            let replies = liar.receive(packet, &mut self.rng);
            self.send_all(to, replies);
            return Ok(());
        }
        if let Some(until) = self.hosts[to].paused_until(self.now) {
            self.queue.push(until, Event::Deliver { to, packet });
            return Ok(());
        }
        let actions = self.hosts[to].receive(packet, self.now, &mut self.rng);
        self.carry_out(to, actions)
    }

    fn tick(&mut self, host: usize, life: u32) -> Result<(), Violation> {
        if !self.hosts[host].lives(life) {
            return Ok(());
        }
        if let Some(until) = self.hosts[host].paused_until(self.now) {
            self.queue.push(until, Event::Tick { host, life });
            return Ok(());
        }
        let actions = self.hosts[host].tick(self.now, &mut self.rng);
        let next = self.now + self.hosts[host].global_span(100);
        self.queue.push(next, Event::Tick { host, life });
        self.carry_out(host, actions)
    }

    fn heartbeat(&mut self, host: usize, life: u32) -> Result<(), Violation> {
        if !self.hosts[host].lives(life) {
            return Ok(());
        }
        if let Some(until) = self.hosts[host].paused_until(self.now) {
            self.queue.push(until, Event::Heartbeat { host, life });
            return Ok(());
        }
        let actions = self.hosts[host].heartbeat(self.now, &mut self.rng);
        let next = self.now + self.hosts[host].global_span(500);
        self.queue.push(next, Event::Heartbeat { host, life });
        self.carry_out(host, actions)
    }

    /// Does what the machines of a host want, in order; a crash may come in between.
    fn carry_out(&mut self, host: usize, actions: Vec<Action>) -> Result<(), Violation> {
        for action in actions {
            if self.hosts[host].crashes_now() {
                self.hosts[host].crash();
                break;
            }
            match action {
                Action::Persist(persisted) => self.hosts[host].remember(persisted),
                Action::Send(to, packet) => {
                    self.witness.sent(host, &self.hosts[host], &packet).map_err(|what| self.violation(what))?;
                    match to {
                        Some(to) => {
                            if let Some(to) = self.find(to) {
                                self.post(host, to, &packet);
                            }
                        }
                        None => self.broadcast(host, &packet),
                    }
                }
            }
        }
        self.witness.observe(host, &self.hosts[host]).map_err(|what| self.violation(what))
    }

    fn mischief(&mut self) {
        let Some(liar) = &mut self.liar else { return };
        let from = liar.index();
        let hosts: Vec<NodeId> = self.hosts.iter().map(Host::id).collect();
        let packets = liar.act(&hosts, self.now, &mut self.rng);
        self.send_all(from, packets);
        let pause = self.rng.random_range(20..300);
        self.queue.push(self.now + pause, Event::Mischief);
    }

    fn send_all(&mut self, from: usize, packets: Vec<(Option<NodeId>, Packet)>) {
        for (to, packet) in packets {
            match to {
                Some(to) => {
                    if let Some(to) = self.find(to) {
                        self.post(from, to, &packet);
                    }
                }
                None => self.broadcast(from, &packet),
            }
        }
    }

    fn find(&self, id: NodeId) -> Option<usize> {
        self.index_of(id).or_else(|| self.liar.as_ref().filter(|liar| liar.id() == id).map(Liar::index))
    }

    fn broadcast(&mut self, from: usize, packet: &Packet) {
        let count = self.hosts.len() + usize::from(self.liar.is_some());
        for to in (0..count).filter(|to| *to != from) {
            self.post(from, to, packet);
        }
    }

    fn post(&mut self, from: usize, to: usize, packet: &Packet) {
        for delay in self.network.route(from, to, &mut self.rng) {
            let packet = packet.clone();
            self.queue.push(self.now + delay, Event::Deliver { to, packet });
        }
    }

    fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Start(host) => {
                if let Some(life) = self.hosts[host].start(self.now) {
                    let phase = self.rng.random_range(0..100);
                    self.queue.push(self.now + phase, Event::Tick { host, life });
                    let phase = self.rng.random_range(0..250);
                    self.queue.push(self.now + phase, Event::Heartbeat { host, life });
                }
            }
            Fault::Crash(host) => self.hosts[host].crash(),
            Fault::CrashWithin(host, actions) => self.hosts[host].doom(actions),
            Fault::Pause(host, time) => self.hosts[host].pause(self.now + time),
            Fault::StepDown(host) => self.hosts[host].step_down(),
            Fault::Partition(sides) => self.network.partition(&sides),
            Fault::Cut { from, to } => self.network.cut(from, to),
            Fault::Weather(link) => self.network.set_link(link),
            Fault::Heal => self.network.heal(self.plan.link),
        }
    }

    fn violation(&self, what: String) -> Violation {
        Violation { seed: self.plan.seed, at: self.now, what }
    }

    /// Who obeys whom, for reports.
    pub fn describe(&self) -> String {
        let mut lines: Vec<String> = self.hosts.iter().map(Host::describe).collect();
        if let Some(liar) = &self.liar {
            lines.push(format!("liar {}", liar.id().short()));
        }
        lines.join("; ")
    }
}

/// The cluster all hosts belong to.
pub fn cluster() -> ClusterId {
    ClusterName::new("world", None).expect("the name is well formed").id()
}
