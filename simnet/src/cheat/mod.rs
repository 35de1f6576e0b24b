//! Dishonest workers, for experiments: what a cheat is called ([`spec`]), what it does to weights ([`weights`]) and to the
//! rows of a stage ([`forge`]), and the worker that does it in a real swarm ([`worker`]).
//!
//! `consortium-node` cannot cheat: its library has a seam for it, [`consortium_node::pipeline::Tamper`], and only what
//! is here fills it.

pub mod forge;
pub mod spec;
pub mod weights;
pub mod worker;

pub use spec::{Assignment, Cheat, Kind, SpecError};
pub use worker::CheatingWorker;
