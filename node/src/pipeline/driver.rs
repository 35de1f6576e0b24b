//! A job on the master, from prompt to last token: drives the pure session machine over real chains.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use consortium_inference::PREFILL_CHUNK;
use consortium_inference::session::{Input, JobSpec, Output, Session, SessionTiming};
use consortium_protocol::cluster::ClusterId;
use consortium_protocol::envelope::{Invalid, Signed};
use consortium_protocol::identity::{NodeId, RootKey};
use consortium_protocol::msat::Msat;
use consortium_protocol::time::Millis;
use consortium_protocol::wire::Message;
use consortium_protocol::wire::audit::StageReceipt;
use consortium_protocol::wire::job::{
    FinishReason, JobError, JobErrorCode, JobEvent, JobRequest, JobSubmission, Receipts, Usage,
};
use consortium_protocol::wire::mandate::{Mandate, check_mandate};
use consortium_protocol::wire::pipeline::{Hop, SessionOpen, StageFailureCode};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::attempt::Attempt;
use super::chain::{Chain, ChainEvent, ChainStep};
use super::inbox::TokenInbox;
use super::text_out::TextOut;
use crate::master::{Failure, MasterHandle, Pipeline};
use crate::serving::Serving;
use crate::swarm::SwarmHandle;
use crate::tabs::{Credit, Running, Work};

/// Time for a pipeline to stand, at first and after a failure.
const PIPELINE: Duration = Duration::from_secs(20);
/// Time for the receipts of all stages to come home, once they have nothing to compute any more.
const SEAL: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(250);
/// Jobs driven at a time; more are refused rather than made to wait without end.
const MAX_JOBS: usize = 64;
const EVENTS: usize = 256;
/// A payer that a worker refused is refused here for so long, without asking that worker.
const UNPAID: Duration = Duration::from_secs(2);

/// What a driver needs.
pub struct DriverConfig {
    /// The node's key: it signs the sessions.
    pub key: Arc<RootKey>,
    /// The cluster.
    pub cluster: ClusterId,
    /// The swarm.
    pub swarm: SwarmHandle,
    /// Where tokens come home.
    pub inbox: TokenInbox,
    /// Where pipelines come from.
    pub master: MasterHandle,
    /// Models this node can serve.
    pub serving: Vec<Arc<Serving>>,
    /// What it asks for each position.
    pub master_fee: Msat,
    /// Who gets work.
    pub credit: Credit,
}

/// Drives jobs while this node is the master.
pub struct Driver {
    config: DriverConfig,
    room: Semaphore,
    unpaid: Unpaid,
}

/// Payers whom a worker refused a moment ago: their jobs are not tried again and again meanwhile.
#[derive(Default)]
struct Unpaid {
    refused: Mutex<BTreeMap<NodeId, (Instant, String)>>,
}

impl Unpaid {
    fn note(&self, payer: NodeId, why: &str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.retain(|_, (at, _)| at.elapsed() < UNPAID);
        refused.insert(payer, (Instant::now(), why.to_owned()));
    }

    fn check(&self, payer: &NodeId) -> Result<(), JobError> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match refused.get(payer).filter(|(at, _)| at.elapsed() < UNPAID) {
            Some((_, why)) => Err(JobError::new(JobErrorCode::Unpaid, why.clone())),
            None => Ok(()),
        }
    }
}

/// Longest time that the stages take for so many positions that they were given at once: as long as the driver itself
/// would wait for them.
#[must_use]
pub fn feeding(positions: u32) -> Duration {
    let timing = SessionTiming::default();
    let chunks = u64::from(positions).div_ceil(PREFILL_CHUNK as u64);
    Duration::from_millis(timing.chunk.saturating_mul(chunks).min(timing.job))
}

impl Driver {
    /// A driver of up to 64 jobs at a time.
    #[must_use]
    pub fn new(config: DriverConfig) -> Self {
        Self { config, room: Semaphore::new(MAX_JOBS), unpaid: Unpaid::default() }
    }

    /// Runs one job of `payer` to its end. `leave` ends the answer where it is, and what was computed is accounted for;
    /// the receiver of `events` being dropped ends it on all stages without that.
    pub async fn run(
        &self,
        payer: NodeId,
        submission: JobSubmission,
        events: mpsc::Sender<JobEvent>,
        leave: CancellationToken,
    ) {
        if let Err(error) = self.try_run(payer, submission, &events, &leave).await {
            let _gone = events.send(JobEvent::Failed { error }).await;
        }
    }

