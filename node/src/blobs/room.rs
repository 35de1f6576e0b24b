//! The room that files take: whole ones, those that are coming, and what was left of those that did not come to the end.

use std::collections::BTreeMap;

use consortium_protocol::hash::Hash;
use consortium_protocol::wire::blob::MAX_BLOB_BYTES;

use super::BlobError;

/// Files of which something has come, and no more comes: the latest are kept, for another attempt.
const MOST_LEFT: usize = 64;

/// A file that is not whole. It takes the room of all of it.
#[derive(Clone, Copy, Debug)]
struct Begun {
    bytes: u64,
    /// When it was left, by a count; none while it is being written.
    left: Option<u64>,
}

/// Which files take how much.
#[derive(Debug)]
pub(super) struct Room {
    quota: u64,
    whole: BTreeMap<Hash, u64>,
    begun: BTreeMap<Hash, Begun>,
    count: u64,
}

impl Room {
    /// All files together take at most `quota` bytes. Some are `whole`, some were `left` by an earlier life of this node, the
    /// one that was written to last at the end.
    pub(super) fn new(quota: u64, whole: BTreeMap<Hash, u64>, left: Vec<(Hash, u64)>) -> Self {
        let begun = (0..).zip(&left).map(|(place, (hash, bytes))| (*hash, Begun { bytes: *bytes, left: Some(place) }));
        let (begun, count) = (begun.collect(), left.len() as u64);
        Self { quota: quota.min(MAX_BLOB_BYTES), whole, begun, count }
    }

    /// The length of a whole file.
    pub(super) fn length(&self, hash: &Hash) -> Option<u64> {
        self.whole.get(hash).copied()
    }

    /// The whole files.
    pub(super) fn names(&self) -> Vec<Hash> {
        self.whole.keys().copied().collect()
    }

    /// Takes room for a file, until it is [whole](Self::keep) or [left](Self::leave). Gives what was left of other files and is
    /// to be dropped for it, the longest left first.
    ///
    /// # Errors
    /// [`BlobError::Full`] if even that would not make room.
    pub(super) fn take(&mut self, hash: Hash, bytes: u64) -> Result<Vec<Hash>, BlobError> {
        let others = || self.begun.iter().filter(|(other, _)| **other != hash).map(|(_, begun)| begun);
        let sum = |all: &mut dyn Iterator<Item = u64>| all.fold(0u64, u64::saturating_add);
        let whole = sum(&mut self.whole.values().copied());
        let written = sum(&mut others().filter(|begun| begun.left.is_none()).map(|begun| begun.bytes));
        let (used, quota) = (whole.saturating_add(written), self.quota);
        let room = quota.checked_sub(used).and_then(|room| room.checked_sub(bytes));
        let room = room.ok_or(BlobError::Full { bytes, used, quota })?;
        self.begun.insert(hash, Begun { bytes, left: None });
        Ok(self.drop_left(MOST_LEFT, room))
    }

    /// No more of a file comes now. Gives what was left of others and is to be dropped, as there is too much of that.
    pub(super) fn leave(&mut self, hash: &Hash) -> Vec<Hash> {
        if let Some(begun) = self.begun.get_mut(hash) {
            begun.left = Some(self.count);
            self.count += 1;
        }
        self.drop_left(MOST_LEFT, u64::MAX)
    }

    /// A file is whole.
    pub(super) fn keep(&mut self, hash: Hash, bytes: u64) {
        self.begun.remove(&hash);
        self.whole.insert(hash, bytes);
    }

    /// A file is gone, and what has come of it, unless it is being written.
    pub(super) fn forget(&mut self, hash: &Hash) {
        self.whole.remove(hash);
        if self.begun.get(hash).is_some_and(|begun| begun.left.is_some()) {
            self.begun.remove(hash);
        }
    }

    /// Nothing of a file that was being written is there.
    pub(super) fn give_up(&mut self, hash: &Hash) {
        self.begun.remove(hash);
    }

    /// Drops what was left longest ago, until it is at most so many files, and so many bytes; gives what it drops.
    fn drop_left(&mut self, most: usize, room: u64) -> Vec<Hash> {
        let mut left: Vec<(u64, Hash, u64)> =
            self.begun.iter().filter_map(|(hash, begun)| Some((begun.left?, *hash, begun.bytes))).collect();
        left.sort_unstable();
        let (mut count, mut sum) = (left.len(), left.iter().fold(0, |sum: u64, left| sum.saturating_add(left.2)));
        let drop_it = |(_, hash, bytes): (u64, Hash, u64)| {
            let too_much = count > most || sum > room;
            (count, sum) = (count - 1, sum.saturating_sub(bytes));
            too_much.then_some(hash)
        };
        let dropped: Vec<Hash> = left.into_iter().map_while(drop_it).collect();
        dropped.iter().for_each(|hash| _ = self.begun.remove(hash));
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: u64) -> Hash {
        Hash::of(&name.to_le_bytes())
    }

    #[test]
    fn what_is_being_written_takes_room_as_what_is_whole_does() {
        let mut room = Room::new(10, BTreeMap::from([(file(0), 3)]), Vec::new());
        assert_eq!(room.take(file(1), 5).unwrap(), []);
        let error = room.take(file(2), 3).unwrap_err();
        assert!(matches!(error, BlobError::Full { bytes: 3, used: 8, quota: 10 }), "{error}");
        assert_eq!(room.take(file(1), 7).unwrap(), [], "a file stands not in its own way");
        room.keep(file(1), 7);
        assert_eq!((room.length(&file(1)), room.take(file(2), 1).is_err()), (Some(7), true));
        room.forget(&file(0));
        assert_eq!(room.take(file(2), 3).unwrap(), []);
        room.forget(&file(2));
        assert!(room.take(file(3), 1).is_err(), "it is still being written");
        room.give_up(&file(2));
        assert!(room.take(file(3), 1).is_ok() && room.take(file(4), u64::MAX).is_err());
    }

    #[test]
    fn what_was_left_makes_room_the_longest_left_first() {
        let mut room = Room::new(10, BTreeMap::new(), vec![(file(1), 3), (file(2), 3)]);
        room.take(file(3), 3).unwrap();
        assert_eq!(room.leave(&file(3)), []);
        assert!(room.take(file(4), 11).is_err());
        assert_eq!(room.take(file(4), 4).unwrap(), [file(1)], "nothing is dropped in vain");
        assert_eq!(room.take(file(1), 1).unwrap(), [file(2)]);
        assert_eq!(room.take(file(3), 5).unwrap(), [], "it goes on");
        assert!(room.take(file(2), 1).is_err());
    }

    #[test]
    fn few_files_are_left() {
        let mut room = Room::new(u64::MAX, BTreeMap::new(), Vec::new());
        let most = MOST_LEFT as u64;
        for name in 0..most {
            room.take(file(name), 1).unwrap();
            assert_eq!(room.leave(&file(name)), []);
        }
        room.take(file(most), 1).unwrap();
        assert_eq!(room.leave(&file(most)), [file(0)]);
    }
}
