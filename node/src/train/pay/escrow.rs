//! Payouts by escrow: an escrow for each, offered and judged by one of the run's validators.
//!
//! ```text
//! author, peer   know the payout by the record, and state which escrow they will agree to
//! a validator    offers it: the payout's name is its subject; tranches of 1, 2, 4, 8.. of the run's unit
//! author         locks it for the peer
//! the validator  judges that all units of the payout are earned: the record is certain, and is the evidence
//! peer           takes them; the rest of the tranches goes back
//! ```
//! The validators take turns of [`TURN`], by the wall time of the record, in its order. A validator offers one escrow at a
//! time for a payout, and another one only when that has come to nothing. The peer agrees with whichever validator offers. The
//! author agrees with the one whose turn it is, and with none while it has an escrow for the payout that is not over, or has
//! paid: so nothing is paid twice, whatever clocks, crashes and validators do. The log of escrows remembers all of this;
//! nothing else is written down. If only a part arrived, the rest goes on the tab of the two; and all of it, if no escrow came
//! about in [`OFFERED`].
//!
//! # What is trusted
//! The validator, with what is locked: less than twice the payout. One that gives out more than the record does has signed
//! it; one that gives out less, or nothing, only delays: the rest is on the tab, or another validator's turn comes. The
//! author needs a channel with the peer, as for any escrow for work.

use std::collections::BTreeMap;

use consortium_ledger::escrow::driver::Offer;
use consortium_ledger::escrow::limits::Consent;
use consortium_ledger::escrow::{Escrow, State};
use consortium_protocol::wire::escrow::{DELTA, EscrowFinding, EscrowId, EscrowKind};
use consortium_protocol::{Hash, Msat, NodeId};
use tracing::{error, info};

use super::due::Due;
use crate::escrow::{DeskError, EscrowDesk, Expectation};

/// How long it is one validator's turn, in milliseconds.
const TURN: u64 = 10 * 60 * 1000;
/// The end of a turn in which the author agrees to nothing any more: what it agreed to before is in its log by then.
const CLOSING: u64 = 60 * 1000;
/// Validators offer escrows for a payout for so long after its record, in milliseconds: thirty days.
const OFFERED: u64 = 30 * 24 * 3600 * 1000;
/// A day later nobody, by whatever clock, offers or agrees any more: what is not paid by then goes on the tab.
const GIVEN_UP: u64 = OFFERED + 24 * 3600 * 1000;

/// Makes payouts by escrows.
pub(super) struct Making {
    desk: EscrowDesk,
    /// In which turn it was last stated what will be agreed to.
    stated: BTreeMap<Hash, u64>,
}

/// What an escrow for a payout has come to, as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    id: EscrowId,
    validator: NodeId,
    over: bool,
    /// Whether all of it is locked, and was not judged.
    to_be_judged: bool,
    paid: Msat,
}

/// What is to be done about a payout.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Wait,
    /// It is paid, so much of it by escrow.
    Done(Msat),
    /// To say that escrows of these validators will be agreed to.
    Expect(Vec<NodeId>),
    Offer,
    Judge(EscrowId),
}

impl Seen {
    fn of(escrow: &Escrow) -> Self {
        let tranches = escrow.tranches();
        let settled = tranches.iter().filter(|tranche| tranche.state == State::Settled).map(|tranche| tranche.amount);
        let held = tranches.iter().all(|tranche| matches!(tranche.state, State::Held { .. }));
        Self {
            id: escrow.terms().payload().id,
            validator: escrow.terms().signer(),
            over: escrow.is_final(),
            to_be_judged: held && escrow.verdict().is_none(),
            // Bounded by the terms, which are checked when they are agreed to.
            paid: Msat::sum(settled).unwrap_or(Msat(u64::MAX)),
        }
    }
}

