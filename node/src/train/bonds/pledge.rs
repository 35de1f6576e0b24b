//! A peer's part: which validator it asks to hold its bond, and how its bonds are doing.

use std::collections::BTreeSet;

use consortium_ledger::escrow::{Escrow, State};
use consortium_protocol::{Msat, NodeId};

use crate::train::view::{BondState, BondView};

/// A validator with which nothing is locked within this time is left for the next, in milliseconds.
const PATIENCE: u64 = 60 * 1000;
/// So is one that holds a bond, and gives no word for it.
const LONG_PATIENCE: u64 = 5 * 60 * 1000;
/// Bonds of one run that may be under way or locked at a time: one, and one more if its validator is gone.
const MOST: usize = 2;
/// Pause after a bond that could not be locked, in milliseconds: doubles with each, up to an hour.
const PAUSE: u64 = 30 * 1000;
const MOST_DOUBLINGS: u32 = 7;

/// A bond of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) validator: NodeId,
    how: How,
    amount: Msat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Nothing is locked yet.
    UnderWay,
    /// It is locked up to this height.
    Locked(u32),
    /// It could not be locked, or went back without a word of its validator.
    Failed,
    Returned,
    Taken,
}

impl Own {
    pub(super) fn of(escrow: &Escrow) -> Self {
        let terms = escrow.terms();
        let judged = escrow.verdict().is_some();
        let how = match escrow.tranches().first().map(|tranche| tranche.state) {
            Some(State::Settled) => How::Taken,
            Some(State::Held { deadline } | State::Settling { deadline }) => How::Locked(deadline),
            Some(State::Created | State::Cancelling) => How::UnderWay,
            Some(State::Cancelled) if judged => How::Returned,
            Some(State::Expired) => How::Returned,
            Some(State::Cancelled) | None => How::Failed,
        };
        Self { validator: terms.signer(), how, amount: terms.payload().total().unwrap_or(Msat::ZERO) }
    }

    fn is_open(&self) -> bool {
        matches!(self.how, How::UnderWay | How::Locked(_))
    }

    pub(super) fn is_locked_with(&self, validator: NodeId) -> bool {
        self.is_locked() && self.validator == validator
    }

    fn is_locked(&self) -> bool {
        matches!(self.how, How::Locked(_))
    }
}

/// Whether this node forfeited a bond.
pub(super) fn is_forfeited(own: &[Own]) -> bool {
    own.iter().any(|bond| bond.how == How::Taken)
}

/// Whether one more may be offered: only one is on its way at a time, but for a validator that is gone.
pub(super) fn may_expect(own: &[Own], validator: NodeId) -> bool {
    let mut open = own.iter().filter(|bond| bond.is_open());
    open.clone().count() < MOST && open.all(|bond| bond.validator != validator)
}

/// How this node's bonds are doing, in one: of those that are open, or else of the last.
pub(super) fn view(own: &[Own], wanted: Option<Msat>, why: Option<&str>) -> Option<BondView> {
    let first = |holds: fn(&Own) -> bool| own.iter().find(|bond| holds(bond));
    let last = || own.iter().rev().find(|bond| bond.how == How::Returned);
    let shown = first(|bond| bond.how == How::Taken).or_else(|| first(Own::is_locked));
    let (state, bond) = match (shown, wanted) {
        (Some(bond), _) if bond.is_locked() => (BondState::Held, Some(bond)),
        (Some(bond), _) => (BondState::Forfeited, Some(bond)),
        (None, Some(_)) => (BondState::Wanted, first(Own::is_open)),
        (None, None) => (BondState::Returned, Some(last()?)),
    };
    let deadline = bond.and_then(|bond| match bond.how {
        How::Locked(deadline) => Some(deadline),
        _ => None,
    });
    Some(BondView {
        state,
        msat: bond.map(|bond| bond.amount).or(wanted)?.0,
        validator: bond.map(|bond| bond.validator),
        deadline,
        why: why.map(str::to_owned),
    })
}

/// Looks for a validator that holds a bond.
#[derive(Debug, Default)]
pub(super) struct Search {
    turn: usize,
    /// Who is asked, and since when it gave no word.
    asked: Option<(NodeId, u64)>,
    /// Validators that hold a bond and give no word for it.
    lost: BTreeSet<NodeId>,
    failed: usize,
    rests_until: u64,
}

