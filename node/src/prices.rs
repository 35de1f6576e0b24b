//! Prices as they move: what this node asks by its load, and what others asked a moment ago.
//!
//! A price takes a heartbeat to reach whoever orders, so one that was asked a moment ago still holds: a worker takes an
//! order at the lowest price of the last [`GRACE`], and a payer accepts one at the highest that the worker asked while
//! the job may have been ordered ([`REMEMBERED`]). Else jobs would fail, and work be unpaid, by a race.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use consortium_ledger::ledger::LedgerError;
use consortium_ledger::price::{self, Prices};
use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::cluster::{ClusterView, LocalFacts};
use crate::config::{MAX_MASTER_FEE, MAX_PRICE};
use crate::shards::Shards;

/// How long a price holds after this node began to ask another.
pub const GRACE: Duration = Duration::from_secs(30);
/// How long it is remembered what others asked: longer than a job and the way of its receipts take.
pub const REMEMBERED: Duration = Duration::from_secs(1800);
/// The load is looked at this often.
const LOOK: Duration = Duration::from_millis(500);
/// Prices that are remembered of one node.
const MAX_PAST: usize = 128;

/// A price, and those before it.
#[derive(Debug)]
struct Asked {
    now: Msat,
    /// With the time when it ended.
    past: VecDeque<(Instant, Msat)>,
}

impl Asked {
    fn new(now: Msat) -> Self {
        Self { now, past: VecDeque::new() }
    }

    /// Takes a price that is asked at `at`, and forgets what ended longer ago than `keep`.
    fn note(&mut self, price: Msat, at: Instant, keep: Duration) {
        if price != self.now {
            self.past.push_back((at, self.now));
            self.now = price;
        }
        while self.past.front().is_some_and(|(ended, _)| at.duration_since(*ended) > keep) || self.past.len() > MAX_PAST
        {
            self.past.pop_front();
        }
    }

    /// What was asked within `span` before `at`.
    fn within(&self, at: Instant, span: Duration) -> impl Iterator<Item = Msat> {
        let past = self.past.iter().filter(move |(ended, _)| at.duration_since(*ended) <= span);
        past.map(|(_, price)| *price).chain([self.now])
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What this node asks for a token through a layer. A clone is the same.
#[derive(Clone, Debug)]
pub struct Asking {
    prices: Prices,
    full_load: u32,
    asked: Arc<Mutex<Asked>>,
}

impl Asking {
    /// Asks by the load, of which 1000 thousandths are `full_load` jobs in progress.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`].
    pub fn new(prices: Prices, full_load: u32) -> Result<Self, LedgerError> {
        // A price that can be counted under the highest load can be under any.
        prices.at(u32::MAX)?;
        Ok(Self { prices, full_load, asked: Arc::new(Mutex::new(Asked::new(prices.at(0)?))) })
    }

    /// Asks the same whatever the load.
    #[must_use]
    pub fn fixed(price: Msat) -> Self {
        let prices = Prices { base: price, max_load: 0 };
        Self { prices, full_load: 0, asked: Arc::new(Mutex::new(Asked::new(price))) }
    }

    /// What it asks now.
    #[must_use]
    pub fn now(&self) -> Msat {
        lock(&self.asked).now
    }

    /// Whether an order that pays so much is taken at `at`.
    #[must_use]
    pub fn accepts(&self, paid: Msat, at: Instant) -> bool {
        lock(&self.asked).within(at, GRACE).any(|price| paid >= price)
    }

    /// Sets the price by the jobs in progress at `at`; returns it.
    pub fn look(&self, active: u32, at: Instant) -> Msat {
        let mut asked = lock(&self.asked);
        let price = self.prices.at(price::load(active, self.full_load)).unwrap_or(asked.now);
        asked.note(price, at, GRACE);
        price
    }

    /// Sets the price by the load and tells the cluster, until `stop`.
    pub async fn follow(self, shards: Shards, facts: watch::Sender<LocalFacts>, stop: CancellationToken) {
        let mut every = tokio::time::interval(LOOK);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = every.tick() => {}
            }
            let price = self.look(shards.sessions(), Instant::now());
            facts.send_if_modified(|facts| std::mem::replace(&mut facts.price, price) != price);
        }
    }
}

/// What the members of the cluster asked of late. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Advertised(Arc<Mutex<BTreeMap<NodeId, Member>>>);

/// What one member asked.
#[derive(Debug)]
struct Member {
    seen: Instant,
    /// For a token through a layer.
    price: Asked,
    /// As a master, for a position.
    fee: Asked,
}

