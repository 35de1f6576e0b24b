//! What comes in: messages of the other parties, and the wallet's events.

use std::time::Instant;

use consortium_protocol::wire::escrow::{EscrowId, EscrowMessage, EscrowTerms, HashLock, LockSecret, Misconduct};
use consortium_protocol::{Msat, NodeId, Signed};
use tracing::{error, warn};

use super::{EscrowError, Inner, Open};
use crate::escrow::log::Log;
use crate::escrow::machine::{Input, Refused};
use crate::escrow::state::{Escrow, State};
use crate::lightning::event::FailureReason;
use crate::lightning::lookup::Fate;
use crate::lightning::{PaymentHash, WalletEvent, invoice, locked};

/// Events of the wallet that are read at once.
const BATCH: u32 = 256;

pub(super) fn payment_hash(lock: &HashLock) -> PaymentHash {
    PaymentHash::from_bytes(*lock.as_bytes())
}

/// The payment that an event of the wallet is about.
fn about(event: &WalletEvent) -> Option<PaymentHash> {
    match event {
        WalletEvent::PaymentHeld { hash, .. }
        | WalletEvent::PaymentReceived { hash, .. }
        | WalletEvent::PaymentSent { hash, .. }
        | WalletEvent::PaymentFailed { hash, .. }
        | WalletEvent::HoldExpired { hash, .. } => Some(*hash),
        _ => None,
    }
}

/// What it says about that payment's tranche.
fn told(event: &WalletEvent, tranche: u8) -> Option<Input> {
    match event {
        WalletEvent::PaymentHeld { deadline, .. } => Some(Input::Held { tranche, deadline: *deadline }),
        WalletEvent::PaymentReceived { .. } | WalletEvent::PaymentSent { .. } => Some(Input::Arrived { tranche }),
        WalletEvent::PaymentFailed { .. } => Some(Input::Failed { tranche }),
        WalletEvent::HoldExpired { .. } => Some(Input::Over { tranche }),
        _ => None,
    }
}

impl Inner {
    /// Takes what the wallet noted since the last time.
    pub(super) async fn hear_wallet(&self) -> Result<(), EscrowError> {
        let mut open = self.open.lock().await;
        loop {
            let from = self.on_log(Log::wallet_seq).await?;
            let batch = self.wallet.recorded(from, BATCH).await?;
            let Some(last) = batch.last().map(|recorded| recorded.seq) else { return Ok(()) };
            for recorded in batch {
                let Some(hash) = about(&recorded.event) else { continue };
                let lock = HashLock::from_bytes(*hash.as_bytes());
                let Some((id, tranche)) = self.on_log(move |log| log.by_lock(&lock)).await? else { continue };
                if self.sends_again(&mut open, id, tranche, &recorded.event).await? {
                    continue;
                }
                if let Some(input) = told(&recorded.event, tranche) {
                    if let Input::Held { deadline, .. } = input
                        && self.escrow(&mut open, id).await?.is_short(deadline, self.wallet.height())
                    {
                        warn!(escrow = %id, tranche, deadline, "a payment came with less time than agreed on: it goes back");
                    }
                    self.turn(&mut open, id, input, true).await?;
                }
            }
            self.on_log(move |log| log.note_wallet_seq(last)).await?;
        }
    }

    /// Whether a payment that did not even reach its payee is sent again: the only one of its escrow, while there is time
    /// and no verdict. With several, the others would stay locked meanwhile.
    async fn sends_again(
        &self,
        open: &mut Open,
        id: EscrowId,
        tranche: u8,
        event: &WalletEvent,
    ) -> Result<bool, EscrowError> {
        let WalletEvent::PaymentFailed { why: FailureReason::NoRoute | FailureReason::RetriesExhausted, .. } = event
        else {
            return Ok(false);
        };
        let escrow = self.escrow(open, id).await?;
        let again = escrow.may_send_again(self.wallet.height());
        if again {
            open.sent.insert((id, tranche), Some(Instant::now()));
        }
        Ok(again)
    }

    /// What a message tells the machine, after what the machine cannot check is checked.
    pub(super) async fn heard(
        &self,
        open: &mut Open,
        id: EscrowId,
        from: NodeId,
        message: EscrowMessage,
    ) -> Result<Input, EscrowError> {
        Ok(match message {
            // Whoever else has it says it to no good end.
            EscrowMessage::Verdict { terms, .. } | EscrowMessage::Release { terms, .. } if from != terms.signer() => {
                return Err(Refused::NotTheirs.into());
            }
            EscrowMessage::Invoices { invoices, .. } => {
                let escrow = self.escrow(open, id).await?;
                if escrow.pays() && escrow.tranches().iter().any(|tranche| tranche.invoice.is_none()) {
                    self.check_invoices(&escrow, &invoices).await?;
                }
                Input::Invoices { from, invoices }
            }
            EscrowMessage::Held { deadline, .. } => Input::Ready { from, deadline },
            EscrowMessage::Verdict { verdict, .. } => Input::Verdict { verdict, sealed: Vec::new() },
            EscrowMessage::Release { terms, verdict, secrets } => {
                let earned = (0..=u8::MAX).filter(|tranche| verdict.payload().gives(usize::from(*tranche)));
                let seal = |(tranche, secret): (u8, LockSecret)| {
                    (tranche, self.secrets.seal(terms.payload().id, tranche, &secret))
                };
                let sealed = earned.zip(secrets).map(seal).collect();
                Input::Verdict { verdict, sealed }
            }
            EscrowMessage::Heard { .. } => Input::Heard { from },
            EscrowMessage::GivenUp { .. } => Input::GivenUp { from },
            EscrowMessage::Terms(_) => Input::Tick,
        })
    }

