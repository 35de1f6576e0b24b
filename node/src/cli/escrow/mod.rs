//! `consortium-node escrow`: money locked under somebody's verdict.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::escrow::{DELTA, EscrowId, MAX_TRANCHES};
use serde_json::{Value, json};

use super::client::{Asking, Client};
use super::terminal::print;
use super::wallet::amount::sat_amount;
use super::wallet::confirm::confirmed;
use crate::escrow::names::Finding;
use crate::escrow::view::{EscrowsView, OfferView, OneView};

mod show;

/// Time for what the node does by itself.
const QUICK: Duration = Duration::from_secs(30);
/// Escrows that are listed at most.
const MAX_LISTED: usize = 10_000;
/// Largest file of which a digest is made, in bytes.
const MAX_FILE: u64 = 1 << 30;

/// Lock money for work until somebody has judged it.
#[derive(Subcommand, Debug)]
#[command(
    after_help = "A validator offers to judge; payer and payee agree; the payer's money is then locked by Lightning payments
that only the verdict opens. What is not earned goes back at once, and all of it at a deadline in blocks (ten minutes each,
about). Nobody has custody. A reward or tranches need a channel between sponsor and worker.

Amounts are in sat. A subject or evidence is a file, of which BLAKE3 is signed, or such a digest itself.

Examples:
  consortium-node escrow offer bond --from 12D3KooW...worker --amount 5000 --subject task.md
  consortium-node escrow offer tranches --from 12D3KooW...sponsor --to 12D3KooW...worker --unit 2000 --units 7 --subject task.md
  consortium-node escrow list
  consortium-node escrow agree 0123456789abcdef0123456789abcdef
  consortium-node escrow judge 0123456789abcdef0123456789abcdef accepted --earned 5 --evidence report.json"
)]
pub(super) enum EscrowCommand {
    /// List this node's escrows, the newest first, and the offers that wait for its word.
    List {
        /// The newest so many.
        #[arg(long, default_value_t = 30)]
        limit: usize,
        #[command(flatten)]
        asking: Asking,
    },
    /// Show an escrow, or an offer that waits.
    Show {
        /// Its id, as `list` has it.
        id: EscrowId,
        #[command(flatten)]
        asking: Asking,
    },
    /// Offer to judge: this node becomes the validator, and tells payer and payee.
    #[command(subcommand)]
    Offer(OfferCommand),
    /// Agree to an offer: a sponsor, or the worker of a bond, pays as soon as it is invoiced.
    Agree {
        /// Its id, as `list` has it.
        id: EscrowId,
        /// Also with amounts of 354 sat or less, which are lost if a channel is closed by force meanwhile.
        #[arg(long)]
        dust: bool,
        #[command(flatten)]
        order: Order,
    },
    /// Decline an offer.
    Decline {
        /// Its id, as `list` has it.
        id: EscrowId,
        #[command(flatten)]
        asking: Asking,
    },
    /// Judge an escrow that this node offered, once all of it is held. There is one verdict, signed, for each.
    Judge {
        /// Its id, as `list` has it.
        id: EscrowId,
        /// How it turned out; only abuse forfeits a bond, only what is accepted is paid.
        finding: Finding,
        /// Of tranches that are accepted: so many units were earned.
        #[arg(long, value_name = "UNITS")]
        earned: Option<u32>,
        /// From what the verdict can be found again.
        #[arg(long, value_name = "FILE|DIGEST")]
        evidence: String,
        #[command(flatten)]
        order: Order,
    },
    /// Look for proof that what this node paid was taken without a verdict that gives it out.
    Misconduct {
        /// Its id, as `list` has it.
        id: EscrowId,
        #[command(flatten)]
        asking: Asking,
    },
}

