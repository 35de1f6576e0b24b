//! One stage of one session: takes steps from upstream, computes, passes on what comes out.

use std::sync::Arc;
use std::time::Duration;

use consortium_inference::stage::{HiddenStates, SessionGuard, SessionParams, StageError, Step, StepResult};
use consortium_protocol::cluster::ClusterId;
use consortium_protocol::envelope::Signed;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire;
use consortium_protocol::wire::pipeline::{Dtype, Frame, SessionOpen, StageFailure, StageFailureCode, StepHeader};
use tokio::io::{AsyncRead, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, watch};
use tracing::debug;

use super::{framing, session_id};
use crate::cluster::ClusterView;
use crate::shards::{ActiveSession, Shards};
use crate::swarm::{ByteStream, Incoming, SwarmHandle};

/// Time for a peer to say what a stream it opened is for.
const OPENING: Duration = Duration::from_secs(10);
/// A session whose driver says nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(120);
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
        let hop = open.route[stage];
        let shard = self.shards.find(&open.model, hop.range).ok_or_else(|| {
            refuse(stage, StageFailureCode::NotLoaded, format!("layers {} are not loaded here", hop.range))
        })?;
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
        Ok(StageSession { _active: active, me, stage, next, last: protocol == wire::TOKENS, guard, downstream })
    }
}

struct StageSession {
    _active: ActiveSession,
    me: NodeId,
    stage: usize,
    next: NodeId,
    last: bool,
    guard: SessionGuard,
    downstream: ByteStream,
}

impl StageSession {
    /// Runs until upstream closes (`Ok`) or something fails (`Err`, to be told upstream).
    async fn run(self, upstream: ReadHalf<ByteStream>) -> Result<(), StageFailure> {
        let Self { _active, me, stage, next, last, guard, downstream } = self;
        let (downstream_read, downstream_write) = tokio::io::split(downstream);
        // Neither future is cut off half-way through a frame: each lives until one of them ends the session.
        tokio::select! {
            result = steps(me, stage, next, last, &guard, upstream, downstream_write) => result,
            failed = trouble_below(stage, next, last, downstream_read) => Err(failed),
        }
    }
}

async fn steps(
    me: NodeId,
    stage: usize,
    next: NodeId,
    last: bool,
    guard: &SessionGuard,
    mut upstream: impl AsyncRead + Unpin,
    mut downstream: WriteHalf<ByteStream>,
) -> Result<(), StageFailure> {
    loop {
        let broken = |error: std::io::Error| failure(me, stage, StageFailureCode::BadFrame, error.to_string());
        let frame = match tokio::time::timeout(SILENCE, framing::read_frame(&mut upstream)).await {
            Err(_) => {
                return Err(failure(me, stage, StageFailureCode::Timeout, format!("nothing to do for {SILENCE:?}")));
            }
            Ok(Err(error)) => return Err(broken(error)),
            Ok(Ok(None)) => {
                let _gone = downstream.shutdown().await;
                return Ok(());
            }
            Ok(Ok(Some(frame))) => frame,
        };
        let Frame::Step { header, payload } = frame else {
            return Err(failure(me, stage, StageFailureCode::BadFrame, "a frame that does not belong here".to_owned()));
        };
        let (seq, pos, sample, rows) = (header.seq, header.pos, header.sample, header.tokens.len());
        let hidden = (header.hidden > 0).then_some(HiddenStates {
            rows: u32::try_from(rows).unwrap_or(u32::MAX),
            width: header.hidden,
            data: payload,
        });
        let tokens = if last { Vec::new() } else { header.tokens.clone() };
        let step = Step { seq, pos, tokens: header.tokens, hidden, sample };
        let output =
            guard.step(step).await.map_err(|error| failure(me, stage, failure_code(&error), error.to_string()))?;
        let passed_on = match output.kind {
            StepResult::Hidden(hidden) => {
                let header = StepHeader { seq, pos, tokens, sample, hidden: hidden.width, dtype: Dtype::F32 };
                Frame::Step { header, payload: hidden.data }
            }
            StepResult::Token(id) => {
                let pos = pos.saturating_add(u32::try_from(rows).unwrap_or(u32::MAX));
                Frame::Token { seq, pos, id, micros: vec![output.micros] }
            }
            StepResult::Nothing => continue,
        };
        framing::write_frame(&mut downstream, &passed_on)
            .await
            .map_err(|error| failure(next, stage + 1, StageFailureCode::PeerLost, error.to_string()))?;
    }
}

/// Resolves when the next stage reports a failure or closes.
async fn trouble_below(stage: usize, next: NodeId, last: bool, mut downstream: impl AsyncRead + Unpin) -> StageFailure {
    let what = match framing::read_frame(&mut downstream).await {
        Ok(Some(Frame::Error(failure))) => return failure,
        Ok(Some(_)) => "sent what does not belong here".to_owned(),
        Ok(None) => "closed the stream".to_owned(),
        Err(error) => error.to_string(),
    };
    let who = if last { "the driver" } else { "the next stage" };
    failure(next, stage + 1, StageFailureCode::PeerLost, format!("{who} {what}"))
}

fn failure(node: NodeId, stage: usize, code: StageFailureCode, message: String) -> StageFailure {
    StageFailure::new(u16::try_from(stage).unwrap_or(u16::MAX), node, code, message)
}

fn failure_code(error: &StageError) -> StageFailureCode {
    match error {
        StageError::TooManySessions { .. } | StageError::KvBudget { .. } => StageFailureCode::OutOfMemory,
        StageError::Sequence { .. }
        | StageError::Position { .. }
        | StageError::Malformed(_)
        | StageError::Width { .. } => StageFailureCode::BadFrame,
        _ => StageFailureCode::Internal,
    }
}
