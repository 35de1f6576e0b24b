//! Pay for work: each cell of a job once, held while an audit is open, its tail delayed.
//!
//! A record says which cells ([`Cells`]: layers by positions) each stage computed and at which price. A cell that an
//! earlier record of the payer's job covers is not paid again, whoever computed it and in whatever attempt or stage: a job that
//! was taken over costs its payer what one attempt costs. Pay that was returned frees its cells for others, never for
//! the worker that lost it.
//!
//! A master's fee is booked as work, too: on the cells of a layer that no model has ([`StageWork::driving`]), so that it is
//! paid once for a position whatever the number of masters. It is neither audited nor delayed: the answer is there.
//!
//! Pay takes this way:
//!
//! ```text
//!              drawn for audit                   Pass, Inconclusive, or hold_ms without a verdict
//! payer/free ------------------> worker/held ----------------------------+
//!     |  ^                           |                                   |
//!     |  +---------------------------+ Withheld, Fraud                   v
//!     |       not drawn              (with its fee)      worker/free + worker/tail --tail_ms--> worker/free
//!     +----------------------------------------------->                      |
//!        ^                                                                   |
//!        +-------------------------------------------------------------------+ Fraud, in any job of this worker
//! ```
//!
//! The tail is `floor(pay * tail / 1000)`. On proof of fraud all tails of the worker that are not yet due go back to
//! those who paid them. With audits at rate `r` a cheat that gains `g` a job loses on average when
//! `r * tails > (1 - r) * g`: at 20 % its open tails must be worth more than four of its jobs, so a tail of 20 % over a
//! day deters whoever does more than twenty jobs a day, and of newcomers every job is held.

use consortium_protocol::wire::audit::{Outcome, StageReceipt, Verdict};
use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::wire::job::JobId;
use consortium_protocol::wire::pipeline::{MAX_STAGES, SessionOpen};
use consortium_protocol::{Hash, Invalid, Msat, NodeId, Signed, cbor};
use rusqlite::params;
use serde::{Deserialize, Serialize};

use crate::accounts::{Book, Owner};
use crate::cells::Cells;
use crate::claims::{self, Claim, ClaimState};
use crate::journal::{self, Kind, Posted, Postings};
use crate::ledger::{Ledger, LedgerError, time};
use crate::price::share;
use crate::reservations;

/// How many claims [`Ledger::release_due`] ends in one call.
pub const MAX_RELEASE: u32 = 500;

/// How long pay waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The part of pay that is delayed, in thousandths; at most 1000.
    pub tail: u16,
    /// How long it is delayed, in milliseconds.
    pub tail_ms: u64,
    /// How long drawn pay waits for a verdict before it is paid without one, in milliseconds.
    pub hold_ms: u64,
}

impl Default for Terms {
    /// A fifth for a day; a day for the verdict.
    fn default() -> Self {
        let day = 24 * 3600 * 1000;
        Self { tail: 200, tail_ms: day, hold_ms: day }
    }
}

/// What one stage did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageWork {
    /// Place in the route.
    pub stage: u16,
    /// Who computed.
    pub worker: NodeId,
    /// What was computed.
    pub cells: Cells,
    /// The price of a cell, pinned when the job began.
    pub price: Msat,
    /// Digest of the receipt that both sides signed.
    pub receipt: Hash,
    /// Whether it was drawn for an audit, or may yet be: its pay waits.
    pub drawn: bool,
}

impl StageWork {
    /// All that a stage's receipt accounts for.
    #[must_use]
    pub fn of(receipt: &Signed<StageReceipt>, price: Msat, drawn: bool) -> Self {
        let work = receipt.payload();
        Self {
            stage: work.stage,
            worker: receipt.signer(),
            cells: Cells { layers: work.range, start: 0, stop: work.positions },
            price,
            receipt: receipt.digest(),
            drawn,
        }
    }
}

/// The layer on which driving is booked: models have at most 65,535, counted from 0.
pub(crate) const DRIVING: u16 = u16::MAX;