impl Search {
    /// Whom `me` is to ask at a time; none to wait.
    pub(super) fn next(&mut self, validators: &[NodeId], me: NodeId, own: &[Own], now_ms: u64) -> Option<NodeId> {
        if self.rests(own, now_ms) {
            return None;
        }
        let chosen = self.choose(validators, me, own)?;
        let Some((_, since)) = self.asked.filter(|(asked, _)| *asked == chosen) else {
            self.asked = Some((chosen, now_ms));
            return Some(chosen);
        };
        let locked = own.iter().any(|bond| bond.is_locked_with(chosen));
        if now_ms.saturating_sub(since) < if locked { LONG_PATIENCE } else { PATIENCE } {
            return Some(chosen);
        }
        self.pass(locked);
        let chosen = self.choose(validators, me, own)?;
        self.asked = Some((chosen, now_ms));
        Some(chosen)
    }

    /// The one that is asked has given its word.
    pub(super) fn heard(&mut self, from: NodeId, now_ms: u64) {
        self.lost.remove(&from);
        self.asked = Some((from, now_ms));
    }

    /// The one that is asked holds nothing, and would not, or cannot be reached.
    pub(super) fn refused(&mut self, own: &[Own]) {
        let Some((asked, _)) = self.asked else { return };
        if own.iter().all(|bond| !bond.is_open() || bond.validator != asked) {
            self.pass(false);
        }
    }

    fn pass(&mut self, locked: bool) {
        if let Some((asked, _)) = self.asked.take()
            && locked
        {
            self.lost.insert(asked);
        }
        self.turn += 1;
    }

    fn choose(&self, validators: &[NodeId], me: NodeId, own: &[Own]) -> Option<NodeId> {
        let holds = |bond: &&Own| {
            bond.is_locked() && validators.contains(&bond.validator) && !self.lost.contains(&bond.validator)
        };
        if let Some(bond) = own.iter().find(holds) {
            return Some(bond.validator);
        }
        let open = own.iter().filter(|bond| bond.is_open()).count();
        let others: Vec<NodeId> =
            validators.iter().copied().filter(|node| open < MOST || is_with(own, *node)).collect();
        let place = (usize::from(me.as_bytes()[0]) + self.turn).checked_rem(others.len())?;
        others.get(place).copied()
    }

    /// Whether it is to wait, after a bond that could not be locked.
    fn rests(&mut self, own: &[Own], now_ms: u64) -> bool {
        let failed = own.iter().filter(|bond| bond.how == How::Failed).count();
        if failed > self.failed {
            self.failed = failed;
            let doublings = u32::try_from(failed - 1).unwrap_or(u32::MAX).min(MOST_DOUBLINGS);
            self.rests_until = now_ms.saturating_add(PAUSE << doublings);
        } else if failed < self.failed {
            // It was given back after all, as its validator now says.
            (self.failed, self.rests_until) = (failed, 0);
        }
        now_ms < self.rests_until
    }
}

/// Whether a bond is on its way to a validator, or locked with it.
fn is_with(own: &[Own], validator: NodeId) -> bool {
    own.iter().any(|bond| bond.is_open() && bond.validator == validator)
}

#[cfg(test)]
mod tests {
    use consortium_protocol::RootKey;

    use super::*;

    const AMOUNT: Msat = Msat(5_000_000);

    fn id(n: u8) -> NodeId {
        RootKey::from_seed([n; 32]).node_id()
    }

    fn bond(n: u8, how: How) -> Own {
        Own { validator: id(n), how, amount: AMOUNT }
    }

    /// Asked by one whose name has the first of three validators begin.
    fn ask(search: &mut Search, own: &[Own], now_ms: u64) -> Option<NodeId> {
        let me = NodeId::from_bytes([0; 32]);
        search.next(&[1, 2, 3].map(id), me, own, now_ms)
    }