impl Due {
    /// The turn at a time, counted from the record's.
    fn turn(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.at_ms) / TURN
    }

    /// Whose turn it is.
    fn on_turn(&self, now_ms: u64) -> Option<NodeId> {
        let place = self.turn(now_ms).checked_rem(self.judges.len() as u64)?;
        self.judges.get(usize::try_from(place).ok()?).copied()
    }

    /// As what it is escrowed: so many tranches lock the payout's units, and some more to make them up.
    fn kind(&self) -> (EscrowKind, u8) {
        let tranches = u32::BITS - self.owed.units.leading_zeros();
        let kind = if tranches == 1 { EscrowKind::Reward } else { EscrowKind::Tranches };
        (kind, u8::try_from(tranches).unwrap_or(u8::MAX))
    }

    fn unit(&self) -> Msat {
        Msat(self.owed.amount.0 / u64::from(self.owed.units.max(1)))
    }

    fn step(&self, me: NodeId, seen: &[Seen], now_ms: u64) -> Step {
        let paid = Msat::sum(seen.iter().map(|escrow| escrow.paid)).unwrap_or(Msat(u64::MAX));
        let open = seen.iter().find(|escrow| !escrow.over);
        let ended = seen.iter().any(|escrow| escrow.over && escrow.paid > Msat::ZERO);
        let age = now_ms.saturating_sub(self.at_ms);
        let is_party = me == self.owed.peer || me == self.owed.author;
        if is_party && !ended && age >= OFFERED {
            return if open.is_none() && age >= GIVEN_UP { Step::Done(paid) } else { Step::Wait };
        }
        if me == self.owed.peer {
            // Of those that nobody pays some may stay open for long.
            let is_open = |judge: &NodeId| seen.iter().any(|escrow| !escrow.over && escrow.validator == *judge);
            let others = || self.judges.iter().copied().filter(|judge| !is_open(judge)).collect();
            return if ended { Step::Done(paid) } else { Step::Expect(others()) };
        }
        match open {
            Some(escrow) if escrow.to_be_judged && me == escrow.validator => Step::Judge(escrow.id),
            Some(_) => Step::Wait,
            None if ended => Step::Done(paid),
            None if me == self.owed.author => Step::Expect(self.on_turn(now_ms).into_iter().collect()),
            None if age >= OFFERED => Step::Done(Msat::ZERO),
            None if self.on_turn(now_ms) == Some(me) => Step::Offer,
            None => Step::Wait,
        }
    }

    /// What will be agreed to, until this turn closes; none if it has.
    fn expectation(&self, validator: NodeId, now_ms: u64) -> Option<Expectation> {
        let (kind, tranches) = self.kind();
        let total = self.unit().checked_mul((1_u64 << tranches.min(63)) - 1)?;
        let ends_ms = self.at_ms.checked_add((self.turn(now_ms) + 1).checked_mul(TURN)?)?;
        let until_ms = ends_ms.checked_sub(CLOSING).filter(|until_ms| now_ms < *until_ms)?;
        Some(Expectation {
            validator,
            subject: self.name,
            kind,
            payer: Some(self.owed.author),
            payee: Some(self.owed.peer),
            least: total,
            most: total,
            longest: DELTA,
            consent: Consent::default(),
            until_ms,
        })
    }

    fn offer(&self) -> Offer {
        let (kind, tranches) = self.kind();
        let (payer, payee) = (self.owed.author, self.owed.peer);
        Offer { kind, payer, payee, tranches, unit: self.unit(), delta: DELTA, subject: self.name }
    }
}

impl Making {
    pub(super) fn new(desk: EscrowDesk) -> Self {
        Self { desk, stated: BTreeMap::new() }
    }

