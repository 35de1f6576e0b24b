//! Audits of this node's own jobs as its owner asks for them, and as auditors from outside the swarm do them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire::audit::{AuditOrder, Verdict};
use consortium_protocol::wire::job::JobId;
use tokio::sync::oneshot;

use super::auditor::Audits;
use super::opening;
use super::proof::Proof;
use super::settled::{SettledJobs, of_stage};
use super::witness::{Heard, Submitted, Weight};
use crate::swarm::SwarmHandle;

/// Cases kept while they are read.
const MAX_CASES: usize = 2;
/// A case that nobody reads is dropped after this time.
const IDLE: Duration = Duration::from_secs(60);
/// Time to wait for other cases to be fetched, or verdicts to be checked.
const TURN: Duration = Duration::from_secs(150);
/// Time for a verdict from outside to be checked.
const CHECKING: Duration = Duration::from_secs(300);

/// All that one stage of one job signed and showed: a file of a fraud proof's form, whatever it proves.
#[derive(Debug)]
pub struct Case {
    /// The attempt of the job.
    pub attempt: u32,
    /// How many stages the job went through.
    pub stages: u16,
    /// Who did the work.
    pub auditee: NodeId,
    /// Digest of the stage's signed receipt.
    pub receipt: Hash,
    /// Digest of `bytes`.
    pub digest: Hash,
    /// As [`Proof::encode`] makes them.
    pub bytes: Arc<Vec<u8>>,
}

/// An audit that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ordered {
    /// Place in the route.
    pub stage: u16,
    /// The attempt of the job.
    pub attempt: u32,
    /// Who did the work.
    pub auditee: NodeId,
    /// Digest of the stage's signed receipt.
    pub receipt: Hash,
}

/// Why there is no audit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeskError {
    /// No such job, or it is too long ago.
    #[error("no job {0} of this node was settled within the last ten minutes, for which stages keep what they showed")]
    UnknownJob(JobId),
    /// The job has no such stage.
    #[error("the job went through {stages} stages, counted from 0: there is no stage {stage}")]
    NoStage {
        /// The stage asked for.
        stage: u16,
        /// How many there are.
        stages: u16,
    },
    /// This node pays itself nothing.
    #[error("stage {0} was computed by this node itself, which nobody pays for")]
    OwnWork(u16),
    /// The stage showed nothing.
    #[error("the stage showed nothing: {0}")]
    NotShown(String),
    /// Too much to do.
    #[error("the node has too many audits to do; try again later")]
    Busy,
}

/// Cases, and when each was read last: in that order.
type Cases = Mutex<VecDeque<(Instant, Arc<Case>)>>;

/// Cloneable handle.
#[derive(Clone)]
pub struct AuditDesk {
    swarm: SwarmHandle,
    settled: SettledJobs,
    audits: Audits,
    cases: Arc<Cases>,
    fetching: Arc<tokio::sync::Mutex<()>>,
    submitting: Arc<tokio::sync::Mutex<()>>,
}

impl AuditDesk {
    /// The desk for the jobs in `settled`.
    #[must_use]
    pub fn new(swarm: SwarmHandle, settled: SettledJobs, audits: Audits) -> Self {
        Self { swarm, settled, audits, cases: Arc::default(), fetching: Arc::default(), submitting: Arc::default() }
    }

    /// One stage of a job, computed by another.
    ///
    /// # Errors
    /// [`DeskError`], but for [`DeskError::NotShown`] and [`DeskError::Busy`].
    pub fn named(&self, job: JobId, stage: u16) -> Result<Ordered, DeskError> {
        Ok(self.find(job, stage)?.0)
    }

    /// Has this node audit a stage of a job of its own, drawn or not.
    ///
    /// # Errors
    /// [`DeskError`], but for [`DeskError::NotShown`].
    pub fn order(&self, job: JobId, stage: u16) -> Result<Ordered, DeskError> {
        let (ordered, order, settled) = self.find(job, stage)?;
        if self.audits.order_own(order, settled) { Ok(ordered) } else { Err(DeskError::Busy) }
    }

    /// The stages of a job that others computed.
    ///
    /// # Errors
    /// [`DeskError::UnknownJob`].
    pub fn stages(&self, job: JobId) -> Result<Vec<Ordered>, DeskError> {
        let (whole, _) = self.settled.find(job).ok_or(DeskError::UnknownJob(job))?;
        let stages = (0..).zip(&whole.chain).filter(|(_, receipt)| receipt.signer() != self.swarm.me());
        Ok(stages
            .map(|(stage, receipt)| Ordered {
                stage,
                attempt: receipt.payload().attempt,
                auditee: receipt.signer(),
                receipt: receipt.digest(),
            })
            .collect())
    }

