use std::sync::{Arc, OnceLock};

use super::*;
use crate::TrainError;
use crate::corpus::Split;
use crate::gauntlet::copies;
use crate::model::{Llama, LlamaConfig};
use crate::optimizer::{AdamWSettings, Schedule};
use crate::run::ModelSize;
use crate::sparseloco::{Update, aggregate, median_norms, overlaps};
use crate::tokenizer::Tokenizer;

fn small() -> LlamaConfig {
    ModelSize::Nano.config()
}

fn recipe() -> LocalRecipe {
    LocalRecipe {
        data: Data::Stories { seed: 3, rows: 10_000 },
        length: 48,
        batch: 2,
        steps: 4,
        schedule: Schedule { peak: 1e-2, floor: 1e-3, warmup: 3, total: 40 },
        adam: AdamWSettings::default(),
        clip: 1.0,
        parts: 1,
    }
}

fn tokenizer() -> Tokenizer {
    Tokenizer::train(1, 100, 300).unwrap()
}

fn task() -> Arc<Task> {
    static TASK: OnceLock<Arc<Task>> = OnceLock::new();
    TASK.get_or_init(|| Arc::new(Task::new(small(), recipe(), tokenizer(), None).unwrap())).clone()
}

fn assignment(round: u64, peers: usize) -> Assignment {
    let recipe = recipe();
    Assignment::new(b"beacon", round, peers, recipe.rows_each(), recipe.data.rows(Split::Train)).unwrap()
}

/// Parameters after some rounds of so many peers, with the updates of the last.
fn rounds(count: u64, peers: usize) -> (Parameters, Parameters, Vec<Update>) {
    let task = task();
    let mut common = Parameters::fresh(&task, 1).unwrap();
    let mut all: Vec<Peer> = (0..peers).map(|_| Peer::join(task.clone())).collect();
    let (mut before, mut updates) = (common.clone(), Vec::new());
    for round in 0..count {
        let dealt = assignment(round, peers);
        let train = |(number, peer): (usize, &mut Peer)| {
            let message = peer.train(round, &common, &dealt.rows(number)).unwrap().0.to_vec();
            Update::read(task.layout(), message).unwrap()
        };
        updates = all.iter_mut().enumerate().map(train).collect();
        let references: Vec<&Update> = updates.iter().collect();
        let medians = median_norms(task.layout(), &references).unwrap();
        before = common.clone();
        common.step(&references, &medians).unwrap();
    }
    (before, common, updates)
}

fn bits(values: &[Vec<f32>]) -> Vec<u32> {
    values.iter().flatten().map(|v| v.to_bits()).collect()
}

const EXAMINATION: Examination = Examination { held_out: 3, held_out_rows: 2, own: 1, own_rows: 2 };

#[test]
fn held_out_loss_falls_over_rounds_and_honest_updates_are_let_in() {
    let (task, peers) = (task(), 3);
    let (before, after, updates) = rounds(6, peers);
    let dealt = assignment(5, peers);
    let first = Parameters::fresh(&task, 1).unwrap();
    let examiner = Examiner::new(&task, EXAMINATION, &dealt, &first, [5; 32], 5).unwrap();
    for losses in examiner.compare(&after).unwrap() {
        assert!(losses.after < losses.before - 0.1, "{losses:?}");
    }
    let examiner = Examiner::new(&task, EXAMINATION, &dealt, &before, [5; 32], 5).unwrap();
    let medians = median_norms(task.layout(), &updates.iter().collect::<Vec<_>>()).unwrap();
    for (peer, update) in updates.iter().enumerate() {
        let measured = examiner.examine(peer, update, &medians).unwrap();
        assert_eq!((measured.held_out.len(), measured.assigned.len(), measured.unassigned.len()), (3, 1, 1));
        assert!(measured.held_out.iter().all(|l| l.score() > 1e-3), "{measured:?}");
    }
}

fn step_by(values: &[f32], mean: &[f32], part: f32) -> Vec<f32> {
    values.iter().zip(mean).map(|(value, mean)| value - part * mean).collect()
}

