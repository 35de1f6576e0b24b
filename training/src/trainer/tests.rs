use std::sync::Arc;

use super::*;
use crate::generate::generate;
use crate::observer::Silent;
use crate::optimizer::{AdamWSettings, Schedule};

fn small() -> LlamaConfig {
    LlamaConfig { max_position_embeddings: 192, ..crate::run::ModelSize::Nano.config() }
}

fn recipe(total: u64) -> Recipe {
    Recipe {
        seed: 3,
        batch: 4,
        length: 96,
        long_every: 3,
        schedule: Schedule { peak: 1e-2, floor: 1e-3, warmup: 3, total },
        adam: AdamWSettings::default(),
        clip: 1.0,
        held_out_rows: 2,
        held_out_every: 4,
        threads: 2,
    }
}

fn tokenizer() -> Tokenizer {
    Tokenizer::train(1, 100, 300).unwrap()
}

#[derive(Default)]
struct Record {
    steps: Vec<StepReport>,
    held_out: Vec<(u64, f32)>,
}

impl Observer for Record {
    fn on_step(&mut self, report: &StepReport) {
        self.steps.push(*report);
    }
    fn on_held_out(&mut self, step: u64, loss: f32) {
        self.held_out.push((step, loss));
    }
}

#[test]
fn the_loss_falls_and_every_step_is_reported() {
    let tokenizer = tokenizer();
    let mut trainer = Trainer::start(&small(), recipe(40), &tokenizer).unwrap();
    let mut record = Record::default();
    trainer.run(None, &mut record).unwrap();
    let (first, last) = (record.steps[0], record.steps[39]);
    assert!(last.loss < first.loss - 0.8, "{} -> {}", first.loss, last.loss);
    assert_eq!((last.step, last.total), (40, 40));
    assert!(record.steps.iter().all(|s| s.gradient_norm > 0.0 && s.tokens_per_second > 0.0));
    assert_eq!(record.held_out.len(), 10);
    assert!(record.held_out[9].1 < record.held_out[0].1);
}

#[test]
fn a_resumed_run_has_the_same_losses_and_weights() {
    let tokenizer = tokenizer();
    let directory = tempfile::tempdir().unwrap();
    let mut whole = Trainer::start(&small(), recipe(12), &tokenizer).unwrap();
    let saving = Saving { directory: directory.path().join("a"), every: 7 };
    whole.run(Some(&saving), &mut Silent).unwrap();
    let at_seven = Checkpoint::load(&saving.directory.join("step-00000007.safetensors")).unwrap();
    assert_eq!(at_seven.progress.step, 7);
    let mut resumed = Trainer::resume(&small(), recipe(12), &tokenizer, at_seven).unwrap();
    resumed.run(None, &mut Silent).unwrap();
    assert_eq!(resumed.progress().history, whole.progress().history);
    assert_eq!(resumed.model().values().unwrap(), whole.model().values().unwrap());
}

#[test]
fn a_checkpoint_of_another_recipe_or_shape_is_refused() {
    let tokenizer = tokenizer();
    let saved = Trainer::start(&small(), recipe(5), &tokenizer).unwrap().checkpoint().unwrap();
    let other = Recipe { seed: 4, ..recipe(5) };
    assert!(Trainer::resume(&small(), other, &tokenizer, saved.clone()).is_err());
    let mut short = saved;
    short.first.pop();
    assert!(Trainer::resume(&small(), recipe(5), &tokenizer, short).is_err());
}

#[test]
fn a_recipe_without_rows_is_refused() {
    let tokenizer = tokenizer();
    assert!(Trainer::start(&small(), Recipe { batch: 0, ..recipe(5) }, &tokenizer).is_err());
}

fn one_batch(tokenizer: &Tokenizer) -> Batch {
    let source = Source { seed: 9, split: Split::Train, length: 80, long: false };
    Batch::draw(tokenizer, source, 0, 3).unwrap()
}

/// The gradient of every kind of parameter agrees with finite differences along a random direction.
#[test]
fn gradients_agree_with_finite_differences() {
    let tokenizer = tokenizer();
    let batch = one_batch(&tokenizer);
    let model = Llama::new(&small(), 1).unwrap();
    let (_, grads) = gradients(&model, &batch, 1).unwrap();
    let values = model.values().unwrap();
    for (index, name) in model.names().iter().enumerate() {
        let direction: Vec<f32> = grads[index].iter().map(|g| g.signum()).collect();
        let expected: f64 = grads[index].iter().map(|g| f64::from(g.abs())).sum();
        let loss_at = |shift: f32| {
            let mut moved = values.clone();
            moved[index].iter_mut().zip(&direction).for_each(|(v, d)| *v += shift * d);
            let moved = Llama::from_values(&small(), moved).unwrap();
            let sum: f32 = loss_sum(&moved, &batch).unwrap().to_scalar().unwrap();
            f64::from(sum) / batch.learnt()
        };
        let shift = (0.001 / expected.max(0.4)) as f32;
        let measured = (loss_at(shift) - loss_at(-shift)) / (2.0 * f64::from(shift));
        let error = (measured - expected).abs() / expected.max(1e-3);
        assert!(error < 0.03, "{name}: measured {measured}, computed {expected}");
    }
}

#[test]
fn threads_change_only_the_rounding() {
    let tokenizer = tokenizer();
    let batch = one_batch(&tokenizer);
    let model = Llama::new(&small(), 1).unwrap();
    let (alone, shared) = (gradients(&model, &batch, 1).unwrap(), gradients(&model, &batch, 3).unwrap());
    assert!((alone.0 - shared.0).abs() < 1e-4);
    let pairs = alone.1.iter().flatten().zip(shared.1.iter().flatten());
    assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-4));
    assert_eq!(shared, gradients(&model, &batch, 3).unwrap());
}

#[test]
fn a_document_does_not_see_its_neighbour() {
    let model = Llama::new(&small(), 1).unwrap();
    let logits = |tokens: &[u32], starts: &[u32]| {
        let hidden = model.hidden(tokens, &Arc::new(starts.to_vec()), 1).unwrap();
        model.logits(&hidden).unwrap().to_vec2::<f32>().unwrap()
    };
    let alone = logits(&[1, 8, 9], &[0, 0, 0]);
    let packed = logits(&[1, 70, 80, 1, 8, 9], &[0, 0, 0, 3, 3, 3]);
    // Rotary positions are relative, so that only rounding differs.
    for (a, b) in alone.iter().flatten().zip(packed[3..].iter().flatten()) {
        assert!((a - b).abs() < 1e-4);
    }
}

#[test]
fn greedy_generation_is_repeatable_and_bounded() {
    let model = Llama::new(&small(), 1).unwrap();
    let first = generate(&model, &[1, 3, 9], 10, 0.0, 0).unwrap();
    assert!(first.len() <= 10);
    assert_eq!(first, generate(&model, &[1, 3, 9], 10, 0.0, 7).unwrap());
    assert_eq!(generate(&model, &[1, 3], 10, 1.0, 5).unwrap(), generate(&model, &[1, 3], 10, 1.0, 5).unwrap());
}
