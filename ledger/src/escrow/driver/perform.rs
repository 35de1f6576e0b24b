//! What is done: by the wallet, and by those who carry messages. Nothing here harms if it is done twice.

use std::time::{Duration, Instant};

use consortium_protocol::wire::escrow::{EscrowId, EscrowMessage, EscrowTerms};
use consortium_protocol::{Hash, Signed};
use tracing::{debug, error, info, warn};

use super::hear::payment_hash;
use super::{EscrowError, Inner, Open, Post, now_ms};
use crate::accounts::Owner;
use crate::escrow::limits::DUST;
use crate::escrow::machine::{Action, Input, Word};
use crate::escrow::state::{Escrow, Role, State};
use crate::lightning::hold::KEPT_BLOCKS;
use crate::lightning::invoice::{InvoiceOrder, MAX_EXPIRY};
use crate::lightning::lookup::Fate;
use crate::lightning::pay::{OUTCOME, PayOrder, Way};
use crate::lightning::{PaymentHash, Preimage, WalletError, invoice};
use crate::payments::{Direction, Expected, Purpose};

/// Ten minutes, and what a block takes.
const BLOCK: Duration = Duration::from_secs(600);
/// What was sent is in a channel after this time, if the other side is there.
const IN_CHANNEL: Duration = Duration::from_secs(10);
/// Pause before what found no way is sent again.
const AGAIN: Duration = Duration::from_secs(2);
/// Blocks after its deadline at which dust, which no channel shows, counts as back if nothing was heard of it.
const DUST_OVER: u32 = 6;

/// What was seen of a payment that was noted as sent.
enum Seen {
    /// It is to be looked at again.
    Unclear,
    /// It is where it must be, or was sent again.
    Underway,
    /// It is in no channel and will not be.
    Lost,
}

/// Whether a payment was not sent for a reason that passes, or that says nothing of the payment.
fn passes(error: &WalletError) -> bool {
    !error.is_callers() || matches!(error, WalletError::Late { .. } | WalletError::Stopped)
}

impl Inner {
    /// Does one thing; gives what is heard of it at once.
    pub(super) async fn perform(&self, open: &mut Open, escrow: &Escrow, action: &Action) -> Option<Input> {
        let done = match action {
            Action::MakeInvoice { tranche } => self.make_invoice(escrow, *tranche).await,
            Action::Pay { tranche } => self.pay(open, escrow, *tranche).await,
            Action::Settle { tranche } => self.settle(escrow, *tranche).await,
            Action::Cancel { tranche } => self.cancel(escrow, *tranche).await,
            Action::Tell { to, word } => {
                if let Some(message) = self.message(escrow, *word)
                    && self.post.try_send(Post { to: *to, message }).is_err()
                {
                    debug!(escrow = %escrow.terms().payload().id, "a message is dropped, and said again later");
                }
                Ok(None)
            }
        };
        done.unwrap_or_else(|error| {
            warn!(escrow = %escrow.terms().payload().id, ?action, %error, "it will be tried again");
            None
        })
    }

    /// Says in the books for whom a tranche is, before it can move.
    async fn expect(&self, escrow: &Escrow, tranche: u8, direction: Direction) -> Result<(), EscrowError> {
        let Some(books) = self.settings.books.clone() else { return Ok(()) };
        let terms = escrow.terms().payload();
        let (Some(lock), Some(amount)) = (terms.locks.get(usize::from(tranche)), terms.amount(usize::from(tranche)))
        else {
            return Ok(());
        };
        let other = if direction == Direction::Incoming { terms.payer } else { terms.payee };
        let purpose = if escrow.is_bond() { Purpose::Bond } else { Purpose::Reward };
        let (hash, owner) = (Hash::from_bytes(*lock.as_bytes()), Owner::Peer(other));
        let note = format!("escrow {}, tranche {tranche}", terms.id);
        let expected = Expected { direction, hash, owner, amount, purpose, note };
        let booking = tokio::task::spawn_blocking(move || books.expect(&expected, now_ms()));
        Ok(booking.await.map_err(|_| EscrowError::Stopped)??)
    }

    async fn make_invoice(&self, escrow: &Escrow, tranche: u8) -> Result<Option<Input>, EscrowError> {
        let terms = escrow.terms().payload();
        let Some(hash) = hash_of(escrow, tranche) else { return Ok(None) };
        self.expect(escrow, tranche, Direction::Incoming).await?;
        let order = InvoiceOrder {
            amount: terms.amount(usize::from(tranche)),
            description: format!("escrow {}, tranche {tranche}", terms.id),
            expiry: (BLOCK * u32::from(terms.delta)).min(MAX_EXPIRY),
        };
        let made = self.wallet.hold_invoice(order, hash, terms.delta).await?;
        Ok(Some(Input::Invoice { tranche, invoice: made.invoice }))
    }

