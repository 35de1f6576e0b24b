//! A generation: what is asked for, and what comes back.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::audit::StageReceipt;
use super::heartbeat::ModelRef;
use super::mandate::Mandate;
use super::pipeline::{MAX_STAGES, SessionOpen};
use super::{MAX_MODEL_NAME, MAX_TEXT, Message, bounded_text, check_text};
use crate::envelope::{ENVELOPE_BYTES, Invalid, Payload as _, Signed};
use crate::hash::{Hash, ParseHexError, hex_text, parse_hex};
use crate::identity::bytes32;

/// The longest [`JobRequest`], in bytes.
pub const MAX_JOB_REQUEST: usize = 4 * 1024 * 1024;
/// The longest [`JobEvent`], in bytes.
pub const MAX_JOB_EVENT: usize = 4 * 1024 * 1024;
/// How many stop strings, and how many bytes each.
pub const MAX_STOP: (usize, usize) = (4, 256);
/// How many messages a chat may have.
pub const MAX_MESSAGES: usize = 4096;
/// Longest name of a role, in bytes.
pub const MAX_ROLE: usize = 64;

/// The name of a job, drawn at random by its gateway; its text is 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub [u8; 16]);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex_text(&self.0))
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobId({self})")
    }
}

impl FromStr for JobId {
    type Err = ParseHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_hex(text).map(Self)
    }
}

impl Serialize for JobId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        bytes32::serialize(&self.0, self, serializer)
    }
}

impl<'de> Deserialize<'de> for JobId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bytes32::deserialize(deserializer, Self, "32 hexadecimal digits")
    }
}

/// How tokens are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// 0 (always the likeliest) to 2.
    pub temperature: f32,
    /// Keep the likeliest tokens that together have this probability: above 0, to 1 (all).
    pub top_p: f32,
    /// Keep this many of the likeliest tokens; 0: all.
    pub top_k: u32,
    /// Keep tokens at least this likely, relative to the likeliest: 0 (all) to 1.
    pub min_p: f32,
    /// Divides the logits of tokens seen before: above 0, to 10; 1: off.
    pub repetition_penalty: f32,
    /// Taken off a logit for each earlier occurrence: -2 to 2.
    pub frequency_penalty: f32,
    /// Taken off a logit once if the token occurred: -2 to 2.
    pub presence_penalty: f32,
    /// The seed of the draw.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// The ranges of the fields. NaN lies in none.
    ///
    /// # Errors
    /// The first field out of its range.
    pub fn check(&self) -> Result<(), Invalid> {
        let within = |value: f32, low: f32, high: f32| (low..=high).contains(&value);
        let rule = Invalid::unless;
        rule(within(self.temperature, 0.0, 2.0), "temperature", "0 to 2")?;
        rule(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", "above 0, to 1")?;
        rule(within(self.min_p, 0.0, 1.0), "min_p", "0 to 1")?;
        rule(self.repetition_penalty > 0.0 && self.repetition_penalty <= 10.0, "repetition_penalty", "above 0, to 10")?;
        rule(within(self.frequency_penalty, -2.0, 2.0), "frequency_penalty", "-2 to 2")?;
        rule(within(self.presence_penalty, -2.0, 2.0), "presence_penalty", "-2 to 2")
    }
}

/// What generation starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prompt {
    /// A conversation, put in order by the model's chat template.
    Chat(Vec<ChatMessage>),
    /// Text as it stands.
    Text(String),
    /// Tokens as they stand.
    Tokens(Vec<u32>),
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// What a gateway hands in: the first message on a [`super::JOB`] stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSubmission {
    /// The payer's word for it.
    pub mandate: Signed<Mandate>,
    /// What is asked for.
    pub request: JobRequest,
}

impl Message for JobSubmission {
    const MAX_BYTES: usize = MAX_JOB_REQUEST + Mandate::MAX_BYTES + ENVELOPE_BYTES + 64;

    fn check(&self) -> Result<(), Invalid> {
        let (mandate, request) = (self.mandate.payload(), &self.request);
        Invalid::unless(
            (mandate.job, mandate.challenge) == (request.job, request.challenge),
            "mandate",
            "for another job",
        )?;
        request.check()
    }
}

/// What is to be generated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// The job; the same in a resubmission.
    pub job: JobId,
    /// The name of the model.
    pub model: String,
    /// What to start from.
    pub prompt: Prompt,
    /// How to draw.
    pub sampling: Sampling,
    /// Stop after this many tokens, the emitted ones counted.
    pub max_tokens: Option<u32>,
    /// Stop before any of these texts: at most 4, 1 to 256 bytes each.
    pub stop: Vec<String>,
    /// Go on when the model says it has finished.
    pub ignore_eos: bool,
    /// What the client already has: a resubmission goes on after it.
    pub emitted: Vec<u32>,
    /// The payer's commitment to the nonce of the audit's draw ([`super::audit::Nonce`]).
    pub challenge: Hash,
}

