//! Rows of tokens as a file.

use std::fmt::Debug;
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use consortium_protocol::Hash;

use crate::corpus::Split;
use crate::error::TrainError;
use crate::model::Targets;
use crate::packing::Batch;

/// Bytes of a token with its flags.
pub(super) const WORD: usize = 4;
/// Says that a token begins a document: nothing before it is seen from there on.
pub(super) const FIRST: u32 = 1 << 31;
/// Says that a token is to be learnt.
pub(super) const LEARNT: u32 = 1 << 30;
/// Bytes that are read at a time while a file is checked, or a row if that is longer.
const CHUNK: usize = 1 << 20;

/// Where a file of rows is.
#[derive(Clone, Debug)]
pub enum Location {
    /// On the disk.
    File(PathBuf),
    /// In memory.
    Memory(Arc<[u8]>),
}

trait Content: Read + Seek + Send + Debug {}

impl<T: Read + Seek + Send + Debug> Content for T {}

/// The rows of a dataset: those to train on, then those held out. A row of n positions is n + 1 words of four bytes,
/// little-endian: a token in the lower thirty bits, above them whether it is to be learnt, and whether it begins a document.
/// Each word but the first is the target of the one before it, and each but the last an input.
#[derive(Debug)]
pub struct Rows {
    /// What it is called in errors.
    name: PathBuf,
    content: Mutex<Box<dyn Content>>,
    length: usize,
    training: u64,
    held_out: u64,
}

impl Rows {
    /// How long a file of so many rows of `length` positions is, in bytes; none if that is no number.
    #[must_use]
    pub fn file_bytes(rows: u64, length: usize) -> Option<u64> {
        (length as u64).checked_add(1)?.checked_mul(WORD as u64)?.checked_mul(rows)
    }

    /// Checks all of a file: its length, its hash, that each token is below `vocabulary`, and that there is something to learn
    /// in each row. Without that the loss of an examination could be zero whatever anyone does.
    ///
    /// # Errors
    /// [`TrainError::Run`] if it is another, or cannot be trained on; [`TrainError::Io`] if it cannot be read.
    pub fn open(
        location: Location,
        digest: Hash,
        (training, held_out): (u64, u64),
        length: usize,
        vocabulary: usize,
    ) -> Result<Self, TrainError> {
        let refuse = |reason: String| TrainError::Run { what: "data", reason };
        let (name, mut content): (PathBuf, Box<dyn Content>) = match location {
            Location::File(path) => {
                let file = File::open(&path).map_err(TrainError::io(&path))?;
                (path, Box::new(file))
            }
            Location::Memory(bytes) => (PathBuf::from("the rows"), Box::new(Cursor::new(bytes))),
        };
        let found = content.seek(SeekFrom::End(0)).map_err(TrainError::io(&name))?;
        content.rewind().map_err(TrainError::io(&name))?;
        let rows = training.checked_add(held_out);
        if rows.and_then(|rows| Self::file_bytes(rows, length)) != Some(found) {
            return Err(refuse(format!(
                "are a file of {found} bytes, which is not that many rows: {}",
                name.display()
            )));
        }
        let row = (length + 1) * WORD;
        let (mut hasher, mut chunk, mut most, mut nothing) =
            (blake3::Hasher::new(), vec![0; row.max(CHUNK / row * row)], 0, false);
        let mut left = found;
        while left > 0 {
            let now = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = &mut chunk[..now];
            content.read_exact(read).map_err(TrainError::io(&name))?;
            hasher.update(read);
            for row in read.chunks_exact(row) {
                most = words(row).map(token).fold(most, u32::max);
                nothing |= !words(row).skip(1).any(is_learnt);
            }
            left -= now as u64;
        }
        if *hasher.finalize().as_bytes() != *digest.as_bytes() {
            return Err(refuse(format!("are damaged: {} has another hash than {}..", name.display(), digest.short())));
        }
        if most as usize >= vocabulary {
            return Err(refuse(format!("hold token {most}, and the tokenizer has {vocabulary}")));
        }
        if nothing {
            return Err(refuse("hold a row in which there is nothing to learn".to_owned()));
        }
        Ok(Self { name, content: Mutex::new(content), length, training, held_out })
    }

    /// Rows of a split by their numbers.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for a row that there is not, [`TrainError::Io`] if it cannot be read.
    pub fn batch(&self, split: Split, rows: &[u64]) -> Result<Batch, TrainError> {
        let (begin, count) = match split {
            Split::Train => (0, self.training),
            Split::HeldOut => (self.training, self.held_out),
        };
        let positions = rows.len() * self.length;
        let mut batch = Parts::with_capacity(positions);
        let mut row = vec![0; (self.length + 1) * WORD];
        for number in rows {
            if *number >= count {
                let reason = format!("there is no row {number} of {count}");
                return Err(TrainError::Setting { name: "rows", reason });
            }
            self.read(begin + number, &mut row).map_err(TrainError::io(&self.name))?;
            batch.push(&row);
        }
        let targets = Targets { tokens: batch.next, weights: batch.weights };
        Ok(Batch { rows: rows.len(), tokens: batch.tokens, starts: Arc::new(batch.starts), targets: Arc::new(targets) })
    }

    fn read(&self, row: u64, into: &mut [u8]) -> std::io::Result<()> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        content.seek(SeekFrom::Start(row * into.len() as u64))?;
        content.read_exact(into)
    }
}

/// What a batch is made of.
struct Parts {
    tokens: Vec<u32>,
    starts: Vec<u32>,
    next: Vec<u32>,
    weights: Vec<f32>,
}

impl Parts {
    fn with_capacity(n: usize) -> Self {
        Self {
            tokens: Vec::with_capacity(n),
            starts: Vec::with_capacity(n),
            next: Vec::with_capacity(n),
            weights: Vec::with_capacity(n),
        }
    }

    fn push(&mut self, row: &[u8]) {
        let mut start = 0;
        for ((place, here), next) in (0..).zip(words(row)).zip(words(row).skip(1)) {
            if here & FIRST != 0 {
                start = place;
            }
            self.tokens.push(token(here));
            self.starts.push(start);
            self.next.push(token(next));
            self.weights.push(f32::from(u8::from(is_learnt(next))));
        }
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(WORD).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

/// Whether a token counts as a target.
fn is_learnt(word: u32) -> bool {
    word & LEARNT != 0 && word & FIRST == 0
}

fn token(word: u32) -> u32 {
    word & !(FIRST | LEARNT)
}
