//! Ties the ledger to the wallet: every Lightning payment that moved is booked once, whatever ended in between.
//!
//! The wallet writes its events down before it tells them; the bookkeeper books them in that order and notes in the
//! ledger how far it came, so that a crash of either repeats some and loses none. From time to time it holds the
//! wallet's own history against the journal; a difference is an alarm for the operator, and nothing is "corrected".

use std::time::Duration;

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

/// The wallet's name among the sources of events that the ledger follows.
const SOURCE: &str = "wallet";
/// Events read at a time.
const PAGE: u32 = 200;
/// Events are looked for after this time though none was told.
const LOOK: Duration = Duration::from_secs(30);
/// How often history and journal are compared.
const COMPARE: Duration = Duration::from_secs(60);
/// Payments that are not older are left out of a comparison: their event may not have been written down yet.
const SETTLING_S: u64 = 30;
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
        loop {
            if let Err(error) = self.catch_up().await {
                warn!(%error, "what the wallet moved could not be booked yet");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            tokio::select! {
                event = told.recv() => if matches!(event, Err(broadcast::error::RecvError::Closed)) { return },
                () = tokio::time::sleep(LOOK) => {}
                _ = compare.tick() => self.compare(alarms).await,
            }
        }
    }

    /// Books all events that are not booked yet.
    async fn catch_up(&self) -> anyhow::Result<()> {
        let mut place = self.book(|ledger| ledger.followed(SOURCE)).await?;
        if self.wallet.recorded(place.saturating_sub(1), 1).await?.is_empty() {
            // The wallet was begun anew, with the root key in another directory: its events are others.
            place = 0;
        }
        loop {
            let events = self.wallet.recorded(place, PAGE).await?;
            let Some(last) = events.last() else { return Ok(()) };
            place = last.seq;
            self.book(move |ledger| {
                events.iter().try_for_each(|recorded| book(ledger, recorded))?;
                ledger.follow(SOURCE, place)
            })
            .await?;
        }
    }

    async fn book<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Ledger) -> Result<T, LedgerError> + Send + 'static,
    ) -> anyhow::Result<T> {
        let ledger = self.ledger.clone();
        Ok(tokio::task::spawn_blocking(move || work(&ledger)).await.context("booking broke off")??)
    }

    async fn compare(&self, alarms: &watch::Sender<Vec<String>>) {
        let found = match self.differences().await {
            Ok(found) => found,
            Err(error) => return warn!(%error, "the wallet's history could not be compared with the journal"),
        };
        let changed = alarms.send_if_modified(|known| std::mem::replace(known, found.clone()) != found);
        if changed {
            found.iter().for_each(|alarm| error!(alarm, "money does not add up"));
        }
    }

    /// What is wrong, in sentences: nothing, one hopes.
    async fn differences(&self) -> anyhow::Result<Vec<String>> {
        let sums = self.book(Ledger::reconcile).await?;
        let mut wrong = Vec::new();
        if !sums.is_exact() {
            wrong.push("the journal does not add up: see `consortium-node ledger verify`".to_owned());
        }
        let mut after = None;
        loop {
            let page = self.wallet.history(after, PAGE).await?;
            let payments = page.payments;
            wrong.extend(self.book(move |ledger| differing(ledger, &payments, wall_ms() / 1000)).await?);
            wrong.truncate(MAX_ALARMS);
            after = page.next;
            if after.is_none() || wrong.len() == MAX_ALARMS {
                return Ok(wrong);
            }
        }
    }
}

fn of(hash: PaymentHash) -> Hash {
    Hash::from_bytes(*hash.as_bytes())
}

fn book(ledger: &Ledger, recorded: &Recorded) -> Result<(), LedgerError> {
    let moved = match recorded.event {
        WalletEvent::PaymentReceived { hash, amount } => {
            Moved { direction: Direction::Incoming, hash: of(hash), amount, fee: Msat::ZERO }
        }
        WalletEvent::PaymentSent { hash, amount, fee } => {
            Moved { direction: Direction::Outgoing, hash: of(hash), amount, fee }
        }
        WalletEvent::PaymentForwarded { fee: Some(fee), .. } => {
            return ledger.book_forwarded(fee, recorded.seq, recorded.at_ms).map(drop);
        }
        _ => return Ok(()),
    };
    ledger.book_payment(&moved, wall_ms()).map(drop)
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
