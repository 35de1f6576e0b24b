//! Draws the picture of [`NodeStatus`] from what the tasks publish.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use consortium_protocol::identity::NodeId;
use consortium_protocol::wire::heartbeat::Lease;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::audit::standings::Standings;
use crate::cluster::{ClusterView, MemberView};
use crate::data_dir::ApiFile;
use crate::master::MasterHandle;
use crate::shards::Shards;
use crate::status::{HeldStatus, MemberStatus, ModelStatus, NodeStatus, Role, StageStatus};
use crate::swarm::{PeerInfo, SwarmHandle};

/// The picture is drawn again this often, and whenever the cluster changes.
const REDRAW: Duration = Duration::from_millis(250);

/// What is looked at.
pub(crate) struct Observer {
    /// Cluster name as configured.
    pub(crate) cluster: String,
    /// Where the API listens, and who this is.
    pub(crate) api: ApiFile,
    /// Memory offered.
    pub(crate) memory_bytes: u64,
    /// The swarm.
    pub(crate) swarm: SwarmHandle,
    /// The cluster.
    pub(crate) view: watch::Receiver<ClusterView>,
    /// The layers held.
    pub(crate) shards: Shards,
    /// The master's task.
    pub(crate) master: MasterHandle,
    /// Who is shut out.
    pub(crate) standings: Standings,
    /// What the operator must look at.
    pub(crate) alarms: watch::Receiver<Vec<String>>,
}

impl Observer {
    /// Publishes the status until `stop`.
    #[must_use]
    pub(crate) fn spawn(mut self, stop: CancellationToken) -> watch::Receiver<NodeStatus> {
        let (status, receiver) = watch::channel(NodeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: self.api.pid,
            peer_id: self.api.peer_id.clone(),
            cluster: self.cluster.clone(),
            api_base: self.api.api_base.clone(),
            memory_bytes: self.memory_bytes,
            waiting_for: Some("the node has just started".to_owned()),
            ..NodeStatus::default()
        });
        tokio::spawn(async move {
            let started = Instant::now();
            let mut redraw = tokio::time::interval(REDRAW);
            redraw.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = redraw.tick() => {}
                    changed = self.view.changed() => if changed.is_err() { return },
                }
                let Ok(peers) = self.swarm.peers().await else { return };
                let drawn = self.draw(started, &status.borrow(), &peers.into_iter().collect());
                status.send_replace(drawn);
            }
        });
        receiver
    }

    fn draw(&mut self, started: Instant, last: &NodeStatus, peers: &BTreeMap<NodeId, PeerInfo>) -> NodeStatus {
        let view = self.view.borrow_and_update().clone();
        let me = self.swarm.me();
        let role = match view.master {
            None => Role::Seeking,
            Some(master) if master == me => Role::Master,
            Some(_) => Role::Worker,
        };
        let models = models(&view);
        let stages = self.stages(&view, role);
        let waiting_for = self.waiting_for(&view, role, &models, &stages);
        NodeStatus {
            term: view.term,
            role,
            master: view.master.map(|master| master.to_string()),
            ready: waiting_for.is_none(),
            waiting_for,
            uptime_s: started.elapsed().as_secs(),
            listen: self.swarm.listening().borrow().clone(),
            active_jobs: self.shards.sessions(),
            alarms: self.alarms.borrow().clone(),
            held: self
                .shards
                .held()
                .borrow()
                .iter()
                .map(|shard| HeldStatus { model: shard.model.name.clone(), layers: shard.lease.range.to_string() })
                .collect(),
            members: view.members.iter().map(|(node, member)| self.member(&view, *node, member, peers)).collect(),
            models,
            stages,
            ..last.clone()
        }
    }

    fn member(
        &self,
        view: &ClusterView,
        node: NodeId,
        member: &MemberView,
        peers: &BTreeMap<NodeId, PeerInfo>,
    ) -> MemberStatus {
        let heartbeat = &member.heartbeat;
        let peer = peers.get(&node);
        let mut addresses = peer.map(|peer| peer.addresses.clone()).unwrap_or_default();
        if node == self.swarm.me() {
            addresses.clone_from(&self.swarm.listening().borrow());
        }
        MemberStatus {
            peer_id: node.to_string(),
            state: if member.suspect { "suspect" } else { "alive" }.to_owned(),
            role: match view.master {
                Some(master) if master == node => Role::Master,
                Some(_) => Role::Worker,
                None => Role::Seeking,
            },
            layers: heartbeat.held.iter().map(|lease| lease.range.to_string()).collect::<Vec<_>>().join(", "),
            memory_bytes: heartbeat.memory_bytes,
            layer_micros: heartbeat.layer_micros,
            active_jobs: heartbeat.active_jobs,
            rtt_ms: peer.and_then(|peer| peer.rtt).map(|rtt| u32::try_from(rtt.as_millis()).unwrap_or(u32::MAX)),
            uptime_s: heartbeat.uptime_s,
            price_msat: heartbeat.price_per_layer_token.0,
            master_fee_msat: heartbeat.master_fee.0,
            addresses,
        }
    }

    /// The master knows its pipeline; everyone else reads it from the leases that members announce.
    fn stages(&self, view: &ClusterView, role: Role) -> Vec<StageStatus> {
        let stage = |node: &NodeId, range: String| StageStatus { peer_id: node.to_string(), layers: range };
        if role == Role::Master {
            let pipeline = self.master.pipeline();
            let pipeline = pipeline.borrow();
            return pipeline.iter().flat_map(|p| &p.route).map(|hop| stage(&hop.node, hop.range.to_string())).collect();
        }
        let layers = models(view).first().map_or(0, |model| model.layers);
        let (route, _) = cover(&self.leases(view), layers);
        route.iter().map(|(lease, node)| stage(node, lease.range.to_string())).collect()
    }

    /// Leases of the current term, of those who may hold any.
    fn leases(&self, view: &ClusterView) -> Vec<(Lease, NodeId)> {
        let able = view.members.iter().filter(|(node, _)| !self.standings.is_banned(node));
        let all = able.flat_map(|(node, member)| member.heartbeat.held.iter().map(|lease| (*lease, *node)));
        all.filter(|(lease, _)| lease.term == view.term).collect()
    }

    fn waiting_for(
        &self,
        view: &ClusterView,
        role: Role,
        models: &[ModelStatus],
        stages: &[StageStatus],
    ) -> Option<String> {
        if role == Role::Seeking {
            return Some("the cluster has elected no master yet".to_owned());
        }
        let Some(model) = models.first() else {
            return Some("the master has no model; start a node with --model".to_owned());
        };
        if role == Role::Master {
            let why = || self.master.trouble().unwrap_or_else(|| "layers are being placed and loaded".to_owned());
            return stages.is_empty().then(why);
        }
        let (_, covered) = cover(&self.leases(view), model.layers);
        (covered < model.layers).then(|| format!("layers {covered} and up of {} are not loaded yet", model.name))
    }
}

