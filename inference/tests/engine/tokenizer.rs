//! Streamed decoding against decoding the whole, for both families of tokenizers.

use std::collections::BTreeMap;

use consortium_inference::tokenizer::{TextTokenizer, TokenizerError};
use proptest::prelude::*;
use serde_json::{Value, json};

/// The printable stand-ins of bytes in byte-level vocabularies (GPT-2's `bytes_to_unicode`).
fn byte_chars() -> Vec<char> {
    let mut next = 256;
    (0..=255_u32)
        .map(|byte| match byte {
            33..=126 | 161..=172 | 174..=255 => char::from_u32(byte).unwrap(),
            _ => {
                next += 1;
                char::from_u32(next - 1).unwrap()
            }
        })
        .collect()
}

fn open(json: &Value) -> TextTokenizer {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    TextTokenizer::open(dir.path()).unwrap()
}

fn special(id: usize, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": true})
}

/// As Llama 3: byte-level BPE.
fn byte_level() -> TextTokenizer {
    let mut vocab: BTreeMap<String, usize> = BTreeMap::new();
    for (id, c) in byte_chars().into_iter().enumerate() {
        vocab.insert(c.to_string(), id);
    }
    vocab.insert("he".into(), 256);
    vocab.insert("ll".into(), 257);
    vocab.insert("ðŁ".into(), 258);
    open(&json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": [special(259, "<s>"), special(260, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [259], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": [["h", "e"], ["l", "l"], ["ð", "Ł"]]},
    }))
}

/// As Llama 2: characters with a fallback to bytes, and a leading space that decoding strips.
fn byte_fallback() -> TextTokenizer {
    let mut vocab: BTreeMap<String, usize> = BTreeMap::new();
    for byte in 0..256 {
        vocab.insert(format!("<0x{byte:02X}>"), byte);
    }
    for (index, c) in "▁abcdefghijklmnopqrstuvwxyz".chars().enumerate() {
        vocab.insert(c.to_string(), 256 + index);
    }
    vocab.insert("▁t".into(), 290);
    vocab.insert("<unk>".into(), 291);
    open(&json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special(291, "<unk>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": vocab, "merges": [["▁", "t"]]},
    }))
}

fn stream(tokenizer: &TextTokenizer, ids: &[u32]) -> Vec<String> {
    let mut detokenizer = tokenizer.detokenizer();
    let mut pieces: Vec<String> = ids.iter().map(|id| detokenizer.push(*id).unwrap()).collect();
    pieces.push(detokenizer.finish().unwrap());
    pieces
}

#[test]
fn encodes_whole_texts_with_and_without_special_tokens() {
    let tokenizer = byte_level();
    // The truncation that the file asks for is not applied.
    let plain = tokenizer.encode("hello world", false).unwrap();
    assert_eq!(tokenizer.decode(&plain).unwrap(), "hello world");
    let with = tokenizer.encode("hello world", true).unwrap();
    assert_eq!(with[0], 259);
    assert_eq!(with[1..], plain);
    assert_eq!(tokenizer.decode(&with).unwrap(), "hello world");
    assert_eq!(tokenizer.token_to_id("</s>"), Some(260));
    assert_eq!(tokenizer.id_to_token(260).as_deref(), Some("</s>"));
    assert_eq!(tokenizer.vocab_size(), 261);
}

#[test]
fn characters_come_out_whole() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode("a🙂é", false).unwrap();
    assert!(ids.len() > 4);
    for piece in stream(&tokenizer, &ids) {
        assert!(!piece.contains('\u{fffd}'), "{piece:?}");
    }
    let pieces = stream(&byte_fallback(), &[0xF0, 0x9F, 0x99, 0x82, 290, 257]);
    assert_eq!(pieces, ["", "", "", "🙂", " t", "a", ""]);
}

#[test]
fn broken_sequences_do_not_hold_up_the_stream() {
    let tokenizer = byte_level();
    let mut ids = vec![0xFF; 50];
    ids.extend(tokenizer.encode("ok", false).unwrap());
    let mut detokenizer = tokenizer.detokenizer();
    let mut text = String::new();
    let mut longest_silence = 0;
    let mut silence = 0;
    for id in ids {
        let piece = detokenizer.push(id).unwrap();
        silence = if piece.is_empty() { silence + 1 } else { 0 };
        longest_silence = longest_silence.max(silence);
        text += &piece;
    }
    text += &detokenizer.finish().unwrap();
    assert!(text.ends_with("ok") && longest_silence < 9, "{text} {longest_silence}");
}

#[test]
fn unusable_files() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(TextTokenizer::open(dir.path()), Err(TokenizerError::Missing { .. })));
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    let error = TextTokenizer::open(dir.path()).unwrap_err();
    assert!(matches!(error, TokenizerError::Unusable { .. }));
    assert!(error.to_string().contains("tokenizer.json"));
}

proptest! {
    #[test]
    fn a_stream_is_the_whole(text in "([a-z ]|é|🙂|日|\\PC){0,30}") {
        for tokenizer in [byte_level(), byte_fallback()] {
            let ids = tokenizer.encode(&text, false).unwrap();
            let whole = tokenizer.decode(&ids).unwrap();
            prop_assert_eq!(stream(&tokenizer, &ids).concat(), whole.clone());
            prop_assert_eq!(whole, text.clone());
        }
    }

    #[test]
    fn any_bytes_are_survived(ids in prop::collection::vec(0_u32..259, 0..60)) {
        let tokenizer = byte_level();
        let pieces = stream(&tokenizer, &ids);
        if let Some(whole) = Some(tokenizer.decode(&ids).unwrap()).filter(|whole| !whole.contains('\u{fffd}')) {
            prop_assert_eq!(pieces.concat(), whole);
        }
    }
}
