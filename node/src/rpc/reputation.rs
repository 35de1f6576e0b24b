//! `reputation_*`: how others stand with this node, and what from.

use consortium_ledger::reputation::{MAX_EVIDENCE_PAGE, MAX_PAGE};
use serde_json::{Value, json};

use super::Sources;
use super::fault::Fault;
use super::methods::{self, Asked};
use super::params::{self, Evidence, Nodes, OneNode};
use crate::clock::wall_ms;

/// A page of nodes with their scores.
pub(super) fn list(sources: &Sources, _: Asked, wanted: Nodes) -> Result<Value, Fault> {
    let limit = params::page(wanted.limit, MAX_PAGE)?;
    methods::json(sources.ledger.reputations(wanted.after, limit, &sources.policy, wall_ms())?)
}

/// One node.
pub(super) fn get(sources: &Sources, _: Asked, wanted: OneNode) -> Result<Value, Fault> {
    let (node, at_ms) = (wanted.peer_id, wall_ms());
    let view = sources.ledger.reputation(&node, &sources.policy, at_ms)?;
    if view.evidence == 0 && sources.ledger.node_record(&node)?.is_none() {
        return Err(Fault::NotFound(format!("nothing is known here of {node}; it would begin as a newcomer")));
    }
    let mut record = json!({"judge": sources.ledger.owner(), "at_ms": at_ms});
    if let (Some(record), Value::Object(fields)) = (record.as_object_mut(), methods::json(view)?) {
        record.extend(fields);
    }
    Ok(record)
}

/// A page of the signed evidence about a node.
pub(super) fn evidence(sources: &Sources, _: Asked, wanted: Evidence) -> Result<Value, Fault> {
    let limit = params::page(wanted.limit, MAX_EVIDENCE_PAGE)?;
    methods::json(sources.ledger.evidence(Some(&wanted.peer_id), wanted.after, limit)?)
}
