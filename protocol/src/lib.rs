//! stub docs

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod cbor;
pub mod cluster;
pub mod election;
pub mod envelope;
pub mod hash;
pub mod identity;
pub mod membership;
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