    async fn pay(&self, open: &mut Open, escrow: &Escrow, tranche: u8) -> Result<Option<Input>, EscrowError> {
        let Some((order, way)) = order_of(escrow, tranche) else { return Ok(None) };
        self.expect(escrow, tranche, Direction::Outgoing).await?;
        let invoice = order.invoice.clone();
        let deadline = self.deadline_of(escrow);
        match self.wallet.send(order, way).await {
            Ok(_) | Err(WalletError::OnItsWay(_) | WalletError::AlreadyPaid(_)) => {
                open.sent.insert((escrow.terms().payload().id, tranche), Some(Instant::now()));
                Ok(Some(Input::Sent { tranche, deadline }))
            }
            // Right after a start no peer is there yet. Nothing is sent then, and it is tried again.
            Err(error @ WalletError::NoRoute { .. }) if self.is_cut_off(&invoice, way).await? => Err(error.into()),
            Err(error) if passes(&error) => Err(error.into()),
            Err(error) => {
                warn!(escrow = %escrow.terms().payload().id, tranche, %error, "a tranche could not be paid");
                Ok(Some(Input::Failed { tranche }))
            }
        }
    }

    /// The height from which on the payee's node sends back by itself what is sent now.
    pub(super) fn deadline_of(&self, escrow: &Escrow) -> u32 {
        let window = escrow.terms().payload().delta.saturating_sub(KEPT_BLOCKS);
        self.wallet.height().saturating_add(u32::from(window))
    }

    /// Whether what cannot be sent now could be at another time. A bond is one payment, so nothing else is locked while
    /// there is no way for it.
    async fn is_cut_off(&self, text: &str, way: Way) -> Result<bool, EscrowError> {
        Ok(match way {
            Way::Direct => self.wallet.room_towards(&invoice::read(text)?.payee).await?.is_none(),
            Way::Any => true,
        })
    }

