//! A byte-level BPE tokenizer trained on the corpus, with the special tokens and template of a chat.

use std::path::Path;
use std::sync::OnceLock;

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, TokenizerBuilder};

use crate::corpus::{Document, Role, Split, document, stream};
use crate::error::TrainError;

/// Ends a text; also fills short rows.
pub const END_OF_TEXT: u32 = 0;
/// Begins every sequence.
pub const START: u32 = 1;
/// Begins the system's turn.
pub const SYSTEM: u32 = 2;
/// Begins the user's turn.
pub const USER: u32 = 3;
/// Begins the model's turn.
pub const ASSISTANT: u32 = 4;
/// Ends a turn.
pub const END: u32 = 5;

/// The special tokens, by id.
pub const SPECIAL: [&str; 6] = ["<|end_of_text|>", "<|start|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"];

/// The chat template, in Jinja, as transformers reads it.
pub const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// Tokens of one document and how much each counts as a target.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Encoded {
    /// Token ids, beginning with [`START`].
    pub tokens: Vec<u32>,
    /// True where the token is to be learnt: the model's own words and the end of its turn.
    pub learnt: Vec<bool>,
}

impl Encoded {
    fn push(&mut self, token: u32, learnt: bool) {
        self.tokens.push(token);
        self.learnt.push(learnt);
    }
}

/// A trained tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

fn failed(error: impl std::fmt::Display) -> TrainError {
    TrainError::Tokenizer(error.to_string())
}

/// A tokenizer's JSON without its vocabulary.
fn without_vocabulary(mut json: Value) -> Value {
    if let Some(model) = json.get_mut("model").and_then(Value::as_object_mut) {
        model.remove("vocab");
        model.remove("merges");
    }
    json
}

/// Refuses a tokenizer that differs from those that this program trains in more than its vocabulary. A stranger may have made
/// it: normalizers, padding and prefixes can make gigabytes of a short text, dropout other tokens each time, and the library
/// panics at some.
fn check_kind(json: Value) -> Result<(), TrainError> {
    static OWN: OnceLock<Option<Value>> = OnceLock::new();
    let own = OWN.get_or_init(|| {
        let own = Tokenizer::of_texts(Vec::new(), 256 + SPECIAL.len()).ok()?;
        serde_json::to_value(&own.inner).ok().map(without_vocabulary)
    });
    let Some(Value::Object(own)) = own else { return Err(failed("this program can make none")) };
    let Value::Object(other) = without_vocabulary(json) else { return Err(failed("it is no JSON object")) };
    match own.keys().chain(other.keys()).find(|key| own.get(*key) != other.get(*key)) {
        Some(key) => Err(failed(format!("its `{key:.40}` is not that of the tokenizers that this program trains"))),
        None => Ok(()),
    }
}

/// Refuses merges whose result is no token: the library panics where that would be longer than every token.
fn check_merges(json: &Value) -> Result<(), TrainError> {
    let part = |name: &str| json.get("model").and_then(|model| model.get(name));
    let (vocabulary, merges) = (part("vocab").and_then(Value::as_object), part("merges").and_then(Value::as_array));
    let (Some(vocabulary), Some(merges)) = (vocabulary, merges) else {
        return Err(failed("it has no vocabulary, or no merges"));
    };
    let is_token = |merge: &Value| match merge.as_array().map(Vec::as_slice) {
        Some([Value::String(left), Value::String(right)]) => vocabulary.contains_key(&[&**left, right].concat()),
        _ => false,
    };
    match merges.iter().position(|merge| !is_token(merge)) {
        Some(number) => Err(failed(format!("its merge {number} makes no token"))),
        None => Ok(()),
    }
}

impl Tokenizer {
    /// Trains `vocabulary` tokens on the first `documents` documents of corpus `seed`.
    ///
    /// # Errors
    /// [`TrainError::Tokenizer`] if the trainer fails or `vocabulary` is too small for bytes and special tokens.
    pub fn train(seed: u64, documents: u64, vocabulary: usize) -> Result<Self, TrainError> {
        let texts: Vec<String> =
            (0..documents).flat_map(|index| document(&mut stream(seed, index), Split::Train).into_texts()).collect();
        Self::of_texts(texts, vocabulary)
    }

