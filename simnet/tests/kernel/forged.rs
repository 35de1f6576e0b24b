//! Blocks that are wrong in one thing each, and blocks that are odd: the chain and Bitcoin Core agree on every one.

use std::path::Path;

use bitcoin::block::Version;
use bitcoin::hashes::Hash;
use bitcoin::opcodes::all::OP_CHECKMULTISIG;
use bitcoin::{
    Amount, Block, BlockHash, CompactTarget, OutPoint, ScriptBuf, Transaction, TxMerkleNode, TxOut, Witness,
};
use consortium_simnet::chain::{Accepted, Chain, Regtest};
use serde_json::json;

use super::coins::{Coin, Kind, Purse};
use super::oracle::{self, now};

/// Height of the block that is altered: the first one with half the subsidy.
const HEIGHT: u32 = 150;
const VALUE: Amount = Amount::from_sat(1_000_000);
const LESS: Amount = Amount::from_sat(900_000);

/// A chain whose last block holds three payments, and coins that nobody has spent.
struct Ground {
    before: Vec<Block>,
    last: Block,
    purse: Purse,
    coins: Vec<Coin>,
    /// Of the last block's parent, in Unix seconds.
    median: u32,
    /// Too young to be spent in the last block.
    green: OutPoint,
}

impl Ground {
    fn new(directory: &Path) -> Self {
        let time = now() - 86_400;
        let mut regtest = Regtest::open(directory, time).unwrap();
        let mine = |regtest: &mut Regtest| regtest.chain.mine(regtest.faucet.script(), time).unwrap();
        let pay = |regtest: &mut Regtest, outputs: Vec<TxOut>| {
            let payment = regtest.faucet.pay(&regtest.chain, outputs).unwrap();
            regtest.chain.submit_transaction(payment, time).unwrap()
        };
        while regtest.chain.height() < HEIGHT - 2 {
            mine(&mut regtest);
        }
        let purse = Purse::new(1);
        let kinds = [Kind::Wpkh, Kind::Pkh, Kind::TaprootKey, Kind::AfterBlocks, Kind::FromHeight(HEIGHT)];
        let outputs: Vec<TxOut> = kinds.iter().map(|kind| purse.output(*kind, VALUE)).collect();
        let txid = pay(&mut regtest, outputs.clone());
        let coin = |(vout, (kind, output))| Coin { outpoint: OutPoint::new(txid, vout), output, kind };
        let coins = (0..).zip(kinds.into_iter().zip(outputs)).map(coin).collect();
        mine(&mut regtest);
        let median = regtest.chain.median_time_past();
        for _ in 0..3 {
            let output = purse.output(Kind::Wpkh, VALUE);
            pay(&mut regtest, vec![output]);
        }
        mine(&mut regtest);
        assert_eq!(regtest.chain.height(), HEIGHT);
        let mut before = oracle::read(&directory.join("blocks.dat"));
        let last = before.pop().unwrap();
        assert_eq!(last.txdata.len(), 4);
        // One block short of ripe.
        let green = &before[HEIGHT as usize - 100].txdata[0];
        let green = OutPoint::new(green.compute_txid(), 0);
        Self { before, last, purse, coins, median, green }
    }

    /// Spends a coin of the purse.
    fn spend(&self, index: usize, value: Amount) -> Transaction {
        let coin = &self.coins[index..=index];
        let mut transaction = Purse::unsigned(coin, vec![self.purse.output(Kind::Wpkh, value)]);
        self.purse.sign(&mut transaction, coin);
        transaction
    }

    /// What the chain says to a block in the place of the last one.
    fn verdict(&self, block: Block) -> Result<Accepted, String> {
        let mut chain = Chain::new();
        for block in &self.before {
            chain.submit_block(block.clone(), now()).unwrap();
        }
        chain.submit_block(block, now() - 3600).map_err(|error| error.to_string())
    }

    /// What Bitcoin Core says to it.
    fn judge(&self, directory: &Path, block: Block) -> serde_json::Value {
        let file = directory.join("forged.dat");
        oracle::write(&file, &[&self.before[..], &[block]].concat());
        oracle::judge(&file)
    }
}

type Alter = fn(&Ground, &mut Block);

fn altered(ground: &Ground, alter: Alter) -> Block {
    let mut block = ground.last.clone();
    alter(ground, &mut block);
    block
}

/// Gives a block a proof of work for what its header says.
fn solve(block: &mut Block) {
    while block.header.validate_pow(block.header.target()).is_err() {
        block.header.nonce += 1;
    }
}

/// Has the header commit to the transactions.
fn root(block: &mut Block) {
    block.header.merkle_root = block.compute_merkle_root().unwrap();
    solve(block);
}

