//! Every block that was ever seen and is valid by itself, and which of them has the most work behind it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bitcoin::block::Header;
use bitcoin::{Block, BlockHash, Work};

use super::block::median_time;

/// A block in the tree.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) block: Arc<Block>,
    pub(super) height: u32,
    /// Work of this block and all before it.
    pub(super) work: Work,
    /// How many blocks had come before it: of two branches with equal work the older one stays.
    arrival: u64,
    /// Whether it, or one before it, was found or declared invalid.
    invalid: bool,
}

impl Node {
    pub(super) fn header(&self) -> &Header {
        &self.block.header
    }

    fn rank(&self, hash: BlockHash) -> Rank {
        (self.work, Reverse(self.arrival), hash)
    }
}

/// What decides between branches: most work, then first come.
type Rank = (Work, Reverse<u64>, BlockHash);

/// The tree, which grows from its first block.
#[derive(Clone, Debug)]
pub(super) struct BlockTree {
    nodes: BTreeMap<BlockHash, Node>,
    /// Those that are not invalid, the best one last.
    candidates: BTreeSet<Rank>,
    genesis: BlockHash,
}

impl BlockTree {
    pub(super) fn new(genesis: Block) -> Self {
        let hash = genesis.block_hash();
        let work = genesis.header.work();
        let node = Node { block: Arc::new(genesis), height: 0, work, arrival: 0, invalid: false };
        Self { candidates: BTreeSet::from([node.rank(hash)]), nodes: BTreeMap::from([(hash, node)]), genesis: hash }
    }

    pub(super) fn get(&self, hash: &BlockHash) -> Option<&Node> {
        self.nodes.get(hash)
    }

    /// Number of blocks, on whatever branch.
    pub(super) fn len(&self) -> u64 {
        self.nodes.len() as u64
    }

    pub(super) fn is_invalid(&self, hash: &BlockHash) -> bool {
        self.nodes.get(hash).is_some_and(|node| node.invalid)
    }

    /// Adds a block; none when the one before is unknown.
    pub(super) fn insert(&mut self, block: Arc<Block>) -> Option<BlockHash> {
        let hash = block.block_hash();
        let parent = self.nodes.get(&block.header.prev_blockhash)?;
        let node = Node {
            height: parent.height + 1,
            work: parent.work + block.header.work(),
            arrival: self.len(),
            invalid: parent.invalid,
            block,
        };
        if !node.invalid {
            self.candidates.insert(node.rank(hash));
        }
        self.nodes.insert(hash, node);
        Some(hash)
    }

    /// The block with the most work behind it.
    pub(super) fn best(&self) -> BlockHash {
        self.candidates.last().map_or(self.genesis, |(_, _, hash)| *hash)
    }

    /// Counts a block and all after it as invalid.
    pub(super) fn invalidate(&mut self, hash: &BlockHash) {
        for (descendant, node) in self.and_descendants(hash) {
            self.candidates.remove(&node.rank(descendant));
            self.set_invalid(&descendant, true);
        }
    }

    /// Forgets that a block, those before it and those after it were counted as invalid.
    pub(super) fn reconsider(&mut self, hash: &BlockHash) {
        let mut family = self.and_descendants(hash);
        family.extend(self.ancestors(hash).map(|(hash, node)| (hash, node.clone())));
        for (hash, node) in family {
            self.candidates.insert(node.rank(hash));
            self.set_invalid(&hash, false);
        }
    }

    fn set_invalid(&mut self, hash: &BlockHash, invalid: bool) {
        if let Some(node) = self.nodes.get_mut(hash) {
            node.invalid = invalid;
        }
    }

    /// A block and those after it, on all branches.
    fn and_descendants(&self, hash: &BlockHash) -> Vec<(BlockHash, Node)> {
        let mut by_height: Vec<(&BlockHash, &Node)> = self.nodes.iter().collect();
        by_height.sort_by_key(|(_, node)| node.height);
        let mut found = BTreeSet::from([*hash]);
        let mut family = Vec::new();
        for (candidate, node) in by_height {
            if candidate == hash || found.contains(&node.header().prev_blockhash) {
                found.insert(*candidate);
                family.push((*candidate, node.clone()));
            }
        }
        family
    }

    /// A block and those before it, down to the first.
    pub(super) fn ancestors(&self, hash: &BlockHash) -> impl Iterator<Item = (BlockHash, &Node)> {
        let mut next = Some(*hash);
        std::iter::from_fn(move || {
            let hash = next.take()?;
            let node = self.nodes.get(&hash)?;
            next = (node.height > 0).then_some(node.header().prev_blockhash);
            Some((hash, node))
        })
    }

    /// Median time of a block and the ten before it, in Unix seconds.
    pub(super) fn median_time_past(&self, hash: &BlockHash) -> u32 {
        median_time(self.ancestors(hash).map(|(_, node)| node.header().time))
    }

    /// The ends of all branches.
    pub(super) fn tips(&self) -> Vec<(BlockHash, &Node)> {
        let parents: BTreeSet<BlockHash> = self.nodes.values().map(|node| node.header().prev_blockhash).collect();
        let ends = self.nodes.iter().filter(|(hash, _)| !parents.contains(*hash));
        ends.map(|(hash, node)| (*hash, node)).collect()
    }
}