    /// Checks invoices against the terms, and whether they can be paid as they must be.
    async fn check_invoices(&self, escrow: &Escrow, invoices: &[String]) -> Result<(), EscrowError> {
        let terms = escrow.terms().payload();
        let mut payee = None;
        for (tranche, (invoice, lock)) in invoices.iter().zip(&terms.locks).enumerate() {
            let bad = |why| EscrowError::Invoice { tranche, why };
            self.wallet.check_current(invoice)?;
            let facts = invoice::read(invoice)?;
            if facts.hash != payment_hash(lock) {
                return Err(bad("it is for another hash"));
            }
            if facts.amount.is_none() || facts.amount != terms.amount(tranche) {
                return Err(bad("it is for another amount"));
            }
            if locked::delta_of(invoice)? != u64::from(terms.delta) {
                return Err(bad("it is locked for another number of blocks"));
            }
            if *payee.get_or_insert_with(|| facts.payee.clone()) != facts.payee {
                return Err(bad("it pays another node than the first"));
            }
        }
        match payee {
            Some(payee) if !escrow.is_bond() => self.check_room(escrow, payee).await,
            _ => Ok(()),
        }
    }

    /// Refuses new terms under which this node would pay a hash that it has paid before: that payment would count as the
    /// tranche's.
    pub(super) async fn check_unused(&self, terms: &Signed<EscrowTerms>) -> Result<(), EscrowError> {
        let digest = terms.digest();
        let known = self.on_log(move |log| log.find(&digest)).await?.is_some();
        let pays = terms.payload().payer == self.key.node_id();
        for (tranche, lock) in terms.payload().locks.iter().enumerate().filter(|_| pays && !known) {
            if self.wallet.fate(payment_hash(lock)).await? != Fate::Unsent {
                return Err(EscrowError::UsedHash { tranche });
            }
        }
        Ok(())
    }

    /// Notes which wallet this is. What the log has as sent was sent from another, if it was another then.
    pub(super) async fn bind_wallet(&self) -> Result<(), EscrowError> {
        let name = self.wallet.records_name().await?;
        if self.on_log(move |log| log.bind_wallet(&name)).await? {
            warn!(
                "the wallet is another than the one that escrows were paid from: what that one sent is not sent again"
            );
        }
        Ok(())
    }

    /// Notes what the wallet sent and the log does not have, because the program ended in between: it must not be taken
    /// for unsent if the escrow is over meanwhile.
    pub(super) async fn note_sent(&self) -> Result<(), EscrowError> {
        let mut open = self.open.lock().await;
        let unsent = open.escrows.iter().flat_map(|(id, escrow)| escrow.payable().map(|tranche| (*id, tranche)));
        for (id, tranche) in unsent.collect::<Vec<_>>() {
            let escrow = self.escrow(&mut open, id).await?;
            let Some(lock) = escrow.terms().payload().locks.get(usize::from(tranche)) else { continue };
            if let Fate::OnItsWay | Fate::Sent = self.wallet.fate(payment_hash(lock)).await? {
                let deadline = self.deadline_of(&escrow);
                self.hear(&mut open, id, &Input::Sent { tranche, deadline }).await?;
            }
        }
        Ok(())
    }

    async fn check_room(&self, escrow: &Escrow, payee: String) -> Result<(), EscrowError> {
        let terms = escrow.terms().payload();
        let Some(room) = self.wallet.room_towards(&payee).await? else {
            return Err(EscrowError::NoDirectChannel { payee });
        };
        let (wanted, wanted_payments) = (terms.total().unwrap_or(Msat(u64::MAX)), terms.locks.len());
        if wanted > room.msat || wanted_payments > room.payments {
            return Err(EscrowError::NoRoom { room: room.msat, payments: room.payments, wanted, wanted_payments });
        }
        Ok(())
    }

    pub(super) async fn misconduct(&self, escrow: &Escrow) -> Result<Vec<Misconduct>, EscrowError> {
        let mut found = Vec::new();
        for tranche in escrow.unexplained().filter(|_| escrow.pays()) {
            let Some(lock) = escrow.terms().payload().locks.get(usize::from(tranche)) else { continue };
            let Some(receipt) = self.wallet.receipt(payment_hash(lock)).await? else {
                warn!(escrow = %escrow.terms().payload().id, tranche, "a payment arrived, and its receipt is not known");
                continue;
            };
            let secret = LockSecret::from_bytes(*receipt.reveal());
            let (terms, verdict) = (escrow.terms().clone(), escrow.verdict().cloned());
            found.push(Misconduct { terms, tranche, secret, verdict });
        }
        Ok(found)
    }

    pub(super) async fn is_direct(&self, escrow: &Escrow) -> Result<bool, EscrowError> {
        if escrow.is_bond() || !escrow.pays() {
            return Ok(true);
        }
        for (about, lock) in escrow.tranches().iter().zip(&escrow.terms().payload().locks) {
            let (State::Held { .. }, Some(invoice)) = (about.state, &about.invoice) else { continue };
            let payee = invoice::read(invoice)?.payee;
            if let Some(lock) = self.wallet.lock_of(payment_hash(lock)).await?
                && lock.peer != payee
            {
                error!(escrow = %escrow.terms().payload().id, through = lock.peer, "an escrow is not locked with its payee");
                return Ok(false);
            }
        }
        Ok(true)
    }
}
