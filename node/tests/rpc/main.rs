//! `/rpc` over a real socket and real databases.
#![allow(clippy::unwrap_used, clippy::panic)]

mod methods;
#[cfg(feature = "lightning")]
mod operator;
mod outside;
mod shape;
mod support;
