//! What a cluster is called.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::hash::{Hash, ParseHexError};
use crate::identity::NodeId;

/// How many nodes one cluster admits.
pub const MAX_MEMBERS: usize = 64;

/// How long the name of a cluster may be, in bytes, the founder's key not counted.
pub const MAX_NAME: usize = 64;

/// What every message of a cluster carries: the digest of its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub Hash);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ClusterId {
    type Err = ParseHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// `name`, or `name@<PeerId of the founder>`: whoever knows the text knows the cluster.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClusterName {
    name: String,
    founder: Option<NodeId>,
}

impl ClusterName {
    /// A name with the founder's key, if it has one.
    ///
    /// # Errors
    /// The name is empty, too long, or has a character other than `a-z 0-9 - . _`.
    pub fn new(name: &str, founder: Option<NodeId>) -> Result<Self, ParseClusterNameError> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_');
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(allowed) {
            return Err(ParseClusterNameError::Name);
        }
        Ok(Self { name: name.to_owned(), founder })
    }

    /// The part before the `@`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The founder, if the name has one.
    pub fn founder(&self) -> Option<NodeId> {
        self.founder
    }

    /// The id that messages carry: BLAKE3 of `"consortium/cluster/1" 0x00 text`.
    pub fn id(&self) -> ClusterId {
        ClusterId(Hash::of(format!("consortium/cluster/1\0{self}").as_bytes()))
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.founder {
            Some(founder) => write!(f, "{}@{founder}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// A text that names no cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseClusterNameError {
    /// The name before the `@`.
    #[error("a cluster name has 1 to 64 characters of a-z, 0-9, '-', '.', '_'")]
    Name,
    /// The key after the `@`.
    #[error("what follows the '@' is not a PeerId")]
    Founder,
}

impl FromStr for ClusterName {
    type Err = ParseClusterNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('@') {
            None => Self::new(text, None),
            Some((name, founder)) => {
                let founder = founder.parse().map_err(|_| ParseClusterNameError::Founder)?;
                Self::new(name, Some(founder))
            }
        }
    }
}

impl Serialize for ClusterName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ClusterName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::RootKey;

    #[test]
    fn names_are_checked_and_told_apart() {
        let founder = RootKey::from_seed([1; 32]).node_id();
        let plain: ClusterName = "home-lab_1.x".parse().unwrap();
        let owned: ClusterName = format!("home-lab_1.x@{founder}").parse().unwrap();
        assert_ne!(plain.id(), owned.id());
        assert_eq!(owned.founder(), Some(founder));
        assert_eq!(owned.to_string().parse::<ClusterName>().unwrap(), owned);
        for bad in ["", "Home", "a b", "a@", "a@b", "@", &"a".repeat(65)] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
    }
}
