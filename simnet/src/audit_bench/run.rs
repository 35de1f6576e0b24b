//! The measurement of one model.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use consortium_node::inference::audit::classes::available;
use consortium_node::inference::audit::thresholds::Thresholds;
use consortium_protocol::wire::audit::BLOCK;

use super::activations::Activations;
use super::custody::{Caught, Custody, Parties, Scheme};
use super::honest::{Bench, Job, Work, class_name};
use super::judge::{Judgement, Stage};
use super::report::{Costs, Report};
use super::subjects::{Forged, Subject, forge};
use super::tally::Tally;
use crate::cheat::CheatingWorker;

/// Cheats are measured on every so many jobs and at most on so many, selective ones on all.
const CHEATED: usize = 3;
const MOST_CHEATED: usize = 10;
/// Rows that an auditor recomputes at once, by turns: 0 is the usual number.
const CHUNKS: [usize; 2] = [0, 2 * BLOCK];

/// Threads that honest work is done on, by turns: 0 is as many as the machine has.
const THREADS: [usize; 2] = [0, 1];

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of the model.
    pub model: PathBuf,
    /// Judgements of honest blocks, at least, over all pairs.
    pub blocks: usize,
    /// Decides prompts, seeds and where selective cheats cheat.
    pub seed: u64,
    /// Where tampered weights go.
    pub scratch: PathBuf,
    /// How far honest numbers may lie apart.
    pub thresholds: Thresholds,
    /// Where activations are written for other schemes.
    pub activations: Option<PathBuf>,
}

/// Everything that is counted.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) honest: Tally,
    pub(super) cheats: BTreeMap<usize, Tally>,
    pub(super) custody: BTreeMap<(Scheme, Caught), u64>,
    pub(super) costs: Costs,
}

/// A job's honest work in one class, and who might cheat in its place.
struct Turn<'a> {
    bench: &'a Bench,
    job: &'a Job,
    number: usize,
    work: &'a Work,
    class: usize,
}

/// Measures one model. `progress` is told how many of how many pieces of work are done.
///
/// # Errors
/// When the model cannot be loaded, there are no thresholds for its stages, or a file cannot be written.
pub fn run(options: &Options, progress: &mut dyn FnMut(usize, usize)) -> Result<Report> {
    let bench = Bench::load(&options.model)?;
    let subjects = Subject::all();
    let classes = available().len();
    let per_job = bench.ranges.len() * bench.rows().div_ceil(BLOCK) * classes * classes;
    let jobs = options.blocks.div_ceil(per_job).max(2 * CHEATED);
    let parties = Parties::new(bench.ranges.len());
    let mut workers: BTreeMap<(usize, usize), CheatingWorker> = BTreeMap::new();
    for (index, subject) in subjects.iter().enumerate() {
        for (class, named) in available().into_iter().enumerate() {
            let scratch = options.scratch.join(format!("{index}"));
            workers.insert((index, class), subject.worker(&options.model, &scratch, named));
        }
    }
    let mut activations = options.activations.as_deref().map(|dir| Activations::create(dir, &bench)).transpose()?;
    let pool = |threads: &usize| rayon::ThreadPoolBuilder::new().num_threads(*threads).build();
    let pools: Vec<rayon::ThreadPool> = THREADS.iter().map(pool).collect::<Result<_, _>>()?;
    let mut counts = Counts::default();
    let mut previous: Option<(Job, Work)> = None;
    let total = jobs * classes;
    for number in 0..jobs {
        let job = bench.job(number, options.seed)?;
        for class in 0..classes {
            let started = Instant::now();
            // Another attempt for each class: a selective cheat then picks other blocks.
            let order = parties.order(&bench, &job, class as u32)?;
            // With every class on either number of threads.
            let pool = &pools[(number / CHUNKS.len()) % THREADS.len()];
            let work = pool.install(|| bench.work(&job, class))?;
            counts.costs.generated(class, job.rows, started.elapsed());
            let turn = Turn { bench: &bench, job: &job, number, work: &work, class };
            let cheated = number % CHEATED == 0 && number < CHEATED * MOST_CHEATED;
            for place in 0..bench.ranges.len() {
                let started = Instant::now();
                let chunk = CHUNKS[number % CHUNKS.len()];
                let stage = Stage::recompute(&bench, &job, &work, place, chunk)?;
                counts.costs.recomputed(job.rows, started.elapsed());
                let margins = stage.margins(&work.drawn)?;
                let judgements = turn.judge(&stage, &work.outputs[place], &margins, &options.thresholds)?;
                counts.costs.compared(&judgements);
                counts.honest.add(class, &judgements, |_| true);
                if let Some(activations) = activations.as_mut().filter(|_| cheated) {
                    activations.honest(number, class, &stage, &work.outputs[place], &judgements)?;
                }
                for (index, subject) in subjects.iter().enumerate() {
                    if !cheated && !subject.is_selective() {
                        continue;
                    }
                    let worker = &workers[&(index, class)];
                    let Some(forged) = forge(worker, &bench, order.payload(), &job, &work, place)? else { continue };
                    let judgements = turn.judge_forged(&stage, &forged, &options.thresholds)?;
                    let tally = counts.cheats.entry(index).or_default();
                    tally.add(class, &judgements, |block| forged.changed[block]);
                    if let Some(activations) = activations.as_mut().filter(|_| cheated && !subject.is_selective()) {
                        activations.cheat(number, class, &stage, &subject.label, &forged, &judgements)?;
                    }
                }
            }
            if class == 0 {
                if let Some((other_job, other)) = &previous {
                    turn.custody(&parties, (other_job, other), &options.thresholds, &mut counts)?;
                }
                previous = Some((job.clone(), work));
            }
            progress(number * classes + class + 1, total);
        }
    }
    if let Some(activations) = activations {
        activations.finish()?;
    }
    Ok(Report::new(&bench, jobs, &subjects, &counts))
}

impl Turn<'_> {
    /// What auditors of all classes say, in order.
    fn judge(
        &self,
        stage: &Stage<'_>,
        observed: &[f32],
        margins: &[f64],
        thresholds: &Thresholds,
    ) -> Result<Vec<Judgement>> {
        let judge = |auditor| stage.judge(auditor, observed, margins, thresholds);
        let judged: Result<Vec<Judgement>> = (0..available().len()).map(judge).collect();
        judged.with_context(|| format!("job {}, stage {}, {}", self.number, stage.place, class_name(self.work.class)))
    }

    fn judge_forged(&self, stage: &Stage<'_>, forged: &Forged, thresholds: &Thresholds) -> Result<Vec<Judgement>> {
        let margins = stage.margins(&forged.drawn)?;
        self.judge(stage, &forged.outputs, &margins, thresholds)
    }

    /// Tries every scheme on every stage of the job.
    fn custody(
        &self,
        parties: &Parties,
        other: (&Job, &Work),
        thresholds: &Thresholds,
        counts: &mut Counts,
    ) -> Result<()> {
        let here = Custody::new(parties, self.bench, self.job, self.work, self.class)?;
        let there = Custody::new(parties, self.bench, other.0, other.1, self.class)?;
        counts.costs.receipts(here.receipt_bytes(parties));
        for scheme in Scheme::ALL {
            for place in 0..self.bench.ranges.len() {
                if let Some(caught) = here.attempt(parties, scheme, place, &there, thresholds)? {
                    *counts.custody.entry((scheme, caught)).or_default() += 1;
                }
            }
        }
        Ok(())
    }
}

/// Microseconds of each of so many.
pub(super) fn micros_each(total: Duration, count: usize) -> f64 {
    total.as_secs_f64() * 1e6 / count.max(1) as f64
}