/// What is offered.
#[derive(Subcommand, Debug)]
pub(super) enum OfferCommand {
    /// A worker's pledge to this node: it goes back unless there was abuse.
    Bond {
        /// The worker.
        #[arg(long, value_name = "PEER_ID")]
        from: NodeId,
        /// How much, in sat.
        #[arg(long, value_parser = sat_amount, value_name = "SAT")]
        amount: Msat,
        #[command(flatten)]
        rest: OfferRest,
    },
    /// Pay for work, all or nothing.
    Reward {
        /// The sponsor, whose money it is.
        #[arg(long, value_name = "PEER_ID")]
        from: NodeId,
        /// The worker.
        #[arg(long, value_name = "PEER_ID")]
        to: NodeId,
        /// How much, in sat.
        #[arg(long, value_parser = sat_amount, value_name = "SAT")]
        amount: Msat,
        #[command(flatten)]
        rest: OfferRest,
    },
    /// Pay for work by units: any number of them may be earned.
    Tranches {
        /// The sponsor, whose money it is.
        #[arg(long, value_name = "PEER_ID")]
        from: NodeId,
        /// The worker.
        #[arg(long, value_name = "PEER_ID")]
        to: NodeId,
        /// How much a unit is, in sat.
        #[arg(long, value_parser = sat_amount, value_name = "SAT")]
        unit: Msat,
        /// How many units can be earned: 3, 7, 15, 31 .. 4095.
        #[arg(long, value_parser = tranches, value_name = "UNITS")]
        units: Tranches,
        #[command(flatten)]
        rest: OfferRest,
    },
}

/// What all offers have.
#[derive(Args, Debug)]
pub(super) struct OfferRest {
    /// What is judged, and by what rules.
    #[arg(long, value_name = "FILE|DIGEST")]
    subject: String,
    /// Blocks that the money may be locked for, 72 at least, for work 144 at most; 57 of them are lost to Lightning and to
    /// acting in time.
    #[arg(long, default_value_t = DELTA)]
    blocks: u16,
    /// Also with amounts of 354 sat or less, which are lost if a channel is closed by force meanwhile.
    #[arg(long)]
    dust: bool,
    #[command(flatten)]
    asking: Asking,
}

/// How to give an order that commits money.
#[derive(Args, Debug)]
pub(super) struct Order {
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    asking: Asking,
}

/// A number of tranches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tranches(u8);

fn tranches(text: &str) -> Result<Tranches, String> {
    let units: u64 = text.parse().map_err(|_| format!("'{text}' is no number of units"))?;
    let found = (2..=MAX_TRANCHES).find(|tranches| (1_u64 << tranches) - 1 == units);
    let found = found.and_then(|tranches| u8::try_from(tranches).ok());
    found.map(Tranches).ok_or_else(|| format!("tranches have 3, 7, 15, 31 .. 4095 units, not {units}"))
}

/// Runs an `escrow` command.
///
/// # Errors
/// When no node answers, or it refuses, in words that say what to do.
pub(super) async fn run(command: EscrowCommand, data_dir: &Path) -> Result<()> {
    match command {
        EscrowCommand::List { limit, asking } => list(limit, asking, data_dir).await,
        EscrowCommand::Show { id, asking } => show_one(id, asking, data_dir).await,
        EscrowCommand::Offer(offer) => offered(offer, data_dir).await,
        EscrowCommand::Agree { id, dust, order } => agree(id, dust, order, data_dir).await,
        EscrowCommand::Decline { id, asking } => {
            let declined: Value = told(&asking, data_dir, "escrow_decline", json!({"escrow": id})).await?;
            shown(&declined, asking.json, |_| format!("declined {id}\n"))
        }
        EscrowCommand::Judge { id, finding, earned, evidence, order } => {
            judge(id, finding, earned, &evidence, order, data_dir).await
        }
        EscrowCommand::Misconduct { id, asking } => {
            let found: Value = told(&asking, data_dir, "escrow_misconduct", json!({"escrow": id})).await?;
            shown(&found, asking.json, show::misconduct)
        }
    }
}

async fn told(asking: &Asking, data_dir: &Path, method: &str, params: Value) -> Result<Value> {
    Client::find(asking.client.clone(), data_dir)?.order(method, params, QUICK).await
}

fn shown(value: &Value, as_json: bool, render: impl FnOnce(&Value) -> String) -> Result<()> {
    let text = if as_json { format!("{}\n", serde_json::to_string_pretty(value)?) } else { render(value) };
    print(&text)?;
    Ok(())
}

async fn list(limit: usize, asking: Asking, data_dir: &Path) -> Result<()> {
    let client = Client::find(asking.client, data_dir)?;
    let most = limit.min(MAX_LISTED);
    let mut view: EscrowsView = client.rpc("escrows", json!({"limit": most.clamp(1, 200)})).await?;
    while let Some(next) = view.next.filter(|_| view.escrows.len() < most) {
        let page: EscrowsView = client.rpc("escrows", json!({"after": next, "limit": 200})).await?;
        view.escrows.extend(page.escrows);
        view.next = page.next;
    }
    view.escrows.truncate(most);
    shown(&serde_json::to_value(&view)?, asking.json, |_| show::list(&view))
}

