//! Pay for training: what certain records pay out is booked, and paid.
//!
//! A record says what the run's author pays to whom; author and peer both have it, and each acts on it by itself. A payout
//! is named by a digest of run, round and peer. Here the log of each run is read from its beginning whenever it is taken up
//! ([`Payouts::follow`]), and on as it grows, apart from the rounds, which never wait for money: what a crash left out, or
//! what this node learns late, is found in it like everything else. Nothing is booked twice, for the ledger knows the name.
//! Fees of refused updates are taken off before: a record pays out what is left of earnings after fees.
//!
//! # Accounts
//! As a rule ([`PayWay::Accounts`]) the author books a debt and the peer what it is owed ([`consortium_ledger::payouts`]). It
//! stands on the tab between the two, next to what they compute for each other, and where both have wallets the tab is
//! settled over Lightning. A node that is neither author nor peer books nothing. What a peer risks is that the author does
//! not settle; that is on `consortium-node tab list`, and counts against what the author may owe for inference.
//!
//! # Escrow
//! With [`PayWay::Escrow`] a validator offers an escrow for each payout, to which author and peer agree beforehand, and which
//! is judged by the record (`escrow`).
//!
//! # Who must stay
//! An author that leaves its own run hears no more of what it owes, until it joins again; so does a peer of what it is
//! owed. Runs that are not taken part in any more are read once at the start, for payouts that are not made yet.
//!
//! [`PayWay::Accounts`]: consortium_protocol::wire::train::PayWay::Accounts
//! [`PayWay::Escrow`]: consortium_protocol::wire::train::PayWay::Escrow

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use consortium_ledger::ledger::{Ledger, LedgerError};
use consortium_ledger::payments::Direction;
use consortium_ledger::payouts::Payout;
use consortium_protocol::wire::train::{PayWay, RunId, RunSpec};
use consortium_protocol::{Msat, Signed};
use consortium_training::rounds::Wish;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
#[cfg(feature = "lightning")]
use tracing::debug;
use tracing::{error, warn};

use super::RunError;
use super::log::Tail;
use super::store::StoreError;
use super::view::RunStatus;
use crate::clock::wall_ms;
#[cfg(feature = "lightning")]
use crate::escrow::EscrowDesk;

mod due;
#[cfg(feature = "lightning")]
mod escrow;

use due::Due;

/// Pause between two looks at escrows.
#[cfg(feature = "lightning")]
const LOOK: Duration = Duration::from_secs(2);
/// Pause before what failed is tried again.
const AGAIN: Duration = Duration::from_secs(30);

/// Why a payout is not booked yet.
#[derive(Debug, thiserror::Error)]
enum PayError {
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] StoreError),
    /// The ledger fails.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The node ends.
    #[error("the node ends")]
    Stopped,
}

/// Books and makes the payouts of runs. A clone is the same.
#[derive(Clone)]
pub struct Payouts {
    inner: Arc<Inner>,
}

struct Inner {
    ledger: Ledger,
    #[cfg(feature = "lightning")]
    escrows: Option<EscrowDesk>,
    followed: Mutex<BTreeMap<RunId, Followed>>,
    stop: CancellationToken,
}

/// Who reads the log of a run.
struct Followed {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Payouts {
    /// With the books of this node, and its escrows if it has any; until `stop`.
    #[must_use]
    pub fn new(
        ledger: Ledger,
        #[cfg(feature = "lightning")] escrows: Option<EscrowDesk>,
        stop: CancellationToken,
    ) -> Self {
        let inner = Inner {
            ledger,
            #[cfg(feature = "lightning")]
            escrows,
            followed: Mutex::default(),
            stop,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Whether this node can be paid, or pay, in a run as it would take part in it.
    ///
    /// # Errors
    /// [`RunError::NoWallet`] when the run pays by escrows, and this node has no wallet.
    pub fn check(&self, spec: &Signed<RunSpec>, wish: Wish) -> Result<(), RunError> {
        if spec.payload().pay.way == PayWay::Accounts || self.has_wallet() {
            return Ok(());
        }
        if wish == Wish::Train || spec.signer() == self.inner.ledger.owner() {
            return Err(RunError::NoWallet(RunId::of(spec)));
        }
        if wish == Wish::Validate {
            warn!(run = %RunId::of(spec), "this node has no wallet: other validators judge the escrows of this run");
        }
        Ok(())
    }

    /// The escrows of this node, if it has a wallet.
    #[cfg(feature = "lightning")]
    pub(super) fn escrows(&self) -> Option<EscrowDesk> {
        self.inner.escrows.clone()
    }

    fn has_wallet(&self) -> bool {
        #[cfg(feature = "lightning")]
        return self.inner.escrows.is_some();
        #[cfg(not(feature = "lightning"))]
        false
    }

    /// Reads the log of a run from its beginning, and on as `news` tells of records; none if this node takes no part in the
    /// run any more. Books what it pays out, and has it paid. Goes on until the run's task is over and all is paid. Whoever
    /// read the same log before is stopped first.
    pub fn follow(&self, spec: Signed<RunSpec>, directory: &Path, news: Option<watch::Receiver<RunStatus>>) {
        let run = RunId::of(&spec);
        let mut followed = self.inner.followed.lock().unwrap_or_else(PoisonError::into_inner);
        followed.retain(|of, reader| *of == run || !reader.task.is_finished());
        let before = followed.remove(&run);
        let stop = self.inner.stop.child_token();
        let reader = Reader {
            payouts: self.clone(),
            log: Some(Tail::of(directory)),
            round: 0,
            open: Vec::new(),
            #[cfg(feature = "lightning")]
            escrows: self.inner.escrows.clone().map(escrow::Making::new),
            spec,
        };
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            if let Some(Followed { stop, task }) = before {
                stop.cancel();
                let _ended_or_broken_off = task.await;
            }
            reader.work(news, stopped).await;
        });
        followed.insert(run, Followed { stop, task });
    }

