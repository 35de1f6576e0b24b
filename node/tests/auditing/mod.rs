//! The auditor of a node, in a swarm in memory.

use std::sync::Arc;

use consortium_ledger::ledger::Ledger;
use consortium_ledger::reputation::AuditPolicy;
use consortium_node::audit::proof::Proofs;
use consortium_node::audit::standings::Standings;
use consortium_node::audit::{AuditDesk, AuditTask, Audits, SettledJobs};
use consortium_node::cluster::ClusterView;
use consortium_node::inference::audit::thresholds::Thresholds;
use consortium_node::library::Library;
use consortium_node::prices::Advertised;
use consortium_node::shards::Shards;
use consortium_node::storage::Storage;
use consortium_node::swarm::{self, Incoming, SwarmConfig, SwarmEvent, SwarmHandle, TransportKind};
use consortium_protocol::cluster::{ClusterId, ClusterName};
use consortium_protocol::identity::{NodeId, RootKey};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub(crate) fn cluster() -> ClusterId {
    "test".parse::<ClusterName>().unwrap().id()
}

/// A swarm in memory.
pub(crate) fn swarm_of<const N: usize>(
    key: &RootKey,
    bootstrap: Vec<String>,
    protocols: [&'static str; N],
) -> (SwarmHandle, mpsc::Receiver<SwarmEvent>, [Incoming; N]) {
    let config = SwarmConfig {
        key,
        cluster: cluster(),
        listen: vec!["/memory/0".to_owned()],
        bootstrap,
        mdns: false,
        transport: TransportKind::Memory,
    };
    swarm::spawn(config, protocols).unwrap()
}

/// What an auditor works with.
pub(crate) struct Means<'a> {
    pub(crate) key: RootKey,
    pub(crate) library: Library,
    pub(crate) auditors: Vec<NodeId>,
    pub(crate) ledger: &'a Ledger,
    pub(crate) storage: &'a Storage,
    pub(crate) proofs: &'a Proofs,
}

/// An auditor at work.
pub(crate) struct Auditing {
    pub(crate) swarm: SwarmHandle,
    pub(crate) settled: SettledJobs,
    pub(crate) audits: Audits,
}

impl Auditing {
    pub(crate) fn start(means: Means<'_>, stop: CancellationToken) -> Self {
        let Means { key, library, auditors, ledger, storage, proofs } = means;
        let (swarm, mut events, []) = swarm_of(&key, Vec::new(), []);
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        let (key, settled) = (Arc::new(key), SettledJobs::default());
        let task = AuditTask {
            key: Arc::clone(&key),
            cluster: cluster(),
            swarm: swarm.clone(),
            library: library.clone(),
            serving: Vec::new(),
            shards: Shards::new(library, 64 << 20),
            view: watch::channel(ClusterView::default()).1,
            storage: storage.clone(),
            proofs: proofs.clone(),
            advertised: Advertised::default(),
            standings: Standings::open(ledger.clone(), key, AuditPolicy::default(), 0).unwrap(),
            thresholds: Arc::new(Thresholds::compiled_in()),
            auditors,
            settled: settled.clone(),
        };
        Self { swarm, settled, audits: task.spawn(stop) }
    }

    pub(crate) fn desk(&self) -> AuditDesk {
        AuditDesk::new(self.swarm.clone(), self.settled.clone(), self.audits.clone())
    }
}
