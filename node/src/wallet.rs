//! The node's Lightning wallet: from the node's settings to a running [`Wallet`], and what works over it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use consortium_ledger::Ledger;
use consortium_ledger::lightning::Wallet;
use consortium_ledger::lightning::settings::WalletSettings;
use consortium_protocol::identity::RootKey;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::escrow::EscrowDesk;
use crate::swarm::SwarmHandle;
use crate::till::{Till, TillSettings};

/// Where the wallet is kept, within the data directory.
pub const DIRECTORY: &str = "lightning";
/// Time that escrows have to end what they are at.
const ESCROWS_END: Duration = Duration::from_secs(3);

/// Starts the wallet of `data_dir`, if there is to be one.
///
/// # Errors
/// In words for the operator; the node had better not start without what was asked for.
pub async fn start(settings: Option<WalletSettings>, data_dir: &Path, key: &RootKey) -> anyhow::Result<Option<Wallet>> {
    let Some(settings) = settings else { return Ok(None) };
    let (network, chain) = (settings.network, settings.chain.to_string());
    let folder = data_dir.join(DIRECTORY);
    let starting = Box::pin(Wallet::start(settings, &folder, key));
    let wallet = starting.await.with_context(|| format!("cannot start the wallet on {network} with {chain}"))?;
    info!(%network, chain, node = wallet.node_id(), height = wallet.height(), "the Lightning wallet is started");
    Ok(Some(wallet))
}

/// The till over the wallet, if there is one.
#[must_use]
pub fn till(
    wallet: Option<&Wallet>,
    ledger: &Ledger,
    settings: TillSettings,
    stop: &CancellationToken,
) -> Option<Till> {
    let wallet = wallet?.clone();
    if settings.open_to_all {
        info!(bundle = %settings.bundle, max_credit = %settings.max_credit, "completions are sold over Lightning");
    }
    Some(Till::open(ledger.clone(), Arc::new(wallet), settings, stop.clone()))
}

/// Ends the node when its wallet has broken off: what was promised over Lightning can only be kept by a new start. Tells
/// whether it has.
pub async fn watch_over(wallet: Wallet, stop: CancellationToken) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = wallet.broke_off() => {
            error!("the wallet broke off, on a full disk perhaps: the node ends; see to it and start the node again");
            stop.cancel();
            true
        }
    }
}

/// The escrows over the wallet, if there is one, at work until `stop`; and when they have ended.
///
/// # Errors
/// When their log cannot be read: what is locked could not be looked after.
pub async fn escrows(
    wallet: Option<&Wallet>,
    data_dir: &Path,
    key: &RootKey,
    books: &Ledger,
    swarm: &SwarmHandle,
    stop: &CancellationToken,
) -> anyhow::Result<(Option<EscrowDesk>, Option<JoinHandle<()>>)> {
    let Some(wallet) = wallet.cloned() else { return Ok((None, None)) };
    let (desk, posts) = EscrowDesk::open(wallet, data_dir, key, books.clone()).await?;
    let end = desk.spawn(posts, swarm.clone(), stop.clone());
    Ok((Some(desk), Some(end)))
}

/// Stops the wallet, if there is one, once the escrows over it have ended what they were at.
pub async fn stop(wallet: Option<Wallet>, escrows: Option<JoinHandle<()>>) {
    if let Some(escrows) = escrows
        && tokio::time::timeout(ESCROWS_END, escrows).await.is_err()
    {
        warn!("the escrows did not end in time; they go on at the next start");
    }
    let Some(wallet) = wallet else { return };
    if let Err(error) = wallet.stop().await {
        warn!(%error, "the wallet did not end as it should");
    }
}
