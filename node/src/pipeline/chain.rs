//! The driver's end of one attempt: a stream to the first stage, and the events of the chain behind it.

use consortium_protocol::envelope::Signed;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire;
use consortium_protocol::wire::audit::StageReceipt;
use consortium_protocol::wire::pipeline::{Dtype, Frame, SessionOpen, StageFailure, StepHeader};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

use super::framing;
use super::inbox::{Registration, TokenInbox};
use crate::swarm::SwarmHandle;

/// Steps that may wait to be written: a prompt is at most a few hundred chunks.
const STEPS: usize = 1024;

/// What a chain tells its driver.
#[derive(Debug)]
pub(super) enum ChainEvent {
    /// All stages are open.
    Opened { attempt: u32 },
    /// A token was sampled for position `pos`.
    Token { attempt: u32, seq: u32, pos: u32, id: u32 },
    /// The receipts of all stages.
    Receipts { attempt: u32, chain: Vec<Signed<StageReceipt>> },
    /// A stage reported a failure.
    Failed { attempt: u32, failure: StageFailure },
    /// A stream at this end broke.
    Broken { attempt: u32, node: NodeId, reason: String },
}

/// One step to be computed.
#[derive(Debug)]
pub(super) struct ChainStep {
    pub(super) seq: u32,
    pub(super) pos: u32,
    pub(super) tokens: Vec<u32>,
    pub(super) sample: bool,
}

/// An open (or opening) chain. Dropping it closes the stages.
pub(super) struct Chain {
    frames: mpsc::Sender<Frame>,
    _tokens: Registration,
}

impl Chain {
    /// Opens the route of `open`; how that goes is told on `events`.
    pub(super) fn open(
        swarm: &SwarmHandle,
        inbox: &TokenInbox,
        open: &Signed<SessionOpen>,
        events: &mpsc::Sender<ChainEvent>,
    ) -> Option<Self> {
        let session = open.payload();
        let (first, last) = (session.route.first()?.node, session.route.last()?.node);
        let tokens = inbox.register(session, last, events.clone());
        let (frames, queue) = mpsc::channel(STEPS);
        let head = Head { swarm: swarm.clone(), first, attempt: session.attempt, events: events.clone() };
        tokio::spawn(head.run(open.clone(), queue));
        Some(Self { frames, _tokens: tokens })
    }

    /// Queues a step; false when the chain has ended.
    pub(super) fn step(&self, step: ChainStep) -> bool {
        let ChainStep { seq, pos, tokens, sample } = step;
        let header = StepHeader { seq, pos, tokens, sample, hidden: 0, dtype: Dtype::F32 };
        self.frames.try_send(Frame::Step { header, payload: Vec::new() }).is_ok()
    }

    /// Asks the stages for their receipts; there will be no more steps. False when the chain has ended.
    pub(super) fn seal(&self) -> bool {
        self.frames.try_send(Frame::Receipts(Vec::new())).is_ok()
    }
}

struct Head {
    swarm: SwarmHandle,
    first: NodeId,
    attempt: u32,
    events: mpsc::Sender<ChainEvent>,
}

impl Head {
    async fn run(self, open: Signed<SessionOpen>, frames: mpsc::Receiver<Frame>) {
        let (attempt, node) = (self.attempt, self.first);
        let end = match self.converse(&open, frames).await {
            Ok(None) => return,
            Ok(Some(failure)) => ChainEvent::Failed { attempt, failure },
            Err(reason) => ChainEvent::Broken { attempt, node, reason },
        };
        let _gone = self.events.send(end).await;
    }

    /// Ends with none when the driver drops the chain.
    async fn converse(
        &self,
        open: &Signed<SessionOpen>,
        mut frames: mpsc::Receiver<Frame>,
    ) -> Result<Option<StageFailure>, String> {
        let mut stream = self.swarm.open_stream(self.first, wire::STAGE).await.map_err(|error| error.to_string())?;
        framing::write_bytes(&mut stream, open.as_bytes()).await.map_err(|error| error.to_string())?;
        let (mut read, mut write) = tokio::io::split(stream);
        let writing = async {
            while let Some(frame) = frames.recv().await {
                framing::write_frame(&mut write, &frame).await.map_err(|error| error.to_string())?;
            }
            let _gone = write.shutdown().await;
            Ok(None)
        };
        let reading = async {
            match framing::read_frame(&mut read).await {
                Ok(Some(Frame::Error(failure))) => Ok(Some(failure)),
                Ok(Some(_)) => Err("sent what does not belong here".to_owned()),
                Ok(None) => Err("closed the stream".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        };
        tokio::select! {
            ended = writing => ended,
            ended = reading => ended,
        }
    }
}
