//! What is remembered of late, within a bound: the oldest is forgotten first.

use std::collections::{BTreeMap, VecDeque};

use consortium_protocol::hash::Hash;

/// Values by hash.
#[derive(Debug)]
pub(super) struct Recent<V> {
    most: usize,
    values: BTreeMap<Hash, V>,
    /// In the order of arrival; some may be forgotten already.
    order: VecDeque<Hash>,
}

impl<V> Recent<V> {
    /// Nothing, and room for `most`.
    pub(super) fn new(most: usize) -> Self {
        Self { most, values: BTreeMap::new(), order: VecDeque::new() }
    }

    /// Remembers a value, in the place of an earlier one; false if there was one.
    pub(super) fn insert(&mut self, key: Hash, value: V) -> bool {
        let new = self.values.insert(key, value).is_none();
        if new {
            self.order.push_back(key);
        }
        while self.order.len() > self.most {
            if let Some(oldest) = self.order.pop_front() {
                self.values.remove(&oldest);
            }
        }
        new
    }

    pub(super) fn get(&self, key: &Hash) -> Option<&V> {
        self.values.get(key)
    }

    pub(super) fn remove(&mut self, key: &Hash) {
        if self.values.remove(key).is_some() {
            self.order.retain(|other| other != key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_first() {
        let key = |n: u8| Hash::of(&[n]);
        let mut recent = Recent::new(2);
        assert!(recent.insert(key(1), 1) && recent.insert(key(2), 2) && !recent.insert(key(1), 3));
        assert!(recent.insert(key(3), 3));
        assert_eq!([1, 2, 3].map(|n| recent.get(&key(n)).copied()), [None, Some(2), Some(3)]);
        recent.remove(&key(2));
        assert!(recent.insert(key(4), 4));
        assert_eq!([2, 3, 4].map(|n| recent.get(&key(n)).copied()), [None, Some(3), Some(4)]);
    }
}
