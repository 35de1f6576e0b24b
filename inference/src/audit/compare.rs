//! How far a stage's numbers lie from what they should be, and whether that can be honest.
//!
//! # The statistic
//!
//! The drift of rows `a` from rows `b` is the mean over the rows of `|a - b| / |b|` (Euclidean). Honest drift in bf16 is
//! about 1 %, and so is the drift that weights rounded to 8 bits cause: no fixed bound on it separates them for all
//! models, depths and prompts. But honest drift is *predictable*: an auditor that recomputes the stage twice, in the
//! auditee's rounding (**matching**, [`super::classes::nearest`]) and in another (**reference**), sees on the very same
//! rows how much the rounding alone moves them. In that unit, the drift of matching from reference,
//!
//! - `far`, the drift of the observed rows from the reference, is 1 for honest work, whatever the model, the depth of
//!   the stage and the prompt: two paths that round at the same places drift equally far from a third. Over a block of 32
//!   rows it scatters by 1 to 3 %. An additional error of relative size `q` makes it `sqrt(1 + q^2)`.
//! - `near`, the drift from the matching rows, is 0 as long as no sum falls on the other side of a rounding edge, and
//!   grows with depth as such flips spread, to at most about `sqrt(2)` where nothing is left in common. It is the
//!   sharper of the two for stages of few layers, where `far` has a large honest part in it.
//! - `worst`, the largest drift of a single row from its matching row, finds forged rows in a block of honest ones.
//!
//! Between classes of f32 the unit is about 5e-7, so that 8-bit weights stand out by four orders of magnitude. Stages of
//! [`KernelFamily::Invariant`](consortium_protocol::wire::audit::KernelFamily) recomputed in their own class have no
//! honest drift at all; the unit is then [`EXACT_UNIT`], far above what another system's sine could do to a rotary angle and far below any
//! change of weights.
//!
//! Honest `near` depends on the number of layers of the stage, so limits are measured for each depth.
//!
//! # Over a whole job
//!
//! Means of `near` and `far` over the blocks of a job scatter less than blocks do, and have limits of their own.
//!
//! Changed weights make the same error for the same input, rounding does not. `systematic` is the slope of the cosine
//! between the errors of two rows against the cosine between the rows themselves, over all pairs of rows of a job: near 1
//! where the error is one linear map of the output, near 0 where errors know nothing of each other. It adds up over a job
//! as the norms do not. But a prompt that repeats itself repeats its rounding too (pairs of rows that are all but equal
//! are left out, which is no proof against an artful prompt), so this number may only withhold a *pass*; it never makes
//! a fraud.
//!
//! # What decides
//!
//! Any block beyond a fraud limit in `near`, `far` or `worst`, a job's mean beyond its own, or a NaN or
//! infinity in a row where none is expected, is fraud. All within the pass limits is a pass, the rest is inconclusive. Rows
//! that overflow in a recomputation tell nothing. The other numbers of [`BlockStats`] are for people.

use consortium_protocol::wire::audit::BLOCK;
use serde::{Deserialize, Serialize};

use super::grid::exponent;

/// The unit of drift where bits are expected to be equal. Rotary angles come from the system's sine and cosine; another
/// one's last place would move rows by about 1e-7.
pub const EXACT_UNIT: f64 = 1e-6;

/// Least unit of drift otherwise: two paths of f32 may agree by chance on a block.
const LEAST_UNIT: f64 = 5e-8;

/// Most rows of a job that are paired for `systematic`.
const MAX_PAIRED: usize = 512;
/// Fewer rows with an error than this tell nothing about what is common to errors.
const LEAST_PAIRED: usize = BLOCK;
/// Rows with a cosine beyond this are the same row again, with the same rounding.
const SAME: f64 = 0.95;

/// Rows that do not fit together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{observed} numbers observed, {recomputed} recomputed, rows of {width}")]
pub struct ShapeError {
    /// Numbers of the auditee.
    pub observed: usize,
    /// Numbers of a recomputation.
    pub recomputed: usize,
    /// Width of a row.
    pub width: usize,
}

/// What an auditor computed: hidden states `[rows, width]`, row-major, over the auditee's inputs.
#[derive(Debug, Clone, Copy)]
pub struct Recomputed<'a> {
    /// In the auditee's rounding.
    pub matching: &'a [f32],
    /// In another; none where the matching rows should be equal bit for bit.
    pub reference: Option<&'a [f32]>,
}

/// One block against its recomputation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BlockStats {
    /// Rows of the block.
    pub rows: usize,
    /// Equal bit for bit to the matching rows.
    pub exact: bool,
    /// A row with a NaN or infinity whose matching row has none.
    pub broken: bool,
    /// Drift from the matching rows: mean relative Euclidean error of a row.
    pub error: f64,
    /// The unit that `near`, `far` and `worst` are in.
    pub unit: f64,
    /// Drift from the matching rows in units.
    pub near: f64,
    /// Drift from the reference rows in units; as `near` if there is no reference.
    pub far: f64,
    /// Largest drift of a row from its matching row, in units.
    pub worst: f64,
    /// Mean of `|observed - matching|` relative to the row's root mean square.
    pub mean: f64,
    /// Median of the same.
    pub median: f64,
    /// 99th percentile of the same.
    pub p99: f64,
    /// Largest of the same.
    pub max: f64,
    /// Share of rows whose scale on the canonical grid differs.
    pub exponents: f64,
    /// Cosine between observed and matching rows, mean.
    pub cosine: f64,
}

