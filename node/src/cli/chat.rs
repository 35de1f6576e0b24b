//! `consortium-node chat`: a conversation in the terminal, or one question from a script.

use std::io::{self, BufRead as _, ErrorKind, IsTerminal as _, Read as _, Write as _};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

#[cfg(feature = "lightning")]
use super::client::CredentialRefused;
use super::client::{Client, ClientArgs, Events};
#[cfg(feature = "lightning")]
use super::pay::{PayArgs, PaymentRequired, Purse};
use super::terminal::{print, printable, remark};
use super::units;

/// Longest line read from stdin, in bytes.
const MAX_LINE: u64 = 1024 * 1024;
/// What can be typed besides messages.
const HELP: &str = "/reset forgets the conversation, /quit or Ctrl-D leaves, Ctrl-C stops an answer";

/// Chat with the model that the cluster serves.
///
/// With a message, prints the answer and ends. Without one, reads a message from each line typed and keeps the
/// conversation.
#[derive(Args, Debug)]
#[command(after_help = "In a conversation: /reset forgets it, /quit or Ctrl-D leaves, Ctrl-C stops an answer.
The answer goes to stdout; counts and speed to stderr.

Examples:
  consortium-node chat
  consortium-node chat \"Why is the sky blue?\" --max-tokens 200
  consortium-node chat --system \"Answer in French.\" --temperature 0 < questions.txt
  consortium-node chat --url http://gateway.example/v1 --pay --max-sats 2000")]
