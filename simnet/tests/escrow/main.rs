//! Escrows with real nodes, real channels and the regtest chain of this crate.
//!
//! The parties are in this process, but for the crash matrix, where one of them is a process of its own that kills itself.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

#[path = "../lightning/support.rs"]
#[allow(dead_code)]
mod support;

mod chain;
mod crash;
mod latency;
mod limits;
mod misuse;
mod money;
mod outcomes;
mod party;
