//! Hold invoices: money that has come, and stays neither here nor there until its preimage is given or it goes back.
//!
//! ldk-node fixes how many blocks a payment to it may at least be held at 42, of which 39 are kept for closing a channel.
//! The invoice is therefore taken apart, given a longer delta, and signed again with the node's key: a payer that keeps to
//! a delta of `n` leaves `n - 38` blocks. Lightning itself enforces 42 alone, so a payer that does not keep to it may leave
//! as few as four: the deadline that counts is that of [`super::event::WalletEvent::PaymentHeld`], and whoever needs more
//! time cancels. Payers allow 1008 blocks on the whole way, and each hop takes its own.
//!
//! A payment is settled when [`super::event::WalletEvent::PaymentReceived`] says so, and not before: a claim that comes
//! too late changes nothing, and Lightning does not say that it was. What is below [`super::invoice::DUST`] cannot be
//! enforced on-chain.

use consortium_protocol::Msat;
use ldk_node::bitcoin::secp256k1::{Secp256k1, SecretKey};
use ldk_node::lightning::ln::channelmanager::PaymentId;
use ldk_node::lightning_invoice::{Bolt11Invoice, MinFinalCltvExpiryDelta, RawTaggedField, TaggedField};
use ldk_node::payment::{PaymentDetails, PaymentDirection, PaymentStatus};

use super::error::{self, WalletError};
use super::hash::{PaymentHash, Preimage};
use super::invoice::{self, InvoiceOrder, InvoiceView};
use super::records::Held;
use super::wallet::{Inner, LOCAL, Wallet};

/// Blocks that ldk-node keeps for itself of a hold's delta.
pub const KEPT_BLOCKS: u16 = 39;
/// The smallest delta.
pub const SMALLEST_DELTA: u16 = 42;
/// The largest delta: with it some hops still fit in the 1008 blocks that payers allow.
pub const LARGEST_DELTA: u16 = 900;

impl Wallet {
    /// An invoice on a hash whose preimage this wallet need not know. What is paid to it is held: for `delta` - 38 blocks
    /// at least, if the payer keeps to the invoice, and longer if it allows; its deadline tells. May be called again until it is paid.
    ///
    /// # Errors
    /// When the order makes no sense, has no amount, or the hash was used before.
    pub async fn hold_invoice(
        &self,
        order: InvoiceOrder,
        hash: PaymentHash,
        delta: u16,
    ) -> Result<InvoiceView, WalletError> {
        self.ask("making a hold invoice", LOCAL, move |inner| {
            let description = order.check()?;
            let amount = check(&order, delta)?;
            if is_used(inner, hash)? {
                return Err(WalletError::Invalid(format!("the hash {hash} was used before: take a new one")));
            }
            let bolt11 = inner.node.bolt11_payment();
            let made = bolt11.receive_for_hash(amount.0, &description, order.expiry_s(), hash.into());
            let invoice = made.map_err(error::of("making a hold invoice"))?;
            invoice::issued(inner, &with_delta(invoice, delta, &inner.secret)?, &order, true)
        })
        .await
    }

    /// What is held, the most urgent first.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn holds(&self) -> Result<Vec<Held>, WalletError> {
        self.ask("listing what is held", LOCAL, |inner| inner.records.holds()).await
    }

    /// Gives the preimage of what is held, and so takes it. May be called again, also after a restart.
    ///
    /// # Errors
    /// [`WalletError::NotHeld`], or [`WalletError::HoldOver`] when the deadline has come.
    pub async fn settle(&self, preimage: Preimage) -> Result<(), WalletError> {
        self.ask("settling a payment", LOCAL, move |inner| settle(inner, &preimage)).await
    }

    /// Sends back what is held for a hash, and refuses what may still come for it. May be called again.
    ///
    /// # Errors
    /// [`WalletError::NotHeld`] when there is no invoice for the hash, or it is settled or being settled.
    pub async fn cancel(&self, hash: PaymentHash) -> Result<(), WalletError> {
        self.ask("cancelling a payment", LOCAL, move |inner| cancel(inner, hash)).await
    }
}

fn check(order: &InvoiceOrder, delta: u16) -> Result<Msat, WalletError> {
    if !(SMALLEST_DELTA..=LARGEST_DELTA).contains(&delta) {
        return Err(WalletError::Invalid(format!(
            "a payment may be held with a delta of {SMALLEST_DELTA} to {LARGEST_DELTA} blocks, not {delta}"
        )));
    }
    order.amount.ok_or_else(|| WalletError::Invalid("a hold invoice needs an amount".to_owned()))
}

