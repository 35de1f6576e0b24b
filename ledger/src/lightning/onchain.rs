//! Addresses and on-chain payments.

use std::str::FromStr as _;

use consortium_protocol::Msat;
use ldk_node::NodeError;
use ldk_node::bitcoin::address::NetworkUnchecked;
use ldk_node::bitcoin::hashes::Hash as _;
use ldk_node::bitcoin::{Address, FeeRate, Network};

use super::coins::Spending;
use super::error::{self, WalletError};
use super::wallet::{Inner, LOCAL, Wallet, now_ms};

/// The smallest on-chain payment, in sat: less is not relayed.
pub const SMALLEST_SAT: u64 = 546;

/// How much is sent on-chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnchainAmount {
    /// So many sat; the fee comes on top.
    Sat(u64),
    /// All that is free to be spent, the fee taken from it. The reserve for closing channels stays.
    All,
}

/// Virtual bytes that a transaction of many coins may have: what is kept free for its fee under the spending limits.
const LARGE_VBYTES: u64 = 1000;

impl Wallet {
    /// A new address of this wallet.
    ///
    /// # Errors
    /// When it cannot be written down that it is taken.
    pub async fn new_address(&self) -> Result<String, WalletError> {
        self.ask("making an address", LOCAL, |inner| {
            let address = inner.node.onchain_payment().new_address();
            Ok(address.map_err(error::of("making an address"))?.to_string())
        })
        .await
    }

    /// Sends to an address, when what was spent on-chain before is seen, at `fee_rate` sat for a virtual byte, or else
    /// what the chain source estimates; on mainnet it must be given, since the chain source might say anything. Gives the
    /// id of the transaction, which the chain source then has, and which is not confirmed.
    ///
    /// # Errors
    /// When the address is of another network, the amount too small, too much, or above a limit; when the wallet has not
    /// seen what it spent before, or the chain source does not take the transaction.
    pub async fn send_onchain(
        &self,
        address: &str,
        amount: OnchainAmount,
        fee_rate: Option<u64>,
    ) -> Result<String, WalletError> {
        let address = address.to_owned();
        self.spend(move |wallet| async move {
            wallet.ask("sending on-chain", LOCAL, move |inner| send(inner, &address, amount, fee_rate)).await
        })
        .await
    }
}

fn send(
    inner: &Inner,
    address: &str,
    amount: OnchainAmount,
    fee_rate: Option<u64>,
) -> Result<Spending<String>, WalletError> {
    let rate = rate(inner, fee_rate)?;
    let address = parse(inner, address)?;
    let balances = inner.node.list_balances();
    let spendable = balances.spendable_onchain_balance_sats;
    let sat = match amount {
        OnchainAmount::Sat(sat) => sat,
        OnchainAmount::All => spendable,
    };
    let short = || WalletError::Insufficient {
        spendable,
        reserved: balances.total_anchor_channels_reserve_sats,
        needed: sat.max(SMALLEST_SAT),
    };
    if sat > spendable || spendable < SMALLEST_SAT {
        return Err(short());
    }
    if sat < SMALLEST_SAT {
        return Err(WalletError::Invalid(format!(
            "{sat} sat are too few to be sent on-chain; send {SMALLEST_SAT} or more"
        )));
    }
    let value = Msat::from_sat(sat).ok_or_else(short)?;
    // The fee of all comes out of what is sent.
    let fee = match amount {
        OnchainAmount::Sat(_) => {
            Msat::from_sat(fee_rate.unwrap_or(0).saturating_mul(LARGE_VBYTES)).ok_or_else(short)?
        }
        OnchainAmount::All => Msat::ZERO,
    };
    let at_most = value.checked_add(fee).ok_or_else(short)?;
    let reserved = random_id()?;
    inner.records.reserve(&reserved, (value, at_most), &inner.settings.limits, now_ms())?;
    let payment = inner.node.onchain_payment();
    let sent = match amount {
        OnchainAmount::Sat(sat) => payment.send_to_address(&address, sat, rate),
        OnchainAmount::All => payment.send_all_to_address(&address, true, rate),
    };
    match sent {
        Ok(txid) => {
            inner.records.spent(&reserved, &txid.to_byte_array(), at_most)?;
            Ok(Spending { value: txid.to_string(), txid, amount: sat })
        }
        Err(error) => {
            inner.records.returned(&reserved)?;
            Err(match error {
                NodeError::InsufficientFunds => short(),
                error => error::of("sending on-chain")(error),
            })
        }
    }
}

/// The fee rate to go by.
fn rate(inner: &Inner, given: Option<u64>) -> Result<Option<FeeRate>, WalletError> {
    let invalid = |why: &str| Err(WalletError::Invalid(why.to_owned()));
    match given {
        None if inner.network() == Network::Bitcoin => {
            invalid("on mainnet say what the fee may be: --fee-rate, in sat for a virtual byte")
        }
        None => Ok(None),
        Some(0) => invalid("the fee rate is at least 1 sat for a virtual byte"),
        Some(rate) => match FeeRate::from_sat_per_vb(rate) {
            Some(rate) => Ok(Some(rate)),
            None => invalid("no such fee rate can be"),
        },
    }
}

fn parse(inner: &Inner, text: &str) -> Result<Address, WalletError> {
    let bad = |why: String| WalletError::Invalid(why);
    let address = Address::<NetworkUnchecked>::from_str(text)
        .map_err(|_| bad(format!("'{text:.100}' is not a bitcoin address")))?;
    address
        .require_network(inner.network())
        .map_err(|_| bad(format!("'{text:.100}' is not an address of {}", inner.settings.network)))
}

/// A name for what has none yet.
pub(super) fn random_id() -> Result<[u8; 32], WalletError> {
    let mut id = [0; 32];
    getrandom::fill(&mut id).map_err(|error| WalletError::Io(std::io::Error::other(error)))?;
    Ok(id)
}