    async fn try_run(
        &self,
        payer: NodeId,
        submission: JobSubmission,
        events: &mpsc::Sender<JobEvent>,
        leave: &CancellationToken,
    ) -> Result<(), JobError> {
        let invalid = |error: Invalid| JobError::new(JobErrorCode::InvalidRequest, error.to_string());
        Message::check(&submission).map_err(invalid)?;
        let JobSubmission { mandate, request } = submission;
        if mandate.signer() != payer {
            return Err(invalid(Invalid::new("mandate", "not signed by the node that hands in the job")));
        }
        let _room = self.room.try_acquire().map_err(|_| {
            JobError::new(JobErrorCode::Overloaded, format!("{MAX_JOBS} jobs are in progress; try again in a moment"))
        })?;
        self.unpaid.check(&payer)?;
        let serving = self.find(&request.model)?;
        let tokens = {
            let (serving, prompt) = (Arc::clone(&serving), request.prompt.clone());
            let encoding = tokio::task::spawn_blocking(move || serving.tokens(&prompt));
            encoding.await.map_err(|error| JobError::new(JobErrorCode::Internal, error.to_string()))??
        };
        let reader = Reader { events, leave };
        let mut job = Job::new(&self.config, (&self.room, &self.unpaid), serving, mandate, request, tokens, reader)?;
        let pipeline = tokio::select! {
            pipeline = job.wait_for_pipeline(None) => pipeline?,
            () = reader.gone() => return Ok(()),
        };
        job.accept(&pipeline).await;
        job.drive(pipeline).await
    }

    fn find(&self, name: &str) -> Result<Arc<Serving>, JobError> {
        let known = || self.config.serving.iter().map(|serving| serving.model.name.as_str()).collect::<Vec<_>>();
        self.config.serving.iter().find(|serving| serving.model.name == name).cloned().ok_or_else(|| JobError {
            code: JobErrorCode::ModelNotFound,
            message: format!("the model `{name}` is not served here; there is: {}", known().join(", ")),
            param: Some("model".to_owned()),
        })
    }
}

/// Who reads the answer.
#[derive(Clone, Copy)]
struct Reader<'a> {
    events: &'a mpsc::Sender<JobEvent>,
    leave: &'a CancellationToken,
}

impl Reader<'_> {
    /// Resolves when nobody wants more of the answer.
    async fn gone(&self) {
        tokio::select! {
            () = self.leave.cancelled() => {}
            () = self.events.closed() => {}
        }
    }

    /// False when nobody hears it.
    async fn tell(&self, event: JobEvent) -> bool {
        self.events.send(event).await.is_ok()
    }
}

/// One job in progress.
struct Job<'a> {
    driver: &'a DriverConfig,
    reader: Reader<'a>,
    mandate: Signed<Mandate>,
    request: JobRequest,
    prompt: Vec<u32>,
    serving: Arc<Serving>,
    session: Session,
    text: TextOut,
    started: Instant,
    rng: StdRng,
    chain: Option<Chain>,
    attempt: Attempt,
    /// What the payer of the attempt is not yet known to accept.
    driving: Option<Running>,
    chain_events: (mpsc::Sender<ChainEvent>, mpsc::Receiver<ChainEvent>),
    /// Version of the pipeline that the current attempt runs on.
    version: u64,
    term: u64,
    route: Vec<Hop>,
    prices: Vec<Msat>,
    /// Who said that it cannot go on, since the last plan.
    at_fault: Option<NodeId>,
    /// A stage had no room: nothing is wrong with the pipeline.
    full: bool,
    /// Jobs in progress on this driver.
    room: &'a Semaphore,
    unpaid: &'a Unpaid,
}

impl<'a> Job<'a> {
    fn new(
        driver: &'a DriverConfig,
        (room, unpaid): (&'a Semaphore, &'a Unpaid),
        serving: Arc<Serving>,
        mandate: Signed<Mandate>,
        request: JobRequest,
        prompt: Vec<u32>,
        reader: Reader<'a>,
    ) -> Result<Self, JobError> {
        let text = TextOut::resume(serving.tokenizer.detokenizer(), request.stop.clone(), &request.emitted)?;
        let config = serving.dir.config();
        let spec = JobSpec {
            prompt: prompt.clone(),
            emitted: request.emitted.clone(),
            max_tokens: request.max_tokens,
            context: serving.model.context,
            layers: serving.model.layers,
            vocab_size: u32::try_from(config.vocab_size).unwrap_or(u32::MAX),
            eos: config.eos.clone(),
            ignore_eos: request.ignore_eos,
        };
        let session = Session::new(spec, SessionTiming::default());
        Ok(Self {
            driver,
            reader,
            mandate,
            prompt,
            serving,
            session,
            text,
            started: Instant::now(),
            rng: StdRng::from_os_rng(),
            chain: None,
            attempt: Attempt::default(),
            driving: None,
            chain_events: mpsc::channel(EVENTS),
            version: 0,
            term: 0,
            route: Vec::new(),
            prices: Vec::new(),
            at_fault: None,
            full: false,
            room,
            unpaid,
            request,
        })
    }

