//! What the network does to packets.

use consortium_protocol::NodeId;
use consortium_protocol::election::{Certificate, ElectionMessage};
use consortium_protocol::envelope::Signed;
use consortium_protocol::wire::heartbeat::Heartbeat;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// What hosts say to each other.
#[derive(Clone, Debug)]
pub enum Packet {
    /// By gossip.
    Heartbeat(Signed<Heartbeat>),
    /// By gossip.
    Certificate(Certificate),
    /// From one to one; the transport vouches for `from`.
    Election {
        /// The sender.
        from: NodeId,
        /// The message.
        message: ElectionMessage,
    },
}

/// How every link behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// The shortest delay in milliseconds.
    pub min_delay: u64,
    /// What chance adds at most; one packet in sixteen takes four times as long.
    pub spread: u64,
    /// The part of packets lost.
    pub loss: f64,
    /// The part of packets that arrive twice.
    pub duplication: f64,
}

impl Link {
    /// A local network without faults.
    pub const GOOD: Self = Self { min_delay: 1, spread: 10, loss: 0.0, duplication: 0.0 };
}

/// All links.
#[derive(Clone, Debug)]
pub struct Network {
    link: Link,
    count: usize,
    open: Vec<bool>,
}

impl Network {
    /// `count` hosts, every link open.
    pub fn new(count: usize, link: Link) -> Self {
        Self { link, count, open: vec![true; count * count] }
    }

    /// Opens links within the same side only; hosts beyond the end of `sides` are on side 0.
    pub fn partition(&mut self, sides: &[u8]) {
        let side = |host: usize| sides.get(host).copied().unwrap_or(0);
        for from in 0..self.count {
            for to in 0..self.count {
                self.open[from * self.count + to] = side(from) == side(to);
            }
        }
    }

    /// Closes one direction of one link.
    pub fn cut(&mut self, from: usize, to: usize) {
        self.open[from * self.count + to] = false;
    }

    /// Changes how links behave.
    pub fn set_link(&mut self, link: Link) {
        self.link = link;
    }

    /// Opens every link.
    pub fn heal(&mut self, link: Link) {
        self.open.fill(true);
        self.link = link;
    }

    /// The delays of the copies that arrive: none, one or two.
    pub fn route(&self, from: usize, to: usize, rng: &mut ChaCha8Rng) -> Vec<u64> {
        let lost = !self.open[from * self.count + to] || self.link.loss > 0.0 && rng.random_bool(self.link.loss);
        if lost {
            return Vec::new();
        }
        let copies = if self.link.duplication > 0.0 && rng.random_bool(self.link.duplication) { 2 } else { 1 };
        (0..copies)
            .map(|_| {
                let delay = self.link.min_delay + rng.random_range(0..=self.link.spread);
                if rng.random_range(0..16) == 0 { delay * 4 } else { delay }
            })
            .collect()
    }
}
