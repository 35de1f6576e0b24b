//! What peers say to each other, and when saying it is valid.
//!
//! This crate is pure: no I/O, no clock, no sockets, no threads. Whoever uses it brings bytes, time and randomness.
//!
//! # Architecture
//!
//! ```text
//! identity  RootKey, NodeId             one Ed25519 key: name, signatures, derived secrets
//! hash      Hash                        BLAKE3
//! cbor      to_vec, from_slice          the one encoding of a value, and a reader that takes no other
//! envelope  Payload, Signed<T>          statements; holding one means its signature was verified
//! merkle    root, InclusionProof        trees that grow, and proofs about them
//! cluster, time, msat                   ClusterId, Millis, Msat
//! wire/     heartbeat election fact     what is said, byte for byte, with bounds, rules and golden bytes
//!           rpc job pipeline escrow train
//! membership  Membership                who is in the cluster, who of them is alive
//! election    Election                  who is master
//! ```
//!
//! Values that come from outside pass three gates, in this order: their length, before anything is read; their
//! encoding, which must be the canonical one; the rules of their type and their signatures. Readers do not panic, and
//! do not allocate by a number they were sent. A [`Signed`] or an [`election::Certificate`] that exists is valid; what
//! cannot be known from the value alone, such as which cluster is meant, is for the machines to check.
//!
//! # Machines
//!
//! [`membership::Membership`] and [`election::Election`] have one shape: `handle(input, now, rng) -> outputs`. The node
//! drives them like this, several times a second:
//!
//! 1. heartbeats that arrive, and the node's own, go to the membership machine;
//! 2. `Tick` the membership machine;
//! 3. give [`Membership::standings`](membership::Membership::standings) to the election machine as its view, then
//!    `Tick` it;
//! 4. carry out outputs in their order; nothing that follows a `Persist` is done before it is durable;
//! 5. the next heartbeat says which term and master the election machine obeys.
//!
//! What they promise, and under which assumptions, is in their module documentation; simnet's `world` plays whole
//! clusters of them against faults and liars.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod cbor;
pub mod cluster;
pub mod election;
pub mod envelope;
pub mod hash;
pub mod identity;
pub mod membership;
pub mod merkle;
pub mod msat;
pub mod time;
pub mod wire;

pub use cbor::DecodeError;
pub use cluster::{ClusterId, ClusterName, MAX_MEMBERS};
pub use envelope::{Invalid, Payload, Signed};
pub use hash::Hash;
pub use identity::{NodeId, RootKey};
pub use msat::Msat;
pub use time::Millis;
