//! The wallets of a swarm: given money by the chain's miner, and joined by channels so that any can pay any other.
//!
//! Nodes stand in a ring, each with a channel to the next. A channel is
//! balanced from the start: half of it is given to the other side. simnet asks over each node's RPC, with the operator's
//! token from its data directory, as the command line does.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use consortium_node::data_dir::ApiFile;
use consortium_node::operator::OperatorToken;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};

use super::chain::ChainRecord;
use super::client::Client;

/// What is in a channel, and what of it is given to the other side.
const CHANNEL_SAT: u64 = 1_000_000;
const PUSH_MSAT: u64 = CHANNEL_SAT / 2 * 1000;
/// What each wallet gets for every channel that it opens, in bitcoin: the channel, and as much again to spend.
const GIFT_BTC: &str = "0.02";
/// Confirmations after which a channel is announced.
const CONFIRMATIONS: u32 = 6;
const POLL: Duration = Duration::from_millis(200);
const CALL: Duration = Duration::from_secs(60);

/// A node whose wallet is given something.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    name: String,
    data_dir: PathBuf,
}

/// Wallets being given money and channels. Dropping it stops that.
#[derive(Debug)]
pub(crate) struct Endowment {
    work: JoinHandle<Result<String>>,
}

/// What a wallet has, as far as simnet shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct WalletRecord {
    /// Public key of its Lightning node.
    pub(crate) node_id: String,
    /// What it can send over Lightning, in msat.
    pub(crate) spendable_msat: u64,
    /// What it can receive over Lightning, in msat.
    pub(crate) receivable_msat: u64,
    /// What it has on-chain, in sat.
    pub(crate) onchain_sat: u64,
    /// Its channels.
    pub(crate) channels: u64,
    /// Those that can be used.
    pub(crate) usable_channels: u64,
}

impl Endowment {
    /// Begins. Wallets that have channels already, as after `up --resume`, are only waited for.
    pub(crate) fn begin(owners: Vec<Owner>, chain: ChainRecord, client: Client, deadline: Instant) -> Self {
        let work = async move {
            let late = "the wallets were not ready in time; the nodes' logs may say why";
            tokio::time::timeout_at(deadline.into(), endow(&owners, &chain, &client)).await.context(late)?
        };
        Self { work: tokio::spawn(work) }
    }

    /// Waits for the end; gives what was done, in words.
    ///
    /// # Errors
    /// When a wallet or the chain refuses, or the time is up.
    pub(crate) async fn done(mut self) -> Result<String> {
        (&mut self.work).await.context("giving money to the wallets broke off")?
    }
}

impl Drop for Endowment {
    fn drop(&mut self) {
        self.work.abort();
    }
}

impl Owner {
    /// The owner of the wallet of the node with this name and directory.
    pub(crate) fn new(name: &str, data_dir: &Path) -> Self {
        Self { name: name.to_owned(), data_dir: data_dir.to_owned() }
    }

    /// Calls a method of the node's RPC with its operator's authority. Address and token are read anew each time: a
    /// node that starts again has others.
    pub(crate) async fn call(&self, client: &Client, method: &str, params: Value) -> Result<Value> {
        let api = ApiFile::read(&self.data_dir).with_context(|| format!("{} does not serve yet", self.name))?;
        let token = OperatorToken::read(&self.data_dir).with_context(|| format!("{} has no operator", self.name))?;
        let called = client.rpc(&api.api_base, method, params, Some(&token), CALL).await;
        called.with_context(|| format!("{}: {method}", self.name))
    }

