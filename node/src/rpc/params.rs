//! Parameters: by name in an object, or by place in an array.

use consortium_ledger::accounts::Owner;
use consortium_ledger::reputation::VerdictPlace;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire::job::JobId;
use jsonrpsee::types::Params;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::fault::Fault;

/// Reads parameters; none at all are an empty object.
pub(super) fn read<T: DeserializeOwned>(params: &Params<'_>) -> Result<T, Fault> {
    serde_json::from_str(params.as_str().unwrap_or("{}")).map_err(|error| {
        let error = error.to_string();
        let end = error.rfind(" at line ").unwrap_or(error.len());
        Fault::Params(format!("invalid parameters: {}", &error[..end]))
    })
}

/// How many on a page: `limit` if it is given and between 1 and `max`.
pub(super) fn page(limit: Option<u32>, max: u32) -> Result<u32, Fault> {
    match limit {
        None => Ok(max.min(50)),
        Some(limit) if (1..=max).contains(&limit) => Ok(limit),
        Some(limit) => Err(Fault::Params(format!("limit: 1 to {max}, not {limit}"))),
    }
}

/// A method without parameters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// A page of nodes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nodes {
    #[serde(default)]
    pub(super) after: Option<NodeId>,
    #[serde(default)]
    pub(super) limit: Option<u32>,
}

/// One node.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OneNode {
    pub(super) peer_id: NodeId,
}

/// A page of the evidence about a node.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Evidence {
    pub(super) peer_id: NodeId,
    #[serde(default)]
    pub(super) after: Option<Hash>,
    #[serde(default)]
    pub(super) limit: Option<u32>,
}

/// A page of verdicts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Audits {
    #[serde(default)]
    pub(super) peer_id: Option<NodeId>,
    #[serde(default)]
    pub(super) after: Option<VerdictPlace>,
    #[serde(default)]
    pub(super) limit: Option<u32>,
}

/// Something named by its digest.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Digest {
    pub(super) digest: Hash,
}

/// A job.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Job {
    pub(super) job: JobId,
}

/// Stages of a job to be audited.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Order {
    pub(super) job: JobId,
    #[serde(default)]
    pub(super) stage: Option<u16>,
}

/// A page of what a stage shows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OpeningPage {
    pub(super) job: JobId,
    pub(super) stage: u16,
    #[serde(default)]
    pub(super) offset: Option<u64>,
}

/// A verdict that is handed in.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Submission {
    pub(super) signed: String,
}

/// An entry of the journal, or a leaf of a tree of some size.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    #[serde(default)]
    pub(super) seq: Option<u64>,
    #[serde(default)]
    pub(super) index: Option<u64>,
    #[serde(default)]
    pub(super) size: Option<u64>,
}

/// Two sizes of the journal.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sizes {
    pub(super) old_size: u64,
    pub(super) new_size: u64,
}

/// A page of accounts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Accounts {
    #[serde(default)]
    pub(super) after: Option<Owner>,
    #[serde(default)]
    pub(super) limit: Option<u32>,
}

/// A page of an account over a time.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Statement {
    pub(super) owner: Owner,
    #[serde(default)]
    pub(super) from_ms: Option<u64>,
    #[serde(default)]
    pub(super) to_ms: Option<u64>,
    #[serde(default)]
    pub(super) after: Option<u64>,
    #[serde(default)]
    pub(super) limit: Option<u32>,
}
