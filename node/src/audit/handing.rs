//! Audits that others do for this node: auditors that its owner named, or members that hold the model.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire::audit::AuditOrder;
use consortium_protocol::wire::rpc::{Request, Response};
use tracing::debug;

use super::auditor::AuditTask;

/// Time for another auditor to take an order.
const HANDING_OVER: Duration = Duration::from_secs(5);
/// Receipts remembered as handed over.
const MAX_HANDED: usize = 16_384;

/// Receipts whose audits were handed over, and to whom: pay goes by that node's verdict.
#[derive(Clone, Default)]
pub(super) struct Handed(Arc<Mutex<BTreeMap<Hash, NodeId>>>);

impl Handed {
    fn note(&self, receipt: Hash, auditor: NodeId) {
        let mut handed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if handed.len() >= MAX_HANDED {
            handed.pop_first();
        }
        handed.insert(receipt, auditor);
    }

    fn take_back(&self, receipt: &Hash) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(receipt);
    }

    /// Whether the audit of this receipt was handed to this node.
    pub(super) fn is_with(&self, receipt: &Hash, auditor: &NodeId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(receipt) == Some(auditor)
    }
}

/// A number for an auditor that nobody could choose when the receipt was signed.
fn ticket(order: &AuditOrder, auditor: &NodeId) -> u64 {
    let receipt = order.receipt().map(Signed::digest);
    let ticket = receipt.map(|receipt| Hash::of(&[receipt.as_bytes(), auditor.as_bytes().as_slice()].concat()));
    ticket.map_or(0, |ticket| (order.nonce.draw(&ticket) * 1e9) as u64)
}

impl AuditTask {
    /// The auditors that this node's owner named, in an order that nobody could choose.
    pub(super) fn named_auditors(&self, order: &AuditOrder) -> Vec<NodeId> {
        let mut named: Vec<NodeId> = self.auditors.iter().filter(|node| self.may_audit(order, node)).copied().collect();
        named.sort_by_cached_key(|node| ticket(order, node));
        named
    }

    /// The members with the model: those that had no part in the job first, and among them in an order that nobody could
    /// choose.
    pub(super) fn able_auditors(&self, order: &AuditOrder) -> Vec<NodeId> {
        let Some(model) = order.receipt().map(|receipt| receipt.payload().model) else { return Vec::new() };
        let mut able: Vec<NodeId> = {
            let view = self.view.borrow();
            let has = |member: &crate::cluster::MemberView| {
                !member.suspect && member.heartbeat.models.iter().any(|held| held.digest == model)
            };
            let members = view.members.iter().filter(|(_, member)| has(member)).map(|(node, _)| *node);
            members.filter(|node| self.may_audit(order, node)).collect()
        };
        able.sort_by_cached_key(|node| {
            let on_route = order.order.payload().route.iter().any(|hop| hop.node == *node);
            (on_route, ticket(order, node))
        });
        able
    }

    /// Nobody audits itself, and this node hands nothing to itself.
    fn may_audit(&self, order: &AuditOrder, node: &NodeId) -> bool {
        *node != self.swarm.me() && order.receipt().is_some_and(|receipt| receipt.signer() != *node)
    }

    /// Hands an order to the first of these that takes it; false if none does.
    pub(super) async fn hand_over(&self, handed: &Handed, order: &AuditOrder, auditors: Vec<NodeId>) -> bool {
        let Some(receipt) = order.receipt().map(Signed::digest) else { return false };
        for auditor in auditors {
            let request = Request::Audit(Box::new(order.clone()));
            // Noted before: its verdict may be here before its answer.
            handed.note(receipt, auditor);
            match self.swarm.request(auditor, request, HANDING_OVER).await {
                Ok(Response::Ack) => return true,
                Ok(_) | Err(_) => debug!(%auditor, "would not audit"),
            }
        }
        handed.take_back(&receipt);
        false
    }
}
