//! The chat template of a model: messages to the text of a prompt.
//!
//! Templates are Jinja, rendered in the environment that Hugging Face transformers gives them
//! (`apply_chat_template`): trim_blocks, lstrip_blocks, Python's string and dict methods, `raise_exception`,
//! `strftime_now`, `tojson` in Python's format, `bos_token` and the other special tokens. They come with a model from
//! strangers, so their size, their work and their output are bounded.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use consortium_protocol::wire::job::ChatMessage;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, context, escape_formatter};
use serde::Serialize;

use crate::config::read_text;

/// Largest template, bytes.
const MAX_TEMPLATE_BYTES: usize = 256 << 10;

/// Largest file with a template in it, bytes. A tokenizer_config.json also lists added tokens.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// Largest prompt that a template may produce, bytes.
const MAX_OUTPUT_BYTES: usize = 16 << 20;

/// Instructions that one rendering may take.
const FUEL: u64 = 20_000_000;

/// Name of the template in its environment.
const CHAT: &str = "chat";

/// Why a chat template cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatTemplateError {
    /// A file cannot be read, or is not what it should be.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The template is not valid Jinja.
    #[error("{}: the chat template cannot be parsed: {reason}", path.display())]
    Syntax {
        /// The file the template came from.
        path: PathBuf,
        /// What the parser says.
        reason: String,
    },
    /// The template refuses these messages, through `raise_exception`.
    #[error("the chat template of the model refuses these messages: {0}")]
    Refused(String),
    /// The template fails on these messages.
    #[error("the chat template of the model fails: {0}")]
    Render(String),
    /// The template does too much work, or produces too much text.
    #[error("the chat template of the model exceeds its limits: {0}")]
    Limit(&'static str),
}

/// A parsed chat template with the special tokens of its model.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Finds the template of a model directory: chat_template.jinja, chat_template.json, or tokenizer_config.json (of a
    /// list of named templates the one named `default`). `None` if the model has none.
    ///
    /// # Errors
    /// [`ChatTemplateError::File`] and [`ChatTemplateError::Syntax`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Option<Self>, ChatTemplateError> {
        let dir = dir.as_ref();
        let config_path = dir.join("tokenizer_config.json");
        let config = read_json(&config_path)?.unwrap_or(serde_json::Value::Null);
        let special_tokens = special_tokens(dir, &config)?;
        let jinja_path = dir.join("chat_template.jinja");
        let json_path = dir.join("chat_template.json");
        let (path, template) = if let Some(text) = read(&jinja_path)? {
            (jinja_path, Some(text))
        } else if let Some(value) = read_json(&json_path)? {
            let template = template_of(&value);
            (json_path, template)
        } else {
            let template = template_of(&config);
            (config_path, template)
        };
        template.map(|template| Self::parse(&path, template, special_tokens)).transpose()
    }

    fn parse(
        path: &Path,
        template: String,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<Self, ChatTemplateError> {
        if template.len() > MAX_TEMPLATE_BYTES {
            return Err(ChatTemplateError::File {
                path: path.into(),
                reason: format!("the chat template has {} bytes, more than {MAX_TEMPLATE_BYTES}", template.len()),
            });
        }
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(python_formatter);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: &str| strftime(format, seconds_now()));
        environment.add_filter("tojson", python_json);
        environment
            .add_template_owned(CHAT, without_generation_tags(template))
            .map_err(|e| ChatTemplateError::Syntax { path: path.into(), reason: e.to_string() })?;
        Ok(Self { environment, special_tokens })
    }

    /// The prompt for these messages; with the opening of the assistant's turn if `add_generation_prompt`. It holds
    /// its special tokens as text: encode it without adding them again.
    ///
    /// # Errors
    /// [`ChatTemplateError::Refused`] when the template calls `raise_exception` (roles out of order and the like, the
    /// client's fault), [`ChatTemplateError::Render`] and [`ChatTemplateError::Limit`] when it fails.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String, ChatTemplateError> {
        let template = self.environment.get_template(CHAT).map_err(|e| ChatTemplateError::Render(e.to_string()))?;
        let tokens = Value::from_serialize(&self.special_tokens);
        let variables = context! {
            messages => Value::from_serialize(messages),
            tools => (),
            documents => (),
            add_generation_prompt => add_generation_prompt,
            ..tokens
        };
        let mut output = Bounded(Vec::new());
        template.render_captured_to(variables, &mut output).map_err(|e| render_error(&e))?;
        String::from_utf8(output.0).map_err(|e| ChatTemplateError::Render(e.to_string()))
    }
}

/// Collects output up to the limit.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Prefix of the messages of `raise_exception`, to tell them from other failures.
const RAISED: &str = "raise_exception: ";

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

/// Prints truth values and none as Python does.
fn python_formatter(out: &mut minijinja::Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        ValueKind::None => "None",
        _ => return escape_formatter(out, state, value),
    };
    out.write_str(text).map_err(Error::from)
}

