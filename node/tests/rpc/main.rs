//! `/rpc` over a real socket and real databases.
#![allow(clippy::unwrap_used, clippy::panic)]

mod desk;
mod methods;
mod outside;
mod shape;
mod support;
