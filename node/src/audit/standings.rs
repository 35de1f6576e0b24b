//! What this node thinks of the others: the ledger's reputation, kept at hand and up to date.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use consortium_ledger::accounts::Owner;
use consortium_ledger::heads::HeadSeen;
use consortium_ledger::journal::Posted;
use consortium_ledger::ledger::{Ledger, LedgerError};
use consortium_ledger::metering::{JobRecord, StageWork, Terms};
use consortium_ledger::reputation::AuditPolicy;
use consortium_ledger::reputation::score::Score;
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::{NodeId, RootKey};
use consortium_protocol::wire::audit::Verdict;
use consortium_protocol::wire::ledger::{Equivocation, Rebuttal, TreeHead};
use consortium_protocol::wire::pay::Part;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::clock::wall_ms;
use crate::cluster::ClusterView;
use crate::storage::Owed;
use crate::swarm::SwarmHandle;

/// Members are looked at this often, for how long they are up.
const WATCH: Duration = Duration::from_secs(10);
/// Evidence that has expired is dropped this often.
const TIDY: Duration = Duration::from_secs(3600);

/// The least time between two times that gossip hears of scores.
const REGARD: Duration = Duration::from_secs(1);

type Scores = Arc<BTreeMap<NodeId, Score>>;

/// Cloneable handle. Reads are from memory, writes go through to the ledger.
#[derive(Clone)]
pub struct Standings {
    ledger: Ledger,
    key: Arc<RootKey>,
    policy: AuditPolicy,
    fee: u16,
    /// Entries of the journal when this life began.
    born: u64,
    scores: watch::Sender<Scores>,
}

/// What gossip makes of a peer: 20 for a perfect score, 0 for a newcomer's, below for less. Who is banned hears no
/// rumours from this node and passes none to it, but is not cut off: that is gossipsub's -40, between its thresholds for
/// gossip (-10) and for publishing (-50).
fn gossip_regard(score: &Score, now_ms: u64) -> f64 {
    use consortium_ledger::reputation::score::NEWCOMER;
    match score.value - NEWCOMER {
        _ if score.ban.holds(now_ms) => -40.0,
        above if above >= 0.0 => 20.0 * above / (1.0 - NEWCOMER),
        below => 5.0 * below / NEWCOMER,
    }
}

