//! `escrows`, `escrow` and `escrow_*`: what is locked under whose verdict, and what the operator makes of it.

use std::future::Future;

use consortium_ledger::escrow::driver::{EscrowError, Offer};
use consortium_ledger::escrow::limits::Consent;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::Message as _;
use consortium_protocol::wire::escrow::{Charge, DELTA, EscrowId, EscrowKind, MAX_TRANCHES};
use jsonrpsee::RpcModule;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Context;
use super::fault::Fault;
use super::methods::json as shown;
use super::over::{For, over};
use super::params;
use crate::escrow::names::{Finding, Kind};
use crate::escrow::view::MAX_PAGE;
use crate::escrow::{DeskError, EscrowDesk};

/// A page of escrows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    #[serde(default)]
    after: Option<u64>,
    #[serde(default)]
    limit: Option<u32>,
}

/// One escrow.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct One {
    escrow: EscrowId,
}

/// An offer to be made.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Offered {
    kind: Kind,
    payer: NodeId,
    #[serde(default)]
    payee: Option<NodeId>,
    unit_msat: Msat,
    #[serde(default)]
    tranches: Option<u8>,
    #[serde(default)]
    delta: Option<u16>,
    subject: Hash,
    #[serde(default)]
    dust: bool,
}

/// An offer to be agreed to.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Agreed {
    escrow: EscrowId,
    #[serde(default)]
    dust: bool,
}

/// A verdict to be given.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Judged {
    escrow: EscrowId,
    finding: Finding,
    #[serde(default)]
    earned: Option<u32>,
    evidence: Hash,
}

/// Adds the methods.
pub(super) fn register(module: &mut RpcModule<Context>) {
    add(module, "escrows", For::Machine, async |desk: EscrowDesk, wanted: Page| {
        let limit = params::page(wanted.limit, MAX_PAGE)?;
        shown(desk.view(wanted.after, limit).await?)
    });
    add(module, "escrow", For::Machine, async |desk: EscrowDesk, wanted: One| shown(desk.one(wanted.escrow).await?));
    add(module, "escrow_offer", For::Operator, async |desk: EscrowDesk, wanted: Offered| {
        let consent = Consent { dust: wanted.dust };
        let signed = desk.offer(offer(&desk, &wanted)?, consent).await?;
        shown(json!({"escrow": signed.payload().id, "signed": hex::encode(signed.as_bytes())}))
    });
    add(module, "escrow_agree", For::Operator, async |desk: EscrowDesk, wanted: Agreed| {
        shown(json!({"escrow": desk.agree(wanted.escrow, Consent { dust: wanted.dust }).await?}))
    });
    add(module, "escrow_decline", For::Operator, async |desk: EscrowDesk, wanted: One| {
        desk.decline(wanted.escrow)?;
        shown(json!({"escrow": wanted.escrow}))
    });
    add(module, "escrow_judge", For::Operator, async |desk: EscrowDesk, wanted: Judged| {
        let Judged { escrow, finding, earned, evidence } = wanted;
        let signed = desk.judge(escrow, finding.into(), earned, evidence).await?;
        let earned = signed.payload().earned;
        shown(json!({"escrow": escrow, "finding": finding, "earned": earned, "signed": hex::encode(signed.as_bytes())}))
    });
    add(module, "escrow_misconduct", For::Operator, async |desk: EscrowDesk, wanted: One| {
        let proofs = desk.misconduct(wanted.escrow).await?;
        let proof = |proof: &consortium_protocol::wire::escrow::Misconduct| {
            let contradicted = proof.charge() == Charge::Contradicted;
            json!({"tranche": proof.tranche, "contradicted": contradicted, "proof": hex::encode(proof.encode())})
        };
        let proofs: Vec<Value> = proofs.iter().map(proof).collect();
        shown(json!({"escrow": wanted.escrow, "proofs": proofs}))
    });
}

/// What is offered, as the ledger has it.
fn offer(desk: &EscrowDesk, wanted: &Offered) -> Result<Offer, Fault> {
    let kind = EscrowKind::from(wanted.kind);
    let payee = match (kind, wanted.payee) {
        (EscrowKind::Bond, None) => desk.me(),
        (EscrowKind::Bond, Some(payee)) if payee == desk.me() => payee,
        (EscrowKind::Bond, Some(_)) => return Err(Fault::Params("payee: a bond is pledged to this node".to_owned())),
        (_, Some(payee)) => payee,
        (_, None) => return Err(Fault::Params("payee: who is paid?".to_owned())),
    };
    let tranches = match (kind, wanted.tranches) {
        (EscrowKind::Tranches, Some(tranches)) if (2..=MAX_TRANCHES).contains(&usize::from(tranches)) => tranches,
        (EscrowKind::Tranches, _) => return Err(Fault::Params(format!("tranches: 2 to {MAX_TRANCHES}"))),
        (_, None | Some(1)) => 1,
        (_, Some(_)) => return Err(Fault::Params("tranches: only escrows of that kind have several".to_owned())),
    };
    let (payer, unit, subject) = (wanted.payer, wanted.unit_msat, wanted.subject);
    Ok(Offer { kind, payer, payee, tranches, unit, delta: wanted.delta.unwrap_or(DELTA), subject })
}

fn add<P, F, R>(module: &mut RpcModule<Context>, name: &'static str, whom: For, run: F)
where
    P: DeserializeOwned + Send + 'static,
    F: Fn(EscrowDesk, P) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<Value, Fault>> + Send + 'static,
{
    over(module, name, whom, |context| context.escrows.clone().ok_or(Fault::NoWallet), run);
}

impl From<DeskError> for Fault {
    fn from(error: DeskError) -> Self {
        match error {
            DeskError::Escrow(EscrowError::Wallet(error)) => error.into(),
            DeskError::Escrow(EscrowError::Unknown) | DeskError::NoOffer(_) => Self::NotFound(error.to_string()),
            DeskError::Escrow(EscrowError::Message(_)) | DeskError::Earned(_) | DeskError::Finding(_) => {
                Self::Params(error.to_string())
            }
            DeskError::Escrow(EscrowError::Log(_) | EscrowError::Books(_) | EscrowError::Random(_)) => {
                Self::WalletBroken(error.to_string())
            }
            DeskError::Escrow(EscrowError::Stopped) => Self::Closed,
            error => Self::Wallet(error.to_string()),
        }
    }
}
