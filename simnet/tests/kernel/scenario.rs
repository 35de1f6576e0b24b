//! Random life on a chain: coins of every kind made and spent, locks, replacements, competing branches.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{Amount, BlockHash, OutPoint};
use consortium_simnet::chain::Regtest;
use rand::Rng;
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::coins::{Coin, Kind, Purse};
use super::oracle;

/// Time of the first block, in Unix seconds.
const BEGIN: u64 = 1_700_000_000;
/// Seconds from one step to the next.
const STEP: u64 = 200;
const STEPS: usize = 250;
/// What coins are made with.
const VALUE: Amount = Amount::from_sat(50_000_000);
const KINDS: usize = 14;

struct World {
    regtest: Regtest,
    purse: Purse,
    rng: ChaCha8Rng,
    now: u64,
    coins: Vec<Coin>,
    invalidated: Vec<BlockHash>,
}

impl World {
    fn new(directory: &std::path::Path, seed: u8) -> Self {
        // With the miner's key the chain is the same each time.
        std::fs::write(directory.join("miner.key"), [seed + 100; 32]).unwrap();
        let regtest = Regtest::open(directory, BEGIN).unwrap();
        let rng = ChaCha8Rng::seed_from_u64(seed.into());
        Self { regtest, purse: Purse::new(seed), rng, now: BEGIN, coins: Vec::new(), invalidated: Vec::new() }
    }

