//! One on-chain spending after the other, so that no coin is spent twice.
//!
//! ldk-node's on-chain wallet learns of a transaction, also of its own, from the chain source alone. Until then the coins
//! in it count as unspent, and the next transaction may take them, which the chain refuses: a payment that never was, or
//! a channel whose funding is never broadcast. So whoever spends waits for its turn, and the turn comes only when the
//! wallet has seen what was spent before. With a bitcoind that takes two seconds; but a transaction that came in the same
//! second as another one, which ldk-node has seen already, is noticed only in a block. Then the next spending is refused
//! until it is.
//!
//! The fee bumps of channels closed by force are ldk-node's own, and do not wait here: one may replace a transaction made
//! here that waits for a block. A channel that was to be funded by that is never confirmed then, and is given up.

use std::future::Future;
use std::time::Duration;

use ldk_node::bitcoin::Txid;
use ldk_node::bitcoin::hashes::Hash as _;
use ldk_node::lightning::ln::channelmanager::PaymentId;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::bitcoind::Bitcoind;
use super::error::{self, WalletError};
use super::wallet::{Inner, Wallet};

/// Time for those before to spend.
const TURN: Duration = Duration::from_secs(90);
/// Time for the chain source to take a transaction.
const TAKEN: Duration = Duration::from_secs(20);
/// Time for the wallet to see what was spent before.
const SEEN: Duration = Duration::from_secs(20);
/// Time to ask the chain source once.
const SYNC: Duration = Duration::from_secs(60);
/// Pause before the chain source is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// Whose turn it is to spend coins.
#[derive(Debug, Default)]
pub(super) struct Coins {
    before: Mutex<Before>,
}

/// What was spent last.
#[derive(Clone, Copy, Debug, Default)]
enum Before {
    /// Nobody knows: the wallet was just started, or a spending broke off.
    #[default]
    Unknown,
    /// The wallet has seen it.
    Seen,
    /// This, which the wallet may not have seen.
    Spent(Spent),
}

/// A transaction that was made here.
#[derive(Clone, Copy, Debug)]
struct Spent {
    txid: Txid,
    /// What was the wallet's own before it, in sat: confirmed, or its own change.
    own_before: u64,
    /// What it takes away at least, in sat.
    amount: u64,
}

/// What a spending did.
pub(super) struct Spending<T> {
    /// What its caller wants to know.
    pub(super) value: T,
    /// The transaction.
    pub(super) txid: Txid,
    /// What it takes from the wallet at least, in sat.
    pub(super) amount: u64,
}

impl Wallet {
    /// Spends coins when it is this one's turn, and waits until the chain source has taken the transaction. Goes on to its
    /// end also when nobody waits for it any more.
    ///
    /// # Errors
    /// Those of `work`; [`WalletError::NotSeen`] when the wallet does not see what was spent before in time;
    /// [`WalletError::NotTaken`] when the chain source does not have the transaction in time.
    pub(super) async fn spend<T, F>(&self, work: impl FnOnce(Self) -> F + Send + 'static) -> Result<T, WalletError>
    where
        T: Send + 'static,
        F: Future<Output = Result<Spending<T>, WalletError>> + Send,
    {
        let wallet = self.clone();
        let spending = tokio::spawn(async move {
            let turn = tokio::time::timeout(TURN, wallet.inner.coins.before.lock()).await;
            let late = WalletError::Late { what: "waiting for another on-chain spending of this wallet", after: TURN };
            let mut before = turn.map_err(|_| late)?;
            catch_up(&wallet, &mut before).await?;
            let own_before = own(&wallet.inner);
            *before = Before::Unknown;
            let Spending { value, txid, amount } = work(wallet.clone()).await?;
            *before = Before::Spent(Spent { txid, own_before, amount });
            if let Err(error) = taken(&wallet, txid).await {
                *before = Before::Unknown;
                return Err(error);
            }
            Ok(value)
        });
        spending.await.map_err(|_| WalletError::Stopped)?
    }
}

/// Waits until the wallet has seen what was spent before.
async fn catch_up(wallet: &Wallet, before: &mut Before) -> Result<(), WalletError> {
    let give_up = Instant::now() + SEEN;
    while !matches!(before, Before::Seen) {
        sync(wallet).await?;
        match *before {
            Before::Spent(spent) if !is_seen(&wallet.inner, spent) => {
                if Instant::now() > give_up {
                    return Err(WalletError::NotSeen(spent.txid.to_string()));
                }
                tokio::time::sleep(AGAIN).await;
            }
            _ => *before = Before::Seen,
        }
    }
    Ok(())
}

/// Has the wallet ask the chain source now.
async fn sync(wallet: &Wallet) -> Result<(), WalletError> {
    let asking = |inner: &Inner| inner.node.sync_wallets().map_err(error::of("asking the chain source"));
    wallet.ask("asking the chain source", SYNC, asking).await
}

/// Whether the wallet knows that these coins are spent: the transaction is in its list, or what it has is less. Coins
/// that arrive meanwhile and are not confirmed do not count as its own.
fn is_seen(inner: &Inner, spent: Spent) -> bool {
    is_listed(inner, &spent.txid) || own(inner).saturating_add(spent.amount) <= spent.own_before
}

/// Whether the transaction is in the wallet's list. With a bitcoind only those are that were there at a block.
fn is_listed(inner: &Inner, txid: &Txid) -> bool {
    inner.node.payment(&PaymentId(txid.to_byte_array())).is_some()
}

/// What is the wallet's own on-chain, in sat: confirmed, or its own change.
fn own(inner: &Inner) -> u64 {
    let balances = inner.node.list_balances();
    balances.spendable_onchain_balance_sats.saturating_add(balances.total_anchor_channels_reserve_sats)
}

/// Waits until the chain source has the transaction.
async fn taken(wallet: &Wallet, txid: Txid) -> Result<(), WalletError> {
    let give_up = Instant::now() + TAKEN;
    loop {
        // What cannot be asked now is asked again.
        if is_listed(&wallet.inner, &txid) || is_known(wallet, &txid).await.unwrap_or(false) {
            return Ok(());
        }
        if Instant::now() > give_up {
            return Err(WalletError::NotTaken(txid.to_string()));
        }
        tokio::time::sleep(AGAIN / 4).await;
    }
}

/// Whether the chain source knows a transaction.
async fn is_known(wallet: &Wallet, txid: &Txid) -> Result<bool, WalletError> {
    if let Some(bitcoind) = Bitcoind::of(&wallet.inner.settings.chain) {
        return bitcoind.is_waiting(txid).await;
    }
    // The other chain sources list it at once.
    sync(wallet).await?;
    Ok(is_listed(&wallet.inner, txid))
}
