//! Documents from files.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::corpus::{Document, Role, Turn};
use crate::error::TrainError;

/// Longest line, in bytes.
const MAX_LINE: u64 = 8 << 20;
/// A document of plain text ends at the first empty line after so many bytes.
const SECTION: usize = 2048;
/// A line with nothing else ends a document of plain text, as in TinyStories and many other corpora.
const SEPARATOR: &str = "<|endoftext|>";
/// What files begin with that are no UTF-8 text, and what is said of them.
const NO_TEXT: [(&[u8], &str); 9] = [
    (b"\xff\xfe\0\0", "is in UTF-32: convert it, `iconv -f UTF-32 -t UTF-8`"),
    (b"\0\0\xfe\xff", "is in UTF-32: convert it, `iconv -f UTF-32 -t UTF-8`"),
    (b"\xff\xfe", "is in UTF-16: convert it, `iconv -f UTF-16 -t UTF-8`"),
    (b"\xfe\xff", "is in UTF-16: convert it, `iconv -f UTF-16 -t UTF-8`"),
    (b"\x1f\x8b", "is compressed by gzip: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd: unpack it first"),
    (b"BZh9", "is compressed by bzip2: unpack it first"),
    (b"PK\x03\x04", "is a ZIP archive: unpack it first"),
    (b"PAR1", "is in Parquet: write its text as JSON lines first"),
];

/// Files with text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// JSON lines where the name ends in `.jsonl`, `.ndjson` or `.json`: an object on each line, with `text` or with `messages`
    /// as for chats (`role` and `content`). Plain text otherwise: cut at lines that are `<|endoftext|>`, and at the first empty
    /// line after 2 KiB.
    pub paths: Vec<PathBuf>,
    /// Whether lines that cannot be read are left out, rather than refused.
    pub skip_broken: bool,
}

/// What there was to read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// Documents.
    pub documents: u64,
    /// Lines that were left out, as they are broken.
    pub skipped: u64,
    /// What is wrong with the first of these.
    pub first_skipped: Option<String>,
}

impl Files {
    /// Hands over all documents in order, each with the number of its file.
    ///
    /// # Errors
    /// [`TrainError::Dataset`] for a file that holds none, is of another encoding, or has a broken line that is not to be
    /// skipped; [`TrainError::Io`] if one cannot be read; and what `take` says.
    pub fn each(&self, take: &mut dyn FnMut(usize, Document) -> Result<(), TrainError>) -> Result<Read, TrainError> {
        let mut all = Read::default();
        for (number, path) in self.paths.iter().enumerate() {
            let mut give = |document| take(number, document);
            let mut reading = Reading { skip_broken: self.skip_broken, read: Read::default(), take: &mut give };
            reading.file(path)?;
            let Read { documents, skipped, first_skipped } = reading.read;
            if documents == 0 {
                let broken = first_skipped.map_or_else(String::new, |first| format!("; {first}"));
                return Err(refuse(path, None, format!("holds no document{broken}")));
            }
            (all.documents, all.skipped) = (all.documents + documents, all.skipped + skipped);
            all.first_skipped = all.first_skipped.or(first_skipped);
        }
        Ok(all)
    }
}

struct Reading<'a> {
    skip_broken: bool,
    read: Read,
    take: &'a mut dyn FnMut(Document) -> Result<(), TrainError>,
}

