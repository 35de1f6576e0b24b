//! How a wallet is doing.

use consortium_protocol::Msat;
use serde::{Deserialize, Serialize};

use super::balance::{self, Balances};
use super::error::WalletError;
use super::wallet::{LOCAL, Wallet, now_ms};

/// How a wallet is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalletStatus {
    /// `mainnet`, `testnet`, `signet` or `regtest`.
    pub network: String,
    /// The Lightning node's public key.
    pub node_id: String,
    /// Its public name.
    pub alias: Option<String>,
    /// Where other Lightning nodes may connect.
    pub listen: Vec<String>,
    /// Where the chain is read, without credentials.
    pub chain: String,
    /// The height of the chain as the wallet has seen it.
    pub height: u32,
    /// When the wallet last heard from the chain, in seconds since 1970.
    pub synced_s: Option<u64>,
    /// Lightning peers connected.
    pub peers: u32,
    /// Channels, and how many of them can be used now.
    pub channels: u32,
    /// Channels that can be used now.
    pub usable_channels: u32,
    /// What it has.
    pub balances: Balances,
    /// What may be spent in one payment, fees included.
    pub limit_per_payment: Option<Msat>,
    /// What may be spent in 24 hours, fees included.
    pub limit_per_day: Option<Msat>,
    /// What was spent in the last 24 hours, or is on its way.
    pub spent_today: Msat,
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl Wallet {
    /// The Lightning node's public key, in hexadecimal digits.
    #[must_use]
    pub fn node_id(&self) -> String {
        self.inner.node.node_id().to_string()
    }

    /// The height of the chain as the wallet has seen it.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.inner.height()
    }

    /// How the wallet is doing.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn status(&self) -> Result<WalletStatus, WalletError> {
        self.ask("looking at the wallet", LOCAL, |inner| {
            let (status, channels) = (inner.node.status(), inner.node.list_channels());
            let settings = &inner.settings;
            Ok(WalletStatus {
                network: settings.network.to_string(),
                node_id: inner.node.node_id().to_string(),
                alias: settings.alias.clone(),
                listen: settings.listen.iter().map(ToString::to_string).collect(),
                chain: settings.chain.to_string(),
                height: status.current_best_block.height,
                synced_s: status.latest_lightning_wallet_sync_timestamp,
                peers: count(inner.node.list_peers().iter().filter(|peer| peer.is_connected).count()),
                channels: count(channels.len()),
                usable_channels: count(channels.iter().filter(|channel| channel.is_usable).count()),
                balances: balance::of(inner)?,
                limit_per_payment: settings.limits.per_payment,
                limit_per_day: settings.limits.per_day,
                spent_today: inner.records.spent_today(now_ms())?,
            })
        })
        .await
    }
}
