//! The auditor: one audit after the other, while the stages have nothing else to do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use consortium_inference::audit::classes::own_class;
use consortium_inference::audit::compare;
use consortium_inference::audit::thresholds::Thresholds;
use consortium_ledger::accounts::{Book, Owner};
use consortium_protocol::cluster::ClusterId;
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::{NodeId, RootKey};
use consortium_protocol::wire::audit::{AuditOrder, Nonce, Outcome, StageReceipt};
use consortium_protocol::wire::fact::Fact;
use consortium_protocol::wire::job::Receipts;
use consortium_protocol::wire::pipeline::SessionOpen;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::account::{Expected, Settlement, examine};
use super::check::{Finding, check};
use super::handing::Handed;
use super::opening::{self, Opened};
use super::owing::Owing;
use super::proof::{Proof, Proofs};
use super::settled::SettledJobs;
use super::standings::Standings;
use super::witness::{Heard, Witness};
use crate::clock::wall_ms;
use crate::cluster::ClusterView;
use crate::library::Library;
use crate::prices::Advertised;
use crate::serving::Serving;
use crate::shards::Shards;
use crate::storage::{JobReceipts, Owed, Storage};
use crate::swarm::SwarmHandle;

/// Audits, settlements and verdicts that may wait.
const QUEUE: usize = 256;
/// An audit begins after this time though the stages are busy.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// A stage that shows nothing so long after its audit was drawn may have let go of it: sessions are kept for
/// [`super::spool::KEEP`], and within a bound of memory.
const LATE: Duration = Duration::from_secs(60);
/// A stage that is away when its audit was drawn is waited for so long: for most of the time that sessions are kept.
const RETURN: Duration = Duration::from_secs(480);
/// The pause before it is looked for again.
const AWAY: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);
/// How often a stage is asked for an opening, and the pause between.
const ASKED: u32 = 3;
const PAUSE: Duration = Duration::from_secs(2);
/// Receipts remembered as audited.
const MAX_AUDITED: usize = 16_384;

enum Work {
    Settle(Box<Settlement>),
    Audit(Due),
}

/// An audit to be done.
struct Due {
    order: AuditOrder,
    /// When it was drawn.
    asked: Instant,
    /// Whether its stage was away when it was to be asked.
    missed: bool,
}

/// Cloneable handle to the auditor.
#[derive(Clone)]
pub struct Audits {
    work: mpsc::Sender<Work>,
    /// Apart from the work: a proof that takes long to check must not keep receipts waiting.
    heard: mpsc::Sender<Heard>,
    library: Library,
}

impl Audits {
    /// Takes the receipts of one of this node's own jobs.
    pub fn settle(&self, settlement: Settlement) {
        put(&self.work, Work::Settle(Box::new(settlement)), "receipts");
    }

    /// Takes another's audit; false when there is no room, or this node has not the model.
    pub fn order(&self, order: AuditOrder) -> bool {
        let able = order.receipt().is_some_and(|receipt| self.library.get(&receipt.payload().model).is_some());
        able && put(&self.work, Work::Audit(Due { order, asked: Instant::now(), missed: false }), "an order")
    }

    /// Takes an audit of a job of this node, which was settled at that time; false when there is no room.
    pub fn order_own(&self, order: AuditOrder, settled: Instant) -> bool {
        put(&self.work, Work::Audit(Due { order, asked: settled, missed: false }), "an order")
    }

    /// Takes what was heard of others' audits and journals; false when there is no room.
    pub fn heard(&self, heard: Heard) -> bool {
        put(&self.heard, heard, "what it heard")
    }
}

fn put<T>(queue: &mpsc::Sender<T>, work: T, what: &str) -> bool {
    let taken = queue.try_send(work).is_ok();
    if !taken {
        warn!("the auditor has too much to do and drops {what}");
    }
    taken
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
    /// What the members asked of late.
    pub advertised: Advertised,
    /// How far honest numbers lie apart.
    pub thresholds: Arc<Thresholds>,
    /// Who audits this node's jobs, before all others; none leaves it to this node and the members.
    pub auditors: Vec<NodeId>,
    /// Where settled jobs are remembered.
    pub settled: SettledJobs,
}

