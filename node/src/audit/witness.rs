//! What others say: verdicts, rebuttals, tree heads. A fraud counts here when this node has seen the proof hold.

use std::collections::BTreeSet;
use std::sync::Arc;

use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::wire::audit::{Outcome, Verdict};
use consortium_protocol::wire::fact::Fact;
use consortium_protocol::wire::ledger::{Equivocation, Rebuttal, TreeHead};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::auditor::{AuditTask, Handed, PATIENCE};
use super::check::check;
use super::evidence;
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
        }
    }

    async fn verdict(&mut self, verdict: Signed<Verdict>) {
        let (task, said, accuser) = (Arc::clone(&self.task), verdict.payload(), verdict.signer());
        let me = task.swarm.me();
        let concerns = said.cluster == task.cluster && accuser != me && accuser != said.auditee;
        // Strangers could have any number of names.
        if !concerns || !task.is_member(&accuser) {
            return;
        }
        if self.handed.is_with(&said.receipt, &accuser) {
            task.standings.settled(&verdict).await;
            self.owing.judged(&verdict).await;
        }
        let (Outcome::Fraud, Some(digest)) = (said.outcome, said.proof) else {
            return task.standings.judged(&verdict).await;
        };
        if said.auditee == me {
            return warn!(%accuser, job = %said.job, "this node is accused of fraud");
        }
        // One proof shuts a node out; its other jobs are for their payers to judge.
        if self.settled.contains(&digest) || task.standings.is_banned(&said.auditee) {
            return;
        }
        match self.holds(&verdict, digest).await {
            Err(reason) => return debug!(%accuser, reason, "a fraud proof could not be checked"),
            Ok(true) => {
                info!(node = %said.auditee, %accuser, job = %said.job, "a fraud proof holds");
                // What it saw proved it can vouch for itself.
                let verdict = Signed::sign(&task.key, Verdict { at_ms: wall_ms(), ..said.clone() });
                task.standings.judged(&verdict).await;
                task.spread(Fact::Verdict(verdict)).await;
            }
            Ok(false) => {
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

    /// Whether the proof that a verdict names shows that its auditee cheated. What this node finds inconclusive is
    /// neither shown nor refuted: others may compute in another class.
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
        let proofs = self.task.proofs.clone();
        self.task.wait_for_quiet(PATIENCE).await;
        let checking = tokio::task::spawn_blocking(move || {
            let finding = check(&proof, &dir, &thresholds).map_err(|error| error.to_string())?;
            match finding.outcome {
                Outcome::Fraud => {
                    // Others can have it from here as well.
                    proofs.keep(&bytes).map_err(|error| error.to_string())?;
                    Ok(true)
                }
                Outcome::Inconclusive => Err(format!("inconclusive here: {}", finding.detail)),
                Outcome::Pass | Outcome::Withheld => Ok(false),
            }
        });
        checking.await.map_err(|error| error.to_string())?
    }
}
