//! Local steps, and beside them one thing at a time of all the rest; what waits is replaced by a later order of its kind.

use std::sync::atomic::Ordering;
use std::time::Duration;

use consortium_training::TrainError;
use consortium_training::rounds::Held;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::bench::{Apply, Bench, BenchParts, Evaluate, Found, Made, Train, WorkError};

/// Pause before the disk is tried again.
pub(super) const AGAIN: Duration = Duration::from_secs(5);

/// What is to be computed.
#[derive(Clone, Debug)]
pub(super) enum Order {
    Apply(Apply),
    Evaluate(Evaluate),
    Train(Train),
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Done {
    Applied(Result<Held, WorkError>),
    Evaluated(Result<Found, WorkError>),
    /// With its round.
    Trained(u64, Result<Made, WorkError>),
}

/// What a disk refused, and is tried again.
#[derive(Debug)]
pub(super) struct Refused(pub(super) WorkError);

/// A bench, and what is computed on it.
struct Lane {
    bench: Option<Bench>,
    running: Option<(Order, JoinHandle<(Bench, Done)>)>,
}

impl Lane {
    fn begin(&mut self, order: Order, parts: &BenchParts) {
        // A bench that was lost has nothing that is not on the disk.
        let mut bench = self.bench.take().unwrap_or_else(|| Bench::new(parts.clone()));
        let doing = order.clone();
        let work = tokio::task::spawn_blocking(move || {
            let done = match &doing {
                Order::Apply(order) => Done::Applied(bench.apply(order)),
                Order::Evaluate(order) => Done::Evaluated(bench.evaluate(order)),
                Order::Train(order) => Done::Trained(order.round, bench.train(order)),
            };
            (bench, done)
        });
        self.running = Some((order, work));
    }

    /// Waits for what runs; for ever, if nothing does.
    async fn done(&mut self) -> (Order, Done) {
        let Some((_, running)) = &mut self.running else { return std::future::pending().await };
        let joined = running.await;
        let Some((order, _)) = self.running.take() else { return std::future::pending().await };
        let done = match joined {
            Ok((bench, done)) => {
                self.bench = Some(bench);
                done
            }
            Err(_) => broken(&order),
        };
        (order, done)
    }
}

/// What a node computes: local steps, and beside them the rest, one thing at a time.
pub(super) struct Works {
    parts: BenchParts,
    /// Whether peers train for the next round while one goes on.
    overlap: bool,
    training: Lane,
    rest: Lane,
    apply: Option<Apply>,
    evaluate: Option<Evaluate>,
    train: Option<Train>,
    not_before: Option<Instant>,
}

impl Works {
    pub(super) fn new(parts: BenchParts, overlap: bool) -> Self {
        let lane = || Lane { bench: None, running: None };
        Self {
            parts,
            overlap,
            training: lane(),
            rest: lane(),
            apply: None,
            evaluate: None,
            train: None,
            not_before: None,
        }
    }

    /// Takes an order.
    pub(super) fn order(&mut self, order: Order) {
        let in_vain = match &order {
            Order::Apply(Apply::Aggregate { .. } | Apply::Revert { .. }) => false,
            // Who has other parameters than the others trains from those in vain, but for who trains ahead.
            Order::Apply(Apply::Load { .. }) => !self.overlap,
            // Who judges does not train any more, and who is to train for another round is late with what it does.
            Order::Evaluate(_) | Order::Train(_) => true,
        };
        if in_vain {
            self.give_up_training();
        }
        match order {
            Order::Apply(apply) => self.apply = Some(apply),
            Order::Evaluate(evaluate) => self.evaluate = Some(evaluate),
            Order::Train(train) => self.train = Some(train),
        }
        self.begin();
    }

    /// Whether local steps are being taken.
    pub(super) fn trains(&self) -> bool {
        self.training.running.is_some()
    }

    /// Has local steps that are being taken end.
    pub(super) fn give_up_training(&mut self) {
        self.train = None;
        self.parts.steps.stop.store(true, Ordering::Relaxed);
    }

    /// Has local steps for this round, or an earlier one, end: they are late. Those for a later round go on.
    pub(super) fn give_up_training_until(&mut self, round: u64) {
        self.train = self.train.take().filter(|train| train.round > round);
        if matches!(&self.training.running, Some((Order::Train(train), _)) if train.round <= round) {
            self.parts.steps.stop.store(true, Ordering::Relaxed);
        }
    }

    /// Takes no more orders, and waits until nothing is computed: nobody else may use the directory before.
    pub(super) async fn finish(&mut self) {
        self.give_up_training();
        for lane in [&mut self.training, &mut self.rest] {
            if let Some((_, running)) = lane.running.take() {
                let _done_or_broken_off = running.await;
            }
        }
    }

    fn begin(&mut self) {
        if self.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        if self.rest.running.is_none() {
            let apply = self.apply.take().map(Order::Apply);
            if let Some(order) = apply.or_else(|| self.evaluate.take().map(Order::Evaluate)) {
                self.rest.begin(order, &self.parts);
            }
        }
        if self.training.running.is_none()
            && let Some(train) = self.train.take()
        {
            self.parts.steps.stop.store(false, Ordering::Relaxed);
            self.parts.steps.done.store(0, Ordering::Relaxed);
            self.training.begin(Order::Train(train), &self.parts);
        }
    }

    /// Waits for the next thing that is done. What the disk refuses is tried again after a while, unless something newer is
    /// wanted by then.
    pub(super) async fn done(&mut self) -> Result<Done, Refused> {
        loop {
            let again_at = self.not_before;
            let (order, done) = tokio::select! {
                done = self.rest.done() => done,
                done = self.training.done() => done,
                () = tokio::time::sleep_until(again_at.unwrap_or_else(Instant::now)), if again_at.is_some() => {
                    self.not_before = None;
                    self.begin();
                    continue;
                }
            };
            let refused = match done {
                Done::Applied(Err(error)) if error.passes() => error,
                Done::Evaluated(Err(error)) if error.passes() => error,
                Done::Trained(_, Err(error)) if error.passes() => error,
                done => {
                    self.begin();
                    return Ok(done);
                }
            };
            self.again(order);
            return Err(Refused(refused));
        }
    }

    fn again(&mut self, order: Order) {
        match order {
            Order::Apply(order) => _ = self.apply.get_or_insert(order),
            Order::Evaluate(order) => _ = self.evaluate.get_or_insert(order),
            Order::Train(order) => _ = self.train.get_or_insert(order),
        }
        self.not_before = Some(Instant::now() + AGAIN);
    }
}

/// What is said of work that broke off.
fn broken(order: &Order) -> Done {
    let error = || {
        let reason = "the computation broke off; the log says more".to_owned();
        WorkError::Train(TrainError::Setting { name: "bench", reason })
    };
    match order {
        Order::Apply(_) => Done::Applied(Err(error())),
        Order::Evaluate(_) => Done::Evaluated(Err(error())),
        Order::Train(order) => Done::Trained(order.round, Err(error())),
    }
}