    fn find(&self, job: JobId, stage: u16) -> Result<(Ordered, AuditOrder, Instant), DeskError> {
        let (whole, settled) = self.settled.find(job).ok_or(DeskError::UnknownJob(job))?;
        let stages = u16::try_from(whole.chain.len()).unwrap_or(u16::MAX);
        let no_stage = DeskError::NoStage { stage, stages };
        let order = of_stage(&whole, stage).ok_or(no_stage)?;
        let ordered = self.stages(job)?.into_iter().find(|ordered| ordered.stage == stage);
        Ok((ordered.ok_or(DeskError::OwnWork(stage))?, order, settled))
    }

    /// What a stage of a job of this node signed and shows: fetched from the stage, or as it was fetched of late.
    ///
    /// # Errors
    /// [`DeskError`].
    pub async fn case(&self, job: JobId, stage: u16) -> Result<Arc<Case>, DeskError> {
        let (ordered, order, _) = self.find(job, stage)?;
        if let Some(case) = self.kept(&ordered.receipt) {
            return Ok(case);
        }
        let turn = tokio::time::timeout(TURN, self.fetching.lock()).await.map_err(|_| DeskError::Busy)?;
        // Another may have asked for the same.
        if let Some(case) = self.kept(&ordered.receipt) {
            return Ok(case);
        }
        let stages = u16::try_from(order.order.payload().route.len()).unwrap_or(u16::MAX);
        let opened = opening::fetch(&self.swarm, &order, None).await.map_err(DeskError::NotShown)?;
        let Ordered { attempt, auditee, receipt, .. } = ordered;
        let encoding = tokio::task::spawn_blocking(move || {
            let bytes = Proof { order, opened }.encode();
            Arc::new(Case { attempt, stages, auditee, receipt, digest: Hash::of(&bytes), bytes: Arc::new(bytes) })
        });
        let case = encoding.await.map_err(|error| DeskError::NotShown(error.to_string()))?;
        self.keep(Arc::clone(&case));
        drop(turn);
        Ok(case)
    }

    /// Hands in the verdict of an auditor from outside on what [`AuditDesk::case`] gave. By itself it has no weight: a
    /// fraud that this node finds as well counts as its own verdict.
    ///
    /// # Errors
    /// [`DeskError`].
    pub async fn submit(&self, verdict: Signed<Verdict>) -> Result<Weight, DeskError> {
        let (job, stage) = (verdict.payload().job, verdict.payload().stage);
        // One at a time: to check one is to compute a stage again.
        let turn = tokio::time::timeout(TURN, self.submitting.lock()).await.map_err(|_| DeskError::Busy)?;
        let case = self.case(job, stage).await?;
        let (reply, answer) = oneshot::channel();
        let submitted = Submitted { verdict, proof: case.digest, bytes: Arc::clone(&case.bytes), reply };
        if !self.audits.heard(Heard::Submitted(Box::new(submitted))) {
            return Err(DeskError::Busy);
        }
        let weighed = tokio::time::timeout(CHECKING, answer).await;
        drop(turn);
        weighed.map_err(|_| DeskError::Busy)?.map_err(|_| DeskError::Busy)
    }

    fn kept(&self, receipt: &Hash) -> Option<Arc<Case>> {
        let mut cases = self.cases.lock().unwrap_or_else(PoisonError::into_inner);
        let place = cases.iter().position(|(_, case)| case.receipt == *receipt)?;
        let (_, case) = cases.remove(place)?;
        cases.push_back((Instant::now(), Arc::clone(&case)));
        Some(case)
    }

    fn keep(&self, case: Arc<Case>) {
        let mut cases = self.cases.lock().unwrap_or_else(PoisonError::into_inner);
        if cases.len() >= MAX_CASES {
            cases.pop_front();
        }
        cases.push_back((Instant::now(), case));
        drop(cases);
        tokio::spawn(forget_idle(Arc::downgrade(&self.cases)));
    }
}

/// Drops cases as they fall idle, until there is none.
async fn forget_idle(cases: Weak<Cases>) {
    loop {
        tokio::time::sleep(IDLE).await;
        let Some(cases) = cases.upgrade() else { return };
        let mut cases = cases.lock().unwrap_or_else(PoisonError::into_inner);
        cases.retain(|(read, _)| read.elapsed() < IDLE);
        if cases.is_empty() {
            return;
        }
    }
}