impl AuditTask {
    /// Spawns the task; it ends with `stop`.
    #[must_use]
    pub fn spawn(self, stop: CancellationToken) -> Audits {
        let (work, queue) = mpsc::channel(QUEUE);
        let (heard, rumours) = mpsc::channel(QUEUE);
        let audits = Audits { work, heard, library: self.library.clone() };
        let task = Arc::new(self);
        let handed = Handed::default();
        let owing = Owing::new(task.storage.clone(), task.standings.clone());
        let telling = (task.swarm.clone(), Arc::clone(&task.key), task.view.clone());
        tokio::spawn(owing.clone().tell(telling.0, telling.1, telling.2, stop.clone()));
        tokio::spawn(Witness::new(Arc::clone(&task), handed.clone(), owing.clone()).run(rumours, stop.clone()));
        let running = Running { task, audited: BTreeSet::new(), handed, audits: audits.clone(), owing };
        tokio::spawn(running.run(queue, stop));
        audits
    }

    /// Waits until the stages are idle, but not for ever.
    pub(super) async fn wait_for_quiet(&self, patience: Duration) {
        let quiet = async {
            while self.shards.sessions() > 0 {
                tokio::time::sleep(POLL).await;
            }
        };
        let _busy = tokio::time::timeout(patience, quiet).await;
    }

    pub(super) fn is_member(&self, node: &NodeId) -> bool {
        self.view.borrow().members.contains_key(node)
    }

    /// Whether a node gives signs of life as a member, or stands in connection.
    async fn is_present(&self, node: &NodeId) -> bool {
        if let Some(member) = self.view.borrow().members.get(node) {
            return !member.suspect;
        }
        self.swarm.peers().await.is_ok_and(|peers| peers.iter().any(|(peer, _)| peer == node))
    }

    /// Digest and layers of a model by its name: this node's own, else what the master says it has.
    fn model(&self, name: &str, master: &NodeId) -> Option<(Hash, u16)> {
        let own = self.serving.iter().map(|serving| &serving.model).find(|model| model.name == name).cloned();
        let said = || {
            let view = self.view.borrow();
            view.members.get(master)?.heartbeat.models.iter().find(|model| model.name == name).cloned()
        };
        own.or_else(said).map(|model| (model.digest, model.layers))
    }

    /// Whether it is known how far honest numbers of a stage's class lie apart.
    fn can_judge(&self, receipt: &StageReceipt) -> bool {
        let layers = u16::try_from(receipt.range.count()).unwrap_or(u16::MAX);
        self.thresholds.limits(own_class(), receipt.class, layers).is_some()
    }

    pub(super) async fn spread(&self, fact: Fact) {
        if self.swarm.publish(fact).await.is_err() {
            debug!("the swarm has ended");
        }
    }
}

struct Running {
    task: Arc<AuditTask>,
    /// Receipts that were audited here: nobody makes this node do it twice.
    audited: BTreeSet<Hash>,
    handed: Handed,
    audits: Audits,
    owing: Owing,
}

