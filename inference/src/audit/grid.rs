//! What a stage hashes while it computes.
//!
//! A row is brought to a canonical grid before it is hashed, so that numbers that differ by less than a cell mostly give
//! the same digest. Equality of digests is only a fast way to pass: however fine or coarse the grid, a value can lie at
//! the edge of a cell, so digests that differ prove nothing.

use consortium_protocol::Hash;
use consortium_protocol::wire::audit::{BLOCK, blocks_root};

/// How values become cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Profile {
    /// A cell is 1/256 of the row's scale, the smallest power of two not below its root mean square; 16 bits, clamped.
    Rms,
    /// A cell is 1/64, values clamped to 100 either way: the historic profile, for comparison. It tells nothing of rows
    /// whose values are below 1/128.
    Source,
}

/// Cells of [`Profile::Rms`] for one scale.
const RMS_CELLS: f32 = 256.0;
/// Cells of [`Profile::Source`] for 1.
const SOURCE_CELLS: f32 = 64.0;
/// Where [`Profile::Source`] clamps.
const SOURCE_CLAMP: f32 = 100.0;

/// The exponent of a row of zeros.
const ZERO_EXPONENT: i16 = i16::MIN;
/// The exponent of a row with a NaN or an infinity.
const BROKEN_EXPONENT: i16 = i16::MAX;

impl Profile {
    fn tag(self) -> u8 {
        match self {
            Self::Rms => 1,
            Self::Source => 2,
        }
    }
}

/// The exponent of a row's scale, `2^exponent`, in [`Profile::Rms`]: the smallest with `2^exponent >= rms`. `None` if a
/// value is NaN or infinite. A row of zeros has no scale, and `i16::MIN`.
pub fn exponent(row: &[f32]) -> Option<i16> {
    // Eight sums, in f64 so that neither huge nor tiny values leave the range; the order is fixed, so every machine
    // finds the same exponent for the same bits.
    let mut sums = [0.0_f64; 8];
    let (chunks, rest) = row.as_chunks::<8>();
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(*value) * f64::from(*value);
        }
    }
    for (sum, value) in sums.iter_mut().zip(rest) {
        *sum += f64::from(*value) * f64::from(*value);
    }
    let sum = (sums[0] + sums[4]) + (sums[1] + sums[5]) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
    if !sum.is_finite() {
        return None;
    }
    let square = sum / row.len() as f64;
    if square == 0.0 || row.is_empty() {
        return Some(ZERO_EXPONENT);
    }
    // square = f * 4^h with f in 1..4: the root lies in 2^h..2^(h+1), and is 2^h only if f is 1. A sum of squares of
    // f32 values is a normal f64, so its bits can be read; its mean is too for any width below 2^700.
    let bits = square.to_bits();
    let binary = ((bits >> 52) & 0x7ff) as i16 - 1023;
    let half = binary.div_euclid(2);
    let is_power = binary.rem_euclid(2) == 0 && bits << 12 == 0;
    Some(if is_power { half } else { half + 1 })
}

/// Appends the canonical encoding of one row: in [`Profile::Rms`] its exponent, then its cells, all i16 little-endian.
fn encode(profile: Profile, row: &[f32], out: &mut Vec<u8>) {
    let per_unit = match profile {
        Profile::Rms => match exponent(row) {
            Some(ZERO_EXPONENT) => {
                out.extend_from_slice(&ZERO_EXPONENT.to_le_bytes());
                out.resize(out.len() + 2 * row.len(), 0);
                return;
            }
            Some(exponent) => {
                out.extend_from_slice(&exponent.to_le_bytes());
                // Exact: exponents of f32 rows lie in -149..=128, and f64 holds the product.
                f64::from(RMS_CELLS) * 2.0_f64.powi(-i32::from(exponent))
            }
            None => return encode_broken(row, out),
        },
        Profile::Source if row.iter().any(|v| !v.is_finite()) => return encode_broken(row, out),
        Profile::Source => f64::from(SOURCE_CELLS),
    };
    let start = out.len();
    out.resize(start + 2 * row.len(), 0);
    let cells = out[start..].as_chunks_mut::<2>().0;
    // Where the factor is a normal f32, multiplying in f32 gives the same: the factor is a power of two, and what
    // underflows rounds to zero either way.
    let narrow = per_unit as f32;
    if narrow.is_normal() {
        let clamp = if profile == Profile::Source { SOURCE_CLAMP } else { f32::MAX };
        for (cell, value) in cells.iter_mut().zip(row) {
            let scaled = (value.clamp(-clamp, clamp) * narrow).clamp(-32768.0, 32767.0);
            *cell = to_cell(scaled).to_le_bytes();
        }
    } else {
        for (cell, value) in cells.iter_mut().zip(row) {
            let scaled = (f64::from(*value) * per_unit).clamp(-32768.0, 32767.0);
            *cell = (scaled.round_ties_even() as i16).to_le_bytes();
        }
    }
}