/// All blocks of a job against their recomputation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobStats {
    /// In order.
    pub blocks: Vec<BlockStats>,
    /// Mean of the blocks' `near`.
    pub near: f64,
    /// Mean of the blocks' `far`.
    pub far: f64,
    /// How much of the error is one linear map of the rows.
    pub systematic: f64,
}

impl JobStats {
    /// How many blocks are equal bit for bit.
    pub fn exact(&self) -> usize {
        self.blocks.iter().filter(|block| block.exact).count()
    }
}

/// Compares a stage's hidden states `[rows, width]` with their recomputation, block by block.
///
/// # Errors
/// When they are not the same number of whole rows.
pub fn compare(observed: &[f32], recomputed: Recomputed<'_>, width: usize) -> Result<JobStats, ShapeError> {
    let reference = recomputed.reference.unwrap_or(recomputed.matching);
    for rows in [recomputed.matching, reference] {
        if width == 0 || !observed.len().is_multiple_of(width) || rows.len() != observed.len() {
            return Err(ShapeError { observed: observed.len(), recomputed: rows.len(), width });
        }
    }
    let block = BLOCK * width;
    let blocks: Vec<BlockStats> = observed
        .chunks(block)
        .zip(recomputed.matching.chunks(block))
        .zip(reference.chunks(block))
        .map(|((observed, matching), reference)| {
            block_stats(observed, matching, recomputed.reference.is_some().then_some(reference), width)
        })
        .collect();
    let mean = |value: fn(&BlockStats) -> f64| blocks.iter().map(value).sum::<f64>() / blocks.len().max(1) as f64;
    let (near, far) = (mean(|block| block.near), mean(|block| block.far));
    Ok(JobStats { blocks, near, far, systematic: systematic(observed, recomputed.matching, width) })
}

/// The norm of `a - b`, and of `b`.
fn norms(a: &[f32], b: &[f32]) -> (f64, f64) {
    let (mut difference, mut size) = (0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (f64::from(*a), f64::from(*b));
        difference += (a - b) * (a - b);
        size += b * b;
    }
    (difference.sqrt(), size.sqrt())
}

/// Relative error of a row; rows of zeros count as tiny, so that anything else is far away from them.
fn row_drift(a: &[f32], b: &[f32]) -> f64 {
    let (difference, size) = norms(a, b);
    if difference == 0.0 { 0.0 } else { difference / size.max(1e-30) }
}

/// Mean relative error of the rows for which `counts` holds.
fn drift(a: &[f32], b: &[f32], width: usize, counts: &[bool]) -> f64 {
    let rows = a.chunks_exact(width).zip(b.chunks_exact(width)).zip(counts);
    let sum: f64 = rows.filter(|(_, counts)| **counts).map(|((a, b), _)| row_drift(a, b)).sum();
    sum / counts.iter().filter(|counts| **counts).count().max(1) as f64
}

fn finite(row: &[f32]) -> bool {
    row.iter().all(|v| v.is_finite())
}

fn block_stats(observed: &[f32], matching: &[f32], reference: Option<&[f32]>, width: usize) -> BlockStats {
    let rows = observed.len() / width;
    let exact = observed.iter().zip(matching).all(|(a, b)| a.to_bits() == b.to_bits());
    let pairs = || observed.chunks_exact(width).zip(matching.chunks_exact(width));
    let broken = pairs().any(|(a, b)| !finite(a) && finite(b));
    let counts: Vec<bool> = matching.chunks_exact(width).map(finite).collect();
    let error = drift(observed, matching, width, &counts);
    let worst = pairs().zip(&counts).filter(|(_, counts)| **counts).map(|((a, b), _)| row_drift(a, b));
    let worst = worst.fold(0.0, f64::max);
    let (unit, far) = match reference {
        None => (EXACT_UNIT, error),
        Some(reference) => {
            let both: Vec<bool> =
                reference.chunks_exact(width).zip(&counts).map(|(row, counts)| *counts && finite(row)).collect();
            let unit = drift(matching, reference, width, &both).max(LEAST_UNIT);
            (unit, drift(observed, reference, width, &both))
        }
    };
    let mut relative: Vec<f64> = Vec::with_capacity(observed.len());
    let (mut exponents, mut cosine) = (0, 0.0);
    for ((a, b), _) in pairs().zip(&counts).filter(|(_, counts)| **counts) {
        let rms = (norms(b, b).1 / (width as f64).sqrt()).max(1e-30);
        relative.extend(a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs() / rms));
        exponents += usize::from(exponent(a) != exponent(b));
        cosine += if exact { 1.0 } else { cosine_of(a, b) };
    }
    if relative.is_empty() {
        relative.push(0.0);
    }
    relative.sort_unstable_by(f64::total_cmp);
    let quantile = |q: f64| relative[((relative.len() - 1) as f64 * q) as usize];
    BlockStats {
        rows,
        exact,
        broken,
        error,
        unit,
        near: error / unit,
        far: far / unit,
        worst: worst / unit,
        mean: relative.iter().sum::<f64>() / relative.len() as f64,
        median: quantile(0.5),
        p99: quantile(0.99),
        max: quantile(1.0),
        exponents: exponents as f64 / rows as f64,
        cosine: cosine / rows as f64,
    }
}

