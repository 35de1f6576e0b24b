//! What was measured, as it is printed and written.

use std::collections::BTreeMap;
use std::time::Duration;

use consortium_node::inference::audit::classes::available;
use consortium_protocol::wire::audit::BLOCK;
use serde::Serialize;

use super::custody::{Caught, Scheme};
use super::honest::{Bench, class_name};
use super::judge::Judgement;
use super::rates::Rate;
use super::roc;
use super::run::{Counts, micros_each};
use super::subjects::Subject;
use super::tally::{Agreement, Cell, Findings, Tally};

/// Below this share of detected blocks a cheat counts as hidden by the noise.
const MATERIAL: f64 = 0.999;
/// Share of the stages of jobs that are audited where nothing is said.
const AUDITED: f64 = 0.2;
/// Positions of the job by which the time until a cheat is caught is told: 50 in and 500 out.
const POSITIONS: usize = 550;
/// Cheats whose curves on the historic grid are drawn.
const ON_THE_GRID: [&str; 3] = ["int8", "int4", "stale"];

/// The measurement of one model.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// The stages, such as `0-2`.
    pub stages: Vec<String>,
    /// Names of the numeric classes.
    pub classes: Vec<String>,
    /// Jobs, each done in every class.
    pub jobs: usize,
    /// Rows of each.
    pub rows: usize,
    /// Honest blocks that were computed; each was judged by an auditor of every class.
    pub honest_blocks: u64,
    /// Honest work by pair.
    pub honest: Vec<Row>,
    /// The same over all pairs.
    pub honest_total: Row,
    /// Auditors of different classes on the same honest blocks.
    pub honest_blocks_agreement: Agreement,
    /// The same on stages of jobs.
    pub honest_jobs_agreement: Agreement,
    /// Every cheat.
    pub cheats: Vec<CheatReport>,
    /// Cheats at commitments.
    pub custody: Vec<SchemeReport>,
    /// What it costs.
    pub costs: Costs,
    /// Curves, a panel for each class of auditee, by block and then by job.
    pub panels: Vec<Panel>,
}

/// What auditors found in one kind of work.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The auditor's class; none for all.
    pub auditor: Option<String>,
    /// The auditee's class; none for all.
    pub auditee: Option<String>,
    /// Blocks; for cheats, those that the cheat changed.
    pub blocks: Findings,
    /// Blocks that a cheat left alone.
    pub untouched: Findings,
    /// Stages of jobs.
    pub jobs: Findings,
    /// Blocks equal bit for bit.
    pub exact: Rate,
    /// Equal hashes on the historic grid.
    pub source_equal: Rate,
    /// Within one step on the historic grid.
    pub source_within: Rate,
    /// The largest score of a block: 1 is the fraud limit.
    pub largest: f64,
    /// The smallest score of a block.
    pub smallest: f64,
}

/// One cheat.
#[derive(Clone, Debug, Serialize)]
pub struct CheatReport {
    /// Its name.
    pub cheat: String,
    /// What it would gain.
    pub gain: &'static str,
    /// Over all pairs.
    pub total: Row,
    /// By pair.
    pub pairs: Vec<Row>,
    /// Pairs in which it hides in the noise: fewer blocks detected than 99.9 %.
    pub hidden: Vec<Row>,
    /// Blocks that a stage computes on average until an audit shows the fraud, at an audit rate of 20 % and jobs of 550
    /// positions, if blocks are found out independently of each other.
    pub blocks_until_caught: f64,
    /// Auditors of different classes on the same stages of jobs.
    pub jobs_agreement: Agreement,
}

/// One cheat at commitments.
#[derive(Clone, Debug, Serialize)]
pub struct SchemeReport {
    /// In words.
    pub scheme: &'static str,
    /// How often it was tried.
    pub tried: u64,
    /// By whom it was noticed, how often.
    pub caught: BTreeMap<String, u64>,
}

/// What audits cost.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Costs {
    /// Rows and time of generation by class.
    generation: BTreeMap<usize, (usize, Duration)>,
    /// Rows and time of recomputing a stage in all classes.
    recomputing: (usize, Duration),
    /// Blocks and time of comparing.
    comparing: (usize, Duration),
    /// Bytes of the signed receipts of a job, all stages.
    pub receipt_bytes: usize,
}

/// Curves of one class of auditee.
#[derive(Clone, Debug, Serialize)]
pub struct Panel {
    /// What it shows.
    pub title: String,
    /// Honest blocks or jobs behind it.
    pub honest: usize,
    /// Cheats that are told from all honest work.
    pub apart: Vec<String>,
    /// The others, with their curves.
    pub curves: Vec<(String, Vec<(f64, f64)>)>,
}

impl Costs {
    pub(super) fn generated(&mut self, class: usize, rows: usize, time: Duration) {
        let so_far = self.generation.entry(class).or_default();
        *so_far = (so_far.0 + rows, so_far.1 + time);
    }

    pub(super) fn recomputed(&mut self, rows: usize, time: Duration) {
        self.recomputing = (self.recomputing.0 + rows, self.recomputing.1 + time);
    }

    pub(super) fn compared(&mut self, judgements: &[Judgement]) {
        for judgement in judgements {
            self.comparing = (self.comparing.0 + judgement.blocks.len(), self.comparing.1 + judgement.comparing);
        }
    }

    pub(super) fn receipts(&mut self, bytes: usize) {
        self.receipt_bytes = bytes;
    }

    /// Microseconds to generate a row, all stages, in a class.
    pub fn generation_micros(&self, class: usize) -> f64 {
        self.generation.get(&class).map_or(0.0, |(rows, time)| micros_each(*time, *rows))
    }

