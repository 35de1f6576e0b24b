//! Bitcoin Core's judgement, in a process of its own.

use std::path::Path;
use std::process::Command;

use bitcoin::{Block, Network, consensus};
use consortium_simnet::chain::Chain;
use serde_json::Value;

/// A time after that of every block in these tests, in Unix seconds.
pub(crate) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 3600
}

/// What `chain-check` says to a file of blocks.
pub(crate) fn judge(blocks: &Path) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_chain-check")).arg("--json").arg(blocks).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(output.status.success(), report["rejected"] == serde_json::json!([]), "{report} {said}");
    report
}

/// Has Bitcoin Core replay the chain in a directory: none of its blocks is rejected, every one is connected, and both
/// find the same tip. Returns the number of blocks.
pub(crate) fn accepted(what: &str, directory: &Path) -> usize {
    let file = directory.join("blocks.dat");
    let report = judge(&file);
    let blocks = read(&file);
    assert_eq!(report["rejected"], serde_json::json!([]));
    assert_eq!(
        (report["blocks"].as_u64(), report["connected"].as_u64()),
        (Some(blocks.len() as u64), Some(blocks.len() as u64))
    );
    // Opened again, the chain has forgotten which blocks were declared invalid.
    let chain = Chain::open(&file, now()).unwrap();
    assert_eq!(
        (report["tip"].as_str().unwrap(), &report["height"]),
        (&*chain.tip().to_string(), &chain.height().into())
    );
    let transactions: usize = blocks.iter().map(|block| block.txdata.len() - 1).sum();
    println!(
        "{what}: {} blocks with {transactions} transactions on {} branches, rejected 0",
        blocks.len(),
        chain.tips().len()
    );
    blocks.len()
}

/// The blocks of a chain's file, but for the first block, which is in none.
pub(crate) fn read(file: &Path) -> Vec<Block> {
    let bytes = std::fs::read(file).unwrap();
    let mut rest = bytes.as_slice();
    let mut blocks = Vec::new();
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[4..8].try_into().unwrap()) as usize;
        blocks.push(consensus::deserialize(&rest[8..8 + length]).unwrap());
        rest = &rest[8 + length..];
    }
    blocks
}

/// Writes such a file.
pub(crate) fn write(file: &Path, blocks: &[Block]) {
    let framed = |block: &Block| {
        let bytes = consensus::serialize(block);
        let length = u32::try_from(bytes.len()).unwrap().to_le_bytes();
        [&Network::Regtest.magic().to_bytes()[..], &length, &bytes].concat()
    };
    std::fs::write(file, blocks.iter().flat_map(framed).collect::<Vec<u8>>()).unwrap();
}