impl StageWork {
    /// What the driver of an order is paid for, by the receipt of its last stage.
    #[must_use]
    pub fn driving(order: &SessionOpen, last: &Signed<StageReceipt>) -> Self {
        let layers = LayerRange { first: DRIVING, last: DRIVING };
        Self {
            stage: last.payload().stage.saturating_add(1),
            worker: order.driver,
            cells: Cells { layers, start: 0, stop: last.payload().positions },
            price: order.master_fee,
            receipt: last.digest(),
            drawn: false,
        }
    }

    fn is_driving(&self) -> bool {
        self.cells.layers.first == DRIVING
    }
}

/// What was done in one attempt of a job, from receipts that both sides signed: their signatures are the caller's to
/// check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRecord {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// Who pays: an API key of this node, this node, or the peer for which this node works.
    pub payer: Owner,
    /// What this node takes from the payer on top, in thousandths; at most 1000.
    pub fee: u16,
    /// The stages, and the driver: 1 to 65.
    pub stages: Vec<StageWork>,
}

impl JobRecord {
    /// What the record's entry refers to: BLAKE3 in `derive_key` mode under `consortium ledger job record 1` over its
    /// canonical CBOR.
    #[must_use]
    pub fn digest(&self) -> Hash {
        Hash::from_bytes(blake3::derive_key("consortium ledger job record 1", &cbor::to_vec(self)))
    }

    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless((1..=MAX_STAGES + 1).contains(&self.stages.len()), "stages", "1 to 65")?;
        Invalid::unless(self.fee <= 1000, "fee", "more than 1000 thousandths")?;
        for work in &self.stages {
            work.cells.layers.check()?;
            Invalid::unless(work.cells.start < work.cells.stop, "cells", "no positions")?;
        }
        Ok(())
    }
}

/// Where pay goes that has left the payer or the hold, and until when it waits there.
fn after_hold(tail: Msat, terms: &Terms, now_ms: u64) -> (ClaimState, u64) {
    match tail {
        Msat::ZERO => (ClaimState::Paid, now_ms),
        _ => (ClaimState::Tail, now_ms.saturating_add(terms.tail_ms)),
    }
}

/// The reference of an entry that ends the waits of these claims.
fn reference_of(ended: &[(i64, Claim)]) -> Hash {
    let ids: Vec<i64> = ended.iter().map(|(id, _)| *id).collect();
    Hash::from_bytes(blake3::derive_key("consortium ledger claims 1", &cbor::to_vec(&ids)))
}

impl Ledger {
    /// Books the work of a job: its payer is charged and its workers are credited, each cell once. A record that was
    /// booked before changes nothing, and so does one that says nothing new. If something is reserved for the job
    /// ([`Ledger::reserve`]), it is charged to that; else what was done is booked whatever the payer has left.
    ///
    /// # Errors
    /// [`LedgerError::NotAParty`] when neither payer nor worker is this node or a key of it, [`LedgerError::Invalid`],
    /// [`LedgerError::Overflow`], [`LedgerError::Database`].
    pub fn record_job(&self, record: &JobRecord, terms: &Terms, now_ms: u64) -> Result<Posted, LedgerError> {
        record.check()?;
        Invalid::unless(terms.tail <= 1000, "tail", "more than 1000 thousandths")?;
        let payer = self.payer(&record.payer)?;
        let reference = record.digest();
        self.write(|tx| {
            if let Some(seq) = journal::find(tx, Kind::Work, &reference)? {
                return Ok(Posted::Already(seq));
            }
            let mut known: Vec<Claim> =
                claims::find(tx, "job = ?1 AND payer = ?2", params![record.job.0, payer.to_string()])?
                    .into_iter()
                    .map(|(_, claim)| claim)
                    .collect();
            let before = known.len();
            for work in &record.stages {
                let worker = self.worker(work, &payer)?;
                known.extend(claim(record, work, worker, &payer, &known, terms, now_ms)?);
            }
            let mut new = known.split_off(before);
            if new.is_empty() {
                return Ok(Posted::Nothing);
            }
            let mut postings = Postings::new();
            for claim in &new {
                claim.begin(&mut postings)?;
            }
            reservations::draw(tx, record.job, &payer, &mut postings)?;
            let seq = journal::append(tx, &self.owner(), Kind::Work, reference, now_ms, postings)?;
            for claim in &mut new {
                claim.seq = seq;
                claims::insert(tx, claim)?;
            }
            Ok(Posted::New(seq))
        })
    }

