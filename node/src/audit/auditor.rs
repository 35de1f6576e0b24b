//! The auditor: one audit after the other, while the stages have nothing else to do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use consortium_inference::audit::classes::own_class;
use consortium_inference::audit::compare;
use consortium_inference::audit::thresholds::Thresholds;
use consortium_inference::model_dir::ModelDir;
use consortium_protocol::cluster::ClusterId;
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::{NodeId, RootKey};
use consortium_protocol::wire::audit::{AuditOrder, Outcome, StageReceipt};
use consortium_protocol::wire::fact::Fact;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::account::Settlement;
use super::check::{Finding, check};
use super::handing::Handed;
use super::opening::{self, Opened};
use super::owing::Owing;
use super::proof::{Proof, Proofs};
use super::recent::Recent;
use super::settled::SettledJobs;
use super::settler::Settler;
use super::spool::KEEP;
use super::standings::Standings;
use super::witness::{Heard, Witness};
use crate::clock::wall_ms;
use crate::cluster::ClusterView;
use crate::library::Library;
use crate::prices::Advertised;
use crate::serving::Serving;
use crate::shards::Shards;
use crate::storage::Storage;
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
/// How often a stage is asked for an opening, the pause between, and the time for all of it.
const ASKED: u32 = 3;
const PAUSE: Duration = Duration::from_secs(2);
const FETCHING: Duration = Duration::from_secs(90);
/// The time for a stage that showed nothing of late.
const AGAIN: Duration = Duration::from_secs(10);
/// An auditor that took an order has this time for its verdict, before the payer looks after the stage itself.
const RECLAIM: Duration = Duration::from_secs(180);
/// Audits of others that may wait.
const OTHERS: usize = 32;
/// Receipts remembered as audited.
const MAX_AUDITED: usize = 16_384;

/// An audit to be done.
struct Due {
    order: AuditOrder,
    /// When it was drawn.
    asked: Instant,
    /// Whether its stage was away when it was to be asked.
    missed: bool,
    /// Whether it was handed to another, from whom nothing was heard.
    handed: bool,
}

impl Due {
    fn new(order: AuditOrder, asked: Instant) -> Self {
        Self { order, asked, missed: false, handed: false }
    }
}

/// Cloneable handle to the auditor. Each kind of work has a queue of its own, so that none keeps another waiting.
#[derive(Clone)]
pub struct Audits {
    settlements: mpsc::Sender<Box<Settlement>>,
    own: mpsc::Sender<Due>,
    others: mpsc::Sender<Due>,
    heard: mpsc::Sender<Heard>,
    library: Library,
}

impl Audits {
    /// Takes the receipts of one of this node's own jobs.
    pub fn settle(&self, settlement: Settlement) {
        put(&self.settlements, Box::new(settlement), "receipts");
    }

    /// Takes another's audit; false when there is no room, or this node has not the model.
    pub fn order(&self, order: AuditOrder) -> bool {
        let able = order.receipt().is_some_and(|receipt| self.library.get(&receipt.payload().model).is_some());
        able && put(&self.others, Due::new(order, Instant::now()), "an order")
    }