#[test]
fn the_loss_after_an_update_is_that_of_its_part_of_an_outer_step() {
    let task = task();
    let (before, _, updates) = rounds(2, 2);
    let (dealt, model) = (assignment(1, 2), before.model().unwrap());
    let examiner = Examiner::new(&task, EXAMINATION, &dealt, &before, [5; 32], 1).unwrap();
    // Half the norms, so that every tensor is clipped.
    let medians: Vec<f64> = updates[0].norms().iter().map(|n| n / 2.0).collect();
    let mut mean = task.layout().zeros();
    aggregate(task.layout(), &[&updates[0]], &medians, &mut mean).unwrap();
    let mut alone = before.clone();
    alone.step(&[&updates[0]], &medians).unwrap();
    let inside = with_update(&model, &updates[0], &medians, 1.0, Llama::values).unwrap();
    assert_eq!(bits(&inside), bits(alone.values()));
    // Of two peers one is tried at half of that step.
    let halves: Vec<Vec<f32>> = before.values().iter().zip(&mean).map(|(v, m)| step_by(v, m, 0.5)).collect();
    let half = Parameters::new(&task, halves).unwrap();
    let measured = examiner.examine(0, &updates[0], &medians).unwrap().held_out;
    let expected = examiner.compare(&half).unwrap();
    assert!(!measured.is_empty() && measured.len() == expected.len());
    for (measured, expected) in measured.iter().zip(&expected) {
        assert_eq!(measured.before.to_bits(), expected.before.to_bits());
        assert!((measured.after - expected.after).abs() < 1e-6, "{measured:?} {expected:?}");
        assert!((measured.after - measured.before).abs() > 1e-4, "{measured:?}");
    }
}

#[test]
fn exploit_of_fixed_limits_real_updates_of_a_first_round_are_no_copies_and_a_disguised_copy_is_one() {
    let task = task();
    let (_, _, mut updates) = rounds(1, 4);
    let mut disguised = task.layout().zeros();
    updates[1].for_each(|tensor, element, value| disguised[tensor][element] = value);
    disguised.iter_mut().flatten().zip(0u32..).for_each(|(v, i)| *v *= 1.0 + 0.4 * (i as f32).sin());
    let message = crate::sparseloco::compress(task.layout(), &mut task.layout().zeros(), &disguised).unwrap();
    updates.push(Update::read(task.layout(), message).unwrap());
    let overlap = |a: usize, b: usize| updates[a].overlap(&updates[b]).unwrap();
    assert!(overlap(0, 1) > 0.2, "peers agree in the beginning: {}", overlap(0, 1));
    assert_eq!(copies(5, overlap), [false, false, false, false, true]);
    let all = overlaps(task.layout(), &updates.iter().collect::<Vec<_>>()).unwrap();
    for (a, row) in all.iter().enumerate() {
        for (b, part) in row.iter().enumerate() {
            let expected = if a < b { overlap(a, b) } else { 0.0 };
            assert_eq!(part.to_bits(), expected.to_bits(), "{a} {b}");
        }
    }
    assert!(overlaps(task.layout(), &[]).is_err());
}

#[test]
fn a_patch_is_taken_back_to_the_bit_also_when_looking_fails() {
    let (before, _, updates) = rounds(2, 2);
    let model = before.model().unwrap();
    let medians = updates[0].norms();
    let shaken = with_update(&model, &updates[0], &medians, 1.0, Llama::values).unwrap();
    assert_ne!(bits(&shaken), bits(before.values()));
    assert_eq!(bits(&model.values().unwrap()), bits(before.values()));
    let failed = with_update(&model, &updates[1], &medians, 1.0, |_| -> Result<(), _> {
        Err(TrainError::Diverged { step: 0, loss: f32::NAN })
    });
    assert!(failed.is_err());
    assert_eq!(bits(&model.values().unwrap()), bits(before.values()));
    assert!(with_update(&model, &updates[0], &medians[1..], 1.0, Llama::values).is_err());
}

