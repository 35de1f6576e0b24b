//! Why an update cannot be compressed, read or added.

/// A failure of compression, decoding or aggregation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SparseError {
    /// A tensor cannot be cut into blocks.
    #[error("tensor {tensor} cannot be compressed: {reason}")]
    Shape {
        /// Its place among the tensors.
        tensor: usize,
        /// What is wrong with its shape.
        reason: &'static str,
    },
    /// Tensors handed in are not those of the layout.
    #[error("the tensors do not have the sizes of the layout")]
    Sizes,
    /// A pseudo-gradient holds NaN or an infinity; nothing was changed.
    #[error("the pseudo-gradient of tensor {tensor} is not finite")]
    NotFinite {
        /// Its place among the tensors.
        tensor: usize,
    },
    /// A message ends too early, or is longer than any message of the layout.
    #[error("a message of {length} bytes is cut off or oversized")]
    Length {
        /// Bytes received.
        length: usize,
    },
    /// The message is in another format, or none.
    #[error("not an update in a known format")]
    Format,
    /// The message belongs to another model.
    #[error("the update is for tensors of other shapes")]
    OtherLayout,
    /// The message was damaged on its way.
    #[error("the update does not match its checksum")]
    Checksum,
    /// The checksum is right, yet no compressor writes such a message.
    #[error("malformed update: {0}")]
    Malformed(&'static str),
    /// There is nothing to take the mean of, an update of another model, or a median missing.
    #[error("an aggregate needs updates of its layout, and a finite median for every tensor")]
    Aggregate,
}
