//! Work that others can check.
//!
//! A stage writes down what it computes ([`Record`]), seals it with a receipt, and keeps what opens it for a while
//! ([`Spool`]). The gateway of a job is its payer: it examines the receipts ([`account`]), draws with its nonce which
//! stages are audited, and audits them itself or has a member do it that holds the model. The auditor ([`Audits`])
//! fetches the stage's [`opening`], recomputes it ([`check`]), and gives a signed verdict to the cluster. A fraud comes
//! with a [`proof`] that others stream on request ([`evidence`]) and check for themselves: only a proof that this node
//! saw hold counts as fraud here, and one that it saw fail counts against the accuser ([`standings`]).
//!
//! Accepted work is owed for: the payer writes it down, books it, and tells the worker until that one has booked it as
//! well (`owing`, [`earning`]), and so with the verdicts that pay waits for. A crash of either forgets nothing of it.
//!
//! What is not caught yet: a stage that gives no receipt costs the others theirs and is not punished; of a job that was
//! taken over after a failure, only the last attempt is accounted for, so what earlier ones emitted is nobody's work;
//! a client that leaves before the end pays nothing.

pub mod account;
mod auditor;
pub mod check;
pub mod earning;
pub mod evidence;
pub mod opening;
mod owing;
pub mod proof;
mod record;
pub mod spool;
pub mod standings;
mod witness;

pub use account::Settlement;
pub use auditor::{AuditTask, Audits};
pub use record::{Record, Rows};
pub use spool::Spool;
pub use witness::Heard;
