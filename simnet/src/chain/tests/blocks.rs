//! What a block may not be, and what is kept of blocks.

use bitcoin::hashes::Hash;
use bitcoin::{Block, BlockHash, CompactTarget, TxMerkleNode};

use super::*;
use crate::chain::assemble::Template;
use crate::chain::params::subsidy;
use crate::chain::{Accepted, BlockError, Chain, ChainError, StoreError};

/// The next block, which nobody has submitted yet.
fn next_block(regtest: &Regtest, transactions: Vec<Transaction>) -> Block {
    template(regtest, transactions).solve()
}

fn template(regtest: &Regtest, transactions: Vec<Transaction>) -> Template {
    Template {
        previous: regtest.chain.tip(),
        height: regtest.chain.height() + 1,
        time: u32::try_from(NOW).unwrap().max(regtest.chain.median_time_past() + 1),
        extra_nonce: 99,
        payee: regtest.faucet.script(),
        fees: Amount::ZERO,
        transactions,
    }
}

/// Changes a block and gives it a proof of work again.
fn altered(mut block: Block, alter: impl FnOnce(&mut Block)) -> Block {
    alter(&mut block);
    solve(&mut block);
    block
}

fn solve(block: &mut Block) {
    while block.header.bits.to_consensus() == 0x207f_ffff && block.header.validate_pow(block.header.target()).is_err() {
        block.header.nonce += 1;
    }
}

fn with_root(block: &mut Block) {
    block.header.merkle_root = block.compute_merkle_root().unwrap();
}

fn refusal(regtest: &mut Regtest, block: Block) -> BlockError {
    let tip = regtest.chain.tip();
    let error = regtest.chain.submit_block(block, NOW).unwrap_err();
    assert_eq!(regtest.chain.tip(), tip);
    match error {
        ChainError::Invalid(error) => error,
        other => panic!("{other}"),
    }
}

#[test]
fn it_begins_with_the_genesis_block_of_regtest() {
    let chain = Chain::new();
    let expected = "0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206";
    assert_eq!(chain.tip().to_string(), expected);
    assert_eq!(chain.height(), 0);
    let info = chain.block(&chain.tip()).unwrap();
    assert_eq!(
        format!("{:x}", info.work),
        format!(
            "{:x}",
            bitcoin::Work::from_be_bytes({
                let mut work = [0; 32];
                work[31] = 2;
                work
            })
        )
    );
    // Its output was never a coin.
    assert_eq!(chain.branch.coins().iter().count(), 0);
}

#[test]
fn the_subsidy_halves_every_150_blocks() {
    let sat = |height| subsidy(height).to_sat();
    assert_eq!([sat(0), sat(149), sat(150), sat(300)], [5_000_000_000, 5_000_000_000, 2_500_000_000, 1_250_000_000]);
    assert_eq!(sat(150 * 33), 0);
    assert_eq!(sat(150 * 200), 0);
    let mut regtest = regtest();
    mine(&mut regtest, 50);
    let paid = |height| {
        let hash = regtest.chain.hash_at(height).unwrap();
        regtest.chain.block(&hash).unwrap().block.txdata[0].output[0].value.to_sat()
    };
    assert_eq!((paid(149), paid(150)), (5_000_000_000, 2_500_000_000));
}

#[test]
fn a_header_must_be_right() {
    let mut regtest = regtest();
    let block = next_block(&regtest, Vec::new());
    let hard = altered(block.clone(), |block| block.header.bits = CompactTarget::from_consensus(0x1d00_ffff));
    assert_eq!(refusal(&mut regtest, hard), BlockError::Difficulty);
    let mut unsolved = block.clone();
    while unsolved.header.validate_pow(unsolved.header.target()).is_ok() {
        unsolved.header.nonce += 1;
    }
    assert_eq!(refusal(&mut regtest, unsolved), BlockError::ProofOfWork);
    let median = regtest.chain.median_time_past();
    let old = altered(block.clone(), |block| block.header.time = median);
    assert_eq!(refusal(&mut regtest, old), BlockError::TimeTooOld);
    let ahead = altered(block.clone(), |block| block.header.time = u32::try_from(NOW).unwrap() + 7_201);
    assert_eq!(refusal(&mut regtest, ahead), BlockError::TimeTooNew);
    let version = bitcoin::block::Version::from_consensus(3);
    let ancient = altered(block.clone(), |block| block.header.version = version);
    assert_eq!(refusal(&mut regtest, ancient), BlockError::Version(3));
    let orphan = altered(block.clone(), |block| block.header.prev_blockhash = BlockHash::all_zeros());
    assert!(matches!(regtest.chain.submit_block(orphan, NOW), Err(ChainError::Orphan)));
    assert_eq!(regtest.chain.submit_block(block.clone(), NOW).unwrap(), Accepted::Connected);
    assert!(matches!(regtest.chain.submit_block(block, NOW), Err(ChainError::Duplicate)));
}