/// Leases that follow each other from layer 0 on, and the first layer that no such row of them reaches. When it reaches
/// all `layers`, the row covers them; layers that changed hands may be announced by two nodes for a moment, so not any
/// lease that fits will do.
fn cover(leases: &[(Lease, NodeId)], layers: u16) -> (Vec<(Lease, NodeId)>, u16) {
    let mut sorted = leases.to_vec();
    sorted.sort_by_key(|(lease, node)| (lease.range.first, lease.range.last, *node));
    // For every layer that a row of leases ends before, the last lease of the row.
    let mut reached: BTreeMap<u16, Option<(Lease, NodeId)>> = BTreeMap::from([(0, None)]);
    for (lease, node) in sorted {
        if reached.contains_key(&lease.range.first) {
            reached.entry(lease.range.last.saturating_add(1)).or_insert(Some((lease, node)));
        }
    }
    let end = reached.range(..=layers).next_back().map_or(0, |(layer, _)| *layer);
    let mut row = Vec::new();
    let mut at = end;
    while let Some(Some((lease, node))) = reached.get(&at) {
        row.push((*lease, *node));
        at = lease.range.first;
    }
    row.reverse();
    (row, end)
}

/// What the master serves.
fn models(view: &ClusterView) -> Vec<ModelStatus> {
    let Some(master) = view.master.and_then(|master| view.members.get(&master)) else { return Vec::new() };
    let describe = |model: &consortium_protocol::wire::heartbeat::ModelRef| ModelStatus {
        name: model.name.clone(),
        digest: model.digest.to_string(),
        layers: model.layers,
        context: model.context,
    };
    master.heartbeat.models.iter().map(describe).collect()
}

#[cfg(test)]
mod tests {
    use consortium_protocol::hash::Hash;
    use consortium_protocol::identity::RootKey;
    use consortium_protocol::wire::heartbeat::LayerRange;

    use super::*;

    fn leases(ranges: &[(u16, u16)]) -> Vec<(Lease, NodeId)> {
        let lease = |(first, last): &(u16, u16)| Lease {
            model: Hash::of(b"model"),
            range: LayerRange { first: *first, last: *last },
            term: 1,
        };
        (1..).zip(ranges).map(|(seed, range)| (lease(range), RootKey::from_seed([seed; 32]).node_id())).collect()
    }

    #[test]
    fn a_row_of_leases_is_found_among_those_left_over() {
        // The holder of 5-6 was shut out and still announces it; 7 alone is nowhere.
        let (row, end) = cover(&leases(&[(5, 6), (0, 4), (5, 7), (8, 9)]), 10);
        let ranges: Vec<String> = row.iter().map(|(lease, _)| lease.range.to_string()).collect();
        assert_eq!((ranges.join(" ").as_str(), end), ("0-4 5-7 8-9", 10));
    }

    #[test]
    fn the_first_layer_out_of_reach_is_named() {
        assert_eq!(cover(&[], 4).1, 0);
        assert_eq!(cover(&leases(&[(1, 3)]), 4).1, 0);
        assert_eq!(cover(&leases(&[(0, 0), (0, 1), (3, 3)]), 4).1, 2);
        assert_eq!(cover(&leases(&[(0, u16::MAX)]), 4).1, 0);
    }
}
