//! A backup of what the root key does not give: who the peers are and where, and which channels there are.
//!
//! The root key ([`super::seed`]) gives the identity, the Lightning node's key and the on-chain money. The state of
//! channels is in neither, on purpose: a channel run from an old state can be taken whole by its other side. After a loss
//! of the data directory the backup says whom to connect to; a peer that meets a node which does not know their channel
//! closes it and pays this side's part on-chain, to keys that the root key gives; [`super::recover`] finds them there.
//!
//! What cannot be restored: payments that were on their way, what a peer pays below its dust limit, the history, preimages
//! of unpaid invoices; with an Esplora or Electrum server alone, what the peers pay out, until a bitcoind looks for it. What
//! is needed of the peers: that they are there, and honest or unaware that the state is lost: one that knows it can close
//! with an old state that is better for it, and nothing is left to prove it with.
//!
//! The format: `CLWB`, a version (1), a nonce of 24 bytes, and the JSON of a [`Backup`] under XChaCha20-Poly1305 with the
//! head (the first five bytes) as associated data and a key derived from the root key.

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use consortium_protocol::identity::RootKey;
use ldk_node::lightning::routing::gossip::NodeId;
use serde::{Deserialize, Serialize};

use super::channels::ChannelView;
use super::error::WalletError;
use super::seed;
use super::wallet::{Inner, LOCAL, Wallet, now_ms};

/// The head: a mark and the version.
const HEAD: [u8; 5] = *b"CLWB\x01";
const NONCE: usize = 24;
/// Largest backup read, in bytes.
pub const MAX_BACKUP: usize = 4 * 1024 * 1024;

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// When it was made, in milliseconds since 1970.
    pub at_ms: u64,
    /// Of which network the wallet is.
    pub network: String,
    /// The Lightning node's public key.
    pub node_id: String,
    /// The peers with whom there were channels, and others that are remembered.
    pub peers: Vec<BackupPeer>,
    /// The channels there were.
    pub channels: Vec<ChannelView>,
}

/// A peer and where it may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupPeer {
    /// Its public key.
    pub id: String,
    /// Where it was, and where it says it is: `HOST:PORT`.
    pub addresses: Vec<String>,
}

impl Wallet {
    /// An encrypted backup, as of now.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub async fn backup(&self) -> Result<Vec<u8>, WalletError> {
        let channels = self.channels().await?;
        self.ask("making a backup", LOCAL, move |inner| {
            let backup = Backup {
                at_ms: now_ms(),
                network: inner.settings.network.to_string(),
                node_id: inner.node.node_id().to_string(),
                peers: peers(inner, &channels),
                channels,
            };
            seal(&backup, &inner.backup_key)
        })
        .await
    }
}

fn peers(inner: &Inner, channels: &[ChannelView]) -> Vec<BackupPeer> {
    let known = inner.node.list_peers();
    let mut ids: Vec<String> = channels.iter().map(|channel| channel.peer.clone()).collect();
    ids.extend(known.iter().filter(|peer| peer.is_persisted).map(|peer| peer.node_id.to_string()));
    ids.sort_unstable();
    ids.dedup();
    ids.into_iter().map(|id| BackupPeer { addresses: addresses(inner, &id), id }).collect()
}

impl Wallet {
    /// Where a Lightning node may be, `HOST:PORT` each: where it says it is, and where it was seen.
    ///
    /// # Errors
    /// When the wallet is stopping.
    pub async fn addresses_of(&self, id: &str) -> Result<Vec<String>, WalletError> {
        let id = id.to_owned();
        self.ask("looking for a peer", LOCAL, move |inner| Ok(addresses(inner, &id))).await
    }
}

fn addresses(inner: &Inner, id: &str) -> Vec<String> {
    let (known, graph) = (inner.node.list_peers(), inner.node.network_graph());
    // What the peer announces comes first: a connection that it made shows a port that nobody listens on.
    let announced = id.parse().ok().and_then(|key| graph.node(&NodeId::from_pubkey(&key)));
    let announced = announced
        .and_then(|node| node.announcement_info)
        .map_or_else(Vec::new, |info| info.addresses().iter().map(ToString::to_string).collect::<Vec<_>>());
    let seen = known.iter().filter(|peer| peer.node_id.to_string() == id).map(|peer| peer.address.to_string());
    let mut all: Vec<String> = announced.into_iter().chain(seen).collect();
    all.dedup();
    all
}

fn seal(backup: &Backup, key: &[u8; 32]) -> Result<Vec<u8>, WalletError> {
    let plain = serde_json::to_vec(backup).map_err(std::io::Error::other)?;
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce).map_err(std::io::Error::other)?;
    let payload = Payload { msg: &plain, aad: &HEAD };
    let sealed = XChaCha20Poly1305::new(key.into()).encrypt(XNonce::from_slice(&nonce), payload);
    Ok([&HEAD[..], &nonce, &sealed.map_err(|_| WalletError::Backup)?].concat())
}

/// Opens a backup with the root key of the node that made it.
///
/// # Errors
/// [`WalletError::Backup`] when it is damaged, of a newer version, or of another node.
pub fn open(bytes: &[u8], key: &RootKey) -> Result<Backup, WalletError> {
    unseal(bytes, &key.derive(seed::BACKUP)).ok_or(WalletError::Backup)
}

fn unseal(bytes: &[u8], key: &[u8; 32]) -> Option<Backup> {
    if bytes.len() > MAX_BACKUP {
        return None;
    }
    let (nonce, sealed) = bytes.strip_prefix(&HEAD)?.split_at_checked(NONCE)?;
    let payload = Payload { msg: sealed, aad: &HEAD };
    let plain = XChaCha20Poly1305::new(key.into()).decrypt(XNonce::from_slice(nonce), payload).ok()?;
    serde_json::from_slice(&plain).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_opened_by_its_key_alone_and_shows_nothing() {
        let key = RootKey::from_seed([5; 32]);
        let backup = Backup {
            at_ms: 1,
            network: "signet".to_owned(),
            node_id: "02ee".to_owned(),
            peers: vec![BackupPeer { id: "03aa".to_owned(), addresses: vec!["peer.example:9735".to_owned()] }],
            channels: Vec::new(),
        };
        let sealed = seal(&backup, &key.derive(seed::BACKUP)).unwrap();
        assert!(!sealed.windows(12).any(|window| window == b"peer.example"));
        assert_eq!(open(&sealed, &key).unwrap(), backup);
        assert!(open(&sealed, &RootKey::from_seed([6; 32])).is_err());
        for damaged in [0, 4, 5, 29, sealed.len() - 1] {
            let mut bytes = sealed.clone();
            bytes[damaged] ^= 1;
            assert!(open(&bytes, &key).is_err(), "{damaged}");
        }
        assert!(open(&sealed[..20], &key).is_err());
        assert!(open(&[], &key).is_err());
    }
}
