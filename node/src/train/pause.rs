//! Whether a peer trains: what rounds pay, against what its power costs.
//!
//! A peer with [`Terms`] stops training when its own last rounds together paid less than their power cost, and goes on
//! following the run. It comes back when those that train are paid what would cover its cost. All is counted from certain
//! records: after the net of pay and fees, the length of rounds, and the power that was given or measured.
//!
//! # What counts
//! - *Eight rounds at a time* ([`WINDOW`]). One tells little: its pay hangs on a single draw of held-out batches, and one
//!   update that is refused or late costs all of it.
//! - *Not its first twenty* ([`WARM_UP`]). Pay is in proportion to the peer's reliability, which begins at 0 and is two
//!   thirds of what it will be only by then: what a newcomer is paid does not tell what it will be.
//! - *A round is as long as its deadlines allow, at most.* A lead says when its record was made, and might say anything; and
//!   while a run stands still nobody computes.
//!
//! # Coming back
//! What others are paid does not tell for certain what this peer would be: so it stays away for eight rounds at least, and
//! twice as long each time that it came back for nothing. If nobody else trained there is nothing to compare with, and it tries.

use std::time::Duration;

use consortium_protocol::{Msat, NodeId};
use serde::{Deserialize, Serialize};

use super::view::{PeerLine, RoundLine};

/// Rounds that are weighed together.
pub const WINDOW: usize = 8;
/// First rounds of a peer's own that are not weighed.
pub const WARM_UP: usize = 20;
/// Least rounds of a first pause.
const SHORTEST: u64 = 8;
/// Most rounds that a pause must take.
const LONGEST: u64 = 512;
/// A kilowatt-hour, in milliwatts times milliseconds.
const KILOWATT_HOUR: u128 = 1_000_000 * HOUR_MS;
const HOUR_MS: u128 = 3_600_000;

/// On what terms a peer trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// What a kilowatt-hour costs.
    pub kwh_msat: Msat,
    /// What the machine takes while it trains, in milliwatts. If not given it is measured for a second of the local steps of
    /// every round that has so many: without any nothing is weighed.
    #[serde(default)]
    pub milliwatts: Option<u64>,
}

/// What rounds paid, against what their power cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balance {
    /// How many rounds.
    pub rounds: u64,
    /// How long they took, in milliseconds.
    pub millis: u64,
    /// What they paid less fees, or would have paid, in millisatoshi.
    pub pay_msat: i64,
    /// What their power cost, or would have cost, in millisatoshi, rounded up.
    pub cost_msat: i64,
}

/// How a peer with terms stands. Kept with the run: a restart changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standing {
    /// Its terms.
    pub terms: Terms,
    /// What was measured, in milliwatts: a mean in which the newest rounds weigh most; none before.
    pub measured: Option<u64>,
    /// Whether it pauses.
    pub paused: bool,
    /// The round after which it paused, or came back; 0 before.
    pub since: u64,
    /// Rounds that this pause, or the next, takes at least.
    pub stay: u64,
    /// What was weighed when it paused or came back.
    pub reason: Option<Balance>,
    /// What was weighed last: its own rounds, or what those of others would have been for it.
    pub newest: Option<Balance>,
}

/// What a peer turns to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It stops training.
    Pause,
    /// It trains again.
    Return,
}

/// The rounds that are weighed.
#[derive(Clone, Copy, Debug)]
pub struct Rounds<'a> {
    /// The newest, the oldest first.
    pub lines: &'a [RoundLine],
    /// Whose pay is looked at.
    pub me: NodeId,
    /// Most that all peers together get for a round.
    pub budget: Msat,
    /// As long as a round may take by its deadlines.
    pub longest: Duration,
}

impl Balance {
    /// Pay and cost of an hour, in millisatoshi.
    #[must_use]
    pub fn per_hour(&self) -> (i128, i128) {
        let hour = |msat: i64| i128::from(msat) * HOUR_MS as i128 / i128::from(self.millis.max(1));
        (hour(self.pay_msat), hour(self.cost_msat))
    }

    fn covers(&self) -> bool {
        self.pay_msat >= self.cost_msat
    }

