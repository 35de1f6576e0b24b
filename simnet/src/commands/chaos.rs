//! `simnet chaos`: people chat, some leave early, while nodes die, freeze and come back; then the books are checked.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::task::JoinSet;

use super::books;
use super::chain::mine_block;
use super::terminal::print;
use crate::cli::Chaos;
use crate::swarm::chain::ChainRecord;
use crate::swarm::client::{Client, Question};
use crate::swarm::control::{Order, order};
use crate::swarm::directory::SwarmDir;
use crate::swarm::record::{NodeRecord, read_nodes};

/// Time for an answer: failover included.
const ANSWER: Duration = Duration::from_secs(90);
/// Time for the swarm to be whole again.
const WHOLE: Duration = Duration::from_secs(120);
/// Time for nodes to tell each other what they owe, and for what channels held that closed to end on the chain.
const SETTLE: Duration = Duration::from_secs(240);
/// Between two blocks while that is waited for.
const BLOCK: Duration = Duration::from_secs(1);
const PROMPTS: [&str; 4] =
    ["Tell me a story.", "What is a peer?", "Who pays whom, and for what?", "Name three animals."];

/// What became of the chats.
#[derive(Debug, Default)]
struct Tally {
    answered: u32,
    left: u32,
    /// Because the node they came in at was the one that died.
    gateway_lost: u32,
    failed: BTreeMap<String, u32>,
}

/// Runs it; fails when the swarm does not recover, or the books do not add up.
pub(crate) async fn run(dir: &SwarmDir, arguments: &Chaos) -> Result<ExitCode> {
    if !dir.is_live() {
        bail!("no swarm is running in {}; start one with `simnet up 8 --detach`", dir.root().display());
    }
    let end = Instant::now() + arguments.time;
    let mut people = JoinSet::new();
    for client in 0..arguments.clients {
        let rng = ChaCha8Rng::seed_from_u64(arguments.seed ^ (u64::from(client) + 1) << 32);
        people.spawn(chat(dir.clone(), rng, end));
    }
    // Dropped with the function: then nobody mines any more.
    let mut chain = JoinSet::new();
    let record = ChainRecord::read(dir).ok();
    if let Some(record) = record.clone() {
        chain.spawn(mine_along(record, arguments.blocks));
    }
    let faults = harm(dir, arguments, end).await?;
    let mut tally = Tally::default();
    while let Some(done) = people.join_next().await {
        tally.add(done??);
    }
    print(&format!("{faults} faults; {}", tally.render()))?;
    wait_until_whole(dir).await?;
    chain.shutdown().await;
    if let Some(record) = record {
        chain.spawn(mine_along(record, BLOCK));
    }
    let findings = books::settle(dir, SETTLE).await?;
    print(&books::render(&findings))?;
    Ok(if findings.is_exact() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A chain that goes on: what nodes send to it gets confirmed.
async fn mine_along(record: ChainRecord, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        if let Err(error) = mine_block(&record).await {
            eprintln!("no block was mined: {error:#}");
        }
    }
}

/// One fault after the other, each healed before the next.
async fn harm(dir: &SwarmDir, arguments: &Chaos, end: Instant) -> Result<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(arguments.seed);
    let mut faults = 0;
    while Instant::now() + arguments.every < end {
        tokio::time::sleep(arguments.every.mul_f64(rng.random_range(0.5..1.0))).await;
        let nodes = read_nodes(dir)?;
        let victim = nodes.choose(&mut rng).context("there are no nodes")?.name.clone();
        let node = || victim.clone();
        let away = arguments.every.mul_f64(rng.random_range(0.1..0.5));
        let (begin, heal) = match rng.random_range(0..3) {
            0 => (Order::Pause { node: node() }, Order::Unpause { node: node() }),
            _ => (Order::Kill { node: node() }, Order::Restart { node: node() }),
        };
        order(dir, &begin).await?;
        tokio::time::sleep(away).await;
        order(dir, &heal).await?;
        faults += 1;
    }
    Ok(faults)
}

/// One person, who asks one thing after the other, and does not always wait for the end of the answer.
async fn chat(dir: SwarmDir, mut rng: ChaCha8Rng, end: Instant) -> Result<Tally> {
    let (client, mut tally) = (Client::new()?, Tally::default());
    while Instant::now() < end {
        let nodes: Vec<NodeRecord> = read_nodes(&dir)?.into_iter().filter(|node| node.state == "running").collect();
        let Some(gateway) = nodes.choose(&mut rng) else { continue };
        let question = Question {
            model: "",
            prompt: PROMPTS.choose(&mut rng).copied().unwrap_or_default(),
            max_tokens: rng.random_range(1..120),
            temperature: 1.0,
            seed: rng.random(),
            ignore_eos: rng.random(),
        };
        let patience = match rng.random_range(0..4) {
            0 => Duration::from_millis(rng.random_range(5..300)),
            _ => ANSWER,
        };
        let model = match client.status(&gateway.api_base, &gateway.data_dir).await {
            Ok(status) => status.models.first().map(|model| model.name.clone()),
            Err(_) => None,
        };
        let Some(model) = model else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        let question = Question { model: &model, ..question };
        let asking = client.complete(&gateway.api_base, &question, ANSWER);
        match tokio::time::timeout(patience, asking).await {
            Err(_) if patience < ANSWER => tally.left += 1,
            Err(_) => tally.fail("no answer in time"),
            Ok(Ok(_)) => tally.answered += 1,
            Ok(Err(error)) => {
                // What simnet did a moment ago is written down by now.
                tokio::time::sleep(Duration::from_millis(500)).await;
                match alive(&dir, gateway) {
                    true => tally.fail(&format!("{error:#}")),
                    false => tally.gateway_lost += 1,
                }
            }
        }
    }
    Ok(tally)
}

/// Whether the node still is the process that it was.
fn alive(dir: &SwarmDir, node: &NodeRecord) -> bool {
    read_nodes(dir).is_ok_and(|nodes| {
        nodes.iter().any(|now| now.name == node.name && now.pid == node.pid && now.state != "killed")
    })
}

async fn wait_until_whole(dir: &SwarmDir) -> Result<()> {
    let client = Client::new()?;
    let deadline = Instant::now() + WHOLE;
    loop {
        let nodes = read_nodes(dir)?;
        let mut ready = 0;
        for node in &nodes {
            ready += usize::from(client.status(&node.api_base, &node.data_dir).await.is_ok_and(|status| status.ready));
        }
        if ready == nodes.len() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("{ready} of {} nodes are ready {} s after the last fault", nodes.len(), WHOLE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

impl Tally {
    fn fail(&mut self, reason: &str) {
        *self.failed.entry(reason.to_owned()).or_default() += 1;
    }

    fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.left += other.left;
        self.gateway_lost += other.gateway_lost;
        for (reason, count) in other.failed {
            *self.failed.entry(reason).or_default() += count;
        }
    }

    fn render(&self) -> String {
        let failed: u32 = self.failed.values().sum();
        let mut text = format!(
            "{} chats answered, {} left early, {} lost with the node they came in at, {failed} failed",
            self.answered, self.left, self.gateway_lost
        );
        for (reason, count) in &self.failed {
            text.push_str(&format!("\n  {count}: {reason}"));
        }
        text
    }
}
