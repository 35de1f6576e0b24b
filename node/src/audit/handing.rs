//! Audits that others do for this node: auditors that its owner named, or members that hold the model.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire::audit::{AuditOrder, StageReceipt, Verdict};
use consortium_protocol::wire::job::JobId;
use consortium_protocol::wire::rpc::{Request, Response};
use tracing::debug;

use super::auditor::AuditTask;
use super::recent::Recent;

/// Time for another auditor to take an order.
const HANDING_OVER: Duration = Duration::from_secs(5);
/// Time for any of them to.
const ALL: Duration = Duration::from_secs(20);
/// Receipts remembered as handed over.
const MAX_HANDED: usize = 16_384;

/// The work that was handed over: who did it, job, attempt, stage.
type Work = (NodeId, JobId, u32, u16);

/// Receipts whose audits were handed over, to whom, and what work they are for: pay goes by that node's verdict on that
/// work, the first that it gives.
#[derive(Clone)]
pub(super) struct Handed(Arc<Mutex<Recent<(NodeId, Work)>>>);

impl Default for Handed {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Recent::new(MAX_HANDED))))
    }
}

impl Handed {
    fn lock(&self) -> MutexGuard<'_, Recent<(NodeId, Work)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, receipt: &Signed<StageReceipt>, auditor: NodeId) {
        let said = receipt.payload();
        self.lock().insert(receipt.digest(), (auditor, (receipt.signer(), said.job, said.attempt, said.stage)));
    }

    /// Forgets that an audit was handed over.
    pub(super) fn take_back(&self, receipt: &Hash) {
        self.lock().remove(receipt);
    }

    /// Whether a verdict is awaited on what this receipt is for.
    pub(super) fn waits_for(&self, receipt: &Hash) -> bool {
        self.lock().get(receipt).is_some()
    }

    /// Whether this is the verdict that is awaited.
    pub(super) fn is_answered_by(&self, verdict: &Signed<Verdict>) -> bool {
        let said = verdict.payload();
        let work = (said.auditee, said.job, said.attempt, said.stage);
        self.lock().get(&said.receipt) == Some(&(verdict.signer(), work))
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

    /// Hands an order to the first of these that takes it; false if none does in time.
    pub(super) async fn hand_over(&self, handed: &Handed, order: &AuditOrder, auditors: Vec<NodeId>) -> bool {
        let Some(receipt) = order.receipt() else { return false };
        let handing = async {
            for auditor in auditors {
                let request = Request::Audit(Box::new(order.clone()));
                // Noted before: its verdict may be here before its answer.
                handed.note(receipt, auditor);
                match self.swarm.request(auditor, request, HANDING_OVER).await {
                    Ok(Response::Ack) => return true,
                    Ok(_) | Err(_) => debug!(%auditor, "would not audit"),
                }
            }
            false
        };
        let taken = tokio::time::timeout(ALL, handing).await.unwrap_or(false);
        if !taken {
            handed.take_back(&receipt.digest());
        }
        taken
    }
}