impl Message for JobRequest {
    const MAX_BYTES: usize = MAX_JOB_REQUEST;

    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(!self.model.is_empty(), "model", "empty")?;
        check_text(&self.model, MAX_MODEL_NAME, "model")?;
        self.sampling.check()?;
        Invalid::unless(self.max_tokens != Some(0), "max_tokens", "at least 1")?;
        Invalid::unless(self.stop.len() <= MAX_STOP.0, "stop", "more than 4")?;
        for stop in &self.stop {
            Invalid::unless(!stop.is_empty(), "stop", "empty")?;
            check_text(stop, MAX_STOP.1, "stop")?;
        }
        let Prompt::Chat(messages) = &self.prompt else {
            return Ok(());
        };
        Invalid::unless(messages.len() <= MAX_MESSAGES, "messages", "more than 4096")?;
        messages.iter().try_for_each(|message| check_text(&message.role, MAX_ROLE, "role"))
    }
}

/// What the master says on the job's stream. `Accepted`, then any number of `Token`, then `Done`; or `Failed` at any
/// time. `Receipts` may follow `Done`: the client need not wait for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobEvent {
    /// Work begins.
    Accepted {
        /// The model that was meant.
        model: ModelRef,
        /// The master's term.
        term: u64,
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// The seed in use.
        seed: u64,
    },
    /// One more token.
    Token {
        /// Counts the tokens of the answer from 0, the emitted ones of a resubmission included.
        index: u32,
        /// The token.
        id: u32,
        /// Text that is now certain; empty while a code point or a stop text may still be incomplete.
        text: String,
    },
    /// The answer is complete.
    Done {
        /// Why it ended.
        finish: FinishReason,
        /// What it took.
        usage: Usage,
        /// The rest of the text.
        text: String,
    },
    /// What the stages say they did.
    Receipts(Box<Receipts>),
    /// There will be no more.
    Failed {
        /// Why.
        error: JobError,
    },
}

impl Message for JobEvent {
    const MAX_BYTES: usize = MAX_JOB_EVENT;

    fn check(&self) -> Result<(), Invalid> {
        match self {
            Self::Accepted { model, .. } => model.check(),
            Self::Token { .. } | Self::Done { .. } => Ok(()),
            Self::Failed { error } => error.check(),
            Self::Receipts(receipts) => receipts.check(),
        }
    }
}

/// The account of a job's last attempt, for its payer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipts {
    /// The master's order.
    pub order: Signed<SessionOpen>,
    /// One of each stage, in the order of the route.
    pub chain: Vec<Signed<StageReceipt>>,
    /// Prompt and answer.
    pub tokens: Vec<u32>,
    /// The first position whose token was drawn in this attempt: those before it were given.
    pub drawn_from: u32,
}

impl Receipts {
    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(self.chain.len() <= MAX_STAGES, "chain", "more than 64 receipts")?;
        Invalid::unless(self.drawn_from as usize <= self.tokens.len(), "drawn_from", "beyond the tokens")
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FinishReason {
    /// The model said so, or a stop text came up.
    Stop,
    /// As many tokens as were asked for, or as the model can attend to.
    Length,
}

/// Tokens counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// In the prompt.
    pub prompt_tokens: u32,
    /// In the answer.
    pub completion_tokens: u32,
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[error("{message}")]
pub struct JobError {
    /// What a program decides on.
    pub code: JobErrorCode,
    /// What a person reads, at most 512 bytes.
    pub message: String,
    /// The field of the request at fault, at most 64 bytes.
    pub param: Option<String>,
}

impl JobError {
    /// An error with no field at fault; `message` is cut to the length allowed.
    pub fn new(code: JobErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: bounded_text(message), param: None }
    }

    fn check(&self) -> Result<(), Invalid> {
        check_text(&self.message, MAX_TEXT, "message")?;
        check_text(self.param.as_deref().unwrap_or_default(), 64, "param")
    }
}

/// What kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum JobErrorCode {
    /// No such model in this cluster.
    ModelNotFound,
    /// The request makes no sense.
    InvalidRequest,
    /// More tokens than the model can attend to.
    ContextLength,
    /// There is no master to ask.
    NoMaster,
    /// The members cannot hold the model.
    NoCapacity,
    /// Too many jobs; try again later.
    Overloaded,
    /// A deadline passed.
    Timeout,
    /// A worker was lost and could not be replaced.
    WorkerLost,
    /// A fault of the cluster.
    Internal,
    /// A worker stopped working for the payer until it is paid.
    Unpaid,
}