impl Standings {
    /// The standings of a ledger. `key` is that of its owner, which takes `fee` thousandths on top of what the workers get
    /// from its API keys.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn open(ledger: Ledger, key: Arc<RootKey>, policy: AuditPolicy, fee: u16) -> Result<Self, LedgerError> {
        let scores = watch::Sender::new(Arc::new(ledger.scores(wall_ms())?));
        let born = ledger.length()?;
        Ok(Self { ledger, key, policy, fee, born, scores })
    }

    /// Has gossip know what is thought of its peers, until `stop`.
    pub async fn weigh_gossip(self, swarm: SwarmHandle, stop: CancellationToken) {
        let mut scores = self.scores.subscribe();
        loop {
            let regard = {
                let (scores, now) = (scores.borrow_and_update(), wall_ms());
                scores.iter().map(|(node, score)| (*node, gossip_regard(score, now))).collect()
            };
            if swarm.regard(regard).await.is_err() {
                return;
            }
            let changed = async {
                tokio::time::sleep(REGARD).await;
                // Bans end by time alone.
                tokio::time::timeout(WATCH, scores.changed()).await.unwrap_or(Ok(()))
            };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changed => if changed.is_err() { return },
            }
        }
    }

    /// The ledger behind it.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// How often audits of this node's work are drawn, 0 to 1; always for whoever is not known.
    #[must_use]
    pub fn audit_rate(&self, node: &NodeId) -> f64 {
        self.scores.borrow().get(node).map_or(1.0, |score| {
            let now = Score { at_ms: wall_ms(), ..*score };
            self.policy.rate(&now)
        })
    }

    /// Whether the node is shut out for a fraud that this node has seen proved.
    #[must_use]
    pub fn is_banned(&self, node: &NodeId) -> bool {
        self.scores.borrow().get(node).is_some_and(|score| score.ban.holds(wall_ms()))
    }

    /// Its score, 0 to 1; that of a newcomer if it is not known.
    #[must_use]
    pub fn score(&self, node: &NodeId) -> f64 {
        self.scores.borrow().get(node).map_or(consortium_ledger::reputation::score::NEWCOMER, |score| score.value)
    }

    /// Whose standings these are.
    #[must_use]
    pub fn me(&self) -> NodeId {
        self.key.node_id()
    }

    /// Books the work of stages of one attempt of a job, at the prices of its order; pay of work that was drawn for an
    /// audit waits for the verdict. False when it could not be booked.
    pub async fn worked(&self, stages: Vec<Owed>) -> bool {
        let Some(first) = stages.first() else { return true };
        let order = first.audit.order.payload();
        let work = |owed: &Owed| {
            let receipt = owed.audit.receipt()?;
            if owed.part == Part::Driving {
                return Some(StageWork::driving(order, receipt));
            }
            let price = order.prices.get(usize::from(receipt.payload().stage))?;
            Some(StageWork::of(receipt, *price, owed.drawn))
        };
        let record = JobRecord {
            job: order.job,
            attempt: order.attempt,
            payer: first.account.clone(),
            fee: if matches!(first.account, Owner::Key(_)) { self.fee } else { 0 },
            stages: stages.iter().filter_map(work).collect(),
        };
        let me = self.me();
        let written = self.run(move |ledger| {
            let now = wall_ms();
            if let Posted::New(_) = ledger.record_job(&record, &Terms::default(), now)? {
                for work in record.stages.iter().filter(|work| work.worker != me) {
                    ledger.observe_tokens(&work.worker, u64::from(work.cells.stop - work.cells.start), now)?;
                }
            }
            Ok(())
        });
        written.await.is_some()
    }

    /// Gives back what API keys had reserved for jobs that ended with this node's last life.
    pub async fn release_reservations(&self) {
        let born = self.born;
        if let Some(count @ 1..) = self.run(move |ledger| ledger.release_reservations(born, wall_ms())).await {
            info!(count, "released what was reserved for jobs that a restart interrupted");
        }
    }

    /// Takes a verdict into account: this node's own, or a member's.
    pub async fn judged(&self, verdict: &Signed<Verdict>) {
        let (verdict, me) = (verdict.clone(), self.key.node_id());
        self.write(move |ledger| {
            let now = wall_ms();
            // Evidence is kept by and about those who have a record: members, and whoever worked for this node.
            if verdict.signer() == me {
                ledger.observe(&verdict.payload().auditee, true, 0, now)?;
                ledger.settle_audit(&verdict, &Terms::default(), now)?;
            }
            if verdict.signer() != me {
                ledger.observe(&verdict.signer(), true, 0, now)?;
            }
            ledger.note_verdict(&verdict, now).map(drop)
        })
        .await;
    }

    /// Applies the verdict of an auditor that this node chose to the pay it is about.
    pub async fn settled(&self, verdict: &Signed<Verdict>) {
        let verdict = verdict.clone();
        self.run(move |ledger| ledger.settle_audit(&verdict, &Terms::default(), wall_ms()).map(drop)).await;
    }

    /// Whether this node accuses somebody by this fraud proof.
    pub async fn accuses(&self, proof: Hash) -> bool {
        let accusers = self.run(move |ledger| ledger.accusers(&proof)).await.unwrap_or_default();
        accusers.contains(&self.key.node_id())
    }

    /// Says that an accusation does not hold; the word to spread.
    pub async fn rebut(&self, verdict: &Signed<Verdict>) -> Option<Signed<Rebuttal>> {
        let (verdict, key) = (verdict.clone(), Arc::clone(&self.key));
        self.write(move |ledger| {
            let now = wall_ms();
            ledger.observe(&verdict.signer(), true, 0, now)?;
            ledger.rebut(&key, verdict.payload().cluster, &verdict, now)
        })
        .await
    }

    /// Takes another's rebuttal into account.
    pub async fn rebutted(&self, rebuttal: Signed<Rebuttal>) {
        self.write(move |ledger| ledger.note_rebuttal(&rebuttal, wall_ms()).map(drop)).await;
    }

    /// Takes note of a head of another's journal; the proof, if it contradicts one that was known.
    pub async fn head(&self, head: Signed<TreeHead>) -> Option<Box<Equivocation>> {
        let (signer, key) = (head.signer(), Arc::clone(&self.key));
        match self.run(move |ledger| ledger.note_head(&key, &head, wall_ms())).await? {
            HeadSeen::New | HeadSeen::Known => None,
            HeadSeen::NotOurs => {
                error!(
                    "another journal is signed with this node's key: the key is in use elsewhere, or this ledger is an \
                     old copy"
                );
                None
            }
            HeadSeen::Equivocation(proof) => {
                warn!(node = %signer, "signed two journals of one length");
                // It is shut out from now on.
                self.write(|_| Ok(())).await;
                Some(proof)
            }
        }
    }

    /// Keeps a proof that a node signed two journals.
    pub async fn equivocated(&self, proof: Box<Equivocation>) {
        let key = Arc::clone(&self.key);
        if let Some(node) = self.write(move |ledger| ledger.note_equivocation(&key, &proof, wall_ms())).await {
            warn!(%node, "is proved to have signed two journals");
        }
    }

    /// Watches how long the members are up, until `stop`.
    pub async fn watch(self, view: watch::Receiver<ClusterView>, me: NodeId, stop: CancellationToken) {
        let mut every = tokio::time::interval(WATCH);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut last, mut tidied) = (Instant::now(), Instant::now());
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = every.tick() => {}
            }
            let elapsed = u64::try_from(last.elapsed().as_millis()).unwrap_or(u64::MAX);
            last = Instant::now();
            let members: Vec<(NodeId, bool)> = {
                let view = view.borrow();
                let others = view.members.iter().filter(|(node, _)| **node != me);
                others.map(|(node, member)| (*node, !member.suspect)).collect()
            };
            let tidy = tidied.elapsed() >= TIDY;
            if tidy {
                tidied = Instant::now();
            }
            self.write(move |ledger| {
                ledger.observe_all(&members, elapsed, wall_ms())?;
                ledger.release_due(&Terms::default(), wall_ms())?;
                if tidy { ledger.expire_evidence(wall_ms()).map(drop) } else { Ok(()) }
            })
            .await;
        }
    }

    /// Writes, and brings the scores up to date. What goes wrong is logged: standings are an opinion, and the node
    /// goes on with the one it has.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Ledger) -> Result<T, LedgerError> + Send + 'static,
    ) -> Option<T> {
        let value = self.run(work).await?;
        let scores = self.run(|ledger| ledger.scores(wall_ms())).await?;
        self.scores.send_replace(Arc::new(scores));
        Some(value)
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Ledger) -> Result<T, LedgerError> + Send + 'static,
    ) -> Option<T> {
        let ledger = self.ledger.clone();
        match tokio::task::spawn_blocking(move || work(&ledger)).await.ok()? {
            Ok(value) => Some(value),
            Err(error @ (LedgerError::Refused(_) | LedgerError::UnknownNode { .. })) => {
                debug!(%error, "the ledger did not take a piece of evidence");
                None
            }
            Err(error) => {
                warn!(%error, "the ledger cannot be used");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use consortium_ledger::reputation::score::{NEWCOMER, score};
    use consortium_ledger::reputation::{Ban, Score};
    use consortium_protocol::identity::RootKey;

    use super::gossip_regard;

    #[test]
    fn gossip_prefers_the_proven_and_shuns_the_banned() {
        let me = RootKey::from_seed([1; 32]).node_id();
        let newcomer = score(&[], 1000, &me, &|_| 1.0);
        let with = |value: f64| Score { value, ..newcomer };
        assert_eq!(gossip_regard(&newcomer, 1000), 0.0);
        assert_eq!(gossip_regard(&with(1.0), 1000), 20.0);
        let rising: Vec<f64> = [0.01, 0.1, NEWCOMER, 0.5, 0.99].map(|v| gossip_regard(&with(v), 1000)).to_vec();
        assert!(rising.is_sorted_by(|a, b| a < b) && rising[0] > -5.0, "{rising:?}");
        let banned = Score { value: 0.0, ban: Ban { times: 1, until_ms: Some(2000) }, ..newcomer };
        assert_eq!(gossip_regard(&banned, 1999), -40.0);
        assert!(gossip_regard(&banned, 2000) >= -5.0, "a ban ends");
    }
}
