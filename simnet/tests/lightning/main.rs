//! The wallet of `consortium-ledger` with real nodes, real channels and the regtest chain of this crate.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod books;
mod channel_ends;
mod channels;
mod holds;
mod limits;
mod liquidity;
mod partners;
mod rest;
mod secrets;
mod support;
mod tabs;
