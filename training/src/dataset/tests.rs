use std::path::{Path, PathBuf};

use consortium_protocol::Hash;
use tempfile::TempDir;

use super::*;
use crate::TrainError;
use crate::corpus::{Document, Role, Split, Turn, document, stream};
use crate::packing::Batch;

const LENGTH: usize = 32;
const VOCABULARY: usize = 300;

fn written(files: &[(&str, &[u8])]) -> (TempDir, Vec<PathBuf>) {
    let directory = tempfile::tempdir().unwrap();
    let write = |(name, bytes): &(&str, &[u8])| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let paths = files.iter().map(write).collect();
    (directory, paths)
}

fn read(name: &str, bytes: &[u8], skip_broken: bool) -> Result<(Vec<Document>, Read), TrainError> {
    let (_directory, paths) = written(&[(name, bytes)]);
    let mut documents = Vec::new();
    let read = Files { paths, skip_broken }.each(&mut |_, document| {
        documents.push(document);
        Ok(())
    })?;
    Ok((documents, read))
}

fn refused(name: &str, bytes: &[u8]) -> String {
    read(name, bytes, false).unwrap_err().to_string()
}

fn text(text: &str) -> Document {
    Document::Text(text.to_owned())
}

/// So many stories as JSON lines, each once.
fn stories(count: u64) -> Vec<u8> {
    let line = |index| match document(&mut stream(5, index), Split::Train) {
        Document::Text(text) => serde_json::json!({"text": text, "source": index}).to_string(),
        Document::Chat(turns) => {
            let role = |role| match role {
                Role::System => "system",
                Role::User => "user",
                Role::Assistant => "assistant",
            };
            let messages = turns.iter().map(|turn| serde_json::json!({"role": role(turn.role), "content": turn.text}));
            serde_json::json!({"messages": messages.collect::<Vec<_>>()}).to_string()
        }
    };
    (0..count).map(line).collect::<Vec<_>>().join("\n").into_bytes()
}

fn packed(bytes: &[u8]) -> Packed {
    let (_directory, paths) = written(&[("stories.jsonl", bytes)]);
    pack(&Files { paths, skip_broken: false }, VOCABULARY, LENGTH).unwrap()
}

fn open(packed: &Packed, bytes: Vec<u8>) -> Result<Rows, TrainError> {
    let (digest, rows) = (Hash::of(&packed.bytes), (packed.training_rows, packed.held_out_rows));
    Rows::open(Location::Memory(bytes.into()), digest, rows, LENGTH, VOCABULARY)
}

fn all(packed: &Packed, split: Split) -> Batch {
    let rows = open(packed, packed.bytes.clone()).unwrap();
    let count = if split == Split::Train { packed.training_rows } else { packed.held_out_rows };
    rows.batch(split, &(0..count).collect::<Vec<_>>()).unwrap()
}

#[test]
fn json_lines_are_texts_and_chats() {
    let lines = "\u{feff}{\"text\": \"One\\nday\", \"meta\": {\"id\": 1}}\r\n\n  \n{\"messages\": [{\"role\": \"user\", \
                 \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Hello\", \"name\": \"x\"}]}";
    let turn = |role, text: &str| Turn { role, text: text.into() };
    let chat = Document::Chat(vec![turn(Role::User, "Hi"), turn(Role::Assistant, "Hello")]);
    for name in ["a.jsonl", "a.ndjson", "a.JSON"] {
        let (documents, read) = read(name, lines.as_bytes(), false).unwrap();
        assert_eq!(documents, [text("One\nday"), chat.clone()]);
        assert_eq!(read, Read { documents: 2, ..Read::default() });
    }
}

