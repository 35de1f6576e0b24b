//! `node_status` and `cluster_status`: the two halves of what `/status.json` shows.

use serde_json::Value;

use super::Sources;
use super::fault::Fault;
use super::methods::{self, Asked};
use super::params::Nothing;

/// How this node is doing.
pub(super) fn node_status(sources: &Sources, _: Asked, _: Nothing) -> Result<Value, Fault> {
    methods::json(sources.status.borrow().node())
}

/// How its cluster is doing, as this node sees it.
pub(super) fn cluster_status(sources: &Sources, _: Asked, _: Nothing) -> Result<Value, Fault> {
    methods::json(sources.status.borrow().cluster_view())
}
