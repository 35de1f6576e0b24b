//! What a payer makes of the receipts for its job, before any number is recomputed.

use consortium_protocol::cluster::ClusterId;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire::audit::{NOT_DRAWN, Nonce, block_digests, blocks_root, boundary_key, check_chain};
use consortium_protocol::wire::job::{JobRequest, Receipts};
use consortium_protocol::wire::mandate::check_mandate;

use crate::billing::JobAccount;

/// A job of this node that was answered.
#[derive(Debug)]
pub struct Settlement {
    /// What was asked for, with the tokens of the answer.
    pub request: JobRequest,
    /// The nonce behind the request's challenge.
    pub nonce: Nonce,
    /// Who pays for it.
    pub account: JobAccount,
    /// What the stages signed.
    pub receipts: Box<Receipts>,
    /// Who answered.
    pub master: NodeId,
    /// Tokens of the answer that this node gave with the request, from masters that were lost.
    pub given: usize,
}

/// What a payer knows for itself.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Who pays.
    pub payer: NodeId,
    /// The cluster that was asked.
    pub cluster: ClusterId,
    /// Digest and layers of the model that was asked for, where they are known.
    pub model: Option<(Hash, u16)>,
    /// The prompt's tokens, where this node can tell them.
    pub prompt: Option<Vec<u32>>,
}

/// Why receipts are not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unacceptable {
    /// The stage at fault, where it is one stage's.
    pub stage: Option<u16>,
    /// Why, in words.
    pub reason: String,
}

impl Unacceptable {
    fn master(reason: &str) -> Self {
        Self { stage: None, reason: reason.to_owned() }
    }
}

/// Checks receipts against what was asked for and got.
///
/// The chain must hold, its first stage must have computed the tokens that the payer knows, and its last one must have
/// drawn those that the payer got. A chain whose master ordered something else than was asked for is nobody's work for
/// this payer.
///
/// # Errors
/// The first thing that is wrong.
pub fn examine(settlement: &Settlement, expected: &Expected) -> Result<(), Unacceptable> {
    let Settlement { request, nonce, receipts, master, given, .. } = settlement;
    let Receipts { order, chain, tokens, drawn_from } = receipts.as_ref();
    let open = order.payload();
    let asked = (expected.payer, expected.cluster, request.job, nonce.commitment(), &request.sampling);
    let ordered = (open.payer, open.cluster, open.job, open.challenge, &open.sampling);
    if ordered != asked || (open.driver, order.signer()) != (*master, *master) {
        return Err(Unacceptable::master("the master's order is not what was asked for"));
    }
    if check_mandate(order).is_err() {
        return Err(Unacceptable::master("the master's order is not what this node signed for"));
    }
    let layers = open.route.last().map_or(0, |hop| hop.range.last.saturating_add(1));
    if expected.model.is_some_and(|model| model != (open.model, layers)) {
        return Err(Unacceptable::master("the master ordered another model, or not all of it"));
    }
    if chain.len() != open.route.len() {
        return Err(Unacceptable::master("there is not one receipt for each stage"));
    }
    check_chain(order, chain)
        .map_err(|fault| Unacceptable { stage: Some(fault.stage), reason: fault.rule.to_owned() })?;

    let prompt_len = open.prompt_len as usize;
    let answer = tokens.get(prompt_len..).unwrap_or_default();
    // The model's end-of-text token, or what was drawn behind a stop text, is not part of the answer.
    if !answer.starts_with(&request.emitted) || answer.len() > request.emitted.len() + 1 {
        return Err(Unacceptable::master("the tokens are not those of the answer"));
    }
    // A first attempt begins where this node left off; a later one, behind what the attempts before it emitted.
    if open.attempt <= 1 && *drawn_from as usize != prompt_len + given {
        return Err(Unacceptable::master("not all of the answer was drawn by the stages that signed"));
    }
    if expected.prompt.as_deref().is_some_and(|prompt| tokens.get(..prompt_len) != Some(prompt)) {
        return Err(Unacceptable::master("the tokens do not begin with the prompt"));
    }
    let positions = chain[0].payload().positions as usize;
    if positions + 1 != tokens.len() {
        return Err(Unacceptable::master("the tokens are not as many as the rows signed for"));
    }
    let root = |boundary: usize, row: &dyn Fn(usize) -> u32| {
        let bytes: Vec<u8> = (0..positions).flat_map(|position| row(position).to_le_bytes()).collect();
        let boundary = u16::try_from(boundary).unwrap_or(u16::MAX);
        blocks_root(&block_digests(&boundary_key(open.job, open.attempt, boundary), &bytes, 4))
    };
    if root(0, &|position| tokens[position]) != chain[0].payload().inputs {
        return Err(Unacceptable { stage: Some(0), reason: "it signed for other tokens than it was given".to_owned() });
    }
    let drawn = |position: usize| {
        let next = position + 1;
        let drawn = next >= *drawn_from as usize && next < tokens.len();
        if drawn { tokens[next] } else { NOT_DRAWN }
    };
    let last = chain.len() - 1;
    if root(chain.len(), &drawn) != chain[last].payload().outputs {
        let stage = u16::try_from(last).ok();
        return Err(Unacceptable { stage, reason: "it signed for other tokens than it gave".to_owned() });
    }
    Ok(())
}

#[cfg(test)]
#[path = "account_tests.rs"]
mod tests;
