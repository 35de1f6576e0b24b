//! What cheats there are, and how they are written: `int8`, `zeros@0.1`, `node3=int8`.

use std::fmt;
use std::str::FromStr;

use consortium_protocol::wire::audit::BLOCK;

/// How a worker cheats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Computes with weights of 8 bits in place of the agreed ones.
    Int8,
    /// Computes with weights of 4 bits.
    Int4,
    /// Leaves out one of its layers.
    SkipLayer,
    /// Leaves out the attention of one of its layers.
    SkipAttention,
    /// Attends to its block and the 32 positions before it alone: nothing else than honest work up to position 64.
    ShortContext,
    /// Computes with the weights of a few optimiser steps earlier.
    Stale,
    /// Computes half of its layers.
    Smaller,
    /// Gives zeros.
    Zeros,
    /// Gives noise of the right size.
    Noise,
    /// The last stage draws tokens by a seed of its own.
    Tokens,
    /// Gives the rows of an earlier job.
    Replay,
    /// Computes over inputs that it made up.
    Inputs,
    /// Hands on what it received as its own work.
    Copy,
    /// Computes with the layers next to its own.
    WrongShard,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Int8,
        Self::Int4,
        Self::SkipLayer,
        Self::SkipAttention,
        Self::ShortContext,
        Self::Stale,
        Self::Smaller,
        Self::Zeros,
        Self::Noise,
        Self::Tokens,
        Self::Replay,
        Self::Inputs,
        Self::Copy,
        Self::WrongShard,
    ];

    /// How it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::SkipLayer => "skip-layer",
            Self::SkipAttention => "skip-attention",
            Self::ShortContext => "short-context",
            Self::Stale => "stale",
            Self::Smaller => "smaller",
            Self::Zeros => "zeros",
            Self::Noise => "noise",
            Self::Tokens => "tokens",
            Self::Replay => "replay",
            Self::Inputs => "inputs",
            Self::Copy => "copy",
            Self::WrongShard => "wrong-shard",
        }
    }

    /// What whoever gets away with it gains.
    pub fn gain(self) -> &'static str {
        match self {
            Self::Int8 => "half of the memory and bandwidth of the weights, up to twice the tokens per second",
            Self::Int4 => "three quarters of the memory and bandwidth of the weights",
            Self::SkipLayer => "the work of one layer",
            Self::SkipAttention => "the attention of one layer, and its cache",
            Self::ShortContext => "most of the cache, and attention that does not grow with the context",
            Self::Stale => "an update of the weights not fetched",
            Self::Smaller => "half of the work and memory",
            Self::Zeros | Self::Noise | Self::Copy | Self::Replay => "all of the work",
            Self::Tokens => "a say in the text",
            Self::Inputs => "independence of the stages before",
            Self::WrongShard => "the loading of another shard",
        }
    }

    /// Whether a stage can cheat so: the first has no rows to copy, only the last draws tokens.
    pub fn possible(self, first: bool, last: bool) -> bool {
        match self {
            Self::Tokens => last,
            Self::Copy => !first,
            _ => true,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A cheat, and how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cheat {
    /// How.
    pub kind: Kind,
    /// Share of the blocks in which it cheats: above 0, to 1.
    pub share: f64,
}

impl Cheat {
    /// In every block.
    pub fn always(kind: Kind) -> Self {
        Self { kind, share: 1.0 }
    }
}

impl fmt::Display for Cheat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.share {
            1.0 => write!(f, "{}", self.kind),
            share => write!(f, "{}@{share}", self.kind),
        }
    }
}

/// A node of a swarm that is to cheat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assignment {
    /// Its number, from 1.
    pub node: usize,
    /// How it cheats.
    pub cheat: Cheat,
}

impl fmt::Display for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node{}={}", self.node, self.cheat)
    }
}

/// What is wrong with the text of a cheat.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// No cheat has that name.
    #[error("there is no cheat `{0}`; there are {all}", all = Kind::ALL.map(Kind::name).join(", "))]
    Kind(String),
    /// Not a share of blocks.
    #[error(
        "`{0}` is no share of blocks: write a number above 0 and up to 1, as in int8@0.1 (blocks of {BLOCK} positions)"
    )]
    Share(String),
    /// Not `NODE=CHEAT`.
    #[error("`{0}` names no node: write it like node3=int8")]
    NoNode(String),
    /// Not a node.
    #[error("`{0}` is no node: write node1, node2, ...")]
    Node(String),
}

impl FromStr for Kind {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| SpecError::Kind(text.to_owned()))
    }
}

impl FromStr for Cheat {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (kind, share) = match text.split_once('@') {
            None => (text, 1.0),
            Some((kind, share)) => {
                let number: f64 = share.parse().map_err(|_| SpecError::Share(share.to_owned()))?;
                if !(number > 0.0 && number <= 1.0) {
                    return Err(SpecError::Share(share.to_owned()));
                }
                (kind, number)
            }
        };
        Ok(Self { kind: kind.parse()?, share })
    }
}

impl FromStr for Assignment {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (node, cheat) = text.split_once('=').ok_or_else(|| SpecError::NoNode(text.to_owned()))?;
        let digits = node.strip_prefix("node").map_or(node, |rest| rest.strip_prefix('-').unwrap_or(rest));
        match digits.parse() {
            Ok(number @ 1..) => Ok(Self { node: number, cheat: cheat.parse()? }),
            _ => Err(SpecError::Node(node.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cheat_is_read_back() {
        for kind in Kind::ALL {
            for share in [1.0, 0.1, 0.01] {
                let cheat = Cheat { kind, share };
                assert_eq!(cheat.to_string().parse(), Ok(cheat));
            }
        }
        for text in ["node3=int8", "node-3=int8", "3=int8@1"] {
            let read: Assignment = text.parse().unwrap();
            assert_eq!(read.to_string(), "node3=int8");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let says = |text: &str| text.parse::<Assignment>().unwrap_err().to_string();
        assert!(says("node3=int9").contains("no cheat `int9`; there are int8, int4, "), "{}", says("node3=int9"));
        assert!(says("int8").contains("write it like node3=int8"));
        assert!(says("nodex=int8").contains("`nodex` is no node"));
        assert!(says("node0=int8").contains("`node0` is no node"));
        for share in ["0", "1.1", "-1", "x", "NaN", ""] {
            assert!(says(&format!("node1=zeros@{share}")).contains("no share of blocks"), "{share}");
        }
    }
}
