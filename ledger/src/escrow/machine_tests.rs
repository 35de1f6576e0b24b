use consortium_protocol::Signed;
use consortium_protocol::wire::escrow::EscrowTerms;
use proptest::prelude::*;

use super::event::Event;
use super::machine::{Action, GUARD, Input, JUDGE_GUARD, Refused, SLACK, Word};
use super::state::{Escrow, Role, State};
use super::{samples, secrets::Secrets};

const START: u32 = 1_000;
const DEADLINE: u32 = START + 105;

fn side(terms: &Signed<EscrowTerms>, key: u8) -> Escrow {
    Escrow::new(terms.clone(), samples::key(key).node_id(), START).unwrap()
}

fn after(escrow: &Escrow, inputs: &[Input], height: u32) -> Escrow {
    inputs.iter().fold(escrow.clone(), |escrow, input| escrow.handle(input, height).unwrap().next)
}

fn states(escrow: &Escrow) -> Vec<State> {
    escrow.tranches().iter().map(|tranche| tranche.state).collect()
}

fn actions(escrow: &Escrow, height: u32) -> Vec<Action> {
    escrow.handle(&Input::Tick, height).unwrap().actions
}

fn invoices(tranches: u8) -> Vec<Input> {
    (0..tranches).map(|tranche| Input::Invoice { tranche, invoice: format!("i{tranche}") }).collect()
}

fn held(tranches: u8) -> Vec<Input> {
    (0..tranches).map(|tranche| Input::Held { tranche, deadline: DEADLINE }).collect()
}

/// A worker with three tranches held.
fn worker(terms: &Signed<EscrowTerms>) -> Escrow {
    after(&side(terms, 2), &[invoices(3), held(3)].concat(), START + 1)
}

fn release(terms: &Signed<EscrowTerms>, earned: u32) -> Input {
    let verdict = samples::verdict(terms, earned);
    let own = Secrets::of(&samples::key(2));
    let id = terms.payload().id;
    let given = (0..3).filter(|tranche| verdict.payload().gives(usize::from(*tranche)));
    let sealed = given.map(|tranche| (tranche, own.seal(id, tranche, &samples::secrets().preimage(id, tranche))));
    let sealed = sealed.collect();
    Input::Verdict { verdict, sealed }
}

#[test]
fn roles_follow_from_the_terms() {
    let (bond, tranches) = (samples::bond(144), samples::tranches(2));
    let roles: Vec<_> = [(&bond, 1), (&bond, 3), (&tranches, 1), (&tranches, 2), (&tranches, 3)]
        .map(|(terms, key)| side(terms, key))
        .iter()
        .map(|side| (side.role(), side.pays(), side.is_paid()))
        .collect();
    assert_eq!(
        roles,
        [
            (Role::Worker, true, false),
            (Role::Validator, false, true),
            (Role::Sponsor, true, false),
            (Role::Worker, false, true),
            (Role::Validator, false, false),
        ]
    );
}

#[test]
fn what_was_earned_is_taken_and_the_rest_sent_back() {
    let terms = samples::tranches(3);
    let worker = worker(&terms);
    let validator = terms.signer();
    let told = Action::Tell { to: validator, word: Word::Held { deadline: DEADLINE } };
    assert_eq!(actions(&worker, START + 2), [told]);
    let turn = worker.handle(&release(&terms, 0b101), START + 3).unwrap();
    assert!(matches!(turn.events[0], Event::Judged(_)), "the verdict is written down before anything is done");
    assert_eq!(
        turn.actions,
        [
            Action::Settle { tranche: 0 },
            Action::Cancel { tranche: 1 },
            Action::Settle { tranche: 2 },
            Action::Tell { to: validator, word: Word::Heard },
        ]
    );
    let done = [Input::Arrived { tranche: 0 }, Input::Gone { tranche: 1 }, Input::Arrived { tranche: 2 }];
    let done = after(&turn.next, &done, START + 4);
    assert_eq!(states(&done), [State::Settled, State::Cancelled, State::Settled]);
    assert_eq!(actions(&done, START + 5), []);
    // Told again: nothing new, but the validator hears that it was heard.
    let again = done.handle(&release(&terms, 0b101), START + 6).unwrap();
    assert_eq!((again.events.len(), again.actions.len()), (0, 1));
    assert_eq!(done.handle(&release(&terms, 0b111), START + 6).unwrap_err(), Refused::SecondVerdict);
}

