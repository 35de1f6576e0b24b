//! Nodes that owe each other: wallet, books, tabs and a swarm in memory, without a model.

use std::path::PathBuf;
use std::sync::Arc;

use consortium_node::audit::standings::Standings;
use consortium_node::bookkeeper;
use consortium_node::cluster::{ClusterView, MemberView};
use consortium_node::config::TabRules;
use consortium_node::ledger::Ledger;
use consortium_node::ledger::accounts::Owner;
use consortium_node::ledger::cells::Cells;
use consortium_node::ledger::lightning::Wallet;
use consortium_node::ledger::metering::{JobRecord, StageWork, Terms};
use consortium_node::ledger::reputation::AuditPolicy;
use consortium_node::storage::Storage;
use consortium_node::swarm::{self, SwarmConfig, SwarmEvent, SwarmHandle, TransportKind};
use consortium_node::tabs::view::TabView;
use consortium_node::tabs::{TabParts, Tabs};
use consortium_protocol::Msat;
use consortium_protocol::cluster::{ClusterId, ClusterName};
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::{NodeId, RootKey};
use consortium_protocol::wire::heartbeat::{Heartbeat, LayerRange};
use consortium_protocol::wire::job::JobId;
use consortium_protocol::wire::rpc::{Request, Response};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::support::{PATIENCE, Town, key, until};

/// Everything is due at once.
pub(crate) const RULES: TabRules = TabRules {
    settle_at: Msat(1000),
    settle_after: std::time::Duration::from_secs(3600),
    settle_min: Msat(1000),
    credit_limit: Msat(1_000_000_000),
    channel_budget_sat: 500_000,
    channel_cost: Msat(2_000_000),
};

/// A node.
pub(crate) struct Partner {
    pub(crate) key: Arc<RootKey>,
    pub(crate) wallet: Wallet,
    pub(crate) ledger: Ledger,
    pub(crate) storage: Storage,
    pub(crate) tabs: Tabs,
    pub(crate) swarm: SwarmHandle,
    stop: CancellationToken,
}

pub(crate) fn id(name: &str) -> NodeId {
    key(name).node_id()
}

fn cluster() -> ClusterId {
    "tabs".parse::<ClusterName>().unwrap().id()
}

fn member() -> MemberView {
    let heartbeat = Heartbeat {
        cluster: cluster(),
        incarnation: 1,
        seq: 1,
        term: 0,
        master: None,
        willing: true,
        memory_bytes: 0,
        layer_micros: 0,
        models: Vec::new(),
        held: Vec::new(),
        active_jobs: 0,
        price_per_layer_token: Msat(1),
        master_fee: Msat(0),
        uptime_s: 1,
        leaving: false,
        sent_at_ms: 0,
    };
    MemberView { heartbeat, suspect: false }
}

/// Has tabs answer what others ask, as the node's cluster task does.
async fn answer(tabs: Tabs, mut events: mpsc::Receiver<SwarmEvent>) {
    while let Some(event) = events.recv().await {
        let SwarmEvent::Request { from, request, reply } = event else { continue };
        let tabs = tabs.clone();
        tokio::spawn(async move {
            reply.send(match request {
                Request::Settle(tab) => tabs.settle(from, *tab).await,
                Request::Channel(offer) => tabs.agree(from, *offer).await,
                Request::ChannelBegun(begun) => tabs.begun(from, *begun).await,
                Request::ChannelGone(gone) => tabs.gone(from, *gone).await,
                _ => Response::Ack,
            });
        });
    }
}

impl Partner {
    /// A node with this wallet; it pays nobody until [`Partner::pays`].
    pub(crate) async fn new(town: &Town, name: &str, wallet: Wallet, bootstrap: Vec<String>) -> Self {
        let (key, dir): (Arc<RootKey>, PathBuf) = (Arc::new(key(name)), town.directory(name));
        let config = SwarmConfig {
            key: &key,
            cluster: cluster(),
            listen: vec!["/memory/0".to_owned()],
            bootstrap,
            mdns: false,
            transport: TransportKind::Memory,
        };
        let (swarm, events, []) = swarm::spawn(config, []).unwrap();
        swarm.listening().wait_for(|all| !all.is_empty()).await.unwrap();
        let ledger = Ledger::open(&dir.join("ledger.db"), key.node_id()).unwrap();
        let storage = Storage::open(&dir.join("node.db")).unwrap();
        let standings = Standings::open(ledger.clone(), Arc::clone(&key), AuditPolicy::default(), 0).unwrap();
        let parts = TabParts {
            key: Arc::clone(&key),
            storage: storage.clone(),
            standings,
            rules: RULES,
            wallet: Some(wallet.clone()),
        };
        let (tabs, stop) = (Tabs::new(parts), CancellationToken::new());
        tokio::spawn(answer(tabs.clone(), events));
        bookkeeper::spawn(ledger.clone(), wallet.clone(), watch::Sender::new(Vec::new()), stop.clone());
        Self { key, wallet, ledger, storage, tabs, swarm, stop }
    }

