//! All runs of a node: announced, joined, heard of.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use consortium_protocol::wire::fact::Fact;
use consortium_protocol::wire::train::{
    PayWay, RunId, RunSpec, StateFile, TrainAnswer, TrainMessage, TrainRequest, run_key,
};
use consortium_protocol::{Hash, NodeId, RootKey, Signed};
use consortium_training::TrainError;
use consortium_training::collective::{Parameters, Task};
use consortium_training::dataset::Location;
use consortium_training::rounds::Wish;
use consortium_training::run::{examination_of, state_of, task_of};
use futures::future;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::announcements::Announcements;
use super::bonds::Bonds;
use super::driver::{Parts, RunHandle, spawn};
use super::errands::Errands;
use super::finding::{OnTheWay, find_files, find_spec};
use super::gate::Gate;
use super::net::{self, SwarmWire};
use super::pause::{Standing, Terms};
use super::roster::Roster;
use super::shelf::Shelf;
use super::store::{Kept, Store};
use super::view::{Exported, Phase, RunStatus, RunSummary};
use super::{Owed, Payouts, RunError, export, files};
use crate::blobs::Blobs;
use crate::buckets::{Buckets, Pace};
use crate::clock::wall_ms;
use crate::swarm::SwarmHandle;

/// Where runs are, within the data directory.
pub const DIRECTORY: &str = "runs";
/// Runs are announced again after this time: gossip passes on nothing twice within two minutes.
const ANNOUNCE: Duration = Duration::from_secs(125);
/// Runs taken part in at a time.
const MOST_JOINED: usize = 32;
/// What one node may ask or say about runs on streams.
const ASKING: Pace = Pace { burst: 1024, per_second: 256.0 };
/// Askers whose pace is remembered.
const ASKERS: usize = 512;

/// What runs need of a node.
pub struct TrainingParts {
    /// Its key.
    pub key: Arc<RootKey>,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Its files.
    pub blobs: Blobs,
    /// The swarm.
    pub swarm: SwarmHandle,
    /// On how many threads it trains.
    pub threads: usize,
    /// Books and makes what runs pay.
    pub pay: Payouts,
    /// Ends all.
    pub stop: CancellationToken,
}

/// Handle to the runs of a node. A clone is the same.
#[derive(Clone)]
pub struct Trainings {
    inner: Arc<Inner>,
}

struct Inner {
    parts: TrainingParts,
    directory: PathBuf,
    heard: Mutex<Announcements>,
    on_the_way: OnTheWay,
    /// Runs that have a directory here.
    known: Mutex<BTreeMap<RunId, Known>>,
    /// Held while a run is joined, or taken up.
    joining: tokio::sync::Mutex<()>,
    bonds: Bonds,
    askers: Buckets<NodeId>,
}

struct Known {
    spec: Signed<RunSpec>,
    shelf: Shelf,
    joined: Option<Joined>,
}

struct Joined {
    wish: Wish,
    terms: Option<Terms>,
    handle: RunHandle,
    gate: Arc<Gate>,
    errands: Errands<SwarmWire>,
    /// Ends its way to the others.
    stop: CancellationToken,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is changed in one step: a panic leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(feature = "lightning")]
fn bonds_of(parts: &TrainingParts) -> Bonds {
    Bonds::new(parts.pay.escrows(), Arc::clone(&parts.key), parts.swarm.clone(), parts.stop.clone())
}

#[cfg(not(feature = "lightning"))]
fn bonds_of(_: &TrainingParts) -> Bonds {
    Bonds
}

/// Does what waits for the disk, or computes, on a thread made for that.
pub(super) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RunError> + Send + 'static,
) -> Result<T, RunError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RunError::Stopped)?
}

