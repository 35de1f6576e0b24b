//! SparseLoCo: what peers that train together send each other instead of gradients.
//!
//! # The algorithm
//! Sarfi et al., "Communication Efficient LLM Pre-training with SparseLoCo", arXiv 2508.15706, with the settings of
//! Covenant-72B, arXiv 2603.08163. Each of R peers takes local steps of AdamW from the common parameters θ to its own θ',
//! and then
//! ```text
//! a  = 0.95 e + (θ - θ')        what has changed, and what earlier rounds left unsaid
//! D  = Q(TopK(a))               of each block the 64th part of largest magnitude, in two bits
//! e <- a - D                    what this round leaves unsaid, the loss of Q included
//! θ <- θ - 1.0 (D1 + ... + DR)/R
//! ```
//! [`compress()`] does the first three lines and writes `D` as bytes, [`Update::read`] checks such bytes, [`aggregate()`] and
//! [`outer_step`] do the last. [`mod@reference`] has the same as plain formulas.
//!
//! Where the papers are silent or the published code does otherwise, a test named after the choice pins it:
//!
//! | question | here | elsewhere |
//! |---|---|---|
//! | mean | over all R peers (paper) | code: over those that sent the element |
//! | block at an edge | keeps one of 64, rounded up | code: chunk shrinks to a divisor, k stays 64 |
//! | equal magnitudes | the first in the block | code: whatever the GPU does |
//! | clip | each tensor to the median of the peers' norms, without an epsilon | code: adds 1e-8 to the norm |
//! | median of an even number | the lower | code: the lower |
//! | feedback | `a - D`, quantised but not clipped | the same |
//!
//! # Quantiser
//! A value is sent as its sign and one of two magnitudes of its tensor. These minimise the squared error plus 0.008 of the
//! mean square per bit, over all divisions of the sorted magnitudes (`quantize`). The reference subtracts the mean and cuts
//! six standard deviations into four; of kept values, which are all far from zero, that leaves one level unused and another
//! nearly so: it mostly says signs. What the price on bits does, over three rounds of 20 steps of `consortium-tiny`:
//!
//! | price | error, part of the energy kept | bits per value, sign included | whole message against f32 |
//! |---|---|---|---|
//! | 0 | 0.23-0.29 % | 1.88-1.89 | 220x |
//! | 0.006 | 0.41-0.45 % | 1.31-1.43 | 232-235x |
//! | 0.008, chosen | 0.51-0.56 % | 1.16-1.27 | 237-240x |
//! | 0.012 | 0.65-0.75 % | 1.02-1.06 | 243x |
//! | reference | 0.67-1.12 % | 1.00-1.03 | |
//!
//! More precision is not worth its bits: what is kept holds a tenth of the energy of `a`, so that one more value takes ten
//! times more off the error than its bits spent on levels would, and what is lost comes back with the next round. The price
//! concerns the compressor alone; receivers take any levels.
//!
//! # Message
//! ```text
//! "CSL"  version 1  tag of the shapes (8 bytes)
//! for each tensor: number of large values (LEB128), small level, and if there are large values the large level
//!                  (upper halves of f32, little-endian)
//! one range-coded stream: for each block of each tensor
//!                  positions, by halving (`subset`); signs; which of the two levels, drawn without replacement
//! first 8 bytes of the BLAKE3 hash of all before
//! ```
//! Norms follow from the header alone. The checksum finds damage; who sent the update, and that it is the one committed to,
//! is for the round's signed hash of [`Update::bytes`] and for the transport. A body with a good checksum decodes to exactly
//! k rising positions in every block, whatever is in it, and [`Update::read`] refuses one that is cut off or too long. Memory
//! is bounded by the layout; no number in a message decides about any.
//!
//! # To the bit
//! Decoding and tables are integer arithmetic; levels have eight significant bits, so norms are exact but for their last
//! rounding; sums are of `f32` in the order of the updates, without fused operations. All peers get the same parameters from
//! the same updates and medians on any CPU. Compression may differ between machines.
//!
//! # Measured
//! By `examples/sparseloco_bench.rs`, whole messages, values from `consortium-tiny` in training (AdamW, error feedback, 4
//! rounds of 10 steps); blocks of the larger models are drawn from its tensors, and of 0.5B an eighth of the embedding and two
//! layers are compressed and their sizes multiplied. The reference packs 12-bit indices and two bits, with five floats per
//! tensor.
//!
//! | parameters | bytes | against f32 | against bf16 | reference |
//! |---|---|---|---|---|
//! | 0.44M | 7 479 | 232.8x | 116.4x | 130.1x / 65.1x |
//! | 2.8M, `consortium-tiny` itself | 45 822 | 242.5x | 121.3x | 142.8x / 71.4x |
//! | 5.1M | 84 209 | 243.0x | 121.5x | 144.0x / 72.0x |
//! | 98.7M | 1 634 150 | 241.5x | 120.7x | 146.1x / 73.1x |
//! | 494M | 8 217 008 | 240.5x | 120.2x | 146.2x / 73.1x |
//!
//! Errors of these four rounds were 0.29-0.53 %, the reference's 0.40-0.88 %.
//!
//! Speed on one core of a Xeon of 2023, built for any x86-64, 98.7M parameters, in GB of f32 parameters per second of
//! processor time: compress 0.81, read and check 6.0, aggregate 2.5 with one update, 6.1 with 8 and 6.5 with 20 (bytes of
//! parameters times updates). The reference selects and quantises at 0.15; decoding into dense tensors and adding these
//! makes 0.76.

mod aggregate;
mod compress;
mod error;
mod layout;
mod message;
mod overlap;
mod quantize;
mod range_coder;
pub mod reference;
mod select;
mod subset;
#[cfg(test)]
mod tests;

pub use aggregate::{aggregate, median_norms, outer_step};
pub use compress::compress;
pub use error::SparseError;
pub use layout::{Layout, kept_of};
pub use message::Update;
pub use overlap::overlaps;

/// Side of the blocks of a matrix.
pub const BLOCK_SIDE: usize = 64;
/// Elements of a whole block.
pub const BLOCK: usize = BLOCK_SIDE * BLOCK_SIDE;
/// One of so many elements is kept.
pub const DENSITY: usize = 64;
/// Values kept of a whole block.
pub const KEPT: usize = BLOCK / DENSITY;
/// What is left of the error feedback after a round.
pub const FEEDBACK: f32 = 0.95;
/// The outer learning rate.
pub const OUTER_RATE: f32 = 1.0;
/// Version of the message format.
pub const VERSION: u8 = 1;
/// How much squared error, as a part of the energy of what is kept, a bit for each value is worth.
const RATE_WEIGHT: f64 = 0.008;
