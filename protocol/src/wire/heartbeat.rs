//! What a node says about itself twice a second.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{MAX_MODEL_NAME, check_text};
use crate::cluster::ClusterId;
use crate::envelope::{Invalid, Payload};
use crate::hash::Hash;
use crate::identity::NodeId;
use crate::msat::Msat;

/// How many models, and how many leases, one heartbeat lists.
pub const MAX_LISTED: usize = 16;

/// A node's signed account of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Wall time of the node's start, in milliseconds since 1970: orders the lives of one node.
    pub incarnation: u64,
    /// Counts the heartbeats of one life.
    pub seq: u64,
    /// The highest certified term this node obeys; 0 if none.
    pub term: u64,
    /// The master it obeys in that term.
    pub master: Option<NodeId>,
    /// Whether it would be master.
    pub willing: bool,
    /// Memory offered for shards, in bytes.
    pub memory_bytes: u64,
    /// Measured time of one decode token through one reference layer, in microseconds; 0 if not measured.
    pub layer_micros: u32,
    /// Complete copies on its disk, at most [`MAX_LISTED`].
    pub models: Vec<ModelRef>,
    /// Layers it has loaded, at most [`MAX_LISTED`].
    pub held: Vec<Lease>,
    /// Jobs it works on.
    pub active_jobs: u32,
    /// What it asks for one token through one layer.
    pub price_per_layer_token: Msat,
    /// What it asks, as a master, for each position of a job that it drives.
    pub master_fee: Msat,
    /// Seconds since its start.
    pub uptime_s: u64,
    /// It is about to go: do not count on it.
    pub leaving: bool,
    /// Wall time of sending, in milliseconds since 1970.
    pub sent_at_ms: u64,
}

impl Payload for Heartbeat {
    const DOMAIN: &'static str = "heartbeat";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 8 * 1024;

    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(self.models.len() <= MAX_LISTED, "models", "more than 16")?;
        Invalid::unless(self.held.len() <= MAX_LISTED, "held", "more than 16")?;
        Invalid::unless((self.term == 0) == self.master.is_none(), "master", "named exactly when there is a term")?;
        self.models.iter().try_for_each(ModelRef::check)?;
        self.held.iter().try_for_each(|lease| lease.range.check())
    }
}

/// A model: what people call it, and what it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRef {
    /// The name used in the API, 1 to 96 bytes.
    pub name: String,
    /// The digest of its manifest.
    pub digest: Hash,
    /// Transformer layers, at least one.
    pub layers: u16,
    /// Positions it can attend to.
    pub context: u32,
}

impl ModelRef {
    /// The bounds of the fields.
    ///
    /// # Errors
    /// An empty or long name, or no layers.
    pub fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(!self.name.is_empty(), "model name", "empty")?;
        check_text(&self.name, MAX_MODEL_NAME, "model name")?;
        Invalid::unless(self.layers > 0, "layers", "none")
    }
}

/// Layers that a node holds in memory, and the term of the master that had it load them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// Digest of the model.
    pub model: Hash,
    /// The layers.
    pub range: LayerRange,
    /// The term in which they were assigned or last adopted.
    pub term: u64,
}

/// Layers `first..=last` of a model, counted from 0. Its text is `first-last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRange {
    /// The first layer.
    pub first: u16,
    /// The last layer, itself included.
    pub last: u16,
}

impl LayerRange {
    /// `first..=last`.
    ///
    /// # Errors
    /// `last` lies before `first`.
    pub const fn new(first: u16, last: u16) -> Result<Self, Invalid> {
        let range = Self { first, last };
        match range.check() {
            Ok(()) => Ok(range),
            Err(error) => Err(error),
        }
    }

    /// That the range is not empty.
    ///
    /// # Errors
    /// `last` lies before `first`.
    pub const fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(self.first <= self.last, "range", "last before first")
    }

    /// How many layers.
    pub const fn count(&self) -> u32 {
        (self.last as u32 + 1).saturating_sub(self.first as u32)
    }

    /// Whether `layer` is one of them.
    pub const fn contains(&self, layer: u16) -> bool {
        self.first <= layer && layer <= self.last
    }

    /// Whether the two have a layer in common.
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for LayerRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}-{}", self.first, self.last))
    }
}

/// A text that is not `first-last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("layers are written first-last, both counted from 0")]
pub struct ParseLayerRangeError;

impl FromStr for LayerRange {
    type Err = ParseLayerRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (first, last) = text.split_once('-').ok_or(ParseLayerRangeError)?;
        let number = |text: &str| text.parse().map_err(|_| ParseLayerRangeError);
        Self::new(number(first)?, number(last)?).map_err(|_| ParseLayerRangeError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_ranges_parse_and_count() {
        let range: LayerRange = "0-3".parse().unwrap();
        assert_eq!(range, LayerRange { first: 0, last: 3 });
        assert_eq!(range.to_string(), "0-3");
        assert_eq!(range.count(), 4);
        assert_eq!(LayerRange { first: 0, last: u16::MAX }.count(), 65_536);
        assert!(range.contains(3) && !range.contains(4));
        assert!(range.overlaps(&"3-9".parse().unwrap()));
        assert!(!range.overlaps(&"4-9".parse().unwrap()));
        for bad in ["3-0", "", "-", "1", "1-", "a-b", "0-65536", "1--2"] {
            assert!(bad.parse::<LayerRange>().is_err(), "{bad}");
        }
    }
}
