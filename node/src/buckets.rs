//! Buckets of tokens: who takes too many has to wait until new ones have run in.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How much a bucket holds, and how fast it fills.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pace {
    /// Tokens that it holds.
    pub(crate) burst: u32,
    /// Tokens that it gains each second; above zero.
    pub(crate) per_second: f64,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn filled(self, pace: Pace, now: Instant) -> Self {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * pace.per_second;
        Self { tokens: (self.tokens + gained).min(f64::from(pace.burst)), at: self.at.max(now) }
    }
}

/// A bucket for each of many; of too many the one that was used longest ago makes room.
#[derive(Debug)]
pub(crate) struct Buckets<K> {
    most: usize,
    buckets: Mutex<HashMap<K, Bucket>>,
}

impl<K: Eq + Hash + Clone> Buckets<K> {
    /// Room for so many buckets.
    pub(crate) fn of_at_most(most: usize) -> Self {
        Self { most, buckets: Mutex::default() }
    }

    /// Takes tokens (at most the pace's burst) from a bucket, which is full at first.
    ///
    /// # Errors
    /// How long to wait until they are there; none were taken.
    pub(crate) fn take(&self, whose: K, tokens: u32, pace: Pace, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if !buckets.contains_key(&whose) && buckets.len() >= self.most {
            let idle = buckets.iter().min_by_key(|(_, bucket)| bucket.at).map(|(whose, _)| whose.clone());
            idle.and_then(|whose| buckets.remove(&whose));
        }
        let bucket = buckets.entry(whose).or_insert(Bucket { tokens: f64::from(pace.burst), at: now });
        *bucket = bucket.filled(pace, now);
        let lacking = f64::from(tokens) - bucket.tokens;
        if lacking > 0.0 {
            return Err(Duration::from_secs_f64((lacking / pace.per_second).min(1e9)));
        }
        bucket.tokens = -lacking;
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.buckets.lock().unwrap().len()
    }
}
