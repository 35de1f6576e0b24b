//! Text to tokens and back, with decoding of a stream that is still growing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::Tokenizer;

/// Largest tokenizer.json that is read, bytes.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// Tokens that are held back at most while their text ends in an incomplete character. A character has up to four
/// bytes; more tokens than that are not one character.
const MAX_HELD: usize = 8;

/// Why text and tokens could not be turned into each other.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// There is no tokenizer.json.
    #[error("{}: missing; the model has no tokenizer of this format, so only requests in tokens can be served", path.display())]
    Missing {
        /// The absent file.
        path: PathBuf,
    },
    /// The file cannot be read, or is not a tokenizer.
    #[error("{}: not a usable tokenizer: {reason}; download it again", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        reason: String,
    },
    /// This text cannot be encoded.
    #[error("the text cannot be tokenised: {0}")]
    Encode(String),
    /// These tokens cannot be decoded.
    #[error("the tokens cannot be decoded: {0}")]
    Decode(String),
}

/// The tokenizer of a model. Clones share it.
#[derive(Clone)]
pub struct TextTokenizer {
    tokenizer: Arc<Tokenizer>,
}

impl std::fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextTokenizer").field("vocab_size", &self.vocab_size()).finish()
    }
}

impl TextTokenizer {
    /// Reads tokenizer.json, given by its own path or by that of the model directory.
    ///
    /// # Errors
    /// [`TokenizerError::Missing`] if there is none, [`TokenizerError::Unusable`] if it cannot be used.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let mut path = path.as_ref().to_path_buf();
        if path.is_dir() {
            path.push("tokenizer.json");
        }
        let unusable = |reason: String| TokenizerError::Unusable { path: path.clone(), reason };
        let length = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(TokenizerError::Missing { path });
            }
            Err(e) => return Err(unusable(e.to_string())),
        };
        if length > MAX_TOKENIZER_BYTES {
            return Err(unusable(format!("it has {length} bytes")));
        }
        let bytes = std::fs::read(&path).map_err(|e| unusable(e.to_string()))?;
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|e| unusable(e.to_string()))?;
        // Files of embedding and training set-ups carry these; a prompt must never be cut or padded in silence.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| unusable(e.to_string()))?;
        Ok(Self { tokenizer: Arc::new(tokenizer) })
    }

    /// The tokens of a text; with the special tokens of the model around it (such as begin-of-text) if `add_special`.
    /// Text that came out of a chat template has them already.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        self.tokenizer
            .encode_fast(text, add_special)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|e| TokenizerError::Encode(e.to_string()))
    }

    /// The text of some tokens, special tokens left out.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.tokenizer.decode(ids, true).map_err(|e| TokenizerError::Decode(e.to_string()))
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The id of a token given as the vocabulary has it, such as `<|eot_id|>`.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// A token as the vocabulary has it.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// Starts decoding a stream.
    pub fn detokenizer(&self) -> Detokenizer {
        Detokenizer { tokenizer: self.clone(), window: Vec::new(), settled: 0, settled_text: String::new() }
    }
}

/// Decodes a stream of tokens piece by piece. A piece never ends within a character: tokens that form only a part of
/// one are held back until it is complete. All pieces together are what [`TextTokenizer::decode`] gives for the whole, unless
/// the tokens hold byte sequences that are no UTF-8.
///
/// A token's text can depend on the one before it (leading spaces, byte sequences), so the last settled tokens are
/// decoded again with every new one, and the difference is the piece. The method is that of vLLM and TGI.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: TextTokenizer,
    /// The tokens of the last piece, then those held back.
    window: Vec<u32>,
    /// How many of the window belong to the last piece.
    settled: usize,
    /// Text of the settled part of the window.
    settled_text: String,
}

impl Detokenizer {
    /// Takes a token and gives the text that is now complete, often empty.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window)?;
        let held = self.window.len() - self.settled;
        if text.ends_with('\u{fffd}') && held < MAX_HELD {
            return Ok(String::new());
        }
        let piece = self.behind_settled(&text);
        if piece.is_empty() && held < MAX_HELD {
            return Ok(String::new());
        }
        self.window.drain(..self.settled);
        self.settled = self.window.len();
        self.settled_text = self.tokenizer.decode(&self.window)?;
        Ok(piece)
    }

    /// The end of the stream: the text of what was held back. Incomplete characters come out as U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`].
    pub fn finish(&mut self) -> Result<String, TokenizerError> {
        let text = self.tokenizer.decode(&self.window)?;
        let piece = self.behind_settled(&text);
        self.window.clear();
        self.settled = 0;
        self.settled_text.clear();
        Ok(piece)
    }

    /// What of the window's text is new.
    fn behind_settled(&self, text: &str) -> String {
        let common = text
            .char_indices()
            .zip(self.settled_text.chars())
            .find(|((_, a), b)| a != b)
            .map_or(self.settled_text.len(), |((index, _), _)| index);
        text.get(common..).unwrap_or_default().to_owned()
    }
}