#[test]
fn a_verdict_without_its_preimages_takes_nothing() {
    let terms = samples::tranches(3);
    let input = Input::Verdict { verdict: samples::verdict(&terms, 0b001), sealed: Vec::new() };
    let heard = Action::Tell { to: terms.signer(), word: Word::Heard };
    let held_worker = worker(&terms);
    let turn = held_worker.handle(&input, START + 2).unwrap();
    assert!(!turn.actions.contains(&heard), "or the validator would never release the preimages");
    let worker = turn.next;
    assert_eq!(states(&worker), [State::Held { deadline: DEADLINE }, State::Cancelling, State::Cancelling]);
    assert!(!actions(&worker, DEADLINE - 1).contains(&Action::Settle { tranche: 0 }));
    // With them it is heard, and so is a verdict that gives nothing.
    assert!(worker.handle(&release(&terms, 0b001), START + 3).unwrap().actions.contains(&heard));
    let missed = Input::Verdict { verdict: samples::verdict(&terms, 0), sealed: Vec::new() };
    assert!(held_worker.handle(&missed, START + 2).unwrap().actions.contains(&heard));
}

#[test]
fn a_payment_that_leaves_less_time_than_agreed_on_is_sent_back() {
    let terms = samples::tranches(3);
    let asked = after(&side(&terms, 2), &invoices(3), START);
    // 39 blocks of the delta are Lightning's.
    let least = START + 144 - 39 - SLACK;
    let arrives = |deadline| states(&after(&asked, &[Input::Held { tranche: 0, deadline }], START))[0];
    assert_eq!(arrives(least), State::Held { deadline: least });
    assert_eq!(arrives(least - 1), State::Cancelling);
}

#[test]
fn a_payees_deadline_is_within_what_was_agreed_on() {
    let terms = samples::tranches(3);
    let ready = Input::Ready { from: samples::key(2).node_id(), deadline: u32::MAX };
    let validator = after(&side(&terms, 3), &[ready], START + 1);
    assert_eq!(states(&validator), [State::Held { deadline: START + 145 }; 3]);
}

#[test]
fn a_payer_whose_payment_went_astray_gives_up() {
    let terms = samples::reward();
    let paid = Input::Invoices { from: samples::key(2).node_id(), invoices: vec!["i".to_owned()] };
    let sponsor = after(&side(&terms, 1), &[paid, Input::Sent { tranche: 0, deadline: DEADLINE }], START + 1);
    let told = Action::Tell { to: samples::key(2).node_id(), word: Word::GivenUp };
    assert_eq!(sponsor.handle(&Input::Astray, START + 2).unwrap().actions, [told]);
    let judged = Input::Verdict { verdict: samples::verdict(&terms, 1), sealed: vec![] };
    let judged = after(&sponsor, &[judged], START + 2);
    assert_eq!(judged.handle(&Input::Astray, START + 3).unwrap().events, []);
}

