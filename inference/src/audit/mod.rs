//! Checking the numbers of a stage.
//!
//! What a stage commits to is hashed in [`grid`]. An auditor recomputes the stage in a numeric class ([`classes`]) over
//! the committed inputs ([`replay`]), compares ([`compare`]), and checks the drawn
//! tokens by their margin ([`Sampler::margin`](crate::sampling::Sampler::margin)). How far honest numbers lie apart is
//! measured by [`calibrate`] and kept in [`thresholds`]. What the commitments mean, and who signs them, is in
//! [`consortium_protocol::wire::audit`].

pub mod auditor;
pub mod calibrate;
pub mod classes;
pub mod compare;
pub mod grid;
pub mod replay;
mod tail;
pub mod thresholds;