    pub(crate) fn id(&self) -> NodeId {
        self.key.node_id()
    }

    /// Where others find it.
    pub(crate) fn address(&self) -> Vec<String> {
        self.swarm.listening().borrow().clone()
    }

    /// Begins to settle, in a cluster with `others`.
    pub(crate) fn pays(&self, others: &[NodeId]) {
        let members = others.iter().map(|node| (*node, member())).collect();
        let (_, view) = watch::channel(ClusterView { members, ..ClusterView::default() });
        self.tabs.spawn(self.swarm.clone(), view, self.stop.clone());
    }

    /// Ends without a word but to the wallet's file: what was not on disk is gone.
    pub(crate) async fn ends(self) {
        self.stop.cancel();
        self.swarm.shutdown().await;
        self.wallet.stop().await.unwrap();
    }

    pub(crate) async fn with(&self, peer: NodeId) -> TabView {
        let view = self.tabs.view().await.unwrap();
        view.tabs.into_iter().find(|tab| tab.peer == peer).expect("there is a tab")
    }
}

/// Work of `worker` for `payer`, over `msat`, booked at both as accepted work is.
pub(crate) fn work(payer: &Partner, worker: &Partner, job: u16, msat: u64) {
    let mut name = [0; 16];
    name[..2].copy_from_slice(&job.to_le_bytes());
    for ledger in [&payer.ledger, &worker.ledger] {
        let stage = StageWork {
            stage: 0,
            worker: worker.id(),
            cells: Cells { layers: LayerRange { first: 0, last: 0 }, start: 0, stop: 1 },
            price: Msat(msat),
            receipt: Hash::of(&name),
            drawn: false,
        };
        let record =
            JobRecord { job: JobId(name), attempt: 1, payer: Owner::Peer(payer.id()), fee: 0, stages: vec![stage] };
        ledger.record_job(&record, &Terms { tail: 0, ..Terms::default() }, 1).unwrap();
    }
}

/// Waits until nothing is due between two, and nothing is open.
pub(crate) async fn settled(payer: &Partner, worker: &Partner) {
    let free = |ledger: &Ledger, peer| ledger.tab(&peer).unwrap().free;
    let done = until("both sides have booked the settlement", || async {
        free(&payer.ledger, worker.id()) == 0 && free(&worker.ledger, payer.id()) == 0
    });
    tokio::select! {
        () = done => {}
        () = tokio::time::sleep(PATIENCE - PATIENCE / 10) => panic!("{:?}", payer.with(worker.id()).await),
    }
}

/// A payer with a channel to a worker, who know each other.
pub(crate) async fn pair(town: &Town) -> (Partner, Partner) {
    let (alice, bob) = (town.wallet("alice").await, town.wallet("bob").await);
    town.fund(&[&alice, &bob]).await;
    town.channel(&alice, &bob, 500_000, Msat(200_000_000)).await;
    let payer = Partner::new(town, "alice", alice, Vec::new()).await;
    let worker = Partner::new(town, "bob", bob, payer.address()).await;
    met(&payer, &worker).await;
    (payer, worker)
}

/// A payer with coins, and a worker without coins, channels or an address, who know each other.
pub(crate) async fn with_newcomer(town: &Town) -> (Partner, Partner) {
    let alice = town.wallet("alice").await;
    town.fund(&[&alice]).await;
    let payer = Partner::new(town, "alice", alice, Vec::new()).await;
    let newcomer = Partner::new(town, "newcomer", newcomers_wallet(town).await, payer.address()).await;
    met(&payer, &newcomer).await;
    (payer, newcomer)
}

pub(crate) async fn newcomers_wallet(town: &Town) -> Wallet {
    let mut nothing = town.settings("newcomer");
    (nothing.listen, nothing.alias, nothing.reserve_sat) = (Vec::new(), None, Some(0));
    town.wallet_with("newcomer", nothing).await
}

pub(crate) async fn met(a: &Partner, b: &Partner) {
    until("they have met", || async {
        let knows = async |one: &Partner, other: NodeId| {
            one.swarm.peers().await.unwrap().iter().any(|(node, _)| *node == other)
        };
        knows(a, b.id()).await && knows(b, a.id()).await
    })
    .await;
}
