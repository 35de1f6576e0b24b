//! What a node tells about itself and its cluster: the document behind `/status.json`, `status` and `peers`.

use serde::{Deserialize, Serialize};

/// A snapshot of the node, published on a watch channel whenever something in it changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Version of the software.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// PeerId of this node.
    pub peer_id: String,
    /// Cluster name as configured.
    pub cluster: String,
    /// Highest certified term known.
    pub term: u64,
    /// What the node is in that term.
    pub role: Role,
    /// PeerId of the master obeyed, if any.
    pub master: Option<String>,
    /// A master stands and its model's pipeline is loaded: a chat will be answered.
    pub ready: bool,
    /// Why not, in plain words, while `ready` is false.
    pub waiting_for: Option<String>,
    /// Seconds since start.
    pub uptime_s: u64,
    /// Addresses listened on, each ending in `/p2p/<peer id>`.
    pub listen: Vec<String>,
    /// Base URL of the OpenAI-compatible API, ending in `/v1`.
    pub api_base: String,
    /// Memory offered for model layers, in bytes.
    pub memory_bytes: u64,
    /// Jobs in progress on this node's stages.
    pub active_jobs: u32,
    /// What the operator must look at, in sentences; none when all is well.
    #[serde(default)]
    pub alarms: Vec<String>,
    /// What the cluster serves now.
    pub models: Vec<ModelStatus>,
    /// Layers that this node holds.
    pub held: Vec<HeldStatus>,
    /// The pipeline in use, in order.
    pub stages: Vec<StageStatus>,
    /// Members of the cluster in this node's view, itself included.
    pub members: Vec<MemberStatus>,
}

/// The node's own half of its status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHalf {
    /// Version of the software.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// PeerId of this node.
    pub peer_id: String,
    /// Cluster name as configured.
    pub cluster: String,
    /// What the node is in the current term.
    pub role: Role,
    /// Seconds since start.
    pub uptime_s: u64,
    /// Addresses listened on, each ending in `/p2p/<peer id>`.
    pub listen: Vec<String>,
    /// Base URL of the OpenAI-compatible API, ending in `/v1`.
    pub api_base: String,
    /// Memory offered for model layers, in bytes.
    pub memory_bytes: u64,
    /// Jobs in progress on this node's stages.
    pub active_jobs: u32,
    /// What the operator must look at, in sentences; none when all is well.
    #[serde(default)]
    pub alarms: Vec<String>,
    /// Layers that this node holds.
    pub held: Vec<HeldStatus>,
}

/// The cluster's half of a node's status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterHalf {
    /// Cluster name as configured.
    pub cluster: String,
    /// Highest certified term known.
    pub term: u64,
    /// PeerId of the master obeyed, if any.
    pub master: Option<String>,
    /// A chat will be answered.
    pub ready: bool,
    /// Why not, in plain words.
    pub waiting_for: Option<String>,
    /// What the cluster serves now.
    pub models: Vec<ModelStatus>,
    /// The pipeline in use, in order.
    pub stages: Vec<StageStatus>,
    /// Members of the cluster in this node's view, itself included.
    pub members: Vec<MemberStatus>,
}

impl NodeStatus {
    /// What it says of the node.
    #[must_use]
    pub fn node(&self) -> NodeHalf {
        NodeHalf {
            version: self.version.clone(),
            pid: self.pid,
            peer_id: self.peer_id.clone(),
            cluster: self.cluster.clone(),
            role: self.role,
            uptime_s: self.uptime_s,
            listen: self.listen.clone(),
            api_base: self.api_base.clone(),
            memory_bytes: self.memory_bytes,
            active_jobs: self.active_jobs,
            alarms: self.alarms.clone(),
            held: self.held.clone(),
        }
    }

    /// What it says of the cluster.
    #[must_use]
    pub fn cluster_view(&self) -> ClusterHalf {
        ClusterHalf {
            cluster: self.cluster.clone(),
            term: self.term,
            master: self.master.clone(),
            ready: self.ready,
            waiting_for: self.waiting_for.clone(),
            models: self.models.clone(),
            stages: self.stages.clone(),
            members: self.members.clone(),
        }
    }
}

/// What a node is in the current term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// No master is known.
    #[default]
    Seeking,
    /// Obeys another node.
    Worker,
    /// Was elected.
    Master,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Seeking => "seeking",
            Self::Worker => "worker",
            Self::Master => "master",
        })
    }
}

/// A model that the cluster serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// Name to use in requests.
    pub name: String,
    /// BLAKE3 over its files, hex.
    pub digest: String,
    /// Number of decoder layers.
    pub layers: u16,
    /// Longest context in tokens.
    pub context: u32,
}

/// Layers held in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldStatus {
    /// Name of the model (or its digest where the name is unknown).
    pub model: String,
    /// Inclusive range such as `0-3`.
    pub layers: String,
}

/// One stage of the pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageStatus {
    /// PeerId of the node.
    pub peer_id: String,
    /// Inclusive range such as `0-3`.
    pub layers: String,
}

/// One member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// PeerId.
    pub peer_id: String,
    /// `alive` or `suspect`.
    pub state: String,
    /// Its role as this node sees it.
    pub role: Role,
    /// Layers it says it holds, such as `0-3`; empty when none.
    pub layers: String,
    /// Memory it offers, in bytes.
    pub memory_bytes: u64,
    /// Its measured time of one token through one layer, in microseconds; 0 when unmeasured.
    pub layer_micros: u32,
    /// Jobs in progress on it.
    pub active_jobs: u32,
    /// Round-trip time in milliseconds; none for this node or before the first ping.
    pub rtt_ms: Option<u32>,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Price of one token through one layer, in millisatoshi.
    pub price_msat: u64,
    /// What it asks, as a master, for each position of a job, in msat.
    #[serde(default)]
    pub master_fee_msat: u64,
    /// Addresses known for it.
    pub addresses: Vec<String>,
}