    /// Takes an audit of a job of this node, which was settled at that time; false when there is no room.
    pub fn order_own(&self, order: AuditOrder, settled: Instant) -> bool {
        put(&self.own, Due::new(order, settled), "an order")
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
        let (settlements, settled) = mpsc::channel(QUEUE);
        let (own, own_queue) = mpsc::channel(QUEUE);
        let (others, others_queue) = mpsc::channel(OTHERS);
        let (heard, rumours) = mpsc::channel(QUEUE);
        let audits = Audits { settlements, own, others, heard, library: self.library.clone() };
        let task = Arc::new(self);
        let handed = Handed::default();
        let owing = Owing::new(task.storage.clone(), task.standings.clone());
        let (swarm, key, view) = (task.swarm.clone(), Arc::clone(&task.key), task.view.clone());
        tokio::spawn(owing.clone().tell(swarm, key, view, stop.clone()));
        tokio::spawn(Witness::new(Arc::clone(&task), handed.clone(), owing.clone()).run(rumours, stop.clone()));
        let settler = Settler { task: Arc::clone(&task), audits: audits.clone(), owing: owing.clone() };
        tokio::spawn(settler.run(settled, stop.clone()));
        let running = Running {
            task,
            audited: Recent::new(MAX_AUDITED),
            withheld: BTreeMap::new(),
            handed,
            audits: audits.clone(),
            owing,
        };
        tokio::spawn(running.run(own_queue, others_queue, stop));
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

    /// Whether any other member gives signs of life.
    fn sees_others(&self) -> bool {
        let me = self.swarm.me();
        let view = self.view.borrow();
        view.members.is_empty() || view.members.iter().any(|(node, member)| *node != me && !member.suspect)
    }

    /// Whether a node gives signs of life as a member, or stands in connection.
    async fn is_present(&self, node: &NodeId) -> bool {
        if let Some(member) = self.view.borrow().members.get(node) {
            return !member.suspect;
        }
        self.swarm.peers().await.is_ok_and(|peers| peers.iter().any(|(peer, _)| peer == node))
    }

    /// Digest and layers of a model by its name: this node's own, else what the master says it has.
    pub(super) fn model(&self, name: &str, master: &NodeId) -> Option<(Hash, u16)> {
        let own = self.serving.iter().map(|serving| &serving.model).find(|model| model.name == name).cloned();
        let said = || {
            let view = self.view.borrow();
            view.members.get(master)?.heartbeat.models.iter().find(|model| model.name == name).cloned()
        };
        own.or_else(said).map(|model| (model.digest, model.layers))
    }

    /// Whether it is known how far honest numbers of a stage's class lie apart.
    pub(super) fn can_judge(&self, receipt: &StageReceipt) -> bool {
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
    audited: Recent<()>,
    /// Who showed nothing, and when: they are not waited for long again.
    withheld: BTreeMap<NodeId, Instant>,
    handed: Handed,
    audits: Audits,
    owing: Owing,
}

impl Running {
    async fn run(mut self, mut own: mpsc::Receiver<Due>, mut others: mpsc::Receiver<Due>, stop: CancellationToken) {
        loop {
            let due = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                due = own.recv() => due,
                due = others.recv() => due,
            };
            let Some(due) = due else { return };
            // With many waiting there is no time to wait for a quiet moment.
            let patience = PATIENCE / (1 + u32::try_from(own.len()).unwrap_or(u32::MAX - 1));
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.audit(due, patience) => {}
            }
        }
    }

    /// Audits a stage, or has another do it: one that was named, or a member if this node has not the model.
    async fn audit(&mut self, due: Due, patience: Duration) {
        let Some(receipt) = due.order.receipt().cloned() else { return };
        let (me, node) = (self.task.swarm.me(), receipt.signer());
        if receipt.payload().cluster != self.task.cluster || node == me {
            return;
        }
        let own = due.order.order.payload().payer == me;
        if due.handed && !self.handed.waits_for(&receipt.digest()) {
            return;
        }
        if own && due.asked.elapsed() < RETURN && !self.task.is_present(&node).await {
            return self.ask_later(due);
        }
        if !self.audited.insert(receipt.digest(), ()) && !own {
            return debug!("a receipt was audited before");
        }
        if due.handed {
            return self.reclaim(&receipt, &due).await;
        }
        if own && self.task.hand_over(&self.handed, &due.order, self.task.named_auditors(&due.order)).await {
            return self.reclaim_later(due);
        }
        let Some((_, dir)) = self.task.library.get(&receipt.payload().model) else {
            if !self.task.hand_over(&self.handed, &due.order, self.task.able_auditors(&due.order)).await {
                return warn!(job = %receipt.payload().job, "no member with the model could be found to audit a stage");
            }
            return self.reclaim_later(due);
        };
        let dir = Arc::clone(dir);
        self.task.wait_for_quiet(patience).await;
        let width = u32::try_from(dir.config().hidden_size).unwrap_or(u32::MAX);
        let (finding, proof) = match self.fetch(&due, node, Some(width)).await {
            Shown::Opening(opened) => match self.check(due.order, opened, dir).await {
                Ok(found) => found,
                Err(error) => return warn!(error, "an audit could not be done"),
            },
            // Whoever asks for an audit of another's job may have come too late, or keep the stage from answering.
            Shown::Nothing(reason) if own => (Finding::withheld(reason), None),
            Shown::Nothing(reason) | Shown::Excused(reason) => return warn!(%node, reason, "an audit was not possible"),
        };
        self.give_verdict(&receipt, &finding, proof, own).await;
    }

