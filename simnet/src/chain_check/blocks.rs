//! The file of blocks that simnet's chain writes, in the format of Bitcoin Core's `blk*.dat`.

use std::path::Path;

use anyhow::{Context, Result, bail};
use bitcoinkernel::Block;
use bitcoinkernel::prelude::BlockHashExt;

/// What each block of regtest begins with on disk.
const MAGIC: [u8; 4] = [0xfa, 0xbf, 0xb5, 0xda];

/// Where a header states the block before.
const PREVIOUS: std::ops::Range<usize> = 4..36;

/// Hash of a block, in the order of its bytes.
pub(crate) type Hash = [u8; 32];

/// A block of the file.
pub(crate) struct Stored {
    pub(crate) hash: Hash,
    pub(crate) previous: Hash,
    pub(crate) block: Block,
}

/// The blocks of a file, in the order in which they were written. What a crash, or a chain at work, left half written at
/// the end does not count.
///
/// # Errors
/// When it cannot be read, or holds something else.
pub(crate) fn read(path: &Path) -> Result<Vec<Stored>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut rest = bytes.as_slice();
    let mut blocks = Vec::new();
    while let Some((magic, framed)) = rest.split_first_chunk::<4>() {
        if *magic != MAGIC {
            bail!("{} holds no blocks of regtest at byte {}", path.display(), bytes.len() - rest.len());
        }
        let Some((length, framed)) = framed.split_first_chunk::<4>() else { break };
        let length = usize::try_from(u32::from_le_bytes(*length))?;
        let Some((block, behind)) = framed.split_at_checked(length) else { break };
        blocks.push(stored(block).with_context(|| format!("block {} of {}", blocks.len(), path.display()))?);
        rest = behind;
    }
    Ok(blocks)
}

fn stored(bytes: &[u8]) -> Result<Stored> {
    let block = Block::new(bytes).context("Bitcoin Core cannot read it")?;
    let previous = bytes.get(PREVIOUS).context("it has no header")?.try_into()?;
    Ok(Stored { hash: block.hash().to_bytes(), previous, block })
}
