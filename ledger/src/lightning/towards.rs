//! What settling tabs needs of a wallet: how much can come at a time, and a channel towards a peer that has connected
//! itself.

use super::channels::OpenOrder;
use super::error::WalletError;
use super::wallet::{LOCAL, Wallet};
use consortium_protocol::Msat;
use ldk_node::bitcoin::secp256k1::PublicKey;

impl Wallet {
    /// The largest payment that one channel can receive now: LDK takes a tenth of a channel at a time from whoever opened
    /// it.
    ///
    /// # Errors
    /// When the wallet is stopping.
    pub async fn largest_incoming(&self) -> Result<Msat, WalletError> {
        self.ask("listing channels", LOCAL, |inner| {
            let channels = inner.node.list_channels();
            let usable = channels.iter().filter(|channel| channel.is_usable);
            let most = usable.map(|channel| {
                channel.inbound_capacity_msat.min(channel.inbound_htlc_maximum_msat.unwrap_or(u64::MAX))
            });
            Ok(Msat(most.max().unwrap_or(0)))
        })
        .await
    }

    /// Opens a private channel to the Lightning node `id`, which must be connected: it may be one that cannot be
    /// dialled. Gives the channel's name.
    ///
    /// # Errors
    /// [`WalletError::Unreachable`] when it is not connected; else as [`Wallet::open_channel`].
    pub async fn open_channel_back(&self, id: &str, size_sat: u64) -> Result<String, WalletError> {
        let bad = |_| WalletError::Invalid(format!("'{id:.70}' is not the public key of a Lightning node"));
        let peer: PublicKey = id.parse().map_err(bad)?;
        let address = self
            .ask("looking for a peer", LOCAL, move |inner| {
                let peers = inner.node.list_peers();
                let found = peers.into_iter().find(|known| known.node_id == peer && known.is_connected);
                found.map(|known| known.address.to_string()).ok_or(WalletError::Unreachable(peer.to_string()))
            })
            .await?;
        let order = OpenOrder { peer: format!("{id}@{address}"), size_sat, push: Msat::ZERO, announced: false };
        self.open_channel(order).await
    }
}