    /// What the work is paid that was booked as the entry `seq`, held pay and tails included.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn work_booked(&self, seq: u64) -> Result<Msat, LedgerError> {
        self.read(|tx| {
            let mut statement = tx.prepare_cached("SELECT coalesce(sum(pay), 0) FROM claim WHERE seq = ?1")?;
            let pay: i64 = statement.query_row([time(seq)], |row| row.get(0))?;
            Ok(Msat(u64::try_from(pay).unwrap_or(0)))
        })
    }

    /// Applies an audit's verdict to the pay of the stage it is about: `Pass` and `Inconclusive` pay what is held,
    /// `Withheld` and `Fraud` return it, and `Fraud` returns all tails of the worker besides. Whose verdicts decide
    /// is the caller's choice. A verdict on pay that is settled already changes nothing, except for tails.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`], [`LedgerError::Database`].
    pub fn settle_audit(&self, verdict: &Signed<Verdict>, terms: &Terms, now_ms: u64) -> Result<Posted, LedgerError> {
        self.settle(verdict, None, terms, now_ms)
    }

    /// Applies the verdict that `payer` goes by to what it owes this node: as [`Ledger::settle_audit`] does on the
    /// payer's side, and to nothing that others owe.
    ///
    /// # Errors
    /// [`LedgerError::NotAParty`] when the verdict is about another node; else as [`Ledger::settle_audit`].
    pub fn settle_with(
        &self,
        payer: &NodeId,
        verdict: &Signed<Verdict>,
        terms: &Terms,
        now_ms: u64,
    ) -> Result<Posted, LedgerError> {
        if verdict.payload().auditee != self.owner() || *payer == self.owner() {
            return Err(LedgerError::NotAParty);
        }
        self.settle(verdict, Some(&Owner::Peer(*payer)), terms, now_ms)
    }

    fn settle(
        &self,
        verdict: &Signed<Verdict>,
        payer: Option<&Owner>,
        terms: &Terms,
        now_ms: u64,
    ) -> Result<Posted, LedgerError> {
        let (word, reference) = (verdict.payload(), verdict.digest());
        let pays = matches!(word.outcome, Outcome::Pass | Outcome::Inconclusive);
        let kind = if pays { Kind::Paid } else { Kind::Returned };
        let (worker, payer) = (self.peer(&word.auditee).to_string(), payer.map(Owner::to_string));
        self.write(|tx| {
            if let Some(seq) = journal::find(tx, kind, &reference)? {
                return Ok(Posted::Already(seq));
            }
            let mut found = claims::find(
                tx,
                "job = ?1 AND attempt = ?2 AND stage = ?3 AND worker = ?4 AND (?5 IS NULL OR payer = ?5)
                 AND receipt = ?6 AND state = 'held'",
                params![word.job.0, word.attempt, word.stage, worker, payer, word.receipt.as_bytes()],
            )?;
            if word.outcome == Outcome::Fraud {
                found.extend(claims::find(
                    tx,
                    "worker = ?1 AND (?2 IS NULL OR payer = ?2) AND state = 'tail' AND state IN ('held', 'tail')",
                    params![worker, payer],
                )?);
            }
            if found.is_empty() {
                return Ok(Posted::Nothing);
            }
            let mut postings = Postings::new();
            for (id, claim) in &found {
                let (state, due_ms) = if pays {
                    claim.pay_out(&mut postings)?;
                    after_hold(claim.tail, terms, now_ms)
                } else {
                    (claim.give_back(&mut postings)?, now_ms)
                };
                claims::turn(tx, *id, state, due_ms)?;
            }
            journal::append(tx, &self.owner(), kind, reference, now_ms, postings).map(Posted::New)
        })
    }

    /// Ends the waits that are over: tails become free, and what was held without a verdict for
    /// [`Terms::hold_ms`] is paid. At most [`MAX_RELEASE`] of each kind; returns how many, so that a caller who gets as
    /// many as that calls again.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`], [`LedgerError::Database`].
    pub fn release_due(&self, terms: &Terms, now_ms: u64) -> Result<usize, LedgerError> {
        self.write(|tx| {
            let due = |state: &str| {
                let condition = "id IN (SELECT id FROM claim WHERE state = ?1 AND state IN ('held', 'tail')
                                 AND due_ms <= ?2 ORDER BY due_ms, id LIMIT ?3)";
                claims::find(tx, condition, params![state, time(now_ms), MAX_RELEASE])
            };
            let (tails, held) = (due("tail")?, due("held")?);
            for (kind, found) in [(Kind::Matured, &tails), (Kind::Paid, &held)] {
                if found.is_empty() {
                    continue;
                }
                let mut postings = Postings::new();
                for (id, claim) in found {
                    if kind == Kind::Matured {
                        claim.mature(&mut postings)?;
                        claims::turn(tx, *id, ClaimState::Paid, now_ms)?;
                    } else {
                        claim.pay_out(&mut postings)?;
                        let (state, due_ms) = after_hold(claim.tail, terms, now_ms);
                        claims::turn(tx, *id, state, due_ms)?;
                    }
                }
                journal::append(tx, &self.owner(), kind, reference_of(found), now_ms, postings)?;
            }
            Ok(tails.len() + held.len())
        })
    }

    /// What was claimed for a job, in the order of booking.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn claims(&self, job: JobId) -> Result<Vec<Claim>, LedgerError> {
        self.read(|tx| Ok(claims::find(tx, "job = ?1", [job.0])?.into_iter().map(|(_, claim)| claim).collect()))
    }

    /// The account of a node for which, or which, works: the node's own earnings for itself.
    fn peer(&self, node: &NodeId) -> Owner {
        if *node == self.owner() { Owner::Own(Book::Earned) } else { Owner::Peer(*node) }
    }

    fn payer(&self, payer: &Owner) -> Result<Owner, LedgerError> {
        match payer {
            Owner::Peer(node) if *node == self.owner() => Ok(Owner::Own(Book::Spent)),
            Owner::Peer(_) | Owner::Key(_) | Owner::Own(Book::Spent) => Ok(payer.clone()),
            Owner::Own(_) => Err(LedgerError::NotAParty),
        }
    }

    /// Between two other nodes there is nothing to book here.
    fn worker(&self, work: &StageWork, payer: &Owner) -> Result<Owner, LedgerError> {
        match payer {
            Owner::Peer(_) if work.worker != self.owner() => Err(LedgerError::NotAParty),
            _ if work.worker == self.owner() && work.is_driving() => Ok(Owner::Own(Book::Driving)),
            _ => Ok(self.peer(&work.worker)),
        }
    }
}

