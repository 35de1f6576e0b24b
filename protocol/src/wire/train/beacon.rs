//! What nobody can foresee: draws from the validators' nonces.
//!
//! Before a nonce is of any use its validator has fixed it ([`nonce_lock`] in a [`ScoreCard`](super::ScoreCard) of the
//! round before), so that the last to open cannot choose among nonces. It can still keep its own back: of two outcomes
//! it may take the one it likes better, one bit for each nonce that one liar holds back. That is seen in the record. What
//! it costs: a validator without an opened nonce counts as one that was silent.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::RunId;
use crate::hash::Hash;
use crate::identity::NodeId;

/// What is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Purpose {
    /// Which rows each peer trains on.
    Assignment,
    /// On which rows its update is measured.
    Evaluation,
}

impl Purpose {
    fn byte(self) -> u8 {
        match self {
            Self::Assignment => 1,
            Self::Evaluation => 2,
        }
    }
}

/// A validator's secret part of a draw.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nonce(#[serde(with = "serde_bytes")] pub [u8; 32]);

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonce(..)")
    }
}

/// 32 bytes that a draw starts from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Beacon(pub Hash);

impl fmt::Debug for Beacon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Beacon({}..)", self.0.short())
    }
}

fn digest(domain: &[u8], run: RunId, round: u64, rest: &[&[u8]]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"consortium/train/").update(domain).update(&[0]);
    hasher.update(run.0.as_bytes()).update(&round.to_le_bytes());
    for part in rest {
        hasher.update(part);
    }
    Hash::from_bytes(*hasher.finalize().as_bytes())
}

/// What a validator says of the nonce it will open for `purpose` in `round`.
#[must_use]
pub fn nonce_lock(run: RunId, round: u64, purpose: Purpose, validator: NodeId, nonce: &Nonce) -> Hash {
    digest(b"nonce", run, round, &[&[purpose.byte()], validator.as_bytes(), &nonce.0])
}

/// What a peer says of its update before it shows it. The peer is part of it: who repeats another's commitment has
/// committed to nothing.
#[must_use]
pub fn commitment(run: RunId, round: u64, peer: NodeId, update: Hash) -> Hash {
    digest(b"commitment", run, round, &[peer.as_bytes(), update.as_bytes()])
}

/// The draw for `purpose` in `round` from a record that was fixed before the first of the nonces was opened, and the
/// nonces that were opened, in ascending order of their validators.
#[must_use]
pub fn beacon<'a>(
    run: RunId,
    round: u64,
    purpose: Purpose,
    before: Hash,
    nonces: impl IntoIterator<Item = (NodeId, &'a Nonce)>,
) -> Beacon {
    let mut all = Vec::new();
    for (validator, nonce) in nonces {
        all.extend_from_slice(validator.as_bytes());
        all.extend_from_slice(&nonce.0);
    }
    Beacon(digest(b"beacon", run, round, &[&[purpose.byte()], before.as_bytes(), &all]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_matters() {
        let (run, node, hash) = (RunId(Hash::of(b"run")), NodeId::from_bytes([1; 32]), Hash::of(b"before"));
        let nonce = Nonce([7; 32]);
        let draw = |round, purpose, hash, nonces: &[(NodeId, &Nonce)]| {
            beacon(run, round, purpose, hash, nonces.iter().copied())
        };
        let all = [
            draw(1, Purpose::Assignment, hash, &[(node, &nonce)]),
            draw(2, Purpose::Assignment, hash, &[(node, &nonce)]),
            draw(1, Purpose::Evaluation, hash, &[(node, &nonce)]),
            draw(1, Purpose::Assignment, Hash::of(b"other"), &[(node, &nonce)]),
            draw(1, Purpose::Assignment, hash, &[]),
            beacon(RunId(hash), 1, Purpose::Assignment, hash, [(node, &nonce)]),
        ];
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        let other = NodeId::from_bytes([2; 32]);
        assert_ne!(commitment(run, 1, node, hash), commitment(run, 1, other, hash), "a repeated commitment is void");
        let lock = |purpose, node| nonce_lock(run, 1, purpose, node, &nonce);
        assert_ne!(lock(Purpose::Assignment, node), lock(Purpose::Evaluation, node));
        assert_ne!(lock(Purpose::Assignment, node), lock(Purpose::Assignment, other));
    }
}
