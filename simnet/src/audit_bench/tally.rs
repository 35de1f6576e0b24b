//! What auditors found, counted.

use std::collections::BTreeMap;

use consortium_node::inference::audit::compare::Finding;
use serde::Serialize;

use super::judge::Judgement;
use super::rates::Rate;

/// How often each finding was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Passed.
    pub pass: u64,
    /// Neither.
    pub inconclusive: u64,
    /// Fraud.
    pub fraud: u64,
}

impl Findings {
    fn count(&mut self, finding: Finding) {
        match finding {
            Finding::Pass => self.pass += 1,
            Finding::Inconclusive => self.inconclusive += 1,
            Finding::Fraud => self.fraud += 1,
        }
    }

    /// The sum of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            pass: self.pass + other.pass,
            inconclusive: self.inconclusive + other.inconclusive,
            fraud: self.fraud + other.fraud,
        }
    }

    /// How many.
    pub fn total(self) -> u64 {
        self.pass + self.inconclusive + self.fraud
    }

    /// How often it was fraud.
    pub fn frauds(self) -> Rate {
        Rate { hits: self.fraud, total: self.total() }
    }

    /// How often it was not a pass.
    pub fn doubts(self) -> Rate {
        Rate { hits: self.fraud + self.inconclusive, total: self.total() }
    }
}

/// What auditors of one class found in work of another, all of one kind.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    /// Blocks of honest work, or those that a cheat changed.
    pub blocks: Findings,
    /// Blocks that a cheat left alone.
    pub untouched: Findings,
    /// Stages of jobs.
    pub jobs: Findings,
    /// Blocks that were equal bit for bit.
    pub exact: Rate,
    /// Blocks whose hashes on the historic grid are equal.
    pub source_equal: Rate,
    /// Blocks within one step on the historic grid.
    pub source_within: Rate,
    /// Of the blocks counted in `blocks`, for curves.
    pub scores: Vec<f64>,
    /// Steps on the historic grid, of the same blocks.
    pub source_scores: Vec<f64>,
    /// Of the jobs.
    pub job_scores: Vec<f64>,
}

impl Cell {
    /// Takes in a judgement; `changed` tells which blocks count.
    pub fn add(&mut self, judgement: &Judgement, changed: impl Fn(usize) -> bool) {
        for (index, block) in judgement.blocks.iter().enumerate() {
            if !changed(index) {
                self.untouched.count(block.finding);
                continue;
            }
            self.blocks.count(block.finding);
            self.exact.count(block.exact);
            self.source_equal.count(block.source.equal);
            self.source_within.count(block.source.within_one_step);
            self.scores.push(block.score);
            self.source_scores.push(f64::from(block.source.steps));
        }
        self.jobs.count(judgement.finding);
        self.job_scores.push(judgement.score);
    }

    /// Both together.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.blocks = self.blocks.and(other.blocks);
        self.untouched = self.untouched.and(other.untouched);
        self.jobs = self.jobs.and(other.jobs);
        self.exact = self.exact.and(other.exact);
        self.source_equal = self.source_equal.and(other.source_equal);
        self.source_within = self.source_within.and(other.source_within);
        self.scores.extend_from_slice(&other.scores);
        self.source_scores.extend_from_slice(&other.source_scores);
        self.job_scores.extend_from_slice(&other.job_scores);
        self
    }
}

/// How often two auditors of different classes say the same of the same work.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Agreement {
    /// The same finding.
    pub same: Rate,
    /// One passes what the other calls fraud.
    pub contradiction: Rate,
}

impl Agreement {
    fn add(&mut self, findings: &[Finding]) {
        for (index, one) in findings.iter().enumerate() {
            for other in &findings[..index] {
                self.same.count(one == other);
                self.contradiction.count((*one).min(*other) == Finding::Pass && (*one).max(*other) == Finding::Fraud);
            }
        }
    }
}

/// Auditor's and auditee's class, by their places in the list of classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Pair {
    /// Who checks.
    pub auditor: usize,
    /// Who is checked.
    pub auditee: usize,
}

/// Everything found about one kind of work.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// By pair.
    pub cells: BTreeMap<Pair, Cell>,
    /// Of auditors over blocks.
    pub block_agreement: Agreement,
    /// Of auditors over stages of jobs.
    pub job_agreement: Agreement,
}

impl Tally {
    /// Takes in what the auditors of all classes, in order, say of the same work.
    pub fn add(&mut self, auditee: usize, judgements: &[Judgement], changed: impl Fn(usize) -> bool + Copy) {
        for (auditor, judgement) in judgements.iter().enumerate() {
            self.cells.entry(Pair { auditor, auditee }).or_default().add(judgement, changed);
        }
        let findings: Vec<Finding> = judgements.iter().map(|judgement| judgement.finding).collect();
        self.job_agreement.add(&findings);
        let blocks = judgements.first().map_or(0, |judgement| judgement.blocks.len());
        for block in (0..blocks).filter(|block| changed(*block)) {
            let findings: Vec<Finding> = judgements.iter().map(|judgement| judgement.blocks[block].finding).collect();
            self.block_agreement.add(&findings);
        }
    }

    /// All pairs together.
    pub fn total(&self) -> Cell {
        self.cells.values().fold(Cell::default(), Cell::and)
    }

    /// All auditors of work of one class together.
    pub fn of_auditee(&self, auditee: usize) -> Cell {
        let cells = self.cells.iter().filter(|(pair, _)| pair.auditee == auditee);
        cells.fold(Cell::default(), |sum, (_, cell)| sum.and(cell))
    }
}