/// The offer of that name, if it waits.
async fn waiting(client: &Client, id: EscrowId) -> Result<Option<OfferView>> {
    let view: EscrowsView = client.rpc("escrows", json!({"limit": 1})).await?;
    Ok(view.offers.into_iter().find(|offer| offer.terms.escrow == id))
}

async fn show_one(id: EscrowId, asking: Asking, data_dir: &Path) -> Result<()> {
    let client = Client::find(asking.client, data_dir)?;
    if let Some(offer) = waiting(&client, id).await? {
        return shown(&serde_json::to_value(&offer)?, asking.json, |_| show::offer(&offer));
    }
    let one: OneView = client.rpc("escrow", json!({"escrow": id})).await?;
    shown(&serde_json::to_value(&one)?, asking.json, |_| show::one(&one))
}

async fn offered(offer: OfferCommand, data_dir: &Path) -> Result<()> {
    let (mut params, rest) = match offer {
        OfferCommand::Bond { from, amount, rest } => {
            (json!({"kind": "bond", "payer": from, "unit_msat": amount}), rest)
        }
        OfferCommand::Reward { from, to, amount, rest } => {
            (json!({"kind": "reward", "payer": from, "payee": to, "unit_msat": amount}), rest)
        }
        OfferCommand::Tranches { from, to, unit, units, rest } => {
            let params =
                json!({"kind": "tranches", "payer": from, "payee": to, "unit_msat": unit, "tranches": units.0});
            (params, rest)
        }
    };
    params["subject"] = json!(digest(&rest.subject)?);
    params["delta"] = json!(rest.blocks);
    params["dust"] = json!(rest.dust);
    let made = told(&rest.asking, data_dir, "escrow_offer", params).await?;
    shown(&made, rest.asking.json, |made| format!("{}\n", made["escrow"].as_str().unwrap_or_default()))
}

async fn agree(id: EscrowId, dust: bool, order: Order, data_dir: &Path) -> Result<()> {
    let client = Client::find(order.asking.client, data_dir)?;
    // The node says it best if there is none.
    if let Some(offer) = waiting(&client, id).await?
        && !confirmed(&show::question(&offer), order.yes)?
    {
        return Ok(());
    }
    let agreed: Value = client.order("escrow_agree", json!({"escrow": id, "dust": dust}), QUICK).await?;
    shown(&agreed, order.asking.json, |_| {
        format!("agreed to {id}; follow it with `consortium-node escrow show {id}`\n")
    })
}

async fn judge(
    id: EscrowId,
    finding: Finding,
    earned: Option<u32>,
    evidence: &str,
    order: Order,
    data_dir: &Path,
) -> Result<()> {
    let evidence = digest(evidence)?;
    let units = earned.map(|units| format!(", {units} units earned")).unwrap_or_default();
    if !confirmed(&format!("Sign that {id} is {}{units}? There is one verdict.", finding.as_str()), order.yes)? {
        return Ok(());
    }
    let params = json!({"escrow": id, "finding": finding, "earned": earned, "evidence": evidence});
    let judged = told(&order.asking, data_dir, "escrow_judge", params).await?;
    shown(&judged, order.asking.json, |judged| format!("judged: {} earned\n", judged["earned"]))
}

/// A digest as it is typed, or that of a file.
fn digest(text: &str) -> Result<Hash> {
    if let Ok(digest) = text.parse() {
        return Ok(digest);
    }
    let path = PathBuf::from(text);
    let file = || format!("'{text}' is neither 64 hexadecimal digits nor a file that can be read");
    let size = std::fs::metadata(&path).with_context(file)?.len();
    ensure!(size <= MAX_FILE, "{text} is larger than a gibibyte: give its digest");
    Ok(Hash::of(&std::fs::read(&path).with_context(file)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_of_whole_sets_of_tranches() {
        let read = ["3", "7", "4095"].map(|text| tranches(text).unwrap().0);
        assert_eq!(read, [2, 3, 12]);
        assert!(["0", "1", "5", "8191", "-3", "x"].into_iter().all(|text| tranches(text).is_err()));
    }

    #[test]
    fn a_digest_is_given_or_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("task.md");
        std::fs::write(&path, b"work").unwrap();
        let made = digest(path.to_str().unwrap()).unwrap();
        assert_eq!(made, Hash::of(b"work"));
        assert_eq!(digest(&made.to_string()).unwrap(), made);
        assert!(digest("no-such-file").unwrap_err().to_string().contains("nor a file"));
    }
}
