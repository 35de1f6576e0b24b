//! Swarms on one machine, in two kinds, and what is measured on them.
//!
//! - [`world`] simulates: thousands of the protocol's pure machines on a virtual clock and a network with faults, all
//!   drawn from one seed.
//! - The binary `simnet` runs: a swarm of real `consortium-node` processes on loopback, the way in for people
//!   (`simnet up 8`) and for CI (`simnet up 8 --exec CMD`) alike.
//!
//! - [`cheat`] makes workers dishonest, on the node's library: `consortium-node` itself cannot cheat.
//! - [`chain`] is a regtest chain in this process, which nodes take for a bitcoind.
//! - [`books`] holds the books of nodes against each other, [`coins`] counts what is on the chain.
//! - [`l402`] is a customer of a node that sells.
//! - [`train`] trains a model with honest peers and all other kinds, in one process.
//! - [`audit_bench`] measures in one process what audits catch, and whom they accuse wrongly.
//!
//! # The binary
//!
//! `cli` says what it can be told, `commands` holds one file for each command, `swarm` is what they stand on, and
//! `bench` measures. One process, the supervisor behind `simnet up`, owns the nodes of a swarm as its children:
//!
//! ```text
//! simnet kill 3 --+ control socket: one line of JSON each way
//! simnet down ----+
//! Ctrl-C ---------+-> supervisor -- spawns, signals, reaps --> consortium-node x N
//! simnet mine 3 ------> its chain (a thread of it) <--------- bitcoind's JSON-RPC
//!                       |  +- polls /status.json of each over HTTP, writes nodes.json and env
//!                       +- simnet run-command -- sh -c CMD    (--exec)
//! ```
//!
//! - It does all this on one thread, its main one, because the kernel ties a child's death to that of the thread that spawned
//!   it: even `kill -9` of simnet leaves no node behind. The command of `--exec` has a parent of its own, which adopts
//!   and ends whatever the command leaves. (Both on Linux; elsewhere only an orderly end is clean.)
//! - It signals only its own children, through handles that are gone once the child is reaped.
//! - Nodes listen on ports that the system picks and report them, so two swarms cannot collide; a lock in the directory
//!   keeps a second swarm out of it.
//! - A node that `up --cheat` makes dishonest is simnet's own binary, `simnet cheating-node`: a whole node whose worker
//!   is tampered with.
//! - It knows a node as anybody does: by its command line, its data directory and its HTTP API.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod audit_bench;
pub mod books;
pub mod chain;
pub mod cheat;
pub mod coins;
pub mod l402;
pub mod train;
pub mod world;
