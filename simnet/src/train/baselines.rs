//! The same model trained otherwise: what compression and absent gradients cost.

use std::sync::Arc;

use anyhow::Result;
use consortium_node::training::collective::{Assignment, LocalRecipe, Parameters, Task, local_steps};
use consortium_node::training::corpus::Split;
use consortium_node::training::optimizer::AdamW;
use consortium_node::training::packing::Batch;
use consortium_node::training::trainer::mean_loss;
use serde::Serialize;

use super::arena::FOLLOWED;
use super::cores::on_one_core;
use super::setting::{Purpose, Setting};

/// Held-out loss over a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Curve {
    /// What was run.
    pub name: String,
    /// Rounds done and the loss after them, nats per token.
    pub points: Vec<(u64, f64)>,
}

/// What is trained in a round, and how it goes into the parameters.
struct Baseline {
    task: Arc<Task>,
    peers: usize,
    optimizers: Vec<AdamW>,
    values: Vec<Vec<f32>>,
}

/// Dense DiLoCo: each of `peers` takes the same local steps, and the plain mean of what they changed is taken off, at the
/// same outer rate as with SparseLoCo. Nothing is compressed.
///
/// # Errors
/// When training fails.
pub fn dense(setting: &Setting, task: &Arc<Task>, peers: usize) -> Result<Curve> {
    run(&format!("dense, {peers} peers"), setting, Arc::clone(task), peers)
}

/// One AdamW with the same tokens: as many steps as a peer takes, with the rows of all of `peers` in each.
///
/// # Errors
/// When training fails.
pub fn single(setting: &Setting, task: &Arc<Task>, peers: usize) -> Result<Curve> {
    let recipe = LocalRecipe { batch: task.recipe().batch * peers, ..task.recipe().clone() };
    run("one AdamW, same tokens", setting, Arc::new(task.with_recipe(recipe)?), 1)
}

fn run(name: &str, setting: &Setting, task: Arc<Task>, peers: usize) -> Result<Curve> {
    let (first, count) = FOLLOWED;
    let followed = task.batch(Split::HeldOut, &(first..).take(count).collect::<Vec<_>>())?;
    let values = Parameters::fresh(&task, setting.seed)?.values().to_vec();
    let sizes: Vec<usize> = values.iter().map(Vec::len).collect();
    let optimizers = vec![AdamW::new(task.recipe().adam, &sizes); peers];
    let mut baseline = Baseline { task, peers, optimizers, values };
    let mut points = vec![(0, baseline.loss(&followed)?)];
    for round in 0..setting.rounds {
        baseline.round(setting, round)?;
        points.push((round + 1, baseline.loss(&followed)?));
    }
    Ok(Curve { name: name.to_owned(), points })
}

impl Baseline {
    fn loss(&self, batch: &Batch) -> Result<f64> {
        Ok(mean_loss(&Parameters::new(&self.task, self.values.clone())?.model()?, batch)?)
    }

    fn round(&mut self, setting: &Setting, round: u64) -> Result<()> {
        let recipe = self.task.recipe();
        let beacon = setting.draw(Purpose::Assignment, round);
        let assignment = Assignment::new(&beacon, round, self.peers, recipe.rows_each(), recipe.rows)?;
        let common = Parameters::new(&self.task, self.values.clone())?;
        let (task, common) = (&self.task, &common);
        let deltas: Vec<Result<Vec<Vec<f32>>>> = std::thread::scope(|scope| {
            let train = |(peer, adam)| {
                let rows = assignment.rows(peer);
                scope.spawn(move || Ok(on_one_core(|| local_steps(task, common, adam, round, &rows))??.delta))
            };
            let threads: Vec<_> = self.optimizers.iter_mut().enumerate().map(train).collect();
            threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        let share = 1.0 / self.peers as f32;
        for delta in deltas {
            let delta = delta?;
            let pairs = self.values.iter_mut().flatten().zip(delta.iter().flatten());
            pairs.for_each(|(value, change)| *value -= share * change);
        }
        Ok(())
    }
}
