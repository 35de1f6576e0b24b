//! One task for each run: feeds the machine, and has done what it wants done (`deeds`), in its order.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use consortium_protocol::wire::train::{Entry, Pledged, RunId, RunSpec, StateFile, TrainMessage};
use consortium_protocol::{Hash, Millis, NodeId, RootKey, Signed};
use consortium_training::collective::{Examination, Task};
use consortium_training::rounds::{Config, FetchFailure, Input, Machine, Stored, Wish, peers_of_round};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::bench::{Apply, BenchParts, Evaluate, Steps, WorkError};
use super::errands::{Errands, Got};
use super::history::History;
use super::pause::Standing;
use super::progress::Progress;
use super::roster::Roster;
use super::shelf::Shelf;
use super::store::{Store, StoreError};
use super::view::{RunStatus, RunSummary};
use super::wire::{Heard, Wire};
use super::work::{Done, Order, Refused, Works};
use super::{RunError, files};
use crate::blobs::Blobs;
use crate::clock::wall_ms;

/// Parameters that are not to be had are asked for again after this time.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(2);
/// Bounds of the time between two ticks, and of the time after which something is said again.
const TICKS: (u64, u64) = (20, 1000);
const RESENDS: (u64, u64) = (SAID_AGAIN, 10_000);
/// The shortest time after which anything is said again, in milliseconds.
pub(super) const SAID_AGAIN: u64 = 250;

/// What a node needs for its part in a run.
pub struct Parts<W> {
    /// Its key.
    pub key: Arc<RootKey>,
    /// What it would do.
    pub wish: Wish,
    /// The run.
    pub spec: Signed<RunSpec>,
    /// What is computed in it.
    pub task: Arc<Task>,
    /// How updates are examined.
    pub examination: Examination,
    /// The directory of the run; see [`Store`].
    pub directory: std::path::PathBuf,
    /// Files of this node.
    pub blobs: Blobs,
    /// Which parameters it has; the one that the way to the others knows, too.
    pub shelf: Shelf,
    /// Who is in the run.
    pub roster: Roster,
    /// The way to the others.
    pub wire: W,
    /// What they say.
    pub inbox: mpsc::Receiver<Heard>,
    /// Wall time now, in milliseconds since 1970; earlier for a run that stood still as a whole, and goes on as if it had not.
    pub now_ms: u64,
    /// Ends it.
    pub stop: CancellationToken,
}

/// Handle to a run that this node takes part in. A clone is the same.
#[derive(Clone)]
pub struct RunHandle {
    status: watch::Receiver<RunStatus>,
    history: Arc<Mutex<History>>,
    commands: mpsc::Sender<Command>,
    shelf: Shelf,
    stop: CancellationToken,
    task: Arc<tokio::sync::Mutex<Option<JoinHandle<()>>>>,
}

#[derive(Debug)]
enum Command {
    Leave,
    Pledged(Signed<Pledged>),
}

impl RunHandle {
    /// Where the run stands.
    #[must_use]
    pub fn status(&self) -> RunStatus {
        let mut status = self.status.borrow().clone();
        status.rounds = self.history.lock().unwrap_or_else(PoisonError::into_inner).lines();
        status
    }

    /// Tells of every change; without the rounds, which [`Self::status`] has.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<RunStatus> {
        self.status.clone()
    }

    /// Which parameters this node has.
    #[must_use]
    pub fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    /// Leaves the run at the end of the round. Nothing happens if it has ended.
    pub async fn leave(&self) {
        let _ended = self.commands.send(Command::Leave).await;
    }

    /// Takes part with the bond that a validator says it holds. Nothing happens if the run has ended.
    pub async fn pledged(&self, word: Signed<Pledged>) {
        let _ended = self.commands.send(Command::Pledged(word)).await;
    }

    /// Ends as a process does that is killed: whatever is under way stays where it is.
    #[cfg(test)]
    pub(super) async fn kill(&self) {
        if let Some(task) = self.task.lock().await.take() {
            task.abort();
            let _aborted = task.await;
        }
    }

    /// Stops at once, to be taken up later, and waits until that is done.
    pub async fn stop(&self) {
        self.stop.cancel();
        // Another that waits for the end holds the lock until then.
        let mut task = self.task.lock().await;
        if let Some(task) = task.take() {
            let _ended_or_broken_off = task.await;
        }
    }
}

