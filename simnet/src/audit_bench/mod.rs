//! Measures audits: honest work of every numeric class and every cheat, judged as a node would.
//!
//! - [`honest`]: jobs, and honest work on them, row by row after the prompt as a pipeline does it;
//! - [`subjects`]: the cheats, made by the very worker that cheats in a swarm;
//! - [`judge`]: recomputing and comparing, as an auditor of each class; [`source_grid`]: what the scheme of the first
//!   document would have said of the same rows;
//! - [`workload`]: what commitments and audits cost beside the work itself;
//! - [`custody`]: cheats at commitments, judged by receipts, roots and recomputing;
//! - [`tally`], [`rates`], [`roc`]: counting; [`report`] and [`svg`]: what is shown; [`activations`]: what is handed to
//!   other schemes.
//!
//! A *pair* is an auditor's class and an auditee's. Blocks judged by auditors of four classes are judged four times: rates
//! over pairs count each judgement, and the number of blocks that were computed is told beside them.

pub mod activations;
pub mod custody;
pub mod honest;
pub mod judge;
pub mod rates;
pub mod report;
pub mod roc;
mod run;
pub mod source_grid;
pub mod subjects;
pub mod svg;
pub mod tally;
pub mod workload;

#[cfg(test)]
mod tests;

pub use report::Report;
pub use run::{Options, run};