fn render_error(error: &Error) -> ChatTemplateError {
    match error.kind() {
        ErrorKind::OutOfFuel => ChatTemplateError::Limit("too many instructions"),
        ErrorKind::WriteFailure => ChatTemplateError::Limit("too much text"),
        _ => match error.detail().and_then(|detail| detail.strip_prefix(RAISED)) {
            Some(message) => ChatTemplateError::Refused(message.to_owned()),
            None => ChatTemplateError::Render(error.to_string()),
        },
    }
}

fn read(path: &Path) -> Result<Option<String>, ChatTemplateError> {
    read_text(path, MAX_FILE_BYTES).map_err(|e| ChatTemplateError::File { path: path.into(), reason: e.to_string() })
}

fn read_json(path: &Path) -> Result<Option<serde_json::Value>, ChatTemplateError> {
    let Some(text) = read(path)? else {
        return Ok(None);
    };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|e| ChatTemplateError::File { path: path.into(), reason: e.to_string() })
}

/// The member `chat_template`: a string, or a list of named ones.
fn template_of(value: &serde_json::Value) -> Option<String> {
    match value.get("chat_template")? {
        serde_json::Value::String(template) => Some(template.clone()),
        serde_json::Value::Array(named) => {
            let default = named.iter().find(|entry| entry.get("name").and_then(|n| n.as_str()) == Some("default"));
            let template = default.or(named.first())?.get("template")?;
            template.as_str().map(str::to_owned)
        }
        _ => None,
    }
}

/// `bos_token` and its like: strings, or objects with a `content`.
fn special_tokens(dir: &Path, config: &serde_json::Value) -> Result<BTreeMap<String, String>, ChatTemplateError> {
    let map = read_json(&dir.join("special_tokens_map.json"))?.unwrap_or(serde_json::Value::Null);
    let mut tokens = BTreeMap::new();
    for source in [&map, config] {
        for (name, value) in source.as_object().into_iter().flatten() {
            let text = value.as_str().or_else(|| value.get("content")?.as_str());
            if let (true, Some(text)) = (name.ends_with("_token"), text) {
                tokens.insert(name.clone(), text.to_owned());
            }
        }
    }
    Ok(tokens)
}

/// Removes `{% generation %}` and `{% endgeneration %}`, which only mark a template's output for training.
fn without_generation_tags(template: String) -> String {
    if !template.contains("generation") {
        return template;
    }
    let mut kept = String::with_capacity(template.len());
    let mut rest = template.as_str();
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else {
            break;
        };
        let end = start + length + 2;
        let tag = rest[start + 2..end - 2].trim_matches(['-', '+', ' ', '\n', '\t']);
        kept.push_str(&rest[..start]);
        if matches!(tag, "generation" | "endgeneration") {
            // An empty statement keeps the whitespace control of the tag.
            kept.push_str(&rest[start..end].replace(tag, "set _generation = 1"));
        } else {
            kept.push_str(&rest[start..end]);
        }
        rest = &rest[end..];
    }
    kept.push_str(rest);
    kept
}

#[allow(clippy::needless_pass_by_value)] // The signature that filters have.
/// JSON as Python's `json.dumps(value, ensure_ascii=False, indent=indent)` writes it.
fn python_json(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let _: Option<Value> = kwargs.get("ensure_ascii")?;
    let _: Option<Value> = kwargs.get("separators")?;
    let _: Option<Value> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonCompact)),
    };
    written.map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    let text = String::from_utf8(out).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(Value::from_safe_string(text))
}

/// `, ` and `: ` between items, as Python has it.
struct PythonCompact;

impl serde_json::ser::Formatter for PythonCompact {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// The directives of strftime that templates use, in UTC, in English. An unknown one is refused.
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[(days % 7) as usize];
    let of_day = seconds % 86_400;
    let mut out = String::with_capacity(format.len() + 16);
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += month_name,
            Some('b') => out += &month_name[..3],
            Some('A') => out += day_name,
            Some('a') => out += &day_name[..3],
            Some('H') => out += &format!("{:02}", of_day / 3600),
            Some('M') => out += &format!("{:02}", of_day / 60 % 60),
            Some('S') => out += &format!("{:02}", of_day % 60),
            Some('%') => out.push('%'),
            Some('-') => match chars.next() {
                Some('d') => out += &day.to_string(),
                Some('m') => out += &month.to_string(),
                other => return Err(unknown_directive(other)),
            },
            other => return Err(unknown_directive(other)),
        }
    }
    Ok(out)
}

fn unknown_directive(directive: Option<char>) -> Error {
    let shown = directive.map_or(String::new(), String::from);
    Error::new(ErrorKind::InvalidOperation, format!("strftime_now does not know %{shown}"))
}

/// Year, month and day of a number of days since 1970-01-01, after Howard Hinnant's `civil_from_days`.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}
