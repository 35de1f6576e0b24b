//! One stage of one job against its recomputation, as an auditor judges it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use consortium_node::inference::audit::auditor::reference_class;
use consortium_node::inference::audit::classes::{available, nearest};
use consortium_node::inference::audit::compare::{Finding, Limits, Recomputed, compare};
use consortium_node::inference::audit::replay::{ReplayInputs, Replayed, replay};
use consortium_node::inference::audit::thresholds::Thresholds;
use consortium_node::inference::sampling::Sampler;
use consortium_protocol::wire::audit::{BLOCK, NOT_DRAWN, NumericClass};

use super::honest::{Bench, Job, Work};
use super::source_grid::{Likeness, likeness};

/// A stage of honest work, recomputed over its inputs in every class.
pub struct Stage<'a> {
    bench: &'a Bench,
    job: &'a Job,
    work: &'a Work,
    /// Place in the route.
    pub place: usize,
    replays: Vec<Replayed>,
}

/// What an auditor says of a block.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// What it found.
    pub finding: Finding,
    /// The largest of the statistics, each in terms of its fraud limit: above 1 is fraud.
    pub score: f64,
    /// Bit for bit as recomputed.
    pub exact: bool,
    /// What the historic grid makes of it.
    pub source: Likeness,
}

/// What an auditor says of a stage of a job.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// Its blocks.
    pub blocks: Vec<Block>,
    /// All of it.
    pub finding: Finding,
    /// As [`Block::score`], means over the job included.
    pub score: f64,
    /// Time of the comparison, recomputing apart.
    pub comparing: Duration,
}

impl<'a> Stage<'a> {
    /// Recomputes a stage in all classes, `chunk` rows at a time (0 for the usual number).
    ///
    /// # Errors
    /// When the computation fails.
    pub fn recompute(bench: &'a Bench, job: &'a Job, work: &'a Work, place: usize, chunk: usize) -> Result<Self> {
        let inputs = match place.checked_sub(1) {
            None => ReplayInputs::Tokens(&work.tokens),
            Some(before) => ReplayInputs::Hidden(&work.outputs[before]),
        };
        let replays = bench.shards.iter().map(|shards| Ok(replay(&shards[place], inputs, chunk)?));
        Ok(Self { bench, job, work, place, replays: replays.collect::<Result<_>>()? })
    }

    /// Whether it draws tokens.
    pub fn is_last(&self) -> bool {
        self.place + 1 == self.bench.ranges.len()
    }

    /// The hidden states that an auditor of a class computes.
    pub fn recomputed(&self, class: usize) -> &[f32] {
        &self.replays[class].outputs
    }

    /// By how much the tokens drawn in each block lost, in logits: the largest of each. Nothing but on the last stage.
    ///
    /// # Errors
    /// When the computation fails.
    pub fn margins(&self, drawn: &[u32]) -> Result<Vec<f64>> {
        let blocks = self.job.rows.div_ceil(BLOCK);
        let mut margins = vec![0.0_f64; blocks];
        if !self.is_last() {
            return Ok(margins);
        }
        let matching = place_of(nearest(self.work.class));
        let shard = &self.bench.shards[matching][self.place];
        let sampler = Sampler::new(self.job.sampling.clone(), self.job.prompt.len() as u32);
        for (row, token) in drawn.iter().enumerate().filter(|(_, token)| **token != NOT_DRAWN) {
            let mut logits = self.replays[matching].logits(shard, row..row + 1)?;
            let context = &self.work.tokens[..=row];
            let lost = sampler.margin(&mut logits, context, row as u32 + 1, *token)?;
            margins[row / BLOCK] = margins[row / BLOCK].max(lost);
        }
        Ok(margins)
    }

    /// What an auditor of that class makes of hidden states and margins.
    ///
    /// # Errors
    /// When there are no thresholds for the classes, or the rows do not fit.
    pub fn judge(
        &self,
        auditor: usize,
        observed: &[f32],
        margins: &[f64],
        thresholds: &Thresholds,
    ) -> Result<Judgement> {
        let (auditor_class, auditee) = (available()[auditor], self.work.class);
        let layers = self.bench.ranges[self.place].count() as u16;
        let limits = thresholds
            .limits(auditor_class, auditee, layers)
            .with_context(|| format!("there are no thresholds for {auditor_class:?} checking {auditee:?}"))?;
        let recomputed = Recomputed {
            matching: self.recomputed(place_of(nearest(auditee))),
            reference: reference_class(auditor_class, auditee).map(|class| self.recomputed(place_of(class))),
        };
        let width = self.bench.width();
        let started = Instant::now();
        let stats = compare(observed, recomputed, width).map_err(|error| anyhow!("{error}"))?;
        let comparing = started.elapsed();
        let ratio = |limits: &Limits, value: f64| value / limits.fraud;
        let rows = BLOCK * width;
        let others = self.recomputed(auditor);
        let pieces = observed.chunks(rows).zip(others.chunks(rows));
        let blocks: Vec<Block> = stats
            .blocks
            .iter()
            .zip(margins)
            .zip(pieces)
            .map(|((block, margin), (observed, other))| {
                let numbers = [(&limits.near, block.near), (&limits.far, block.far), (&limits.worst, block.worst)];
                let numbers = match (block.exact, block.broken) {
                    (true, _) => 0.0,
                    (_, true) => f64::INFINITY,
                    _ => numbers.iter().map(|(limits, value)| ratio(limits, *value)).fold(0.0, f64::max),
                };
                Block {
                    finding: limits.judge_block(block).max(limits.margin.judge(*margin)),
                    score: numbers.max(ratio(&limits.margin, *margin)),
                    exact: block.exact,
                    source: likeness(observed, other),
                }
            })
            .collect();
        let worst_margin = margins.iter().copied().fold(0.0, f64::max);
        let means = match stats.exact() == stats.blocks.len() {
            true => 0.0,
            false => ratio(&limits.job_near, stats.near).max(ratio(&limits.job_far, stats.far)),
        };
        Ok(Judgement {
            finding: limits.judge(&stats).max(limits.margin.judge(worst_margin)),
            score: blocks.iter().map(|block| block.score).fold(means, f64::max),
            blocks,
            comparing,
        })
    }
}

/// The place of a class in [`available`]; of the first, where it is none of them.
pub fn place_of(class: NumericClass) -> usize {
    available().iter().position(|other| *other == class).unwrap_or_default()
}