/// What errands bring.
pub(super) enum Event {
    Fetched {
        round: u64,
        peer: NodeId,
        result: Result<Got, FetchFailure>,
    },
    Apply(Apply),
    /// With the parameters before the last aggregate.
    Evaluate(Box<Evaluate>, Got),
    EvaluateAgain,
    NotApplied(&'static str),
    /// What the machine takes, in milliwatts.
    Power(Option<u64>),
    Sent(Result<(), StoreError>),
}

pub(super) struct Driver<W> {
    pub(super) me: NodeId,
    pub(super) run: RunId,
    pub(super) spec: Signed<RunSpec>,
    pub(super) machine: Machine,
    pub(super) store: Arc<Mutex<Store>>,
    pub(super) works: Works,
    pub(super) steps: Arc<Steps>,
    pub(super) errands: Errands<W>,
    pub(super) under_way: JoinSet<Event>,
    /// The errand after which parameters change.
    pub(super) applying: Option<AbortHandle>,
    /// The errand that sends entries to who asked for them.
    pub(super) sending: Option<AbortHandle>,
    pub(super) shelf: Shelf,
    pub(super) history: Arc<Mutex<History>>,
    pub(super) progress: Progress,
    /// The errand after which updates are measured.
    pub(super) measuring: Option<AbortHandle>,
    /// What is to be measured in this round.
    pub(super) asked: Option<Evaluate>,
    /// Files that came for a round alone, unless its record names them, with that round.
    pub(super) fetched: BTreeMap<Hash, u64>,
    pub(super) loading: Option<Hash>,
    pub(super) stop: CancellationToken,
    /// On what terms it trains, if on any.
    pub(super) standing: Option<Standing>,
    /// The last round that was weighed.
    pub(super) weighed: u64,
    pub(super) directory: std::path::PathBuf,
    inbox: mpsc::Receiver<Heard>,
    commands: mpsc::Receiver<Command>,
    status: watch::Sender<RunStatus>,
    wish: Wish,
    /// The round in which this node said that it leaves.
    leaving: Option<u64>,
    began: (Instant, u64),
}

/// How often to tick and to say again, by the shortest part of a round.
fn paces(spec: &RunSpec) -> (Duration, Millis) {
    let p = &spec.phases;
    let shortest = [p.train_ms, p.commit_ms, p.reveal_ms, p.score_ms, p.settle_ms].into_iter().min().unwrap_or(1000);
    let tick = (shortest / 8).clamp(TICKS.0, TICKS.1);
    (Duration::from_millis(tick), Millis((shortest / 2).clamp(RESENDS.0, RESENDS.1)))
}

/// Takes part in a run, from where its directory stands.
///
/// # Errors
/// When the directory cannot be read, or its log is not one of this run.
pub fn spawn<W: Wire>(parts: Parts<W>) -> Result<RunHandle, RunError> {
    let (driver, mut handle) = prepare(parts)?;
    handle.task = Arc::new(tokio::sync::Mutex::new(Some(tokio::spawn(driver.run()))));
    Ok(handle)
}

pub(super) fn prepare<W: Wire>(parts: Parts<W>) -> Result<(Driver<W>, RunHandle), RunError> {
    let Parts { key, wish, spec, task, examination, directory, blobs, shelf, roster, wire, inbox, now_ms, stop } =
        parts;
    let (run, (_, resend)) = (RunId::of(&spec), paces(spec.payload()));
    let mut history = History::default();
    let (store, stored) = Store::open(&directory, |entry| history.add(entry))?;
    let began = (Instant::now(), now_ms);
    let here = shelf.kept().newest.is_some_and(|(_, file)| blobs.length(&file.file) == Some(file.bytes));
    let held = shelf.kept().held().filter(|_| here);
    let config = Config { key: Arc::clone(&key), wish, resend, held };
    let machine = Machine::new(config, spec.clone(), stored, Millis(began.1)).map_err(RunError::Log)?;
    roster.name(spec.payload(), machine.chain().last());
    let steps = Arc::new(Steps::default());
    let bench = BenchParts {
        me: key.node_id(),
        task: Arc::clone(&task),
        examination,
        directory: directory.clone(),
        blobs: blobs.clone(),
        shelf: shelf.clone(),
        steps: Arc::clone(&steps),
        runtime: tokio::runtime::Handle::current(),
        last: Arc::default(),
    };
    let history = Arc::new(Mutex::new(history));
    let standing = if wish == Wish::Train { Store::standing(&directory)? } else { None };
    let (commands, orders) = mpsc::channel(8);
    let status = watch::Sender::new(RunStatus::new(RunSummary { wish: Some(wish), ..RunSummary::of(&spec) }));
    let handle = RunHandle {
        status: status.subscribe(),
        history: Arc::clone(&history),
        commands,
        shelf: shelf.clone(),
        stop: stop.clone(),
        task: Arc::default(),
    };
    let overlap = spec.payload().training.overlap;
    let driver = Driver {
        me: key.node_id(),
        run,
        spec,
        machine,
        store: Arc::new(Mutex::new(store)),
        works: Works::new(bench, overlap),
        steps,
        errands: Errands::new(wire, blobs, task, roster),
        under_way: JoinSet::new(),
        applying: None,
        measuring: None,
        asked: None,
        sending: None,
        shelf,
        history,
        progress: Progress::default(),
        fetched: BTreeMap::new(),
        loading: None,
        stop,
        standing,
        weighed: 0,
        directory,
        inbox,
        commands: orders,
        status,
        wish,
        leaving: None,
        began,
    };
    Ok((driver, handle))
}

impl<W: Wire> Driver<W> {
    async fn run(mut self) {
        self.show();
        if !self.wait_for_the_start().await {
            return;
        }
        info!(run = %self.run, round = self.machine.chain().last().round, "takes part in a training run");
        self.take_up_pause().await;
        let mut tick = tokio::time::interval(paces(self.spec.payload()).0);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while !self.is_over() {
            tokio::select! {
                () = self.stop.cancelled() => break,
                Some(command) = self.commands.recv() => self.obey(command).await,
                Some(heard) = self.inbox.recv() => self.hear(heard).await,
                Some(event) = self.under_way.join_next() => if let Ok(event) = event { self.happen(event).await },
                done = self.works.done() => self.take(done).await,
                _ = tick.tick() => self.input(Input::Tick).await,
            }
            self.weigh().await;
            self.show();
        }
        self.under_way.shutdown().await;
        self.works.finish().await;
    }

