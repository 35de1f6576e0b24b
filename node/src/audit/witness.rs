//! What others say: verdicts, rebuttals, tree heads. A fraud counts here when this node has seen the proof hold.

use std::collections::BTreeSet;
use std::sync::Arc;

use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::wire::audit::{Outcome, Verdict};
use consortium_protocol::wire::fact::Fact;
use consortium_protocol::wire::ledger::{Equivocation, Rebuttal, TreeHead};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::auditor::{AuditTask, PATIENCE};
use super::check::check;
use super::evidence;
use super::handing::Handed;
use super::owing::Owing;
use super::proof::Proof;
use crate::clock::wall_ms;

/// Proofs remembered as settled.
const MAX_SETTLED: usize = 4096;

/// Something heard of others' audits and journals.
#[derive(Debug)]
pub enum Heard {
    /// What an auditor found.
    Verdict(Signed<Verdict>),
    /// That an accusation does not hold.
    Rebuttal(Signed<Rebuttal>),
    /// How far a journal goes.
    Head(Signed<TreeHead>),
    /// That a node signed two journals.
    Equivocation(Box<Equivocation>),
    /// What an auditor from outside found of a job of this node.
    Submitted(Box<Submitted>),
}

/// A verdict from outside.
#[derive(Debug)]
pub struct Submitted {
    /// The verdict.
    pub verdict: Signed<Verdict>,
    /// Digest of `bytes`.
    pub proof: Hash,
    /// What the stage signed and showed, as in a fraud proof.
    pub bytes: Arc<Vec<u8>>,
    /// For what becomes of it.
    pub reply: oneshot::Sender<Weight>,
}

/// What a verdict from outside weighs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Weight {
    /// This node found the fraud as well: it counts as its own verdict.
    Counted,
    /// Nothing, and why.
    Nothing(String),
    /// Nothing: what the stage shows does not prove what it says.
    False,
}

/// Takes what is heard, one after the other.
pub(super) struct Witness {
    task: Arc<AuditTask>,
    handed: Handed,
    owing: Owing,
    /// Proofs that were seen to hold or not to hold.
    settled: BTreeSet<Hash>,
}