#[test]
fn nothing_is_waited_for_in_the_last_blocks() {
    let terms = samples::tranches(3);
    let worker = worker(&terms);
    assert_eq!(states(&after(&worker, &[Input::Tick], DEADLINE - GUARD - 1)), states(&worker));
    let late = after(&worker, &[Input::Tick], DEADLINE - GUARD);
    assert_eq!(states(&late), [State::Cancelling; 3]);
    let validator =
        after(&side(&terms, 3), &[Input::Ready { from: samples::key(2).node_id(), deadline: DEADLINE }], START + 1);
    let verdict = Input::Verdict { verdict: samples::verdict(&terms, 1), sealed: Vec::new() };
    // The validator stops sooner, so that the payee still waits for what it says last.
    assert!(validator.handle(&verdict, DEADLINE - JUDGE_GUARD - 1).is_ok());
    assert!(matches!(validator.handle(&verdict, DEADLINE - JUDGE_GUARD), Err(Refused::TooLate { .. })));
    assert_eq!(states(&after(&validator, &[Input::Tick], DEADLINE - JUDGE_GUARD)), [State::Expired; 3]);
}

#[test]
fn a_late_preimage_is_used_while_it_can_be() {
    let terms = samples::tranches(3);
    // The verdict came in time, its preimages did not.
    let verdict = Input::Verdict { verdict: samples::verdict(&terms, 0b111), sealed: Vec::new() };
    let waiting = after(&worker(&terms), &[verdict], START + 2);
    assert_eq!(states(&after(&waiting, &[Input::Tick], DEADLINE - 1)), [State::Held { deadline: DEADLINE }; 3]);
    let in_time = waiting.handle(&release(&terms, 0b111), DEADLINE - 1).unwrap();
    assert_eq!(states(&in_time.next), [State::Settling { deadline: DEADLINE }; 3]);
    let late = waiting.handle(&release(&terms, 0b111), DEADLINE).unwrap();
    assert_eq!(states(&late.next), [State::Held { deadline: DEADLINE }; 3]);
    let over: Vec<Input> = (0..3).map(|tranche| Input::Over { tranche }).collect();
    assert_eq!(states(&after(&late.next, &over, DEADLINE)), [State::Expired; 3]);
}

#[test]
fn expired_is_not_cancelled_and_what_arrived_has_arrived() {
    let terms = samples::reward();
    let paid = Input::Invoices { from: samples::key(2).node_id(), invoices: vec!["i".to_owned()] };
    let sent = Input::Sent { tranche: 0, deadline: DEADLINE };
    let sponsor = after(&side(&terms, 1), &[paid, sent], START + 1);
    let failed = [Input::Failed { tranche: 0 }];
    assert_eq!(states(&after(&sponsor, &failed, DEADLINE - 1)), [State::Cancelled]);
    let expired = after(&sponsor, &failed, DEADLINE);
    assert_eq!(states(&expired), [State::Expired]);
    let arrived = after(&expired, &[Input::Arrived { tranche: 0 }], DEADLINE + 1);
    assert_eq!(states(&arrived), [State::Settled]);
    assert_eq!(arrived.unexplained().collect::<Vec<_>>(), [0], "nobody said that it was earned");
    let explained =
        after(&arrived, &[Input::Verdict { verdict: samples::verdict(&terms, 1), sealed: vec![] }], DEADLINE);
    assert_eq!(explained.unexplained().count(), 0);
}

#[test]
fn a_bond_goes_back_unless_there_was_abuse() {
    let terms = samples::bond(144);
    let inputs = [invoices(1), held(1)].concat();
    let validator = after(&side(&terms, 3), &inputs, START + 1);
    let judge = |earned| Input::Verdict { verdict: samples::verdict(&terms, earned), sealed: vec![] };
    let honest = validator.handle(&judge(0), START + 2).unwrap();
    let told = Action::Tell { to: samples::key(1).node_id(), word: Word::Verdict };
    assert_eq!(honest.actions, [told.clone(), Action::Cancel { tranche: 0 }]);
    let abuse = validator.handle(&judge(1), START + 2).unwrap();
    assert_eq!(abuse.actions, [told, Action::Settle { tranche: 0 }]);
    let silent = after(&validator, &[Input::Tick], DEADLINE - GUARD);
    assert_eq!(states(&silent), [State::Cancelling]);
    let unpaid = after(&side(&terms, 3), &invoices(1), START + 1);
    assert_eq!(unpaid.handle(&judge(1), START + 2).unwrap_err(), Refused::NotHeld);
}

