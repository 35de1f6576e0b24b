//! The owner of the nodes of one swarm: starts them, brings them to readiness, carries out orders, ends them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use consortium_node::status::NodeStatus;
use serde::Deserialize;
use tokio::task::JoinSet;

use super::chain::SwarmChain;
use super::client::{Client, Question};
use super::control::{Order, Reply};
use super::directory::{SwarmDir, replace_file};
use super::plan::Plan;
use super::process::{GRACE, Launch, NodeProcess, State, node_command};
use super::ready::{MILESTONES, Milestone, Progress, master, progress};
use super::record::{Access, NodeRecord};
use super::settlement::{self, Paid, sats};
use super::steps::Steps;
use super::wallets::{Endowment, Owner};

/// How often the nodes are asked while they come up.
const POLL: Duration = Duration::from_millis(200);

/// How long a restarted node may take to answer.
const RESTART: Duration = Duration::from_secs(30);

/// The completion that counts a swarm ready.
const FIRST_PROMPT: &str = "Hello";
const FIRST_TOKENS: u32 = 8;

/// A swarm and its processes. Dropping it kills them; [`Swarm::stop`] ends them in order.
#[derive(Debug)]
pub(crate) struct Swarm {
    dir: SwarmDir,
    plan: Plan,
    /// `NAME@FOUNDER`, known once the first node has an identity.
    cluster: String,
    nodes: Vec<NodeProcess>,
    client: Client,
    /// The chain of the wallets, once it is up.
    chain: Option<SwarmChain>,
    /// What `nodes.json` says now.
    recorded: Vec<NodeRecord>,
    /// What `env` says now.
    access: Option<Access>,
}

#[derive(Deserialize)]
struct Identity {
    peer_id: String,
}