    /// Checks what a stage showed, on a thread for that. A finding of fraud comes with its proof, which is kept.
    async fn check(
        &self,
        order: AuditOrder,
        opened: Opened,
        dir: Arc<ModelDir>,
    ) -> Result<(Finding, Option<Hash>), String> {
        let (proof, thresholds) = (Proof { order, opened }, Arc::clone(&self.task.thresholds));
        let proofs = self.task.proofs.clone();
        let checking = tokio::task::spawn_blocking(move || {
            let finding = check(&proof, &dir, &thresholds).map_err(|error| error.to_string())?;
            let kept = match finding.outcome {
                Outcome::Fraud => Some(proofs.keep(&proof.encode()).map_err(|error| error.to_string())?),
                _ => None,
            };
            Ok((finding, kept))
        });
        checking.await.map_err(|error| error.to_string())?
    }

    /// Puts an audit off whose stage is away: it may have crashed, and keeps its sessions over that. That it is away
    /// counts only while others are there: it may be this node that is cut off.
    fn ask_later(&self, due: Due) {
        let missed = due.missed || self.task.sees_others();
        self.put_later(Due { missed, ..due }, AWAY);
    }

    /// Looks after an audit that was handed to another.
    fn reclaim_later(&self, due: Due) {
        self.put_later(Due { handed: true, ..due }, RECLAIM);
    }

    fn put_later(&self, due: Due, wait: Duration) {
        let own = self.audits.own.clone();
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            put(&own, due, "an audit that was put off");
        });
    }

    /// An auditor gave no verdict. If the stage shows nothing to the payer either, it is the stage that withholds.
    async fn reclaim(&mut self, receipt: &Signed<StageReceipt>, due: &Due) {
        match self.fetch(due, receipt.signer(), None).await {
            Shown::Nothing(reason) => self.give_verdict(receipt, &Finding::withheld(reason), None, true).await,
            Shown::Opening(_) => warn!(job = %receipt.payload().job, "an auditor that was chosen gave no verdict"),
            Shown::Excused(reason) => debug!(reason, "an audit was not possible"),
        }
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

    /// Asks the stage a few times: a busy one is not a dishonest one. Who showed nothing of late is asked once.
    async fn fetch(&mut self, due: &Due, node: NodeId, width: Option<u32>) -> Shown {
        // Looked at before the stage is asked: it could make this node wait until it is too late.
        let late = !due.missed && !due.handed && due.asked.elapsed() > LATE;
        let kept = due.asked.elapsed() < KEEP - FETCHING;
        self.withheld.retain(|_, since| since.elapsed() < KEEP);
        let (times, deadline) = match self.withheld.contains_key(&node) {
            true => (1, AGAIN),
            false => (ASKED, FETCHING),
        };
        let mut last = String::new();
        let asking = async {
            for attempt in 0..times {
                if attempt > 0 {
                    tokio::time::sleep(PAUSE).await;
                }
                match opening::fetch(&self.task.swarm, &due.order, width).await {
                    Ok(opened) => return Some(opened),
                    Err(reason) => last = reason,
                }
            }
            None
        };
        if let Ok(Some(opened)) = tokio::time::timeout(deadline, asking).await {
            return Shown::Opening(opened);
        }
        let reason = if last.is_empty() { "it took too long".to_owned() } else { last };
        if late || !kept || !self.task.sees_others() {
            return Shown::Excused(format!("{reason}; but it was asked late"));
        }
        self.withheld.insert(node, Instant::now());
        Shown::Nothing(reason)
    }
}

/// What came of asking a stage for its opening.
enum Shown {
    Opening(Opened),
    /// Nothing, and that is the stage's fault.
    Nothing(String),
    /// Nothing, which may be this node's fault.
    Excused(String),
}