/// Has the coinbase commit to the witnesses, and the header to all.
fn commit(block: &mut Block) {
    let commitment = Block::compute_witness_commitment(&block.witness_root().unwrap(), &[0; 32]);
    let output = block.txdata[0].output.last_mut().unwrap();
    let mut script = output.script_pubkey.to_bytes();
    script[6..38].copy_from_slice(commitment.as_byte_array());
    output.script_pubkey = ScriptBuf::from_bytes(script);
    root(block);
}

fn push(block: &mut Block, transaction: Transaction) {
    block.txdata.push(transaction);
    commit(block);
}

/// What is wrong, Bitcoin Core's word for it, and how it is done.
const FORGED: &[(&str, &str, Alter)] = &[
    ("a signature of another", "script-verify-flag-failed", |_, block| {
        let (one, other) = (block.txdata[1].input[0].witness.clone(), block.txdata[2].input[0].witness.clone());
        assert_ne!(one, other);
        block.txdata[1].input[0].witness = other;
        commit(block);
    }),
    ("a legacy signature over something else", "script-verify-flag-failed", |ground, block| {
        let mut transaction = ground.spend(1, LESS);
        transaction.output[0].value -= Amount::ONE_SAT;
        push(block, transaction);
    }),
    ("a Schnorr signature over something else", "script-verify-flag-failed", |ground, block| {
        let mut transaction = ground.spend(2, LESS);
        transaction.output[0].value -= Amount::ONE_SAT;
        push(block, transaction);
    }),
    ("a satoshi more than subsidy and fees", "bad-cb-amount", |_, block| {
        block.txdata[0].output[0].value += Amount::ONE_SAT;
        root(block);
    }),
    ("the subsidy of the block before", "bad-cb-amount", |_, block| {
        block.txdata[0].output[0].value += Amount::from_sat(2_500_000_000);
        root(block);
    }),
    ("another merkle root", "bad-txnmrklroot", |_, block| {
        block.header.merkle_root = TxMerkleNode::all_zeros();
        solve(block);
    }),
    ("a transaction less than the header says", "bad-txnmrklroot", |_, block| drop(block.txdata.pop())),
    ("a transaction twice, under the same root", "bad-txns-duplicate", |_, block| {
        block.txdata.pop();
        root(block);
        block.txdata.push(block.txdata[2].clone());
    }),
    ("no proof of work", "high-hash", |_, block| {
        while block.header.validate_pow(block.header.target()).is_ok() {
            block.header.nonce += 1;
        }
    }),
    ("more work than regtest asks for", "bad-diffbits", |_, block| {
        block.header.bits = CompactTarget::from_consensus(0x207f_fffe);
        solve(block);
    }),
    ("the median of eleven blocks as its time", "time-too-old", |ground, block| {
        block.header.time = ground.median;
        solve(block);
    }),
    ("a time three hours ahead", "time-too-new", |_, block| {
        block.header.time = u32::try_from(now() + 2 * 3600).unwrap();
        solve(block);
    }),
    ("version 3", "bad-version(0x00000003)", |_, block| {
        block.header.version = Version::from_consensus(3);
        solve(block);
    }),
    ("an unknown block before it", "prev-blk-not-found", |_, block| {
        block.header.prev_blockhash = BlockHash::all_zeros();
        solve(block);
    }),
    ("no coinbase", "bad-cb-missing", |_, block| {
        block.txdata[0].input[0].previous_output.vout = 0;
        root(block);
    }),
    ("two coinbases", "bad-cb-multiple", |_, block| {
        block.txdata.push(block.txdata[0].clone());
        block.txdata[4].output.pop();
        root(block);
    }),
    ("the height of another block", "bad-cb-height", |_, block| {
        let mut script = block.txdata[0].input[0].script_sig.to_bytes();
        script[1] -= 1;
        block.txdata[0].input[0].script_sig = ScriptBuf::from_bytes(script);
        root(block);
    }),
    ("a coinbase with too long a script", "bad-cb-length", |_, block| {
        let mut script = block.txdata[0].input[0].script_sig.to_bytes();
        script.resize(101, 0);
        block.txdata[0].input[0].script_sig = ScriptBuf::from_bytes(script);
        root(block);
    }),
    ("a witness that nothing commits to", "bad-witness-merkle-match", |_, block| {
        block.txdata[1].input[0].witness.push([1]);
    }),
    ("no reserved value", "bad-witness-nonce-size", |_, block| {
        block.txdata[0].input[0].witness = Witness::new();
    }),
    ("no commitment to witnesses", "unexpected-witness", |_, block| {
        block.txdata[0].output.pop();
        root(block);
    }),
    ("a coin that was spent in it", "bad-txns-inputs-missingorspent", |ground, block| {
        push(block, ground.spend(0, LESS));
        push(block, ground.spend(0, VALUE));
    }),
    ("a coin twice in a transaction", "bad-txns-inputs-duplicate", |ground, block| {
        let mut transaction = ground.spend(0, LESS);
        transaction.input.push(transaction.input[0].clone());
        push(block, transaction);
    }),
    ("a green coinbase spent", "bad-txns-premature-spend-of-coinbase", |ground, block| {
        let mut transaction = ground.spend(0, LESS);
        transaction.input[0].previous_output = ground.green;
        push(block, transaction);
    }),
    ("a satoshi from nowhere", "bad-txns-in-belowout", |ground, block| {
        push(block, ground.spend(0, VALUE + Amount::ONE_SAT));
    }),
    ("all money there can be, and one satoshi", "bad-txns-vout-toolarge", |ground, block| {
        push(block, ground.spend(0, Amount::MAX_MONEY + Amount::ONE_SAT));
    }),
    ("a payment to nobody", "bad-txns-vout-empty", |ground, block| {
        let mut transaction = ground.spend(0, LESS);
        transaction.output.clear();
        push(block, transaction);
    }),
    ("a lock by height that opens at the next block", "bad-txns-nonfinal", |ground, block| {
        // It is final where the lock is less than the height.
        push(block, ground.spend(4, LESS));
    }),
    ("a lock of two blocks after one", "bad-txns-nonfinal", |ground, block| push(block, ground.spend(3, LESS))),
    ("more signature operations than a block may have", "bad-blk-sigops", |_, block| {
        let script = ScriptBuf::from_bytes(vec![OP_CHECKMULTISIG.to_u8(); 1_000]);
        block.txdata[0].output.insert(0, TxOut { value: Amount::ZERO, script_pubkey: script });
        root(block);
    }),
    ("more weight than a block may have", "bad-blk-weight", |_, block| {
        block.txdata[1].input[0].witness.push(vec![0; 4_000_000]);
        commit(block);
    }),
];

