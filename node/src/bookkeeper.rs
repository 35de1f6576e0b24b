//! Ties the ledger to the wallet: every Lightning payment that moved is booked once, whatever ended in between.
//!
//! The wallet writes its events down before it tells them; the bookkeeper books them in that order and notes in the
//! ledger how far it came, so that a crash of either repeats some and loses none. From time to time it holds the
//! wallet's own history against the journal; a difference is an alarm for the operator, and nothing is "corrected".

use std::time::{Duration, Instant};

use anyhow::Context as _;
use consortium_ledger::lightning::history::{Direction as Way, Kind, Payment, State};
use consortium_ledger::lightning::records::Recorded;
use consortium_ledger::lightning::{PaymentHash, Wallet, WalletEvent};
use consortium_ledger::payments::{Direction, Moved};
use consortium_ledger::{Ledger, LedgerError};
use consortium_protocol::hash::Hash;
use consortium_protocol::msat::Msat;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::clock::wall_ms;

/// Events read at a time.
const PAGE: u32 = 200;
/// Events are looked for after this time though none was told.
const LOOK: Duration = Duration::from_secs(30);
/// How often history and journal are compared.
const COMPARE: Duration = Duration::from_secs(60);
/// Payments that are not older are left out of a comparison: their event may not have been written down yet.
const SETTLING_S: u64 = 30;
/// How often the whole journal is added up.
const ADD_UP: Duration = Duration::from_secs(3600);
/// The chain source may be silent so long.
const SILENCE_S: u64 = 600;
/// Alarms told at a time.
const MAX_ALARMS: usize = 10;
/// Time before what failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Books what the wallet tells until `stop`, and tells of alarms: sentences for the operator.
pub fn spawn(ledger: Ledger, wallet: Wallet, alarms: watch::Sender<Vec<String>>, stop: CancellationToken) {
    tokio::spawn(async move {
        let bookkeeper = Bookkeeper { ledger, wallet };
        tokio::select! {
            () = stop.cancelled() => {}
            () = bookkeeper.run(&alarms) => {}
        }
    });
}

struct Bookkeeper {
    ledger: Ledger,
    wallet: Wallet,
}

impl Bookkeeper {
    async fn run(&self, alarms: &watch::Sender<Vec<String>>) {
        let mut told = self.wallet.events();
        let mut compare = tokio::time::interval(COMPARE);
        let (mut watched, mut unbooked) = (Watched::default(), Vec::new());
        loop {
            let wait = match self.catch_up(&mut unbooked).await {
                Ok(()) => LOOK,
                Err(error) => {
                    warn!(%error, "what the wallet moved could not be booked yet");
                    AGAIN
                }
            };
            tokio::select! {
                event = told.recv(), if wait == LOOK => {
                    if matches!(event, Err(broadcast::error::RecvError::Closed)) {
                        return;
                    }
                }
                () = tokio::time::sleep(wait) => {}
                _ = compare.tick() => match self.differences(&mut watched).await {
                    Ok(found) => tell(alarms, unbooked.iter().cloned().chain(found)),
                    Err(error) => warn!(%error, "the wallet's history could not be compared with the journal"),
                },
            }
        }
    }

    /// Books all events that are not booked yet. Of those that contradict the journal it tells in `unbooked`, and goes on.
    async fn catch_up(&self, unbooked: &mut Vec<String>) -> anyhow::Result<()> {
        let source = format!("wallet {}", self.wallet.records_name().await?);
        let from = source.clone();
        let mut place = self.book(move |ledger| ledger.followed(&from)).await?;
        loop {
            let events = self.wallet.recorded(place, PAGE).await?;
            let Some(last) = events.last() else { return Ok(()) };
            place = last.seq;
            let from = source.clone();
            let contradictions = self
                .book(move |ledger| {
                    let contradictions = events.iter().filter_map(|recorded| book(ledger, recorded).transpose());
                    let contradictions = contradictions.collect::<Result<Vec<_>, _>>()?;
                    ledger.follow(&from, place)?;
                    Ok(contradictions)
                })
                .await?;
            unbooked.extend(contradictions);
            unbooked.truncate(MAX_ALARMS);
        }
    }