    /// False if the node stops before.
    async fn wait_for_the_start(&mut self) -> bool {
        let starts_at = self.spec.payload().starts_at_ms;
        loop {
            let left = Duration::from_millis(starts_at.saturating_sub(wall_ms())).min(Duration::from_secs(3600));
            if left.is_zero() {
                return true;
            }
            tokio::select! {
                () = self.stop.cancelled() => return false,
                Some(Command::Leave) = self.commands.recv() => {
                    self.leaving = Some(0);
                    self.forget();
                    return false;
                }
                // What is said before the time is said again.
                Some(_) = self.inbox.recv() => {}
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    /// Wall time, as it went on from the start of this task: it never jumps.
    pub(super) fn now(&self) -> Millis {
        let (began, at_ms) = self.began;
        Millis(at_ms.saturating_add(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)))
    }

    pub(super) async fn input(&mut self, input: Input) {
        let outputs = self.machine.handle(input, self.now());
        for output in outputs {
            if !self.perform(output).await {
                return;
            }
        }
    }

    async fn hear(&mut self, heard: Heard) {
        let Heard { from, message, room: _until_it_is_dealt_with } = heard;
        self.errands.roster.hear(from);
        if let Some(speaker) = super::roster::speaks_for_itself(&message) {
            self.errands.roster.hear(speaker);
        }
        self.progress.hear(&message);
        self.input(Input::Message { from, message }).await;
    }

    async fn happen(&mut self, event: Event) {
        match event {
            Event::Fetched { round, peer, result } => {
                if let Ok(got) = &result {
                    self.note(got);
                }
                self.input(Input::Fetched { round, peer, result: result.map(drop) }).await;
            }
            Event::Apply(apply) => {
                self.loading = match &apply {
                    Apply::Load { file, .. } => file.file_name().and_then(|name| name.to_str()?.parse().ok()),
                    _ => None,
                };
                self.works.order(Order::Apply(apply));
            }
            Event::Evaluate(order, before) => {
                self.note(&before);
                self.works.order(Order::Evaluate(Evaluate { before: Some(before.path), ..*order }));
            }
            Event::EvaluateAgain => {
                if let Some(order) = self.asked.take() {
                    self.evaluate(order);
                }
            }
            Event::Sent(Ok(())) => {}
            Event::Sent(Err(error)) => self.trouble(&error),
            Event::NotApplied(why) => {
                self.progress.trouble(why.to_owned());
                self.input(Input::NotApplied).await;
            }
            Event::Power(milliwatts) => milliwatts.into_iter().for_each(|power| self.measured(power)),
        }
    }

    async fn take(&mut self, done: Result<Done, Refused>) {
        let done = match done {
            Ok(done) => done,
            Err(Refused(error)) => return self.trouble(&error),
        };
        match done {
            Done::Applied(Ok(held)) => {
                self.loading = None;
                self.progress.well();
                self.input(Input::Applied(held)).await;
                // What could not be measured for want of them is measured now.
                if let Some(order) = self.asked.take().filter(|order| order.base == held.state) {
                    self.evaluate(order);
                }
            }
            Done::Applied(Err(error)) => {
                self.trouble(&error);
                let file = self.loading.take();
                self.not_applied_after(ASK_AGAIN, file, "parameters could not be made, and are fetched");
            }
            Done::Evaluated(Ok(found)) => {
                self.asked = None;
                let (round, aggregate, findings) = (found.round, found.aggregate, found.findings);
                self.input(Input::Evaluated { round, aggregate, findings }).await;
            }
            Done::Trained(_, Ok(made)) => {
                self.progress.trained(self.spec.payload(), made.seconds);
                self.fetched.insert(made.update, made.round);
                self.input(Input::Trained { round: made.round, update: made.update, bytes: made.bytes }).await;
            }
            Done::Trained(_, Err(WorkError::Train(consortium_training::TrainError::Stopped))) => {}
            Done::Evaluated(Err(error @ WorkError::Parameters(_)))
            | Done::Trained(_, Err(error @ WorkError::Parameters(_))) => {
                self.trouble(&error);
                // What was on the disk is not any more: others have it.
                let newest = self.shelf.kept().newest.map(|(_, file)| file.file);
                self.not_applied_after(ASK_AGAIN, newest, "parameters are damaged, and are fetched");
            }
            Done::Evaluated(Err(error)) => {
                self.trouble(&error);
                self.evaluate_again();
            }
            Done::Trained(round, Err(error)) => {
                self.trouble(&error);
                self.input(Input::NotTrained { round }).await;
            }
        }
    }

    /// Notes a file that came for this round.
    fn note(&mut self, got: &Got) {
        if got.is_new {
            self.fetched.insert(got.name, self.machine.chain().round());
        }
    }

    /// Measures once more: a validator that gives no card holds up the round.
    fn evaluate_again(&mut self) {
        let before = self.asked.as_ref().and_then(|order| self.shelf.file(order.older()?));
        let errands = self.errands.clone();
        self.measure_after(async move {
            if let Some(before) = before {
                errands.forget_if_damaged(before.file).await;
            }
            tokio::time::sleep(ASK_AGAIN).await;
            Event::EvaluateAgain
        });
    }

    /// Says after a pause that parameters are not there; if they were to be in `file`, it is looked at first.
    pub(super) fn not_applied_after(&mut self, pause: Duration, file: Option<Hash>, why: &'static str) {
        let errands = self.errands.clone();
        self.under_way.spawn(async move {
            if let Some(file) = file {
                errands.forget_if_damaged(file).await;
            }
            tokio::time::sleep(pause).await;
            Event::NotApplied(why)
        });
    }

    pub(super) fn trouble(&mut self, error: &dyn std::fmt::Display) {
        warn!(run = %self.run, %error, "trouble in a training run");
        self.progress.trouble(error.to_string());
    }

    /// Makes something durable, however long the disk refuses; false if the node stops first.
    pub(super) async fn persist(&mut self, stored: Stored) -> bool {
        let stored = Arc::new(stored);
        loop {
            let (store, what) = (Arc::clone(&self.store), Arc::clone(&stored));
            let written = tokio::task::spawn_blocking(move || -> Result<(), StoreError> {
                store.lock().unwrap_or_else(PoisonError::into_inner).persist(&what)
            });
            match written.await {
                Ok(Ok(())) => {
                    if let Stored::Entries(entries) = &*stored {
                        for entry in entries {
                            self.entered(entry).await;
                        }
                    }
                    return true;
                }
                Ok(Err(error)) => self.trouble(&error),
                Err(_) => self.trouble(&"writing broke off"),
            }
            self.show();
            tokio::select! {
                () = self.stop.cancelled() => return false,
                () = tokio::time::sleep(super::work::AGAIN) => {}
            }
        }
    }

    /// Goes on from a certain entry, which is on the disk.
    async fn entered(&mut self, entry: &Entry) {
        let record = &entry.record;
        self.errands.roster.name(self.spec.payload(), record);
        self.progress.next_round();
        self.asked = None;
        if let Some(measuring) = self.measuring.take() {
            measuring.abort();
        }
        // Local steps of a round that is over are late.
        self.works.give_up_training_until(record.round);
        let mut of_no_use = Vec::new();
        self.fetched.retain(|update, round| {
            let is_later = *round > record.round;
            if !is_later {
                of_no_use.push(*update);
            }
            is_later
        });
        of_no_use.retain(|update| !entry.body.reveals.iter().any(|reveal| reveal.payload().update == *update));
        {
            let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
            history.add(entry);
            of_no_use.extend(history.forget_updates());
        }
        // A peer may reveal any name: that of a file that the run needs, too.
        let kept: Vec<StateFile> = self.shelf.kept().files().collect();
        let is_needed = |file: &Hash| {
            files::names(self.spec.payload()).any(|name| name == *file) || kept.iter().any(|kept| kept.file == *file)
        };
        for update in of_no_use.into_iter().filter(|file| !is_needed(file)) {
            let _stays_until_later = self.errands.blobs.remove(update).await;
        }
        info!(run = %self.run, round = record.round, accepted = record.accepted().count(), reverts = record.reverts, "a round is certain");
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Leave => self.leave().await,
            Command::Pledged(word) => self.input(Input::Pledged(word)).await,
        }
    }

    async fn leave(&mut self) {
        self.leaving = Some(self.machine.chain().last().round);
        self.input(Input::Leave).await;
        // The word is said with the next tick.
        self.input(Input::Tick).await;
    }

    /// Whether this node was told to leave.
    pub(super) fn leaves(&self) -> bool {
        self.leaving.is_some()
    }

    /// Whether this node has left: at the end of the round in which it said so, when others know.
    fn is_over(&mut self) -> bool {
        let Some(said_in) = self.leaving else { return false };
        let last = self.machine.chain().last();
        let active = last.member(self.me).is_some_and(|member| member.active);
        let trains = peers_of_round(self.spec.payload(), last).binary_search(&self.me).is_ok();
        let over = last.ended || self.wish == Wish::Watch || (last.round > said_in && !active && !trains);
        if over {
            self.forget();
        }
        over
    }

    /// Notes that this node has left.
    fn forget(&mut self) {
        let forgotten =
            Store::set_wish(&self.directory, None).and_then(|()| Store::set_standing(&self.directory, None));
        if let Err(error) = forgotten {
            self.trouble(&error);
        }
        self.show();
    }

    fn show(&mut self) {
        if let Some(complaint) = self.errands.complaint() {
            self.progress.trouble(complaint);
        }
        let (last, held) = (self.machine.chain().last(), self.machine.held());
        let member = last.member(self.me);
        let steps = self.steps.done.load(Ordering::Relaxed);
        let phase = self.progress.phase(last, held, self.now().0 < self.spec.payload().starts_at_ms);
        let (seconds_per_round, left) = {
            let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
            (history.seconds_per_round(), self.leaves())
        };
        self.status.send_modify(|status| {
            status.summary.round = last.round;
            status.summary.trained = last.trained;
            status.summary.peers = u32::try_from(last.peers().count()).unwrap_or(u32::MAX);
            status.summary.validators = u32::try_from(last.validators.len()).unwrap_or(u32::MAX);
            status.summary.wish = (!left).then_some(self.wish);
            status.phase = phase;
            status.held_round = held.map(|held| held.round);
            status.in_sync = held.is_some_and(|held| held.round == last.round);
            status.progress = (steps, u64::from(self.spec.payload().training.local_steps));
            status.tokens_per_second = self.progress.tokens_per_second();
            status.earned_msat = member.map_or(0, |m| m.earned.0);
            status.fees_msat = member.map_or(0, |m| m.fees.0);
            status.paid_msat = member.map_or(0, |m| m.paid.0);
            status.seconds_per_round = seconds_per_round;
            status.pause = self.standing;
            status.last_error = self.progress.last_trouble();
        });
    }
}

/// Who hears of what is too large for gossip: of a proposal or a new view the validators, of an entry everyone. What nobody
/// tells a node it asks for, so that each that is no validator hears of an entry from two of them alone.
pub(super) fn receivers<W>(driver: &Driver<W>, message: &TrainMessage) -> Vec<NodeId> {
    let last = driver.machine.chain().last();
    let validators: Vec<NodeId> = last.validators.iter().map(|validator| validator.id).collect();
    let place = validators.iter().position(|node| *node == driver.me);
    let tells = |node: &NodeId| {
        let Some(place) = place.filter(|_| !validators.contains(node)) else { return true };
        let count = validators.len();
        let dealt = (usize::from(node.as_bytes()[0]) + usize::try_from(last.round).unwrap_or(0)) % count;
        place == dealt || place == (dealt + 1) % count
    };
    let mut to = match message {
        TrainMessage::Entries(..) => driver.errands.roster.all().into_iter().filter(tells).collect(),
        _ => validators,
    };
    to.retain(|node| *node != driver.me);
    to
}