    async fn settle(&self, escrow: &Escrow, tranche: u8) -> Result<Option<Input>, EscrowError> {
        let (Some(preimage), Some(hash)) = (self.preimage(escrow, tranche), hash_of(escrow, tranche)) else {
            error!(escrow = %escrow.terms().payload().id, tranche, "a preimage does not open its tranche");
            return Ok(None);
        };
        match self.wallet.settle(preimage).await {
            // Its end, or that it is settled, stands in the wallet's records.
            Ok(()) | Err(WalletError::NotHeld(_)) => Ok(None),
            // It was to be claimed and time ran out: if no channel has it any more, and nothing says that it was received,
            // it went back. Should that be said later after all, it counts.
            Err(WalletError::HoldOver { .. }) if self.wallet.lock_of(hash).await?.is_none() => {
                Ok(Some(Input::Over { tranche }))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn preimage(&self, escrow: &Escrow, tranche: u8) -> Option<Preimage> {
        let terms = escrow.terms().payload();
        let secret = match escrow.role() {
            Role::Validator => Some(self.secrets.preimage(terms.id, tranche)),
            _ => {
                let sealed = escrow.tranches().get(usize::from(tranche))?.sealed?;
                self.secrets.unseal(terms, tranche, &sealed)
            }
        };
        secret.map(|secret| Preimage::from_bytes(*secret.reveal()))
    }

    /// Sends a tranche back. It is gone when no channel has it any more: until then a crash, or an absent peer, can still
    /// bring it back.
    async fn cancel(&self, escrow: &Escrow, tranche: u8) -> Result<Option<Input>, EscrowError> {
        let Some(hash) = hash_of(escrow, tranche) else { return Ok(None) };
        match self.wallet.cancel(hash).await {
            Ok(()) | Err(WalletError::NotHeld(_)) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.wallet.lock_of(hash).await?.is_none().then_some(Input::Gone { tranche }))
    }

    /// The message that says something; none if there is nothing to say it with.
    fn message(&self, escrow: &Escrow, word: Word) -> Option<EscrowMessage> {
        let (signed, terms): (&Signed<EscrowTerms>, _) = (escrow.terms(), escrow.terms().digest());
        Some(match word {
            Word::Terms => EscrowMessage::Terms(signed.clone()),
            Word::Invoices => {
                let invoices = escrow.tranches().iter().map(|tranche| tranche.invoice.clone());
                EscrowMessage::Invoices { terms, invoices: invoices.collect::<Option<_>>()? }
            }
            Word::Held { deadline } => EscrowMessage::Held { terms, deadline },
            Word::Verdict => EscrowMessage::Verdict { terms: signed.clone(), verdict: escrow.verdict()?.clone() },
            Word::Release => {
                let verdict = escrow.verdict()?.clone();
                let id = signed.payload().id;
                let earned = escrow.states().map(|(tranche, _)| tranche).filter(|tranche| escrow.gives(*tranche));
                let secrets = earned.map(|tranche| self.secrets.preimage(id, tranche)).collect();
                EscrowMessage::Release { terms: signed.clone(), verdict, secrets }
            }
            Word::Heard => EscrowMessage::Heard { terms },
            Word::GivenUp => EscrowMessage::GivenUp { terms },
        })
    }

    /// Payments from here whose time is over and that no channel has any more, without a word about their end: a crash can
    /// leave such a one in ldk-node's list for ever. Should it have arrived after all, that will count.
    pub(super) async fn over_unheard(&self, escrow: &Escrow) -> Result<Vec<Input>, EscrowError> {
        let mut over = Vec::new();
        for (tranche, about) in (0..=u8::MAX).zip(escrow.tranches()).filter(|_| escrow.pays()) {
            let (State::Held { deadline }, Some(hash)) = (about.state, hash_of(escrow, tranche)) else { continue };
            let last = if about.amount > DUST { deadline } else { deadline.saturating_add(DUST_OVER) };
            if self.wallet.height() >= last
                && self.wallet.fate(hash).await? != Fate::Sent
                && self.wallet.lock_of(hash).await?.is_none()
            {
                over.push(Input::Failed { tranche });
            }
        }
        Ok(over)
    }

    /// Sends again what was noted as sent and is in no channel, though its peer is there: a crash may have come between
    /// LDK's list of payments and its channels. Looked at once for each tranche and start of the program. Dust is not
    /// shown in channels, and so is not sent again.
    pub(super) async fn send_lost(&self, open: &mut Open, id: EscrowId, tells: bool) {
        let Some(escrow) = open.escrows.get(&id).filter(|escrow| escrow.pays()).cloned() else { return };
        // What another wallet sent may still arrive: only its deadline ends it.
        if !matches!(self.on_log(move |log| log.is_elsewhere(id)).await, Ok(false)) {
            return;
        }
        for (tranche, about) in (0..=u8::MAX).zip(escrow.tranches()) {
            if !matches!(about.state, State::Held { .. }) || about.amount <= DUST {
                continue;
            }
            let since = open.sent.entry((id, tranche)).or_insert_with(|| Some(Instant::now()));
            if since.is_none_or(|since| since.elapsed() < AGAIN) {
                continue;
            }
            let settled_in = since.is_some_and(|since| since.elapsed() >= IN_CHANNEL);
            match self.send_if_lost(&escrow, tranche, settled_in).await {
                Ok(Seen::Underway) => {
                    open.sent.insert((id, tranche), None);
                }
                Ok(Seen::Unclear) => {}
                Ok(Seen::Lost) => {
                    open.sent.insert((id, tranche), None);
                    if let Err(error) = self.turn(open, id, Input::Failed { tranche }, tells).await {
                        warn!(escrow = %id, tranche, %error, "that a payment is lost could not be noted");
                    }
                }
                Err(error) => warn!(escrow = %id, tranche, %error, "a payment could not be sent again"),
            }
        }
    }

    /// Looks for a payment, and sends it again if it is in no channel and there is still something to send it for.
    async fn send_if_lost(&self, escrow: &Escrow, tranche: u8, settled_in: bool) -> Result<Seen, EscrowError> {
        let (Some((order, way)), Some(hash)) = (order_of(escrow, tranche), hash_of(escrow, tranche)) else {
            return Ok(Seen::Underway);
        };
        let failed = match self.wallet.fate(hash).await? {
            Fate::Sent => return Ok(Seen::Underway),
            // Of others than these the machine hears.
            Fate::Failed if !escrow.may_send_again(self.wallet.height()) => return Ok(Seen::Underway),
            Fate::Failed => true,
            Fate::Unsent | Fate::OnItsWay => false,
        };
        if self.wallet.lock_of(hash).await?.is_some() {
            return Ok(Seen::Underway);
        }
        if !failed && !settled_in {
            return Ok(Seen::Unclear);
        }
        if escrow.is_past_sending(tranche, self.wallet.height()) {
            return Ok(Seen::Lost);
        }
        let invoice = order.invoice.clone();
        let peers_are_back = match way {
            Way::Direct => !self.is_cut_off(&order.invoice, way).await?,
            Way::Any => self.wallet.status().await?.usable_channels > 0,
        };
        if !peers_are_back {
            return Ok(Seen::Unclear);
        }
        match self.wallet.resend(order, way).await {
            Ok(_) => {
                info!(escrow = %escrow.terms().payload().id, tranche, "a payment that a crash cut off is sent again");
            }
            Err(WalletError::OnItsWay(_) | WalletError::AlreadyPaid(_)) => {}
            Err(error) if passes(&error) => return Err(error.into()),
            Err(error @ WalletError::NoRoute { .. })
                if escrow.may_send_again(self.wallet.height()) || self.is_cut_off(&invoice, way).await? =>
            {
                return Err(error.into());
            }
            Err(error) => {
                warn!(escrow = %escrow.terms().payload().id, tranche, %error, "a lost payment cannot be sent again");
                return Ok(Seen::Lost);
            }
        }
        Ok(Seen::Underway)
    }
}

fn hash_of(escrow: &Escrow, tranche: u8) -> Option<PaymentHash> {
    escrow.terms().payload().locks.get(usize::from(tranche)).map(payment_hash)
}

/// How a tranche is paid: work through a channel with the payee alone; a bond on any way, for whoever knows its preimage
/// is its payee anyhow.
fn order_of(escrow: &Escrow, tranche: u8) -> Option<(PayOrder, Way)> {
    let invoice = escrow.tranches().get(usize::from(tranche))?.invoice.clone()?;
    let way = if escrow.is_bond() { Way::Any } else { Way::Direct };
    Some((PayOrder { invoice, amount: None, max_fee: None, within: OUTCOME }, way))
}