#[test]
fn what_is_forged_both_refuse_for_the_same_reason() {
    let directory = tempfile::tempdir().unwrap();
    let ground = Ground::new(directory.path());
    for (what, word, alter) in FORGED {
        let block = altered(&ground, *alter);
        let ours = ground.verdict(block.clone()).expect_err(what);
        assert!(ours.contains(word), "{what}: {ours}");
        let report = ground.judge(directory.path(), block);
        let rejected = report["rejected"].as_array().unwrap();
        assert_eq!((rejected.len(), &rejected[0]["number"]), (1, &json!(HEIGHT - 1)), "{what}: {report}");
        let reason = rejected[0]["reason"].as_str().unwrap();
        assert!(reason.contains(word), "{what}: {reason}");
        assert_eq!((&report["height"], &report["connected"]), (&json!(HEIGHT - 1), &json!(HEIGHT - 1)), "{what}");
    }
    println!("{} forged blocks, rejected {}", FORGED.len(), FORGED.len());
}

/// What is at a limit, or strange, and valid.
const ODD: &[(&str, Alter)] = &[
    ("as it was", |_, _| {}),
    ("a second after the median", |ground, block| {
        block.header.time = ground.median + 1;
        solve(block);
    }),
    ("version 4", |_, block| {
        block.header.version = Version::from_consensus(4);
        solve(block);
    }),
    ("a satoshi less than it may take", |_, block| {
        block.txdata[0].output[0].value -= Amount::ONE_SAT;
        root(block);
    }),
    ("no payments, and a commitment all the same", |_, block| {
        block.txdata.truncate(1);
        block.txdata[0].output[0].value = Amount::from_sat(2_500_000_000);
        commit(block);
    }),
    ("neither witnesses nor a commitment", |_, block| {
        block.txdata.truncate(1);
        block.txdata[0].output.truncate(1);
        block.txdata[0].output[0].value = Amount::from_sat(2_500_000_000);
        block.txdata[0].input[0].witness = Witness::new();
        root(block);
    }),
    ("the fee of a payment left to nobody", |ground, block| push(block, ground.spend(0, LESS))),
    ("no fee at all", |ground, block| push(block, ground.spend(2, VALUE))),
    ("as many signature operations as it may have", |_, block| {
        block.txdata.truncate(1);
        let script = ScriptBuf::from_bytes(vec![OP_CHECKMULTISIG.to_u8(); 1_000]);
        block.txdata[0].output[0] = TxOut { value: Amount::ZERO, script_pubkey: script };
        commit(block);
    }),
];

#[test]
fn what_is_odd_and_valid_both_take() {
    let directory = tempfile::tempdir().unwrap();
    let ground = Ground::new(directory.path());
    for (what, alter) in ODD {
        let block = altered(&ground, *alter);
        assert_eq!(ground.verdict(block.clone()), Ok(Accepted::Connected), "{what}");
        let report = ground.judge(directory.path(), block.clone());
        assert_eq!(report["rejected"], json!([]), "{what}");
        assert_eq!(report["tip"], block.block_hash().to_string(), "{what}");
    }
    println!("{} odd blocks, rejected 0", ODD.len());
}
