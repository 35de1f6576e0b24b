//! One stage of one job against its recomputation: what an auditor finds, and anyone who checks a fraud proof.

use consortium_inference::audit::auditor::{AuditError, Audited, Auditor};
use consortium_inference::audit::classes::{ClassError, own_class};
use consortium_inference::audit::compare;
use consortium_inference::audit::grid::StageCommitter;
use consortium_inference::audit::replay::ReplayInputs;
use consortium_inference::audit::thresholds::Thresholds;
use consortium_inference::model_dir::ModelDir;
use consortium_inference::sampling::Sampler;
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::wire::audit::{
    NOT_DRAWN, NumericClass, Outcome, StageReceipt, Verdict, block_digests, blocks_root, boundary_key, grid_key,
};

use super::proof::Proof;

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The outcome.
    pub outcome: Outcome,
    /// Blocks compared.
    pub blocks: u32,
    /// Of these, how many were equal bit for bit.
    pub exact: u32,
    /// The auditor's class.
    pub class: NumericClass,
    /// Whether tokens of the answer that the stage was given, as drawn by others before it, could have been drawn. It
    /// is the master who gave them.
    pub given: compare::Finding,
    /// The figures behind the outcome, in words.
    pub detail: String,
    /// Block by block; empty when none was computed.
    pub each: Vec<BlockFinding>,
}

/// What was found of one block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockFinding {
    /// What the numbers say.
    pub finding: compare::Finding,
    /// Rows of the block.
    pub rows: usize,
    /// Equal bit for bit.
    pub exact: bool,
    /// Drift from the recomputation, in units of what the classes' rounding explains.
    pub drift: f64,
}

impl Finding {
    /// That the stage did not open what it committed to.
    #[must_use]
    pub fn withheld(detail: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Withheld,
            blocks: 0,
            exact: 0,
            class: own_class(),
            given: compare::Finding::Pass,
            detail: detail.into(),
            each: Vec::new(),
        }
    }

    /// It as a word on the stage that signed `receipt`; `proof` is given for fraud alone.
    #[must_use]
    pub fn verdict(&self, receipt: &Signed<StageReceipt>, proof: Option<Hash>, at_ms: u64) -> Verdict {
        let said = receipt.payload();
        Verdict {
            cluster: said.cluster,
            auditee: receipt.signer(),
            job: said.job,
            attempt: said.attempt,
            stage: said.stage,
            receipt: receipt.digest(),
            outcome: self.outcome,
            blocks: self.blocks,
            exact: self.exact,
            class: self.class,
            proof,
            at_ms,
        }
    }
}

/// Why nothing was found: the auditor's own trouble, which says nothing of the stage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The layers cannot be loaded.
    #[error(transparent)]
    Class(#[from] ClassError),
    /// The recomputation failed.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// It is about another model than the one at hand.
    #[error("the work was done with the model of digest {0}, which is not this one")]
    OtherModel(Hash),
    /// The model's digest cannot be found.
    #[error(transparent)]
    Model(#[from] consortium_inference::ModelError),
    /// How far honest numbers of these classes lie apart is not known.
    #[error(
        "there are no thresholds for {auditor:?} checking {auditee:?}; measure them with `consortium-node audit calibrate`"
    )]
    NotCalibrated {
        /// The auditor's class.
        auditor: NumericClass,
        /// The stage's class.
        auditee: NumericClass,
    },
}

/// Checks what a stage showed against what it signed, and what it signed against its recomputation.
///
/// The model's digest is taken for granted: see [`check_alone`].
///
/// # Errors
/// [`CheckError`]: then there is no finding.
pub fn check(proof: &Proof, dir: &ModelDir, thresholds: &Thresholds) -> Result<Finding, CheckError> {
    let Some(receipt) = proof.order.receipt() else { return Ok(Finding::withheld("there is no receipt")) };
    if let Err(reason) = opens(proof, receipt, dir) {
        return Ok(Finding::withheld(reason));
    }
    let said = receipt.payload();
    if dir.check_range(said.range).is_err() {
        return Ok(Finding::withheld("the model has no such layers"));
    }
    let class = own_class();
    let layers = u16::try_from(said.range.count()).unwrap_or(u16::MAX);
    let limits = thresholds
        .limits(class, said.class, layers)
        .ok_or(CheckError::NotCalibrated { auditor: class, auditee: said.class })?;
    let auditor = Auditor::load(dir, said.range, class, said.class, limits)?;
    let inputs = floats(&proof.opened.inputs);
    let inputs = match said.stage {
        0 => ReplayInputs::Tokens(&proof.opened.opening.tokens),
        _ => ReplayInputs::Hidden(&inputs),
    };
    let audited = auditor.audit(inputs, &floats(&proof.opened.outputs))?;
    let (drawn, given) = draws(proof);
    let drawn = judge_draws(proof, &auditor, &audited, &drawn)?;
    let given = judge_draws(proof, &auditor, &audited, &given)?;
    let worst = |judged: &[(f64, compare::Finding)]| judged.iter().map(|(_, finding)| *finding).max();
    let given = worst(&given).unwrap_or(compare::Finding::Pass);
    let worst = worst(&drawn).unwrap_or(compare::Finding::Pass);
    let drift = audited.stats.blocks.iter().map(|block| block.near).fold(0.0, f64::max);
    let margin = drawn.iter().map(|(margin, _)| *margin).fold(0.0, f64::max);
    Ok(Finding {
        outcome: match audited.finding.max(worst) {
            compare::Finding::Pass => Outcome::Pass,
            compare::Finding::Inconclusive => Outcome::Inconclusive,
            compare::Finding::Fraud => Outcome::Fraud,
        },
        blocks: u32::try_from(audited.blocks.len()).unwrap_or(u32::MAX),
        exact: u32::try_from(audited.stats.exact()).unwrap_or(u32::MAX),
        class,
        given,
        detail: format!(
            "numbers {:?} (largest drift of a block {drift:.3} units), draws {worst:?} ({} drawn, largest margin \
             {margin:.3})",
            audited.finding,
            drawn.len(),
        ),
        each: audited
            .blocks
            .iter()
            .zip(&audited.stats.blocks)
            .map(|(finding, stats)| BlockFinding {
                finding: *finding,
                rows: stats.rows,
                exact: stats.exact,
                drift: stats.near,
            })
            .collect(),
    })
}

