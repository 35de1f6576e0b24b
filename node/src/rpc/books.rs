//! `ledger_*`: the journal's signed heads, its proofs, and on this machine its accounts.

use std::sync::Arc;

use consortium_ledger::accounts::MAX_PAGE;
use consortium_ledger::statement::MAX_LINES;
use consortium_protocol::envelope::Signed;
use consortium_protocol::merkle;
use consortium_protocol::wire::ledger::TreeHead;
use serde_json::{Value, json};

use super::fault::Fault;
use super::methods::{self, Asked};
use super::params::{self, Accounts, Nothing, Place, Sizes, Statement};
use super::{Context, Sources};

fn view(head: &Signed<TreeHead>) -> Value {
    let said = head.payload();
    json!({
        "size": said.size,
        "root": said.root,
        "at_ms": said.at_ms,
        "signer": head.signer(),
        "signed": hex::encode(head.as_bytes()),
    })
}

fn head_of(sources: &Sources, size: u64) -> Result<Option<Value>, Fault> {
    Ok(sources.ledger.head_of(size)?.as_ref().map(view))
}

/// The newest signed head, and how many entries there are.
pub(super) fn head(sources: &Sources, _: Asked, _: Nothing) -> Result<Value, Fault> {
    let (head, entries) = (sources.ledger.head()?, sources.ledger.length()?);
    Ok(json!({"ledger": sources.ledger.owner(), "entries": entries, "head": head.as_ref().map(view)}))
}

/// That a leaf is in the journal: an entry under the newest head, or a place in a tree of some size.
pub(super) fn proof(sources: &Sources, asked: Asked, wanted: Place) -> Result<Value, Fault> {
    match wanted {
        Place { seq: Some(seq), index: None, size: None } => entry(sources, asked, seq),
        Place { seq: None, index: Some(index), size: Some(size) } => {
            let proof = sources.ledger.prove_inclusion(index, size)?;
            let entry = sources.ledger.entry(index)?;
            let leaf = entry.map(|entry| merkle::leaf_hash(entry.hash().as_bytes()));
            Ok(json!({"leaf": leaf, "proof": proof, "head": head_of(sources, size)?}))
        }
        _ => Err(Fault::Params("give either seq, or index and size".to_owned())),
    }
}

fn entry(sources: &Sources, asked: Asked, seq: u64) -> Result<Value, Fault> {
    asked.locally()?;
    let proved = sources.ledger.prove_entry(seq)?;
    let proved = proved.ok_or_else(|| Fault::NotFound(format!("no signed head covers an entry {seq}")))?;
    Ok(json!({
        "entry": proved.entry,
        "hash": proved.entry.hash(),
        "leaf": proved.proof.leaf,
        "proof": proved.proof.proof,
        "head": view(&proved.proof.head),
    }))
}

/// That the journal only grew between two sizes.
pub(super) fn consistency(sources: &Sources, _: Asked, wanted: Sizes) -> Result<Value, Fault> {
    let proof = sources.ledger.prove_growth(wanted.old_size, wanted.new_size)?;
    let (old_head, new_head) = (head_of(sources, wanted.old_size)?, head_of(sources, wanted.new_size)?);
    Ok(json!({"proof": proof, "old_head": old_head, "new_head": new_head}))
}

/// A page of accounts.
pub(super) fn accounts(sources: &Sources, asked: Asked, wanted: Accounts) -> Result<Value, Fault> {
    asked.locally()?;
    let limit = params::page(wanted.limit, MAX_PAGE - 1)? as usize;
    // One more than the page tells whether there is another.
    let mut accounts = sources.ledger.accounts(wanted.after.as_ref(), u32::try_from(limit + 1).unwrap_or(MAX_PAGE))?;
    let more = accounts.len() > limit;
    accounts.truncate(limit);
    let next = accounts.last().filter(|_| more).map(|account| account.owner.clone());
    Ok(json!({"ledger": sources.ledger.owner(), "accounts": accounts, "next": next}))
}

/// A page of what moved on an account.
pub(super) fn statement(sources: &Sources, asked: Asked, wanted: Statement) -> Result<Value, Fault> {
    asked.locally()?;
    let Statement { owner, from_ms, to_ms, after, limit } = wanted;
    let (from, to) = (from_ms.unwrap_or(0), to_ms.unwrap_or(i64::MAX as u64));
    let limit = params::page(limit, MAX_LINES)?;
    methods::json(sources.ledger.statement(&owner, from, to, after, limit)?)
}

/// What nodes owe this one and it owes them, and how it is settled.
pub(super) async fn tabs(context: Arc<Context>, _: Nothing) -> Result<Value, Fault> {
    let tabs = context.tabs.clone().ok_or_else(|| Fault::NotFound("this node keeps no tabs".to_owned()))?;
    methods::json(tabs.view().await.map_err(|error| Fault::Tabs(format!("{error:#}")))?)
}