    /// Does what is to be done about a payout now. Gives, once there is nothing more to be done, what was paid by escrow.
    pub(super) async fn go_on(&mut self, due: &Due, now_ms: u64) -> Result<Option<Msat>, DeskError> {
        let of_both = |escrow: &&Escrow| {
            let terms = escrow.terms().payload();
            (terms.payer, terms.payee) == (due.owed.author, due.owed.peer)
        };
        let escrows = self.desk.about(due.name).await?;
        let seen: Vec<Seen> = escrows.iter().filter(of_both).map(Seen::of).collect();
        match due.step(self.desk.me(), &seen, now_ms) {
            Step::Wait => {}
            Step::Done(paid) => {
                self.stated.remove(&due.name);
                self.desk.decline_about(due.name);
                tell(due, paid);
                return Ok(Some(paid));
            }
            Step::Expect(validators) => self.expect(due, validators, now_ms).await?,
            Step::Offer => {
                self.desk.offer(due.offer(), Consent::default()).await?;
            }
            Step::Judge(id) => {
                let units = Some(due.owed.units);
                self.desk.judge(id, EscrowFinding::Accepted, units, due.record).await?;
            }
        }
        Ok(None)
    }

    /// Says once in a turn what will be agreed to.
    async fn expect(&mut self, due: &Due, validators: Vec<NodeId>, now_ms: u64) -> Result<(), DeskError> {
        let turn = due.turn(now_ms);
        if self.stated.get(&due.name) == Some(&turn) {
            return Ok(());
        }
        for expectation in validators.into_iter().filter_map(|validator| due.expectation(validator, now_ms)) {
            self.desk.expect(expectation).await?;
        }
        self.stated.insert(due.name, turn);
        Ok(())
    }
}

/// Says how a payout came out.
fn tell(due: &Due, paid: Msat) {
    let owed = &due.owed;
    if paid > owed.amount {
        error!(run = %owed.run, peer = %owed.peer, round = owed.round, owed = %owed.amount, %paid, "a validator gave out more than was earned");
    } else {
        info!(run = %owed.run, peer = %owed.peer, round = owed.round, owed = %owed.amount, %paid, "a payout by escrow is over");
    }
}

#[cfg(test)]
mod tests {
    use consortium_protocol::RootKey;
    use consortium_protocol::wire::train::RunId;

    use super::*;
    use crate::train::Owed;

    const AT: u64 = 1_000_000;

    fn node(n: u8) -> NodeId {
        RootKey::from_seed([n; 32]).node_id()
    }

    /// Paid by 1 to 2; judged by 3, 4 and 5.
    fn due(units: u32) -> Due {
        let amount = Msat(400_000 * u64::from(units));
        let owed = Owed { run: RunId(Hash::of(b"run")), author: node(1), peer: node(2), round: 3, amount, units };
        let judges = [3, 4, 5].map(node).to_vec();
        Due { name: super::super::due::name(&owed), owed, record: Hash::of(b"record"), at_ms: AT, judges }
    }

    fn seen(validator: u8, over: bool, paid: u64) -> Seen {
        Seen { id: EscrowId([validator; 16]), validator: node(validator), over, to_be_judged: false, paid: Msat(paid) }
    }

    #[test]
    fn the_author_agrees_with_one_validator_at_a_time_and_never_again_once_it_paid() {
        let due = due(5);
        let step = |seen: &[Seen], turn: u64| due.step(node(1), seen, AT + turn * TURN);
        assert_eq!(step(&[], 0), Step::Expect(vec![node(3)]));
        assert_eq!([step(&[], 1), step(&[], 3)], [Step::Expect(vec![node(4)]), Step::Expect(vec![node(3)])]);
        // Whatever is locked comes to its end first, whoever else's turn it is.
        assert_eq!(step(&[seen(3, false, 0)], 1), Step::Wait);
        assert_eq!(step(&[seen(3, true, 0), seen(4, false, 400_000)], 2), Step::Wait);
        assert_eq!(step(&[seen(3, true, 0)], 1), Step::Expect(vec![node(4)]));
        for turn in 0..6 {
            assert_eq!(step(&[seen(3, true, 0), seen(4, true, 800_000)], turn), Step::Done(Msat(800_000)));
        }
        // Before another's turn nothing is agreed to for a while.
        let until = |now_ms| due.expectation(node(3), now_ms).map(|expected| expected.until_ms);
        assert_eq!(until(AT), Some(AT + TURN - CLOSING));
        assert_eq!(until(AT + TURN - CLOSING), None);
        assert_eq!(until(AT + TURN), Some(AT + 2 * TURN - CLOSING));
    }