    fn kind(&mut self) -> Kind {
        let height = self.regtest.chain.height();
        let median = self.regtest.chain.median_time_past();
        match self.rng.random_range(0..KINDS) {
            0 => Kind::Pk,
            1 => Kind::Pkh,
            2 => Kind::Multisig,
            3 => Kind::Wpkh,
            4 => Kind::NestedWpkh,
            5 => Kind::WitnessMultisig,
            6 => Kind::HashLock,
            7 => Kind::FromHeight(height + self.rng.random_range(0..8)),
            8 => Kind::FromTime(median + self.rng.random_range(0..2_000)),
            9 => Kind::AfterBlocks,
            10 => Kind::AfterTime,
            11 => Kind::TaprootKey,
            12 => Kind::TaprootScript,
            _ => Kind::Anchor,
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        match self.rng.random_range(0..20) {
            0..4 => self.fund(),
            4..12 => self.spend(),
            12..16 => self.mine(),
            16 => self.mine_nothing(),
            17 => self.mine_what_is_not_relayed(),
            18 => self.leave_branch(),
            _ => self.reconsider(),
        }
    }

    fn fund(&mut self) {
        let kind = self.kind();
        let output = self.purse.output(kind, VALUE);
        let transaction = self.regtest.faucet.pay(&self.regtest.chain, vec![output.clone()]).unwrap();
        if self.regtest.chain.submit_transaction(transaction.clone(), self.now).is_ok() {
            self.coins.push(Coin { outpoint: OutPoint::new(transaction.compute_txid(), 0), output, kind });
        }
    }

    /// Some coins, spent to new ones; what is locked, or spent already for a better fee, is refused.
    fn spend(&mut self) {
        let Some((transaction, made)) = self.spending() else { return };
        if self.regtest.chain.submit_transaction(transaction, self.now).is_ok() {
            self.coins.extend(made);
        }
    }

    fn spending(&mut self) -> Option<(bitcoin::Transaction, Vec<Coin>)> {
        // Once in a while what another transaction spends is spent again, with a better fee.
        let again = self.rng.random_bool(0.2);
        let there = |coin: &&Coin| self.regtest.chain.unspent(&coin.outpoint, !again).is_some();
        let there: Vec<&Coin> = self.coins.iter().filter(there).collect();
        let number = self.rng.random_range(1..4);
        let spent: Vec<Coin> = there.choose_multiple(&mut self.rng, number).map(|coin| (*coin).clone()).collect();
        let total: Amount = spent.iter().map(|coin| coin.output.value).sum();
        let fee = Amount::from_sat(self.rng.random_range(1_000..6_000));
        let kinds = [self.kind(), self.kind()];
        let value = total.checked_sub(fee)? / 2;
        if value < Amount::from_sat(10_000) {
            return None;
        }
        let outputs: Vec<_> = kinds.iter().map(|kind| self.purse.output(*kind, value)).collect();
        let mut transaction = Purse::unsigned(&spent, outputs.clone());
        self.purse.sign(&mut transaction, &spent);
        let txid = transaction.compute_txid();
        let coin = |(vout, (kind, output))| Coin { outpoint: OutPoint::new(txid, vout), output, kind };
        let made = (0..).zip(kinds.into_iter().zip(outputs)).map(coin).collect();
        Some((transaction, made))
    }

    fn mine(&mut self) {
        for _ in 0..self.rng.random_range(1..4) {
            self.regtest.chain.mine(self.regtest.faucet.script(), self.now).unwrap();
        }
    }

    fn mine_nothing(&mut self) {
        self.regtest.chain.mine_these(self.regtest.faucet.script(), Vec::new(), self.now).unwrap();
    }

    /// A block with a transaction that pays no fee, if it is valid.
    fn mine_what_is_not_relayed(&mut self) {
        let Some((transaction, made)) = self.spending() else { return };
        let mined = self.regtest.chain.mine_these(self.regtest.faucet.script(), vec![transaction], self.now);
        if mined.is_ok() {
            self.coins.extend(made);
        }
    }

    /// Goes on from a block a few below the tip: a branch that may become the longer one, or not.
    fn leave_branch(&mut self) {
        let depth = self.rng.random_range(0..5);
        let hash = self.regtest.chain.hash_at(self.regtest.chain.height() - depth).unwrap();
        self.regtest.chain.invalidate(&hash, self.now).unwrap();
        self.invalidated.push(hash);
        for _ in 0..self.rng.random_range(0..=depth + 1) {
            self.mine_nothing();
        }
    }

    fn reconsider(&mut self) {
        if let Some(hash) = self.invalidated.choose(&mut self.rng) {
            self.regtest.chain.reconsider(hash, self.now).unwrap();
        }
    }

    /// The kinds of the coins that blocks spend, on whatever branch.
    fn spent(&self, blocks: &[bitcoin::Block]) -> BTreeSet<&'static str> {
        let kinds: BTreeMap<OutPoint, Kind> = self.coins.iter().map(|coin| (coin.outpoint, coin.kind)).collect();
        let inputs = blocks.iter().flat_map(|block| &block.txdata).flat_map(|transaction| &transaction.input);
        inputs.filter_map(|input| kinds.get(&input.previous_output)).map(|kind| name(*kind)).collect()
    }
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Pk => "p2pk",
        Kind::Pkh => "p2pkh",
        Kind::Multisig => "p2sh",
        Kind::Wpkh => "p2wpkh",
        Kind::NestedWpkh => "p2sh-p2wpkh",
        Kind::WitnessMultisig => "p2wsh",
        Kind::HashLock => "hash lock",
        Kind::FromHeight(_) => "height",
        Kind::FromTime(_) => "time",
        Kind::AfterBlocks => "blocks",
        Kind::AfterTime => "relative time",
        Kind::TaprootKey => "taproot key",
        Kind::TaprootScript => "taproot script",
        Kind::Anchor => "anchor",
    }
}

#[test]
fn whatever_happens_on_the_chain_bitcoin_core_agrees() {
    let mut spent = BTreeSet::new();
    for seed in 0..8 {
        let directory = tempfile::tempdir().unwrap();
        let mut world = World::new(directory.path(), seed);
        for _ in 0..STEPS {
            world.step();
        }
        let file = directory.path().join("blocks.dat");
        spent.extend(world.spent(&oracle::read(&file)));
        drop(world);
        oracle::accepted(&format!("seed {seed}"), directory.path());
    }
    assert_eq!(spent.len(), KINDS, "{spent:?}");
}
