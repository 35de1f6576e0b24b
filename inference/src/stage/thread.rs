//! The thread of a stage: owns weights and caches, and takes commands one after the other.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use candle_core::Device;
use consortium_protocol::wire::heartbeat::LayerRange;
use tokio::sync::mpsc;

use super::{
    Closing, Command, HiddenStates, MAX_STEP_ROWS, SessionId, SessionParams, StageError, StageInfo, StageOptions, Step,
    StepOutput, StepResult,
};
use crate::kv_cache::KvCache;
use crate::llama::{Forwarded, HeadRows, Shard, StageInput, StageOutput};
use crate::measure::layer_micros;
use crate::model_dir::ModelDir;
use crate::sampling::Sampler;

pub(super) fn load(dir: &ModelDir, range: LayerRange) -> Result<(Shard, StageInfo), StageError> {
    let started = Instant::now();
    let shard = guarded(|| Ok(Shard::load(dir, range, &Device::Cpu)?))?;
    let info = StageInfo {
        range,
        width: dir.config().hidden_size as u32,
        weight_bytes: dir.shard_bytes(range),
        load_ms: started.elapsed().as_millis() as u64,
    };
    Ok((shard, info))
}

/// Turns a panic into an error.
fn guarded<T>(compute: impl FnOnce() -> Result<T, StageError>) -> Result<T, StageError> {
    catch_unwind(AssertUnwindSafe(compute)).unwrap_or_else(|panic| {
        let text =
            panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
        Err(StageError::Panicked(text.unwrap_or_else(|| "without a message".into())))
    })
}

/// One session as the thread has it.
struct Session {
    cache: KvCache,
    reserved: u64,
    next_seq: u32,
    limit: u32,
    /// Every token so far, which the penalties of the last stage look at.
    context: Vec<u32>,
    sampler: Sampler,
    used: Instant,
}

/// What the thread owns.
pub(super) struct Stage {
    shard: Shard,
    options: StageOptions,
    kv_bytes_per_position: u64,
    reserved: u64,
    sessions: BTreeMap<SessionId, Session>,
    closing: Closing,
}

impl Stage {
    pub(super) fn new(dir: &ModelDir, shard: Shard, options: StageOptions, closing: Closing) -> Self {
        Self {
            kv_bytes_per_position: dir.kv_bytes(shard.range(), 1),
            shard,
            options,
            reserved: 0,
            sessions: BTreeMap::new(),
            closing,
        }
    }

    /// Serves commands until the last handle is gone.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let timer = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let Ok(timer) = timer else {
            tracing::error!("a stage has no timer and ends");
            return;
        };
        let pause = (self.options.idle / 4).max(Duration::from_millis(10));
        loop {
            let received = timer.block_on(async { tokio::time::timeout(pause, queue.recv()).await });
            self.close_sessions();
            match received {
                Ok(None) => return,
                Ok(Some(command)) => self.handle(command),
                Err(_) => self.evict_idle(),
            }
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Open(session, params, reply) => {
                self.evict_idle();
                let opened = guarded(|| self.open(session, params));
                let succeeded = opened.is_ok();
                if reply.send(opened).is_err() && succeeded {
                    // Whoever asked is gone and will not close it.
                    self.remove(&session);
                }
            }
            Command::Step(session, step, keep, reply) => {
                // Nobody waits for the result: do not compute it. The session's next step will be refused as a gap.
                if !reply.is_closed() {
                    drop(reply.send(self.step(&session, &step, keep)));
                }
            }
            Command::Measure(reply) => {
                let measured = guarded(|| Ok(layer_micros(&self.shard)?));
                drop(reply.send(measured));
            }
            Command::Wake => {}
        }
    }

    fn close_sessions(&mut self) {
        let closing = std::mem::take(&mut *self.closing.lock().unwrap_or_else(PoisonError::into_inner));
        for session in closing {
            self.remove(&session);
        }
    }

    fn evict_idle(&mut self) {
        let idle: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.used.elapsed() >= self.options.idle)
            .map(|(id, _)| *id)
            .collect();
        for session in idle {
            tracing::debug!(range = %self.shard.range(), "closing an idle session");
            self.remove(&session);
        }
    }

    fn remove(&mut self, session: &SessionId) {
        if let Some(session) = self.sessions.remove(session) {
            self.reserved -= session.reserved;
        }
    }

    fn open(&mut self, id: SessionId, params: SessionParams) -> Result<(), StageError> {
        let limit = self.shard.config().max_positions;
        if self.sessions.contains_key(&id) {
            return Err(StageError::DuplicateSession);
        }
        if self.sessions.len() >= self.options.max_sessions {
            return Err(StageError::TooManySessions { limit: self.options.max_sessions });
        }
        if params.max_positions > limit {
            return Err(StageError::TooManyPositions { asked: params.max_positions, limit });
        }
        let needs = self.kv_bytes_per_position * u64::from(params.max_positions);
        let left = self.options.kv_budget_bytes.saturating_sub(self.reserved);
        if needs > left {
            return Err(StageError::KvBudget { needs, left });
        }
        let session = Session {
            cache: self.shard.cache(params.max_positions)?,
            reserved: needs,
            next_seq: 0,
            limit: params.max_positions,
            context: Vec::new(),
            sampler: Sampler::new(params.sampling, params.prompt_len),
            used: Instant::now(),
        };
        self.sessions.insert(id, session);
        self.reserved += needs;
        Ok(())
    }

    fn step(&mut self, id: &SessionId, step: &Step, keep: bool) -> Result<StepOutput, StageError> {
        let Some(session) = self.sessions.get_mut(id) else {
            return Err(StageError::UnknownSession);
        };
        session.used = Instant::now();
        check_step(&self.shard, session, step)?;
        let started = Instant::now();
        let shard = &self.shard;
        let computed = guarded(|| compute(shard, session, step, keep));
        session.used = Instant::now();
        match computed {
            Ok((kind, hidden)) => {
                let micros = u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX);
                Ok(StepOutput { kind, micros, hidden })
            }
            Err(error) => {
                self.remove(id);
                Err(error)
            }
        }
    }
}