#[test]
fn plain_text_is_cut_where_it_says_so_and_between_paragraphs() {
    let of = |bytes: &str| read("a.txt", bytes.as_bytes(), false).unwrap().0;
    assert_eq!(of("One.\r\n\r\nTwo.\r\n"), [text("One.\n\nTwo.")], "a short text is one document");
    assert_eq!(of("One.\n<|endoftext|>\n\nTwo."), [text("One."), text("Two.")]);
    let paragraph = "A paragraph of some length. ".repeat(40);
    let long = [&*paragraph, "\n\n"].concat().repeat(4);
    let cut = of(&long);
    assert_eq!(cut.len(), 2);
    let again: Vec<String> = cut.into_iter().flat_map(Document::into_texts).collect();
    assert_eq!(again.join("\n\n"), long.trim_end_matches('\n'), "nothing is lost");
}

#[test]
fn a_broken_line_is_named_or_left_out() {
    let good = "{\"text\": \"good\"}";
    for (bad, words) in [
        (&b"{\"text\": \"go"[..], "is no JSON"),
        (b"good", "is no JSON"),
        (b"{\"text\": 5}", "has a `text` that is no string"),
        (b"[\"hello\", null]", "is no JSON object"),
        (b"\"hello\"", "is no JSON object"),
        (b"{}", "has neither `text` nor `messages`"),
        (b"{\"text\": \" \"}", "has an empty `text`"),
        (b"{\"text\": \"a\", \"messages\": []}", "has both"),
        (b"{\"messages\": []}", "nothing to learn"),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}", "nothing to learn"),
        (b"{\"messages\": [{\"role\": \"tool\", \"content\": \"Hi\"}]}", "\"tool\", who is none of"),
        (b"{\"messages\": [{\"role\": \"user\"}]}", "without a `content`"),
        (b"{\"messages\": [[\"user\", \"Hi\"], [\"assistant\", \"Yo\"]]}", "without a `role`"),
        (b"{\"messages\": {\"role\": \"user\"}}", "that are no array"),
        (b"{\"text\": \"caf\xe9\"}", "is not UTF-8: byte 14"),
        (b"{\"text\": \"a\0\"}", "zero byte"),
    ] {
        let lines = [good.as_bytes(), b"\n", bad, b"\n", good.as_bytes()].concat();
        let error = refused("a.jsonl", &lines);
        assert!(error.contains("a.jsonl, line 2: ") && error.contains(words), "{words}: {error}");
        let (documents, read) = read("a.jsonl", &lines, true).unwrap();
        assert_eq!((documents.len(), read.skipped), (2, 1));
        assert_eq!(read.first_skipped.unwrap().split(": ").last(), error.split(": ").last());
    }
    assert!(refused("a.txt", b"One.\ncaf\xe9\n").contains("a.txt, line 2: is not UTF-8: byte 4"));
    let long = [b"{\"text\": \"", &vec![b'a'; 20 << 20][..], b"\"}\n{\"text\": \"b\"}\nc\n{\"text\": \"d\"}"].concat();
    let (documents, skipped) = read("a.jsonl", &long, true).unwrap();
    assert_eq!((documents, skipped.skipped), (vec![text("b"), text("d")], 2));
    assert!(skipped.first_skipped.unwrap().contains("line 1: is longer than"));
    assert!(refused("a.jsonl", &long[9 << 20..]).contains("line 1: is longer than"));
    let nested = ["{\"x\": ".repeat(1000), "1".into(), "}".repeat(1000)].concat();
    assert!(refused("a.jsonl", nested.as_bytes()).contains("line 1: is no JSON"));
}

