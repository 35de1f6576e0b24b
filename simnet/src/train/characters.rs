//! What each kind of peer submits.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use consortium_node::training::collective::{LocalRecipe, Parameters, Peer, SyncProbe, Task};
use consortium_node::training::sparseloco::{Update, compress};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::cast::{Cast, Role};

/// Outer steps that a stale peer is behind.
const LAG: usize = 4;
/// How much larger than what it trained a poisoner's update is.
const POISON: f32 = 4.0;
/// Size of the noise in a disguised copy, as a part of what it copies.
const DISGUISE: f32 = 0.5;
/// Size of an update next to nothing, as a part of an honest one.
const WHISPER: f32 = 1e-3;

/// An update as everybody knows it once it was revealed.
#[derive(Clone, Debug)]
pub struct Revealed {
    /// Whose it is.
    pub peer: usize,
    /// The update.
    pub update: Update,
    /// Its score on held-out batches, if it had one.
    pub score: f64,
}

/// What a peer knows when it must commit.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The round.
    pub round: u64,
    /// Rounds of the run.
    pub rounds: u64,
    /// Its number.
    pub me: usize,
    /// The common parameters.
    pub common: &'a Parameters,
    /// Its rows.
    pub rows: &'a [u64],
    /// The updates of the round before.
    pub revealed: &'a [Revealed],
    /// Those of this round, for who has let the time to commit go by.
    pub present: &'a [Revealed],
    /// The numbers that tell whether it holds the common parameters.
    pub probe: &'a SyncProbe,
}

/// What a peer commits to.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The update's bytes.
    pub message: Vec<u8>,
    /// The peer's values of the probed elements.
    pub sample: Vec<f32>,
}

/// When in a round a peer makes its update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// As soon as it has trained.
    Early,
    /// Before the deadline, but after whoever it colludes with.
    Later,
    /// When the others' updates are known, which is after the deadline.
    TooLate,
}

/// A kind of peer.
pub trait Character: Send {
    /// When it makes its update.
    fn moment(&self) -> Moment {
        Moment::Early
    }

    /// What it submits.
    ///
    /// # Errors
    /// When training fails.
    fn submit(&mut self, known: &Known<'_>, rng: &mut ChaCha8Rng) -> Result<Submission>;
}

/// The characters of a cast, in its order.
///
/// # Errors
/// If a setting makes no sense.
pub fn characters(cast: &Cast, task: &Arc<Task>) -> Result<Vec<Box<dyn Character>>> {
    let mut accomplice: Option<Secret> = None;
    let mut all: Vec<Box<dyn Character>> = Vec::new();
    for role in cast.roles() {
        let peer = || Peer::join(Arc::clone(task));
        let copier = |source| Copier { task: Arc::clone(task), source };
        all.push(match role {
            Role::Honest => Box::new(Honest(peer())),
            Role::Mediocre => Box::new(mediocre(task)?),
            Role::FreeRider => Box::new(FreeRider { task: Arc::clone(task) }),
            Role::Plagiarist => Box::new(copier(Source::LastRound)),
            Role::LatePlagiarist => Box::new(copier(Source::ThisRound)),
            Role::Poisoner => Box::new(Poisoner { peer: peer(), task: Arc::clone(task), from: 0.0 }),
            Role::Sleeper => Box::new(Poisoner { peer: peer(), task: Arc::clone(task), from: 2.0 / 3.0 }),
            Role::Stale => {
                let other = Parameters::fresh(task, u64::MAX)?;
                Box::new(Stale { peer: peer(), past: VecDeque::from(vec![other; LAG]) })
            }
            Role::Colluder => match accomplice.take() {
                Some(secret) => Box::new(copier(Source::Accomplice(secret))),
                None => {
                    let secret = Secret::default();
                    accomplice = Some(secret.clone());
                    Box::new(Leader { peer: peer(), secret })
                }
            },
        });
    }
    Ok(all)
}

/// What one colluder tells the other.
type Secret = Arc<Mutex<Option<Vec<u8>>>>;

struct Honest(Peer);

impl Character for Honest {
    fn submit(&mut self, known: &Known<'_>, _: &mut ChaCha8Rng) -> Result<Submission> {
        honestly(&mut self.0, known)
    }
}

fn honestly(peer: &mut Peer, known: &Known<'_>) -> Result<Submission> {
    let message = peer.train(known.round, known.common, known.rows)?.0.to_vec();
    Ok(Submission { message, sample: known.probe.sample(known.common) })
}

/// Trains as many steps as others, on a quarter of the rows.
struct Mediocre {
    peer: Peer,
    rows: usize,
}

fn mediocre(task: &Task) -> Result<Mediocre> {
    let recipe = LocalRecipe { batch: (task.recipe().batch / 4).max(1), ..task.recipe().clone() };
    let rows = recipe.rows_each();
    Ok(Mediocre { peer: Peer::join(Arc::new(task.with_recipe(recipe)?)), rows })
}

impl Character for Mediocre {
    fn submit(&mut self, known: &Known<'_>, _: &mut ChaCha8Rng) -> Result<Submission> {
        honestly(&mut self.peer, &Known { rows: &known.rows[..self.rows], ..*known })
    }
}

struct FreeRider {
    task: Arc<Task>,
}

impl Character for FreeRider {
    fn submit(&mut self, known: &Known<'_>, rng: &mut ChaCha8Rng) -> Result<Submission> {
        let mut delta = self.task.layout().zeros();
        match (known.round % 3, best(known.revealed, known.me)) {
            (1, Some(best)) => make_noise(&mut delta, &best.update, 1.0, rng),
            (2, Some(best)) => copy_into(&mut delta, &best.update, WHISPER),
            _ => {}
        }
        submission(&self.task, &delta, known)
    }
}

enum Source {
    LastRound,
    ThisRound,
    Accomplice(Secret),
}

/// Sends what others made.
struct Copier {
    task: Arc<Task>,
    source: Source,
}

impl Character for Copier {
    fn moment(&self) -> Moment {
        match self.source {
            Source::LastRound => Moment::Early,
            Source::Accomplice(_) => Moment::Later,
            Source::ThisRound => Moment::TooLate,
        }
    }