    #[test]
    fn validators_are_asked_in_turn_until_one_holds_the_bond() {
        let mut search = Search::default();
        assert_eq!([0, PATIENCE - 1].map(|at| ask(&mut search, &[], at)), [Some(id(1)); 2]);
        search.refused(&[]);
        assert_eq!(ask(&mut search, &[], PATIENCE), Some(id(2)));
        // It offers, and no invoice comes: the next one may.
        let open = [bond(2, How::UnderWay)];
        search.refused(&open);
        assert_eq!([1, 2 * PATIENCE - 1].map(|at| ask(&mut search, &open, at)), [Some(id(2)); 2], "it has something");
        assert!(!may_expect(&open, id(2)) && may_expect(&open, id(3)));
        assert_eq!(ask(&mut search, &open, 2 * PATIENCE), Some(id(3)));
        let both = [open[0], bond(3, How::Locked(9))];
        assert!(!may_expect(&both, id(1)), "no third");
        assert_eq!(ask(&mut search, &both, 3 * PATIENCE), Some(id(3)));
    }

    #[test]
    fn one_that_holds_a_bond_and_is_gone_is_left_after_a_while_for_one_other() {
        let mut search = Search::default();
        let held = [bond(2, How::Locked(9))];
        assert_eq!(ask(&mut search, &held, 0), Some(id(2)), "whoever's turn it is");
        search.refused(&held);
        assert_eq!(ask(&mut search, &held, LONG_PATIENCE - 1), Some(id(2)));
        search.heard(id(2), LONG_PATIENCE - 1);
        assert_eq!(ask(&mut search, &held, LONG_PATIENCE), Some(id(2)), "it was there meanwhile");
        assert_ne!(ask(&mut search, &held, 2 * LONG_PATIENCE), None);
        let two = [held[0], bond(3, How::Locked(9))];
        assert_eq!(ask(&mut search, &two, 2 * LONG_PATIENCE + 1), Some(id(3)));
        for n in 1..20 {
            let asked = ask(&mut search, &two, (2 + n) * LONG_PATIENCE + 1);
            assert!(asked == Some(id(2)) || asked == Some(id(3)), "no third: {asked:?}");
        }
    }

    #[test]
    fn what_could_not_be_locked_is_tried_again_ever_later() {
        let mut search = Search::default();
        let failed = |count: usize| vec![bond(1, How::Failed); count];
        assert_eq!([ask(&mut search, &failed(1), 0), ask(&mut search, &failed(1), PAUSE - 1)], [None; 2]);
        assert!(ask(&mut search, &failed(1), PAUSE).is_some());
        assert_eq!(ask(&mut search, &failed(2), PAUSE), None);
        assert_eq!(ask(&mut search, &failed(2), 3 * PAUSE - 1), None);
        assert!(ask(&mut search, &failed(2), 3 * PAUSE).is_some());
        assert_eq!(ask(&mut search, &failed(60), 4 * PAUSE), None);
        assert!(ask(&mut search, &failed(60), 4 * PAUSE + 3_840_000).is_some(), "about an hour");
        assert_eq!(ask(&mut search, &failed(61), 200 * PAUSE), None);
        assert!(ask(&mut search, &vec![bond(1, How::Returned); 61], 200 * PAUSE).is_some(), "they came back after all");
    }

    #[test]
    fn a_status_tells_of_the_bond_that_matters() {
        let told = |own: &[Own], wanted| view(own, wanted, None).map(|view| (view.state, view.msat, view.deadline));
        let (returned, locked, taken) = (bond(1, How::Returned), bond(2, How::Locked(7)), bond(3, How::Taken));
        assert_eq!(told(&[], None), None);
        assert_eq!(told(&[], Some(AMOUNT)), Some((BondState::Wanted, AMOUNT.0, None)));
        assert_eq!(told(&[bond(1, How::Failed)], None), None);
        assert_eq!(told(&[returned], None), Some((BondState::Returned, AMOUNT.0, None)));
        assert_eq!(told(&[returned, locked], None), Some((BondState::Held, AMOUNT.0, Some(7))));
        assert_eq!(told(&[returned, taken, locked], Some(AMOUNT)), Some((BondState::Forfeited, AMOUNT.0, None)));
        assert!(is_forfeited(&[returned, taken]) && !is_forfeited(&[returned, locked]));
        let waits = view(&[], Some(AMOUNT), Some("nobody answers")).unwrap();
        assert_eq!((waits.validator, waits.why.as_deref()), (None, Some("nobody answers")));
    }
}
