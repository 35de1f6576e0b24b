//! What a stage commits to, and what an auditor says of it.
//!
//! The rows of a session (one for each position, from 0) are taken in *blocks* of [`BLOCK`]. Between the driver and the
//! first stage, between two stages, and between the last stage and the driver lie *boundaries*, counted from 0; what
//! crosses a boundary is known to both sides byte for byte:
//!
//! - boundary 0: the token of each row, u32 little-endian;
//! - boundaries between stages: the hidden states of each row, f32 little-endian;
//! - the last boundary: the token drawn after each row, u32 little-endian, [`NOT_DRAWN`] where none was.
//!
//! A block's bytes are hashed under a key that belongs to the job, the attempt and the boundary ([`boundary_key`]), so
//! that no hash is of use anywhere else; the hashes are the leaves of the boundary's Merkle tree ([`crate::merkle`]).
//! A stage's [`StageReceipt`] names the roots of the boundaries on both sides of it, and a third root over the
//! canonical-grid digests of its outputs, which are keyed by [`grid_key`], and over their exact bytes: those of the last
//! stage cross no boundary.
//!
//! Receipts are made one after the other along the pipeline. Each stage sees that its predecessor's `outputs` are its
//! own `inputs`, and signs over its predecessor's receipt: that countersigns it. The first is anchored to the tokens,
//! which driver and payer know, and so is the last.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Message;
use super::heartbeat::LayerRange;
use super::job::JobId;
use super::pipeline::{MAX_STAGES, SessionOpen};
use crate::cluster::ClusterId;
use crate::envelope::{Invalid, Payload, Signed};
use crate::hash::Hash;
use crate::identity::NodeId;
use crate::merkle;

/// Rows of a block.
pub const BLOCK: usize = 32;
/// In the last boundary: no token was drawn after this row.
pub const NOT_DRAWN: u32 = u32::MAX;

/// What the numbers of a stage depend on. Two stages of one class that compute the same give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NumericClass {
    /// Type in which activations are rounded between operations.
    pub compute: Compute,
    /// Whose kernels.
    pub kernels: KernelFamily,
    /// Version of the arithmetic: raised with every change that can change a bit.
    pub engine: u16,
}

/// Type in which activations are rounded between operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Compute {
    /// IEEE 754 binary32.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE 754 binary16.
    F16,
}

/// Whose kernels compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum KernelFamily {
    /// This project's: the result depends neither on the number of rows and threads nor on the width of vectors.
    Invariant,
    /// candle's on a CPU, with whatever library it was built with.
    CandleCpu,
    /// candle's on CUDA.
    CandleCuda,
    /// candle's on Metal.
    CandleMetal,
}

/// The key of the hashes of a boundary, for BLAKE3's keyed mode.
pub fn boundary_key(job: JobId, attempt: u32, boundary: u16) -> [u8; 32] {
    let mut material = [0; 22];
    material[..16].copy_from_slice(&job.0);
    material[16..20].copy_from_slice(&attempt.to_le_bytes());
    material[20..].copy_from_slice(&boundary.to_le_bytes());
    blake3::derive_key("consortium audit boundary 1", &material)
}

/// The key of the canonical-grid digests of a stage's outputs.
pub fn grid_key(job: JobId, attempt: u32, model: &Hash, range: LayerRange, class: NumericClass) -> [u8; 32] {
    let material = crate::cbor::to_vec(&(job, attempt, model, range, class));
    blake3::derive_key("consortium audit grid 1", &material)
}

/// The digests of the blocks of a boundary, given all its bytes and the bytes of a row.
pub fn block_digests(key: &[u8; 32], bytes: &[u8], row: usize) -> Vec<Hash> {
    bytes.chunks(BLOCK * row.max(1)).map(|block| Hash::from_bytes(*blake3::keyed_hash(key, block).as_bytes())).collect()
}

/// The root of a boundary, or of a grid, over the digests of its blocks.
pub fn blocks_root(digests: &[Hash]) -> Hash {
    let leaves: Vec<Hash> = digests.iter().map(|digest| merkle::leaf_hash(digest.as_bytes())).collect();
    merkle::root(&leaves)
}

/// A payer's secret: it commits to it before the work and reveals it after the receipts, so that neither side can steer
/// what is audited. Whoever shows it may see a stage's openings.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nonce(#[serde(with = "serde_bytes")] pub [u8; 32]);

impl Nonce {
    /// What is told before the work.
    pub fn commitment(&self) -> Hash {
        Hash::from_bytes(blake3::derive_key("consortium audit nonce 1", &self.0))
    }

