//! Which rows of the corpus are trained on, and examined on, in a round.

use crate::error::TrainError;

/// Rounds of the Feistel network; four make it a pseudorandom permutation (Luby and Rackoff, 1988).
const FEISTEL_ROUNDS: u8 = 4;

/// A permutation of `0..length` that a beacon decides. Any place of it is found without the others.
#[derive(Clone, Debug)]
struct Shuffle {
    key: [u8; 32],
    /// Bits of half a number of the network, whose domain is the next power of four.
    half: u32,
    length: u64,
}

impl Shuffle {
    fn new(purpose: &str, beacon: &[u8], round: u64, length: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(purpose);
        hasher.update(&round.to_le_bytes());
        hasher.update(beacon);
        let bits = u64::BITS - length.saturating_sub(1).leading_zeros();
        Self { key: *hasher.finalize().as_bytes(), half: bits.div_ceil(2).max(1), length }
    }

    /// The number at `place`, which must be below the length.
    fn at(&self, place: u64) -> u64 {
        let mut number = place;
        // Numbers beyond the length are walked through: the permutation of the larger domain leads back. That domain is less
        // than four times as large, so few are met.
        loop {
            number = self.permute(number);
            if number < self.length {
                return number;
            }
        }
    }

    fn permute(&self, number: u64) -> u64 {
        let mask = (1u64 << self.half) - 1;
        let (mut left, mut right) = (number >> self.half, number & mask);
        for round in 0..FEISTEL_ROUNDS {
            let mut input = [round; 9];
            input[1..].copy_from_slice(&right.to_le_bytes());
            let hash = blake3::keyed_hash(&self.key, &input);
            let mut word = [0; 8];
            word.copy_from_slice(&hash.as_bytes()[..8]);
            (left, right) = (right, left ^ (u64::from_le_bytes(word) & mask));
        }
        left << self.half | right
    }

    fn take(&self, first: u64, count: usize) -> Vec<u64> {
        (first..).take(count).take_while(|place| *place < self.length).map(|place| self.at(place)).collect()
    }
}

/// Who trains on which rows in one round: the rows of the training split, shuffled anew for every round and dealt out in
/// turn. No two peers get the same row. What is left over, also what was dealt to peers of earlier rounds that were lost, is
/// in the next round's shuffle again.
///
/// Rows are numbers of the training split alone: whatever the beacon, no held-out text is among them (see
/// [`crate::corpus::Split`]).
#[derive(Clone, Debug)]
pub struct Assignment {
    shuffle: Shuffle,
    peers: usize,
    rows_each: usize,
}

impl Assignment {
    /// Deals `rows_each` of `rows` rows to each of `peers` peers, which are numbered in the order of the round's record.
    ///
    /// # Errors
    /// [`TrainError::Setting`] if there are not enough rows, one left over for everyone to be examined on included.
    pub fn new(beacon: &[u8], round: u64, peers: usize, rows_each: usize, rows: u64) -> Result<Self, TrainError> {
        let needed = (peers as u64).checked_mul(rows_each as u64);
        if rows_each == 0 || rows > 1 << 62 || needed.is_none_or(|n| n >= rows) {
            let reason = format!("{rows} rows are too few, or too many, for {peers} peers with {rows_each} each");
            return Err(TrainError::Setting { name: "rows", reason });
        }
        let shuffle = Shuffle::new("consortium training assignment 1", beacon, round, rows);
        Ok(Self { shuffle, peers, rows_each })
    }

    /// How many peers share the rows.
    #[must_use]
    pub fn peers(&self) -> usize {
        self.peers
    }

    /// The rows of a peer, in the order in which it trains on them; none for a number that no peer has.
    #[must_use]
    pub fn rows(&self, peer: usize) -> Vec<u64> {
        if peer >= self.peers {
            return Vec::new();
        }
        self.shuffle.take(peer as u64 * self.rows_each as u64, self.rows_each)
    }

    /// `count` of the peer's rows, drawn by the beacon of the examination; all of them if there are fewer.
    #[must_use]
    pub fn examined(&self, beacon: &[u8], round: u64, peer: usize, count: usize) -> Vec<u64> {
        let own = self.rows(peer);
        let order = Shuffle::new("consortium training examined rows 1", beacon, round, own.len() as u64);
        order.take(0, count).into_iter().filter_map(|at| own.get(usize::try_from(at).ok()?).copied()).collect()
    }