    /// The status of the wallet, once there is one.
    async fn status(&self, client: &Client) -> Value {
        loop {
            match self.call(client, "wallet_status", json!({})).await {
                Ok(status) => return status,
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// Waits until something is so with the wallet.
    async fn until(&self, client: &Client, is_so: impl Fn(&Value) -> bool) {
        while !is_so(&self.status(client).await) {
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Which node opens a channel to which.
fn topology(nodes: usize) -> Vec<(usize, usize)> {
    let ring = match nodes {
        0 | 1 => 0..0,
        2 => 0..1,
        _ => 0..nodes,
    };
    // One each: a wallet that opens a second before it has seen the first on the chain may spend the same coin twice.
    ring.map(|node| (node, (node + 1) % nodes)).collect()
}

async fn endow(owners: &[Owner], chain: &ChainRecord, client: &Client) -> Result<String> {
    let mut statuses = Vec::new();
    for owner in owners {
        statuses.push(owner.status(client).await);
    }
    let edges = topology(owners.len());
    let ends = |node: usize| edges.iter().filter(|(from, to)| *from == node || *to == node).count() as u64;
    let fresh = statuses.iter().all(|status| status["channels"] == 0);
    if fresh && !edges.is_empty() {
        fund(owners, &edges, chain, client).await?;
        open(owners, &edges, &statuses, chain, client).await?;
        mine(chain, CONFIRMATIONS).await?;
        for (node, owner) in owners.iter().enumerate() {
            owner.until(client, |status| status["usable_channels"].as_u64() >= Some(ends(node))).await;
        }
    }
    for owner in owners {
        owner.until(client, |status| status["usable_channels"] == status["channels"]).await;
    }
    let what = if fresh { "funded, joined by" } else { "back, joined by" };
    Ok(format!("{} wallets {what} {} channels", owners.len(), edges.len()))
}

/// Gives each wallet an output for every channel that it opens, and one to have.
async fn fund(owners: &[Owner], edges: &[(usize, usize)], chain: &ChainRecord, client: &Client) -> Result<()> {
    let mut amounts = serde_json::Map::new();
    for (node, owner) in owners.iter().enumerate() {
        let opened = edges.iter().filter(|(from, _)| *from == node).count();
        for _ in 0..=opened {
            let answer = owner.call(client, "wallet_address", json!({})).await?;
            let address = answer["address"].as_str().context("the wallet gives no address")?;
            amounts.insert(address.to_owned(), json!(GIFT_BTC));
        }
    }
    chain.client()?.call("sendmany", json!(["", amounts])).await.context("the chain's miner gives nothing")?;
    mine(chain, 1).await?;
    for owner in owners {
        owner.until(client, |status| status["balances"]["spendable_sat"].as_u64() > Some(CHANNEL_SAT)).await;
    }
    Ok(())
}

/// Opens the channels: each node one at a time, all nodes at once. The next begin when the chain has seen what the ones
/// before spend: a wallet may spend its change, and tells the chain of two openings in any order.
async fn open(
    owners: &[Owner],
    edges: &[(usize, usize)],
    statuses: &[Value],
    chain: &ChainRecord,
    client: &Client,
) -> Result<()> {
    let mut places = Vec::new();
    for status in statuses {
        let (id, listen) = (status["node_id"].as_str(), status["listen"][0].as_str());
        let (id, listen) = id.zip(listen).context("a wallet does not say where it listens")?;
        places.push(format!("{id}@{listen}"));
    }
    let mut left: Vec<VecDeque<String>> = (0..owners.len())
        .map(|node| edges.iter().filter(|(from, _)| *from == node).map(|(_, to)| places[*to].clone()).collect())
        .collect();
    let mut opened = 0;
    while opened < edges.len() {
        let mut opening = JoinSet::new();
        for (owner, left) in owners.iter().zip(&mut left) {
            let Some(peer) = left.pop_front() else { continue };
            let (owner, client) = (owner.clone(), client.clone());
            opening.spawn(async move {
                let order = json!({"peer": peer, "sat": CHANNEL_SAT, "push_msat": PUSH_MSAT, "announced": true});
                owner.call(&client, "wallet_open", order).await
            });
        }
        while let Some(begun) = opening.join_next().await {
            begun.context("opening channels broke off")??;
            opened += 1;
        }
        wait_for_transactions(chain, opened).await?;
    }
    Ok(())
}

/// Waits until so many transactions wait for a block.
async fn wait_for_transactions(chain: &ChainRecord, count: usize) -> Result<()> {
    let client = chain.client()?;
    let give_up = Instant::now() + CALL;
    while client.call("getmempoolinfo", json!([])).await?["size"].as_u64() < Some(count as u64) {
        ensure!(Instant::now() < give_up, "the chain has not seen {count} transactions in time");
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Mines blocks once the chain has seen what was sent.
async fn mine(chain: &ChainRecord, blocks: u32) -> Result<()> {
    wait_for_transactions(chain, 1).await?;
    let client = chain.client()?;
    for _ in 0..blocks {
        let payee = client.call("getnewaddress", json!([])).await?;
        client.call("generatetoaddress", json!([1, payee])).await?;
    }
    Ok(())
}

impl WalletRecord {
    /// What the wallet of a node has; none where it has none, or does not answer.
    pub(crate) async fn ask(client: &Client, api_base: &str, data_dir: &Path) -> Option<Self> {
        let operator = OperatorToken::read(data_dir).ok();
        let status = client.rpc(api_base, "wallet_status", json!({}), operator.as_deref(), CALL / 10).await.ok()?;
        let balances = &status["balances"];
        let onchain = ["spendable_sat", "unconfirmed_sat", "reserved_sat"].map(|part| balances[part].as_u64());
        Some(Self {
            node_id: status["node_id"].as_str()?.to_owned(),
            spendable_msat: balances["spendable"].as_u64()?,
            receivable_msat: balances["receivable"].as_u64()?,
            onchain_sat: onchain.into_iter().flatten().sum(),
            channels: status["channels"].as_u64()?,
            usable_channels: status["usable_channels"].as_u64()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_wallet_reaches_every_other() {
        assert!(topology(0).is_empty() && topology(1).is_empty());
        assert_eq!(topology(2), [(0, 1)]);
        assert_eq!(topology(3).len(), 3);
        for nodes in 2..40 {
            let edges = topology(nodes);
            let mut reached = BTreeSet::from([0]);
            for _ in 0..nodes {
                for (a, b) in &edges {
                    assert!(a != b && *a < nodes && *b < nodes);
                    if reached.contains(a) || reached.contains(b) {
                        reached.extend([*a, *b]);
                    }
                }
            }
            assert_eq!(reached.len(), nodes);
            let pairs: BTreeSet<_> = edges.iter().map(|(a, b)| (a.min(b), a.max(b))).collect();
            assert_eq!(pairs.len(), edges.len(), "no pair has two channels");
        }
    }
}
