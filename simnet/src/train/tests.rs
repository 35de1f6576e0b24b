use super::arena::Arena;
use super::cast::Cast;
use super::pay::SCHEDULE;
use super::report::{PeerTotal, RoundReport, totals};
use super::setting::Setting;

fn play(cast: &str, rounds: u64, seed: u64) -> Vec<RoundReport> {
    let cast: Cast = cast.parse().unwrap();
    // Short rounds are enough for so few.
    let setting = Setting { steps: 8, batch: 4, ..Setting::new(seed, rounds) };
    let mut arena = Arena::new(setting, &cast, setting.task().unwrap()).unwrap();
    (0..rounds).map(|_| arena.play().unwrap()).collect()
}

fn of<'a>(totals: &'a [PeerTotal], name: &str) -> &'a PeerTotal {
    totals.iter().find(|t| t.peer == name).unwrap()
}

/// Each exploit that is known, played: none is let in, all pay for trying.
#[test]
fn attackers_lose_and_the_model_learns() {
    let cast = "honest:3,mediocre,free-rider,plagiarist,late-plagiarist,poisoner,stale";
    let rounds = play(cast, 6, 1);
    let (first, last) = (&rounds[0], &rounds[5]);
    assert!(last.held_out_loss < first.held_out_loss - 0.3, "{} {}", first.held_out_loss, last.held_out_loss);
    assert!(rounds.iter().all(|round| !round.reverted));
    let budget = SCHEDULE.budget.0;
    assert!(rounds.iter().all(|r| r.peers.iter().map(|p| p.reward_msat).sum::<u64>() <= budget));
    let totals = totals(&rounds, 2);
    for name in ["free-rider", "plagiarist", "poisoner", "stale"] {
        assert!(of(&totals, name).gain_msat < 0, "{:?}", of(&totals, name));
    }
    for name in ["honest-1", "honest-2", "honest-3"] {
        assert!(of(&totals, name).accepted_later >= 3, "{:?}", of(&totals, name));
    }
    let late = of(&totals, "late-plagiarist");
    assert_eq!((&late.refusals[..], late.gain_msat), (&[("late", 6)][..], 0), "nobody looked at it");
    assert_eq!(of(&totals, "poisoner").accepted, 0);
    assert_eq!(of(&totals, "free-rider").accepted, 0);
    let stale: Vec<&str> = rounds.iter().map(|r| r.peers[8].fate).collect();
    assert!(stale.iter().all(|fate| *fate == "out of sync"), "{stale:?}");
}

#[test]
fn attackers_that_are_kept_out_leave_no_trace_in_the_parameters() {
    let rounds = play("honest:3,plagiarist,poisoner,stale", 4, 1);
    let kept_out = rounds.iter().all(|r| r.peers.iter().all(|p| p.accepted() == p.peer.starts_with("honest")));
    assert!(kept_out, "{:?}", totals(&rounds, 0));
    let losses = |rounds: &[RoundReport]| rounds.iter().map(|r| r.held_out_loss.to_bits()).collect::<Vec<_>>();
    assert_eq!(losses(&rounds), losses(&play("honest:3", 4, 1)));
}

#[test]
fn of_colluders_one_is_paid_at_most_and_harm_is_refused_in_the_round_in_which_it_begins() {
    let rounds = play("honest:2,colluder,sleeper", 6, 2);
    let totals = totals(&rounds, 1);
    assert_eq!(of(&totals, "colluder-2").accepted, 0, "{:?}", of(&totals, "colluder-2"));
    assert_eq!(of(&totals, "colluder-2").reward_msat, 0);
    let sleeper: Vec<(bool, u64)> = rounds.iter().map(|r| (r.peers[4].accepted(), r.peers[4].reward_msat)).collect();
    assert!(sleeper[..4].iter().filter(|s| s.0).count() >= 3, "{sleeper:?}");
    assert_eq!(sleeper[4..], [(false, 0), (false, 0)], "its standing buys nothing");
}

#[test]
fn peers_that_do_not_wait_train_from_older_parameters_and_are_let_in() {
    let setting = Setting { steps: 8, batch: 4, overlap: true, ..Setting::new(1, 8) };
    let mut arena = Arena::new(setting, &"honest:2,stale".parse().unwrap(), setting.task().unwrap()).unwrap();
    let rounds: Vec<RoundReport> = (0..8).map(|_| arena.play().unwrap()).collect();
    assert!(rounds[7].held_out_loss < rounds[0].held_out_loss - 0.3, "{}", rounds[7].held_out_loss);
    let totals = totals(&rounds, 2);
    assert!(["honest-1", "honest-2"].iter().all(|name| of(&totals, name).accepted >= 7), "{totals:?}");
    let stale = rounds.iter().map(|r| r.peers[2].fate);
    assert!(stale.clone().all(|fate| fate == "out of sync"), "{:?}", stale.collect::<Vec<_>>());
}

#[test]
fn a_seed_names_a_run() {
    let numbers = |seed| {
        let rounds = play("honest:2,free-rider", 2, seed);
        rounds.into_iter().map(|r| (r.held_out_loss.to_bits(), r.peers)).collect::<Vec<_>>()
    };
    assert_eq!(numbers(1), numbers(1));
    assert_ne!(numbers(1), numbers(2));
}
