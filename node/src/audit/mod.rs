//! Work that others can check.
//!
//! A stage writes down what it computes ([`Record`]), seals it with a receipt, and keeps what opens it for a while
//! ([`Spool`]). The gateway of a job is its payer: it examines the receipts ([`account`]), draws with its nonce which
//! stages are audited, and has them audited by one of the auditors that its owner named, by itself, or by a member that
//! holds the model. Its owner can order more, and let an auditor from outside the swarm see what a stage shows ([`desk`]).
//! The auditor ([`Audits`])
//! fetches the stage's [`opening`], recomputes it ([`check`]), and gives a signed verdict to the cluster. A fraud comes
//! with a [`proof`] that others stream on request ([`evidence`]) and check for themselves: only a proof that this node
//! saw hold counts as fraud here, and one that it saw fail counts against the accuser ([`standings`]).
//!
//! Accepted work is owed for: the payer writes it down, books it, and tells the worker until that one has booked it as
//! well (`owing`, [`earning`]), and so with the verdicts that pay waits for. A crash of either forgets nothing of it.
//!
//! Of a job that was taken over after a failure, the last attempt is accounted for: it covers every position, and a
//! position is paid once. What the attempts before it computed is their loss, one attempt's work at most. A client that
//! leaves early pays for what was computed until then. Nobody is paid for a job whose gateway died with it, or one of
//! whose stages does not sign: such a stage is left out of pipelines for a while.
//!
//! Tokens that a master says an earlier attempt drew are checked when the last stage is audited, and what could not
//! have been drawn is told to the operator: no receipt proves it to others.

pub mod account;
mod auditor;
pub mod check;
pub mod desk;
pub mod earning;
pub mod evidence;
mod handing;
pub mod opening;
mod owing;
pub mod proof;
mod recent;
mod record;
pub mod settled;
mod settler;
pub mod spool;
pub mod standings;
pub mod witness;

pub use account::Settlement;
pub use auditor::{AuditTask, Audits};
pub use desk::AuditDesk;
pub use record::{Record, RecordError, Rows};
pub use settled::SettledJobs;
pub use spool::Spool;
pub use witness::Heard;
