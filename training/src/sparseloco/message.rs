//! An update as bytes.

use super::error::SparseError;
use super::layout::{Block, Layout};
use super::quantize::Levels;
use super::range_coder::Decoder;
use super::subset::SplitTables;
use super::{KEPT, VERSION};

const MAGIC: [u8; 3] = *b"CSL";
/// Magic, version and tag of the layout.
const PREAMBLE: usize = 12;
/// The checksum at the end.
const CHECKSUM: usize = 8;

/// One peer's update, checked to the last bit: whoever holds one can add it without a failure.
#[derive(Clone, Debug)]
pub struct Update {
    layout: Layout,
    bytes: Vec<u8>,
    levels: Vec<Levels>,
    body: usize,
}

/// The values kept of one block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept<'a> {
    /// Their positions, rising.
    pub(super) positions: &'a [u16],
    /// Bit by bit, from the lowest: which are negative.
    pub(super) negative: u64,
    /// Bit by bit, from the lowest: which have the larger magnitude.
    pub(super) high: u64,
}

/// Joins the parts of a message.
pub(super) fn assemble(layout: &Layout, levels: &[Levels], body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PREAMBLE + 8 * levels.len() + body.len() + CHECKSUM);
    bytes.extend_from_slice(&MAGIC);
    bytes.push(VERSION);
    bytes.extend_from_slice(&layout.tag());
    for tensor in levels {
        write_number(&mut bytes, tensor.highs);
        bytes.extend_from_slice(&upper_half(tensor.low));
        if tensor.highs > 0 {
            bytes.extend_from_slice(&upper_half(tensor.high));
        }
    }
    bytes.extend_from_slice(body);
    let sum = checksum(&bytes);
    bytes.extend_from_slice(&sum);
    bytes
}

fn upper_half(level: f32) -> [u8; 2] {
    ((level.to_bits() >> 16) as u16).to_le_bytes()
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECKSUM]);
    sum
}

/// Seven bits to a byte, lowest first (LEB128).
fn write_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// The header of the tensors, read front to back.
struct Header<'a> {
    rest: &'a [u8],
}

impl Header<'_> {
    fn byte(&mut self) -> Result<u8, SparseError> {
        let (first, rest) = self.rest.split_first().ok_or(SparseError::Malformed("the levels are cut off"))?;
        self.rest = rest;
        Ok(*first)
    }

    fn number(&mut self) -> Result<u64, SparseError> {
        let mut number = 0u64;
        for shift in (0..35).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            match byte {
                0 if shift > 0 => break,
                0..=0x7f => return Ok(number),
                _ => {}
            }
        }
        Err(SparseError::Malformed("a count is not written in the shortest way"))
    }

    fn level(&mut self) -> Result<f32, SparseError> {
        let upper = u32::from(u16::from_le_bytes([self.byte()?, self.byte()?]));
        if upper < 0x7f80 {
            Ok(f32::from_bits(upper << 16))
        } else {
            Err(SparseError::Malformed("a level is no magnitude"))
        }
    }

    fn levels(&mut self, kept: u64) -> Result<Levels, SparseError> {
        let highs = self.number()?;
        let low = self.level()?;
        let high = if highs > 0 { self.level()? } else { low };
        match highs < kept.max(1) && (highs == 0 || high > low) {
            true => Ok(Levels { low, high, highs }),
            false => Err(SparseError::Malformed("low values are not the smaller ones, or there are none")),
        }
    }
}

impl Layout {
    /// No update of this layout is longer, in bytes, whatever is in it; a typical one has an eighth of that.
    ///
    /// A value takes part in at most 12 halvings, shared with another, of 16 bits; then 12 bits, a sign, and 25 bits at most
    /// for its magnitude.
    #[must_use]
    pub fn longest_message(&self) -> usize {
        let values = usize::try_from(self.kept()).unwrap_or(usize::MAX);
        values.saturating_mul(17).saturating_add(PREAMBLE + CHECKSUM + 9 * self.grids().len() + 8)
    }
}

impl Update {
    /// Takes a message in, after checking all of it: format, layout, checksum, levels, and every block. Memory and time are
    /// bounded by the layout, never by what the message says.
    ///
    /// # Errors
    /// Any [`SparseError`] that tells what is wrong with the message.
    pub fn read(layout: &Layout, bytes: Vec<u8>) -> Result<Self, SparseError> {
        if bytes.len() < PREAMBLE + CHECKSUM || bytes.len() > layout.longest_message() {
            return Err(SparseError::Length { length: bytes.len() });
        }
        if bytes[..3] != MAGIC || bytes[3] != VERSION {
            return Err(SparseError::Format);
        }
        if bytes[4..PREAMBLE] != layout.tag() {
            return Err(SparseError::OtherLayout);
        }
        let (covered, sum) = bytes.split_at(bytes.len() - CHECKSUM);
        if sum != checksum(covered) {
            return Err(SparseError::Checksum);
        }
        let mut header = Header { rest: &covered[PREAMBLE..] };
        let levels = layout.grids().iter().map(|g| header.levels(g.kept())).collect::<Result<Vec<_>, _>>()?;
        let body = covered.len() - header.rest.len();
        let update = Self { layout: layout.clone(), bytes, levels, body };
        let mut reader = update.reader();
        for (tensor, grid) in layout.grids().iter().enumerate() {
            reader.begin(tensor, grid.kept());
            grid.blocks().for_each(|block| _ = reader.next(&block));
        }
        let whole = reader.decoder.finish();
        if whole { Ok(update) } else { Err(SparseError::Malformed("the values end too early or too late")) }
    }

    /// The message as it was received: what was hashed and signed.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The layout it was read for.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The levels of every tensor.
    pub(super) fn levels(&self) -> &[Levels] {
        &self.levels
    }

    /// Reads the values from the first tensor on.
    pub(super) fn reader(&self) -> Reader<'_> {
        let body = &self.bytes[self.body..self.bytes.len() - CHECKSUM];
        Reader {
            decoder: Decoder::new(body),
            splits: self.layout.splits(),
            levels: &self.levels,
            highs: 0,
            left: 0,
            positions: [0; KEPT],
        }
    }
}

/// Reads the blocks of an update in order.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    decoder: Decoder<'a>,
    splits: &'a SplitTables,
    levels: &'a [Levels],
    /// High values still to come in this tensor.
    highs: u64,
    /// Values still to come in this tensor.
    left: u64,
    positions: [u16; KEPT],
}

impl Reader<'_> {
    /// Turns to the next tensor, of `kept` values.
    pub(super) fn begin(&mut self, tensor: usize, kept: u64) {
        (self.highs, self.left) = (self.levels[tensor].highs, kept);
    }

    /// The next block of the tensor.
    pub(super) fn next(&mut self, block: &Block) -> Kept<'_> {
        let kept = block.kept();
        let positions = &mut self.positions[..kept];
        self.splits.decode(block.size(), positions, &mut self.decoder);
        let mut negative = 0;
        for from in (0..kept).step_by(16) {
            negative |= self.decoder.uniform(1 << (kept - from).min(16)) << from;
        }
        let mut high = 0;
        for place in 0..kept {
            // Whether a value is high is drawn from those that are left, so that exactly as many come as were announced.
            let is_high = match self.highs {
                0 => break,
                highs if highs == self.left => true,
                highs => self.decoder.above(self.left - highs, self.left),
            };
            high |= u64::from(is_high) << place;
            self.highs -= u64::from(is_high);
            self.left -= 1;
        }
        Kept { positions, negative, high }
    }
}
