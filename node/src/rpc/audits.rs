//! `audit_*`, `fraud_proof`, `job_receipts`: what was checked, what was found, and what was signed for.

use std::sync::Arc;

use consortium_ledger::reputation::{EvidenceView, Finding, MAX_EVIDENCE_PAGE};
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire;
use consortium_protocol::wire::audit::Verdict;
use serde_json::{Value, json};

use super::fault::Fault;
use super::methods::Asked;
use super::params::{self, Audits, Digest, Job};
use super::{Context, Sources};

/// Verdicts on a page at most.
pub(super) const MAX_VERDICTS: u32 = MAX_EVIDENCE_PAGE;

/// A verdict as it is shown.
pub(super) fn view(verdict: &Signed<Verdict>) -> Value {
    let said = verdict.payload();
    json!({
        "digest": verdict.digest(),
        "auditor": verdict.signer(),
        "auditee": said.auditee,
        "job": said.job,
        "attempt": said.attempt,
        "stage": said.stage,
        "receipt": said.receipt,
        "outcome": Finding::from(said.outcome),
        "blocks": said.blocks,
        "exact": said.exact,
        "class": said.class,
        "proof": said.proof,
        "at_ms": said.at_ms,
    })
}

pub(super) fn opened(piece: &EvidenceView) -> Option<Signed<Verdict>> {
    Signed::decode(&hex::decode(&piece.signed).ok()?).ok()
}

/// A page of verdicts, the newest first.
pub(super) fn list(sources: &Sources, _: Asked, wanted: Audits) -> Result<Value, Fault> {
    let limit = params::page(wanted.limit, MAX_VERDICTS)?;
    let page = sources.ledger.verdicts(wanted.peer_id.as_ref(), wanted.after, limit)?;
    let audits: Vec<Value> = page.verdicts.iter().filter_map(opened).map(|verdict| view(&verdict)).collect();
    Ok(json!({"audits": audits, "next": page.next}))
}

/// One verdict, with the statement as it was signed.
pub(super) fn get(sources: &Sources, asked: Asked, wanted: Digest) -> Result<Value, Fault> {
    let piece = sources.ledger.evidence_of(&wanted.digest)?;
    let not_kept = || Fault::NotFound(format!("no verdict {} is kept here", wanted.digest));
    let verdict = piece.as_ref().and_then(opened).ok_or_else(not_kept)?;
    let mut shown = view(&verdict);
    if let Some(fields) = shown.as_object_mut() {
        fields.insert("cluster".to_owned(), json!(verdict.payload().cluster));
        fields.insert("signed".to_owned(), json!(hex::encode(verdict.as_bytes())));
        if let Some(proof) = verdict.payload().proof {
            fields.insert("fraud_proof".to_owned(), whereabouts(sources, asked, &proof, &[verdict.signer()]));
        }
    }
    Ok(shown)
}

/// Where a fraud proof is kept. The bytes are streamed between nodes, and not through here.
pub(super) fn fraud_proof(sources: &Sources, asked: Asked, wanted: Digest) -> Result<Value, Fault> {
    let accusers = sources.ledger.accusers(&wanted.digest)?;
    let shown = whereabouts(sources, asked, &wanted.digest, &accusers);
    if accusers.is_empty() && shown["kept"] == false {
        return Err(Fault::NotFound(format!("no fraud proof {} is known here", wanted.digest)));
    }
    Ok(shown)
}

fn whereabouts(sources: &Sources, asked: Asked, digest: &Hash, accusers: &[NodeId]) -> Value {
    let path = sources.proofs.path(digest);
    let bytes = std::fs::metadata(&path).ok().map(|about| about.len());
    json!({
        "digest": digest,
        "kept": bytes.is_some(),
        "bytes": bytes,
        "file": bytes.filter(|_| asked.local).map(|_| path.display().to_string()),
        "accusers": accusers,
        "protocol": wire::EVIDENCE,
    })
}

/// The receipts of one of this node's jobs: they tell with whom and how much it works, and are for its owner.
pub(super) async fn job_receipts(context: Arc<Context>, wanted: Job) -> Result<Value, Fault> {
    let job = wanted.job;
    let kept = context.sources.storage.receipts(job).await?;
    let kept = kept.ok_or_else(|| Fault::NotFound(format!("no receipts of job {job} are kept here")))?;
    let receipt = |signed: &Signed<wire::audit::StageReceipt>| {
        json!({
            "digest": signed.digest(),
            "signer": signed.signer(),
            "receipt": signed.payload(),
            "signed": hex::encode(signed.as_bytes()),
        })
    };
    let mandate = &kept.order.payload().mandate;
    let mut order = json!(kept.order.payload());
    if let Some(fields) = order.as_object_mut() {
        let signed = hex::encode(mandate.as_bytes());
        let shown = json!({"signer": mandate.signer(), "mandate": mandate.payload(), "signed": signed});
        fields.insert("mandate".to_owned(), shown);
    }
    Ok(json!({
        "job": job,
        "at_ms": kept.at_ms,
        "order": {
            "digest": kept.order.digest(),
            "signer": kept.order.signer(),
            "order": order,
            "signed": hex::encode(kept.order.as_bytes()),
        },
        "receipts": kept.chain.iter().map(receipt).collect::<Vec<_>>(),
    }))
}
