//! Files between nodes, named by the BLAKE3 hash of their content.
//!
//! On a stream of the protocol [`super::BLOB`] the asking side writes [`BlobRequest`]s, one after the other, each behind
//! a `u32` little-endian length, and reads a [`BlobAnswer`] to each, framed alike. Behind an answer to a question for a
//! part follows that part, framed too: its bytes in groups of 16 KiB, with the hashes of BLAKE3's tree that tie them to
//! the name of the file, in the order of Bao's combined encoding (github.com/oconnor663/bao, docs/spec.md).
//!
//! A node that is fetching a file itself passes on the parts that it has: it answers with [`BlobAnswer::Coming`], which tells
//! which those are, also when it is asked for one that it has not.

use serde::{Deserialize, Serialize};

use super::Message;
use crate::envelope::Invalid;
use crate::hash::Hash;

/// Bytes of a part; the last one may be shorter.
pub const PART_BYTES: u64 = 1 << 20;
/// The longest file, in bytes: 1 TiB.
pub const MAX_BLOB_BYTES: u64 = 1 << 40;

/// How many parts a file has; an empty one has one.
#[must_use]
pub const fn parts(bytes: u64) -> u64 {
    if bytes == 0 { 1 } else { bytes.div_ceil(PART_BYTES) }
}

/// A question for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobRequest {
    /// Its name.
    pub hash: Hash,
    /// Which part of it, counted from 0; none to ask for its length alone.
    pub part: Option<u64>,
}

impl Message for BlobRequest {
    const MAX_BYTES: usize = 64;

    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(self.part.is_none_or(|part| part < parts(MAX_BLOB_BYTES)), "part", "beyond the longest file")
    }
}

/// Which parts of a file are somewhere: a bit for each, the first the lowest of the first byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Held(#[serde(with = "serde_bytes")] Vec<u8>);

impl Held {
    /// None of a file of so many bytes.
    #[must_use]
    pub fn none(bytes: u64) -> Self {
        Self(vec![0; parts(bytes).div_ceil(8) as usize])
    }

    /// Whether a part is among them.
    #[must_use]
    pub fn has(&self, part: u64) -> bool {
        let byte = usize::try_from(part / 8).ok().and_then(|at| self.0.get(at));
        byte.is_some_and(|byte| byte >> (part % 8) & 1 == 1)
    }

    /// Adds a part, or takes it out. One beyond the end of the file changes nothing.
    pub fn set(&mut self, part: u64, is_there: bool) {
        if let Some(byte) = usize::try_from(part / 8).ok().and_then(|at| self.0.get_mut(at)) {
            let bit = 1 << (part % 8);
            *byte = if is_there { *byte | bit } else { *byte & !bit };
        }
    }

    /// Whether they are parts of a file of so many bytes.
    fn fit(&self, bytes: u64) -> bool {
        let parts = parts(bytes);
        self.0.len() as u64 == parts.div_ceil(8) && (parts..self.0.len() as u64 * 8).all(|part| !self.has(part))
    }
}

/// The answer to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobAnswer {
    /// It is here, or the part is that was asked for, and the file has so many bytes. The part follows, if one was asked for.
    Here {
        /// Its length.
        bytes: u64,
    },
    /// Some of it is here, and more may come; not the part that was asked for, if one was.
    Coming {
        /// Its length.
        bytes: u64,
        /// The parts that are here.
        held: Held,
    },
    /// It is not here, or has no such part.
    Unknown,
}

impl Message for BlobAnswer {
    const MAX_BYTES: usize = 64 + (parts(MAX_BLOB_BYTES) / 8) as usize;

    fn check(&self) -> Result<(), Invalid> {
        let (bytes, fit) = match self {
            Self::Here { bytes } => (*bytes, true),
            Self::Coming { bytes, held } => (*bytes, *bytes <= MAX_BLOB_BYTES && held.fit(*bytes)),
            Self::Unknown => return Ok(()),
        };
        Invalid::unless(bytes <= MAX_BLOB_BYTES, "bytes", "longer than files may be")?;
        Invalid::unless(fit, "held", "not of the parts of such a file")
    }
}