impl Reading<'_> {
    fn file(&mut self, path: &Path) -> Result<(), TrainError> {
        // A pipe would have to be waited for, and cannot be read twice.
        if !std::fs::metadata(path).map_err(TrainError::io(path))?.is_file() {
            return Err(refuse(path, None, "is no file, but a directory, a pipe or a device: name files"));
        }
        let mut file = File::open(path).map_err(TrainError::io(path))?;
        let mut first = Vec::new();
        file.by_ref().take(4).read_to_end(&mut first).map_err(TrainError::io(path))?;
        if first.is_empty() {
            return Err(refuse(path, None, "is empty"));
        }
        if let Some((_, what)) = NO_TEXT.iter().find(|(begin, _)| first.starts_with(begin)) {
            return Err(refuse(path, None, *what));
        }
        let extension = path.extension().map(|name| name.to_string_lossy().to_lowercase());
        let is_json = extension.is_some_and(|name| matches!(&*name, "jsonl" | "ndjson" | "json"));
        let mut lines = BufReader::new(first.chain(file));
        let (mut bytes, mut section) = (Vec::new(), String::new());
        for line in 1u64.. {
            bytes.clear();
            let count =
                lines.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut bytes).map_err(TrainError::io(path))?;
            if count == 0 {
                break;
            }
            let content = bytes.strip_prefix(b"\xef\xbb\xbf").filter(|_| line == 1).unwrap_or(&bytes);
            if is_json && line == 1 && content.trim_ascii_start().starts_with(b"[") {
                let reason = "is a JSON array: an object on each line is wanted; `jq -c '.[]'` makes that";
                return Err(refuse(path, None, reason));
            }
            if bytes.len() as u64 > MAX_LINE {
                self.broken(path, line, format!("is longer than the {MAX_LINE} bytes that a line may have"))?;
                while !bytes.is_empty() && !bytes.ends_with(b"\n") {
                    bytes.clear();
                    lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes).map_err(TrainError::io(path))?;
                }
                continue;
            }
            match text(content) {
                Err(reason) => self.broken(path, line, reason)?,
                Ok(content) if !is_json => self.prose(&mut section, content)?,
                Ok(content) if content.trim().is_empty() => {}
                Ok(content) => match document(content) {
                    Ok(document) => self.give(document)?,
                    Err(reason) => self.broken(path, line, reason)?,
                },
            }
        }
        self.end(&mut section)
    }

    /// A line of plain text.
    fn prose(&mut self, section: &mut String, line: &str) -> Result<(), TrainError> {
        let (line, ends) = (line.trim_end_matches(['\r', '\n']), line.ends_with('\n'));
        if line.trim() == SEPARATOR || (line.trim().is_empty() && section.len() >= SECTION) {
            return self.end(section);
        }
        section.push_str(line);
        if ends {
            section.push('\n');
        }
        // Even a text without an empty line has an end.
        if section.len() as u64 > MAX_LINE { self.end(section) } else { Ok(()) }
    }

    fn end(&mut self, section: &mut String) -> Result<(), TrainError> {
        let text = section.trim_matches(['\n', '\r']).to_owned();
        section.clear();
        if text.trim().is_empty() { Ok(()) } else { self.give(Document::Text(text)) }
    }

    fn give(&mut self, document: Document) -> Result<(), TrainError> {
        self.read.documents += 1;
        (self.take)(document)
    }

    fn broken(&mut self, path: &Path, line: u64, reason: String) -> Result<(), TrainError> {
        let error = refuse(path, Some(line), reason);
        if !self.skip_broken {
            return Err(error);
        }
        self.read.skipped += 1;
        self.read.first_skipped.get_or_insert_with(|| error.to_string());
        Ok(())
    }
}

/// The text of a line.
fn text(bytes: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| format!("is not UTF-8: byte {}", e.valid_up_to() + 1))?;
    if text.contains('\0') { Err("holds a zero byte: it is no text".to_owned()) } else { Ok(text) }
}

/// The document of a line. Whatever else there is in it does not matter.
fn document(line: &str) -> Result<Document, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| {
        // That it is line 1 of itself says nothing.
        let said = error.to_string();
        format!("is no JSON: {}", said.split(" at line ").next().unwrap_or(&said))
    })?;
    let Value::Object(mut fields) = value else {
        return Err("is no JSON object: `text` or `messages` are wanted".to_owned());
    };
    match (fields.remove("text"), fields.remove("messages")) {
        (Some(Value::String(text)), None) if text.trim().is_empty() => Err("has an empty `text`".to_owned()),
        (Some(Value::String(text)), None) => Ok(Document::Text(text)),
        (Some(_), None) => Err("has a `text` that is no string".to_owned()),
        (None, Some(Value::Array(messages))) => {
            let turns = messages.into_iter().map(turn).collect::<Result<Vec<_>, _>>()?;
            match turns.iter().any(|turn| turn.role == Role::Assistant && !turn.text.trim().is_empty()) {
                true => Ok(Document::Chat(turns)),
                false => {
                    Err("has `messages` in which the assistant says nothing: there is nothing to learn".to_owned())
                }
            }
        }
        (None, Some(_)) => Err("has `messages` that are no array".to_owned()),
        (Some(_), Some(_)) => Err("has both `text` and `messages`".to_owned()),
        (None, None) => Err("has neither `text` nor `messages`".to_owned()),
    }
}

fn turn(mut message: Value) -> Result<Turn, String> {
    let mut take = |name: &str| match message.get_mut(name).map(Value::take) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(format!("has a message without a `{name}` that is a string")),
    };
    let role = take("role")?;
    let role = match &*role {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        other => {
            let other: String = other.chars().take(32).collect();
            return Err(format!("has a message of {other:?}, who is none of system, user and assistant"));
        }
    };
    Ok(Turn { role, text: take("content")? })
}

fn refuse(path: &Path, line: Option<u64>, reason: impl Into<String>) -> TrainError {
    let line = line.map_or_else(String::new, |line| format!(", line {line}"));
    TrainError::Dataset { place: format!("{}{line}", path.display()), reason: reason.into() }
}
