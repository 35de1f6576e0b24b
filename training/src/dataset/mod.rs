//! Text that people bring to a run: from their files to rows of tokens, and these rows as one file that all nodes share.
//!
//! ```text
//! documents   reads JSON lines and plain text; says which line of which file is broken, and why
//! pack        tokenizer and rows of the documents, one in twenty of which is held out
//! rows        the file of these rows, as the nodes of a run read it
//! ```
//! The author of a run does the first two; everyone else gets the last by its hash, so that nobody has to parse what a stranger
//! wrote: a file of rows is numbers of a known count, each below a known bound.
//!
//! Held-out rows are in that file, too, as stories that are held out are in everyone's program: a peer could train on them, and
//! what it gains there would be taken for learning. The fewer there are the more that pays, as each round asks for some of them.
//! And who announces a run chooses what is held out: a run that pays is as fair as its data.

mod documents;
mod pack;
mod rows;

pub use documents::{Files, Read};
pub use pack::{MAX_TOKENS, Packed, pack};
pub use rows::{Location, Rows};

#[cfg(test)]
mod tests;
