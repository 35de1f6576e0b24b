//! A regtest chain in this process: real blocks, real rules, bitcoind's JSON-RPC and REST.
//!
//! Wallets and Lightning nodes take it for a `bitcoind -regtest -txindex -rest`; nothing but this process is needed. Three
//! layers, each knowing only those above it in this list:
//!
//! - The rules, which hold no state: [`params`], [`transaction`] (amounts, locks, maturity), [`script`] (Bitcoin Core's
//!   own interpreter), [`block`].
//! - [`Chain`] holds the state: every block ever seen in a [`tree`], the coins of the best branch ([`coins`]), the
//!   [`mempool`], a [`faucet`] that owns what is mined, and the blocks on disk ([`store`]). It has no clock: whoever
//!   calls says what time it is.
//! - [`rpc`] serves it on loopback, on a thread of its own.
//!
//! What it makes is held against Bitcoin Core itself: the program `chain-check` has libbitcoinkernel judge every block of
//! a [`store`], and the test `kernel` forges blocks which both must refuse for the same reason (feature
//! `bitcoinkernel`; `scripts/kernel`).
//!
//! # What it does not do
//! - It speaks to no other node: blocks come from `submitblock` or are mined here.
//! - Bitcoin Core's interpreter is reached through libbitcoinconsensus, which knows the rules of consensus and not the
//!   stricter ones of relay (low S, clean stack, minimal pushes): a transaction that breaks only those is relayed here.
//! - The mempool and what `invalidateblock` said are forgotten at the end of the process; blocks are kept, and the most
//!   work decides again.

mod assemble;
mod block;
mod branch;
mod coins;
mod faucet;
mod mempool;
mod params;
mod regtest;
pub mod rpc;

mod script;
mod state;
mod store;
mod transaction;
mod tree;
mod view;

#[cfg(test)]
mod tests;

pub use block::BlockError;
pub use faucet::{Faucet, FaucetError};
pub use mempool::{Entry, MempoolError};
pub use regtest::{OpenError, Regtest};
pub use state::{Accepted, Chain, ChainError};
pub use store::StoreError;
pub use transaction::TransactionError;
pub use view::{BlockInfo, Tip, Unspent};
