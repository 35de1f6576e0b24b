//! Merkle trees of the shape of RFC 6962 (Certificate Transparency, section 2.1) over BLAKE3.
//!
//! A leaf's hash is `BLAKE3(0x00 || entry)`, an inner node's `BLAKE3(0x01 || left || right)`; a tree of `n` leaves is
//! split at the largest power of two below `n`. So a leaf is never taken for a node, and a tree that grew has the old
//! tree's root provable from its own. The empty tree's root is `BLAKE3("")`.

use serde::{Deserialize, Serialize};

use crate::envelope::Invalid;
use crate::hash::Hash;

/// Longest proof: a tree of 2^64 leaves is 64 levels deep, and a consistency proof has one hash more.
pub const MAX_PROOF: usize = 65;

/// The hash of an entry as a leaf.
pub fn leaf_hash(entry: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[0]).update(entry);
    Hash::from_bytes(*hasher.finalize().as_bytes())
}

/// The hash of a node over two others.
fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[1]).update(left.as_bytes()).update(right.as_bytes());
    Hash::from_bytes(*hasher.finalize().as_bytes())
}

/// Where a tree of `n >= 2` leaves is split.
fn split(n: usize) -> usize {
    1 << (n - 1).ilog2()
}

/// The root over leaf hashes ([`leaf_hash`]).
pub fn root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Hash::of(b""),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(split(leaves.len()));
            node_hash(&root(left), &root(right))
        }
    }
}

/// That a leaf is in a tree: the hashes beside its path, from the leaf upwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InclusionProof {
    /// The leaf's place, from 0.
    pub index: u64,
    /// Leaves of the tree.
    pub size: u64,
    /// At most [`MAX_PROOF`] hashes.
    pub path: Vec<Hash>,
}

impl InclusionProof {
    /// Proves the leaf at `index`; `None` when there is no such leaf.
    pub fn of(leaves: &[Hash], index: usize) -> Option<Self> {
        (index < leaves.len()).then(|| {
            let mut path = Vec::new();
            inclusion(leaves, index, &mut path);
            Self { index: index as u64, size: leaves.len() as u64, path }
        })
    }

    /// The root of the tree in which `leaf` has this place, if the proof has the right length for it.
    pub fn root(&self, leaf: &Hash) -> Option<Hash> {
        if self.index >= self.size {
            return None;
        }
        // RFC 9162, section 2.1.3.2.
        let (mut index, mut last, mut hash) = (self.index, self.size - 1, *leaf);
        for beside in &self.path {
            if last == 0 {
                return None;
            }
            if index & 1 == 1 || index == last {
                hash = node_hash(beside, &hash);
                while index & 1 == 0 && index != 0 {
                    index >>= 1;
                    last >>= 1;
                }
            } else {
                hash = node_hash(&hash, beside);
            }
            index >>= 1;
            last >>= 1;
        }
        (last == 0).then_some(hash)
    }

    /// The bounds of the fields.
    ///
    /// # Errors
    /// A place outside the tree, or too many hashes.
    pub fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(self.index < self.size, "index", "outside the tree")?;
        Invalid::unless(self.path.len() <= MAX_PROOF, "path", "more than 65 hashes")
    }
}

fn inclusion(leaves: &[Hash], index: usize, path: &mut Vec<Hash>) {
    if leaves.len() < 2 {
        return;
    }
    let at = split(leaves.len());
    let (left, right) = leaves.split_at(at);
    if index < at {
        inclusion(left, index, path);
        path.push(root(right));
    } else {
        inclusion(right, index - at, path);
        path.push(root(left));
    }
}

/// That a tree grew from an older one by appending.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsistencyProof {
    /// Leaves of the older tree.
    pub old_size: u64,
    /// Leaves of the newer tree.
    pub new_size: u64,
    /// At most [`MAX_PROOF`] hashes.
    pub path: Vec<Hash>,
}

impl ConsistencyProof {
    /// Proves that the first `old_size` leaves made the older tree; `None` when there are not as many, or none.
    pub fn of(leaves: &[Hash], old_size: usize) -> Option<Self> {
        (1..=leaves.len()).contains(&old_size).then(|| {
            let mut path = Vec::new();
            if old_size < leaves.len() {
                consistency(leaves, old_size, true, &mut path);
            }
            Self { old_size: old_size as u64, new_size: leaves.len() as u64, path }
        })
    }