#[test]
fn a_sponsor_that_cannot_lock_all_of_it_stops() {
    let terms = samples::tranches(3);
    let (payee, validator) = (samples::key(2).node_id(), samples::key(3).node_id());
    let invoices_come = Input::Invoices { from: payee, invoices: vec!["a".into(), "b".into(), "c".into()] };
    let sent = Input::Sent { tranche: 0, deadline: DEADLINE };
    let sponsor = after(&side(&terms, 1), &[invoices_come, sent], START + 1);
    let turn = sponsor.handle(&Input::Failed { tranche: 1 }, START + 1).unwrap();
    assert_eq!(states(&turn.next), [State::Held { deadline: DEADLINE }, State::Cancelled, State::Cancelled]);
    let word = Word::GivenUp;
    assert_eq!(turn.actions, [Action::Tell { to: payee, word }]);
    let half = after(&side(&terms, 2), &[invoices(3), held(1)].concat(), START + 1);
    let from = samples::key(1).node_id();
    let turn = half.handle(&Input::GivenUp { from }, START + 2).unwrap();
    assert_eq!(states(&turn.next), [State::Cancelling; 3]);
    assert!(turn.actions.contains(&Action::Tell { to: validator, word }), "{:?}", turn.actions);
    // What is locked as a whole cannot be taken back by saying so.
    assert_eq!(states(&after(&worker(&terms), &[Input::GivenUp { from }], START + 2)), states(&worker(&terms)));
    assert_eq!(half.handle(&Input::GivenUp { from: validator }, START).unwrap_err(), Refused::NotTheirs);
}

#[test]
fn the_validator_believes_the_payee_alone_that_it_was_given_up() {
    let terms = samples::tranches(3);
    let (payer, payee) = (samples::key(1).node_id(), samples::key(2).node_id());
    let validator = side(&terms, 3);
    assert_eq!(validator.handle(&Input::GivenUp { from: payer }, START).unwrap_err(), Refused::NotTheirs);
    assert_eq!(states(&after(&validator, &[Input::GivenUp { from: payee }], START)), [State::Cancelled; 3]);
}

#[test]
fn the_validator_repeats_its_verdict_until_it_is_heard() {
    let terms = samples::tranches(3);
    let (payer, payee) = (samples::key(1).node_id(), samples::key(2).node_id());
    let validator = side(&terms, 3);
    let offers = [payer, payee].map(|to| Action::Tell { to, word: Word::Terms });
    assert_eq!(actions(&validator, START), offers);
    let inputs = [
        Input::Ready { from: payee, deadline: DEADLINE },
        Input::Verdict { verdict: samples::verdict(&terms, 0b011), sealed: vec![] },
    ];
    let judged = after(&validator, &inputs, START + 1);
    let tell = [Action::Tell { to: payer, word: Word::Verdict }, Action::Tell { to: payee, word: Word::Release }];
    assert_eq!(actions(&judged, START + 1), tell);
    let heard = after(&judged, &[Input::Heard { from: payee }], START + 2);
    assert_eq!(states(&heard), [State::Settled, State::Settled, State::Cancelled]);
    assert_eq!(actions(&heard, START + 2), tell[..1]);
    assert_eq!(actions(&after(&heard, &[Input::Heard { from: payer }], START + 2), START + 2), []);
    assert_eq!(states(&after(&judged, &[Input::Tick], DEADLINE)), [State::Expired, State::Expired, State::Cancelling]);
    let stranger = Input::Ready { from: payer, deadline: DEADLINE };
    assert_eq!(validator.handle(&stranger, START).unwrap_err(), Refused::NotTheirs);
}

