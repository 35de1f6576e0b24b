//! `simnet` as people and CI use it, with real nodes: each test starts the binary, and looks at what is left.

#![allow(clippy::unwrap_used, clippy::panic)]

mod bench;
mod books;
mod chain;
mod cheats;
mod ends;
mod escrow;
mod exec;
mod l402;
mod orders;
mod refusals;
mod secrets;
mod support;
mod survives;
mod tabs;
mod training;
