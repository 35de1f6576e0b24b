//! Blocks on disk: one file, only ever appended to, in the format of Bitcoin Core's `blk*.dat` (the network's magic, the
//! length as a little-endian u32, the block), which `bitcoind -regtest -loadblock=FILE` reads.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use bitcoin::{Block, Network, consensus};
use thiserror::Error;

use super::params::MAX_BLOCK_WEIGHT;

/// Bytes before each block: the magic and the length.
const HEADER: usize = 8;

/// Why blocks cannot be kept.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The file cannot be read or written.
    #[error("the file of blocks: {0}")]
    Io(#[from] io::Error),
    /// The file holds something else.
    #[error("the file of blocks is damaged at byte {0}")]
    Damaged(u64),
}

/// The open file, at its end.
#[derive(Debug)]
pub(super) struct BlockStore {
    file: File,
}

impl BlockStore {
    /// Opens the file, or makes it, and returns the blocks in it. A block that a crash cut short is cut off.
    ///
    /// # Errors
    /// When the file cannot be used, or is no file of regtest blocks.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<Block>), StoreError> {
        let mut file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let length = file.metadata()?.len();
        let mut blocks = Vec::new();
        let mut end = 0;
        let mut reader = BufReader::new(&file);
        while let Some((block, size)) = read_block(&mut reader, end, length)? {
            blocks.push(block);
            end += size;
        }
        file.set_len(end)?;
        file.seek(SeekFrom::Start(end))?;
        Ok((Self { file }, blocks))
    }

    /// Appends a block.
    ///
    /// # Errors
    /// When it cannot be written; what was written of it is cut off by the next [`BlockStore::open`].
    pub(super) fn append(&mut self, block: &Block) -> Result<(), StoreError> {
        let bytes = consensus::serialize(block);
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let mut record = Vec::with_capacity(HEADER + bytes.len());
        record.extend_from_slice(&Network::Regtest.magic().to_bytes());
        record.extend_from_slice(&length.to_le_bytes());
        record.extend_from_slice(&bytes);
        self.file.write_all(&record)?;
        Ok(())
    }
}

/// The block at `start` of a file of `end` bytes, and how many bytes it takes; none where no whole one follows.
fn read_block(reader: &mut impl Read, start: u64, end: u64) -> Result<Option<(Block, u64)>, StoreError> {
    if end - start < HEADER as u64 {
        return Ok(None);
    }
    let mut header = [0; HEADER];
    reader.read_exact(&mut header)?;
    let [magic @ .., a, b, c, d] = header;
    let length = u32::from_le_bytes([a, b, c, d]);
    if magic != Network::Regtest.magic().to_bytes() || u64::from(length) > MAX_BLOCK_WEIGHT.to_wu() {
        return Err(StoreError::Damaged(start));
    }
    let size = HEADER as u64 + u64::from(length);
    if end - start < size {
        return Ok(None);
    }
    let mut bytes = vec![0; length as usize];
    reader.read_exact(&mut bytes)?;
    let block = consensus::deserialize(&bytes).map_err(|_| StoreError::Damaged(start))?;
    Ok(Some((block, size)))
}
