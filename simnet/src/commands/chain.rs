//! `simnet mine` and `simnet reorg`: blocks on demand, over the RPC of the swarm's chain.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use consortium_simnet::chain::rpc::RpcClient;
use serde_json::{Value, json};

use super::terminal::print;
use crate::swarm::chain::{ChainRecord, height};
use crate::swarm::directory::SwarmDir;
use crate::swarm::supervisor::count;

/// Mines blocks of what waits.
pub(crate) async fn mine(dir: &SwarmDir, blocks: usize) -> Result<ExitCode> {
    let client = ChainRecord::read(dir)?.client()?;
    let payee = payee(&client).await?;
    client.call("generatetoaddress", json!([blocks, payee])).await?;
    print(&format!("mined {}, {}", count(blocks, "block"), told(&client).await?))?;
    Ok(ExitCode::SUCCESS)
}

/// Mines one block of what waits.
pub(crate) async fn mine_block(record: &ChainRecord) -> Result<()> {
    let client = record.client()?;
    let payee = payee(&client).await?;
    client.call("generatetoaddress", json!([1, payee])).await?;
    Ok(())
}

/// Replaces the last blocks by one more. With `empty` the transactions of those that are replaced go on waiting.
pub(crate) async fn reorg(dir: &SwarmDir, blocks: usize, empty: bool) -> Result<ExitCode> {
    let client = ChainRecord::read(dir)?.client()?;
    let payee = payee(&client).await?;
    let before = height(&client).await?;
    let first = before.checked_sub(blocks as u64).filter(|_| blocks > 0).map(|last_kept| last_kept + 1);
    let Some(first) = first else {
        bail!("there are {before} blocks to replace, not {blocks}");
    };
    let hash = client.call("getblockhash", json!([first])).await?;
    client.call("invalidateblock", json!([hash])).await?;
    if empty {
        for _ in 0..=blocks {
            client.call("generateblock", json!([payee, []])).await?;
        }
    } else {
        client.call("generatetoaddress", json!([blocks + 1, payee])).await?;
    }
    let with = count(blocks + 1, "other");
    print(&format!("replaced the last {} by {with}, {}", count(blocks, "block"), told(&client).await?))?;
    Ok(ExitCode::SUCCESS)
}

/// Who is paid for the blocks: the wallet of the chain.
async fn payee(client: &RpcClient) -> Result<Value> {
    let address = client.call("getnewaddress", json!([])).await;
    address.context("the chain has no wallet that could be paid for a block (bitcoind: createwallet)")
}

async fn told(client: &RpcClient) -> Result<String> {
    let hash = client.call("getbestblockhash", json!([])).await?;
    let waiting = client.call("getmempoolinfo", json!([])).await?["size"].as_u64().unwrap_or_default();
    let waiting = count(usize::try_from(waiting).unwrap_or(usize::MAX), "transaction");
    Ok(format!("height {}, tip {}, {waiting} waiting", height(client).await?, hash.as_str().unwrap_or_default()))
}