    #[test]
    fn a_validator_offers_in_its_turn_and_judges_what_is_locked() {
        let due = due(5);
        let step = |n: u8, seen: &[Seen], turn: u64| due.step(node(n), seen, AT + turn * TURN);
        assert_eq!([step(3, &[], 0), step(4, &[], 0), step(4, &[], 1)], [Step::Offer, Step::Wait, Step::Offer]);
        assert_eq!(step(3, &[seen(3, false, 0)], 3), Step::Wait);
        let locked = Seen { to_be_judged: true, ..seen(3, false, 0) };
        assert_eq!(step(3, &[locked], 1), Step::Judge(locked.id));
        assert_eq!(step(3, &[seen(3, true, 0)], 3), Step::Offer);
        assert_eq!(step(3, &[seen(3, true, 2_000_000)], 3), Step::Done(Msat(2_000_000)));
        assert_eq!(step(3, &[], OFFERED / TURN + 1), Step::Done(Msat::ZERO));
    }

    #[test]
    fn the_peer_agrees_with_whoever_offers() {
        let due = due(5);
        let step = |seen: &[Seen]| due.step(node(2), seen, AT + TURN);
        assert_eq!(step(&[]), Step::Expect([3, 4, 5].map(node).to_vec()));
        assert_eq!(step(&[seen(3, false, 0), seen(4, true, 0)]), Step::Expect([4, 5].map(node).to_vec()));
        assert_eq!(step(&[seen(3, false, 0), seen(4, true, 2_000_000)]), Step::Done(Msat(2_000_000)));
    }

    #[test]
    fn what_no_escrow_paid_in_time_author_and_peer_put_on_the_tab() {
        let due = due(5);
        let step = |n: u8, seen: &[Seen], age: u64| due.step(node(n), seen, AT + age);
        for n in [1, 2] {
            assert_ne!(step(n, &[], OFFERED - 1), Step::Wait, "it may still come");
            for age in [OFFERED, GIVEN_UP - 1] {
                assert_eq!(step(n, &[seen(3, true, 0)], age), Step::Wait, "by another's clock it may still come");
            }
            assert_eq!(step(n, &[seen(3, true, 0)], GIVEN_UP), Step::Done(Msat::ZERO));
            assert_eq!(
                step(n, &[seen(3, false, 0)], 2 * GIVEN_UP),
                Step::Wait,
                "what is locked comes to its end first"
            );
            assert_eq!(step(n, &[seen(3, true, 800_000)], OFFERED), Step::Done(Msat(800_000)));
        }
        assert_eq!(step(3, &[], OFFERED), Step::Done(Msat::ZERO));
    }

    #[test]
    fn tranches_make_up_the_units_and_lock_less_than_twice_as_much() {
        for units in [1, 2, 3, 4, 5, 1000, 4095] {
            let due = due(units);
            let (kind, tranches) = due.kind();
            let total = (1_u64 << tranches) - 1;
            assert!(total >= u64::from(units) && total < 2 * u64::from(units), "{units}");
            assert_eq!((kind == EscrowKind::Reward, tranches == 1), (units == 1, units == 1));
            assert_eq!((due.unit(), due.offer().tranches), (Msat(400_000), tranches));
            let expected = due.expectation(node(3), AT).unwrap();
            assert_eq!((expected.least, expected.most), (Msat(400_000 * total), Msat(400_000 * total)));
        }
    }

    #[test]
    fn names_differ_by_run_round_and_peer() {
        let owed = due(5).owed;
        let others = [
            Owed { run: RunId(Hash::of(b"another")), ..owed },
            Owed { round: 4, ..owed },
            Owed { peer: node(3), ..owed },
        ];
        let mut names: Vec<Hash> = others.iter().chain([&owed]).map(super::super::due::name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 4);
    }
}
