//! The HTTP API over a real socket, with the swarm's end of the gateway played by the test.
#![allow(clippy::unwrap_used, clippy::panic)]

mod answers;
#[path = "../auditing/mod.rs"]
mod auditing;
mod callers;
mod l402;
mod limits;
mod money;
mod purse;
mod requests;
mod support;
