//! One stage of one session: takes steps from upstream, computes, passes on what comes out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use consortium_inference::audit::classes::own_class;
use consortium_inference::stage::{
    HiddenStates, SessionGuard, SessionParams, StageError, Step, StepOutput, StepResult,
};
use consortium_protocol::cluster::ClusterId;
use consortium_protocol::envelope::Signed;
use consortium_protocol::identity::{NodeId, RootKey};
use consortium_protocol::msat::Msat;
use consortium_protocol::wire;
use consortium_protocol::wire::audit::StageReceipt;
use consortium_protocol::wire::pipeline::{Dtype, Frame, SessionOpen, StageFailure, StageFailureCode, StepHeader};
use tokio::io::{AsyncRead, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, watch};
use tracing::debug;

use super::{Tamper, TamperedSession, framing, session_id};
use crate::audit::{Record, RecordError, Rows, Spool};
use crate::clock::wall_ms;
use crate::cluster::ClusterView;
use crate::prices::Asking;
use crate::shards::{ActiveSession, Shards};
use crate::swarm::{ByteStream, Incoming, SwarmHandle};
use crate::tabs::Credit;
use crate::tabs::mandates::{Mandates, Use};
use crate::tabs::unaccepted::{Running, Work};

/// Time for a peer to say what a stream it opened is for.
const OPENING: Duration = Duration::from_secs(10);
/// A session whose driver says nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(120);
/// Rows whose record is made in passing; more are hashed on a thread for it.
const FEW_ROWS: u32 = 8;
/// Streams served at a time, all stages together.
const MAX_STREAMS: usize = 256;

/// Serves the stages that this node holds.
#[derive(Clone)]
pub struct Worker {
    /// This node's cluster.
    pub cluster: ClusterId,
    /// Where streams to the next stage are opened.
    pub swarm: SwarmHandle,
    /// The layers held.
    pub shards: Shards,
    /// Whom to obey.
    pub view: watch::Receiver<ClusterView>,
    /// Signs receipts.
    pub key: Arc<RootKey>,
    /// Where sessions are kept until nobody can ask for them any more.
    pub spool: Spool,
    /// What a token through a layer is done for.
    pub asking: Asking,
    /// What payers have signed for, as far as it is used up.
    pub mandates: Mandates,
    /// How much a payer may owe.
    pub credit: Credit,
    /// None, except in experiments.
    pub tamper: Option<Arc<dyn Tamper>>,
}

impl Worker {
    /// Serves incoming stage streams until the swarm ends.
    pub async fn serve(self, mut incoming: Incoming) {
        let room = Arc::new(Semaphore::new(MAX_STREAMS));
        while let Some((from, stream)) = incoming.recv().await {
            // Over the limit the stream is dropped, and whoever opened it sees it close.
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
            let worker = self.clone();
            tokio::spawn(async move {
                let _held_while_serving = permit;
                worker.serve_session(from, stream).await;
            });
        }
    }