    /// Trains `vocabulary` tokens on texts; fewer, if these do not have as many parts.
    ///
    /// # Errors
    /// As [`Self::train`].
    pub fn of_texts(texts: Vec<String>, vocabulary: usize) -> Result<Self, TrainError> {
        if vocabulary < 256 + SPECIAL.len() {
            return Err(TrainError::Tokenizer("the vocabulary cannot hold all bytes".into()));
        }
        let special: Vec<AddedToken> = SPECIAL.iter().map(|t| AddedToken::from(*t, true)).collect();
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocabulary)
            .show_progress(false)
            .special_tokens(special.clone())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let level = ByteLevel::new(false, true, true);
        let mut bpe = TokenizerBuilder::<BPE, tokenizers::NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel>::new()
            .with_model(BPE::default())
            .with_pre_tokenizer(Some(level))
            .with_decoder(Some(level))
            .build()
            .map_err(failed)?;
        bpe.train(&mut trainer, texts.into_iter()).map_err(failed)?;
        let begin = TemplateProcessing::builder()
            .try_single(format!("{} $A", SPECIAL[START as usize]))
            .map_err(failed)?
            .try_pair(format!("{} $A $B", SPECIAL[START as usize]))
            .map_err(failed)?
            .special_tokens(vec![(SPECIAL[START as usize], START)])
            .build()
            .map_err(failed)?;
        let mut inner = tokenizers::Tokenizer::new(bpe.get_model().clone());
        inner.with_pre_tokenizer(Some(level)).with_decoder(Some(level)).with_post_processor(Some(begin));
        inner.add_special_tokens(special).map_err(failed)?;
        Self::new(inner)
    }

    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TrainError::Tokenizer`] if the file cannot be read, or holds another tokenizer than [`Self::train`] makes but for its
    /// vocabulary.
    pub fn load(path: &Path) -> Result<Self, TrainError> {
        Self::from_json(&std::fs::read(path).map_err(failed)?)
    }

    /// Reads the contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_json(json: &[u8]) -> Result<Self, TrainError> {
        let value = serde_json::from_slice(json).map_err(failed)?;
        check_merges(&value)?;
        check_kind(value)?;
        let inner = tokenizers::Tokenizer::from_bytes(json).map_err(failed)?;
        let tokens = inner.get_vocab(true);
        if tokens.values().any(|id| *id as usize >= tokens.len()) {
            return Err(failed("its tokens are not numbered without gaps"));
        }
        Self::new(inner)
    }

    fn new(mut inner: tokenizers::Tokenizer) -> Result<Self, TrainError> {
        for (id, token) in (0u32..).zip(SPECIAL) {
            if inner.token_to_id(token) != Some(id) {
                return Err(TrainError::Tokenizer(format!("{token} is not token {id}")));
            }
        }
        // Who writes `<|assistant|>` in a text does not begin a turn by it.
        inner.set_encode_special_tokens(true);
        Ok(Self { inner })
    }

    /// Number of tokens.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Tokens of plain text, without a beginning or an end.
    ///
    /// # Errors
    /// [`TrainError::Tokenizer`] if the text cannot be encoded.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TrainError> {
        Ok(self.inner.encode_fast(text, false).map_err(failed)?.get_ids().to_vec())
    }

    /// Text of tokens; special tokens are left out.
    ///
    /// # Errors
    /// [`TrainError::Tokenizer`] if a token is unknown.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TrainError> {
        self.inner.decode(tokens, true).map_err(failed)
    }

    /// Tokens of a document as the model is to see it.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn document(&self, document: &Document) -> Result<Encoded, TrainError> {
        let mut out = Encoded::default();
        out.push(START, false);
        match document {
            Document::Text(text) => {
                self.encode(text)?.into_iter().for_each(|t| out.push(t, true));
                out.push(END_OF_TEXT, true);
            }
            Document::Chat(turns) => {
                for turn in turns {
                    let own = turn.role == Role::Assistant;
                    out.push(
                        match turn.role {
                            Role::System => SYSTEM,
                            Role::User => USER,
                            Role::Assistant => ASSISTANT,
                        },
                        false,
                    );
                    self.encode(&turn.text)?.into_iter().for_each(|t| out.push(t, own));
                    out.push(END, own);
                }
            }
        }
        Ok(out)
    }

    /// Tokens that ask the model to answer `request`.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn prompt(&self, request: &str) -> Result<Vec<u32>, TrainError> {
        let mut tokens = vec![START, USER];
        tokens.extend(self.encode(request)?);
        tokens.extend([END, ASSISTANT]);
        Ok(tokens)
    }

    /// The contents of `tokenizer.json`.
    ///
    /// # Errors
    /// [`TrainError::Tokenizer`] if it cannot be written down.
    pub fn to_json(&self) -> Result<String, TrainError> {
        self.inner.to_string(false).map_err(failed)
    }

    /// The contents of `tokenizer_config.json`, for contexts of up to `context` tokens.
    #[must_use]
    pub fn config(context: usize) -> Value {
        let decoder: serde_json::Map<String, Value> = SPECIAL
            .iter()
            .enumerate()
            .map(|(id, token)| {
                let entry = json!({
                    "content": token, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true
                });
                (id.to_string(), entry)
            })
            .collect();
        json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "added_tokens_decoder": decoder,
            "bos_token": SPECIAL[START as usize],
            "eos_token": SPECIAL[END_OF_TEXT as usize],
            "pad_token": SPECIAL[END_OF_TEXT as usize],
            "clean_up_tokenization_spaces": false,
            "model_max_length": context,
            "chat_template": CHAT_TEMPLATE,
        })
    }

    /// The contents of `generation_config.json`.
    #[must_use]
    pub fn generation_config() -> Value {
        json!({
            "bos_token_id": START,
            "eos_token_id": [END_OF_TEXT, END],
            "pad_token_id": END_OF_TEXT,
            "do_sample": true,
            "temperature": 0.7,
            "max_new_tokens": 256,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_comes_back() {
        let tokenizer = Tokenizer::train(1, 200, 400).unwrap();
        for text in
            ["", "Tell me a story.", "Grüße, 世界! 🦊\n\ttabs  and   spaces", "\u{0}\u{7f}\u{fffd}", " لا", "a\r\nb"]
        {
            let tokens = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
        }
    }

    #[test]
    fn training_is_deterministic() {
        let first = Tokenizer::train(1, 300, 512).unwrap();
        assert_eq!(first.to_json().unwrap(), Tokenizer::train(1, 300, 512).unwrap().to_json().unwrap());
        assert_eq!(first.vocabulary(), 512);
    }

    #[test]
    fn only_the_answers_are_learnt() {
        use crate::corpus::Turn;
        let tokenizer = Tokenizer::train(1, 200, 400).unwrap();
        let turn = |role, text: &str| Turn { role, text: text.into() };
        let chat = Document::Chat(vec![turn(Role::User, "Hello"), turn(Role::Assistant, "Hi")]);
        let encoded = tokenizer.document(&chat).unwrap();
        let prompt = tokenizer.prompt("Hello").unwrap();
        assert_eq!(encoded.tokens[..prompt.len()], prompt);
        assert!(!encoded.learnt[..prompt.len()].contains(&true));
        assert!(!encoded.learnt[prompt.len()..].contains(&false));
        assert_eq!(encoded.tokens.last(), Some(&END));
    }

    #[test]
    fn what_looks_like_a_special_token_in_a_text_is_text() {
        let trained = Tokenizer::train(1, 200, 400).unwrap();
        let read = Tokenizer::from_json(trained.to_json().unwrap().as_bytes()).unwrap();
        for tokenizer in [trained, read] {
            for text in SPECIAL {
                let tokens = tokenizer.encode(text).unwrap();
                assert!(tokens.len() > 1 && tokens.iter().all(|token| *token > END), "{text}: {tokens:?}");
                assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
            }
        }
    }

    #[test]
    fn a_tokenizer_of_a_stranger_may_differ_in_its_vocabulary_alone() {
        let json = Tokenizer::train(1, 200, 400).unwrap().to_json().unwrap();
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut value: Value = serde_json::from_str(&json).unwrap();
            change(&mut value);
            Tokenizer::from_json(value.to_string().as_bytes()).map(|read| read.vocabulary())
        };
        assert_eq!(changed(&|_| ()).unwrap(), 400);
        let padding = json!({"strategy": {"Fixed": 10_000_000_000_u64}, "direction": "Right", "pad_to_multiple_of": null,
                             "pad_id": 0, "pad_type_id": 0, "pad_token": ""});
        let normalizer = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "b".repeat(1 << 20)});
        let other: [&dyn Fn(&mut Value); 8] = [
            &|v| {
                v["model"]["merges"][3] = {
                    let all = v["model"]["vocab"].as_object().unwrap();
                    let longest = all.keys().max_by_key(|token| token.len()).unwrap();
                    json!([longest, longest])
                }
            },
            &|v| v["padding"] = padding.clone(),
            &|v| v["normalizer"] = normalizer.clone(),
            &|v| v["model"]["dropout"] = json!(0.5),
            &|v| v["model"]["continuing_subword_prefix"] = json!("#".repeat(1 << 20)),
            &|v| v["pre_tokenizer"] = Value::Null,
            &|v| v["added_tokens"][5]["content"] = json!("<|stop|>"),
            &|v| v["model"]["vocab"]["a"] = json!(4_000_000_000_u32),
        ];
        for (index, change) in other.iter().enumerate() {
            assert!(changed(change).is_err(), "{index}");
        }
    }

    #[test]
    fn a_vocabulary_without_room_for_bytes_is_refused() {
        assert!(Tokenizer::train(1, 10, 100).is_err());
    }
}
