//! A part of a file with the hashes that tie it to the file's name.

use std::fs::File;
use std::io;

use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::io::sync::{CreateOutboard as _, DecodeResponseIter, decode_ranges, encode_ranges_validated};
use bao_tree::{BaoTree, BlockSize, ByteRanges, ChunkRanges};
use consortium_protocol::hash::Hash;
use consortium_protocol::wire::blob::PART_BYTES;

/// Data between two hashes: 16 KiB.
const GROUP: BlockSize = BlockSize::from_chunk_log(4);
/// The longest encoding of a part: its bytes, a pair of hashes for each of its groups, and one for each level above.
pub(super) const MAX_ENCODED: usize = PART_BYTES as usize + 64 * (PART_BYTES as usize / GROUP.bytes() + 64);

/// The chunks of a part.
fn chunks(part: u64, bytes: u64) -> ChunkRanges {
    let (start, end) = (part * PART_BYTES, (part + 1).saturating_mul(PART_BYTES).min(bytes));
    bao_tree::io::round_up_to_chunks(&ByteRanges::from(start..end.max(start + 1)))
}

/// Computes the tree over a file of this length, and writes it to `tree`; gives the file's name.
///
/// # Errors
/// When one cannot be read or the other written.
pub(super) fn grow(data: &File, bytes: u64, tree: &mut File) -> io::Result<Hash> {
    let tree_of = BaoTree::new(bytes, GROUP);
    let mut outboard = PreOrderOutboard { root: blake3::Hash::from([0; 32]), tree: tree_of, data: tree };
    outboard.init_from(io::BufReader::with_capacity(1 << 18, data))?;
    Ok(Hash::from_bytes(*outboard.root.as_bytes()))
}

/// The encoding of a part of the file `hash`, every byte of it checked.
///
/// # Errors
/// When the files cannot be read, or do not hold what they held once.
pub(super) fn encode(data: &File, tree: &File, hash: Hash, bytes: u64, part: u64) -> io::Result<Vec<u8>> {
    let root = blake3::Hash::from(*hash.as_bytes());
    let outboard = PreOrderOutboard { root, tree: BaoTree::new(bytes, GROUP), data: tree };
    let mut encoded = Vec::new();
    encode_ranges_validated(data, &outboard, &chunks(part, bytes), &mut encoded).map_err(io::Error::from)?;
    Ok(encoded)
}

/// Checks an encoded part of the file `hash`.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] when it is not the part of such a file of this length.
pub(super) fn check(encoded: &[u8], hash: Hash, bytes: u64, part: u64) -> io::Result<()> {
    let tree = BaoTree::new(bytes, GROUP);
    let chunks = chunks(part, bytes);
    let mut rest = encoded;
    let mut items = DecodeResponseIter::new(blake3::Hash::from(*hash.as_bytes()), tree, &mut rest, &chunks);
    let is_genuine = items.try_for_each(|item| item.map(drop)).is_ok();
    if is_genuine && rest.is_empty() { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Writes an encoded part of the file `hash` to its place in `target`, and the hashes that tie it to the file's name to theirs
/// in `tree`, as far as it is genuine.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] when it is not the part of such a file of this length, others when it cannot be written.
pub(super) fn decode(
    encoded: &[u8],
    hash: Hash,
    bytes: u64,
    part: u64,
    target: &mut File,
    tree: &mut File,
) -> io::Result<()> {
    let root = blake3::Hash::from(*hash.as_bytes());
    let outboard = PreOrderOutboard { root, tree: BaoTree::new(bytes, GROUP), data: tree };
    let mut rest = encoded;
    decode_ranges(&mut rest, &chunks(part, bytes), target, outboard).map_err(|error| match io::Error::from(error) {
        error if error.kind() == io::ErrorKind::UnexpectedEof => io::ErrorKind::InvalidData.into(),
        error => error,
    })?;
    if rest.is_empty() { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}
