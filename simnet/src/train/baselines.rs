//! The same model trained otherwise: what compression and absent gradients cost.

use std::sync::Arc;

use anyhow::Result;
use consortium_node::training::collective::{Assignment, LocalRecipe, Parameters, Task, local_steps};
use consortium_node::training::corpus::Split;
use consortium_node::training::optimizer::AdamW;
use consortium_node::training::packing::Batch;
use consortium_node::training::trainer::mean_loss;

use super::arena::FOLLOWED;
use super::cores::side_by_side;
use super::curve::{Curve, exchange_seconds};
use super::setting::{Purpose, Setting};

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
    let bytes = sizes.iter().sum::<usize>() * size_of::<f32>();
    let mut curve = Curve::begin(name, baseline.loss(&followed)?);
    for round in 0..setting.rounds {
        let seconds = baseline.round(setting, round)?;
        curve.push(seconds + exchange_seconds(peers, bytes), baseline.loss(&followed)?);
    }
    Ok(curve)
}

impl Baseline {
    fn loss(&self, batch: &Batch) -> Result<f64> {
        Ok(mean_loss(&Parameters::new(&self.task, self.values.clone())?.model()?, batch)?)
    }

    /// Trains a round; answers with the seconds of the slowest peer's local steps.
    fn round(&mut self, setting: &Setting, round: u64) -> Result<f64> {
        let recipe = self.task.recipe();
        let beacon = setting.draw(Purpose::Assignment, round);
        let assignment =
            Assignment::new(&beacon, round, self.peers, recipe.rows_each(), recipe.data.rows(Split::Train))?;
        let common = Parameters::new(&self.task, self.values.clone())?;
        let (task, common) = (&self.task, &common);
        let made = side_by_side(self.optimizers.iter_mut().enumerate().collect(), |(peer, adam)| {
            local_steps(task, common, adam, round, &assignment.rows(peer))
        })?;
        let (share, mut seconds) = (1.0 / self.peers as f32, 0f64);
        for (run, took) in made {
            let delta = run?.delta;
            let pairs = self.values.iter_mut().flatten().zip(delta.iter().flatten());
            pairs.for_each(|(value, change)| *value -= share * change);
            seconds = seconds.max(took);
        }
        Ok(seconds)
    }
}