pub(super) struct ChatArgs {
    /// What to say; without it, a conversation begins.
    message: Option<String>,
    /// Model to use [default: the one that is served].
    #[arg(long, short)]
    model: Option<String>,
    /// What the model is told before the conversation.
    #[arg(long)]
    system: Option<String>,
    /// Randomness of the answer: 0 (always the likeliest token) to 2 [default: 1].
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Longest answer, in tokens [default: what the model's context leaves].
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// Seed of the random draws: the same seed, prompt and model give the same answer [default: a new one each time].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    #[cfg(feature = "lightning")]
    #[command(flatten)]
    pay: PayArgs,
    #[command(flatten)]
    client: ClientArgs,
}

/// Chats with the node running on `data_dir`.
///
/// # Errors
/// When no node answers, an answer fails, or a single one is stopped.
pub(super) async fn run(args: ChatArgs, data_dir: &Path) -> Result<()> {
    #[cfg_attr(not(feature = "lightning"), expect(unused_mut, reason = "nothing is paid"))]
    let mut client = Client::find(args.client, data_dir)?;
    let model = choose(&client, args.model).await?;
    let system: Vec<Value> = args.system.iter().map(|text| json!({"role": "system", "content": text})).collect();
    let mut request = json!({"model": model, "stream": true, "stream_options": {"include_usage": true}});
    if let Some(temperature) = args.temperature {
        request["temperature"] = json!(temperature);
    }
    if let Some(max_tokens) = args.max_tokens {
        request["max_tokens"] = json!(max_tokens);
    }
    if let Some(seed) = args.seed {
        request["seed"] = json!(seed);
    }
    #[cfg(feature = "lightning")]
    let purse = args.pay.purse(&mut client, data_dir).await?;
    let mut conversation = Conversation {
        client,
        request,
        beginning: system.len(),
        messages: system,
        #[cfg(feature = "lightning")]
        purse,
        #[cfg(feature = "lightning")]
        max_tokens: args.max_tokens,
    };
    match args.message {
        Some(message) => match conversation.say(&message).await? {
            Ending::Complete => Ok(()),
            Ending::Stopped => bail!("the answer was stopped"),
            Ending::Unread => Ok(()),
        },
        None => converse(&mut conversation).await,
    }
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    #[serde(default)]
    pricing: Option<Pricing>,
}

/// Msat for a token.
#[derive(Deserialize)]
struct Pricing {
    prompt: String,
}

impl Model {
    /// The price, in words, unless there is none.
    fn price(&self) -> Option<String> {
        let msat: f64 = self.pricing.as_ref()?.prompt.parse().ok()?;
        // 1000 tokens cost in sats what one costs in msat.
        (msat > 0.0).then(|| format!("1000 tokens of {} cost {msat} sat", printable(&self.id)))
    }
}

/// The model to use: the one that is named, or the only one. Its price is told if it has one.
async fn choose(client: &Client, named: Option<String>) -> Result<String> {
    let models: Models = client.document("/v1/models").await?;
    let price = match &named {
        Some(name) => models.data.iter().find(|model| model.id == *name).and_then(Model::price),
        None => models.data.first().and_then(Model::price),
    };
    let name = match named {
        Some(name) => name,
        None => only_model(models)?,
    };
    if let Some(price) = price {
        remark(&price);
    }
    Ok(name)
}

/// The model to use when none is named.
fn only_model(mut models: Models) -> Result<String> {
    let names: Vec<_> = models.data.iter().map(|model| printable(&model.id)).collect();
    match (models.data.pop(), names.len()) {
        (Some(model), 1) => Ok(model.id),
        (Some(_), _) => bail!("several models are served: choose one with --model: {}", names.join(", ")),
        (None, _) => bail!(
            "no model is served yet; `consortium-node status` says what the node is waiting for, and \
             `consortium-node start --model DIR` serves one"
        ),
    }
}

/// Messages said so far, and how to ask for the next answer.
struct Conversation {
    client: Client,
    /// The request without its messages.
    request: Value,
    /// How many messages stand before the conversation proper.
    beginning: usize,
    messages: Vec<Value>,
    /// What pays, where something may be paid.
    #[cfg(feature = "lightning")]
    purse: Option<Purse>,
    /// Longest answer that is wanted.
    #[cfg(feature = "lightning")]
    max_tokens: Option<u32>,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// By itself.
    Complete,
    /// By Ctrl-C.
    Stopped,
    /// Nobody reads stdout any more.
    Unread,
}

impl Conversation {
    /// Says something and prints the answer; both are remembered unless it fails.
    async fn say(&mut self, message: &str) -> Result<Ending> {
        self.messages.push(json!({"role": "user", "content": message}));
        self.request["messages"] = json!(self.messages);
        let mut answer = Answer::new();
        let result = tokio::select! {
            result = self.ask(&mut answer) => result,
            signal = tokio::signal::ctrl_c() => signal.context("cannot listen for Ctrl-C").map(|()| Ending::Stopped),
        };
        if !answer.text.is_empty() && !answer.text.ends_with('\n') {
            print("\n")?;
        }
        match &result {
            Err(_) => drop(self.messages.pop()),
            Ok(ending) => {
                answer.report(*ending, self.credit().await);
                self.messages.push(json!({"role": "assistant", "content": answer.text}));
            }
        }
        result
    }

    #[cfg(not(feature = "lightning"))]
    async fn ask(&mut self, answer: &mut Answer) -> Result<Ending> {
        answer.receive(&self.client, &self.request).await
    }

    #[cfg(not(feature = "lightning"))]
    async fn credit(&self) -> Option<i64> {
        None
    }

    /// Asks, and pays where that is asked for and allowed: once for a message.
    #[cfg(feature = "lightning")]
    async fn ask(&mut self, answer: &mut Answer) -> Result<Ending> {
        let Some(purse) = &mut self.purse else {
            let result = answer.receive(&self.client, &self.request).await;
            return result.map_err(|error| match error.is::<PaymentRequired>() {
                true => error.context("with --pay the wallet of this machine's node pays for it"),
                false => error,
            });
        };
        let mut paid = false;
        loop {
            let within = purse.keep_within(&self.client, &mut self.request, self.max_tokens).await;
            let result = match within {
                Ok(()) => answer.receive(&self.client, &self.request).await,
                Err(error) => Err(error),
            };
            let Err(error) = result else { return result };
            match error.downcast_ref::<PaymentRequired>() {
                Some(asked) if !paid => {
                    let bought = purse.pay(&asked.challenge).await?;
                    paid = bought.now;
                    self.client.use_credential(Some(bought.credential));
                }
                // It stays where it is kept: another time the gateway may know it again.
                None if error.is::<CredentialRefused>() && !paid => {
                    remark(&format!("[{error}]"));
                    self.client.use_credential(purse.another()?);
                }
                _ => return Err(error),
            }
        }
    }

