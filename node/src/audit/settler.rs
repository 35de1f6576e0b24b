//! The payer's part of a job: its receipts are examined, its audits drawn, its debts taken on. Nothing here waits for
//! a peer, so that whoever stalls an audit keeps nobody else from being paid.

use std::sync::Arc;
use std::time::{Duration, Instant};

use consortium_ledger::accounts::{Book, Owner};
use consortium_protocol::envelope::Signed;
use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::audit::{AuditOrder, Nonce, StageReceipt};
use consortium_protocol::wire::job::Receipts;
use consortium_protocol::wire::pay::Part;
use consortium_protocol::wire::pipeline::SessionOpen;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::account::{Expected, Settlement, examine};
use super::auditor::{AuditTask, Audits};
use super::owing::Owing;
use crate::clock::wall_ms;
use crate::storage::{JobReceipts, Owed};

pub(super) struct Settler {
    pub(super) task: Arc<AuditTask>,
    pub(super) audits: Audits,
    pub(super) owing: Owing,
}

impl Settler {
    pub(super) async fn run(self, mut queue: mpsc::Receiver<Box<Settlement>>, stop: CancellationToken) {
        self.recover().await;
        loop {
            let settlement = tokio::select! {
                () = stop.cancelled() => return,
                settlement = queue.recv() => match settlement {
                    Some(settlement) => settlement,
                    None => return,
                },
            };
            // Not cut off by `stop`: what was answered is written down.
            self.settle(*settlement).await;
        }
    }

    /// Checks the receipts of a job, and draws which of its stages are audited.
    async fn settle(&self, settlement: Settlement) {
        let me = self.task.swarm.me();
        let serving = self.task.serving.iter().find(|serving| serving.model.name == settlement.request.model).cloned();
        let prompt = settlement.request.prompt.clone();
        let known = match serving {
            Some(serving) => tokio::task::spawn_blocking(move || serving.tokens(&prompt).ok()).await.ok().flatten(),
            None => None,
        };
        let job = settlement.request.job;
        let expected = Expected {
            payer: me,
            cluster: self.task.cluster,
            model: self.task.model(&settlement.request.model, &settlement.master),
            prompt: known,
        };
        if let Err(refused) = examine(&settlement, &expected) {
            warn!(%job, stage = refused.stage, reason = refused.reason, "receipts are not accepted: nobody is paid for the job");
            return;
        }
        let Settlement { nonce, receipts, account, .. } = settlement;
        if let Some(stage) = receipts.chain.iter().position(|receipt| !self.task.can_judge(receipt.payload())) {
            warn!(%job, stage, "receipts of a numeric class that cannot be audited: nobody is paid for the job");
            return;
        }
        let stages = self.owed(&receipts, nonce, &account.owner());
        let audits: Vec<AuditOrder> = stages.iter().filter(|owed| owed.drawn).map(|owed| owed.audit.clone()).collect();
        debug!(%job, stages = receipts.chain.len(), audits = audits.len(), "receipts accepted");
        let kept = JobReceipts { at_ms: wall_ms(), order: receipts.order.clone(), chain: receipts.chain.clone() };
        if let Err(error) = self.task.storage.save_receipts(&kept).await {
            warn!(%error, "receipts could not be kept");
        }
        let positions = receipts.chain.first().map_or(0, |receipt| receipt.payload().positions);
        match self.overcharging(receipts.order.payload()) {
            None if !account.covers(receipts.order.payload(), positions) => {
                warn!(%job, "the order costs far more than its key was quoted: nobody is paid for the job");
            }
            None => self.owing.accept(stages).await,
            Some(node) => {
                warn!(%job, %node, "the master's order pays more than the node asks: nobody is paid for the job");
            }
        }
        self.task.settled.note(AuditOrder { order: receipts.order, chain: receipts.chain, nonce });
        for audit in audits {
            self.audits.order_own(audit, Instant::now());
        }
    }

    /// What is owed to each stage of a job and to its master, to this node itself only by others; some of what stages did
    /// is drawn for an audit.
    fn owed(&self, receipts: &Receipts, nonce: Nonce, account: &Owner) -> Vec<Owed> {
        let (me, at_ms) = (self.task.swarm.me(), wall_ms());
        let stage = |(stage, receipt): (usize, &Signed<StageReceipt>)| {
            let node = receipt.signer();
            let drawn = node != me && nonce.draw(&receipt.digest()) < self.task.standings.audit_rate(&node);
            let chain = receipts.chain[..=stage].to_vec();
            let audit = AuditOrder { order: receipts.order.clone(), chain, nonce };
            let paid = node != me || *account != Owner::Own(Book::Spent);
            paid.then(|| Owed { audit, part: Part::Stage, account: account.clone(), drawn, at_ms })
        };
        let order = receipts.order.payload();
        let audit = AuditOrder { order: receipts.order.clone(), chain: receipts.chain.clone(), nonce };
        let driving = Owed { audit, part: Part::Driving, account: account.clone(), drawn: false, at_ms };
        let asks = order.master_fee > Msat::ZERO && (order.driver != me || *account != Owner::Own(Book::Spent));
        receipts.chain.iter().enumerate().filter_map(stage).chain(asks.then_some(driving)).collect()
    }

    /// Takes up what a crash or a restart interrupted.
    async fn recover(&self) {
        let recovered = self.owing.recover().await;
        // Not before what was answered is booked: it is charged to what was reserved.
        self.task.standings.release_reservations().await;
        let due = match recovered {
            Ok(due) => due,
            Err(error) => return warn!(%error, "audits that were due before the restart are lost"),
        };
        for owed in due {
            let age = Duration::from_millis(wall_ms().saturating_sub(owed.at_ms));
            self.audits.order_own(owed.audit, Instant::now().checked_sub(age).unwrap_or_else(Instant::now));
        }
    }

    /// The master, or the first node of a route, that is to be paid more than it asked of late; a node that is not known asks nothing.
    fn overcharging(&self, open: &SessionOpen) -> Option<NodeId> {
        let mut paid = open.route.iter().map(|hop| hop.node).zip(&open.prices);
        let now = Instant::now();
        if open.master_fee > self.task.advertised.highest_fee(&open.driver, now) {
            return Some(open.driver);
        }
        paid.find(|(node, price)| **price > self.task.advertised.highest(node, now)).map(|(node, _)| node)
    }
}