impl Trainings {
    /// Finds the runs in the data directory. [`Self::resume`] takes them up.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub fn open(parts: TrainingParts) -> Result<Self, RunError> {
        let directory = parts.data_dir.join(DIRECTORY);
        crate::data_dir::create(&directory).map_err(|error| RunError::Directory(error.to_string()))?;
        let mut known = BTreeMap::new();
        let entries = std::fs::read_dir(&directory).map_err(super::store::at(&directory))?;
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()) {
            match Store::spec(&path).and_then(|spec| Ok((spec, Store::kept(&path)?))) {
                Ok((spec, kept)) => {
                    let run = RunId::of(&spec);
                    known.insert(run, Known { spec, shelf: Shelf::new(kept), joined: None });
                }
                Err(error) => warn!(%error, "a run cannot be read, and is left alone"),
            }
        }
        let (heard, known, askers) = (Mutex::default(), Mutex::new(known), Buckets::of_at_most(ASKERS));
        let (bonds, joining) = (bonds_of(&parts), tokio::sync::Mutex::default());
        let on_the_way = OnTheWay::default();
        let inner = Inner { parts, directory, heard, on_the_way, known, joining, bonds, askers };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Removes files that no run needs: what came for a round that an earlier life of this node did not see the end of.
    async fn sweep(&self) {
        let _nobody_begins_to_need_one = self.inner.joining.lock().await;
        let (directory, blobs) = (self.inner.directory.clone(), self.inner.parts.blobs.clone());
        let swept = aside(move || -> Result<usize, RunError> {
            let mut needed = BTreeSet::new();
            for entry in std::fs::read_dir(&directory).map_err(super::store::at(&directory))? {
                let path = entry.map_err(super::store::at(&directory))?.path();
                if std::fs::metadata(&path).map_err(super::store::at(&path))?.is_dir() {
                    needed.extend(Store::files(&path)?);
                }
            }
            Ok(blobs.forget_old(|file| needed.contains(file))?)
        });
        match swept.await {
            Ok(0) => {}
            Ok(count) => info!(count, "files that no run needs were removed"),
            // Where a run cannot be read, nobody knows what it needs.
            Err(error) => warn!(%error, "files that no run needs are not looked for"),
        }
    }

    /// Takes up the runs that this node had joined, and announces them again and again; until the node stops.
    pub async fn resume(self) {
        self.sweep().await;
        let runs: Vec<RunId> = lock(&self.inner.known).keys().copied().collect();
        // One that waits for its files holds up no other.
        let taken_up = future::join_all(runs.into_iter().map(|run| self.take_up(run)));
        let announced = async {
            loop {
                tokio::select! {
                    () = self.inner.parts.stop.cancelled() => return,
                    () = tokio::time::sleep(ANNOUNCE) => self.announce_again(None).await,
                }
            }
        };
        future::join(taken_up, announced).await;
    }

    /// Takes up a run, and announces it if it goes on.
    async fn take_up(&self, run: RunId) {
        let path = self.path(run);
        let part = Store::wish(&path).and_then(|wish| Ok((wish, Store::standing(&path)?)));
        match part {
            Ok((Some(wish), standing)) => match self.join(run, wish, standing.map(|standing| standing.terms)).await {
                Ok(()) => self.announce_again(Some(run)).await,
                Err(error) => {
                    warn!(%run, %error, "a training run is not taken up");
                    self.pay_what_is_left(run);
                }
            },
            Ok((None, _)) => self.pay_what_is_left(run),
            Err(error) => warn!(%run, %error, "a training run is not taken up"),
        }
    }

    /// Books and makes what a run pays by its log, in which this node takes no part any more.
    fn pay_what_is_left(&self, run: RunId) {
        let spec = lock(&self.inner.known).get(&run).map(|known| known.spec.clone());
        if let Some(spec) = spec {
            self.inner.bonds.follow(spec.clone(), &self.path(run), None);
            self.inner.parts.pay.follow(spec, &self.path(run), None);
        }
    }

    /// Announces a run that it takes part in, or all of them, as long as they go on: their author may have left.
    async fn announce_again(&self, one: Option<RunId>) {
        let specs: Vec<Signed<RunSpec>> = {
            let known = lock(&self.inner.known);
            let goes_on = |known: &&Known| {
                known.joined.as_ref().is_some_and(|joined| joined.handle.watch().borrow().phase != Phase::Ended)
            };
            let wanted = known.iter().filter(|(run, _)| one.is_none_or(|one| one == **run)).map(|(_, known)| known);
            wanted.filter(goes_on).map(|known| known.spec.clone()).collect()
        };
        for spec in specs {
            self.tell(spec).await;
        }
    }

    /// Tells the swarm of a run, and that it can be had here.
    async fn tell(&self, spec: Signed<RunSpec>) {
        let key = run_key(RunId::of(&spec));
        let swarm = &self.inner.parts.swarm;
        if swarm.publish(Fact::Run(spec)).await.is_ok() {
            let _ended = swarm.provide(key, true).await;
        }
    }

    fn me(&self) -> NodeId {
        self.inner.parts.swarm.me()
    }

    fn path(&self, run: RunId) -> PathBuf {
        self.inner.directory.join(run.to_string())
    }

    /// Whether a run does what its specification says, as far as that can be told before it is announced.
    ///
    /// # Errors
    /// [`RunError::NoJudge`].
    pub fn may_announce(spec: &Signed<RunSpec>) -> Result<(), RunError> {
        let (said, author) = (spec.payload(), spec.signer());
        match said.pay.way == PayWay::Escrow && said.validators.iter().all(|validator| *validator == author) {
            true => Err(RunError::NoJudge),
            false => Ok(()),
        }
    }

    /// Publishes a run signed by this node, from its tokenizer, initial parameters and data, if these are a file: keeps them,
    /// tells the swarm, provides its id in Kademlia; and takes part in it, as one of its validators or by watching.
    ///
    /// # Errors
    /// When the files are not those that the specification names, or the disk refuses.
    pub async fn announce(
        &self,
        spec: Signed<RunSpec>,
        tokenizer: Vec<u8>,
        initial: Vec<u8>,
        data: Option<Arc<[u8]>>,
    ) -> Result<RunId, RunError> {
        if spec.signer() != self.me() {
            return Err(RunError::Author);
        }
        Self::may_announce(&spec)?;
        self.inner.parts.pay.check(&spec, Wish::Watch)?;
        let (run, said) = (RunId::of(&spec), spec.clone());
        // What is kept and given to others is what was checked.
        let (tokenizer, initial, data, state) = aside(move || {
            let task = task_of(said.payload(), &tokenizer, data.clone().map(Location::Memory), 1)?;
            let parameters = Parameters::from_bytes(&task, &initial)?;
            let state = state_of(&parameters);
            if state != said.payload().model.initial {
                let reason = "are others than the specification names".to_owned();
                return Err(TrainError::Run { what: "initial parameters", reason }.into());
            }
            Ok((tokenizer, parameters.to_bytes()?, data, state))
        })
        .await?;
        let blobs = &self.inner.parts.blobs;
        let nothing_is_swept = self.inner.joining.lock().await;
        blobs.put(tokenizer).await?;
        if let Some(data) = data {
            blobs.put(data.to_vec()).await?;
        }
        let bytes = initial.len() as u64;
        let file = StateFile { state, file: blobs.put(initial).await?, bytes };
        let (directory, stored) = (self.path(run), spec.clone());
        let kept = aside(move || {
            Store::create(&directory, &stored)?;
            let mut kept = Store::kept(&directory)?;
            kept.initial = Some(file);
            kept.newest = kept.newest.or(Some((0, file)));
            Store::keep(&directory, &kept)?;
            Ok(kept)
        })
        .await?;
        self.know(&spec, kept);
        drop(nothing_is_swept);
        let judges = spec.payload().validators.contains(&self.me());
        self.tell(spec).await;
        info!(%run, "a training run is announced");
        self.join(run, if judges { Wish::Validate } else { Wish::Watch }, None).await?;
        Ok(run)
    }

    /// Notes that a run has a directory here.
    fn know(&self, spec: &Signed<RunSpec>, kept: Kept) -> Shelf {
        let mut known = lock(&self.inner.known);
        let entry = known.entry(RunId::of(spec)).or_insert_with(|| Known {
            spec: spec.clone(),
            shelf: Shelf::new(kept),
            joined: None,
        });
        entry.shelf.clone()
    }

    /// Takes part in a run: finds its specification and files in the swarm if need be. It is taken up again by itself when the
    /// node starts again. A part that this node has already is changed. With `terms` it trains only while that pays for its power.
    ///
    /// # Errors
    /// When the run, or a file of it, cannot be found, it is none that this node can take part in, or the disk refuses.
    pub async fn join(&self, run: RunId, wish: Wish, terms: Option<Terms>) -> Result<(), RunError> {
        let spec = self.find_spec(run).await?;
        self.inner.parts.pay.check(&spec, wish)?;
        // Files may be long on their way, and others join meanwhile.
        let parts = &self.inner.parts;
        let is_new = find_files(&parts.swarm, &parts.blobs, &spec, &self.inner.on_the_way).await?;
        let _one_at_a_time = self.inner.joining.lock().await;
        let joined = lock(&self.inner.known)
            .get(&run)
            .and_then(|known| known.joined.as_ref().map(|j| ((j.wish, j.terms), j.handle.clone())));
        match joined {
            // A part that reads files which came anew just now begins anew.
            Some((as_before, _)) if as_before == (wish, terms) && !is_new => return Ok(()),
            Some((_, handle)) => {
                handle.stop().await;
                self.forget(run);
            }
            None => {
                let count = lock(&self.inner.known).values().filter(|known| known.joined.is_some()).count();
                if count >= MOST_JOINED {
                    return Err(RunError::TooMany(MOST_JOINED));
                }
            }
        }
        let (directory, stored, blobs) = (self.path(run), spec.clone(), self.inner.parts.blobs.clone());
        let threads = self.inner.parts.threads;
        let (task, kept) = aside(move || {
            let task = Arc::new(files::task(stored.payload(), &blobs, threads)?);
            Store::create(&directory, &stored)?;
            let before = Store::standing(&directory)?.filter(|before| Some(before.terms) == terms);
            Store::set_standing(&directory, before.or(terms.map(Standing::new)).as_ref())?;
            Store::set_wish(&directory, Some(wish))?;
            Ok((task, Store::kept(&directory)?))
        })
        .await?;
        let shelf = self.know(&spec, kept);
        self.start(spec, task, shelf, (wish, terms)).await
    }

    async fn start(
        &self,
        spec: Signed<RunSpec>,
        task: Arc<Task>,
        shelf: Shelf,
        (wish, terms): (Wish, Option<Terms>),
    ) -> Result<(), RunError> {
        let (run, parts, said) = (RunId::of(&spec), &self.inner.parts, spec.clone());
        let (stop, roster) = (parts.stop.child_token(), Roster::default());
        let entered = net::enter(&parts.swarm, run, parts.blobs.clone(), roster.clone(), &stop).await;
        let (wire, gate, heard) = entered.map_err(|_| RunError::Stopped)?;
        let errands = Errands::new(wire.clone(), parts.blobs.clone(), Arc::clone(&task), roster.clone());
        let driven = Parts {
            key: Arc::clone(&parts.key),
            wish,
            examination: examination_of(spec.payload()),
            spec,
            task,
            directory: self.path(run),
            blobs: parts.blobs.clone(),
            shelf,
            roster,
            wire,
            inbox: heard,
            now_ms: wall_ms(),
            stop: stop.child_token(),
        };
        // The log is read and checked, which may take a while.
        let started = aside(move || spawn(driven)).await;
        let handle = match started {
            Ok(handle) => handle,
            Err(error) => {
                stop.cancel();
                return Err(error);
            }
        };
        self.inner.bonds.follow(said.clone(), &self.path(run), Some(handle.clone()));
        parts.pay.follow(said, &self.path(run), Some(handle.watch()));
        tokio::spawn(self.clone().see_out(run, handle.clone(), stop.clone()));
        if let Some(known) = lock(&self.inner.known).get_mut(&run) {
            known.joined = Some(Joined { wish, terms, handle, gate, errands, stop });
        }
        Ok(())
    }

    /// Waits until this node's part in a run is over.
    async fn see_out(self, run: RunId, handle: RunHandle, stop: CancellationToken) {
        let mut watch = handle.watch();
        while watch.changed().await.is_ok() {}
        let _none_joins_meanwhile = self.inner.joining.lock().await;
        stop.cancel();
        let left = {
            let mut known = lock(&self.inner.known);
            // It may have been joined anew.
            known.get_mut(&run).and_then(|known| known.joined.take_if(|joined| joined.stop.is_cancelled()))
        };
        if left.is_some() {
            net::leave(&self.inner.parts.swarm, run).await;
        }
    }

    fn forget(&self, run: RunId) {
        if let Some(joined) = lock(&self.inner.known).get_mut(&run).and_then(|known| known.joined.take()) {
            joined.stop.cancel();
        }
    }

    async fn find_spec(&self, run: RunId) -> Result<Signed<RunSpec>, RunError> {
        let here = lock(&self.inner.known).get(&run).map(|known| known.spec.clone());
        if let Some(spec) = here.or_else(|| lock(&self.inner.heard).spec(&run)) {
            return Ok(spec);
        }
        let spec = find_spec(&self.inner.parts.swarm, run).await?;
        lock(&self.inner.heard).hear(spec.clone(), Instant::now());
        Ok(spec)
    }

    /// Leaves a run at the end of the round.
    ///
    /// # Errors
    /// [`RunError::NotJoined`] if this node takes no part in it.
    pub async fn leave(&self, run: RunId) -> Result<(), RunError> {
        let handle = self.handle(&run).ok_or(RunError::NotJoined(run))?;
        handle.leave().await;
        Ok(())
    }

    fn handle(&self, run: &RunId) -> Option<RunHandle> {
        lock(&self.inner.known).get(run)?.joined.as_ref().map(|joined| joined.handle.clone())
    }

    /// Runs heard of, and those taken part in.
    #[must_use]
    pub fn list(&self) -> Vec<RunSummary> {
        let mut all: BTreeMap<RunId, RunSummary> =
            lock(&self.inner.heard).all().map(|spec| (RunId::of(spec), RunSummary::of(spec))).collect();
        for (run, known) in &*lock(&self.inner.known) {
            let summary = match &known.joined {
                Some(joined) => joined.handle.watch().borrow().summary.clone(),
                None => RunSummary {
                    round: known.shelf.kept().newest.map_or(0, |(round, _)| round),
                    ..RunSummary::of(&known.spec)
                },
            };
            all.insert(*run, summary);
        }
        for (run, summary) in &mut all {
            summary.coming = self.inner.on_the_way.get(run);
        }
        all.into_values().collect()
    }

    /// Where a run stands that this node takes part in.
    #[must_use]
    pub fn status(&self, run: &RunId) -> Option<RunStatus> {
        let status = self.handle(run)?.status();
        Some(RunStatus { bond: self.inner.bonds.view(*run), ..status })
    }

    /// Writes all that a replay of a run needs into a directory: see [`consortium_training::run::archive`]. In a run that
    /// this node takes part in, it first gets from the others what it does not have, as far as that comes within
    /// [`export::GATHER`].
    ///
    /// # Errors
    /// When this node has nothing of the run, another run is in the directory, or the disk refuses.
    pub async fn export(&self, run: RunId, directory: PathBuf) -> Result<Exported, RunError> {
        let found = lock(&self.inner.known).get(&run).map(|known| {
            let errands = known.joined.as_ref().map(|joined| joined.errands.clone());
            (known.spec.clone(), known.shelf.clone(), errands)
        });
        let (spec, shelf, errands) = found.ok_or(RunError::NotJoined(run))?;
        let (source, blobs) = (self.path(run), self.inner.parts.blobs.clone());
        let kept = shelf.kept();
        let gathered = match &errands {
            Some(errands) => {
                let looked = source.clone();
                let needed = aside(move || Ok(export::needed(&looked)?)).await?;
                let initial = kept.initial.is_none().then_some(spec.payload().model.initial);
                export::gather(errands, needed, initial).await
            }
            None => export::Gathered::default(),
        };
        let initial = gathered.initial.as_ref().map(|got| got.path.clone());
        let exported = aside(move || export::write(&spec, &source, kept, initial, &blobs, &directory)).await;
        if let Some(errands) = errands {
            gathered.drop_new(&errands).await;
        }
        exported
    }

    /// All that a run pays out by its log as it is here; what was paid of it, whoever pays knows.
    ///
    /// # Errors
    /// When this node has nothing of the run, or its log cannot be read.
    pub async fn payouts(&self, run: RunId) -> Result<Vec<Owed>, RunError> {
        let found = lock(&self.inner.known).get(&run).map(|known| known.spec.clone());
        let (spec, path) = (found.ok_or(RunError::NotJoined(run))?, self.path(run));
        aside(move || {
            let mut all = Vec::new();
            Store::look(&path, |entry| all.extend(Owed::by(&spec, entry)))?;
            Ok(all)
        })
        .await
    }

    /// A run is announced.
    pub fn heard(&self, spec: Signed<RunSpec>) {
        lock(&self.inner.heard).hear(spec, Instant::now());
    }

    /// Whether a node may ask once more; to be found out before its question is read.
    pub(super) fn may_ask(&self, from: NodeId) -> bool {
        self.inner.askers.take(from, 1, ASKING, Instant::now()).is_ok()
    }

    /// The answer to what a node asks on a stream.
    pub(super) fn answer(&self, from: NodeId, request: TrainRequest) -> TrainAnswer {
        match request {
            TrainRequest::Say(message) => self.take(from, *message),
            TrainRequest::Run(run) => {
                let here = lock(&self.inner.known).get(&run).map(|known| known.spec.clone());
                let spec = here.or_else(|| lock(&self.inner.heard).spec(&run));
                spec.map_or(TrainAnswer::No, |spec| TrainAnswer::Run(Box::new(spec)))
            }
            TrainRequest::Pledge(run) => self.inner.bonds.asked(run, from),
            TrainRequest::State { run, state } => self.file(&run, state).map_or(TrainAnswer::No, TrainAnswer::File),
        }
    }

    fn take(&self, from: NodeId, message: TrainMessage) -> TrainAnswer {
        let gate = {
            let known = lock(&self.inner.known);
            let joined = known.get(&message.run()).and_then(|known| known.joined.as_ref());
            joined.map(|joined| Arc::clone(&joined.gate))
        };
        match gate {
            Some(gate) if gate.take(from, message, Instant::now()) => TrainAnswer::Taken,
            _ => TrainAnswer::No,
        }
    }

    fn file(&self, run: &RunId, state: Hash) -> Option<StateFile> {
        lock(&self.inner.known).get(run)?.shelf.file(state)
    }

    /// Ends this node's part in all runs, to be taken up again, and waits for that.
    pub async fn stop(&self) {
        let handles: Vec<RunHandle> = {
            let known = lock(&self.inner.known);
            known.values().filter_map(|known| Some(known.joined.as_ref()?.handle.clone())).collect()
        };
        for handle in handles {
            handle.stop().await;
        }
    }

    /// The files of this node.
    #[must_use]
    pub fn blobs(&self) -> &Blobs {
        &self.inner.parts.blobs
    }

    /// The directory of a run.
    #[must_use]
    pub fn directory(&self, run: RunId) -> Option<PathBuf> {
        let path = self.path(run);
        Path::is_dir(&path).then_some(path)
    }
}
