//! Every block that the regtest chain of this crate made, judged by Bitcoin Core's own validation (`chain-check`); and
//! blocks that are wrong in one thing each, which the two must refuse for the same reason.
//!
//! Feature `bitcoinkernel`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

#[path = "../lightning/support.rs"]
#[allow(dead_code)]
mod support;

mod coins;
mod forged;
mod lightning;
mod oracle;
mod scenario;