fn any_input(terms: &Signed<EscrowTerms>) -> impl Strategy<Value = Input> + use<> {
    let tranche = 0..4_u8;
    let node = (1..4_u8).prop_map(|key| samples::key(key).node_id());
    let releases: Vec<Input> = (0..8).map(|earned| release(terms, earned)).collect();
    prop_oneof![
        Just(Input::Tick),
        tranche.clone().prop_map(|tranche| Input::Invoice { tranche, invoice: "i".to_owned() }),
        node.clone().prop_map(|from| Input::Invoices { from, invoices: vec!["i".to_owned(); 3] }),
        tranche.clone().prop_map(|tranche| Input::Sent { tranche, deadline: DEADLINE }),
        (tranche.clone(), prop_oneof![Just(DEADLINE), Just(DEADLINE + 400)])
            .prop_map(|(tranche, deadline)| Input::Held { tranche, deadline }),
        tranche.clone().prop_map(|tranche| Input::Arrived { tranche }),
        tranche.clone().prop_map(|tranche| Input::Failed { tranche }),
        tranche.clone().prop_map(|tranche| Input::Gone { tranche }),
        tranche.prop_map(|tranche| Input::Over { tranche }),
        node.clone().prop_map(|from| Input::Ready { from, deadline: DEADLINE }),
        proptest::sample::select(releases),
        node.clone().prop_map(|from| Input::Heard { from }),
        node.prop_map(|from| Input::GivenUp { from }),
        Just(Input::Astray),
    ]
}

/// The only ways from one state to another.
fn may_follow(before: State, then: State) -> bool {
    use State::{Cancelled, Cancelling, Created, Expired, Held, Settled, Settling};
    match (before, then) {
        (before, then) if before == then => true,
        (Settled, _) => false,
        (_, Settled) | (Created, _) | (Held { .. } | Cancelling, Cancelled | Expired) => true,
        (Held { deadline: a }, Settling { deadline: b }) => a == b,
        (Held { .. }, Cancelling) | (Settling { .. }, Cancelled | Expired) => true,
        _ => false,
    }
}

proptest! {
    #[test]
    fn whatever_is_heard_the_log_tells_the_state(
        role in 1..4_u8,
        steps in prop::collection::vec((any_input(&samples::tranches(3)), 0..20_u32), 0..40),
    ) {
        let terms = samples::tranches(3);
        let mut escrow = side(&terms, role);
        let mut log = vec![Event::Opened { terms: terms.clone(), height: START }];
        let mut height = START;
        for (input, blocks) in steps {
            height += blocks;
            let Ok(turn) = escrow.handle(&input, height) else { continue };
            for (before, then) in states(&escrow).into_iter().zip(states(&turn.next)) {
                prop_assert!(may_follow(before, then), "{before:?} to {then:?} by {input:?}");
            }
            for action in &turn.actions {
                // Nothing is taken that no verdict gives, and nothing is sent back that one does.
                match action {
                    Action::Settle { tranche } => prop_assert!(turn.next.gives(*tranche)),
                    Action::Pay { .. } => prop_assert!(turn.next.verdict().is_none()),
                    _ => {}
                }
            }
            let again = turn.next.handle(&input, height);
            // What is gone is heard of what is being sent back, which this very height may have begun.
            let begun = matches!(input, Input::Gone { .. });
            prop_assert!(begun || again.is_err() || again.as_ref().is_ok_and(|turn| turn.events.is_empty()), "{again:?}");
            log.extend(turn.events);
            let replayed = Escrow::replay(samples::key(role).node_id(), log.clone()).unwrap();
            prop_assert_eq!(&replayed, &turn.next);
            // Names are unique, so that a log that ignores what it has loses nothing.
            let names: std::collections::BTreeSet<_> = log.iter().map(Event::name).collect();
            prop_assert_eq!(names.len(), log.len());
            escrow = turn.next;
        }
    }
}
