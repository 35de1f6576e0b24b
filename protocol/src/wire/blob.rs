//! Files between nodes, named by the BLAKE3 hash of their content.
//!
//! On a stream of the protocol [`super::BLOB`] the asking side writes [`BlobRequest`]s, one after the other, each behind
//! a `u32` little-endian length, and reads a [`BlobAnswer`] to each, framed alike. Behind an answer to a question for a
//! part follows that part, framed too: its bytes in groups of 16 KiB, with the hashes of BLAKE3's tree that tie them to
//! the name of the file, in the order of Bao's combined encoding (github.com/oconnor663/bao, docs/spec.md).

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

/// The answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobAnswer {
    /// It is here, and has so many bytes. The part that was asked for follows, if one was.
    Here {
        /// Its length.
        bytes: u64,
    },
    /// It is not here, or has no such part.
    Unknown,
}

impl Message for BlobAnswer {
    const MAX_BYTES: usize = 32;

    fn check(&self) -> Result<(), Invalid> {
        let Self::Here { bytes } = self else { return Ok(()) };
        Invalid::unless(*bytes <= MAX_BLOB_BYTES, "bytes", "longer than files may be")
    }
}