/// Checks everything about a step that a peer could get wrong, so that an error in [`compute`] is a failure of ours.
fn check_step(shard: &Shard, session: &Session, step: &Step) -> Result<(), StageError> {
    if step.seq != session.next_seq {
        return Err(StageError::Sequence { expected: session.next_seq, got: step.seq });
    }
    let expected = session.cache.length() as u32;
    if step.pos != expected {
        return Err(StageError::Position { expected, got: step.pos });
    }
    if step.tokens.is_empty() || step.tokens.len() > MAX_STEP_ROWS {
        return Err(StageError::Malformed("a step has 1 to 512 rows"));
    }
    let rows = step.tokens.len() as u32;
    let needs = expected.saturating_add(rows);
    if needs > session.limit {
        return Err(StageError::BeyondLimit { limit: session.limit, needs });
    }
    if let Some(token) = step.tokens.iter().find(|t| **t as usize >= shard.config().vocab_size) {
        return Err(StageError::Token(*token));
    }
    let width = shard.config().hidden_size as u32;
    match (&step.hidden, shard.is_first()) {
        (None, true) => Ok(()),
        (None, false) => Err(StageError::Malformed("a later stage needs activations")),
        (Some(_), true) => Err(StageError::Malformed("the first stage takes tokens, not activations")),
        (Some(hidden), false) => {
            let bytes = rows as usize * width as usize * 4;
            if (hidden.rows, hidden.width, hidden.data.len()) == (rows, width, bytes) {
                return Ok(());
            }
            Err(StageError::Width {
                rows: hidden.rows,
                width: hidden.width,
                bytes: hidden.data.len(),
                expected_rows: rows,
                expected_width: width,
            })
        }
    }
}

/// The result of a step, and the hidden states of the last stage if they shall be kept.
fn compute(
    shard: &Shard,
    session: &mut Session,
    step: &Step,
    keep: bool,
) -> Result<(StepResult, Option<HiddenStates>), StageError> {
    let input = match &step.hidden {
        None => StageInput::Tokens(&step.tokens),
        Some(hidden) => StageInput::Hidden(hidden.to_tensor(shard.device())?),
    };
    let head = if step.sample { HeadRows::Last } else { HeadRows::None };
    let Forwarded { output, hidden } = shard.forward_keeping(&mut session.cache, input, step.pos as usize, head)?;
    session.next_seq += 1;
    let kept = match keep && shard.is_last() {
        true => Some(HiddenStates::from_tensor(&hidden)?),
        false => None,
    };
    let result = match output {
        StageOutput::Hidden(hidden) => StepResult::Hidden(HiddenStates::from_tensor(&hidden)?),
        StageOutput::Nothing => {
            session.context.extend_from_slice(&step.tokens);
            StepResult::Nothing
        }
        StageOutput::Logits(logits) => {
            session.context.extend_from_slice(&step.tokens);
            let mut logits = logits.flatten_all()?.to_vec1::<f32>()?;
            let position = step.pos + step.tokens.len() as u32;
            StepResult::Token(session.sampler.sample(&mut logits, &session.context, position)?)
        }
    };
    Ok((result, kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error() {
        let failed = guarded::<()>(|| panic!("broken {}", 7));
        assert!(matches!(failed, Err(StageError::Panicked(text)) if text == "broken 7"));
        assert!(matches!(guarded(|| Ok(5)), Ok(5)));
    }
}
