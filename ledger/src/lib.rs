//! What a node keeps about money and the right to spend it.
//!
//! One SQLite file, `ledger.db`, holds it all, because what is spent, who may spend it and what was proven about it
//! have to change together.
//!
//! * [`store`] opens the file: schema by migrations, a newer file refused, several processes at once (the daemon
//!   and the command line) welcome.
//! * [`api_keys`] says who may use a node's HTTP API.
//!
//! To come, in this order: accounts in millisatoshi with double entry and one writer; signed token receipts and the
//! cumulative tabs between pairs; reputation from signed evidence; the Merkle log of transactions; L402; and, behind
//! the `lightning` feature, an embedded Lightning node that settles tabs. Everything but settlement works with that
//! feature off, which is why it is off by default.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod api_keys;
pub mod store;