    /// Whether the tree with root `new` grew from the one with root `old`.
    pub fn holds(&self, old: &Hash, new: &Hash) -> bool {
        if self.old_size == 0 || self.old_size > self.new_size {
            return false;
        }
        if self.old_size == self.new_size {
            return self.path.is_empty() && old == new;
        }
        // RFC 9162, section 2.1.4.2.
        let mut path = self.path.iter();
        let first = match self.old_size.is_power_of_two() {
            true => Some(old),
            false => path.next(),
        };
        let Some(first) = first else { return false };
        let (mut index, mut last) = (self.old_size - 1, self.new_size - 1);
        while index & 1 == 1 {
            index >>= 1;
            last >>= 1;
        }
        let (mut older, mut newer) = (*first, *first);
        for beside in path {
            if last == 0 {
                return false;
            }
            if index & 1 == 1 || index == last {
                older = node_hash(beside, &older);
                newer = node_hash(beside, &newer);
                while index & 1 == 0 && index != 0 {
                    index >>= 1;
                    last >>= 1;
                }
            } else {
                newer = node_hash(&newer, beside);
            }
            index >>= 1;
            last >>= 1;
        }
        last == 0 && older == *old && newer == *new
    }

    /// The bounds of the fields.
    ///
    /// # Errors
    /// Sizes out of order, or too many hashes.
    pub fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(self.old_size <= self.new_size, "old_size", "above new_size")?;
        Invalid::unless(self.path.len() <= MAX_PROOF, "path", "more than 65 hashes")
    }
}

fn consistency(leaves: &[Hash], old_size: usize, whole: bool, path: &mut Vec<Hash>) {
    if old_size == leaves.len() {
        if !whole {
            path.push(root(leaves));
        }
        return;
    }
    let at = split(leaves.len());
    let (left, right) = leaves.split_at(at);
    if old_size <= at {
        consistency(left, old_size, whole, path);
        path.push(root(right));
    } else {
        consistency(right, old_size - at, false, path);
        path.push(root(left));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(n: usize) -> Vec<Hash> {
        (0..n).map(|i| leaf_hash(&i.to_le_bytes())).collect()
    }

    #[test]
    fn the_shape_is_that_of_rfc_6962() {
        let l = leaves(5);
        let pair = |a, b| node_hash(&a, &b);
        assert_eq!(root(&[]), Hash::of(b""));
        assert_eq!(root(&l[..1]), l[0]);
        assert_eq!(root(&l[..3]), pair(pair(l[0], l[1]), l[2]));
        assert_eq!(root(&l), pair(pair(pair(l[0], l[1]), pair(l[2], l[3])), l[4]));
        assert_eq!(
            root(&l).to_string(),
            "49c8fc0c045016dd643efade4b32a2b3e86455f0e443800e31c209eb9a017e31",
            "golden root of five leaves"
        );
    }

    #[test]
    fn every_leaf_is_proved_and_nothing_else_is() {
        for n in 1..40 {
            let all = leaves(n);
            let tree = root(&all);
            for index in 0..n {
                let proof = InclusionProof::of(&all, index).unwrap();
                assert_eq!(proof.root(&all[index]), Some(tree), "{index} of {n}");
                assert_ne!(proof.root(&leaf_hash(b"another")), Some(tree));
                for wrong in (0..=n).filter(|wrong| *wrong != index) {
                    let moved = InclusionProof { index: wrong as u64, ..proof.clone() };
                    assert_ne!(moved.root(&all[index]), Some(tree), "{index} as {wrong} of {n}");
                }
                let mut longer = proof.clone();
                longer.path.push(tree);
                assert_eq!(longer.root(&all[index]), None);
                if !proof.path.is_empty() {
                    let mut shorter = proof.clone();
                    shorter.path.pop();
                    assert_ne!(shorter.root(&all[index]), Some(tree));
                }
            }
            assert_eq!(InclusionProof::of(&all, n), None);
        }
    }

    #[test]
    fn growth_is_proved_and_rewriting_is_not() {
        for n in 1..40 {
            let all = leaves(n);
            let new = root(&all);
            for old_size in 1..=n {
                let proof = ConsistencyProof::of(&all, old_size).unwrap();
                assert!(proof.holds(&root(&all[..old_size]), &new), "{old_size} of {n}");
                let mut rewritten = all[..old_size].to_vec();
                rewritten[old_size / 2] = leaf_hash(b"rewritten");
                assert!(!proof.holds(&root(&rewritten), &new), "{old_size} of {n}");
                assert!(!proof.holds(&root(&all[..old_size]), &leaf_hash(b"another")));
                if old_size < n {
                    let mut shorter = proof.clone();
                    shorter.path.pop();
                    assert!(!shorter.holds(&root(&all[..old_size]), &new));
                }
            }
            assert_eq!(ConsistencyProof::of(&all, 0), None);
            assert_eq!(ConsistencyProof::of(&all, n + 1), None);
        }
    }

    #[test]
    fn absurd_proofs_end() {
        let proof = InclusionProof { index: u64::MAX - 1, size: u64::MAX, path: leaves(64) };
        assert_eq!(proof.root(&leaf_hash(b"")), None);
        let proof = ConsistencyProof { old_size: u64::MAX - 1, new_size: u64::MAX, path: leaves(65) };
        assert!(!proof.holds(&leaf_hash(b""), &leaf_hash(b"")));
    }
}
