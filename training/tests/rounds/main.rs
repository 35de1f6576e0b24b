//! Whole runs of round machines, each from one seed: what must hold whatever the network, the disks and liars do.
//!
//! The machines are the real ones, and so are signatures and records; parameters are a hash over what was applied to
//! them, and losses are drawn from what each peer is like. `CONSORTIUM_SEEDS` plays more seeds.

#![allow(clippy::unwrap_used, clippy::panic)]

mod bonds;
mod catching_up;
mod host;
mod overlap;
mod samples;
mod scenes;
mod seats;
mod world;
