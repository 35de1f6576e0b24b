//! What a node keeps about money and the right to spend it.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod accounts;
pub mod api_keys;
pub mod batches;
pub mod cells;
pub mod heads;
pub mod journal;
pub mod ledger;
pub mod metering;
pub mod price;
pub mod reconcile;
pub mod reputation;
pub mod statement;
pub mod store;
mod tree;

pub use ledger::{Ledger, LedgerError};
