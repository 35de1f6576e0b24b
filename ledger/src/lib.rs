//! What a node keeps about money, the right to spend it, and other nodes.
//!
//! One SQLite file, `ledger.db`, holds it all, because what is spent, who may spend it and what was proven about it
//! have to change together.
//!
//! # Architecture
//!
//! ```text
//! store       opens the file: schema by migrations, a newer file refused, several processes welcome
//! api_keys    who may use a node's HTTP API
//! ledger      Ledger, LedgerError: the handle, cheap to clone; each change is one transaction
//! accounts    whose money: peers, API keys, own books; deposits, withdrawals, bonds, trial credit
//! journal     entries that balance, each bound to the one before by its hash; verify()
//! price       what work costs, fixed or by load; rates of pipelines, quotes of jobs
//! cells       layers by positions: what is paid once
//! claims      pay on its way from payer to worker
//! metering    pay for work: charged, held for an audit, delayed, returned
//! reservations what a job may cost, put aside before it starts
//! payments    whose account a Lightning payment is for; what moved, booked once
//! payouts     what training runs pay, booked once by who pays and by who is paid
//! l402/       credentials bought over Lightning: macaroons, and the accounts they spend
//! tabs        what two nodes owe each other now: what is settled over Lightning
//! reconcile   whether everything adds up
//! lightning/  the embedded Lightning wallet
//! earnings    what the node earned by kind of work, against the price of electricity
//! escrow/     bonds, rewards and tranches over hold invoices: a log of its own, `escrow.db`
//! statement   what an account was charged and credited over a time
//! tree        the Merkle tree over the journal (private)
//! batches     own signed tree heads, proofs of entries and of growth
//! heads       tree heads of others, and proofs that they contradict themselves
//! reputation/ evidence, scores, trust, bans, records of nodes, views of them
//! ```
//!
//! What is computed from values alone is a pure function ([`price`], [`cells`], [`reputation::score()`],
//! [`reputation::trust()`], [`batches::BatchPolicy`]); the rest is methods of [`Ledger`]. Time comes in as an argument, in
//! milliseconds since 1970; nothing here reads a clock or draws a random number, but for the secrets of API keys. The
//! only writer is whoever holds SQLite's write lock: methods take it at their start, so two processes (the daemon and
//! the command line) cannot build on the same last entry.
//!
//! # Money
//!
//! Amounts are whole msat. A balance above zero is owed by this node, one below zero is owed to it; all balances
//! together are zero. Every movement is an [`journal::Entry`], whose postings sum to zero and whose kind and reference
//! are unique: to post a thing again changes nothing and says so. Balances, turnover, claims and the tree are kept
//! beside the journal in the same transaction; [`Ledger::reconcile`] compares them with it, [`Ledger::verify`] checks
//! the journal itself. Triggers in the database refuse to change or delete an entry, against accidents; against whoever
//! owns the file there are the hashes, and the tree heads that others have seen.
//!
//! How pay moves is drawn in [`metering`], what it costs is in [`price`], how a key pays for a job is in [`reservations`].
//!
//! # Formats that others recompute
//!
//! - An entry's hash: [`journal`]. The tree's leaf `n` is `BLAKE3(0x00 || hash of entry n)`; the tree is that of
//!   [`consortium_protocol::merkle`].
//! - Tree heads, equivocations and rebuttals: [`consortium_protocol::wire::ledger`].
//! - Scores, trust, bans and evidence roots: [`reputation`], with the formula in Python.
//!
//! The [`lightning`] wallet is behind the feature of that name, which the node turns on; everything but settlement works
//! with it off.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod accounts;
pub mod api_keys;
pub mod batches;
pub mod cells;
pub mod claims;
pub mod earnings;
pub mod escrow;
pub mod heads;
pub mod journal;
pub mod l402;
pub mod ledger;
pub mod lightning;
pub mod metering;
pub mod payments;
pub mod payouts;
pub mod price;
pub mod reconcile;
pub mod reputation;
pub mod reservations;
pub mod statement;
pub mod store;
pub mod tabs;
mod tree;

pub use ledger::{Ledger, LedgerError};
