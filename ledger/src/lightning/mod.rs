//! The Lightning wallet of a node: ldk-node inside the process, on the node's own runtime.
//!
//! # Architecture
//!
//! ```text
//! settings      network, chain, limits: checked before anything starts   (these two are there without the feature,
//! chain_source  bitcoind, Esplora or Electrum; credentials never shown    so that settings are read all the same)
//! wallet        Wallet, the handle: start, stop; everything that blocks runs on threads made for it, with a deadline
//! node          puts ldk-node together; its files are its owner's alone
//! seed          64 bytes from the root key, never written down
//! drain         takes ldk-node's events, one at a time: first written down, then told
//! event         what happened, in types of our own, without preimages
//! records       wallet.db: invoices, holds, events
//! spending      what was spent, and the limits
//! coins         one on-chain spending after the other, so that no coin is spent twice
//! bitcoind      what is asked of a bitcoind beside what ldk-node asks
//! rest          whether a bitcoind can be read by REST
//! watermark     an old copy of the directory is not started
//! reconnect     peers with channels are connected at once, not once a minute
//! recover       what peers paid out when they closed channels that were lost
//! balance status history channels onchain invoice pay lookup hold locked backup    what can be asked of it
//! liquidity     which channels are worth their money, within a budget; hints
//! failures      peers with which no channel could be opened, left alone for a while
//! towards       what settling tabs needs: how much can come at a time, a channel back to a peer
//! log           what ldk-node says, without what may carry secrets
//! ```
//!
//! Two databases are in `<data-dir>/lightning/` (mode 0700, files 0600): ldk-node's own, with the state of channels, and
//! `wallet.db`. Unlike the rest of this crate, the wallet has a clock and draws random numbers: it talks to the world.
//!
//! # What is trusted
//!
//! - The chain source. A bitcoind of one's own verifies everything; an Esplora or Electrum server is believed, and one
//!   that hides blocks can keep a channel's other side from being caught while it cheats.
//! - The operator's machine: whoever reads `identity.key` has the seed.
//! - Peers named in `trusted_peers` to get their channels' closings confirmed. Others are not trusted: a channel's other
//!   side can make one wait, and cost the fee of a closing.
//!
//! # What can be lost
//!
//! - A channel's whole balance, if it is run from an old copy of `lightning/`. A copy of that directory alone is noticed
//!   and refused at the start; one of the whole data directory is not: never put one back. A backup ([`backup`]) holds no
//!   such state.
//! - What is in channels, if the machine stays off for longer than their delay (a day to two weeks) while the other side
//!   cheats.
//! - Payments in flight below [`invoice::DUST`] when their channel is closed by force: they cannot be enforced on-chain.
//! - On mainnet, everything, through a defect of this young software: hence the switch and the limits
//!   ([`settings::SpendingLimits`], kept over restarts).
//!
//! The on-chain money comes back with the root key alone. With an Esplora or Electrum server all addresses are looked
//! through; with a bitcoind a new wallet looks at blocks from its first start on, so older money is not seen: restore with
//! one of the others.

pub mod chain_source;
pub mod settings;

#[cfg(feature = "lightning")]
pub mod backup;
#[cfg(feature = "lightning")]
pub mod balance;
#[cfg(feature = "lightning")]
mod bitcoind;
#[cfg(feature = "lightning")]
pub mod channels;
#[cfg(feature = "lightning")]
mod coins;
#[cfg(feature = "lightning")]
mod drain;
#[cfg(feature = "lightning")]
pub mod error;
#[cfg(feature = "lightning")]
pub mod event;
#[cfg(feature = "lightning")]
pub mod failures;
#[cfg(feature = "lightning")]
pub mod hash;
#[cfg(feature = "lightning")]
pub mod history;
#[cfg(feature = "lightning")]
pub mod hold;
#[cfg(feature = "lightning")]
pub mod invoice;
#[cfg(feature = "lightning")]
pub mod liquidity;
#[cfg(feature = "lightning")]
pub mod locked;
#[cfg(feature = "lightning")]
mod log;
#[cfg(feature = "lightning")]
pub mod lookup;
#[cfg(feature = "lightning")]
mod node;
#[cfg(feature = "lightning")]
pub mod onchain;
#[cfg(feature = "lightning")]
pub mod pay;
#[cfg(feature = "lightning")]
mod reconnect;
#[cfg(feature = "lightning")]
pub mod records;
#[cfg(feature = "lightning")]
pub mod recover;
#[cfg(feature = "lightning")]
mod rest;
#[cfg(feature = "lightning")]
mod seed;
#[cfg(feature = "lightning")]
mod spending;
#[cfg(feature = "lightning")]
pub mod status;
#[cfg(feature = "lightning")]
mod towards;
#[cfg(feature = "lightning")]
mod wallet;
#[cfg(feature = "lightning")]
mod watermark;

#[cfg(feature = "lightning")]
pub use error::WalletError;
#[cfg(feature = "lightning")]
pub use event::WalletEvent;
#[cfg(feature = "lightning")]
pub use hash::{PaymentHash, Preimage};
#[cfg(feature = "lightning")]
pub use wallet::{START, STOP, Wallet};