/// Whether a hash stands for something else than an invoice like the one wanted, which nobody has paid.
fn is_used(inner: &Inner, hash: PaymentHash) -> Result<bool, WalletError> {
    let payment = inner.node.payment(&PaymentId(*hash.as_bytes()));
    let other = |payment: PaymentDetails| {
        (payment.direction, payment.status) != (PaymentDirection::Inbound, PaymentStatus::Pending)
    };
    Ok(payment.is_some_and(other) || inner.records.is_used(&hash)?)
}

fn find(inner: &Inner, hash: PaymentHash) -> Result<Held, WalletError> {
    let held = inner.records.holds()?.into_iter().find(|held| held.hash == hash);
    held.ok_or(WalletError::NotHeld(hash))
}

fn settle(inner: &Inner, preimage: &Preimage) -> Result<(), WalletError> {
    let hash = preimage.hash();
    let held = find(inner, hash)?;
    let (height, deadline) = (inner.height(), held.deadline);
    if height >= deadline {
        return Err(WalletError::HoldOver { hash, deadline, height });
    }
    // First noted, so that a hold being settled is not taken for expired.
    if !held.settling && !inner.records.move_hold(&hash, "held", "settling")? {
        return Err(WalletError::NotHeld(hash));
    }
    let preimage = ldk_node::lightning_types::payment::PaymentPreimage(*preimage.reveal());
    let claiming = inner.node.bolt11_payment().claim_for_hash(hash.into(), held.amount.0, preimage);
    claiming.map_err(|claiming| {
        // It may be tried again, or cancelled.
        match inner.records.move_hold(&hash, "settling", "held") {
            Ok(_) => error::of("settling a payment")(claiming),
            Err(error) => error,
        }
    })
}

fn cancel(inner: &Inner, hash: PaymentHash) -> Result<(), WalletError> {
    let held = inner.records.holds()?.into_iter().find(|held| held.hash == hash);
    match held {
        Some(held) if held.settling => return Err(WalletError::NotHeld(hash)),
        None if inner.records.is_settled(&hash)? => return Err(WalletError::NotHeld(hash)),
        None if !inner.records.invoice(&hash)?.is_some_and(|note| note.hold) => return Err(WalletError::NotHeld(hash)),
        _ => {}
    }
    // Done before it is noted: after a crash in between it is still held, and cancelled again.
    inner.node.bolt11_payment().fail_for_hash(hash.into()).map_err(error::of("cancelling a payment"))?;
    inner.records.cancel_hold(&hash)
}

/// The same invoice with another delta, signed again.
fn with_delta(invoice: Bolt11Invoice, delta: u16, secret: &SecretKey) -> Result<Bolt11Invoice, WalletError> {
    let (mut raw, _, _) = invoice.into_signed_raw().into_parts();
    let field = TaggedField::MinFinalCltvExpiryDelta(MinFinalCltvExpiryDelta(u64::from(delta)));
    raw.data
        .tagged_fields
        .retain(|field| !matches!(field, RawTaggedField::KnownSemantics(TaggedField::MinFinalCltvExpiryDelta(_))));
    raw.data.tagged_fields.push(RawTaggedField::KnownSemantics(field));
    let signed = raw.sign(|message| {
        Ok::<_, std::convert::Infallible>(Secp256k1::signing_only().sign_ecdsa_recoverable(message, secret))
    });
    let Ok(signed) = signed;
    Bolt11Invoice::from_signed(signed)
        .map_err(|error| WalletError::Invalid(format!("the hold invoice could not be made: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ldk_node::bitcoin::hashes::{Hash as _, sha256};
    use ldk_node::lightning_invoice::{Currency, InvoiceBuilder, PaymentSecret};

    #[test]
    fn a_longer_delta_is_signed_by_the_same_node() {
        let secret = SecretKey::from_slice(&[3; 32]).unwrap();
        let invoice = InvoiceBuilder::new(Currency::Regtest)
            .description("held".to_owned())
            .payment_hash(sha256::Hash::hash(&[1; 32]))
            .payment_secret(PaymentSecret([2; 32]))
            .amount_milli_satoshis(5_000)
            .current_timestamp()
            .min_final_cltv_expiry_delta(42)
            .build_signed(|message| Secp256k1::new().sign_ecdsa_recoverable(message, &secret))
            .unwrap();
        let longer = with_delta(invoice.clone(), 500, &secret).unwrap();
        assert_eq!(longer.min_final_cltv_expiry_delta(), 500);
        assert_eq!(longer.recover_payee_pub_key(), invoice.recover_payee_pub_key());
        assert_eq!(longer.payment_hash(), invoice.payment_hash());
        assert_eq!(longer.payment_secret(), invoice.payment_secret());
        // It is read back as it was written, signature included.
        assert_eq!(longer.to_string().parse::<Bolt11Invoice>().unwrap(), longer);
    }
}
