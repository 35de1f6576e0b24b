//! What happens to a world: drawn from a seed, or written by hand.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::host::Traits;
use super::liar;
use super::network::Link;

/// Something that happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// A host starts, with what is on its disk.
    Start(usize),
    /// A host ends at once.
    Crash(usize),
    /// A host crashes after as many more actions: between writing and sending, if it comes to that.
    CrashWithin(usize, u32),
    /// A host stands still for so many milliseconds.
    Pause(usize, u64),
    /// A host announces that it leaves.
    StepDown(usize),
    /// Hosts on different sides do not hear each other.
    Partition(Vec<u8>),
    /// One host does not hear another.
    Cut {
        /// Who is not heard.
        from: usize,
        /// By whom.
        to: usize,
    },
    /// Links behave differently.
    Weather(Link),
    /// The network is whole again.
    Heal,
}

/// A world to be played.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where all chance comes from.
    pub seed: u64,
    /// The hosts.
    pub hosts: Vec<Traits>,
    /// A member that lies, if there is one.
    pub liar: Option<liar::Traits>,
    /// How links behave when the weather is fine.
    pub link: Link,
    /// What happens, and when, in milliseconds.
    pub faults: Vec<(u64, Fault)>,
    /// How long after the last fault one master must stand, in milliseconds.
    pub bound: u64,
}

/// One master must stand this long after the last fault, in milliseconds.
pub const BOUND: u64 = 10_000;
/// The same with a liar among the members.
pub const BOUND_WITH_LIAR: u64 = 25_000;

impl Default for Traits {
    fn default() -> Self {
        Self { starts_at: 0, willing: true, capacity: 1 << 30, drift: 1.0, wall_skew: 0, lone_term: None }
    }
}

impl Plan {
    /// `hosts` equal hosts that start together, and nothing happens.
    pub fn calm(seed: u64, hosts: usize) -> Self {
        Self {
            seed,
            hosts: vec![Traits::default(); hosts],
            liar: None,
            link: Link::GOOD,
            faults: Vec::new(),
            bound: BOUND,
        }
    }

    /// When the last fault is over.
    pub fn quiet_at(&self) -> u64 {
        let starts = self.hosts.iter().map(|host| host.starts_at);
        let faults = self.faults.iter().map(|(at, fault)| match fault {
            Fault::Pause(_, time) => at + time,
            _ => *at,
        });
        starts.chain(faults).max().unwrap_or(0)
    }

    /// A world of honest hosts with everything that can go wrong.
    pub fn stormy(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5707);
        // Small clusters have the odd cases, and are quick; now and then a full one.
        let count = match rng.random_range(0..20) {
            0 => rng.random_range(8..=12),
            1..=5 => rng.random_range(5..=7),
            _ => rng.random_range(1..=4),
        };
        let mut plan = Self::calm(seed, count);
        plan.link = Link {
            min_delay: rng.random_range(0..40),
            spread: rng.random_range(1..80),
            loss: if rng.random_bool(0.5) { 0.0 } else { 0.02 },
            duplication: if rng.random_bool(0.5) { 0.0 } else { 0.05 },
        };
        let together = rng.random_bool(0.5);
        for host in &mut plan.hosts {
            if !together {
                host.starts_at = rng.random_range(0..6000);
            }
            host.capacity = rng.random_range(1..=3) << 30;
            host.drift = rng.random_range(0.97..1.03);
            host.wall_skew = rng.random_range(0..2000);
            if rng.random_bool(0.1) {
                host.lone_term = Some(rng.random_range(1..60));
            }
        }
        // At least one is willing.
        for host in plan.hosts.iter_mut().skip(1) {
            host.willing = rng.random_bool(0.85);
        }
        plan.faults = storm(count, &mut rng);
        plan
    }

    /// A stormy world of at least three honest hosts and a liar.
    pub fn lying(seed: u64) -> Self {
        let mut plan = Self::stormy(seed);
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x11a2);
        while plan.hosts.len() < 3 {
            plan.hosts.push(Traits::default());
        }
        plan.liar = Some(liar::Traits::draw(&mut rng));
        plan.bound = BOUND_WITH_LIAR;
        plan
    }
}

/// Faults for `count` hosts; after the last, everything runs and every link is open, but for hosts that stay down.
fn storm(count: usize, rng: &mut ChaCha8Rng) -> Vec<(u64, Fault)> {
    let mut faults = Vec::new();
    let mut at = rng.random_range(500..5000);
    for _ in 0..rng.random_range(0..5) {
        let host = rng.random_range(0..count);
        let lasts = rng.random_range(200..10_000);
        match rng.random_range(0..8) {
            0 | 1 => {
                let sides = (0..count).map(|_| rng.random_range(0..2)).collect();
                faults.push((at, Fault::Partition(sides)));
                faults.push((at + lasts, Fault::Heal));
            }
            2 => {
                // Everyone alone.
                let sides = (0..count).map(|host| host as u8).collect();
                faults.push((at, Fault::Partition(sides)));
                faults.push((at + lasts, Fault::Heal));
            }
            3 => {
                faults.push((at, Fault::Crash(host)));
                faults.push((at + lasts, Fault::Start(host)));
            }
            4 => {
                faults.push((at, Fault::CrashWithin(host, rng.random_range(0..20))));
                // It may not have come to that.
                faults.push((at + lasts, Fault::Crash(host)));
                faults.push((at + lasts + 100, Fault::Start(host)));
            }
            5 => faults.push((at, Fault::Pause(host, lasts.min(5000)))),
            6 => {
                let weather = Link {
                    min_delay: rng.random_range(0..300),
                    spread: rng.random_range(1..700),
                    loss: rng.random_range(0.0..0.4),
                    duplication: rng.random_range(0.0..0.3),
                };
                faults.push((at, Fault::Weather(weather)));
                faults.push((at + lasts, Fault::Heal));
            }
            _ => {
                for _ in 0..rng.random_range(1..4) {
                    let (from, to) = (rng.random_range(0..count), rng.random_range(0..count));
                    faults.push((at, Fault::Cut { from, to }));
                }
                faults.push((at + lasts, Fault::Heal));
            }
        }
        at += rng.random_range(100..8000);
    }
    // Whatever overlapped: the storm ends here.
    let end = faults.iter().map(|(at, _)| *at).max().unwrap_or(0) + 1;
    faults.push((end, Fault::Heal));
    let mut hosts: Vec<usize> = (0..count).collect();
    hosts.shuffle(rng);
    // Sometimes one host goes for good as the last thing that happens, but never the first, which is willing.
    let gone = hosts.pop().filter(|host| *host != 0 && count > 2 && rng.random_bool(0.3));
    for host in 0..count {
        let fault = if gone == Some(host) { Fault::Crash(host) } else { Fault::Start(host) };
        faults.push((end + 1, fault));
    }
    faults
}