impl Running {
    async fn run(mut self, mut queue: mpsc::Receiver<Work>, stop: CancellationToken) {
        self.recover().await;
        loop {
            let work = tokio::select! {
                () = stop.cancelled() => return,
                work = queue.recv() => match work {
                    Some(work) => work,
                    None => return,
                },
            };
            // With many waiting there is no time to wait for a quiet moment.
            let patience = PATIENCE / (1 + u32::try_from(queue.len()).unwrap_or(u32::MAX - 1));
            let working = async {
                match work {
                    Work::Settle(settlement) => self.settle(*settlement).await,
                    Work::Audit(due) => self.audit(due, patience).await,
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

    /// What is owed to each stage of a job, to this node itself only by others; some of it is drawn for an audit.
    fn owed(&self, receipts: &Receipts, nonce: Nonce, account: &Owner) -> Vec<Owed> {
        let (me, at_ms) = (self.task.swarm.me(), wall_ms());
        let stage = |(stage, receipt): (usize, &Signed<StageReceipt>)| {
            let node = receipt.signer();
            let drawn = node != me && nonce.draw(&receipt.digest()) < self.task.standings.audit_rate(&node);
            let chain = receipts.chain[..=stage].to_vec();
            let audit = AuditOrder { order: receipts.order.clone(), chain, nonce };
            let paid = node != me || *account != Owner::Own(Book::Spent);
            paid.then(|| Owed { audit, account: account.clone(), drawn, at_ms })
        };
        receipts.chain.iter().enumerate().filter_map(stage).collect()
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

    /// The first node of a route that is to be paid more than it asked of late; a node that is not known asks nothing.
    fn overcharging(&self, open: &SessionOpen) -> Option<NodeId> {
        let mut paid = open.route.iter().map(|hop| hop.node).zip(&open.prices);
        let now = Instant::now();
        paid.find(|(node, price)| **price > self.task.advertised.highest(node, now)).map(|(node, _)| node)
    }

    /// Audits a stage, or has another do it: one that was named, or a member if this node has not the model.
    async fn audit(&mut self, due: Due, patience: Duration) {
        let Some(receipt) = due.order.receipt().cloned() else { return };
        if receipt.payload().cluster != self.task.cluster || receipt.signer() == self.task.swarm.me() {
            return;
        }
        let own = due.order.order.payload().payer == self.task.swarm.me();
        if own && due.asked.elapsed() < RETURN && !self.task.is_present(&receipt.signer()).await {
            return self.ask_later(due);
        }
        let Due { order, asked, missed } = due;
        if !self.audited.insert(receipt.digest()) && !own {
            return debug!("a receipt was audited before");
        }
        if self.audited.len() > MAX_AUDITED {
            self.audited.pop_first();
        }
        if own && self.task.hand_over(&self.handed, &order, self.task.named_auditors(&order)).await {
            return;
        }
        let Some((_, dir)) = self.task.library.get(&receipt.payload().model) else {
            if !self.task.hand_over(&self.handed, &order, self.task.able_auditors(&order)).await {
                warn!(job = %receipt.payload().job, "no member with the model could be found to audit a stage");
            }
            return;
        };
        let dir = Arc::clone(dir);
        self.task.wait_for_quiet(patience).await;
        let width = u32::try_from(dir.config().hidden_size).unwrap_or(u32::MAX);
        let (finding, proof) = match self.fetch(&order, width).await {
            // Whoever asks for an audit of another's job may have come too late, or keep the stage from answering.
            Err(reason) if !own => return debug!(reason, "a stage showed nothing for another's job"),
            // This node was too busy to ask in time; that is not the stage's fault.
            Err(reason) if !missed && asked.elapsed() > LATE => {
                return warn!(reason, "asked a stage too late for its opening");
            }
            Err(reason) => (Finding::withheld(reason), None),
            Ok(opened) => {
                let (proof, thresholds) = (Proof { order, opened }, Arc::clone(&self.task.thresholds));
                let proofs = self.task.proofs.clone();
                let checking = tokio::task::spawn_blocking(move || {
                    let finding = check(&proof, &dir, &thresholds).map_err(|error| error.to_string())?;
                    // There is no verdict of fraud without a proof that is kept.
                    let kept = match finding.outcome {
                        Outcome::Fraud => Some(proofs.keep(&proof.encode()).map_err(|error| error.to_string())?),
                        _ => None,
                    };
                    Ok::<_, String>((finding, kept))
                });
                match checking.await {
                    Ok(Ok(found)) => found,
                    Ok(Err(error)) => return warn!(%error, "an audit could not be done"),
                    Err(error) => return warn!(%error, "an audit broke off"),
                }
            }
        };
        self.give_verdict(&receipt, &finding, proof, own).await;
    }

    /// Puts an audit off whose stage is away: it may have crashed, and keeps its sessions over that.
    fn ask_later(&self, due: Due) {
        let work = self.audits.work.clone();
        tokio::spawn(async move {
            tokio::time::sleep(AWAY).await;
            put(&work, Work::Audit(Due { missed: true, ..due }), "an audit that was put off");
        });
    }

    async fn give_verdict(
        &mut self,
        receipt: &Signed<StageReceipt>,
        finding: &Finding,
        proof: Option<Hash>,
        own: bool,
    ) {
        let said = receipt.payload();
        let auditee = receipt.signer();
        if finding.given > compare::Finding::Inconclusive {
            warn!(job = %said.job, term = said.term, "the master of this term gave tokens that no stage could have drawn");
        }
        info!(
            job = %said.job, stage = said.stage, node = %auditee, outcome = ?finding.outcome,
            blocks = finding.blocks, exact = finding.exact, detail = finding.detail, "audited"
        );
        let verdict = finding.verdict(receipt, proof, wall_ms());
        let verdict = Signed::sign(&self.task.key, verdict);
        // Praise that somebody else ordered is no evidence of this node's own: it could be ordered by the praised.
        if own || finding.outcome == Outcome::Fraud {
            self.task.standings.judged(&verdict).await;
        }
        if own {
            self.owing.judged(&verdict).await;
        }
        self.task.spread(Fact::Verdict(verdict)).await;
    }

    /// Asks the stage a few times: a busy one is not a dishonest one.
    async fn fetch(&self, order: &AuditOrder, width: u32) -> Result<Opened, String> {
        let mut last = String::new();
        for attempt in 0..ASKED {
            if attempt > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            match opening::fetch(&self.task.swarm, order, Some(width)).await {
                Ok(opened) => return Ok(opened),
                Err(reason) => last = reason,
            }
        }
        Err(last)
    }
}
