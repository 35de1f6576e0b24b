//! A job's way through the stages.
//!
//! The driver (on the master) opens a stream to the first stage, each stage one to the next, and the last one back to
//! the driver: hidden states flow along, tokens come back in one hop. Closing any stream takes the whole chain down, so
//! a client that leaves frees the caches of all stages. Failures travel upstream as frames and by closed streams alike.
//!
//! - `framing`: messages and frames on a stream.
//! - `worker`: one stage of one session.
//! - `inbox`: where tokens come home to their driver.
//! - `chain`: the driver's end of one attempt.
//! - `tamper`: where an experiment makes a worker dishonest.
//! - `driver`: a job from prompt to last token, over as many attempts as it takes; `attempt`: what the present one has
//!   computed; `text_out`: what the client reads.

mod attempt;
mod chain;
mod driver;
mod framing;
mod inbox;
mod tamper;
#[cfg(test)]
mod tests;
mod text_out;
mod worker;

pub use driver::{Driver, DriverConfig, feeding};
pub(crate) use framing::{read_bytes, write_bytes};
pub use framing::{read_exactly, read_message, write_message};
pub use inbox::TokenInbox;
pub use tamper::{Tamper, TamperedSession};
pub use worker::Worker;

use consortium_protocol::hash::Hash;
use consortium_protocol::wire::pipeline::SessionOpen;

/// Names one attempt of a job on a stage.
fn session_id(open: &SessionOpen) -> [u8; 16] {
    let mut name = Vec::with_capacity(96);
    // A job handed in to the next master begins with attempt 1 again, while its old session may still be closing.
    name.extend_from_slice(open.driver.as_bytes());
    name.extend_from_slice(&open.term.to_le_bytes());
    // Two payers may draw the same name for a job, by chance or on purpose.
    name.extend_from_slice(open.payer.as_bytes());
    name.extend_from_slice(&open.job.0);
    name.extend_from_slice(&open.attempt.to_le_bytes());
    let digest = Hash::of(&name);
    let mut id = [0; 16];
    id.copy_from_slice(&digest.as_bytes()[..16]);
    id
}
