//! The auditor: one audit after the other, while the stages have nothing else to do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use consortium_inference::audit::thresholds::Thresholds;
use consortium_protocol::cluster::ClusterId;
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::{NodeId, RootKey};
use consortium_protocol::wire::audit::{AuditOrder, Outcome, Verdict};
use consortium_protocol::wire::fact::Fact;
use consortium_protocol::wire::ledger::{Equivocation, Rebuttal, TreeHead};
use consortium_protocol::wire::pipeline::SessionOpen;
use consortium_protocol::wire::rpc::Request;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::account::{Settlement, examine};
use super::check::{Finding, check};
use super::proof::{Proof, Proofs};
use super::standings::Standings;
use super::{evidence, opening};
use crate::clock::wall_ms;
use crate::cluster::ClusterView;
use crate::library::Library;
use crate::serving::Serving;
use crate::shards::Shards;
use crate::storage::{JobReceipts, Storage};
use crate::swarm::SwarmHandle;

/// Audits, settlements and verdicts that may wait.
const QUEUE: usize = 256;
/// An audit begins after this time though the stages are busy.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(100);
/// Time for another auditor to take an order.
const HANDING_OVER: Duration = Duration::from_secs(5);
/// Proofs remembered as seen.
const MAX_SEEN: usize = 4096;

enum Work {
    Settle(Settlement),
    Audit(AuditOrder),
    Heard(Signed<Verdict>),
    Rebutted(Signed<Rebuttal>),
    Head(Signed<TreeHead>),
    Equivocated(Box<Equivocation>),
}

/// Cloneable handle to the auditor.
#[derive(Clone)]
pub struct Audits {
    work: mpsc::Sender<Work>,
}

impl Audits {
    /// Takes the receipts of one of this node's own jobs.
    pub fn settle(&self, settlement: Settlement) {
        self.put(Work::Settle(settlement), "receipts");
    }

    /// Takes an audit that another payer asks for; false when there is no room.
    pub fn order(&self, order: AuditOrder) -> bool {
        self.put(Work::Audit(order), "an order")
    }

    /// Takes a verdict that was heard.
    pub fn heard(&self, verdict: Signed<Verdict>) {
        self.put(Work::Heard(verdict), "a verdict");
    }

    /// Takes the word that an accusation does not hold.
    pub fn rebutted(&self, rebuttal: Signed<Rebuttal>) {
        self.put(Work::Rebutted(rebuttal), "a rebuttal");
    }

    /// Takes a head of another's journal.
    pub fn head(&self, head: Signed<TreeHead>) {
        self.put(Work::Head(head), "a head");
    }

    /// Takes a proof that a node said two things about its journal.
    pub fn equivocated(&self, proof: Box<Equivocation>) {
        self.put(Work::Equivocated(proof), "an equivocation");
    }

    fn put(&self, work: Work, what: &str) -> bool {
        let taken = self.work.try_send(work).is_ok();
        if !taken {
            warn!("the auditor has too much to do and drops {what}");
        }
        taken
    }
}

/// What the auditor needs.
pub struct AuditTask {
    /// Signs verdicts.
    pub key: Arc<RootKey>,
    /// The cluster.
    pub cluster: ClusterId,
    /// The swarm.
    pub swarm: SwarmHandle,
    /// Models to recompute with.
    pub library: Library,
    /// Models whose prompts this node can put into tokens.
    pub serving: Vec<Arc<Serving>>,
    /// Tells when the stages are idle.
    pub shards: Shards,
    /// The cluster as seen here.
    pub view: watch::Receiver<ClusterView>,
    /// Where receipts are kept.
    pub storage: Storage,
    /// Where fraud proofs are kept.
    pub proofs: Proofs,
    /// What is thought of the others.
    pub standings: Standings,
    /// How far honest numbers lie apart.
    pub thresholds: Arc<Thresholds>,
}

impl AuditTask {
    /// Spawns the task; it ends with `stop`.
    #[must_use]
    pub fn spawn(self, stop: CancellationToken) -> Audits {
        let (work, queue) = mpsc::channel(QUEUE);
        let audits = Audits { work };
        tokio::spawn(Running { task: self, seen: BTreeSet::new(), audits: audits.clone() }.run(queue, stop));
        audits
    }
}

struct Running {
    task: AuditTask,
    /// Fraud proofs that were checked or refused.
    seen: BTreeSet<Hash>,
    audits: Audits,
}

