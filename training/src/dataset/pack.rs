//! From documents to rows.

use super::documents::{Files, Read};
use super::rows::{FIRST, LEARNT, WORD};
use crate::corpus::Document;
use crate::error::TrainError;
use crate::tokenizer::{END_OF_TEXT, Encoded, Tokenizer};

/// Most tokens of a dataset: a quarter of a GiB as a file. Of the models that a plan can name the largest has 2.3 million
/// parameters, for which 20 tokens each would do (Hoffmann et al., "Training compute-optimal large language models", 2022).
pub const MAX_TOKENS: u64 = 64 << 20;
/// One document in so many is held out.
const HELD_OUT: u64 = 20;
/// Text that the tokenizer is trained on, at most, in bytes; each file gives an equal part of it.
const SAMPLE: usize = 16 << 20;
/// Longest word of that, in bytes: training takes time by the square of it, and a file may be one word.
const WORD_SAMPLE: usize = 256;

/// A tokenizer, and the rows of all documents.
#[derive(Debug)]
pub struct Packed {
    /// Trained on documents that are not held out: the first of each file, 16 MiB in all.
    pub tokenizer: Tokenizer,
    /// The file: see [`Rows`](super::Rows).
    pub bytes: Vec<u8>,
    /// Rows to train on.
    pub training_rows: u64,
    /// Rows held out.
    pub held_out_rows: u64,
    /// What was read.
    pub read: Read,
}

/// Reads files twice: first all is checked, and a tokenizer of so many tokens trained; then rows of `length` positions are
/// made. Which documents are held out, their text decides: what stands in the files twice is not on both sides.
///
/// # Errors
/// [`TrainError::Dataset`] for files that are broken, too small or too large, [`TrainError::Io`] if one cannot be read.
pub fn pack(files: &Files, vocabulary: usize, length: usize) -> Result<Packed, TrainError> {
    let refuse = |reason: String| TrainError::Dataset { place: names(files), reason };
    if length == 0 {
        return Err(TrainError::Setting { name: "sequence", reason: "must not be zero".into() });
    }
    let (mut sample, mut taken) = (Vec::new(), vec![0; files.paths.len()]);
    let each = SAMPLE / files.paths.len().max(1);
    let read = files.each(&mut |file, document| {
        if taken[file] < each && !is_held_out(&document) {
            for text in document.into_texts() {
                taken[file] += text.len();
                sample.push(without_long_words(&text));
            }
        }
        Ok(())
    })?;
    let tokenizer = Tokenizer::of_texts(sample, vocabulary)?;
    let (mut training, mut held_out) = (Writer::new(length), Writer::new(length));
    files.each(&mut |_, document| {
        let side = if is_held_out(&document) { &mut held_out } else { &mut training };
        side.push(&tokenizer.document(&document)?);
        if (training.words() + held_out.words()) as u64 > MAX_TOKENS {
            return Err(refuse(format!(
                "make more than the {MAX_TOKENS} tokens that a dataset may have: leave some out"
            )));
        }
        Ok(())
    })?;
    let (mut bytes, training_rows) = training.finish();
    let (more, held_out_rows) = held_out.finish();
    if training_rows == 0 || held_out_rows == 0 {
        let documents = read.documents;
        return Err(refuse(format!("of {documents} documents none is held out, or all are: many more are needed")));
    }
    bytes.extend(more);
    Ok(Packed { tokenizer, bytes, training_rows, held_out_rows, read })
}

/// What to call all files.
fn names(files: &Files) -> String {
    match &files.paths[..] {
        [] => "no file".to_owned(),
        [one] => one.display().to_string(),
        [first, others @ ..] => format!("{} and {} more", first.display(), others.len()),
    }
}

/// A text of which each run of white space, and of anything else, is cut.
fn without_long_words(text: &str) -> String {
    let (mut kind, mut run) = (false, 0);
    let mut keep = |c: &char| {
        if kind != c.is_whitespace() {
            (kind, run) = (c.is_whitespace(), 0);
        }
        run += c.len_utf8();
        run <= WORD_SAMPLE
    };
    text.chars().filter(|c| keep(c)).collect()
}

fn is_held_out(document: &Document) -> bool {
    let mut hasher = blake3::Hasher::new_derive_key("consortium training held-out documents 1");
    let turns = match document {
        Document::Text(text) => &[text.as_str()][..],
        Document::Chat(turns) => &turns.iter().map(|turn| turn.text.as_str()).collect::<Vec<_>>(),
    };
    for text in turns {
        hasher.update(text.as_bytes()).update(&[0]);
    }
    let mut word = [0; 8];
    word.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(word) % HELD_OUT == 0
}

/// Rows as they are written.
struct Writer {
    length: usize,
    row: Vec<u32>,
    bytes: Vec<u8>,
    rows: u64,
}

impl Writer {
    fn new(length: usize) -> Self {
        Self { length, row: Vec::new(), bytes: Vec::new(), rows: 0 }
    }

    fn words(&self) -> usize {
        self.bytes.len() / WORD + self.row.len()
    }

    fn push(&mut self, document: &Encoded) {
        for (place, (token, learnt)) in document.tokens.iter().zip(&document.learnt).enumerate() {
            let (first, learnt) = (if place == 0 { FIRST } else { 0 }, if *learnt { LEARNT } else { 0 });
            self.word(token | first | learnt);
        }
    }

    fn word(&mut self, word: u32) {
        self.row.push(word);
        if self.row.len() == self.length + 1 {
            // A row of what somebody else says, in which the model is to say nothing, teaches nothing.
            if self.row[1..].iter().any(|word| word & LEARNT != 0) {
                self.bytes.extend(self.row.iter().flat_map(|word| word.to_le_bytes()));
                self.rows += 1;
            }
            self.row.clear();
        }
    }

    fn finish(mut self) -> (Vec<u8>, u64) {
        if !self.row.is_empty() {
            self.word(END_OF_TEXT | FIRST);
            while !self.row.is_empty() {
                self.word(END_OF_TEXT);
            }
        }
        (self.bytes, self.rows)
    }
}