    /// `count` rows that were dealt to nobody, drawn by the beacon of the examination; all of them if there are fewer.
    #[must_use]
    pub fn unassigned(&self, beacon: &[u8], round: u64, count: usize) -> Vec<u64> {
        let dealt = self.peers as u64 * self.rows_each as u64;
        let order = Shuffle::new("consortium training unassigned rows 1", beacon, round, self.shuffle.length - dealt);
        order.take(0, count).into_iter().map(|at| self.shuffle.at(dealt + at)).collect()
    }
}

/// Rows of the held-out split for so many disjoint batches of `size` rows, drawn from `rows` by the beacon of the
/// examination. The last ones are short if there are not enough.
#[must_use]
pub fn held_out_rows(beacon: &[u8], round: u64, rows: u64, batches: usize, size: usize) -> Vec<Vec<u64>> {
    let order = Shuffle::new("consortium training held-out rows 1", beacon, round, rows.min(1 << 62));
    (0..batches).map(|batch| order.take((batch * size) as u64, size)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_shuffle_is_a_permutation_of_any_length() {
        for length in [1, 2, 3, 4, 5, 16, 17, 63, 100, 1000] {
            let shuffle = Shuffle::new("test", b"beacon", 3, length);
            let all: BTreeSet<u64> = shuffle.take(0, 2000).into_iter().collect();
            assert_eq!(all, (0..length).collect(), "{length}");
        }
    }

    #[test]
    fn peers_get_different_rows_and_every_round_others() {
        let of = |beacon: &[u8], round| {
            let assignment = Assignment::new(beacon, round, 8, 40, 1_000_000).unwrap();
            (0..8).flat_map(|peer| assignment.rows(peer)).collect::<Vec<_>>()
        };
        let rows = of(b"a", 1);
        assert_eq!(rows.len(), 320);
        assert_eq!(rows.iter().collect::<BTreeSet<_>>().len(), 320, "disjoint");
        assert_eq!(rows, of(b"a", 1));
        for other in [of(b"b", 1), of(b"a", 2)] {
            let both = rows.iter().filter(|row| other.contains(row)).count();
            assert!(both < 5, "{both} of 320 rows of a million again");
        }
    }

    #[test]
    fn what_is_examined_is_the_peers_own_or_nobodys() {
        let assignment = Assignment::new(b"a", 7, 4, 20, 100).unwrap();
        let dealt: BTreeSet<u64> = (0..4).flat_map(|peer| assignment.rows(peer)).collect();
        for peer in 0..4 {
            let examined = assignment.examined(b"late", 7, peer, 6);
            assert_eq!(examined.iter().collect::<BTreeSet<_>>().len(), 6);
            assert!(examined.iter().all(|row| assignment.rows(peer).contains(row)));
            assert_ne!(examined, assignment.examined(b"later", 7, peer, 6));
        }
        assert_eq!(assignment.examined(b"late", 7, 0, 50).len(), 20);
        let unassigned = assignment.unassigned(b"late", 7, 50);
        assert_eq!(unassigned.len(), 20);
        assert!(unassigned.iter().all(|row| *row < 100 && !dealt.contains(row)));
        assert!(assignment.rows(4).is_empty() && assignment.rows(usize::MAX).is_empty());
    }

    #[test]
    fn held_out_batches_are_disjoint() {
        let batches = held_out_rows(b"late", 7, 500, 3, 8);
        assert_eq!(batches.iter().flatten().collect::<BTreeSet<_>>().len(), 24);
        assert_ne!(batches, held_out_rows(b"late", 8, 500, 3, 8));
    }

    #[test]
    fn too_few_rows_are_refused() {
        for (peers, each, rows) in
            [(4, 25, 100), (4, 26, 100), (1, 0, 10), (usize::MAX, usize::MAX, 10), (1, 1, u64::MAX)]
        {
            assert!(Assignment::new(b"a", 1, peers, each, rows).is_err());
        }
    }

    #[test]
    fn golden_rows() {
        let assignment = Assignment::new(&[7; 32], 5, 3, 4, 1 << 20).unwrap();
        assert_eq!(assignment.rows(1), [432_887, 512_242, 811_828, 425_698]);
    }
}
