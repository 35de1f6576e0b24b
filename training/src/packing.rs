//! Documents packed into rows of equal length.

use std::sync::Arc;

use crate::corpus::{Split, document, long_document, stream};
use crate::error::TrainError;
use crate::model::Targets;
use crate::tokenizer::{END_OF_TEXT, Encoded, Tokenizer};

/// How often a row is drawn at most.
const DRAWS: usize = 32;

/// Rows of tokens with their targets.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Number of rows.
    pub rows: usize,
    /// Inputs, row after row.
    pub tokens: Vec<u32>,
    /// For each input the position in its row where its document begins.
    pub starts: Arc<Vec<u32>>,
    /// For each input the token that follows and whether it counts.
    pub targets: Arc<Targets>,
}

impl Batch {
    /// How many targets count.
    #[must_use]
    pub fn learnt(&self) -> f64 {
        self.targets.weights.iter().map(|w| f64::from(*w)).sum()
    }

    /// Packs one row of `length` positions per entry of `rows`. Each row begins with a document; the last document of a
    /// row is cut where the row ends, and what follows it is dropped.
    #[must_use]
    pub fn pack(rows: &[Vec<Encoded>], length: usize) -> Self {
        let (mut tokens, mut starts, mut next, mut weights) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for documents in rows {
            let mut filled = 0;
            for document in documents {
                // The last token of a document has no successor and is no input.
                let take = document.tokens.len().saturating_sub(1).min(length - filled);
                tokens.extend_from_slice(&document.tokens[..take]);
                starts.extend(std::iter::repeat_n(filled as u32, take));
                next.extend_from_slice(&document.tokens[1..][..take]);
                weights.extend(document.learnt[1..][..take].iter().map(|l| f32::from(u8::from(*l))));
                filled += take;
            }
            let padding = length - filled;
            tokens.extend(std::iter::repeat_n(END_OF_TEXT, padding));
            starts.extend(std::iter::repeat_n(filled as u32, padding));
            next.extend(std::iter::repeat_n(END_OF_TEXT, padding));
            weights.extend(std::iter::repeat_n(0.0, padding));
        }
        let targets = Arc::new(Targets { tokens: next, weights });
        Self { rows: rows.len(), tokens, starts: Arc::new(starts), targets }
    }

    /// Rows `first..first + rows` of the corpus named by `seed`. A row depends on nothing but seed, its number and
    /// `length`, so a run that resumes reads on where it stopped.
    ///
    /// # Errors
    /// If a document cannot be encoded.
    pub fn draw(tokenizer: &Tokenizer, source: Source, first: u64, rows: usize) -> Result<Self, TrainError> {
        Self::of(tokenizer, source, (first..).take(rows))
    }

    /// The rows with the given numbers, in that order.
    ///
    /// # Errors
    /// If a document cannot be encoded.
    pub fn of(tokenizer: &Tokenizer, source: Source, rows: impl IntoIterator<Item = u64>) -> Result<Self, TrainError> {
        let packed = rows.into_iter().map(|row| source.row(tokenizer, row)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self::pack(&packed, source.length))
    }

    /// How many rows have no target that counts.
    #[must_use]
    pub fn rows_without_targets(&self) -> usize {
        let length = (self.tokens.len() / self.rows.max(1)).max(1);
        self.targets.weights.chunks(length).filter(|row| row.iter().all(|weight| *weight == 0.0)).count()
    }

    /// The batch cut into at most `parts` batches of whole rows.
    #[must_use]
    pub fn split(&self, parts: usize) -> Vec<Self> {
        let length = self.tokens.len() / self.rows.max(1);
        let share = self.rows.div_ceil(parts.max(1)).max(1);
        let cut = |first: usize| {
            let last = (first + share).min(self.rows);
            let range = first * length..last * length;
            Self {
                rows: last - first,
                tokens: self.tokens[range.clone()].to_vec(),
                starts: Arc::new(self.starts[range.clone()].to_vec()),
                targets: Arc::new(Targets {
                    tokens: self.targets.tokens[range.clone()].to_vec(),
                    weights: self.targets.weights[range].to_vec(),
                }),
            }
        };
        (0..self.rows).step_by(share).map(cut).collect()
    }
}