#[test]
fn the_header_commits_to_the_transactions() {
    let mut regtest = regtest();
    let payment = spend(&regtest, &coins(&regtest)[..1], FEE, |_| {});
    let block = next_block(&regtest, vec![payment]);
    let wrong = altered(block.clone(), |block| block.header.merkle_root = TxMerkleNode::all_zeros());
    assert_eq!(refusal(&mut regtest, wrong), BlockError::MerkleRoot);
    let mut without = block.clone();
    without.txdata.pop();
    assert_eq!(refusal(&mut regtest, without), BlockError::MerkleRoot);
    // The root of three and of four transactions is the same when the last one is repeated.
    let pair = [0, 1].map(|index| spend(&regtest, &coins(&regtest)[index..=index], FEE, |_| {}));
    let three = next_block(&regtest, pair.to_vec());
    let mut four = three.clone();
    four.txdata.push(pair[1].clone());
    assert_eq!(three.block_hash(), four.block_hash());
    assert_eq!(refusal(&mut regtest, four), BlockError::DuplicateTransaction);
    regtest.chain.submit_block(three, NOW).unwrap();
}

#[test]
fn the_coinbase_must_be_right() {
    let mut regtest = regtest();
    let block = next_block(&regtest, Vec::new());
    let none = altered(block.clone(), |block| {
        block.txdata[0].input[0].previous_output.vout = 0;
        with_root(block);
    });
    assert_eq!(refusal(&mut regtest, none), BlockError::NoCoinbase);
    let two = altered(block.clone(), |block| {
        block.txdata.push(block.txdata[0].clone());
        with_root(block);
    });
    assert_eq!(refusal(&mut regtest, two), BlockError::SecondCoinbase);
    let greedy = altered(block.clone(), |block| {
        block.txdata[0].output[0].value += Amount::ONE_SAT;
        with_root(block);
    });
    assert_eq!(refusal(&mut regtest, greedy), BlockError::CoinbaseAmount);
    let mut elsewhere = template(&regtest, Vec::new());
    elsewhere.height += 1;
    assert_eq!(refusal(&mut regtest, elsewhere.solve()), BlockError::CoinbaseHeight);
}

#[test]
fn the_coinbase_commits_to_the_witnesses() {
    let mut regtest = regtest();
    let payment = spend(&regtest, &coins(&regtest)[..1], FEE, |_| {});
    let block = next_block(&regtest, vec![payment]);
    // A witness is no part of the Merkle root, so only the commitment guards it.
    let mut other = block.clone();
    other.txdata[1].input[0].witness.push([1]);
    assert_eq!(refusal(&mut regtest, other), BlockError::WitnessCommitment);
    let mut bare = block.clone();
    bare.txdata[0].input[0].witness = Witness::new();
    assert_eq!(refusal(&mut regtest, bare), BlockError::WitnessReservedValue);
    let without = altered(block.clone(), |block| {
        block.txdata[0].output.pop();
        with_root(block);
    });
    assert_eq!(refusal(&mut regtest, without), BlockError::UnexpectedWitness);
    regtest.chain.submit_block(block, NOW).unwrap();
}

#[test]
fn a_block_that_spends_wrongly_is_remembered_as_invalid() {
    let mut regtest = regtest();
    let before = regtest.chain.branch.coins().clone();
    let good = spend(&regtest, &coins(&regtest)[..1], FEE, |_| {});
    let mut bad = spend(&regtest, &coins(&regtest)[1..2], FEE, |_| {});
    bad.output[0].value -= Amount::ONE_SAT;
    let block = next_block(&regtest, vec![good, bad]);
    let child = {
        let mut template = template(&regtest, Vec::new());
        template.previous = block.block_hash();
        template.height += 1;
        template.solve()
    };
    let error = refusal(&mut regtest, block.clone());
    assert!(error.to_string().contains("script"), "{error}");
    assert_eq!(*regtest.chain.branch.coins(), before);
    assert!(matches!(regtest.chain.submit_block(block, NOW), Err(ChainError::DuplicateInvalid)));
    assert!(matches!(regtest.chain.submit_block(child, NOW), Err(ChainError::InvalidParent)));
}

#[test]
fn blocks_are_found_again_on_disk() {
    let temp = tempfile::tempdir().unwrap();
    let mut regtest = Regtest::open(temp.path(), NOW).unwrap();
    let payment = spend(&regtest, &coins(&regtest)[..1], FEE, |_| {});
    send(&mut regtest, &payment).unwrap();
    mine(&mut regtest, 2);
    // A branch that lost is kept too.
    let tip = regtest.chain.tip();
    regtest.chain.invalidate(&tip, NOW).unwrap();
    mine(&mut regtest, 2);
    let (tip, address) = (regtest.chain.tip(), regtest.faucet.address().clone());
    let coins = regtest.chain.branch.coins().clone();
    drop(regtest);

    let again = Regtest::open(temp.path(), NOW).unwrap();
    assert_eq!((again.chain.tip(), again.faucet.address()), (tip, &address));
    assert_eq!(*again.chain.branch.coins(), coins);
    assert_eq!(again.chain.tips().len(), 2);
    drop(again);

    // A crash in the middle of a write loses that block alone.
    let path = temp.path().join("blocks.dat");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    let mut shorter = Regtest::open(temp.path(), NOW).unwrap();
    assert_ne!(shorter.chain.tip(), tip);
    mine(&mut shorter, 1);
    let tip = shorter.chain.tip();
    drop(shorter);
    assert_eq!(Regtest::open(temp.path(), NOW).unwrap().chain.tip(), tip);

    std::fs::write(&path, b"something else altogether").unwrap();
    let error = Chain::open(&path, NOW).unwrap_err();
    assert!(matches!(error, ChainError::Store(StoreError::Damaged(0))), "{error}");
}