    fn submit(&mut self, known: &Known<'_>, rng: &mut ChaCha8Rng) -> Result<Submission> {
        let told;
        let copied = match &self.source {
            Source::LastRound => best(known.revealed, known.me).map(|r| &r.update),
            Source::ThisRound => best(known.present, known.me).map(|r| &r.update),
            Source::Accomplice(secret) => {
                let message = secret.lock().unwrap_or_else(PoisonError::into_inner).take();
                let message = message.context("the accomplice said nothing")?;
                told = Update::read(self.task.layout(), message)?;
                Some(&told)
            }
        };
        let mut delta = self.task.layout().zeros();
        if let Some(update) = copied {
            make_noise(&mut delta, update, DISGUISE, rng);
            copy_into(&mut delta, update, 1.0);
        }
        submission(&self.task, &delta, known)
    }
}

/// Trains honestly from parameters, and tells an accomplice.
struct Leader {
    peer: Peer,
    secret: Secret,
}

impl Character for Leader {
    fn submit(&mut self, known: &Known<'_>, _: &mut ChaCha8Rng) -> Result<Submission> {
        let submission = honestly(&mut self.peer, known)?;
        *self.secret.lock().unwrap_or_else(PoisonError::into_inner) = Some(submission.message.clone());
        Ok(submission)
    }
}

/// Sends the opposite of what it trained, from a part of the run on.
struct Poisoner {
    peer: Peer,
    task: Arc<Task>,
    from: f64,
}

impl Character for Poisoner {
    fn submit(&mut self, known: &Known<'_>, _: &mut ChaCha8Rng) -> Result<Submission> {
        let honest = honestly(&mut self.peer, known)?;
        if (known.round as f64) < self.from * known.rounds as f64 {
            return Ok(honest);
        }
        let mut delta = self.task.layout().zeros();
        copy_into(&mut delta, &Update::read(self.task.layout(), honest.message)?, -POISON);
        submission(&self.task, &delta, known)
    }
}

/// Trains on old parameters, without knowing it; while there are none so old, on first ones that nobody else has. (If it began
/// from the common ones it would do honest work in the first round, and the run be another from there on.)
struct Stale {
    peer: Peer,
    past: VecDeque<Parameters>,
}

impl Character for Stale {
    fn submit(&mut self, known: &Known<'_>, _: &mut ChaCha8Rng) -> Result<Submission> {
        self.past.push_back(known.common.clone());
        if self.past.len() > LAG + 1 {
            self.past.pop_front();
        }
        let old = self.past.front().context("the present is in it")?;
        honestly(&mut self.peer, &Known { common: old, ..*known })
    }
}

fn submission(task: &Task, delta: &[Vec<f32>], known: &Known<'_>) -> Result<Submission> {
    let message = compress(task.layout(), &mut task.layout().zeros(), delta)?;
    Ok(Submission { message, sample: known.probe.sample(known.common) })
}

/// The best of others' updates.
fn best(revealed: &[Revealed], me: usize) -> Option<&Revealed> {
    revealed.iter().filter(|r| r.peer != me && r.score.is_finite()).max_by(|a, b| a.score.total_cmp(&b.score))
}

fn copy_into(delta: &mut [Vec<f32>], update: &Update, scale: f32) {
    update.for_each(|tensor, element, value| delta[tensor][element] += scale * value);
}

/// Adds noise everywhere, of which as much is kept as the update has, and as large as its values times `scale` at most.
fn make_noise(delta: &mut [Vec<f32>], update: &Update, scale: f32, rng: &mut ChaCha8Rng) {
    let mut largest = vec![0f32; delta.len()];
    update.for_each(|tensor, _, value| largest[tensor] = largest[tensor].max(value.abs()));
    for (values, size) in delta.iter_mut().zip(largest) {
        values.iter_mut().for_each(|v| *v += scale * size * rng.random_range(-1.0..=1.0f32));
    }
}