impl Witness {
    pub(super) fn new(task: Arc<AuditTask>, handed: Handed, owing: Owing) -> Self {
        Self { task, handed, owing, settled: BTreeSet::new() }
    }

    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Heard>, stop: CancellationToken) {
        loop {
            let heard = tokio::select! {
                () = stop.cancelled() => return,
                heard = queue.recv() => match heard {
                    Some(heard) => heard,
                    None => return,
                },
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.take(heard) => {}
            }
        }
    }

    async fn take(&mut self, heard: Heard) {
        let standings = &self.task.standings;
        match heard {
            Heard::Verdict(verdict) => self.verdict(verdict).await,
            Heard::Rebuttal(rebuttal) => standings.rebutted(rebuttal).await,
            Heard::Head(head) => {
                if let Some(proof) = standings.head(head).await {
                    self.task.spread(Fact::Equivocation(proof)).await;
                }
            }
            Heard::Equivocation(proof) => standings.equivocated(proof).await,
            Heard::Submitted(submitted) => {
                let weight = self.weigh(&submitted).await;
                // Whoever handed it in may be tired of waiting.
                let _gone = submitted.reply.send(weight);
            }
        }
    }

    async fn verdict(&mut self, verdict: Signed<Verdict>) {
        let (task, said, accuser) = (Arc::clone(&self.task), verdict.payload(), verdict.signer());
        let me = task.swarm.me();
        let concerns = said.cluster == task.cluster && accuser != me && accuser != said.auditee;
        let chosen = self.handed.is_answered_by(&verdict);
        // Strangers could have any number of names.
        if !concerns || !(chosen || task.is_member(&accuser)) {
            return;
        }
        let (Outcome::Fraud, Some(digest)) = (said.outcome, said.proof) else {
            if chosen {
                self.settle(&verdict).await;
            }
            return task.standings.judged(&verdict).await;
        };
        if said.auditee == me {
            return warn!(%accuser, job = %said.job, "this node is accused of fraud");
        }
        // One proof shuts a node out; its other jobs are for their payers to judge.
        if self.settled.contains(&digest) || task.standings.is_banned(&said.auditee) {
            return;
        }
        let fetched = evidence::fetch(&task.swarm, accuser, &digest).await;
        let held = match fetched {
            Ok(bytes) => self.holds(&verdict, Arc::new(bytes)).await,
            Err(reason) => Err(reason),
        };
        match held {
            Err(reason) => {
                debug!(%accuser, reason, "a fraud proof could not be checked");
                if chosen {
                    // This stage is not paid on the word of the auditor; what else it has is not touched.
                    let unpaid = Verdict { outcome: Outcome::Withheld, proof: None, ..said.clone() };
                    self.settle(&Signed::sign(&task.key, Verdict { at_ms: wall_ms(), ..unpaid })).await;
                }
                return;
            }
            Ok(Some(own)) => {
                info!(node = %said.auditee, %accuser, job = %said.job, "a fraud proof holds");
                self.vouch(own).await;
            }
            Ok(None) => {
                warn!(%accuser, node = %said.auditee, job = %said.job, "a fraud proof does not hold: a false accusation");
                if let Some(rebuttal) = task.standings.rebut(&verdict).await {
                    task.spread(Fact::Rebuttal(rebuttal)).await;
                }
            }
        }
        if self.settled.len() >= MAX_SETTLED {
            self.settled.clear();
        }
        self.settled.insert(digest);
    }

    /// Pay goes by this verdict.
    async fn settle(&self, verdict: &Signed<Verdict>) {
        self.handed.take_back(&verdict.payload().receipt);
        self.task.standings.settled(verdict).await;
        self.owing.judged(verdict).await;
    }

    /// What it saw proved it can vouch for itself.
    async fn vouch(&self, own: Verdict) {
        let verdict = Signed::sign(&self.task.key, own);
        self.handed.take_back(&verdict.payload().receipt);
        self.task.standings.judged(&verdict).await;
        self.owing.judged(&verdict).await;
        self.task.spread(Fact::Verdict(verdict)).await;
    }

    /// What the word of an auditor from outside weighs: nothing, unless this node sees the fraud as well. That it does
    /// not is held against nobody: outsiders could have any number of names.
    async fn weigh(&self, submitted: &Submitted) -> Weight {
        let Submitted { verdict, proof, bytes, .. } = submitted;
        let (said, accuser, me) = (verdict.payload(), verdict.signer(), self.task.swarm.me());
        let nothing = |why: &str| Weight::Nothing(why.to_owned());
        if said.cluster != self.task.cluster {
            return nothing("it is about another cluster");
        }
        if accuser == me || accuser == said.auditee {
            return nothing("it is signed by the node itself, or by whom it is about");
        }
        if said.outcome != Outcome::Fraud {
            return nothing("the word of an outsider counts with a fraud proof alone");
        }
        if said.proof != Some(*proof) {
            return nothing("the proof that it names is not what the stage showed");
        }
        // Another word on the same would only move the time of the first, and of the ban.
        if self.task.standings.accuses(*proof).await {
            return Weight::Counted;
        }
        match self.holds(verdict, Arc::clone(bytes)).await {
            Err(reason) => Weight::Nothing(reason),
            Ok(None) => Weight::False,
            Ok(Some(own)) => {
                info!(node = %said.auditee, %accuser, job = %said.job, "a fraud that an outsider found holds");
                self.vouch(own).await;
                Weight::Counted
            }
        }
    }

    /// The verdict of this node if a proof shows that the auditee of `verdict` cheated, none if it does not. What this
    /// node finds inconclusive is neither shown nor refuted: others may compute in another class.
    async fn holds(&self, verdict: &Signed<Verdict>, bytes: Arc<Vec<u8>>) -> Result<Option<Verdict>, String> {
        let Ok(proof) = Proof::decode(&bytes).await else { return Ok(None) };
        let Some(receipt) = proof.order.receipt().cloned() else { return Ok(None) };
        if (receipt.digest(), receipt.signer()) != (verdict.payload().receipt, verdict.payload().auditee) {
            return Ok(None);
        }
        let model = receipt.payload().model;
        let (_, dir) = self.task.library.get(&model).ok_or("this node has not the model")?;
        let (dir, thresholds) = (Arc::clone(dir), Arc::clone(&self.task.thresholds));
        let proofs = self.task.proofs.clone();
        self.task.wait_for_quiet(PATIENCE).await;
        let checking = tokio::task::spawn_blocking(move || {
            let finding = check(&proof, &dir, &thresholds).map_err(|error| error.to_string())?;
            match finding.outcome {
                Outcome::Fraud => {
                    // Others can have it from here as well.
                    let digest = proofs.keep(&bytes).map_err(|error| error.to_string())?;
                    Ok(Some(finding.verdict(&receipt, Some(digest), wall_ms())))
                }
                Outcome::Inconclusive => Err(format!("inconclusive here: {}", finding.detail)),
                Outcome::Pass | Outcome::Withheld => Ok(None),
            }
        });
        checking.await.map_err(|error| error.to_string())?
    }
}