#[test]
fn a_file_without_text_is_refused_even_where_broken_lines_are_not() {
    let utf_16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let long = [b"{\"text\": \"".to_vec(), vec![b'a'; 9 << 20]].concat();
    for (name, bytes, words) in [
        ("a.jsonl", &b""[..], "is empty"),
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\r\n\n", "holds no document"),
        ("a.jsonl", b"\n", "holds no document"),
        ("a.jsonl", b"\xef\xbb\xbf", "holds no document"),
        ("a.jsonl", &[&b"\xff\xfe"[..], &utf_16("{\"text\": \"a\"}")].concat(), "is in UTF-16: convert it"),
        ("a.jsonl", &utf_16("{\"text\": \"a\"}\n"), "zero byte"),
        ("a.jsonl", b"\x1f\x8b\x08\0", "is compressed by gzip"),
        ("a.txt", b"PAR1....", "is in Parquet"),
        ("a.json", b"[{\"text\": \"a\"}]", "is a JSON array"),
        ("a.json", b"[\n{\"text\": \"a\"}\n]", "is a JSON array"),
        ("a.jsonl", b"{\n", "is no JSON"),
        ("a.json", &[b"[", &long[..]].concat(), "is a JSON array"),
        ("a.jsonl", &long, "is longer than"),
    ] {
        for skip_broken in [false, true] {
            let error = read(name, bytes, skip_broken).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(name), "{words}: {error}");
        }
    }
    let files = |path: &Path| Files { paths: vec![path.into()], skip_broken: true }.each(&mut |_, _| Ok(()));
    let directory = tempfile::tempdir().unwrap();
    assert!(files(directory.path()).unwrap_err().to_string().contains("is no file, but a directory"));
    let error = files(&directory.path().join("not-there")).unwrap_err().to_string();
    assert!(error.contains("not-there"), "{error}");
}

#[test]
fn rows_hold_every_document_once_on_the_side_that_its_text_decides() {
    let lines: Vec<String> =
        (0..400).map(|n| serde_json::json!({"text": format!("Story {n}: it is short.")}).to_string()).collect();
    let lines = lines.join("\n");
    for copies in [1, 2] {
        let packed = packed(vec![lines.as_str(); copies].join("\n").as_bytes());
        // All words of the rows: what goes in, and what only comes out.
        let of = |batch: Batch| {
            let rows = batch.tokens.chunks(LENGTH).zip(batch.targets.tokens.chunks(LENGTH));
            let words: Vec<u32> = rows.flat_map(|(tokens, next)| [tokens, &next[LENGTH - 1..]].concat()).collect();
            packed.tokenizer.decode(&words).unwrap()
        };
        let (training, held_out) = (of(all(&packed, Split::Train)), of(all(&packed, Split::HeldOut)));
        let times = |side: &str, n| side.matches(&format!("Story {n}: it is short.")).count();
        let sides: Vec<_> = (0..400).map(|n| (times(&training, n), times(&held_out, n))).collect();
        assert!(sides.iter().all(|side| [(copies, 0), (0, copies)].contains(side)), "{sides:?}");
        let on_held_out = sides.iter().filter(|side| side.1 > 0).count();
        assert!((5..=40).contains(&on_held_out), "{on_held_out}");
    }
    assert_eq!(packed(&stories(400)).bytes, packed(&stories(400)).bytes, "the same files make the same rows");
}

#[test]
fn a_row_is_read_as_its_documents_would_be_packed() {
    let packed = packed(&stories(400));
    let batch = all(&packed, Split::Train);
    let rows = usize::try_from(packed.training_rows).unwrap();
    assert_eq!((batch.rows, batch.tokens.len(), batch.starts.len()), (rows, rows * LENGTH, rows * LENGTH));
    let mut chats = 0;
    for row in 0..rows {
        let range = row * LENGTH..(row + 1) * LENGTH;
        let (tokens, starts) = (&batch.tokens[range.clone()], &batch.starts[range.clone()]);
        let (next, weights) = (&batch.targets.tokens[range.clone()], &batch.targets.weights[range]);
        assert!(weights.iter().any(|weight| *weight > 0.0), "row {row} teaches something");
        for at in 0..LENGTH {
            let begins = tokens[at] == crate::tokenizer::START;
            let before = if at == 0 { 0 } else { starts[at - 1] };
            let padding = tokens[at] == crate::tokenizer::END_OF_TEXT && starts[at] as usize == at;
            assert!(starts[at] == if begins || padding { at as u32 } else { before }, "row {row}, {at}");
            if at + 1 < LENGTH {
                assert_eq!(next[at], tokens[at + 1]);
            }
            assert!(next[at] != crate::tokenizer::START || weights[at] == 0.0, "nobody learns where a document begins");
            chats += usize::from(tokens[at] == crate::tokenizer::USER && weights[at] == 0.0);
        }
    }
    assert!(chats > 100, "what people say is not learnt");
}

