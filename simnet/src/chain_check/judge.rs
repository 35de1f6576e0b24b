//! What Bitcoin Core says to blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use bitcoinkernel::prelude::{BlockHashExt, BlockValidationStateExt};
use bitcoinkernel::{
    Block, BlockValidationStateRef, ChainType, ChainstateManager, Context, Log, Logger, ValidationMode,
};
use serde::Serialize;
use tempfile::TempDir;

use crate::blocks::{Hash, Stored};

/// What is before the text of an error in Bitcoin Core's log.
const ERROR_MARK: &str = "[error] ";

/// What became of all blocks.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Blocks in the file.
    pub(crate) blocks: usize,
    /// Those that were valid in full, scripts included, on top of the block before.
    pub(crate) connected: usize,
    /// Those that were not.
    pub(crate) rejected: Vec<Rejected>,
    /// Hash of the last block of the branch that counts.
    pub(crate) tip: String,
    /// Its height.
    pub(crate) height: i32,
}

/// A block that Bitcoin Core rejects.
#[derive(Debug, Serialize)]
pub(crate) struct Rejected {
    /// Blocks before it in the file.
    pub(crate) number: usize,
    /// Its hash.
    pub(crate) hash: String,
    /// Bitcoin Core's words.
    pub(crate) reason: String,
}

impl Report {
    /// Whether every block was valid.
    pub(crate) fn is_clean(&self) -> bool {
        self.rejected.is_empty() && self.connected == self.blocks
    }
}

/// Has Bitcoin Core take the blocks in their order. It connects a branch only once that has the most work; one that never
/// had is taken again afterwards by itself, so that its transactions are checked as well.
///
/// # Errors
/// When Bitcoin Core does not work.
pub(crate) fn judge(blocks: &[Stored]) -> Result<Report> {
    let said = Said::default();
    let logger = Logger::new(said.clone()).context("Bitcoin Core's log")?;
    let core = Core::new(said.clone())?;
    for block in blocks {
        core.submit(block);
    }
    let (tip, height) = core.tip();
    let mut verdicts = core.verdicts();
    for branch in branches(blocks) {
        if branch.iter().all(|block| verdicts.contains_key(&block.hash)) {
            continue;
        }
        let core = Core::new(said.clone())?;
        for block in branch {
            core.submit(block);
        }
        for (hash, verdict) in core.verdicts() {
            verdicts.entry(hash).or_insert(verdict);
        }
    }
    drop(logger);
    let rejected = blocks.iter().enumerate().filter_map(|(number, block)| {
        let reason = verdicts.get(&block.hash)?.clone().err()?;
        Some(Rejected { number, hash: block.block.hash().to_string(), reason })
    });
    let connected = blocks.iter().filter(|block| verdicts.get(&block.hash).is_some_and(Result::is_ok)).count();
    Ok(Report { blocks: blocks.len(), connected, rejected: rejected.collect(), tip, height })
}

/// The blocks from the first one to each that has none after it.
fn branches(blocks: &[Stored]) -> Vec<Vec<&Stored>> {
    let by_hash: BTreeMap<Hash, &Stored> = blocks.iter().map(|block| (block.hash, block)).collect();
    let parents: BTreeSet<Hash> = blocks.iter().map(|block| block.previous).collect();
    let ends = blocks.iter().filter(|block| !parents.contains(&block.hash));
    let branch = |end| {
        let before = |block: &&Stored| by_hash.get(&block.previous).copied();
        let mut branch: Vec<&Stored> = std::iter::successors(Some(end), before).collect();
        branch.reverse();
        branch
    };
    ends.map(branch).collect()
}

/// Whether a block is valid, and why not.
type Verdict = Result<(), String>;

/// Bitcoin Core's validation with a chain of its own, of the first block alone to begin with.
struct Core {
    // Fields are dropped in this order.
    manager: ChainstateManager,
    _context: Context,
    _directory: TempDir,
    verdicts: Arc<Mutex<BTreeMap<Hash, Verdict>>>,
    said: Said,
}

impl Core {
    fn new(said: Said) -> Result<Self> {
        let verdicts = Arc::new(Mutex::new(BTreeMap::new()));
        let context = Context::builder().chain_type(ChainType::Regtest);
        let context = context.with_block_checked_validation({
            let verdicts = Arc::clone(&verdicts);
            move |block: Block, state: BlockValidationStateRef<'_>| {
                let verdict = match state.mode() {
                    ValidationMode::Valid => Ok(()),
                    _ => Err(format!("{:?}", state.result())),
                };
                lock(&verdicts).insert(block.hash().to_bytes(), verdict);
            }
        });
        let context = context.build().context("Bitcoin Core's context")?;
        let directory = tempfile::tempdir()?;
        let path = directory.path().to_str().context("the temporary directory's name is no text")?;
        let manager = ChainstateManager::builder(&context, path, &format!("{path}/blocks"))?
            .block_tree_db_in_memory(true)
            .chainstate_db_in_memory(true)
            .build()
            .context("Bitcoin Core's chain")?;
        manager.import_blocks().context("Bitcoin Core's chain")?;
        Ok(Self { manager, _context: context, _directory: directory, verdicts, said })
    }

    /// Hands over a block. What is taken now may be found invalid only when a block after it is connected.
    fn submit(&self, block: &Stored) {
        lock(&self.said.0).clear();
        let rejected = self.manager.process_block(&block.block).is_rejected();
        let errors = lock(&self.said.0).join("; ");
        let mut verdicts = lock(&self.verdicts);
        if rejected {
            // There is a verdict in all cases that are known; without one this is still no valid block.
            verdicts.entry(block.hash).or_insert_with(|| Err("Unset".to_owned()));
        }
        // The log comes after the verdict, and says in full what that does not.
        for verdict in verdicts.values_mut() {
            if let Err(reason) = verdict
                && !reason.contains(": ")
                && !errors.is_empty()
            {
                *reason = format!("{reason}: {errors}");
            }
        }
    }

    fn verdicts(&self) -> BTreeMap<Hash, Verdict> {
        lock(&self.verdicts).clone()
    }

    fn tip(&self) -> (String, i32) {
        let chain = self.manager.active_chain();
        (chain.tip().block_hash().to_string(), chain.height())
    }
}

/// The errors in Bitcoin Core's log.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<String>>>);

impl Log for Said {
    fn log(&self, message: &str) {
        if let Some((_, error)) = message.split_once(ERROR_MARK) {
            lock(&self.0).push(error.trim_end().to_owned());
        }
    }
}

/// No holder of these locks panics half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