    /// Credit that is left where it is paid from, in msat.
    #[cfg(feature = "lightning")]
    async fn credit(&self) -> Option<i64> {
        self.purse.as_ref()?;
        Purse::credit(&self.client).await
    }

    fn reset(&mut self) {
        self.messages.truncate(self.beginning);
    }
}

/// An answer as it comes in.
struct Answer {
    text: String,
    asked: Instant,
    /// When the first and the latest text came.
    times: Option<(Instant, Instant)>,
    finish: Option<String>,
    usage: Option<UsageChunk>,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<UsageChunk>,
    error: Option<ErrorChunk>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct UsageChunk {
    prompt_tokens: u32,
    completion_tokens: u32,
    /// The most that it costs.
    #[serde(default)]
    cost_msat: u64,
}

#[derive(Deserialize)]
struct ErrorChunk {
    message: String,
}

impl Answer {
    fn new() -> Self {
        Self { text: String::new(), asked: Instant::now(), times: None, finish: None, usage: None }
    }

    /// Asks, and prints what comes.
    async fn receive(&mut self, client: &Client, request: &Value) -> Result<Ending> {
        let mut events: Events = client.chat(request).await?;
        while let Some(payload) = events.next().await? {
            if payload == "[DONE]" {
                return Ok(Ending::Complete);
            }
            let chunk: Chunk = serde_json::from_str(&payload).context("a part of the answer makes no sense")?;
            let more = self.take(chunk)?;
            if !more.is_empty() && !print(&printable(&more))? {
                return Ok(Ending::Unread);
            }
        }
        Err(anyhow!("the answer broke off"))
    }

    /// Takes a part of the answer and gives its text.
    fn take(&mut self, chunk: Chunk) -> Result<String> {
        if let Some(error) = chunk.error {
            bail!("the answer broke off: {}", printable(&error.message));
        }
        self.usage = chunk.usage.or(self.usage);
        let mut more = String::new();
        for choice in chunk.choices {
            self.finish = choice.finish_reason.or(self.finish.take());
            let Some(text) = choice.delta.content.filter(|text| !text.is_empty()) else {
                continue;
            };
            let now = Instant::now();
            self.times = Some((self.times.map_or(now, |(first, _)| first), now));
            more.push_str(&text);
        }
        self.text.push_str(&more);
        Ok(more)
    }

    fn report(&self, ending: Ending, credit: Option<i64>) {
        let waited = self.times.map_or_else(|| self.asked.elapsed(), |(first, _)| first - self.asked);
        let mut parts = Vec::new();
        if let Some(usage) = self.usage {
            parts.push(format!("{} prompt + {} answer tokens", usage.prompt_tokens, usage.completion_tokens));
            parts.extend(self.speed(usage.completion_tokens));
            if usage.cost_msat > 0 {
                parts.push(format!("cost {}", units::sats(usage.cost_msat.into())));
            }
        }
        parts.extend(credit.map(|credit| format!("{} of credit left", units::sats(credit.into()))));
        parts.push(format!("first text after {:.1} s", waited.as_secs_f64()));
        match (ending, self.finish.as_deref()) {
            (Ending::Stopped, _) => parts.push("stopped".to_owned()),
            (_, Some("length")) => parts.push("cut at the limit of tokens".to_owned()),
            _ => {}
        }
        remark(&format!("[{}]", parts.join(", ")));
    }