    /// Of rounds by length and pay.
    fn of(rounds: &[(Duration, i128)], milliwatts: u64, kwh: Msat) -> Self {
        let millis = rounds.iter().map(|(time, _)| time.as_millis()).sum::<u128>();
        let worth = u128::from(milliwatts).saturating_mul(u128::from(kwh.0)).saturating_mul(millis);
        let pay = rounds.iter().map(|(_, pay)| pay).sum::<i128>();
        let most = i64::MAX;
        Self {
            rounds: rounds.len() as u64,
            millis: u64::try_from(millis).unwrap_or(u64::MAX),
            pay_msat: i64::try_from(pay).unwrap_or(if pay < 0 { -most } else { most }),
            cost_msat: i64::try_from(worth.div_ceil(KILOWATT_HOUR)).unwrap_or(most),
        }
    }
}

impl Standing {
    /// Of a peer that trains, and has not been weighed.
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        let (measured, reason, newest) = (None, None, None);
        Self { terms, measured, paused: false, since: 0, stay: SHORTEST, reason, newest }
    }

    /// What the machine takes, in milliwatts, if that is known.
    #[must_use]
    pub fn milliwatts(&self) -> Option<u64> {
        self.terms.milliwatts.or(self.measured)
    }

    /// Takes in what was measured while it trained, in milliwatts.
    pub fn measure(&mut self, milliwatts: u64) {
        let mean = |before: u64| before - before / 4 + milliwatts / 4;
        self.measured = Some(self.measured.map_or(milliwatts, mean));
    }

    /// Weighs the newest rounds; tells what the peer turns to, if it does.
    pub fn weigh(&mut self, rounds: &Rounds<'_>) -> Option<Turn> {
        let (milliwatts, last) = (self.milliwatts()?, rounds.lines.last()?.round);
        let weighed = if self.paused { rounds.others(self.since) } else { rounds.own(self.since) };
        let balance = Balance::of(&weighed, milliwatts, self.terms.kwh_msat);
        self.newest = Some(balance);
        match self.paused {
            false if weighed.len() < WINDOW => None,
            false if balance.covers() => {
                self.stay = SHORTEST;
                None
            }
            false => Some(self.turn(Turn::Pause, last, balance)),
            true if last.saturating_sub(self.since) < self.stay => None,
            true if balance.rounds > 0 && !balance.covers() => None,
            true => {
                self.stay = self.stay.saturating_mul(2).min(LONGEST);
                Some(self.turn(Turn::Return, last, balance))
            }
        }
    }

    fn turn(&mut self, turn: Turn, round: u64, reason: Balance) -> Turn {
        (self.paused, self.since, self.reason) = (turn == Turn::Pause, round, Some(reason));
        turn
    }
}

impl Rounds<'_> {
    /// The peer's own after round `since`, the newest, without those in which it warmed up.
    fn own(&self, since: u64) -> Vec<(Duration, i128)> {
        let own = self.lines.iter().filter_map(|line| Some((line, line.peers.iter().find(|p| p.node == self.me)?)));
        let counted = own.skip(WARM_UP).filter(|(line, _)| line.round > since);
        newest(counted.map(|(line, peer)| (self.length(line), net(peer))).collect())
    }

    /// Those after round `since` in which others trained, the newest, by what the peer would have been paid in them.
    fn others(&self, since: u64) -> Vec<(Duration, i128)> {
        let trained = |line: &&RoundLine| line.round > since && line.peers.iter().any(|peer| peer.node != self.me);
        let all = self.lines.iter().filter(trained);
        newest(all.map(|line| (self.length(line), self.would_pay(line))).collect())
    }

    fn length(&self, line: &RoundLine) -> Duration {
        Duration::try_from_secs_f64(line.seconds).unwrap_or(self.longest).min(self.longest)
    }

    /// What one as good as the middle one of the accepted would have been paid besides them: where the budget is used up
    /// all get less for it.
    fn would_pay(&self, line: &RoundLine) -> i128 {
        let others = line.peers.iter().filter(|peer| peer.node != self.me && peer.fate == "accepted");
        let mut paid: Vec<i128> = others.map(|peer| i128::from(peer.pay_msat)).collect();
        paid.sort_unstable();
        let Some(middle) = paid.get(paid.len().saturating_sub(1) / 2).copied() else { return 0 };
        let (all, budget) = (paid.iter().sum::<i128>() + middle, i128::from(self.budget.0));
        if all > budget { middle * budget / all } else { middle }
    }
}

