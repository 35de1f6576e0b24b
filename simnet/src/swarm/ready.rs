//! When a swarm is ready, and what it lacks until then. Pure: it looks at what the nodes say of themselves.

use std::collections::BTreeSet;

use consortium_node::status::{NodeStatus, Role};

/// What a swarm reaches on its way, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Milestone {
    /// Every node answers.
    Answering,
    /// Every node counts every other a member.
    Acquainted,
    /// All obey one master in one term.
    Led,
    /// The master's pipeline is loaded, and every node knows.
    Serving,
}

/// Milestones in their order.
pub(crate) const MILESTONES: [Milestone; 4] =
    [Milestone::Answering, Milestone::Acquainted, Milestone::Led, Milestone::Serving];

/// How far a swarm has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The last milestone that it has reached with all before it.
    pub(crate) reached: Option<Milestone>,
    /// What each node lacks for the next one: index of the node, and why in words.
    pub(crate) lacking: Vec<(usize, String)>,
}

/// Judges what the nodes say; `None` stands for a node that does not answer.
pub(crate) fn progress(nodes: &[Option<NodeStatus>]) -> Progress {
    let mut reached = None;
    for milestone in MILESTONES {
        let lacking: Vec<(usize, String)> = nodes
            .iter()
            .enumerate()
            .filter_map(|(index, node)| Some((index, lacks(milestone, node.as_ref(), nodes)?)))
            .collect();
        if !lacking.is_empty() {
            return Progress { reached, lacking };
        }
        reached = Some(milestone);
    }
    Progress { reached, lacking: Vec::new() }
}

/// The node that is master by its own account; of several, as after a partition, the one of the newest term.
pub(crate) fn master(nodes: &[Option<NodeStatus>]) -> Option<usize> {
    let term = |node: &Option<NodeStatus>| node.as_ref().filter(|node| node.role == Role::Master).map(|node| node.term);
    let masters = nodes.iter().enumerate().filter_map(|(index, node)| Some((term(node)?, index)));
    masters.max().map(|(_, index)| index)
}

/// What `node` lacks for the milestone, in words.
fn lacks(milestone: Milestone, node: Option<&NodeStatus>, nodes: &[Option<NodeStatus>]) -> Option<String> {
    let Some(node) = node else {
        return Some("does not answer".to_owned());
    };
    match milestone {
        Milestone::Answering => None,
        Milestone::Acquainted => {
            let seen = members(node);
            let missing: Vec<String> = nodes
                .iter()
                .enumerate()
                .filter(|(_, other)| other.as_ref().is_some_and(|other| !seen.contains(other.peer_id.as_str())))
                .map(|(index, _)| format!("node-{}", index + 1))
                .collect();
            (!missing.is_empty()).then(|| {
                let known = nodes.len() - missing.len();
                format!("sees {known} of {} members, not {}", nodes.len(), missing.join(" "))
            })
        }
        Milestone::Led => {
            let Some(master) = &node.master else {
                return Some(format!("knows no master (term {})", node.term));
            };
            let newest = nodes.iter().flatten().map(|other| other.term).max().unwrap_or_default();
            if node.term < newest {
                return Some(format!("is in term {}, and others in {newest}", node.term));
            }
            let stands = nodes
                .iter()
                .flatten()
                .any(|other| other.peer_id == *master && other.role == Role::Master && other.term == node.term);
            (!stands).then(|| format!("obeys {master} in term {}, which is no master in it", node.term))
        }
        Milestone::Serving => (!node.ready || node.models.is_empty() || node.stages.is_empty())
            .then(|| node.waiting_for.clone().unwrap_or_else(|| "knows of no loaded pipeline".to_owned())),
    }
}

/// Members in a node's view, itself included.
fn members(node: &NodeStatus) -> BTreeSet<&str> {
    node.members
        .iter()
        .filter(|member| member.state == "alive")
        .map(|member| member.peer_id.as_str())
        .chain([node.peer_id.as_str()])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use consortium_node::status::{MemberStatus, ModelStatus, StageStatus};

    fn swarm(nodes: usize) -> Vec<Option<NodeStatus>> {
        let id = |index: usize| format!("peer-{index}");
        let member = |index| MemberStatus {
            peer_id: id(index),
            state: "alive".into(),
            role: Role::Worker,
            layers: String::new(),
            memory_bytes: 0,
            layer_micros: 0,
            active_jobs: 0,
            rtt_ms: None,
            uptime_s: 0,
            price_msat: 0,
            master_fee_msat: 0,
            addresses: Vec::new(),
        };
        let model = ModelStatus { name: "m".into(), digest: String::new(), layers: 4, context: 8 };
        let stage = StageStatus { peer_id: id(0), layers: "0-3".into() };
        (0..nodes)
            .map(|index| {
                Some(NodeStatus {
                    peer_id: id(index),
                    term: 3,
                    role: if index == 1 { Role::Master } else { Role::Worker },
                    master: Some(id(1)),
                    ready: true,
                    models: vec![model.clone()],
                    stages: vec![stage.clone()],
                    members: (0..nodes).map(member).collect(),
                    ..NodeStatus::default()
                })
            })
            .collect()
    }

    fn with(change: impl Fn(&mut NodeStatus)) -> Progress {
        let mut nodes = swarm(3);
        change(nodes[2].as_mut().unwrap());
        progress(&nodes)
    }

    #[test]
    fn all_agree() {
        let nodes = swarm(3);
        let progress = progress(&nodes);
        assert_eq!(progress.reached, Some(Milestone::Serving));
        assert!(progress.lacking.is_empty());
        assert_eq!(master(&nodes), Some(1));
    }

    #[test]
    fn one_node_lacks_something() {
        let mut nodes = swarm(3);
        nodes[2] = None;
        let silent = progress(&nodes);
        assert_eq!((silent.reached, silent.lacking[0].0), (None, 2));

        let lonely = with(|node| drop(node.members.remove(0)));
        assert_eq!(lonely.reached, Some(Milestone::Answering));
        assert_eq!(lonely.lacking, [(2, "sees 2 of 3 members, not node-1".to_owned())]);

        let suspicious = with(|node| node.members[0].state = "suspect".into());
        assert_eq!(suspicious.reached, Some(Milestone::Answering));

        let leaderless = with(|node| node.master = None);
        assert_eq!(leaderless.reached, Some(Milestone::Acquainted));

        let behind = with(|node| node.term = 2);
        assert_eq!(behind.lacking, [(2, "is in term 2, and others in 3".to_owned())]);

        let astray = with(|node| node.master = Some("peer-0".into()));
        assert_eq!(astray.reached, Some(Milestone::Acquainted));

        let loading = with(|node| {
            node.ready = false;
            node.waiting_for = Some("layers 0-3".into());
        });
        assert_eq!(loading.reached, Some(Milestone::Led));
        assert_eq!(loading.lacking, [(2, "layers 0-3".to_owned())]);
    }

    #[test]
    fn the_newest_master_stands() {
        let mut nodes = swarm(3);
        let other = nodes[2].as_mut().unwrap();
        (other.role, other.term) = (Role::Master, 2);
        assert_eq!(master(&nodes), Some(1));
        nodes[2].as_mut().unwrap().term = 4;
        assert_eq!(master(&nodes), Some(2));
        nodes.truncate(1);
        assert_eq!(master(&nodes), None);
    }
}
