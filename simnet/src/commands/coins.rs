//! `simnet coins`: waits until what was in closed channels is back in the wallets, and counts all there is.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bitcoin::consensus::encode::deserialize_hex;
use bitcoin::{Address, Amount, Block};
use consortium_simnet::chain::rpc::RpcClient;
use consortium_simnet::coins::{ANCHOR, Coins, count};
use serde::Serialize;
use serde_json::{Value, json};

use super::chain::mine_block;
use super::terminal::print;
use crate::swarm::chain::{ChainRecord, height};
use crate::swarm::client::Client;
use crate::swarm::directory::SwarmDir;
use crate::swarm::record::read_nodes;
use crate::swarm::wallets::Owner;

/// Between two blocks: long enough for wallets to see one, and to send what they can send then.
const BLOCK: Duration = Duration::from_millis(400);
/// Blocks without anything new that end the waiting: more than any delay in a closed channel.
const QUIET: u32 = 300;
/// Blocks without anything new before it is looked whether all is there.
const LOOK: u32 = 5;

/// What was found. Amounts are in sat.
#[derive(Debug, Serialize)]
struct Count {
    given: u64,
    fees: u64,
    left: u64,
    in_wallets: u64,
    in_channels: u64,
    channels: usize,
    anchors: u64,
}

/// What the wallets hold now, in sat.
#[derive(Default, PartialEq)]
struct Held {
    /// What is in each channel, by the output that funds it.
    channels: BTreeMap<String, u64>,
    closing: u64,
    onchain: u64,
}

/// Waits and counts; fails when something is missing.
pub(crate) async fn run(dir: &SwarmDir, wait: Duration, json: bool) -> Result<ExitCode> {
    let record = ChainRecord::read(dir)?;
    ensure!(
        record.embedded,
        "only coins of simnet's own chain can be counted: who else uses the bitcoind is not known"
    );
    let owners: Vec<Owner> = read_nodes(dir)?.iter().map(|node| Owner::new(&node.name, &node.data_dir)).collect();
    let found = gather(&owners, &Client::new()?, &record, Instant::now() + wait).await?;
    match json {
        true => print(&serde_json::to_string_pretty(&found)?)?,
        false => print(&render(&found))?,
    }
    Ok(if found.is_exact() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Mines until all that is left is in wallets and channels, or nothing changes any more.
async fn gather(owners: &[Owner], client: &Client, record: &ChainRecord, deadline: Instant) -> Result<Count> {
    let chain = record.client()?;
    let (mut last, mut quiet) = (Held::default(), 0);
    loop {
        mine_block(record).await?;
        tokio::time::sleep(BLOCK).await;
        let held = held(owners, client).await?;
        quiet = if held == last { quiet + 1 } else { 0 };
        let over = quiet > QUIET || Instant::now() >= deadline;
        if over || (held.closing == 0 && quiet > 0 && quiet.is_multiple_of(LOOK)) {
            let Coins { given, fees, left, anchors } = coins(&chain).await?;
            let [given, fees, left] = [given, fees, left].map(Amount::to_sat);
            let (in_channels, channels) = (held.channels.values().sum(), held.channels.len());
            let found = Count { given, fees, left, in_wallets: held.onchain, in_channels, channels, anchors };
            if over || found.is_exact() {
                return Ok(found);
            }
        }
        last = held;
    }
}

async fn held(owners: &[Owner], client: &Client) -> Result<Held> {
    let mut held = Held::default();
    let amount = |value: &Value| value.as_u64().unwrap_or_default();
    for owner in owners {
        let status = owner.call(client, "wallet_status", json!({})).await?;
        let balances = &status["balances"];
        held.closing += amount(&balances["closing_sat"]);
        held.onchain += ["spendable_sat", "unconfirmed_sat", "reserved_sat"]
            .map(|part| amount(&balances[part]))
            .iter()
            .sum::<u64>();
        let channels = owner.call(client, "wallet_channels", json!({})).await?;
        for channel in channels["channels"].as_array().into_iter().flatten() {
            if let Some(funding) = channel["funding"].as_str() {
                held.channels.insert(funding.to_owned(), amount(&channel["size_sat"]));
            }
        }
    }
    Ok(held)
}

/// Reads the whole chain.
async fn coins(client: &RpcClient) -> Result<Coins> {
    let text = |value: Value| value.as_str().map(str::to_owned).context("the chain answers with something else");
    let miner = text(client.call("getnewaddress", json!([])).await?)?;
    let miner = miner.parse::<Address<_>>()?.assume_checked().script_pubkey();
    let mut blocks: Vec<Block> = Vec::new();
    for at in 1..=height(client).await? {
        let hash = client.call("getblockhash", json!([at])).await?;
        let block = text(client.call("getblock", json!([hash, 0])).await?)?;
        blocks.push(deserialize_hex(&block).with_context(|| format!("block {at} cannot be read"))?);
    }
    Ok(count(&blocks, &miner))
}

impl Count {
    /// Whether all that is left is in wallets and channels, but for whole anchors.
    fn is_exact(&self) -> bool {
        let missing = self.left.checked_sub(self.in_wallets + self.in_channels);
        let whole = missing.is_some_and(|sat| sat % ANCHOR.to_sat() == 0 && sat / ANCHOR.to_sat() <= self.anchors);
        whole && self.given == self.left + self.fees
    }
}

fn render(found: &Count) -> String {
    let Count { given, fees, left, in_wallets, in_channels, channels, anchors } = found;
    let mut text = format!(
        "the wallets were given {given} sat and paid {fees} sat for transactions\n{left} sat are left: {in_wallets} in the \
         wallets, {in_channels} in {channels} channels"
    );
    match left.checked_sub(in_wallets + in_channels) {
        Some(0) => {}
        Some(rest) if found.is_exact() => {
            text.push_str(&format!(
                ", {rest} in {} anchors of closed channels, which are nobody's",
                rest / ANCHOR.to_sat()
            ));
        }
        Some(rest) => text.push_str(&format!("; {rest} are missing, and there are {anchors} anchors of 330 sat")),
        None => text.push_str("; the wallets claim more than there is"),
    }
    text.push_str(if found.is_exact() { "\nnot a satoshi is missing" } else { "\nthat does not add up" });
    text
}