/// What a peer came out of a round with, in millisatoshi.
fn net(peer: &PeerLine) -> i128 {
    i128::from(peer.pay_msat) - i128::from(peer.fee_msat)
}

fn newest(mut rounds: Vec<(Duration, i128)>) -> Vec<(Duration, i128)> {
    rounds.split_off(rounds.len().saturating_sub(WINDOW))
}

#[cfg(test)]
mod tests {
    use consortium_protocol::RootKey;

    use super::*;

    fn id(n: u8) -> NodeId {
        RootKey::from_seed([n; 32]).node_id()
    }

    fn peer(n: u8, pay_msat: u64, fee_msat: u64) -> PeerLine {
        let fate = if fee_msat == 0 { "accepted" } else { "harm" }.to_owned();
        PeerLine { node: id(n), score: Some(0.01), rating: 3.0, fate, pay_msat, fee_msat }
    }

    /// Adds rounds of a minute, with the same peers.
    fn add(lines: &mut Vec<RoundLine>, count: u64, peers: &[PeerLine]) {
        for _ in 0..count {
            let round = lines.len() as u64 + 1;
            let at_ms = round * 60_000;
            let peers = peers.to_vec();
            lines.push(RoundLine {
                round,
                at_ms,
                seconds: 60.0,
                held_out_loss: None,
                reverted: false,
                strayed: Vec::new(),
                peers,
            });
        }
    }