/// As [`check`], for whoever has only the files: that they are the model in question is checked too.
///
/// # Errors
/// [`CheckError`].
pub fn check_alone(proof: &Proof, dir: &ModelDir, thresholds: &Thresholds) -> Result<Finding, CheckError> {
    let named = proof.order.order.payload().model;
    if dir.digest()? != named {
        return Err(CheckError::OtherModel(named));
    }
    check(proof, dir, thresholds)
}

/// Whether what was shown is what was signed for.
fn opens(proof: &Proof, receipt: &Signed<StageReceipt>, dir: &ModelDir) -> Result<(), &'static str> {
    let (said, open, shown) = (receipt.payload(), proof.order.order.payload(), &proof.opened.opening);
    let rows = shown.tokens.len();
    let width = shown.width as usize;
    let last = usize::from(said.stage) + 1 == open.route.len();
    if width != dir.config().hidden_size || said.positions as usize != rows {
        return Err("the rows shown are not of the shape that was signed for");
    }
    if shown.lengths(said.stage) != Some((proof.opened.inputs.len(), proof.opened.outputs.len())) {
        return Err("the bytes shown are not of the shape that was signed for");
    }
    if last == shown.drawn.is_empty() {
        return Err("drawn tokens are shown by the last stage alone");
    }
    let tokens = le_bytes(&shown.tokens);
    let first = proof.order.chain.first().map(|first| first.payload().inputs);
    let given = blocks_root(&block_digests(&boundary_key(open.job, open.attempt, 0), &tokens, 4));
    if first != Some(given) {
        return Err("the tokens shown are not those that the first stage signed for");
    }
    let inputs = if said.stage == 0 { &tokens } else { &proof.opened.inputs };
    let drawn = le_bytes(&shown.drawn);
    let crossing = if last { &drawn } else { &proof.opened.outputs };
    let mut committer = StageCommitter::new(
        &boundary_key(open.job, open.attempt, said.stage),
        &boundary_key(open.job, open.attempt, said.stage + 1),
        &grid_key(open.job, open.attempt, &said.model, said.range, said.class),
        width,
    );
    committer
        .push(rows, inputs, &proof.opened.outputs, crossing)
        .map_err(|_| "the bytes shown are not of the shape that was signed for")?;
    match committer.finish().roots() == [said.inputs, said.outputs, said.grid] {
        true => Ok(()),
        false => Err("what is shown is not what was signed for"),
    }
}

/// Tokens with their positions.
type Draws = Vec<(u32, u32)>;

/// The tokens that the last stage drew, and those of the answer that it was given; none of either for other stages.
fn draws(proof: &Proof) -> (Draws, Draws) {
    let shown = &proof.opened.opening;
    let prompt_len = proof.order.order.payload().prompt_len;
    let drawn = (1..).zip(shown.drawn.iter().copied()).filter(|(_, token)| *token != NOT_DRAWN).collect();
    // The token at a position is drawn at the row before it.
    let given = (1..).zip(shown.tokens.iter().copied().skip(1)).zip(&shown.drawn);
    let given = given.filter(|((position, _), drawn)| *position >= prompt_len && **drawn == NOT_DRAWN);
    (drawn, given.map(|(token, _)| token).collect())
}

/// By how much tokens lost, and what that says. The logits are those of the recomputed hidden states: whether the
/// stage's own are right is judged by themselves.
fn judge_draws(
    proof: &Proof,
    auditor: &Auditor,
    audited: &Audited,
    draws: &[(u32, u32)],
) -> Result<Vec<(f64, compare::Finding)>, AuditError> {
    if draws.is_empty() {
        return Ok(Vec::new());
    }
    let open = proof.order.order.payload();
    let sampler = Sampler::new(open.sampling.clone(), open.prompt_len);
    auditor.draws(&audited.matching, &sampler, &proof.opened.opening.tokens, draws)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn le_bytes(tokens: &[u32]) -> Vec<u8> {
    tokens.iter().flat_map(|token| token.to_le_bytes()).collect()
}