    /// Microseconds to recompute a row of all stages, in one class.
    pub fn recomputing_micros(&self, stages: usize) -> f64 {
        micros_each(self.recomputing.1, self.recomputing.0) * stages as f64 / available().len() as f64
    }

    /// Microseconds to compare a block of a stage.
    pub fn comparing_micros(&self) -> f64 {
        micros_each(self.comparing.1, self.comparing.0)
    }

    /// Bytes of all receipts for each row of a job with so many.
    pub fn receipt_bytes_per_row(&self, rows: usize) -> f64 {
        self.receipt_bytes as f64 / rows as f64
    }
}

impl Row {
    fn new(cell: &Cell, classes: Option<(usize, usize)>) -> Self {
        let name = |class: usize| class_name(available()[class]);
        Self {
            auditor: classes.map(|(auditor, _)| name(auditor)),
            auditee: classes.map(|(_, auditee)| name(auditee)),
            blocks: cell.blocks,
            untouched: cell.untouched,
            jobs: cell.jobs,
            exact: cell.exact,
            source_equal: cell.source_equal,
            source_within: cell.source_within,
            largest: cell.scores.iter().copied().fold(0.0, f64::max),
            smallest: cell.scores.iter().copied().fold(f64::INFINITY, f64::min),
        }
    }

    fn pairs(tally: &Tally) -> Vec<Self> {
        tally.cells.iter().map(|(pair, cell)| Self::new(cell, Some((pair.auditor, pair.auditee)))).collect()
    }

    /// `own f32 checks candle bf16`.
    pub fn pair(&self) -> String {
        match (&self.auditor, &self.auditee) {
            (Some(auditor), Some(auditee)) => format!("{auditor} checks {auditee}"),
            _ => "all".to_owned(),
        }
    }
}

impl Report {
    pub(super) fn new(bench: &Bench, jobs: usize, subjects: &[Subject], counts: &Counts) -> Self {
        let Counts { honest, cheats, custody, costs } = counts;
        let classes = available();
        let rows = bench.rows();
        let cheat = |(index, tally): (&usize, &Tally)| {
            let pairs = Row::pairs(tally);
            let hidden = pairs.iter().filter(|row| row.blocks.frauds().share() < MATERIAL).cloned().collect();
            let total = Row::new(&tally.total(), None);
            CheatReport {
                blocks_until_caught: until_caught(subjects[*index].cheat.share * total.blocks.frauds().share()),
                cheat: subjects[*index].label.clone(),
                gain: subjects[*index].cheat.kind.gain(),
                total,
                pairs,
                hidden,
                jobs_agreement: tally.job_agreement,
            }
        };
        Self {
            model: bench.dir.name().to_owned(),
            stages: bench.ranges.iter().map(ToString::to_string).collect(),
            classes: classes.into_iter().map(class_name).collect(),
            jobs,
            rows,
            honest_blocks: (jobs * classes.len() * bench.ranges.len() * rows.div_ceil(BLOCK)) as u64,
            honest: Row::pairs(honest),
            honest_total: Row::new(&honest.total(), None),
            honest_blocks_agreement: honest.block_agreement,
            honest_jobs_agreement: honest.job_agreement,
            cheats: cheats.iter().map(cheat).collect(),
            custody: schemes(custody),
            costs: costs.clone(),
            panels: panels(subjects, honest, cheats),
        }
    }
}

/// Blocks until a stage is caught that is found out in this share of its blocks.
fn until_caught(share: f64) -> f64 {
    let blocks = POSITIONS.div_ceil(BLOCK) as f64;
    blocks / (AUDITED * (1.0 - (1.0 - share).powf(blocks)))
}

fn schemes(custody: &BTreeMap<(Scheme, Caught), u64>) -> Vec<SchemeReport> {
    let report = |scheme: Scheme| {
        let found = custody.iter().filter(|((other, _), _)| *other == scheme);
        let caught: BTreeMap<String, u64> = found.map(|((_, caught), count)| (format!("{caught:?}"), *count)).collect();
        SchemeReport { scheme: scheme.name(), tried: caught.values().sum(), caught }
    };
    Scheme::ALL.into_iter().map(report).collect()
}

fn panels(subjects: &[Subject], honest: &Tally, cheats: &BTreeMap<usize, Tally>) -> Vec<Panel> {
    let mut panels = Vec::new();
    for (what, scores) in [("blocks", (|cell| cell.scores) as fn(Cell) -> Vec<f64>), ("jobs", |cell| cell.job_scores)] {
        for (auditee, class) in available().into_iter().enumerate() {
            let work = honest.of_auditee(auditee);
            let on_the_grid = work.source_scores.clone();
            let honest = scores(work);
            let mut panel = Panel {
                title: format!("{what} of {}", class_name(class)),
                honest: honest.len(),
                apart: Vec::new(),
                curves: Vec::new(),
            };
            // A selective cheat's stage of a job is honest work for the most part.
            for (index, tally) in cheats.iter().filter(|(index, _)| !subjects[**index].is_selective()) {
                let label = &subjects[*index].label;
                let forged = tally.of_auditee(auditee);
                if what == "blocks" && ON_THE_GRID.contains(&label.as_str()) {
                    let points = roc::curve(&on_the_grid, &forged.source_scores);
                    panel.curves.push((format!("grid 64: {label}"), points));
                }
                let points = roc::curve(&honest, &scores(forged));
                match points.first() {
                    Some((0.0, 1.0)) => panel.apart.push(label.clone()),
                    _ => panel.curves.push((label.clone(), points)),
                }
            }
            if !panel.curves.is_empty() {
                panels.push(panel);
            }
        }
    }
    panels
}
