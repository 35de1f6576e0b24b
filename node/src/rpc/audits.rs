//! `audit_*`, `fraud_proof`, `job_receipts`: what was checked, what was found, and what was signed for.

use std::cmp::Reverse;

use consortium_ledger::reputation::{EvidenceView, Finding, MAX_EVIDENCE_PAGE};
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire;
use consortium_protocol::wire::audit::Verdict;
use serde_json::{Value, json};

use super::Sources;
use super::fault::Fault;
use super::methods::Asked;
use super::params::{self, Audits, Digest, Job};
use crate::storage::Storage;

/// Verdicts on a page at most.
pub(super) const MAX_VERDICTS: u32 = 200;

/// A verdict as it is shown.
fn view(verdict: &Signed<Verdict>) -> Value {
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

/// The evidence that verdicts are, about one node or about all. Signatures are not looked at: the ledger keeps what
/// was verified, and checking thousands again would cost a second.
fn verdicts(sources: &Sources, about: Option<NodeId>) -> Result<Vec<EvidenceView>, Fault> {
    let mut verdicts = Vec::new();
    let mut after = None;
    loop {
        let page = sources.ledger.evidence(about.as_ref(), after, MAX_EVIDENCE_PAGE)?;
        verdicts.extend(page.evidence.into_iter().filter(|piece| piece.evidence.finding != Finding::FalseWord));
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    Ok(verdicts)
}

fn opened(piece: &EvidenceView) -> Option<Signed<Verdict>> {
    Signed::decode(&hex::decode(&piece.signed).ok()?).ok()
}

/// A page of verdicts, the newest first.
pub(super) fn list(sources: &Sources, _: Asked, wanted: Audits) -> Result<Value, Fault> {
    let limit = params::page(wanted.limit, MAX_VERDICTS)? as usize;
    let mut all = verdicts(sources, wanted.peer_id)?;
    all.sort_by_key(|piece| Reverse((piece.evidence.at_ms, piece.evidence.digest)));
    let from = match wanted.after {
        None => 0,
        Some(after) => {
            let found = all.iter().position(|piece| piece.evidence.digest == after);
            found.ok_or_else(|| Fault::NotFound(format!("the verdict {after} is not among these; begin again")))? + 1
        }
    };
    let page = &all[from..all.len().min(from + limit)];
    let next = page.last().filter(|_| from + page.len() < all.len()).map(|piece| piece.evidence.digest);
    let audits: Vec<Value> = page.iter().filter_map(opened).map(|verdict| view(&verdict)).collect();
    Ok(json!({"audits": audits, "next": next}))
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
            fields.insert("fraud_proof".to_owned(), whereabouts(sources, asked, &proof, vec![verdict.signer()]));
        }
    }
    Ok(shown)
}

/// Where a fraud proof is kept. The bytes are streamed between nodes, and not through here.
pub(super) fn fraud_proof(sources: &Sources, asked: Asked, wanted: Digest) -> Result<Value, Fault> {
    let evidence = verdicts(sources, None)?;
    let accusations = evidence.iter().filter(|piece| piece.evidence.finding == Finding::Fraud).filter_map(opened);
    let accusing = accusations.filter(|verdict| verdict.payload().proof == Some(wanted.digest));
    let accusers: Vec<NodeId> = accusing.map(|verdict| verdict.signer()).collect();
    let shown = whereabouts(sources, asked, &wanted.digest, accusers.clone());
    if accusers.is_empty() && shown["kept"] == false {
        return Err(Fault::NotFound(format!("no fraud proof {} is known here", wanted.digest)));
    }
    Ok(shown)
}

fn whereabouts(sources: &Sources, asked: Asked, digest: &Hash, mut accusers: Vec<NodeId>) -> Value {
    accusers.sort_unstable();
    accusers.dedup();
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

/// The receipts of one of this node's jobs.
pub(super) async fn job_receipts(storage: &Storage, wanted: Job) -> Result<Value, Fault> {
    let job = wanted.job;
    let kept = storage.receipts(job).await?;
    let kept = kept.ok_or_else(|| Fault::NotFound(format!("no receipts of job {job} are kept here")))?;
    let receipt = |signed: &Signed<wire::audit::StageReceipt>| {
        json!({
            "digest": signed.digest(),
            "signer": signed.signer(),
            "receipt": signed.payload(),
            "signed": hex::encode(signed.as_bytes()),
        })
    };
    Ok(json!({
        "job": job,
        "at_ms": kept.at_ms,
        "order": {
            "digest": kept.order.digest(),
            "signer": kept.order.signer(),
            "order": kept.order.payload(),
            "signed": hex::encode(kept.order.as_bytes()),
        },
        "receipts": kept.chain.iter().map(receipt).collect::<Vec<_>>(),
    }))
}