/// Where rows come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Names the corpus.
    pub seed: u64,
    /// Pairs to draw from.
    pub split: Split,
    /// Positions in a row.
    pub length: usize,
    /// Whether rows hold long chats.
    pub long: bool,
}

impl Source {
    /// The documents of a row: of the first draw in which there is something to learn, as a short row may hold a request and
    /// nothing of its answer. Where many draws in a row have nothing, the last one stands.
    fn row(&self, tokenizer: &Tokenizer, row: u64) -> Result<Vec<Encoded>, TrainError> {
        let mut rng = stream(self.seed, row);
        let mut documents = Vec::new();
        for _ in 0..DRAWS {
            let (mut filled, mut teaches) = (0, false);
            documents.clear();
            while filled < self.length {
                let next = if self.long { long_document(&mut rng, self.split) } else { document(&mut rng, self.split) };
                let encoded = tokenizer.document(&next)?;
                teaches |= encoded.learnt[1..].iter().take(self.length - filled).any(|learnt| *learnt);
                filled += encoded.tokens.len() - 1;
                documents.push(encoded);
            }
            if teaches {
                break;
            }
        }
        Ok(documents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(tokens: &[u32]) -> Encoded {
        Encoded { tokens: tokens.to_vec(), learnt: tokens.iter().map(|t| *t > 5).collect() }
    }

    #[test]
    fn rows_are_filled_cut_and_padded() {
        let batch = Batch::pack(&[vec![encoded(&[1, 7, 8]), encoded(&[1, 9, 10, 11])], vec![encoded(&[1, 7])]], 4);
        assert_eq!(batch.tokens, [1, 7, 1, 9, 1, 0, 0, 0]);
        assert_eq!(batch.targets.tokens, [7, 8, 9, 10, 7, 0, 0, 0]);
        assert_eq!(*batch.starts, [0, 0, 2, 2, 0, 1, 1, 1]);
        assert_eq!(batch.targets.weights, [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
        assert!((batch.learnt() - 5.0).abs() < 1e-9);
        assert_eq!(batch.rows_without_targets(), 0);
        assert_eq!(Batch::pack(&[vec![encoded(&[1, 2, 3])], vec![encoded(&[1, 7])]], 2).rows_without_targets(), 1);
    }

    #[test]
    fn splitting_loses_nothing() {
        let rows: Vec<_> = (0..5).map(|i| vec![encoded(&[1, 6 + i, 7, 8])]).collect();
        let batch = Batch::pack(&rows, 3);
        let parts = batch.split(2);
        assert_eq!(parts.iter().map(|p| p.rows).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(parts.iter().flat_map(|p| p.tokens.clone()).collect::<Vec<_>>(), batch.tokens);
    }

    #[test]
    fn short_rows_are_drawn_again_until_they_teach_something() {
        let tokenizer = Tokenizer::train(1, 100, 300).unwrap();
        for split in [Split::Train, Split::HeldOut] {
            let source = Source { seed: 1, split, length: 48, long: false };
            let batch = Batch::draw(&tokenizer, source, 0, 400).unwrap();
            assert_eq!(batch.rows_without_targets(), 0, "{split:?}");
            let first_draws = (0..400).filter(|row| {
                let first = tokenizer.document(&document(&mut stream(1, *row), split)).unwrap();
                !first.learnt[1..].iter().take(48).any(|learnt| *learnt)
            });
            assert!(first_draws.count() > 4, "a request fills the row now and then");
        }
        let hopeless = Source { seed: 1, split: Split::HeldOut, length: 8, long: false };
        assert_eq!(Batch::draw(&tokenizer, hopeless, 0, 2).unwrap().rows_without_targets(), 2);
    }

    #[test]
    fn rows_depend_only_on_their_number() {
        let tokenizer = Tokenizer::train(1, 200, 400).unwrap();
        let source = Source { seed: 5, split: Split::Train, length: 64, long: false };
        let together = Batch::draw(&tokenizer, source, 10, 4).unwrap();
        let apart = Batch::draw(&tokenizer, source, 12, 2).unwrap();
        assert_eq!(together.tokens[128..], apart.tokens);
    }
}
