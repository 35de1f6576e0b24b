//! An auditor of one stage.

use consortium_protocol::wire::audit::NumericClass;
use consortium_protocol::wire::heartbeat::LayerRange;

use super::classes::{ClassError, available, bit_equal, nearest, own_class};
use super::compare::{Finding, JobStats, PairLimits, Recomputed, ShapeError, compare};
use super::replay::{ReplayError, ReplayInputs, Replayed, replay};
use crate::llama::Shard;
use crate::model_dir::ModelDir;
use crate::sampling::{SampleError, Sampler};

/// Rows whose logits are held at once.
const DRAWS: usize = 32;

/// Why a stage could not be audited.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The stage cannot be recomputed.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The rows observed are not as many as the inputs.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The recomputed logits are not numbers.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// A token is said to be drawn at a position that has no row before it.
    #[error("there is no row before position {0}")]
    Position(u32),
}

/// The class of the reference when an auditor of one class checks work of another: its own, or, if that is the matching
/// one, this crate's kernels. `None` where bits should be equal.
pub fn reference_class(auditor: NumericClass, auditee: NumericClass) -> Option<NumericClass> {
    match auditor == nearest(auditee) {
        _ if bit_equal(nearest(auditee), auditee) => None,
        true if auditor == own_class() => Some(available()[1]),
        true => Some(own_class()),
        false => Some(auditor),
    }
}

/// A stage's weights in the classes that an audit of it takes.
#[derive(Debug)]
pub struct Auditor {
    matching: Shard,
    reference: Option<Shard>,
    limits: PairLimits,
}

/// What an audit found.
#[derive(Debug)]
pub struct Audited {
    /// The finding for the whole job.
    pub finding: Finding,
    /// The findings for its blocks, in order.
    pub blocks: Vec<Finding>,
    /// The numbers behind them.
    pub stats: JobStats,
    /// What the auditor computed in the auditee's rounding.
    pub matching: Replayed,
}

impl Auditor {
    /// Loads layers to audit work of class `auditee`, with limits for these classes
    /// ([`super::thresholds::Thresholds::limits`]).
    ///
    /// # Errors
    /// As [`Shard::load_class`].
    pub fn load(
        dir: &ModelDir,
        range: LayerRange,
        auditor: NumericClass,
        auditee: NumericClass,
        limits: PairLimits,
    ) -> Result<Self, ClassError> {
        let reference =
            reference_class(auditor, auditee).map(|class| Shard::load_class(dir, range, class)).transpose()?;
        Ok(Self { matching: Shard::load_class(dir, range, nearest(auditee))?, reference, limits })
    }

    /// Recomputes a stage over all its inputs and compares its hidden states `[rows, width]`. The reference is
    /// computed only if not all bits are equal.
    ///
    /// # Errors
    /// [`AuditError::Replay`] and [`AuditError::Shape`].
    pub fn audit(&self, inputs: ReplayInputs<'_>, observed: &[f32]) -> Result<Audited, AuditError> {
        let matching = replay(&self.matching, inputs, 0)?;
        let equal = matching.outputs.len() == observed.len()
            && matching.outputs.iter().zip(observed).all(|(a, b)| a.to_bits() == b.to_bits());
        let reference = match &self.reference {
            Some(shard) if !equal => Some(replay(shard, inputs, 0)?.outputs),
            _ => None,
        };
        let recomputed = Recomputed { matching: &matching.outputs, reference: reference.as_deref() };
        let stats = compare(observed, recomputed, matching.width)?;
        let blocks = stats.blocks.iter().map(|block| self.limits.judge_block(block)).collect();
        Ok(Audited { finding: self.limits.judge(&stats), blocks, stats, matching })
    }

    /// By how much each of some tokens `(position, token)` of the last stage lost its draw, in logits
    /// ([`Sampler::margin`]), judged with [`PairLimits::margin`]. `context` is all tokens of the job, from position 0.
    ///
    /// # Errors
    /// [`AuditError`]; an error of sampling means that the recomputed logits are no numbers.
    pub fn draws(
        &self,
        matching: &Replayed,
        sampler: &Sampler,
        context: &[u32],
        drawn: &[(u32, u32)],
    ) -> Result<Vec<(f64, Finding)>, AuditError> {
        let mut judged = Vec::with_capacity(drawn.len());
        let vocabulary = self.matching.config().vocab_size;
        let mut rows = 0..0;
        let mut logits = Vec::new();
        for (position, token) in drawn {
            let Some(row) = (*position as usize).checked_sub(1).filter(|row| *row < matching.rows()) else {
                return Err(AuditError::Position(*position));
            };
            if !rows.contains(&row) {
                rows = row..matching.rows().min(row + DRAWS);
                logits = matching.logits(&self.matching, rows.clone())?;
            }
            let at = (row - rows.start) * vocabulary;
            let before = context.get(..=row).ok_or(AuditError::Position(*position))?;
            let mut scratch = logits[at..at + vocabulary].to_vec();
            let margin = sampler.margin(&mut scratch, before, *position, *token)?;
            judged.push((margin, self.limits.margin.judge(margin)));
        }
        Ok(judged)
    }
}