#[test]
fn a_peer_that_crashed_makes_the_same_updates() {
    let (task, directory) = (task(), tempfile::tempdir().unwrap());
    let (path, common) = (directory.path().join("peer.safetensors"), Parameters::fresh(&task, 1).unwrap());
    let dealt = |round| assignment(round, 1).rows(0);
    let mut peer = Peer::join(task.clone());
    peer.train(0, &common, &dealt(0)).unwrap();
    let (committed, losses) = peer.train(1, &common, &dealt(1)).map(|(m, l)| (m.to_vec(), l.to_vec())).unwrap();
    peer.save(&path).unwrap();
    let mut resumed = Peer::resume(task, &path).unwrap();
    assert_eq!(resumed.trained(), Some(1));
    // What was committed to is at hand again, and not made anew: other rows change nothing.
    assert_eq!(resumed.train(1, &common, &[]).unwrap(), (&committed[..], &losses[..]));
    let next = peer.train(2, &common, &dealt(2)).unwrap();
    assert_eq!(resumed.train(2, &common, &dealt(2)).unwrap(), next);
    assert_ne!(next.0, committed);
    assert!(resumed.train(1, &common, &dealt(1)).is_err(), "a round that is over");
}

#[test]
fn a_failed_round_leaves_the_peer_as_it_was() {
    let task = task();
    let common = Parameters::fresh(&task, 1).unwrap();
    let mut broken = common.values().to_vec();
    broken[0].fill(f32::NAN);
    let broken = Parameters::new(&task, broken).unwrap();
    let rows = assignment(0, 1).rows(0);
    let (mut peer, mut other) = (Peer::join(task.clone()), Peer::join(task));
    assert!(matches!(peer.train(0, &broken, &rows), Err(TrainError::Diverged { .. })));
    assert!(matches!(peer.train(0, &common, &rows[1..]), Err(TrainError::Setting { .. })));
    assert_eq!(peer.train(0, &common, &rows).unwrap(), other.train(0, &common, &rows).unwrap());
}