impl Swarm {
    /// A swarm that nothing runs of yet; its plan is written down. The caller holds the lock of `dir` for as long as
    /// the swarm lives.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub(crate) fn new(dir: SwarmDir, plan: Plan) -> Result<Self> {
        plan.write(&dir)?;
        let nodes = plan
            .memory
            .iter()
            .enumerate()
            .map(|(index, memory)| {
                let number = index + 1;
                let cheat = plan.cheats.get(&number).cloned();
                let name = format!("node-{number}");
                let node = NodeProcess::new(&dir, name, *memory, cheat, plan.is_newcomer(index));
                if plan.seller == Some(number) { node.selling() } else { node }
            })
            .collect();
        Ok(Self {
            dir,
            plan,
            cluster: String::new(),
            nodes,
            client: Client::new()?,
            chain: None,
            recorded: Vec::new(),
            access: None,
        })
    }

    /// Starts every node and waits until a completion has gone through the swarm.
    ///
    /// # Errors
    /// When a node ends, or the swarm is not ready within `timeout`: which node lacks what, and the end of its log.
    pub(crate) async fn bring_up(&mut self, steps: &Steps, timeout: Duration) -> Result<Access> {
        let deadline = Instant::now() + timeout;
        self.start_chain(steps).await?;
        self.start_all(steps, deadline).await?;
        let wallets = self.endow(deadline);
        self.reach_all(steps, deadline).await?;
        if let Some(endowed) = wallets {
            steps.say(&endowed.done().await?);
        }
        let access = self.access()?;
        let paid_before = self.paid_by(&access.gateway).await;
        self.first_completion(&access, steps, deadline).await?;
        if self.chain.is_some() && self.nodes.len() > 1 {
            self.first_payment(&access, paid_before, steps, deadline).await?;
        }
        // The master may have changed meanwhile.
        self.ask_all().await;
        self.record()?;
        let access = self.access().unwrap_or(access);
        access.write(&self.dir)?;
        self.access = Some(access.clone());
        Ok(access)
    }

    async fn start_chain(&mut self, steps: &Steps) -> Result<()> {
        self.chain = self.plan.chain.start(&self.dir).await?;
        if let Some(SwarmChain { record, height, .. }) = &self.chain {
            let whose = if record.embedded { "a regtest chain" } else { "the bitcoind" };
            steps.say(&format!("{whose} at {} has {height} blocks", record.url));
        }
        Ok(())
    }

    /// Begins to give the wallets money and channels, if there are any, while the swarm comes up.
    fn endow(&self, deadline: Instant) -> Option<Endowment> {
        let chain = self.chain.as_ref()?.record.clone();
        let rich = self.nodes.iter().filter(|node| !node.is_newcomer());
        let owners = rich.map(|node| Owner::new(node.name(), node.data_dir())).collect();
        Some(Endowment::begin(owners, chain, self.client.clone(), deadline))
    }

    async fn start_all(&mut self, steps: &Steps, deadline: Instant) -> Result<()> {
        let founder = self.founder().await?;
        self.cluster = format!("{}@{founder}", self.plan.cluster);
        let Self { nodes, client, .. } = self;
        let first = nodes.first_mut().context("a swarm has a node")?;
        let mut launch = Launch {
            binary: &self.plan.binary,
            cluster: &self.cluster,
            model: &self.plan.model,
            stages: self.plan.stages,
            bootstrap: Vec::new(),
            chain: self.chain.as_ref().map(|chain| &chain.record),
        };
        first.start(&launch)?;
        launch.bootstrap = first.answers(client, deadline).await?.listen;
        steps.say(&format!("node-1 answers, and founds the cluster {}", self.plan.cluster));
        for node in &mut nodes[1..] {
            node.start(&launch)?;
        }
        steps.say(&format!("{} started", count(nodes.len(), "node")));
        self.record()
    }

    /// PeerId of the first node, which makes its key if it has none yet.
    async fn founder(&self) -> Result<String> {
        let data_dir = self.dir.data_dir("node-1");
        std::fs::create_dir_all(&data_dir)?;
        let output = node_command(&self.plan.binary)
            .args(["identity", "--json", "--data-dir"])
            .arg(&data_dir)
            .output()
            .await
            .with_context(|| format!("cannot run {}", self.plan.binary.display()))?;
        if !output.status.success() {
            bail!("node-1 has no identity: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let identity: Identity =
            serde_json::from_slice(&output.stdout).context("`consortium-node identity --json` printed no peer_id")?;
        Ok(identity.peer_id)
    }

    /// Waits for every milestone, and says each as it is reached.
    async fn reach_all(&mut self, steps: &Steps, deadline: Instant) -> Result<()> {
        let mut said = None;
        loop {
            if let Some(index) = self.reap()?.into_iter().next() {
                let node = &self.nodes[index];
                bail!("{} {}\n{}", node.name(), node.state(), node.tail(10));
            }
            let statuses = self.ask_all().await;
            let progress = progress(&statuses);
            for milestone in MILESTONES {
                if progress.reached >= Some(milestone) && said < Some(milestone) {
                    self.say_milestone(milestone, &statuses, steps);
                    said = Some(milestone);
                }
            }
            self.record()?;
            if progress.reached == Some(Milestone::Serving) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("{}", self.not_ready(&progress));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn say_milestone(&self, milestone: Milestone, statuses: &[Option<NodeStatus>], steps: &Steps) {
        let nodes = self.nodes.len();
        let master = master(statuses).and_then(|index| Some((self.nodes[index].name(), statuses[index].as_ref()?)));
        match (milestone, master) {
            (Milestone::Answering, _) if nodes > 1 => {
                steps.say(&format!("{} answer", count(nodes, "node")));
            }
            (Milestone::Acquainted, _) if nodes > 1 => {
                steps.say(&format!("{nodes} see each other"));
            }
            (Milestone::Led, Some((name, status))) => {
                steps.say(&format!("{name} is master in term {}", status.term));
            }
            (Milestone::Serving, Some((_, status))) => steps.say(&format!(
                "{} of {} loaded over {}",
                count(self.plan.layers, "layer"),
                status.models.first().map_or("the model", |model| &model.name),
                count(status.stages.len(), "node")
            )),
            _ => {}
        }
    }

    /// Why the swarm is not ready: each node that lacks something, and the ends of the first few logs.
    fn not_ready(&self, progress: &Progress) -> String {
        let mut text = "the swarm is not ready:".to_owned();
        for (index, why) in &progress.lacking {
            text += &format!("\n  {}: {why}", self.nodes[*index].name());
        }
        for (index, _) in progress.lacking.iter().take(3) {
            let node = &self.nodes[*index];
            text += &format!("\n  the log of {} ends with\n{}", node.name(), node.tail(10));
        }
        text
    }

    async fn first_completion(&mut self, access: &Access, steps: &Steps, deadline: Instant) -> Result<()> {
        let question = Question {
            model: &access.model,
            prompt: FIRST_PROMPT,
            max_tokens: FIRST_TOKENS,
            temperature: 0.0,
            seed: 0,
            ignore_eos: false,
        };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let error = match self.client.complete(&access.gateway, &question, left.max(POLL)).await {
                Ok(answer) if !answer.text.is_empty() => {
                    steps.say(&format!("first completion in {:.1} s", answer.took.as_secs_f64()));
                    return Ok(());
                }
                Ok(_) => anyhow::anyhow!("{} answered with an empty text", access.gateway),
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                let gateway = self.nodes.iter().find(|node| node.api_base().as_ref() == Some(&access.gateway));
                let log = gateway.map(|node| node.tail(10)).unwrap_or_default();
                return Err(error.context(format!("no completion goes through the swarm\n{log}")));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// What the node whose API is at `api_base` has paid.
    async fn paid_by(&self, api_base: &str) -> Paid {
        match self.nodes.iter().find(|node| node.api_base().as_deref() == Some(api_base)) {
            Some(node) => settlement::paid(&self.client, api_base, node.data_dir()).await,
            None => Paid::default(),
        }
    }

    /// Waits until the gateway has paid for the first completion.
    async fn first_payment(&self, access: &Access, before: Paid, steps: &Steps, deadline: Instant) -> Result<()> {
        let asked = Instant::now();
        loop {
            let paid = self.paid_by(&access.gateway).await;
            if let Some((worker, last)) = paid.since(&before) {
                let named = |peer: &str| self.nodes.iter().find(|node| node.is_called(peer)).map(NodeProcess::name);
                let payer = self.nodes.iter().find(|node| node.api_base().as_ref() == Some(&access.gateway));
                steps.say(&format!(
                    "{} paid {} sat to {} over Lightning in {} ms, {:.1} s after the completion",
                    payer.map_or("the gateway", NodeProcess::name),
                    sats(last.amount_msat),
                    named(worker).unwrap_or(worker),
                    last.took_ms,
                    asked.elapsed().as_secs_f64()
                ));
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("nobody was paid for the first completion{}", paid.trouble());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Where programs find the swarm, by what its nodes said last.
    ///
    /// # Errors
    /// When no master stands or no model is served.
    fn access(&self) -> Result<Access> {
        let statuses = self.live_statuses();
        let index = master(&statuses).context("no master stands")?;
        let master = statuses[index].as_ref().context("no master stands")?;
        let gateway = statuses.iter().flatten().find(|status| status.peer_id != master.peer_id).unwrap_or(master);
        let model = master.models.first().context("the swarm serves no model")?;
        Ok(Access {
            master: master.api_base.clone(),
            gateway: gateway.api_base.clone(),
            model: model.name.clone(),
            binary: self.plan.binary.clone(),
            paid: self.nodes.iter().find(|node| node.sells()).and_then(NodeProcess::api_base),
            chain: self.chain.as_ref().map(|chain| chain.record.clone()),
        })
    }

    /// Every node as it is recorded.
    pub(crate) fn records(&self) -> &[NodeRecord] {
        &self.recorded
    }

    /// Asks the nodes anew, writes down what changed, and says what nobody ordered: a node that ended by itself, a new
    /// master.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub(crate) async fn refresh(&mut self, steps: &Steps) -> Result<()> {
        for index in self.reap()? {
            let node = &self.nodes[index];
            steps.say(&format!("{} {}; its log ends with", node.name(), node.state()));
            steps.line(&node.tail(5));
        }
        self.ask_all().await;
        self.record()?;
        let Ok(access) = self.access() else {
            return Ok(());
        };
        if self.access.as_ref() == Some(&access) {
            return Ok(());
        }
        access.write(&self.dir)?;
        if self.access.as_ref().is_none_or(|before| before.master != access.master)
            && let Some(node) = self.recorded.iter().find(|node| node.api_base == access.master)
        {
            steps.say(&format!("{} is master", node.name));
        }
        self.access = Some(access);
        Ok(())
    }

    /// What the running nodes said last.
    fn live_statuses(&self) -> Vec<Option<NodeStatus>> {
        let status = |node: &NodeProcess| (*node.state() == State::Running).then(|| node.status().cloned()).flatten();
        self.nodes.iter().map(status).collect()
    }

    /// Indices of the nodes that have ended by themselves since the last time.
    fn reap(&mut self) -> Result<Vec<usize>> {
        let mut ended = Vec::new();
        for (index, node) in self.nodes.iter_mut().enumerate() {
            if node.reap()? {
                ended.push(index);
            }
        }
        Ok(ended)
    }

    /// The status of every running node, all asked at once.
    async fn ask_all(&mut self) -> Vec<Option<NodeStatus>> {
        let mut questions = JoinSet::new();
        for (index, node) in self.nodes.iter().enumerate() {
            if *node.state() == State::Running
                && let Some(api_base) = node.api_base()
            {
                let (client, data_dir) = (self.client.clone(), node.data_dir().to_owned());
                questions.spawn(async move { (index, client.status(&api_base, &data_dir).await.ok()) });
            }
        }
        let mut statuses = vec![None; self.nodes.len()];
        while let Some(answer) = questions.join_next().await {
            if let Ok((index, Some(status))) = answer {
                self.nodes[index].remember(status.clone());
                statuses[index] = Some(status);
            }
        }
        statuses
    }

    /// Writes `nodes.json` if anything in it changed.
    fn record(&mut self) -> Result<()> {
        let records: Vec<NodeRecord> = self.nodes.iter().map(NodeRecord::of).collect();
        if records != self.recorded {
            replace_file(&self.dir.nodes_file(), &serde_json::to_string_pretty(&records)?)?;
            self.recorded = records;
        }
        Ok(())
    }

    /// Does what it is told to one of its nodes.
    pub(crate) async fn carry_out(&mut self, order: &Order) -> Reply {
        let done = match order {
            Order::Kill { node } => self.kill(node).await,
            Order::Restart { node } => self.restart(node).await,
            Order::Pause { node } => self.with_node(node, "paused", NodeProcess::pause),
            Order::Unpause { node } => self.with_node(node, "runs again", NodeProcess::unpause),
            Order::Down | Order::Ping => Ok("ready".to_owned()),
        };
        let done = done.and_then(|message| self.record().map(|()| message));
        done.map_or_else(|error| Reply::Refused(format!("{error:#}")), Reply::Done)
    }

    fn with_node(
        &mut self,
        name: &str,
        done: &str,
        act: impl FnOnce(&mut NodeProcess) -> Result<()>,
    ) -> Result<String> {
        let index = self.find(name)?;
        let node = &mut self.nodes[index];
        node.reap()?;
        act(node)?;
        Ok(format!("{} {done}", node.name()))
    }

    async fn kill(&mut self, name: &str) -> Result<String> {
        let index = self.find(name)?;
        let node = &mut self.nodes[index];
        node.reap()?;
        node.kill().await?;
        Ok(format!("{} killed", node.name()))
    }

    async fn restart(&mut self, name: &str) -> Result<String> {
        let started = Instant::now();
        let index = self.find(name)?;
        self.nodes[index].ask_to_end();
        self.nodes[index].ended(started + GRACE).await?;
        let others = self.nodes.iter().enumerate().filter(|(other, node)| *other != index && node.pid().is_some());
        let launch = Launch {
            binary: &self.plan.binary,
            cluster: &self.cluster,
            model: &self.plan.model,
            stages: self.plan.stages,
            bootstrap: others.filter_map(|(_, node)| Some(node.status()?.listen.clone())).flatten().collect(),
            chain: self.chain.as_ref().map(|chain| &chain.record),
        };
        let node = &mut self.nodes[index];
        node.start(&launch)?;
        if let Err(error) = node.answers(&self.client, started + RESTART).await {
            // Somebody may have taken a port between the look and the start.
            if node.pid().is_some() {
                return Err(error);
            }
            node.start_anywhere(&launch)?;
            node.answers(&self.client, started + RESTART).await?;
        }
        Ok(format!(
            "{} runs again as process {} after {:.1} s",
            node.name(),
            node.pid().unwrap_or_default(),
            started.elapsed().as_secs_f64()
        ))
    }

    /// The node that is meant by `node-3`, `3`, `master`, or a PeerId.
    fn find(&self, name: &str) -> Result<usize> {
        if name == "master" {
            return master(&self.live_statuses()).context("no node is master just now");
        }
        let found = self.nodes.iter().position(|node| {
            node.name() == name
                || node.name().strip_prefix("node-") == Some(name)
                || node.status().is_some_and(|status| status.peer_id == name)
        });
        found.with_context(|| format!("no node is called {name}: say node-1 to node-{}, or master", self.nodes.len()))
    }

    /// Ends all nodes: asks, waits, and kills those that do not go.
    pub(crate) async fn stop(mut self, steps: &Steps) {
        let running = self.nodes.iter().filter(|node| node.pid().is_some()).count();
        for node in &self.nodes {
            node.ask_to_end();
        }
        let deadline = Instant::now() + GRACE;
        for node in &mut self.nodes {
            match node.ended(deadline).await {
                Ok(false) => {}
                Ok(true) => steps.say(&format!("{} did not end when asked, and was killed", node.name())),
                Err(error) => steps.say(&format!("{}: {error:#}", node.name())),
            }
        }
        for file in [self.dir.nodes_file(), self.dir.env_file(), self.dir.chain_file()] {
            let _ = std::fs::remove_file(file);
        }
        if running > 0 {
            steps.say(&format!("{} stopped", count(running, "node")));
        }
    }
}

/// `1 node`, `8 nodes`.
pub(crate) fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