    /// Tokens a second, from the first text to the last: the first token's own time is that of the prompt.
    fn speed(&self, tokens: u32) -> Option<String> {
        let (first, last) = self.times?;
        let seconds = (last - first).as_secs_f64();
        (tokens > 1 && seconds > 0.0).then(|| format!("{:.1} tokens/s", f64::from(tokens - 1) / seconds))
    }
}

/// What the reader of stdin has to say.
enum Typed {
    Line(String),
    End,
    Interrupt,
}

async fn converse(conversation: &mut Conversation) -> Result<()> {
    let interactive = io::stdin().is_terminal();
    let mut lines = read_lines()?;
    if interactive {
        remark(HELP);
    }
    loop {
        if interactive {
            // On stderr, so that a redirected conversation holds the answers alone.
            let mut prompt = io::stderr();
            prompt.write_all(b"> ").and_then(|()| prompt.flush())?;
        }
        let line = match next_line(&mut lines).await? {
            Typed::Line(line) => line,
            Typed::Interrupt if interactive => {
                eprintln!();
                remark(HELP);
                continue;
            }
            Typed::Interrupt => bail!("interrupted"),
            Typed::End => {
                if interactive {
                    eprintln!();
                }
                return Ok(());
            }
        };
        match line.trim() {
            "" => {}
            "/quit" => return Ok(()),
            "/reset" => {
                conversation.reset();
                remark("the conversation is forgotten");
            }
            command if command.starts_with('/') => remark(HELP),
            message => match conversation.say(message).await {
                Ok(Ending::Unread) => return Ok(()),
                Ok(Ending::Complete | Ending::Stopped) => {}
                Err(error) if interactive => eprintln!("error: {error:#}"),
                Err(error) => return Err(error),
            },
        }
    }
}

async fn next_line(lines: &mut mpsc::Receiver<io::Result<String>>) -> Result<Typed> {
    tokio::select! {
        line = lines.recv() => match line {
            Some(line) => Ok(Typed::Line(line.context("cannot read what was typed")?)),
            None => Ok(Typed::End),
        },
        signal = tokio::signal::ctrl_c() => signal.context("cannot listen for Ctrl-C").map(|()| Typed::Interrupt),
    }
}

/// Reads stdin on a thread of its own, which ends with stdin or with the process: a read from a terminal cannot be
/// called off, and must not hold up the end of the program.
fn read_lines() -> Result<mpsc::Receiver<io::Result<String>>> {
    let (sender, receiver) = mpsc::channel(1);
    let read = move || {
        let mut input = io::stdin().lock();
        loop {
            let mut line = String::new();
            let result = match input.by_ref().take(MAX_LINE).read_line(&mut line) {
                Ok(0) => return,
                Ok(_) if !line.ends_with('\n') && line.len() as u64 >= MAX_LINE => {
                    Err(io::Error::new(ErrorKind::InvalidData, "a line is longer than 1 MiB"))
                }
                Ok(_) => Ok(line),
                Err(error) => Err(error),
            };
            let failed = result.is_err();
            if sender.blocking_send(result).is_err() || failed {
                return;
            }
        }
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(read).context("cannot read stdin")?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(text: &str) -> Chunk {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_price_is_told_where_there_is_one() {
        let price = |model: &str| serde_json::from_str::<Model>(model).unwrap().price();
        assert_eq!(price(r#"{"id": "m"}"#), None);
        assert_eq!(price(r#"{"id": "m", "pricing": {"prompt": "0", "completion": "0"}}"#), None);
        let told = price(r#"{"id": "m", "pricing": {"unit": "msat", "prompt": "7.035", "completion": "7.035"}}"#);
        assert_eq!(told.unwrap(), "1000 tokens of m cost 7.035 sat");
    }

    #[test]
    fn parts_of_an_answer_add_up() {
        let mut answer = Answer::new();
        let parts = [
            r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"lo\n"},"finish_reason":null}]}"#,
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}"#,
        ];
        let texts = parts.map(|part| answer.take(chunk(part)).unwrap());
        assert_eq!(texts, ["", "Hel", "lo\n", "", ""]);
        assert_eq!(answer.text, "Hello\n");
        assert_eq!(answer.finish.as_deref(), Some("length"));
        assert_eq!(answer.usage.unwrap().completion_tokens, 2);
        assert!(answer.speed(2).is_some() && answer.speed(1).is_none());
        let error = answer.take(chunk(r#"{"error":{"message":"lost\u001b[0m"}}"#)).err().unwrap();
        assert_eq!(error.to_string(), "the answer broke off: lost[0m");
    }
}
