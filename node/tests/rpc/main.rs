//! `/rpc` over a real socket and real databases.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../auditing/mod.rs"]
mod auditing;
mod desk;
mod methods;
#[cfg(feature = "lightning")]
mod operator;
mod outside;
mod shape;
mod support;
