//! What nodes say about their books: signed tree heads, proof that two of them contradict, when it was seen, and
//! rebuttals.
//!
//! A node's journal is a Merkle tree ([`crate::merkle`]) whose leaf `n` is [`leaf_hash`](crate::merkle::leaf_hash) of
//! the 32 bytes of entry `n`'s hash. With a [`TreeHead`] its owner fixes the first `size` entries for ever.

use serde::{Deserialize, Serialize};

use super::Message;
use crate::cluster::ClusterId;
use crate::envelope::{Invalid, Payload, Signed};
use crate::hash::Hash;
use crate::identity::NodeId;
use crate::merkle::InclusionProof;

/// The signer's journal as it stood: signed by whose journal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeHead {
    /// Entries covered: the first `size`, at least one.
    pub size: u64,
    /// Root of the tree over them.
    pub root: Hash,
    /// Wall time of signing, in milliseconds since 1970.
    pub at_ms: u64,
}

impl Payload for TreeHead {
    const DOMAIN: &'static str = "tree-head";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 128;

    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless((1..=i64::MAX as u64).contains(&self.size), "size", "1 to 2^63 - 1")?;
        Invalid::unless(self.at_ms <= i64::MAX as u64, "at_ms", "above 2^63 - 1")
    }
}

/// That a leaf stands under a signed head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeafProof {
    /// The head.
    pub head: Signed<TreeHead>,
    /// The leaf's hash.
    pub leaf: Hash,
    /// The way from the leaf to the head's root.
    pub proof: InclusionProof,
}

impl LeafProof {
    /// Whether the leaf is in the head's tree.
    ///
    /// # Errors
    /// It is not, or the proof is for a tree of another size.
    pub fn check(&self) -> Result<(), Invalid> {
        self.proof.check()?;
        let head = self.head.payload();
        Invalid::unless(self.proof.size == head.size, "size", "not that of the head")?;
        Invalid::unless(self.proof.root(&self.leaf) == Some(head.root), "proof", "does not lead to the root")
    }
}

/// Two statements of one node about its journal that cannot both be true: anyone can verify it, nobody can deny it.
///
/// Two heads of different sizes do not contradict by themselves: that no consistency proof exists cannot be shown from
/// roots alone, and a proof that was not handed over may merely be late. What shows it is one place in the
/// journal with two different leaves ([`Equivocation::Leaves`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Equivocation {
    /// Two roots for one size.
    Roots {
        /// One head.
        a: Signed<TreeHead>,
        /// The other.
        b: Signed<TreeHead>,
    },
    /// Two leaves for one place, under heads of whatever size.
    Leaves {
        /// One leaf.
        a: LeafProof,
        /// The other.
        b: LeafProof,
    },
}

impl Equivocation {
    /// Checks the contradiction and names who is guilty of it. The signatures were verified while reading.
    ///
    /// # Errors
    /// The statements are not by one signer, or do not contradict.
    pub fn verify(&self) -> Result<NodeId, Invalid> {
        let (a, b) = match self {
            Self::Roots { a, b } => (a, b),
            Self::Leaves { a, b } => (&a.head, &b.head),
        };
        Invalid::unless(a.signer() == b.signer(), "signer", "not the same")?;
        match self {
            Self::Roots { a, b } => {
                Invalid::unless(a.payload().size == b.payload().size, "size", "not the same")?;
                Invalid::unless(a.payload().root != b.payload().root, "root", "the same")?;
            }
            Self::Leaves { a, b } => {
                a.check()?;
                b.check()?;
                Invalid::unless(a.proof.index == b.proof.index, "index", "not the same")?;
                Invalid::unless(a.leaf != b.leaf, "leaf", "the same")?;
            }
        }
        Ok(a.signer())
    }

    /// How many entries of the journal it takes to contain the contradiction.
    pub fn size(&self) -> u64 {
        match self {
            Self::Roots { a, .. } => a.payload().size,
            Self::Leaves { a, .. } => a.proof.index.saturating_add(1),
        }
    }
}

impl Message for Equivocation {
    // Two heads of at most 288 bytes and two proofs of at most 65 hashes of 34 bytes, with room for names.
    const MAX_BYTES: usize = 8 * 1024;

    fn check(&self) -> Result<(), Invalid> {
        self.verify().map(drop)
    }
}

/// A node's signed word that it verified a contradiction, and when it first did. The times in the contradiction itself
/// are the guilty's own, who would choose them so that nothing follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EquivocationSeen {
    /// The contradiction.
    pub proof: Equivocation,
    /// Wall time, in milliseconds since 1970.
    pub at_ms: u64,
}

impl Payload for EquivocationSeen {
    const DOMAIN: &'static str = "equivocation-seen";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = Equivocation::MAX_BYTES + 64;

    fn check(&self) -> Result<(), Invalid> {
        self.proof.check()?;
        Invalid::unless(self.at_ms <= i64::MAX as u64, "at_ms", "above 2^63 - 1")
    }
}

/// A node's signed word that it checked the proof of an accusation, and that the proof does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rebuttal {
    /// The cluster.
    pub cluster: ClusterId,
    /// Who accused: the signer of the verdict.
    pub accuser: NodeId,
    /// Digest of the signed verdict.
    pub verdict: Hash,
    /// Digest of the proof that was checked, as the verdict names it.
    pub proof: Hash,
    /// Wall time, in milliseconds since 1970.
    pub at_ms: u64,
}

impl Payload for Rebuttal {
    const DOMAIN: &'static str = "rebuttal";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 512;

    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(self.at_ms <= i64::MAX as u64, "at_ms", "above 2^63 - 1")
    }
}
