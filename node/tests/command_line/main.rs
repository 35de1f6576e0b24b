//! The binary as it is typed: what it says when something is wrong, what it shows, and that it ends as it should.
#![allow(clippy::unwrap_used, clippy::panic)]

mod checking;
mod life;
mod money;
mod support;
mod training;