fn cosine_of(a: &[f32], b: &[f32]) -> f64 {
    let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    let size = norms(a, a).1 * norms(b, b).1;
    if size == 0.0 { 0.0 } else { dot / size }
}

/// See the module: the slope of the cosines of errors against the cosines of rows. 0 where there is no error.
fn systematic(observed: &[f32], matching: &[f32], width: usize) -> f64 {
    let rows = observed.len() / width;
    let stride = rows.div_ceil(MAX_PAIRED).max(1);
    let mut errors: Vec<Vec<f32>> = Vec::new();
    let mut sizes: Vec<Vec<f32>> = Vec::new();
    for row in (0..rows).step_by(stride) {
        let at = row * width..(row + 1) * width;
        let (a, b) = (&observed[at.clone()], &matching[at]);
        let (difference, size) = norms(a, b);
        if difference > 0.0 && size > 0.0 && (difference * size).is_finite() {
            errors.push(a.iter().zip(b).map(|(a, b)| ((f64::from(*a) - f64::from(*b)) / difference) as f32).collect());
            sizes.push(b.iter().map(|b| (f64::from(*b) / size) as f32).collect());
        }
    }
    let dot = |a: &[f32], b: &[f32]| -> f64 { f64::from(a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>()) };
    let (mut together, mut square) = (0.0, 0.0);
    for i in 1..errors.len() {
        for j in 0..i {
            let rows = dot(&sizes[i], &sizes[j]);
            if rows.abs() > SAME {
                continue;
            }
            together += rows * dot(&errors[i], &errors[j]);
            square += rows * rows;
        }
    }
    if square == 0.0 || errors.len() < LEAST_PAIRED { 0.0 } else { together / square }
}

/// Where a statistic passes, and where it is fraud.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// At most this passes.
    pub pass: f64,
    /// More than this is fraud.
    pub fraud: f64,
}

impl Limits {
    /// The larger of both.
    pub(super) fn wider(self, other: Self) -> Self {
        Self { pass: self.pass.max(other.pass), fraud: self.fraud.max(other.fraud) }
    }

    /// What a value says. NaN is fraud: no honest statistic is.
    pub fn judge(&self, value: f64) -> Finding {
        if value <= self.pass {
            Finding::Pass
        } else if value <= self.fraud {
            Finding::Inconclusive
        } else {
            Finding::Fraud
        }
    }
}

/// What numbers say, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Finding {
    /// Honest numbers look like this.
    Pass,
    /// Honest numbers should not look like this, but nothing is proven.
    Inconclusive,
    /// Honest numbers do not look like this.
    Fraud,
}

/// The limits for one ordered pair of classes and stages of some depth.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairLimits {
    /// Of [`BlockStats::near`].
    pub near: Limits,
    /// Of [`BlockStats::far`].
    pub far: Limits,
    /// Of [`BlockStats::worst`].
    pub worst: Limits,
    /// Of [`JobStats::near`].
    pub job_near: Limits,
    /// Of [`JobStats::far`].
    pub job_far: Limits,
    /// Of [`JobStats::systematic`]; beyond the fraud limit it is inconclusive too.
    pub systematic: Limits,
    /// Of the margin by which a drawn token lost ([`crate::sampling::Sampler::margin`]), in logits.
    pub margin: Limits,
}

impl PairLimits {
    /// What one block says.
    pub fn judge_block(&self, block: &BlockStats) -> Finding {
        if block.exact {
            return Finding::Pass;
        }
        if block.broken {
            return Finding::Fraud;
        }
        let near = self.near.judge(block.near);
        near.max(self.far.judge(block.far)).max(self.worst.judge(block.worst))
    }

    /// What a whole job says: its worst block, the means over its blocks, and no pass with a systematic error.
    pub fn judge(&self, job: &JobStats) -> Finding {
        let blocks = job.blocks.iter().map(|block| self.judge_block(block)).max().unwrap_or(Finding::Inconclusive);
        if job.exact() == job.blocks.len() {
            return blocks;
        }
        let means = self.job_near.judge(job.near).max(self.job_far.judge(job.far));
        let systematic = self.systematic.judge(job.systematic).min(Finding::Inconclusive);
        blocks.max(means).max(systematic)
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