    fn now(&self) -> Millis {
        Millis(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn prompt_len(&self) -> u32 {
        u32::try_from(self.prompt.len()).unwrap_or(u32::MAX)
    }

    /// The committed pipeline; after a failure, one of a later version than the failed one.
    async fn wait_for_pipeline(&self, failed: Option<u64>) -> Result<Arc<Pipeline>, JobError> {
        let digest = self.serving.model.digest;
        let mut pipeline = self.driver.master.pipeline();
        let found = pipeline.wait_for(|pipeline| {
            pipeline
                .as_ref()
                .is_some_and(|p| p.model.digest == digest && failed.is_none_or(|version| p.version > version))
        });
        if let Ok(Ok(found)) = tokio::time::timeout(PIPELINE, found).await
            && let Some(pipeline) = found.as_ref()
        {
            return Ok(Arc::clone(pipeline));
        }
        let why = self.driver.master.trouble().unwrap_or_else(|| "the pipeline did not stand in time".to_owned());
        Err(JobError::new(JobErrorCode::NoCapacity, format!("{} cannot be served now: {why}", self.serving.model.name)))
    }

    async fn accept(&self, pipeline: &Pipeline) {
        let accepted = JobEvent::Accepted {
            model: self.serving.model.clone(),
            term: pipeline.term,
            prompt_tokens: self.prompt_len(),
            seed: self.request.sampling.seed,
        };
        self.reader.tell(accepted).await;
    }

    async fn drive(&mut self, pipeline: Arc<Pipeline>) -> Result<(), JobError> {
        let mut pipelines = self.driver.master.pipeline();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut input = self.plan(&pipeline, |plan| Input::Start { plan });
        loop {
            if let Some(end) = self.advance(input).await? {
                return self.finish(end).await;
            }
            input = tokio::select! {
                event = self.chain_events.1.recv() => match event {
                    Some(event) => self.translate(event)?,
                    None => return Err(JobError::new(JobErrorCode::Internal, "the event queue closed".to_owned())),
                },
                () = self.reader.gone() => Input::Cancel,
                changed = pipelines.changed() => {
                    let now = pipelines.borrow_and_update().clone();
                    changed.ok().and(now).and_then(|now| self.superseded(&now)).unwrap_or(Input::Tick)
                }
                _ = tick.tick() => Input::Tick,
            };
        }
    }

    /// The failure that a new pipeline tells of: a node of the route in use that no longer holds its layers. Its silence
    /// may show in the cluster long before a stream breaks.
    fn superseded(&self, now: &Pipeline) -> Option<Input> {
        if now.version <= self.version {
            return None;
        }
        let (stage, hop) = self.route.iter().enumerate().find(|(_, hop)| !now.route.contains(hop))?;
        let stage = u16::try_from(stage).unwrap_or(u16::MAX);
        Some(Input::StageFailed { attempt: self.session.attempt(), stage, node: hop.node, retryable: true })
    }

    fn plan(&mut self, pipeline: &Pipeline, input: impl FnOnce(Vec<Hop>) -> Input) -> Input {
        self.version = pipeline.version;
        self.term = pipeline.term;
        self.route.clone_from(&pipeline.route);
        self.prices.clone_from(&pipeline.prices);
        input(pipeline.route.clone())
    }

    fn translate(&mut self, event: ChainEvent) -> Result<Input, JobError> {
        Ok(match event {
            ChainEvent::Opened { attempt } => Input::Opened { attempt },
            ChainEvent::Token { attempt, seq, pos, id } => {
                if attempt == self.attempt.number {
                    self.attempt.drawn(seq, pos, id);
                }
                Input::Token { attempt, seq, pos, id }
            }
            // Before they were asked for.
            ChainEvent::Receipts { .. } => Input::Tick,
            // Alone, a job that does not fit will not fit later either.
            ChainEvent::Failed { attempt, failure }
                if failure.code == StageFailureCode::OutOfMemory
                    && !self.attempt.began()
                    && self.room.available_permits() + 1 < MAX_JOBS =>
            {
                debug!(job = %self.request.job, node = %failure.node, reason = failure.message, "waiting for room");
                self.full = true;
                Input::Busy { attempt }
            }
            // Another try would meet the same refusal.
            ChainEvent::Failed { attempt, failure }
                if failure.code == StageFailureCode::Unpaid && attempt == self.attempt.number =>
            {
                let why = format!("node {} does not work for this payer: {}", failure.node, failure.message);
                self.unpaid.note(self.mandate.signer(), &why);
                return Err(JobError::new(JobErrorCode::Unpaid, why));
            }
            ChainEvent::Failed { attempt, failure } => {
                let on_route = self.route.iter().any(|hop| hop.node == failure.node);
                let blameless = matches!(failure.code, StageFailureCode::PeerLost | StageFailureCode::Cancelled);
                self.at_fault = (on_route && !blameless).then_some(failure.node);
                warn!(job = %self.request.job, node = %failure.node, stage = failure.stage, reason = failure.message, "a stage failed");
                Input::StageFailed { attempt, stage: failure.stage, node: failure.node, retryable: true }
            }
            ChainEvent::Broken { attempt, node, reason } => {
                warn!(job = %self.request.job, %node, reason, "a chain broke");
                Input::StageFailed { attempt, stage: 0, node, retryable: true }
            }
        })
    }

    /// Feeds the machine and carries out what it says, until it waits for something.
    async fn advance(&mut self, input: Input) -> Result<Option<(FinishReason, Usage)>, JobError> {
        let mut inputs = VecDeque::from([input]);
        let mut end = None;
        while let Some(input) = inputs.pop_front() {
            let now = self.now();
            for output in self.session.handle(input, now, &mut self.rng) {
                match output {
                    Output::Open { attempt, route, max_positions } => self.open(attempt, route, max_positions).await?,
                    Output::Step { attempt: _, seq, pos, tokens, sample } => {
                        if sample {
                            self.attempt.awaited = Some(seq);
                        }
                        // A chain that has ended says so by an event of its own.
                        let _queued =
                            self.chain.as_ref().is_some_and(|chain| chain.step(ChainStep { seq, pos, tokens, sample }));
                    }
                    Output::Emit { index, id } => {
                        if self.emit(index, id).await? {
                            inputs.push_back(Input::StopMatched);
                        }
                    }
                    // A job that has ended closes its chain when it has the receipts.
                    Output::Close { .. } if self.session.is_done() => {}
                    Output::Close { .. } => self.chain = None,
                    Output::Replan { .. } => inputs.push_back(self.replan().await?),
                    Output::Finish { reason, usage } => end = Some((reason, usage)),
                    Output::Fail(error) => {
                        self.chain = None;
                        return Err(error);
                    }
                }
            }
        }
        Ok(end)
    }

    async fn open(&mut self, attempt: u32, route: Vec<Hop>, max_positions: u32) -> Result<(), JobError> {
        let open = SessionOpen {
            cluster: self.driver.cluster,
            term: self.term,
            job: self.request.job,
            attempt,
            model: self.serving.model.digest,
            driver: self.driver.swarm.me(),
            route,
            prices: self.prices.clone(),
            master_fee: self.driver.master_fee,
            sampling: self.request.sampling.clone(),
            prompt_len: self.prompt_len(),
            max_positions,
            payer: self.mandate.signer(),
            challenge: self.request.challenge,
            mandate: self.mandate.clone(),
        };
        let open = Signed::sign(&self.driver.key, open);
        // No worker would take it.
        check_mandate(&open).map_err(|broken| {
            JobError::new(JobErrorCode::NoCapacity, format!("the job cannot be ordered as its payer wants: {broken}"))
        })?;
        self.driving = Some(self.begin(&open).await?);
        self.chain = Chain::open(&self.driver.swarm, &self.driver.inbox, &open, &self.chain_events.0);
        let tokens = [self.prompt.as_slice(), self.session.emitted()].concat();
        let drawn_from = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        self.attempt = Attempt { number: attempt, order: Some(open), tokens, drawn_from, awaited: None };
        Ok(())
    }

    /// Whether the payer gets this driven: as its fee is on the same tab as a worker's pay, by the same rule.
    async fn begin(&self, order: &Signed<SessionOpen>) -> Result<Running, JobError> {
        let open = order.payload();
        let work = Work {
            payer: open.payer,
            order: order.digest(),
            stage: u16::try_from(open.route.len()).unwrap_or(u16::MAX),
            position: open.master_fee,
            positions: open.max_positions,
        };
        if open.master_fee == Msat::ZERO {
            return Ok(Running::uncounted());
        }
        let begun = self.driver.credit.begin(work).await;
        begun.map_err(|why| {
            JobError::new(JobErrorCode::Unpaid, format!("the master drives no job for this payer: {why}"))
        })
    }

    async fn emit(&mut self, index: u32, id: u32) -> Result<bool, JobError> {
        let step = self.text.push(id)?;
        // A reader that has gone is noticed by the loop, as a cancellation.
        self.reader.tell(JobEvent::Token { index, id, text: step.text }).await;
        Ok(step.matched)
    }

    async fn replan(&mut self) -> Result<Input, JobError> {
        let failed = match std::mem::take(&mut self.full) {
            true => None,
            false => {
                let nodes = self.at_fault.take().into_iter().collect();
                self.driver.master.report_failure(Failure { version: self.version, nodes });
                Some(self.version)
            }
        };
        let pipeline = tokio::select! {
            pipeline = self.wait_for_pipeline(failed) => pipeline?,
            () = self.reader.gone() => return Ok(Input::Cancel),
        };
        debug!(job = %self.request.job, version = pipeline.version, "going on with another pipeline");
        Ok(self.plan(&pipeline, |route| Input::Plan(Some(route))))
    }

    async fn finish(&mut self, (finish, usage): (FinishReason, Usage)) -> Result<(), JobError> {
        let text = self.text.finish()?;
        if self.reader.tell(JobEvent::Done { finish, usage, text }).await
            && let Some(receipts) = self.receipts().await
        {
            self.reader.tell(JobEvent::Receipts(Box::new(receipts))).await;
        }
        self.chain = None;
        Ok(())
    }

    /// What the stages sign for the last attempt.
    async fn receipts(&mut self) -> Option<Receipts> {
        let order = self.attempt.order.clone()?;
        if !self.attempt.began() || !self.chain.as_ref().is_some_and(Chain::seal) {
            return None;
        }
        // A prompt is queued whole. When its reader leaves, the stages still have to compute it before they sign, and are paid
        // for it: leaving is not free.
        let patience = SEAL + feeding(self.attempt.being_fed());
        match tokio::time::timeout(patience, self.sealed()).await {
            Ok(Ok(chain)) => {
                let Attempt { tokens, drawn_from, .. } = std::mem::take(&mut self.attempt);
                if let (Some(mut driving), Some(last)) = (self.driving.take(), chain.last()) {
                    driving.computed(last.payload().positions);
                }
                Some(Receipts { order, chain, tokens, drawn_from })
            }
            Ok(Err((node, reason))) => {
                warn!(job = %self.request.job, ?node, reason, "the stages gave no receipts");
                // Who does not sign for its work, or hands on what the next cannot sign over, costs the others their pay:
                // which of two it is cannot be told, so both are left out for a while.
                if let Some(place) = self.route.iter().position(|hop| Some(hop.node) == node) {
                    let nodes = self.route[place.saturating_sub(1)..=place].iter().map(|hop| hop.node).collect();
                    self.driver.master.report_failure(Failure { version: self.version, nodes });
                }
                None
            }
            Err(_) => {
                warn!(job = %self.request.job, "the stages gave no receipts in time");
                None
            }
        }
    }

    /// The receipts; or who is said to have given none, and why.
    async fn sealed(&mut self) -> Result<Vec<Signed<StageReceipt>>, (Option<NodeId>, String)> {
        while let Some(event) = self.chain_events.1.recv().await {
            match event {
                ChainEvent::Receipts { attempt, chain } if attempt == self.attempt.number => return Ok(chain),
                // Asked for before it was clear that the text had ended.
                ChainEvent::Token { attempt, seq, pos, id } if attempt == self.attempt.number => {
                    self.attempt.drawn(seq, pos, id);
                }
                ChainEvent::Failed { attempt, failure } if attempt == self.attempt.number => {
                    return Err((Some(failure.node), failure.to_string()));
                }
                // The first stage's stream ends also when one behind it has gone.
                ChainEvent::Broken { attempt, node, reason } if attempt == self.attempt.number => {
                    return Err((None, format!("{node}: {reason}")));
                }
                _ => {}
            }
        }
        Err((None, "the queue of events closed".to_owned()))
    }
}