impl Running {
    async fn run(mut self, mut queue: mpsc::Receiver<Work>, stop: CancellationToken) {
        loop {
            let work = tokio::select! {
                () = stop.cancelled() => return,
                work = queue.recv() => match work {
                    Some(work) => work,
                    None => return,
                },
            };
            let working = async {
                match work {
                    Work::Settle(settlement) => self.settle(settlement).await,
                    Work::Audit(order) => self.audit(order).await,
                    Work::Heard(verdict) => self.heard(verdict).await,
                    Work::Rebutted(rebuttal) => self.task.standings.rebutted(rebuttal).await,
                    Work::Head(head) => {
                        if let Some(proof) = self.task.standings.head(head).await {
                            self.spread(Fact::Equivocation(proof)).await;
                        }
                    }
                    Work::Equivocated(proof) => self.task.standings.equivocated(proof).await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = working => {}
            }
        }
    }

    /// Checks the receipts of a job, and draws which of its stages are audited.
    async fn settle(&mut self, settlement: Settlement) {
        let me = self.task.swarm.me();
        let serving = self.task.serving.iter().find(|serving| serving.model.name == settlement.request.model).cloned();
        let prompt = settlement.request.prompt.clone();
        let known = match serving {
            Some(serving) => tokio::task::spawn_blocking(move || serving.tokens(&prompt).ok()).await.ok().flatten(),
            None => None,
        };
        let job = settlement.request.job;
        if let Err(refused) = examine(&settlement, me, known.as_deref()) {
            warn!(%job, stage = refused.stage, reason = refused.reason, "receipts are not accepted: nobody is paid for the job");
            return;
        }
        let Settlement { nonce, receipts, .. } = settlement;
        if let Some(node) = self.overcharging(receipts.order.payload()) {
            warn!(%job, %node, "the master's order pays more than the node asks: nobody is paid for the job");
            return;
        }
        let drawn = receipts.chain.iter().enumerate().filter(|(_, receipt)| {
            let node = receipt.signer();
            node != me && nonce.draw(&receipt.digest()) < self.task.standings.audit_rate(&node)
        });
        let drawn: BTreeSet<usize> = drawn.map(|(stage, _)| stage).collect();
        let audit = |stage: &usize| AuditOrder {
            order: receipts.order.clone(),
            chain: receipts.chain[..=*stage].to_vec(),
            nonce,
        };
        let orders: Vec<AuditOrder> = drawn.iter().map(audit).collect();
        debug!(%job, stages = receipts.chain.len(), audits = orders.len(), "receipts accepted");
        let kept = JobReceipts { at_ms: wall_ms(), order: receipts.order.clone(), chain: receipts.chain.clone() };
        if let Err(error) = self.task.storage.save_receipts(&kept).await {
            warn!(%error, "receipts could not be kept");
        }
        self.task.standings.worked(receipts.order.payload(), &receipts.chain, &drawn).await;
        for order in orders {
            self.audits.order(order);
        }
    }

    /// The first node of a route that is to be paid more than it says it asks.
    fn overcharging(&self, open: &SessionOpen) -> Option<NodeId> {
        let view = self.task.view.borrow();
        let asks = |node: &NodeId| Some(view.members.get(node)?.heartbeat.price_per_layer_token);
        let mut paid = open.route.iter().map(|hop| hop.node).zip(&open.prices);
        paid.find(|(node, price)| asks(node).is_some_and(|asked| **price > asked)).map(|(node, _)| node)
    }

    /// Audits a stage, or has another do it if this node has not the model.
    async fn audit(&mut self, order: AuditOrder) {
        let Some(receipt) = order.receipt().cloned() else { return };
        if receipt.payload().cluster != self.task.cluster || receipt.signer() == self.task.swarm.me() {
            return;
        }
        let Some((_, dir)) = self.task.library.get(&receipt.payload().model) else {
            return self.hand_over(order).await;
        };
        let dir = Arc::clone(dir);
        self.wait_for_quiet().await;
        let width = u32::try_from(dir.config().hidden_size).unwrap_or(u32::MAX);
        let (finding, proof) = match opening::fetch(&self.task.swarm, &order, width).await {
            Err(reason) => (Finding::withheld(reason), None),
            Ok(opened) => {
                let (proof, thresholds) = (Proof { order, opened }, Arc::clone(&self.task.thresholds));
                let checking = tokio::task::spawn_blocking(move || {
                    let finding = check(&proof, &dir, &thresholds)?;
                    let bytes = (finding.outcome == Outcome::Fraud).then(|| proof.encode());
                    Ok::<_, super::check::CheckError>((finding, bytes))
                });
                match checking.await {
                    Ok(Ok(found)) => found,
                    Ok(Err(error)) => return warn!(%error, "an audit could not be done"),
                    Err(error) => return warn!(%error, "an audit broke off"),
                }
            }
        };
        let proof = match proof.map(|bytes| self.task.proofs.keep(&bytes)) {
            None => None,
            Some(Ok(digest)) => Some(digest),
            Some(Err(error)) => return warn!(%error, "a fraud proof could not be kept; there is no verdict without it"),
        };
        self.give_verdict(&receipt, &finding, proof).await;
    }

    async fn give_verdict(
        &mut self,
        receipt: &Signed<consortium_protocol::wire::audit::StageReceipt>,
        finding: &Finding,
        proof: Option<Hash>,
    ) {
        let said = receipt.payload();
        let auditee = receipt.signer();
        info!(
            job = %said.job, stage = said.stage, node = %auditee, outcome = ?finding.outcome,
            blocks = finding.blocks, exact = finding.exact, detail = finding.detail, "audited"
        );
        let verdict = Verdict {
            cluster: said.cluster,
            auditee,
            job: said.job,
            attempt: said.attempt,
            stage: said.stage,
            receipt: receipt.digest(),
            outcome: finding.outcome,
            blocks: finding.blocks,
            exact: finding.exact,
            class: finding.class,
            proof,
            at_ms: wall_ms(),
        };
        let verdict = Signed::sign(&self.task.key, verdict);
        if let Some(proof) = proof {
            self.remember(proof);
        }
        self.task.standings.judged(&verdict).await;
        self.spread(Fact::Verdict(verdict)).await;
    }

    /// Waits until the stages are idle, but not for ever.
    async fn wait_for_quiet(&self) {
        let quiet = async {
            while self.task.shards.sessions() > 0 {
                tokio::time::sleep(POLL).await;
            }
        };
        let _busy = tokio::time::timeout(PATIENCE, quiet).await;
    }

    async fn hand_over(&self, order: AuditOrder) {
        let Some(receipt) = order.receipt() else { return };
        let (auditee, model) = (receipt.signer(), receipt.payload().model);
        let able: Vec<NodeId> = {
            let view = self.task.view.borrow();
            let has = |node: &NodeId| {
                view.members
                    .get(node)
                    .is_some_and(|m| !m.suspect && m.heartbeat.models.iter().any(|r| r.digest == model))
            };
            let others = view.members.keys().filter(|node| **node != auditee && **node != self.task.swarm.me());
            // Those that had no part in the job first.
            let (on_route, off_route): (Vec<NodeId>, Vec<NodeId>) = others
                .filter(|node| has(node))
                .copied()
                .partition(|node| order.order.payload().route.iter().any(|hop| hop.node == *node));
            off_route.into_iter().chain(on_route).collect()
        };
        for auditor in able {
            let request = Request::Audit(Box::new(order.clone()));
            match self.task.swarm.request(auditor, request, HANDING_OVER).await {
                Ok(consortium_protocol::wire::rpc::Response::Ack) => return,
                Ok(_) | Err(_) => debug!(%auditor, "would not audit"),
            }
        }
        warn!(job = %receipt.payload().job, "no member with the model could be found to audit a stage");
    }

    /// Takes another's verdict into account. A fraud counts when this node has seen the proof hold.
    async fn heard(&mut self, verdict: Signed<Verdict>) {
        let said = verdict.payload();
        let accuser = verdict.signer();
        if said.cluster != self.task.cluster || accuser == self.task.swarm.me() || accuser == said.auditee {
            return;
        }
        let (Outcome::Fraud, Some(digest)) = (said.outcome, said.proof) else {
            return self.task.standings.judged(&verdict).await;
        };
        if said.auditee == self.task.swarm.me() {
            return warn!(%accuser, job = %said.job, "this node is accused of fraud");
        }
        // One proof shuts a node out; its other jobs are for their payers to judge.
        if self.seen.contains(&digest) || self.task.standings.is_banned(&said.auditee) {
            return;
        }
        self.remember(digest);
        match self.holds(&verdict, digest).await {
            Ok(true) => {
                info!(node = %said.auditee, %accuser, job = %said.job, "a fraud proof holds");
                // What it saw proved it can vouch for itself.
                let said = Verdict { at_ms: wall_ms(), ..said.clone() };
                let verdict = Signed::sign(&self.task.key, said);
                self.task.standings.judged(&verdict).await;
                self.spread(Fact::Verdict(verdict)).await;
            }
            Ok(false) => {
                warn!(%accuser, node = %said.auditee, job = %said.job, "a fraud proof does not hold: a false accusation");
                if let Some(rebuttal) = self.task.standings.rebut(&verdict).await {
                    self.spread(Fact::Rebuttal(rebuttal)).await;
                }
            }
            Err(reason) => debug!(%accuser, reason, "a fraud proof could not be checked"),
        }
    }

    async fn holds(&self, verdict: &Signed<Verdict>, digest: Hash) -> Result<bool, String> {
        let bytes = evidence::fetch(&self.task.swarm, verdict.signer(), &digest).await?;
        let Ok(proof) = Proof::decode(&bytes).await else { return Ok(false) };
        let Some(receipt) = proof.order.receipt() else { return Ok(false) };
        if (receipt.digest(), receipt.signer()) != (verdict.payload().receipt, verdict.payload().auditee) {
            return Ok(false);
        }
        let model = receipt.payload().model;
        let (_, dir) = self.task.library.get(&model).ok_or("this node has not the model")?;
        let (dir, thresholds) = (Arc::clone(dir), Arc::clone(&self.task.thresholds));
        self.wait_for_quiet().await;
        let checking = tokio::task::spawn_blocking(move || check(&proof, &dir, &thresholds));
        let finding = checking.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        if finding.outcome == Outcome::Fraud {
            // Others can have it from here as well.
            self.task.proofs.keep(&bytes).map_err(|error| error.to_string())?;
        }
        Ok(finding.outcome == Outcome::Fraud)
    }

    async fn spread(&self, fact: Fact) {
        if self.task.swarm.publish(fact).await.is_err() {
            debug!("the swarm has ended");
        }
    }

    fn remember(&mut self, proof: Hash) {
        if self.seen.len() >= MAX_SEEN {
            self.seen.clear();
        }
        self.seen.insert(proof);
    }
}