    async fn serve_session(&self, from: NodeId, mut stream: ByteStream) {
        let opened = match tokio::time::timeout(OPENING, framing::read_signed::<SessionOpen>(&mut stream)).await {
            Ok(Ok(Some(opened))) => opened,
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(error)) => {
                debug!(%from, %error, "refused a stage stream");
                return;
            }
        };
        let session = match self.open_session(from, &opened).await {
            Ok(session) => session,
            Err(failure) => {
                debug!(%from, reason = failure.message, "refused a session");
                let _gone = framing::write_frame(&mut stream, &Frame::Error(failure)).await;
                let _gone = stream.shutdown().await;
                return;
            }
        };
        let (upstream_read, mut upstream_write) = tokio::io::split(stream);
        if let Err(failure) = session.run(upstream_read).await {
            debug!(stage = failure.stage, reason = failure.message, "a session failed");
            let _gone = framing::write_frame(&mut upstream_write, &Frame::Error(failure)).await;
        }
        let _gone = upstream_write.shutdown().await;
    }

    async fn open_session(&self, from: NodeId, signed: &Signed<SessionOpen>) -> Result<StageSession, StageFailure> {
        let me = self.swarm.me();
        let refuse = |stage: usize, code, message: String| failure(me, stage, code, message);
        let open = signed.payload();
        if open.cluster != self.cluster {
            return Err(refuse(0, StageFailureCode::NotMaster, "that session belongs to another cluster".to_owned()));
        }
        if !self.view.borrow().obeys(&signed.signer(), open.term) || open.driver != signed.signer() {
            return Err(refuse(
                0,
                StageFailureCode::StaleTerm,
                format!("{} is not the master of term {} here", signed.signer(), open.term),
            ));
        }
        let stage = open.route.iter().position(|hop| hop.node == me);
        let stage =
            stage.ok_or_else(|| refuse(0, StageFailureCode::BadFrame, "this node is not on the route".to_owned()))?;
        let upstream = if stage == 0 { open.driver } else { open.route[stage - 1].node };
        if upstream != from {
            return Err(refuse(stage, StageFailureCode::BadFrame, format!("{from} is not the stage before this one")));
        }
        if !open.prices.get(stage).is_some_and(|paid| self.asking.accepts(*paid, Instant::now())) {
            let message = format!("a token through a layer costs {} msat here", self.asking.now().0);
            return Err(refuse(stage, StageFailureCode::Underpaid, message));
        }
        let hop = open.route[stage];
        let shard = self.shards.find(&open.model, hop.range).ok_or_else(|| {
            refuse(stage, StageFailureCode::NotLoaded, format!("layers {} are not loaded here", hop.range))
        })?;
        let used = self.mandates.begin(signed, wall_ms());
        let used = used.map_err(|why| refuse(stage, StageFailureCode::NotMandated, why))?;
        let place = u16::try_from(stage).unwrap_or(u16::MAX);
        let position = Msat(open.prices[stage].0.saturating_mul(hop.range.count().into()));
        let (payer, positions) = (open.payer, open.max_positions);
        let work = Work { payer, order: signed.digest(), stage: place, position, positions };
        let running = self.credit.begin(work).await.map_err(|why| refuse(stage, StageFailureCode::Unpaid, why))?;
        let params = SessionParams {
            sampling: open.sampling.clone(),
            prompt_len: open.prompt_len,
            max_positions: open.max_positions,
        };
        let guard = shard
            .stage
            .open_guarded(session_id(open), params)
            .await
            .map_err(|error| refuse(stage, failure_code(&error), error.to_string()))?;

        let (next, protocol) = match open.route.get(stage + 1) {
            Some(next) => (next.node, wire::STAGE),
            None => (open.driver, wire::TOKENS),
        };
        let unreachable = |error: String| failure(next, stage + 1, StageFailureCode::PeerLost, error);
        let mut downstream =
            self.swarm.open_stream(next, protocol).await.map_err(|error| unreachable(error.to_string()))?;
        framing::write_bytes(&mut downstream, signed.as_bytes())
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        let active = self.shards.begin_session();
        let width = shard.stage.info().width;
        let record = Box::new(Record::new(signed.clone(), place, own_class(), width, &self.spool));
        let at = Place { me, stage, next, last: protocol == wire::TOKENS };
        let tampered = self.tamper.as_ref().and_then(|tamper| tamper.session(open, place));
        let (record, running, key) = (Some(record), Some((running, used)), Arc::clone(&self.key));
        let steps = Steps { at, guard, record, running, key, tampered };
        Ok(StageSession { _active: active, steps, downstream })
    }
}

/// Where in a route a session is.
#[derive(Clone, Copy)]
struct Place {
    me: NodeId,
    stage: usize,
    next: NodeId,
    last: bool,
}

impl Place {
    fn failure(self, code: StageFailureCode, message: impl Into<String>) -> StageFailure {
        failure(self.me, self.stage, code, message.into())
    }

