//! `wallet_*`: what the node's Lightning wallet has and does.
//!
//! Looking is for the node's own machine; whatever changes something, and moves money above all, is for its operator
//! ([`crate::operator`]).

use std::future::Future;
use std::time::Duration;

use consortium_ledger::lightning::channels::{Closing, OpenOrder};
use consortium_ledger::lightning::history::MAX_PAGE;
use consortium_ledger::lightning::invoice::{EXPIRY, InvoiceOrder};
use consortium_ledger::lightning::lookup::Fate;
use consortium_ledger::lightning::onchain::OnchainAmount;
use consortium_ledger::lightning::pay::{OUTCOME, PaidView, PayOrder};
use consortium_ledger::lightning::{Wallet, WalletError};
use consortium_protocol::msat::Msat;
use jsonrpsee::RpcModule;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Context;
use super::fault::Fault;
use super::over::{For, over};
use super::params::{self, Nothing};

/// Longest wait for the outcome of a payment, in seconds.
pub(super) const MAX_WAIT_S: u32 = 120;

/// A page of the history.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct History {
    #[serde(default)]
    after: Option<String>,
    #[serde(default)]
    limit: Option<u32>,
}

/// An on-chain payment.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SendOnchain {
    address: String,
    #[serde(default)]
    sat: Option<u64>,
    #[serde(default)]
    all: bool,
    #[serde(default)]
    fee_rate: Option<u64>,
}

/// An invoice to be made.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Invoice {
    #[serde(default)]
    msat: Option<Msat>,
    #[serde(default)]
    description: String,
    #[serde(default)]
    expiry_s: Option<u32>,
}

/// An invoice to be paid.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pay {
    invoice: String,
    #[serde(default)]
    msat: Option<Msat>,
    #[serde(default)]
    max_fee_msat: Option<Msat>,
    #[serde(default)]
    wait_s: Option<u32>,
}

/// A payment that was made.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Receipt {
    hash: String,
}

/// A channel to be opened.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Open {
    peer: String,
    sat: u64,
    #[serde(default)]
    push_msat: Msat,
    #[serde(default)]
    announced: bool,
}

/// A channel to be closed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Close {
    channel: String,
    #[serde(default)]
    force: bool,
}

/// A peer to connect to.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Connect {
    peer: String,
}

/// Adds the methods.
pub(super) fn register(module: &mut RpcModule<Context>) {
    add(module, "wallet_status", For::Machine, async |wallet: Wallet, _: Nothing| {
        let mut status = shown(wallet.status().await?)?;
        status["hints"] = shown(wallet.hints().await?)?;
        Ok(status)
    });
    add(module, "wallet_channels", For::Machine, async |wallet: Wallet, _: Nothing| {
        shown(json!({"channels": wallet.channels().await?, "hints": wallet.hints().await?}))
    });
    add(module, "wallet_history", For::Machine, async |wallet: Wallet, wanted: History| {
        let limit = params::page(wanted.limit, MAX_PAGE)?;
        shown(wallet.history(wanted.after, limit).await?)
    });
    add(module, "wallet_address", For::Operator, async |wallet: Wallet, _: Nothing| {
        shown(json!({"address": wallet.new_address().await?}))
    });
    add(module, "wallet_invoice", For::Operator, async |wallet: Wallet, wanted: Invoice| {
        let expiry = wanted.expiry_s.map_or(EXPIRY, |seconds| Duration::from_secs(seconds.into()));
        let order = InvoiceOrder { amount: wanted.msat, description: wanted.description, expiry };
        shown(wallet.invoice(order).await?)
    });
    add(module, "wallet_send", For::Operator, async |wallet: Wallet, wanted: SendOnchain| {
        let amount = match (wanted.sat, wanted.all) {
            (Some(sat), false) => OnchainAmount::Sat(sat),
            (None, true) => OnchainAmount::All,
            _ => return Err(Fault::Params("give either sat, or all".to_owned())),
        };
        shown(json!({"txid": wallet.send_onchain(&wanted.address, amount, wanted.fee_rate).await?}))
    });
    add(module, "wallet_pay", For::Operator, async |wallet: Wallet, wanted: Pay| {
        let within = wanted.wait_s.map_or(OUTCOME, |seconds| Duration::from_secs(seconds.min(MAX_WAIT_S).into()));
        let order = PayOrder { invoice: wanted.invoice, amount: wanted.msat, max_fee: wanted.max_fee_msat, within };
        shown(PaidView::from(&wallet.pay(order).await?))
    });
    add(module, "wallet_receipt", For::Operator, async |wallet: Wallet, wanted: Receipt| {
        let hash = wanted.hash.parse().map_err(|error| Fault::Params(format!("hash: {error}")))?;
        // The fate first: what is on its way then may have arrived when the receipt is looked for, and not the other way.
        let unpaid = matches!(wallet.fate(hash).await?, Fate::Unsent | Fate::Failed);
        let receipt = wallet.receipt(hash).await?.map(|receipt| hex::encode(receipt.reveal()));
        match receipt {
            None if unpaid => Err(Fault::NotFound("this wallet made no such payment".to_owned())),
            receipt => shown(json!({"preimage": receipt})),
        }
    });
    add(module, "wallet_open", For::Operator, async |wallet: Wallet, wanted: Open| {
        let Open { peer, sat, push_msat, announced } = wanted;
        let order = OpenOrder { peer, size_sat: sat, push: push_msat, announced };
        shown(json!({"channel": wallet.open_channel(order).await?}))
    });
    add(module, "wallet_close", For::Operator, async |wallet: Wallet, wanted: Close| {
        let how = if wanted.force { Closing::Forced } else { Closing::Cooperative };
        wallet.close_channel(&wanted.channel, how).await?;
        shown(json!({"closing": wanted.channel}))
    });
    add(module, "wallet_connect", For::Operator, async |wallet: Wallet, wanted: Connect| {
        wallet.connect(&wanted.peer).await?;
        shown(json!({"connected": wanted.peer}))
    });
    add(module, "wallet_sweep", For::Operator, async |wallet: Wallet, _: Nothing| {
        shown(json!({"swept": wallet.recover().await?}))
    });
    add(module, "wallet_backup", For::Operator, async |wallet: Wallet, _: Nothing| {
        shown(json!({"backup": hex::encode(wallet.backup().await?)}))
    });
}

fn shown<T: serde::Serialize>(value: T) -> Result<Value, Fault> {
    super::methods::json(value)
}

/// Adds one over the wallet.
fn add<P, F, R>(module: &mut RpcModule<Context>, name: &'static str, whom: For, run: F)
where
    P: DeserializeOwned + Send + 'static,
    F: Fn(Wallet, P) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<Value, Fault>> + Send + 'static,
{
    over(module, name, whom, |context| context.wallet.clone().ok_or(Fault::NoWallet), run);
}

impl From<WalletError> for Fault {
    fn from(error: WalletError) -> Self {
        match &error {
            WalletError::OnItsWay(_) => Self::OnItsWay(error.to_string()),
            error if error.is_callers() => Self::Wallet(error.to_string()),
            error => Self::WalletBroken(error.to_string()),
        }
    }
}