#[test]
fn damaged_and_foreign_states_are_refused() {
    let (task, directory) = (task(), tempfile::tempdir().unwrap());
    let path = directory.path().join("peer.safetensors");
    let common = Parameters::fresh(&task, 1).unwrap();
    let mut peer = Peer::join(task.clone());
    peer.train(0, &common, &assignment(0, 1).rows(0)).unwrap();
    peer.save(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for cut in [0, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let error = Peer::resume(task.clone(), &path).unwrap_err();
        assert!(matches!(error, TrainError::Checkpoint { .. }), "{error}");
    }
    std::fs::write(&path, &whole).unwrap();
    let other = LocalRecipe { clip: 2.0, ..recipe() };
    let other = Arc::new(Task::new(small(), other, tokenizer(), None).unwrap());
    assert!(Peer::resume(other, &path).unwrap_err().to_string().contains("another"));
    common.save(&path).unwrap();
    assert!(Peer::resume(task.clone(), &path).is_err(), "parameters are no peer");
    assert_eq!(Parameters::load(&task, &path).unwrap(), common);
}

#[test]
fn the_state_hash_says_every_bit_and_shape() {
    let task = task();
    let common = Parameters::fresh(&task, 1).unwrap();
    let mut values = common.values().to_vec();
    let flipped = values[5][3].to_bits() ^ 1;
    values[5][3] = f32::from_bits(flipped);
    assert_ne!(Parameters::new(&task, values).unwrap().hash(), common.hash());
    let other = Task::new(LlamaConfig { rope_theta: 5e3, ..small() }, recipe(), tokenizer(), None).unwrap();
    assert_eq!(Parameters::new(&other, common.values().to_vec()).unwrap().hash(), common.hash());
    let zeros = Parameters::new(&task, task.layout().zeros()).unwrap();
    assert_eq!(zeros.hash().to_string(), "461d7eb8c24460375f35b5c1d766194bedc96dfd48bc7107b47f159fd6335fb8");
}

#[test]
fn an_empty_round_changes_nothing_and_an_update_of_another_model_neither() {
    let task = task();
    let (_, mut common, updates) = rounds(1, 1);
    let hash = common.hash();
    assert_eq!(common.step(&[], &[]).unwrap(), hash);
    assert!(common.step(&[&updates[0]], &[1.0]).is_err());
    let other = Task::new(LlamaConfig { hidden_size: 32, ..small() }, recipe(), tokenizer(), None).unwrap();
    let stranger = crate::sparseloco::compress(other.layout(), &mut other.layout().zeros(), &other.layout().zeros());
    let stranger = Update::read(other.layout(), stranger.unwrap()).unwrap();
    assert!(common.step(&[&stranger], &stranger.norms()).is_err());
    let examiner_rows = assignment(0, 1);
    let examiner = Examiner::new(&task, EXAMINATION, &examiner_rows, &common, [1; 32], 0).unwrap();
    assert!(examiner.examine(0, &stranger, &stranger.norms()).is_err());
    assert_eq!(common.hash(), hash);
}

#[test]
fn a_newcomer_warms_up_and_others_follow_the_schedule() {
    let recipe = recipe();
    let schedule = recipe.schedule;
    for step in 0..12 {
        assert!((recipe.rate(0, step, step) - schedule.rate(step)).abs() < 1e-12);
    }
    assert!((recipe.rate(3, 1, 13) - schedule.rate(13)).abs() < 1e-12);
    assert!((recipe.rate(3, 0, 0) - schedule.peak / 3.0).abs() < 1e-12);
}

#[test]
fn who_is_behind_is_seen_and_who_is_not_is_at_zero() {
    let (before, after, _) = rounds(3, 2);
    let probe = SyncProbe::new(b"beacon", 3, &after);
    let step = after.distance(&before);
    assert!(step > 0.0);
    assert_eq!(probe.drift(&after, &probe.sample(&after), step).to_bits(), 0f64.to_bits());
    let behind = probe.drift(&after, &probe.sample(&before), step);
    assert!((0.3..3.0).contains(&behind), "{behind}");
    assert_ne!(probe.sample(&before), SyncProbe::new(b"beacon", 4, &after).sample(&before));
    let mut odd = probe.sample(&after);
    odd[3] = f32::NAN;
    for sample in [&odd[..], &odd[..4], &[]] {
        assert!(probe.drift(&after, sample, step).is_infinite());
    }
}

#[test]
fn what_validation_costs_follows_from_the_settings() {
    let usual = Examination { held_out: 3, held_out_rows: 4, own: 2, own_rows: 2 };
    assert_eq!(usual.passes(), 24);
    assert!((usual.share(30 * 8) - 1.0 / 30.0).abs() < 1e-12);
}

#[test]
fn training_that_is_not_wanted_any_more_ends_and_leaves_the_peer_as_it_was() {
    let task = task();
    let common = Parameters::fresh(&task, 1).unwrap();
    let rows = assignment(0, 1).rows(0);
    let mut peer = Peer::join(task.clone());
    let mut told = 0;
    let stopped = peer.train_while((0, 0), &common, &rows, &mut |step| {
        told = step;
        step < 2
    });
    assert!(matches!(stopped, Err(TrainError::Stopped)));
    assert_eq!(told, 2);
    let again = peer.train(0, &common, &rows).unwrap().0.to_vec();
    assert_eq!(again, Peer::join(task).train(0, &common, &rows).unwrap().0);
}

/// States of peers are tied to this text: another would have all of them begin anew.
#[test]
fn golden_recipe() {
    let text = serde_json::to_string(&recipe()).unwrap();
    assert!(text.starts_with(r#"{"corpus":3,"rows":10000,"length":48,"batch":2,"steps":4,"schedule":{"#), "{text}");
    assert_eq!(serde_json::from_str::<LocalRecipe>(&text).unwrap(), recipe());
    let data = Data::Rows { digest: consortium_protocol::Hash::of(b"rows"), training: 9, held_out: 1 };
    let other = LocalRecipe { data, ..recipe() };
    let text = serde_json::to_string(&other).unwrap();
    assert_eq!(serde_json::from_str::<LocalRecipe>(&text).unwrap(), other);
}