    async fn send(self, downstream: &mut Downstream, frame: &Frame) -> Result<(), StageFailure> {
        let sent = framing::write_frame(downstream, frame).await;
        sent.map_err(|error| self.next_lost(error.to_string()))
    }

    fn next_lost(self, message: String) -> StageFailure {
        failure(self.next, self.stage + 1, StageFailureCode::PeerLost, message)
    }
}

struct StageSession {
    _active: ActiveSession,
    steps: Steps,
    downstream: ByteStream,
}

impl StageSession {
    /// Runs until upstream closes (`Ok`) or something fails (`Err`, to be told upstream).
    async fn run(self, upstream: ReadHalf<ByteStream>) -> Result<(), StageFailure> {
        let Self { _active, steps, downstream } = self;
        let at = steps.at;
        let (downstream_read, downstream) = tokio::io::split(downstream);
        // Neither future is cut off half-way through a frame: each lives until one of them ends the session.
        tokio::select! {
            result = steps.run(upstream, downstream) => result,
            failed = trouble_below(at, downstream_read) => Err(failed),
        }
    }
}

type Downstream = WriteHalf<ByteStream>;

/// The way down the pipeline of one session.
struct Steps {
    at: Place,
    guard: SessionGuard,
    /// None once it is sealed.
    record: Option<Box<Record>>,
    /// None once it is sealed.
    running: Option<(Running, Use)>,
    key: Arc<RootKey>,
    tampered: Option<Box<dyn TamperedSession>>,
}

impl Steps {
    async fn run(
        mut self,
        mut upstream: impl AsyncRead + Unpin,
        mut downstream: Downstream,
    ) -> Result<(), StageFailure> {
        loop {
            let frame = match tokio::time::timeout(SILENCE, framing::read_frame(&mut upstream)).await {
                Err(_) => {
                    let message = format!("nothing to do for {SILENCE:?}");
                    return Err(self.at.failure(StageFailureCode::Timeout, message));
                }
                Ok(Err(error)) => return Err(self.at.failure(StageFailureCode::BadFrame, error.to_string())),
                Ok(Ok(None)) => {
                    let _gone = downstream.shutdown().await;
                    return Ok(());
                }
                Ok(Ok(Some(frame))) => frame,
            };
            match (frame, self.record.take()) {
                (Frame::Step { header, payload }, Some(record)) => {
                    self.record = Some(self.step(header, payload, record, &mut downstream).await?);
                }
                (Frame::Receipts(chain), Some(record)) => self.seal(chain, record, &mut downstream).await?,
                (Frame::Step { .. } | Frame::Receipts(_), None) => {
                    return Err(self.at.failure(StageFailureCode::BadFrame, "the session is sealed"));
                }
                _ => return Err(self.at.failure(StageFailureCode::BadFrame, "a frame that does not belong here")),
            }
        }
    }