    fn rounds(lines: &[RoundLine]) -> Rounds<'_> {
        Rounds { lines, me: id(1), budget: Msat(9000), longest: Duration::from_secs(90) }
    }

    /// 60 W at 1000 sat for a kilowatt-hour: 1000 msat a minute.
    const TERMS: Terms = Terms { kwh_msat: Msat(1_000_000), milliwatts: Some(60_000) };

    /// Turns and the rounds after which they are made, when every round is weighed as it comes.
    fn play(standing: &mut Standing, lines: &[RoundLine]) -> Vec<(u64, Turn)> {
        (1..=lines.len()).filter_map(|n| Some((n as u64, standing.weigh(&rounds(&lines[..n]))?))).collect()
    }

    #[test]
    fn a_peer_that_is_paid_what_its_power_costs_goes_on() {
        let (mut standing, mut lines) = (Standing::new(TERMS), Vec::new());
        add(&mut lines, 60, &[peer(1, 1000, 0), peer(2, 1000, 0)]);
        assert_eq!(play(&mut standing, &lines), []);
        let balance = Balance { rounds: 8, millis: 480_000, pay_msat: 8000, cost_msat: 8000 };
        assert_eq!(standing.newest, Some(balance));
        assert_eq!(balance.per_hour(), (60_000, 60_000));
    }

    #[test]
    fn it_pauses_when_a_window_after_the_warm_up_pays_less() {
        let (mut standing, mut lines) = (Standing::new(TERMS), Vec::new());
        add(&mut lines, 1, &[]);
        add(&mut lines, 60, &[peer(1, 999, 0), peer(2, 1000, 0)]);
        let turned = 1 + (WARM_UP + WINDOW) as u64;
        assert_eq!(play(&mut standing, &lines[..60])[0], (turned, Turn::Pause));
        let mut fees = vec![];
        add(&mut fees, 28, &[peer(1, 0, 2000)]);
        let mut standing = Standing::new(TERMS);
        assert_eq!(play(&mut standing, &fees).len(), 1);
        assert_eq!(standing.reason.map(|by| by.pay_msat), Some(-16_000));
    }

    #[test]
    fn one_unlucky_round_and_a_newcomers_first_ones_do_not_count() {
        let (mut standing, mut lines) = (Standing::new(TERMS), Vec::new());
        add(&mut lines, WARM_UP as u64, &[peer(1, 0, 0)]);
        for _ in 0..3 {
            add(&mut lines, 1, &[peer(1, 0, 2000)]);
            add(&mut lines, 7, &[peer(1, 1500, 0)]);
        }
        assert_eq!(play(&mut standing, &lines), []);
    }

    #[test]
    fn it_comes_back_when_others_are_paid_enough_and_stays_away_longer_each_time() {
        let (mut standing, mut lines) = (Standing::new(TERMS), Vec::new());
        add(&mut lines, 28, &[peer(1, 100, 0), peer(2, 900, 0)]);
        add(&mut lines, 12, &[peer(2, 900, 0)]);
        assert_eq!(play(&mut standing, &lines), [(28, Turn::Pause)], "others are not paid enough either");
        // Now they are: when eight rounds together would have paid it.
        add(&mut lines, 8, &[peer(2, 1200, 0), peer(3, 1100, 0), peer(4, 0, 2000)]);
        let mut standing = Standing::new(TERMS);
        // 900 each for 4 and 1100 for 4 are exactly enough.
        assert_eq!(play(&mut standing, &lines), [(28, Turn::Pause), (44, Turn::Return)]);
        assert_eq!((standing.paused, standing.since, standing.stay), (false, 44, 16));
        // It is not as good as they are.
        lines.truncate(44);
        add(&mut lines, 40, &[peer(1, 100, 0), peer(2, 1200, 0)]);
        let again = [(52, Turn::Pause), (68, Turn::Return), (76, Turn::Pause)];
        let mut standing = Standing::new(TERMS);
        assert_eq!(play(&mut standing, &lines)[2..], again);
        assert_eq!(standing.stay, 32);
        // A window that pays makes good for it.
        lines.truncate(68);
        add(&mut lines, 8, &[peer(1, 1100, 0), peer(2, 1200, 0)]);
        let mut standing = Standing::new(TERMS);
        play(&mut standing, &lines);
        assert_eq!((standing.paused, standing.stay), (false, SHORTEST));
    }

    #[test]
    fn what_a_budget_that_is_used_up_would_leave_for_one_more_is_counted() {
        let mut lines = Vec::new();
        add(&mut lines, 1, &[peer(2, 4500, 0), peer(3, 4500, 0)]);
        add(&mut lines, 1, &[peer(2, 3000, 0), peer(3, 4000, 0), peer(4, 0, 5)]);
        add(&mut lines, 1, &[peer(2, 0, 5), peer(1, 100, 0)]);
        let would: Vec<i128> = lines.iter().map(|line| rounds(&lines).would_pay(line)).collect();
        assert_eq!(would, [3000, 2700, 0]);
    }

    #[test]
    fn it_tries_again_if_nobody_else_trained() {
        let (mut standing, mut lines) = (Standing::new(TERMS), Vec::new());
        add(&mut lines, 28, &[peer(1, 100, 0)]);
        add(&mut lines, 9, &[]);
        assert_eq!(play(&mut standing, &lines), [(28, Turn::Pause), (36, Turn::Return)]);
        assert_eq!(standing.reason.map(|by| by.rounds), Some(0));
    }

    #[test]
    fn a_round_costs_no_more_than_its_deadlines_allow() {
        let mut lines = Vec::new();
        add(&mut lines, 4, &[peer(1, 1200, 0)]);
        (lines[1].seconds, lines[2].seconds, lines[3].seconds) = (1e12, f64::NAN, -1.0);
        let lengths: Vec<u64> = lines.iter().map(|line| rounds(&lines).length(line).as_secs()).collect();
        assert_eq!(lengths, [60, 90, 90, 90]);
    }

    #[test]
    fn without_power_or_with_absurd_prices_nothing_breaks() {
        let mut lines = Vec::new();
        add(&mut lines, 40, &[peer(1, u64::MAX, 0), peer(2, u64::MAX, 0)]);
        let mut standing = Standing::new(Terms { milliwatts: None, ..TERMS });
        assert_eq!(play(&mut standing, &lines), []);
        standing.measure(40_000);
        standing.measure(80_000);
        assert_eq!(standing.milliwatts(), Some(50_000));
        let absurd = Terms { kwh_msat: Msat(u64::MAX), milliwatts: Some(u64::MAX) };
        let mut standing = Standing::new(absurd);
        assert_eq!(play(&mut standing, &lines), [], "the largest numbers are equal");
        let kept = serde_json::to_vec(&standing).unwrap();
        assert_eq!(serde_json::from_slice::<Standing>(&kept).unwrap(), standing);
    }
}