    /// Books a payout, of which an escrow paid `escrowed`, if this node pays it or is paid.
    fn book(&self, due: &Due, escrowed: Msat) -> Result<(), LedgerError> {
        let (me, owed) = (self.inner.ledger.owner(), &due.owed);
        let (direction, peer) = match me {
            me if me == owed.author => (Direction::Outgoing, owed.peer),
            me if me == owed.peer => (Direction::Incoming, owed.author),
            _ => return Ok(()),
        };
        let payout = Payout { reference: due.name, direction, peer, amount: owed.amount, escrowed };
        match self.inner.ledger.book_payout(&payout, wall_ms()) {
            Ok(_) => Ok(()),
            // To try it again would change nothing, and hold up what follows.
            Err(error @ (LedgerError::Reused(_) | LedgerError::Overflow)) => {
                error!(run = %owed.run, round = owed.round, peer = %owed.peer, %error, "a payout cannot be booked");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Reads the log of one run.
struct Reader {
    payouts: Payouts,
    spec: Signed<RunSpec>,
    /// None while it is being read.
    log: Option<Tail>,
    /// The last record that was read.
    round: u64,
    /// Payouts by escrow that are not made yet.
    open: Vec<Due>,
    #[cfg(feature = "lightning")]
    escrows: Option<escrow::Making>,
}

impl Reader {
    async fn work(mut self, mut news: Option<watch::Receiver<RunStatus>>, stop: CancellationToken) {
        loop {
            let told = news.as_ref().map_or(0, |news| news.borrow().summary.round);
            let read = self.read().await;
            if let Err(error) = &read {
                warn!(run = %RunId::of(&self.spec), %error, "payouts of a run wait");
            }
            self.make().await;
            if news.is_none() && self.open.is_empty() && !matches!(read, Err(PayError::Ledger(_))) {
                return;
            }
            let (round, stuck) = (self.round, read.is_err() || self.round < told);
            let pause = if stuck { Some(AGAIN) } else { self.look() };
            tokio::select! {
                () = stop.cancelled() => return,
                goes_on = later(&mut news, round), if !stuck => if !goes_on { news = None },
                () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
            }
        }
    }

    /// Reads what has come, and books what is booked by the record alone.
    async fn read(&mut self) -> Result<(), PayError> {
        let Some(mut log) = self.log.take() else { return Err(PayError::Stopped) };
        let (payouts, spec) = (self.payouts.clone(), self.spec.clone());
        let reading = tokio::task::spawn_blocking(move || {
            let (mut round, mut open) = (0, Vec::new());
            let read = log.read(|entry| {
                for due in Due::by(&spec, entry) {
                    // Nobody else could judge.
                    if spec.payload().pay.way == PayWay::Accounts || due.judges.is_empty() {
                        payouts.book(&due, Msat::ZERO)?;
                    } else if !payouts.inner.ledger.is_payout_booked(&due.name)? {
                        open.push(due);
                    }
                }
                round = entry.record.round;
                Ok::<_, PayError>(())
            });
            (log, round, open, read)
        });
        let Ok((log, round, open, read)) = reading.await else { return Err(PayError::Stopped) };
        self.log = Some(log);
        self.round = self.round.max(round);
        for due in open {
            self.take(due);
        }
        read
    }

    #[cfg(not(feature = "lightning"))]
    fn take(&mut self, _waits_for_a_wallet: Due) {}

    #[cfg(not(feature = "lightning"))]
    async fn make(&mut self) {}

    #[cfg(not(feature = "lightning"))]
    fn look(&self) -> Option<Duration> {
        None
    }
}

#[cfg(feature = "lightning")]
impl Reader {
    /// Takes on what an escrow is to pay, if this node has a part in it. What waits for a wallet is found again in the log.
    fn take(&mut self, due: Due) {
        let me = self.payouts.inner.ledger.owner();
        let mine = me == due.owed.author || me == due.owed.peer || due.judges.contains(&me);
        if mine && self.escrows.is_some() && self.open.iter().all(|open| open.name != due.name) {
            self.open.push(due);
        }
    }

    /// Does what is to be done about escrows now, and books what they paid.
    async fn make(&mut self) {
        let Some(making) = &mut self.escrows else { return };
        let mut open = Vec::new();
        for due in std::mem::take(&mut self.open) {
            match making.go_on(&due, wall_ms()).await {
                Ok(None) => open.push(due),
                Ok(Some(paid)) => {
                    let payouts = self.payouts.clone();
                    let booking = tokio::task::spawn_blocking(move || {
                        let booked = payouts.book(&due, paid.min(due.owed.amount));
                        (due, booked)
                    });
                    match booking.await {
                        Ok((_, Ok(()))) => {}
                        Ok((due, Err(error))) => {
                            warn!(run = %due.owed.run, %error, "a payout cannot be booked yet");
                            open.push(due);
                        }
                        Err(_) => return,
                    }
                }
                Err(error) => {
                    debug!(run = %due.owed.run, peer = %due.owed.peer, round = due.owed.round, %error, "a payout waits");
                    open.push(due);
                }
            }
        }
        self.open = open;
    }

    fn look(&self) -> Option<Duration> {
        (!self.open.is_empty()).then_some(LOOK)
    }
}

/// Waits for a record after that of `round`; false once there will be none.
async fn later(news: &mut Option<watch::Receiver<RunStatus>>, round: u64) -> bool {
    match news {
        Some(news) => news.wait_for(|status| status.summary.round > round).await.is_ok(),
        None => std::future::pending().await,
    }
}