    async fn book<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Ledger) -> Result<T, LedgerError> + Send + 'static,
    ) -> anyhow::Result<T> {
        let ledger = self.ledger.clone();
        Ok(tokio::task::spawn_blocking(move || work(&ledger)).await.context("booking broke off")??)
    }

    /// What is wrong, in sentences: nothing, one hopes.
    async fn differences(&self, watched: &mut Watched) -> anyhow::Result<Vec<String>> {
        let now_s = wall_ms() / 1000;
        let mut wrong = Vec::new();
        let heard = self.wallet.status().await?.synced_s;
        if let Some(silent) = heard.map(|heard| now_s.saturating_sub(heard)).filter(|silent| *silent > SILENCE_S) {
            wrong.push(format!(
                "the wallet has not heard from its chain source for {} minutes, and sees neither payments that end nor a \
                 channel's other side that cheats: is it up? A bitcoind that was restarted has a new cookie: restart the \
                 node too",
                silent / 60
            ));
        }
        if watched.added_up.is_none_or(|at| at.elapsed() >= ADD_UP) {
            watched.inexact = !self.book(Ledger::reconcile).await?.is_exact();
            watched.added_up = Some(Instant::now());
        }
        if watched.inexact {
            wrong.push("the journal does not add up: see `consortium-node ledger verify`".to_owned());
        }
        let payments = self.wallet.made_since(watched.compared_s).await?;
        let differing = self.book(move |ledger| differing(ledger, &payments, now_s)).await?;
        if differing.is_empty() {
            watched.compared_s = now_s.saturating_sub(2 * SETTLING_S);
        }
        wrong.extend(differing);
        Ok(wrong)
    }
}

/// What was found in order before.
#[derive(Debug, Default)]
struct Watched {
    /// When the journal was last added up, and whether it did not come out.
    added_up: Option<Instant>,
    inexact: bool,
    /// Payments before this time agreed, in seconds since 1970.
    compared_s: u64,
}

fn tell(alarms: &watch::Sender<Vec<String>>, found: impl Iterator<Item = String>) {
    let found: Vec<String> = found.take(MAX_ALARMS).collect();
    let changed = alarms.send_if_modified(|known| std::mem::replace(known, found.clone()) != found);
    if changed {
        found.iter().for_each(|alarm| error!(alarm, "the operator must look at this"));
    }
}

fn of(hash: PaymentHash) -> Hash {
    Hash::from_bytes(*hash.as_bytes())
}

/// Books an event; a sentence when the journal has something else in its place.
fn book(ledger: &Ledger, recorded: &Recorded) -> Result<Option<String>, LedgerError> {
    let moved = match recorded.event {
        WalletEvent::PaymentReceived { hash, amount } => {
            Moved { direction: Direction::Incoming, hash: of(hash), amount, fee: Msat::ZERO }
        }
        WalletEvent::PaymentSent { hash, amount, fee } => {
            Moved { direction: Direction::Outgoing, hash: of(hash), amount, fee }
        }
        WalletEvent::PaymentForwarded { fee: Some(fee), .. } => {
            return ledger.book_forwarded(fee, recorded.seq, recorded.at_ms).map(|_| None);
        }
        _ => return Ok(None),
    };
    match ledger.book_payment(&moved, wall_ms()) {
        Ok(_) => Ok(None),
        Err(LedgerError::Reused(hash)) => Ok(Some(contradiction(&moved, hash))),
        Err(error) => Err(error),
    }
}

fn contradiction(moved: &Moved, hash: impl std::fmt::Display) -> String {
    let Moved { amount, fee, .. } = moved;
    format!("the wallet moved {amount} with {fee} of fees as payment {hash}; the journal says something else")
}

/// Sentences about the payments of which the journal says something else than the wallet at `now_s`, in seconds since
/// 1970; the newest are left out.
///
/// # Errors
/// [`LedgerError::Database`].
pub fn differing(ledger: &Ledger, payments: &[Payment], now_s: u64) -> Result<Vec<String>, LedgerError> {
    let mut differing = Vec::new();
    for payment in payments {
        let settled = payment.at_s.saturating_add(SETTLING_S) <= now_s;
        let done = (payment.kind, payment.state) == (Kind::Lightning, State::Done);
        let Ok(hash) = payment.id.parse::<PaymentHash>() else { continue };
        if !(settled && done) {
            continue;
        }
        let direction = match payment.direction {
            Way::In => Direction::Incoming,
            Way::Out => Direction::Outgoing,
        };
        let booked = ledger.payment(direction, &of(hash))?.and_then(|known| known.booked);
        let told = (payment.amount.unwrap_or(Msat::ZERO), payment.fee.unwrap_or(Msat::ZERO));
        if booked.map(|booked| (booked.amount, booked.fee)) != Some(told) {
            let (amount, fee) = told;
            differing
                .push(format!("the wallet moved {amount} with {fee} of fees as payment {hash}; the journal differs"));
        }
    }
    Ok(differing)
}