    /// A number in `0..1` that nobody could foresee when the receipt was signed. The stage is audited if it lies below
    /// the rate.
    pub fn draw(&self, receipt: &Hash) -> f64 {
        let mut material = [0; 64];
        material[..32].copy_from_slice(&self.0);
        material[32..].copy_from_slice(receipt.as_bytes());
        let hash = blake3::derive_key("consortium audit draw 1", &material);
        let bits = u64::from_le_bytes(hash[..8].try_into().expect("eight of 32 bytes")) >> 11;
        bits as f64 / (1_u64 << 53) as f64
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonce(..)")
    }
}

/// A stage's signed account of the work it did in one attempt of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageReceipt {
    /// The cluster.
    pub cluster: ClusterId,
    /// The term of the master whose job it was.
    pub term: u64,
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// Digest of the signed order ([`super::pipeline::SessionOpen`]): route, sampling, prices.
    pub order: Hash,
    /// Digest of the model's manifest: with `range`, it names the weights.
    pub model: Hash,
    /// The layers.
    pub range: LayerRange,
    /// Place in the route, from 0.
    pub stage: u16,
    /// What the numbers depend on.
    pub class: NumericClass,
    /// Rows computed: positions `0..positions`.
    pub positions: u32,
    /// Root of the boundary before the stage.
    pub inputs: Hash,
    /// Root of the boundary after it.
    pub outputs: Hash,
    /// Root over the canonical-grid digests of the outputs, block by block, followed by those of their exact bytes.
    pub grid: Hash,
    /// Digest of the predecessor's signed receipt; none for the first stage.
    pub upstream: Option<Hash>,
    /// The payer's commitment to its nonce, from the order.
    pub challenge: Hash,
}

impl Payload for StageReceipt {
    const DOMAIN: &'static str = "stage-receipt";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 1024;

    fn check(&self) -> Result<(), Invalid> {
        self.range.check()?;
        Invalid::unless(usize::from(self.stage) < MAX_STAGES, "stage", "0 to 63")?;
        Invalid::unless(self.positions > 0, "positions", "none")?;
        Invalid::unless((self.stage == 0) == self.upstream.is_none(), "upstream", "named by all but the first")
    }
}

impl StageReceipt {
    /// How many blocks.
    pub fn blocks(&self) -> usize {
        (self.positions as usize).div_ceil(BLOCK)
    }
}

/// Where a chain of receipts breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the receipt of stage {stage}: {rule}")]
pub struct ChainFault {
    /// The stage whose receipt is wrong: it signed what it could see to be wrong.
    pub stage: u16,
    /// What is wrong.
    pub rule: &'static str,
}

/// Checks that receipts are those of the first stages of an order, each over the one before it. A stage that signed
/// over a predecessor whose outputs are not its own inputs convicts itself.
///
/// # Errors
/// The first receipt that does not fit.
pub fn check_chain(order: &Signed<SessionOpen>, chain: &[Signed<StageReceipt>]) -> Result<(), ChainFault> {
    let open = order.payload();
    for (index, receipt) in chain.iter().enumerate() {
        let (stage, said) = (u16::try_from(index).unwrap_or(u16::MAX), receipt.payload());
        let unless = |holds: bool, rule| if holds { Ok(()) } else { Err(ChainFault { stage, rule }) };
        let hop = open.route.get(index).ok_or(ChainFault { stage, rule: "beyond the route" })?;
        unless(receipt.signer() == hop.node, "not signed by the node of the route")?;
        unless(said.order == order.digest(), "for another order")?;
        let named = (said.cluster, said.term, said.job, said.attempt, said.model, said.range, said.stage);
        let meant = (open.cluster, open.term, open.job, open.attempt, open.model, hop.range, stage);
        unless(named == meant, "does not repeat the order")?;
        unless(said.challenge == open.challenge, "for another challenge")?;
        let before = index.checked_sub(1).map(|before| &chain[before]);
        unless(said.upstream == before.map(Signed::digest), "over another receipt")?;
        if let Some(before) = before.map(Signed::payload) {
            unless(said.positions == before.positions, "not as many rows as the stage before")?;
            unless(said.inputs == before.outputs, "took in something else than the stage before gave")?;
        }
    }
    Ok(())
}

/// A request to audit one stage of a job: whoever has it may ask the stage for its opening.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditOrder {
    /// The order of the work.
    pub order: Signed<SessionOpen>,
    /// Receipts of the first stages, up to and including the one in question.
    pub chain: Vec<Signed<StageReceipt>>,
    /// The payer's nonce.
    pub nonce: Nonce,
}

impl AuditOrder {
    /// The receipt of the stage in question.
    pub fn receipt(&self) -> Option<&Signed<StageReceipt>> {
        self.chain.last()
    }
}