impl Advertised {
    /// Takes what a member asks at `at`, for a token through a layer and as a master.
    fn note(&self, node: NodeId, price: Msat, fee: Msat, at: Instant) {
        // So much nobody is paid.
        let price = if price <= MAX_PRICE { price } else { Msat::ZERO };
        let fee = if fee <= MAX_MASTER_FEE { fee } else { Msat::ZERO };
        let mut members = lock(&self.0);
        let new = || Member { seen: at, price: Asked::new(price), fee: Asked::new(fee) };
        let member = members.entry(node).or_insert_with(new);
        member.seen = at;
        member.price.note(price, at, REMEMBERED);
        member.fee.note(fee, at, REMEMBERED);
    }

    /// Forgets who was no member for long.
    fn tidy(&self, at: Instant) {
        lock(&self.0).retain(|_, member| at.duration_since(member.seen) <= REMEMBERED);
    }

    /// The most that a node asked of late for a token through a layer; a node that was no member asks nothing.
    #[must_use]
    pub fn highest(&self, node: &NodeId, at: Instant) -> Msat {
        self.highest_of(node, |member| &member.price, at)
    }

    /// The most that a node asked of late as a master, for a position.
    #[must_use]
    pub fn highest_fee(&self, node: &NodeId, at: Instant) -> Msat {
        self.highest_of(node, |member| &member.fee, at)
    }

    fn highest_of(&self, node: &NodeId, asked: impl Fn(&Member) -> &Asked, at: Instant) -> Msat {
        let members = lock(&self.0);
        members.get(node).and_then(|member| asked(member).within(at, REMEMBERED).max()).unwrap_or(Msat::ZERO)
    }

    /// Listens to the cluster until it ends or `stop`.
    pub async fn listen(self, mut view: watch::Receiver<ClusterView>, stop: CancellationToken) {
        loop {
            let at = Instant::now();
            for (node, member) in &view.borrow_and_update().members {
                self.note(*node, member.heartbeat.price_per_layer_token, member.heartbeat.master_fee, at);
            }
            self.tidy(at);
            tokio::select! {
                () = stop.cancelled() => return,
                changed = view.changed() => if changed.is_err() { return },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use consortium_protocol::identity::RootKey;

    use super::*;

    #[test]
    fn a_price_holds_for_a_moment_after_it_rose() {
        let asking = Asking::new(Prices { base: Msat(10), max_load: 2000 }, 4).unwrap();
        let start = Instant::now();
        assert_eq!((asking.look(0, start), asking.look(2, start), asking.now()), (Msat(10), Msat(15), Msat(15)));
        assert!(asking.accepts(Msat(10), start + GRACE) && !asking.accepts(Msat(9), start + GRACE));
        let later = start + GRACE + Duration::from_secs(1);
        assert!(!asking.accepts(Msat(14), later) && asking.accepts(Msat(15), later));
        assert_eq!(asking.look(100, later), Msat(30), "no more than at the highest load");
        assert_eq!(asking.look(0, later), Msat(10));
        assert!(asking.accepts(Msat(10), later), "a lower price holds at once");
        assert!(Asking::new(Prices { base: Msat(u64::MAX), max_load: 1000 }, 1).is_err());
        let fixed = Asking::fixed(Msat(7));
        assert_eq!((fixed.look(1000, start), fixed.accepts(Msat(6), start)), (Msat(7), false));
    }

    #[test]
    fn a_payer_remembers_what_was_asked_when_it_ordered() {
        let advertised = Advertised::default();
        let (node, start) = (RootKey::from_seed([1; 32]).node_id(), Instant::now());
        assert_eq!(advertised.highest(&node, start), Msat::ZERO);
        for (after, price) in [(0, 5), (1, 20), (2, 5)] {
            advertised.note(node, Msat(price), Msat(2 * price), start + Duration::from_secs(after));
        }
        assert_eq!(advertised.highest(&node, start + REMEMBERED), Msat(20));
        assert_eq!(advertised.highest_fee(&node, start + REMEMBERED), Msat(40));
        assert_eq!(advertised.highest(&node, start + REMEMBERED + Duration::from_secs(3)), Msat(5));
        advertised.tidy(start + REMEMBERED + Duration::from_secs(3));
        assert_eq!(advertised.highest(&node, start), Msat::ZERO, "no member any more");
        for n in 0..1000 {
            advertised.note(node, Msat(n), Msat::ZERO, start);
        }
        assert!(lock(&advertised.0)[&node].price.past.len() <= MAX_PAST);
    }
}