    async fn step(
        &mut self,
        header: StepHeader,
        payload: Vec<u8>,
        record: Box<Record>,
        downstream: &mut Downstream,
    ) -> Result<Box<Record>, StageFailure> {
        let (seq, pos, sample) = (header.seq, header.pos, header.sample);
        let rows = u32::try_from(header.tokens.len()).unwrap_or(u32::MAX);
        let tokens = header.tokens.clone();
        let input = (header.hidden > 0).then(|| payload.clone());
        let hidden = (header.hidden > 0).then_some(HiddenStates { rows, width: header.hidden, data: payload });
        let step = Step { seq, pos, tokens: header.tokens, hidden, sample };
        let output = self.compute(step).await?;
        if let Some((running, used)) = &mut self.running {
            running.computed(rows);
            used.computed(rows);
        }
        // What leaves goes first: the next stage computes while this one writes down.
        let (hidden, drawn) = match output.kind {
            StepResult::Hidden(hidden) => {
                let onward = tokens.clone();
                let header = StepHeader { seq, pos, tokens: onward, sample, hidden: hidden.width, dtype: Dtype::F32 };
                self.at.send(downstream, &Frame::Step { header, payload: hidden.data.clone() }).await?;
                (Some(hidden), None)
            }
            StepResult::Token(id) => {
                let pos = pos.saturating_add(rows);
                self.at.send(downstream, &Frame::Token { seq, pos, id, micros: vec![output.micros] }).await?;
                (output.hidden, Some(id))
            }
            StepResult::Nothing => (output.hidden, None),
        };
        let Some(hidden) = hidden else {
            return Err(self.at.failure(StageFailureCode::Internal, "the stage gave no hidden states to commit to"));
        };
        let write_down = move |mut record: Box<Record>| {
            let rows = Rows { tokens: &tokens, input: input.as_deref(), output: &hidden.data, drawn };
            record.add(&rows).map(|()| record)
        };
        let internal = |error: &dyn std::fmt::Display| self.at.failure(StageFailureCode::Internal, error.to_string());
        let written = if rows <= FEW_ROWS {
            write_down(record)
        } else {
            tokio::task::spawn_blocking(move || write_down(record)).await.map_err(|error| internal(&error))?
        };
        written.map_err(|error| match error {
            RecordError::NoRoom => self.at.failure(StageFailureCode::OutOfMemory, error.to_string()),
            _ => internal(&error),
        })
    }

    async fn compute(&mut self, step: Step) -> Result<StepOutput, StageFailure> {
        let seen = self.tampered.is_some().then(|| step.clone());
        let computed = self.guard.step_keeping(step).await;
        let mut output = computed.map_err(|error| self.at.failure(failure_code(&error), error.to_string()))?;
        if let (Some(mut tampered), Some(step)) = (self.tampered.take(), seen) {
            let tampering = tokio::task::spawn_blocking(move || {
                tampered.step(&step, &mut output);
                (tampered, output)
            });
            let broken = |error: tokio::task::JoinError| self.at.failure(StageFailureCode::Internal, error.to_string());
            let (tampered, changed) = tampering.await.map_err(broken)?;
            (self.tampered, output) = (Some(tampered), changed);
        }
        Ok(output)
    }

    /// Adds this stage's receipt to those of the stages before.
    async fn seal(
        &mut self,
        mut chain: Vec<Signed<StageReceipt>>,
        record: Box<Record>,
        downstream: &mut Downstream,
    ) -> Result<(), StageFailure> {
        let receipt = record.seal(&self.key, &chain);
        chain.push(receipt.map_err(|reason| self.at.failure(StageFailureCode::BadFrame, reason))?);
        // What was done stands in the place of what was reserved before anyone can accept it.
        self.running = None;
        self.at.send(downstream, &Frame::Receipts(chain)).await
    }
}

/// Resolves when the next stage reports a failure or closes.
async fn trouble_below(at: Place, mut downstream: impl AsyncRead + Unpin) -> StageFailure {
    let what = match framing::read_frame(&mut downstream).await {
        Ok(Some(Frame::Error(failure))) => return failure,
        Ok(Some(_)) => "sent what does not belong here".to_owned(),
        Ok(None) => "closed the stream".to_owned(),
        Err(error) => error.to_string(),
    };
    let who = if at.last { "the driver" } else { "the next stage" };
    at.next_lost(format!("{who} {what}"))
}

fn failure(node: NodeId, stage: usize, code: StageFailureCode, message: String) -> StageFailure {
    StageFailure::new(u16::try_from(stage).unwrap_or(u16::MAX), node, code, message)
}

fn failure_code(error: &StageError) -> StageFailureCode {
    match error {
        // The session of an earlier try is still closing.
        StageError::DuplicateSession => StageFailureCode::Cancelled,
        StageError::TooManySessions { .. } | StageError::KvBudget { .. } => StageFailureCode::OutOfMemory,
        StageError::Sequence { .. }
        | StageError::Position { .. }
        | StageError::Malformed(_)
        | StageError::Width { .. } => StageFailureCode::BadFrame,
        _ => StageFailureCode::Internal,
    }
}