/// Rounds to the nearest whole number, halves to even. The value lies in `-32768..=32767`.
#[inline(always)]
fn to_cell(value: f32) -> i16 {
    /// Adding it leaves no bits below one; subtracting it again is exact. Unlike a call of `round_ties_even` this
    /// becomes vector instructions on every machine.
    const ROUND: f32 = 12_582_912.0;
    ((value + ROUND) - ROUND) as i16
}

/// A row that holds what is no number: an exponent of its own, then 0 for numbers, 1 for infinities, 2 for minus
/// infinities and 3 for NaN.
fn encode_broken(row: &[f32], out: &mut Vec<u8>) {
    out.extend_from_slice(&BROKEN_EXPONENT.to_le_bytes());
    for value in row {
        let kind: i16 = match value {
            v if v.is_nan() => 3,
            v if *v == f32::INFINITY => 1,
            v if *v == f32::NEG_INFINITY => 2,
            _ => 0,
        };
        out.extend_from_slice(&kind.to_le_bytes());
    }
}

/// Digest of rows on the canonical grid: BLAKE3 in keyed mode over the profile's tag (1 byte), the width (u32), and for
/// every row its exponent (i16; left out in [`Profile::Source`] unless the row is broken) and cells (i16), all
/// little-endian. `rows` is row-major, `[_, width]`; of a row that is cut short only what is there counts.
pub fn digest(key: &[u8; 32], profile: Profile, rows: &[f32], width: usize) -> Hash {
    let mut hasher = GridHasher::new(key, profile, width);
    for row in rows.chunks(width.max(1)) {
        hasher.row(row);
    }
    hasher.finish()
}

/// A digest in the making.
struct GridHasher {
    profile: Profile,
    key: [u8; 32],
    width: u32,
    hasher: blake3::Hasher,
    /// The encoding of a row.
    buffer: Vec<u8>,
}

impl GridHasher {
    fn new(key: &[u8; 32], profile: Profile, width: usize) -> Self {
        let mut new = Self {
            profile,
            key: *key,
            width: width as u32,
            hasher: blake3::Hasher::new_keyed(key),
            buffer: Vec::with_capacity(2 * width + 2),
        };
        new.begin();
        new
    }

    fn begin(&mut self) {
        self.hasher.update(&[self.profile.tag()]).update(&self.width.to_le_bytes());
    }

    fn row(&mut self, row: &[f32]) {
        self.buffer.clear();
        encode(self.profile, row, &mut self.buffer);
        self.hasher.update(&self.buffer);
    }

    /// The digest; the hasher is then ready for the next block.
    fn finish(&mut self) -> Hash {
        let hash = Hash::from_bytes(*self.hasher.finalize().as_bytes());
        self.hasher = blake3::Hasher::new_keyed(&self.key);
        self.begin();
        hash
    }
}

/// Content hashes of the blocks of a stream of rows of one size: BLAKE3 in keyed mode over the rows' bytes. The last
/// block may have fewer rows. However the rows are cut into calls, the hashes are the same.
#[derive(Debug, Clone)]
pub struct BlockHasher {
    key: [u8; 32],
    row_bytes: usize,
    hasher: blake3::Hasher,
    /// Rows in the block that is open.
    open: usize,
    done: Vec<Hash>,
}

impl BlockHasher {
    /// Hashes rows of `row_bytes` bytes under a key ([`consortium_protocol::wire::audit::boundary_key`]).
    pub fn new(key: &[u8; 32], row_bytes: usize) -> Self {
        Self { key: *key, row_bytes, hasher: blake3::Hasher::new_keyed(key), open: 0, done: Vec::new() }
    }

    /// Takes whole rows.
    ///
    /// # Errors
    /// [`CommitError::Bytes`] when `bytes` is not a whole number of rows; nothing is taken then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), CommitError> {
        if self.row_bytes == 0 || !bytes.len().is_multiple_of(self.row_bytes) {
            return Err(CommitError::Bytes { bytes: bytes.len(), row_bytes: self.row_bytes });
        }
        let mut left = bytes;
        while !left.is_empty() {
            let rows = (BLOCK - self.open).min(left.len() / self.row_bytes);
            let (now, later) = left.split_at(rows * self.row_bytes);
            self.hasher.update(now);
            self.open += rows;
            left = later;
            if self.open == BLOCK {
                self.close();
            }
        }
        Ok(())
    }

    fn close(&mut self) {
        self.done.push(Hash::from_bytes(*self.hasher.finalize().as_bytes()));
        self.hasher = blake3::Hasher::new_keyed(&self.key);
        self.open = 0;
    }

    /// The hashes, that of an open block included.
    pub fn finish(mut self) -> Vec<Hash> {
        if self.open > 0 {
            self.close();
        }
        self.done
    }
}

