//! `audit_order`, `audit_opening`, `audit_submit`: audits of this node's jobs at its owner's word, and by auditors from
//! outside the swarm. All of it on the node's own machine alone: an opening tells what was asked and answered.

use std::sync::Arc;

use consortium_ledger::reputation::MAX_EVIDENCE_PAGE;
use consortium_protocol::envelope::{ENVELOPE_BYTES, Payload as _, Signed};
use consortium_protocol::wire::audit::Verdict;
use serde_json::{Value, json};

use super::fault::Fault;
use super::params::{OpeningPage, Order, Submission};
use super::{Context, audits};
use crate::audit::desk::Ordered;
use crate::audit::witness::Weight;

/// Bytes of an opening on a page: twice as many digits in the answer.
pub const OPENING_PAGE: usize = 2 << 20;

/// Has this node audit stages of a job of its own, but for those on which there is a verdict.
pub(super) async fn order(context: Arc<Context>, wanted: Order) -> Result<Value, Fault> {
    let desk = &context.sources.desk;
    let stages: Vec<u16> = match wanted.stage {
        Some(stage) => vec![stage],
        None => desk.stages(wanted.job)?.iter().map(|ordered| ordered.stage).collect(),
    };
    let mut audits = Vec::with_capacity(stages.len());
    for stage in stages {
        let named = desk.named(wanted.job, stage)?;
        let verdict = verdict_on(&context, named).await?;
        if verdict.is_none() {
            desk.order(wanted.job, stage)?;
        }
        audits.push(json!({
            "stage": stage,
            "attempt": named.attempt,
            "auditee": named.auditee,
            "receipt": named.receipt,
            "verdict": verdict,
        }));
    }
    Ok(json!({"job": wanted.job, "audits": audits}))
}

/// The newest verdict on a stage, if there is one.
async fn verdict_on(context: &Arc<Context>, ordered: Ordered) -> Result<Option<Value>, Fault> {
    let ledger = context.sources.ledger.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let page = ledger.verdicts(Some(&ordered.auditee), None, MAX_EVIDENCE_PAGE)?;
        let verdicts = page.verdicts.iter().filter_map(audits::opened);
        let on_it = |verdict: &Signed<Verdict>| verdict.payload().receipt == ordered.receipt;
        Ok(verdicts.filter(on_it).map(|verdict| audits::view(&verdict)).next())
    });
    reading.await.map_err(|_| Fault::Closed)?
}

/// A page of what a stage of a job of this node signed and shows, as a file in the form of a fraud proof.
pub(super) async fn opening(context: Arc<Context>, wanted: OpeningPage) -> Result<Value, Fault> {
    let case = context.sources.desk.case(wanted.job, wanted.stage).await?;
    let from = usize::try_from(wanted.offset.unwrap_or(0)).unwrap_or(usize::MAX);
    let outside = || Fault::Params(format!("offset: below {}, the length of the file", case.bytes.len()));
    let rest = case.bytes.get(from..).filter(|rest| !rest.is_empty()).ok_or_else(outside)?;
    let page = &rest[..rest.len().min(OPENING_PAGE)];
    let next = from + page.len();
    Ok(json!({
        "job": wanted.job,
        "attempt": case.attempt,
        "stage": wanted.stage,
        "stages": case.stages,
        "auditee": case.auditee,
        "digest": case.digest,
        "bytes": case.bytes.len(),
        "data": hex::encode(page),
        "next": (next < case.bytes.len()).then_some(next),
    }))
}

/// Weighs the verdict of an auditor from outside.
pub(super) async fn submit(context: Arc<Context>, wanted: Submission) -> Result<Value, Fault> {
    if wanted.signed.len() > 2 * (Verdict::MAX_BYTES + ENVELOPE_BYTES) {
        return Err(Fault::Params("signed: longer than any verdict".to_owned()));
    }
    let bytes = hex::decode(&wanted.signed).map_err(|error| Fault::Params(format!("signed: {error}")))?;
    let verdict = Signed::<Verdict>::decode(&bytes).map_err(|error| Fault::Params(format!("signed: {error}")))?;
    let (digest, weight) = (verdict.digest(), context.sources.desk.submit(verdict).await?);
    let why = match &weight {
        Weight::Counted => "this node finds the fraud as well, and says so to the cluster",
        Weight::False => "what the stage shows does not prove it",
        Weight::Nothing(why) => why,
    };
    Ok(json!({"digest": digest, "counted": weight == Weight::Counted, "why": why}))
}