/// The claim of one stage, unless all its cells are covered by what is `known` of the job.
fn claim(
    record: &JobRecord,
    work: &StageWork,
    worker: Owner,
    payer: &Owner,
    known: &[Claim],
    terms: &Terms,
    now_ms: u64,
) -> Result<Option<Claim>, LedgerError> {
    let covered: Vec<Cells> = known
        .iter()
        .filter(|claim| claim.state != ClaimState::Returned || claim.worker == worker)
        .map(|claim| claim.cells)
        .collect();
    let cells = work.cells.outside(&covered);
    if cells == 0 {
        return Ok(None);
    }
    let pay = work.price.checked_mul(cells).ok_or(LedgerError::Overflow)?;
    let fee = share(pay, u32::from(record.fee)).ok_or(LedgerError::Overflow)?;
    let delayed = if work.is_driving() { 0 } else { u32::from(terms.tail) };
    let tail = share(pay, delayed).ok_or(LedgerError::Overflow)?;
    let (state, due_ms) = match work.drawn {
        true => (ClaimState::Held, now_ms.saturating_add(terms.hold_ms)),
        false => after_hold(tail, terms, now_ms),
    };
    Ok(Some(Claim {
        seq: 0,
        job: record.job,
        attempt: record.attempt,
        stage: work.stage,
        receipt: work.receipt,
        cells: work.cells,
        worker,
        payer: payer.clone(),
        pay,
        fee,
        tail,
        state,
        due_ms,
    }))
}