impl Message for AuditOrder {
    const MAX_BYTES: usize = super::pipeline::MAX_RECEIPTS + 32 * 1024;

    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless((1..=MAX_STAGES).contains(&self.chain.len()), "chain", "1 to 64 receipts")?;
        Invalid::unless(
            self.nonce.commitment() == self.order.payload().challenge,
            "nonce",
            "not the one committed to",
        )?;
        check_chain(&self.order, &self.chain).map_err(|_| Invalid::new("chain", "does not hold"))
    }
}

/// What a stage shows of a session: the first message of the answer on an [`super::OPENING`] stream. The bytes of
/// inputs (none for the first stage, whose inputs are the tokens) and outputs follow, of the lengths that
/// [`Opening::lengths`] gives. The request is an [`AuditOrder`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opening {
    /// The token of each row.
    pub tokens: Vec<u32>,
    /// The token drawn after each row, [`NOT_DRAWN`] where none was; empty unless the stage is the last.
    pub drawn: Vec<u32>,
    /// Elements of a row.
    pub width: u32,
}

/// The widest hidden state there may be, elements.
pub const MAX_WIDTH: u32 = 1 << 16;
/// The most rows of one opening.
pub const MAX_OPENING_ROWS: usize = 1 << 18;

impl Opening {
    /// Bytes of inputs and of outputs that follow the opening of `stage`; `None` on overflow.
    pub fn lengths(&self, stage: u16) -> Option<(usize, usize)> {
        let outputs = self.tokens.len().checked_mul(self.width as usize)?.checked_mul(4)?;
        Some((if stage == 0 { 0 } else { outputs }, outputs))
    }
}

impl Message for Opening {
    const MAX_BYTES: usize = MAX_OPENING_ROWS * 10 + 1024;

    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless((1..=MAX_OPENING_ROWS).contains(&self.tokens.len()), "tokens", "1 to 262,144 rows")?;
        Invalid::unless((1..=MAX_WIDTH).contains(&self.width), "width", "1 to 65,536 elements")?;
        Invalid::unless(self.drawn.is_empty() || self.drawn.len() == self.tokens.len(), "drawn", "one for each row")
    }
}

/// What an auditor found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// The work is what was ordered.
    Pass,
    /// The numbers lie further apart than they should, and not so far that it proves anything.
    Inconclusive,
    /// It is not: whoever holds the weights can see it in the evidence.
    Fraud,
    /// The stage did not open what it committed to. It proves nothing, and earns nothing.
    Withheld,
}

/// An auditor's signed word on one stage of one job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// The cluster.
    pub cluster: ClusterId,
    /// Who did the work.
    pub auditee: NodeId,
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// Place in the route.
    pub stage: u16,
    /// Digest of the signed receipt.
    pub receipt: Hash,
    /// What was found.
    pub outcome: Outcome,
    /// Blocks checked.
    pub blocks: u32,
    /// Of these, how many were equal bit for bit.
    pub exact: u32,
    /// The auditor's numeric class.
    pub class: NumericClass,
    /// Digest of the fraud proof: given exactly when the outcome is fraud.
    pub proof: Option<Hash>,
    /// Wall time, in milliseconds since 1970.
    pub at_ms: u64,
}

impl Payload for Verdict {
    const DOMAIN: &'static str = "verdict";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 1024;

    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(usize::from(self.stage) < MAX_STAGES, "stage", "0 to 63")?;
        Invalid::unless(self.exact <= self.blocks, "exact", "more than blocks")?;
        Invalid::unless((self.outcome == Outcome::Fraud) == self.proof.is_some(), "proof", "given for fraud alone")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_draw_is_uniform_and_reproducible() {
        let draws: Vec<f64> = (0..4000_u32).map(|i| Nonce([7; 32]).draw(&Hash::of(&i.to_le_bytes()))).collect();
        assert!(draws.iter().all(|d| (0.0..1.0).contains(d)));
        let below = draws.iter().filter(|d| **d < 0.2).count();
        assert!((700..900).contains(&below), "{below} of 4000 below 0.2");
        assert_eq!(Nonce([7; 32]).draw(&Hash::of(&0_u32.to_le_bytes())), draws[0]);
        assert_ne!(Nonce([8; 32]).draw(&Hash::of(&0_u32.to_le_bytes())), draws[0]);
    }

    #[test]
    fn keys_differ_in_all_that_they_bind() {
        let job = JobId([1; 16]);
        let keys = [
            boundary_key(job, 0, 0),
            boundary_key(job, 0, 1),
            boundary_key(job, 1, 0),
            boundary_key(JobId([2; 16]), 0, 0),
        ];
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }
}
