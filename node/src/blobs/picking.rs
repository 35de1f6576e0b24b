//! Which part of a file to ask a donor for.
//!
//! Of the parts that a donor has, the one that the fewest others have (Cohen, "Incentives Build Robustness in BitTorrent",
//! 2003): so nodes that fetch the same file come to hold different parts, and give each other what its source has sent once.

use std::time::Duration;

use consortium_protocol::wire::blob::Held;
use tokio::time::Instant;

/// A part that has not come for so long, and for so many times as long as parts take, is asked of another too, if nothing else
/// is wanted of that.
const SLOW: (Duration, u32) = (Duration::from_secs(5), 4);

/// What a donor has of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stock {
    /// All of it.
    Whole,
    /// These parts, and more as they come.
    Some(Held),
}

impl Stock {
    fn has(&self, part: usize) -> bool {
        match self {
            Self::Whole => true,
            Self::Some(held) => held.has(part as u64),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Missing,
    /// When it was last.
    Asked(Instant),
    Here,
}

/// The parts of a file that is being fetched.
#[derive(Debug)]
pub(super) struct Picking {
    states: Vec<State>,
    /// Donors that have each part, but for those that have all.
    holders: Vec<u32>,
    left: usize,
    /// How long parts take, lately.
    usual: Duration,
}

impl Picking {
    /// For each part, whether it is here.
    pub(super) fn new(here: &[bool]) -> Self {
        let states: Vec<State> = here.iter().map(|here| if *here { State::Here } else { State::Missing }).collect();
        let left = here.iter().filter(|here| !**here).count();
        Self { holders: vec![0; states.len()], states, left, usual: Duration::ZERO }
    }

    /// Parts that are not here.
    pub(super) fn left(&self) -> u64 {
        self.left as u64
    }

    /// Whether there is a part to ask a donor for now, as [`Self::take`] would choose.
    pub(super) fn wants(&self, stock: &Stock, is_stranger: bool, now: Instant) -> bool {
        self.choose(stock, is_stranger, 0, now).is_some()
    }

    /// The part to ask a donor for now, which is then noted as asked for: of the rarest that it has the first from `start` on,
    /// which is best drawn at random. If it has none that is missing, one for which another takes long, unless it is a
    /// `stranger`, which has given nothing yet: who says nothing is to keep no part from others.
    pub(super) fn take(&mut self, stock: &Stock, is_stranger: bool, start: u64, now: Instant) -> Option<u64> {
        let part = self.choose(stock, is_stranger, start, now)?;
        self.states[part] = State::Asked(now);
        Some(part as u64)
    }

    fn choose(&self, stock: &Stock, is_stranger: bool, start: u64, now: Instant) -> Option<usize> {
        let count = self.states.len();
        let start = usize::try_from(start % count.max(1) as u64).ok()?;
        let from_start = || (start..count).chain(0..start).filter(|part| stock.has(*part));
        let missing = from_start().filter(|part| self.states[*part] == State::Missing);
        let patience = SLOW.0.max(self.usual * SLOW.1);
        let is_slow = |part: &usize| matches!(self.states[*part], State::Asked(since) if now >= since + patience);
        let slow = || from_start().find(is_slow).filter(|_| !is_stranger);
        missing.min_by_key(|part| self.holders[*part]).or_else(slow)
    }

    /// A part has not come, and is to be asked for again.
    pub(super) fn give_back(&mut self, part: u64) {
        if let Some(state) = self.state(part).filter(|state| **state != State::Here) {
            *state = State::Missing;
        }
    }

    /// A part has come, so long after it was asked for.
    pub(super) fn came(&mut self, part: u64, after: Duration) {
        self.usual = (7 * self.usual + after) / 8;
        if let Some(state) = self.state(part).filter(|state| **state != State::Here) {
            *state = State::Here;
            self.left -= 1;
        }
    }

    /// What a donor has is now this; none before it is known and after it is gone.
    pub(super) fn learn(&mut self, before: Option<&Stock>, after: Option<&Stock>) {
        let has = |stock: Option<&Stock>, part| stock.is_some_and(|stock| *stock != Stock::Whole && stock.has(part));
        for (part, holders) in self.holders.iter_mut().enumerate() {
            *holders = (*holders + u32::from(has(after, part))).saturating_sub(u32::from(has(before, part)));
        }
    }

    fn state(&mut self, part: u64) -> Option<&mut State> {
        self.states.get_mut(usize::try_from(part).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use consortium_protocol::wire::blob::PART_BYTES;

    use super::*;

    fn some(of: u64, parts: &[u64]) -> Stock {
        let mut held = Held::none(of * PART_BYTES);
        parts.iter().for_each(|part| held.set(*part, true));
        Stock::Some(held)
    }

    #[test]
    fn the_rarest_part_is_asked_for_first() {
        let now = Instant::now();
        let mut picking = Picking::new(&[false, false, false, true]);
        let (one, two) = (some(4, &[0, 1, 3]), some(4, &[0]));
        picking.learn(None, Some(&one));
        picking.learn(None, Some(&two));
        picking.learn(None, Some(&Stock::Whole));
        assert_eq!(picking.take(&Stock::Whole, true, 0, now), Some(2), "nobody else has it");
        assert_eq!(picking.take(&one, true, 0, now), Some(1));
        assert_eq!((picking.take(&one, true, 3, now), picking.take(&two, true, 0, now)), (Some(0), None));
        assert_eq!(picking.left(), 3);
        [0, 1, 2, 2, 9].into_iter().for_each(|part| picking.came(part, Duration::ZERO));
        assert_eq!((picking.left(), picking.take(&Stock::Whole, false, 0, now + 2 * SLOW.0)), (0, None));
    }

    #[test]
    fn equally_rare_parts_are_asked_for_from_where_one_begins() {
        let now = Instant::now();
        let mut picking = Picking::new(&[false; 5]);
        let asked: Vec<_> = (0..6).map(|_| picking.take(&Stock::Whole, true, 3, now)).collect();
        assert_eq!(asked, [Some(3), Some(4), Some(0), Some(1), Some(2), None]);
        picking.give_back(4);
        assert_eq!(picking.take(&Stock::Whole, true, 7, now), Some(4));
    }

    #[test]
    fn what_is_long_in_coming_is_asked_of_another_that_has_given_something() {
        let (now, mut picking) = (Instant::now(), Picking::new(&[false, true]));
        let slow = SLOW.0;
        assert_eq!(picking.take(&Stock::Whole, false, 0, now), Some(0));
        assert_eq!(picking.take(&Stock::Whole, false, 0, now + slow / 2), None);
        assert_eq!(picking.take(&some(2, &[1]), false, 0, now + slow), None, "it has it not");
        assert_eq!(picking.take(&Stock::Whole, true, 0, now + slow), None, "a stranger");
        assert_eq!(picking.take(&Stock::Whole, false, 0, now + slow), Some(0));
        assert_eq!(picking.take(&Stock::Whole, false, 0, now + slow * 3 / 2), None);
        assert_eq!(picking.take(&Stock::Whole, false, 0, now + 2 * slow), Some(0));
        // One gives it, and then another fails.
        picking.came(0, Duration::ZERO);
        picking.give_back(0);
        assert_eq!((picking.left(), picking.take(&Stock::Whole, false, 0, now + 9 * slow)), (0, None));
    }

    #[test]
    fn where_all_is_slow_nothing_is_asked_for_twice_too_soon() {
        let (now, mut picking) = (Instant::now(), Picking::new(&[false; 2]));
        (0..40).for_each(|_| picking.came(1, Duration::from_secs(20)));
        assert_eq!(picking.take(&Stock::Whole, false, 0, now), Some(0));
        assert_eq!(picking.take(&Stock::Whole, false, 0, now + Duration::from_secs(60)), None);
        assert_eq!(picking.take(&Stock::Whole, false, 0, now + Duration::from_secs(80)), Some(0));
    }

    #[test]
    fn a_donor_that_is_gone_counts_no_more() {
        let (now, mut picking) = (Instant::now(), Picking::new(&[false; 2]));
        let (before, after) = (some(2, &[0]), some(2, &[0, 1]));
        picking.learn(None, Some(&before));
        picking.learn(Some(&before), Some(&after));
        picking.learn(Some(&after), None);
        picking.learn(None, Some(&some(2, &[1])));
        assert_eq!(picking.take(&Stock::Whole, true, 1, now), Some(0), "the second is the one that another has");
    }
}