#[test]
fn another_file_is_refused() {
    let packed = packed(&stories(200));
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = packed.bytes.clone();
        change(&mut bytes);
        open(&packed, bytes).unwrap_err().to_string()
    };
    assert!(with(&|bytes| bytes.truncate(bytes.len() - 1)).contains("which is not that many rows"));
    assert!(with(&|bytes| bytes.push(0)).contains("which is not that many rows"));
    assert!(with(&Vec::clear).contains("a file of 0 bytes"));
    assert!(with(&|bytes| bytes[5] ^= 1).contains("another hash"));
    // Even where it is the one that was signed.
    let signed = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = packed.bytes.clone();
        change(&mut bytes);
        let rows = (packed.training_rows, packed.held_out_rows);
        let digest = Hash::of(&bytes);
        Rows::open(Location::Memory(bytes.into()), digest, rows, LENGTH, VOCABULARY).unwrap_err().to_string()
    };
    let high = signed(&|bytes| bytes[400..404].copy_from_slice(&300u32.to_le_bytes()));
    assert!(high.contains("hold token 300, and the tokenizer has 300"), "{high}");
    // The last row: of what is held out.
    let empty = signed(&|bytes| {
        let row = bytes.len() - 4 * (LENGTH + 1);
        bytes[row..].chunks_exact_mut(4).for_each(|word| word[3] &= 0x3f);
    });
    assert!(empty.contains("a row in which there is nothing to learn"), "{empty}");
    let none = Location::Memory(Vec::new().into());
    assert!(Rows::open(none, Hash::of(b""), (u64::MAX, 1), LENGTH, VOCABULARY).is_err());
}

#[test]
fn rows_that_are_not_there_are_refused() {
    let packed = packed(&stories(200));
    let rows = open(&packed, packed.bytes.clone()).unwrap();
    let (training, held_out) = (packed.training_rows, packed.held_out_rows);
    assert!(
        rows.batch(Split::Train, &[0, training - 1]).is_ok() && rows.batch(Split::HeldOut, &[held_out - 1]).is_ok()
    );
    assert!(rows.batch(Split::Train, &[0, training]).is_err() && rows.batch(Split::HeldOut, &[u64::MAX]).is_err());
}

#[test]
fn too_little_text_is_refused() {
    let (_directory, paths) = written(&[("a.jsonl", b"{\"text\": \"only one\"}"), ("b.txt", b"and one more")]);
    let error = pack(&Files { paths, skip_broken: false }, VOCABULARY, LENGTH).unwrap_err().to_string();
    assert!(error.contains("a.jsonl and 1 more: of 2 documents none is held out, or all are"), "{error}");
}

/// Of what the tokenizer sees: it would take days of a text without a space.
#[test]
fn a_text_that_is_one_word_is_packed_all_the_same() {
    let mut lines = stories(200);
    lines.extend(format!("\n{{\"text\": \"{}\"}}\n", "acgt".repeat(250_000)).bytes());
    lines.extend(format!("{{\"text\": \"a{}b\"}}", " ".repeat(500_000)).bytes());
    let packed = packed(&lines);
    assert_eq!(packed.read.documents, 202);
    assert!(packed.training_rows * LENGTH as u64 > 10_000);
}

#[test]
fn what_looks_like_a_turn_in_a_text_is_none() {
    let mut lines = stories(200);
    for index in 0..40 {
        lines.extend(format!("\n{{\"text\": \"{index} <|end|><|start|><|user|> x <|end_of_text|>\"}}").bytes());
    }
    let packed = packed(&lines);
    let batch = all(&packed, Split::Train);
    let begun = batch.tokens.iter().zip(batch.starts.iter()).enumerate();
    let forged =
        begun.filter(|(at, (token, start))| **token == crate::tokenizer::START && at % LENGTH != **start as usize);
    assert_eq!(forged.count(), 0);
    assert!(packed.tokenizer.decode(&batch.tokens).unwrap().contains("<|user|>"));
}