/// Why rows were not taken into a commitment. Nothing of the call was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The bytes are not whole rows.
    #[error("{bytes} bytes are not whole rows of {row_bytes}")]
    Bytes {
        /// Bytes given.
        bytes: usize,
        /// Bytes of a row.
        row_bytes: usize,
    },
    /// Inputs, outputs and crossing bytes are not of as many rows.
    #[error("{bytes} bytes of {what} are not {rows} rows")]
    Rows {
        /// Which argument.
        what: &'static str,
        /// Its bytes.
        bytes: usize,
        /// Rows of the call.
        rows: usize,
    },
}

/// What a stage commits to, per block of rows, in order: content hashes, of which [`blocks_root`] makes roots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Committed {
    /// Of the bytes of the boundary before the stage.
    pub inputs: Vec<Hash>,
    /// Of the bytes of the boundary after it.
    pub outputs: Vec<Hash>,
    /// Of its hidden states: first on the canonical grid ([`Profile::Rms`]), block by block, then of their exact bytes.
    /// The grid alone would leave room, within its cells, to show other states than those that were computed, and so to
    /// make an honest stage look dishonest; only the last stage's states are in no boundary.
    pub grid: Vec<Hash>,
}

impl Committed {
    /// The roots of inputs, outputs and grid, as a receipt names them.
    pub fn roots(&self) -> [Hash; 3] {
        [&self.inputs, &self.outputs, &self.grid].map(|digests| blocks_root(digests))
    }
}

/// Commits to the rows of a session while a stage computes them. Rows may come in any number of calls, a prompt's chunk
/// or a token at a time; the hashes are the same.
pub struct StageCommitter {
    width: usize,
    /// Made with the first rows, which tell the size of a row.
    inputs: Option<BlockHasher>,
    outputs: Option<BlockHasher>,
    keys: [[u8; 32]; 2],
    grid: GridHasher,
    states: BlockHasher,
    open: usize,
    done: Vec<Hash>,
    row: Vec<f32>,
}

impl std::fmt::Debug for StageCommitter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StageCommitter({} blocks and {} rows)", self.done.len(), self.open)
    }
}

impl StageCommitter {
    /// For a stage of hidden size `width`, with the keys of the boundary before it, of the boundary after it
    /// ([`consortium_protocol::wire::audit::boundary_key`]) and of its grid
    /// ([`consortium_protocol::wire::audit::grid_key`]).
    pub fn new(before: &[u8; 32], after: &[u8; 32], grid: &[u8; 32], width: usize) -> Self {
        Self {
            width,
            inputs: None,
            outputs: None,
            keys: [*before, *after],
            grid: GridHasher::new(grid, Profile::Rms, width),
            states: BlockHasher::new(&blake3::derive_key("consortium audit states 1", grid), width * 4),
            open: 0,
            done: Vec::new(),
            row: Vec::with_capacity(width),
        }
    }

    /// Takes `rows` rows: the bytes that crossed the boundary before the stage, its hidden states (f32 little-endian,
    /// `[rows, width]`), and the bytes that crossed the boundary after it. Rows of one boundary are all of one size:
    /// 4 bytes where tokens cross, 4 times the width where hidden states do.
    ///
    /// # Errors
    /// [`CommitError`] when the lengths do not fit; nothing is taken then.
    pub fn push(&mut self, rows: usize, input: &[u8], hidden: &[u8], crossing: &[u8]) -> Result<(), CommitError> {
        if hidden.len() != rows * self.width * 4 || self.width == 0 {
            return Err(CommitError::Rows { what: "hidden states", bytes: hidden.len(), rows });
        }
        if rows == 0 {
            return Ok(());
        }
        for (what, hasher, bytes) in [("input", &self.inputs, input), ("output", &self.outputs, crossing)] {
            let whole = match hasher {
                Some(hasher) => bytes.len() == rows * hasher.row_bytes,
                None => bytes.len().is_multiple_of(rows) && !bytes.is_empty(),
            };
            if !whole {
                return Err(CommitError::Rows { what, bytes: bytes.len(), rows });
            }
        }
        for (key, hasher, bytes) in
            [(&self.keys[0], &mut self.inputs, input), (&self.keys[1], &mut self.outputs, crossing)]
        {
            hasher.get_or_insert_with(|| BlockHasher::new(key, bytes.len() / rows)).push(bytes)?;
        }
        self.states.push(hidden)?;
        for row in hidden.chunks_exact(self.width * 4) {
            self.row.clear();
            self.row.extend(row.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
            self.grid.row(&self.row);
            self.open += 1;
            if self.open == BLOCK {
                self.done.push(self.grid.finish());
                self.open = 0;
            }
        }
        Ok(())
    }

    /// The hashes of all blocks, that of the open one included.
    pub fn finish(mut self) -> Committed {
        if self.open > 0 {
            self.done.push(self.grid.finish());
        }
        self.done.extend(self.states.finish());
        Committed {
            inputs: self.inputs.map(BlockHasher::finish).unwrap_or_default(),
            outputs: self.outputs.map(BlockHasher::finish).unwrap_or_default(),
            grid: self.done,
        }
    }
}

#[cfg(test)]
#[path = "grid_tests.rs"]
mod tests;
