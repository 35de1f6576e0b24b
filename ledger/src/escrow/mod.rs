//! Escrow over hold invoices.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

#[cfg(feature = "lightning")]
pub mod driver;
pub mod event;
pub mod limits;
pub mod log;
pub mod machine;
#[cfg(test)]
mod machine_tests;
#[cfg(test)]
mod samples;
pub mod secrets;
pub mod state;

pub use machine::{Action, Input, Refused, Turn, Word};
pub use state::{Escrow, Role, State};
