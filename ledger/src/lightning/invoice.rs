//! Invoices of this wallet, and reading those of others.

use std::time::Duration;

use consortium_protocol::Msat;
use ldk_node::NodeError;
use ldk_node::bitcoin::hashes::Hash as _;
use ldk_node::lightning_invoice::{
    Bolt11Invoice, Bolt11InvoiceDescription, Bolt11InvoiceDescriptionRef, Currency, Description,
};
use serde::{Deserialize, Serialize};

use super::balance;
use super::error::{self, WalletError, sats};
use super::hash::PaymentHash;
use super::records::InvoiceNote;
use super::settings::Network;
use super::wallet::{Inner, LOCAL, Wallet, now_ms};

/// Longest invoice read, in bytes; those in use have a few hundred.
pub const MAX_INVOICE: usize = 7_089;
/// Longest description, in bytes, as BOLT 11 has it.
pub const MAX_DESCRIPTION: usize = 639;
/// How long an invoice is good for by default.
pub const EXPIRY: Duration = Duration::from_secs(3600);
/// How long an invoice is good for at most.
pub const MAX_EXPIRY: Duration = Duration::from_secs(30 * 24 * 3600);
/// Time for a provider of liquidity: to be reached, and to answer twice.
const PROVIDER: Duration = Duration::from_secs(25);
/// An amount below this is dust: held in a channel that is closed meanwhile, it is lost to fees.
pub const DUST: Msat = Msat(354_000);

/// What an invoice is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvoiceOrder {
    /// How much; the payer chooses if none.
    pub amount: Option<Msat>,
    /// What for; whoever gets the invoice reads it.
    pub description: String,
    /// How long it is good for.
    pub expiry: Duration,
}

/// An invoice of this wallet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvoiceView {
    /// The invoice, to be given to the payer.
    pub invoice: String,
    /// The payment's name.
    pub hash: PaymentHash,
    /// How much.
    pub amount: Option<Msat>,
    /// It cannot be paid from then on, in seconds since 1970.
    pub expires_s: u64,
    /// What may keep it from being paid, in words.
    pub warning: Option<String>,
}

/// What an invoice says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvoiceFacts {
    /// The payment's name.
    pub hash: PaymentHash,
    /// The public key of the payee.
    pub payee: String,
    /// How much; the payer chooses if none.
    pub amount: Option<Msat>,
    /// What for, in the payee's words.
    pub description: String,
    /// It cannot be paid from then on, in seconds since 1970.
    pub expires_s: u64,
}

impl InvoiceOrder {
    pub(super) fn check(&self) -> Result<Bolt11InvoiceDescription, WalletError> {
        let bad = |why: String| Err(WalletError::Invalid(why));
        if self.amount == Some(Msat::ZERO) {
            return bad("an invoice of nothing cannot be paid; leave the amount out to let the payer choose".to_owned());
        }
        if self.expiry.as_secs() == 0 || self.expiry > MAX_EXPIRY {
            return bad(format!("an invoice may be good for 1 to {} seconds", MAX_EXPIRY.as_secs()));
        }
        match Description::new(self.description.clone()) {
            Ok(description) => Ok(Bolt11InvoiceDescription::Direct(description)),
            Err(_) => bad(format!("the description has more than {MAX_DESCRIPTION} bytes")),
        }
    }

    /// Whole seconds, as checked.
    pub(super) fn expiry_s(&self) -> u32 {
        u32::try_from(self.expiry.as_secs()).unwrap_or(u32::MAX)
    }
}

impl Wallet {
    /// An invoice; what is paid to it is received at once. Where the wallet could not receive it, and there is a provider
    /// of liquidity, it opens a channel when the invoice is paid, and keeps its fee.
    ///
    /// # Errors
    /// When the order makes no sense.
    pub async fn invoice(&self, order: InvoiceOrder) -> Result<InvoiceView, WalletError> {
        self.ask("making an invoice", LOCAL + PROVIDER, move |inner| {
            let description = order.check()?;
            let mut warning = None;
            match just_in_time(inner, &order, &description) {
                Ok(None) => {}
                Ok(Some(view)) => return Ok(view),
                Err(why) => warning = Some(why),
            }
            let bolt11 = inner.node.bolt11_payment();
            let made = match order.amount {
                Some(amount) => bolt11.receive(amount.0, &description, order.expiry_s()),
                None => bolt11.receive_variable_amount(&description, order.expiry_s()),
            };
            let invoice = made.map_err(error::of("making an invoice"))?;
            let view = issued(inner, &invoice, &order, false)?;
            Ok(InvoiceView { warning: warning.or(view.warning), ..view })
        })
        .await
    }
}

/// An invoice that the provider of liquidity makes receivable; none where it is not needed, or there is none.
///
/// # Errors
/// Why the provider does not, in words.
fn just_in_time(
    inner: &Inner,
    order: &InvoiceOrder,
    description: &Bolt11InvoiceDescription,
) -> Result<Option<InvoiceView>, String> {
    let (Some(lsp), Some(amount)) = (&inner.settings.lsp, order.amount) else { return Ok(None) };
    let receivable = balance::of(inner).map_err(|error| error.to_string())?.receivable;
    if amount <= receivable {
        return Ok(None);
    }
    let most = lsp.max_fee.min(Msat(amount.0 / 2));
    let can = || format!("this wallet can receive {} now, and its provider of liquidity", sats(receivable));
    let bolt11 = inner.node.bolt11_payment();
    let made = bolt11.receive_via_jit_channel(amount.0, description, order.expiry_s(), Some(most.0));
    let invoice = made.map_err(|error| match error {
        NodeError::LiquidityFeeTooHigh => {
            format!(
                "{} asks for more than {} to open a channel; raise --lsp-max-fee, or ask for more at once",
                can(),
                sats(most)
            )
        }
        NodeError::ConnectionFailed => format!("{} cannot be reached; is the address in --lsp right?", can()),
        _ => format!("{} does not open a channel for this amount", can()),
    })?;
    let view = issued(inner, &invoice, order, false).map_err(|error| error.to_string())?;
    let warning = Some(format!("{} opens a channel when it is paid, and keeps up to {} of it", can(), sats(most)));
    Ok(Some(InvoiceView { amount: Some(amount), warning, ..view }))
}

/// Notes an invoice that was made, and shows it.
pub(super) fn issued(
    inner: &Inner,
    invoice: &Bolt11Invoice,
    order: &InvoiceOrder,
    hold: bool,
) -> Result<InvoiceView, WalletError> {
    let created_s = now_ms() / 1000;
    let facts = facts(invoice);
    let note = InvoiceNote { description: order.description.clone(), expires_s: facts.expires_s, hold };
    inner.records.note_invoice(&facts.hash, created_s, &note)?;
    Ok(InvoiceView {
        invoice: invoice.to_string(),
        hash: facts.hash,
        amount: facts.amount,
        expires_s: facts.expires_s,
        warning: warning(balance::of(inner)?.receivable, facts.amount),
    })
}

fn warning(receivable: Msat, amount: Option<Msat>) -> Option<String> {
    let how = "open a channel and spend from it, or have a peer open one to this node";
    match amount {
        _ if receivable == Msat::ZERO => Some(format!("this wallet can receive nothing now: {how}")),
        Some(amount) if amount > receivable => {
            Some(format!("this wallet can receive {} at most now: {how}", sats(receivable)))
        }
        _ => None,
    }
}

/// What an invoice says.
pub(super) fn facts(invoice: &Bolt11Invoice) -> InvoiceFacts {
    let description = match invoice.description() {
        Bolt11InvoiceDescriptionRef::Direct(text) => text.to_string(),
        Bolt11InvoiceDescriptionRef::Hash(hash) => format!("(described elsewhere: {})", hash.0),
    };
    InvoiceFacts {
        hash: PaymentHash::from_bytes(invoice.payment_hash().to_byte_array()),
        payee: invoice.recover_payee_pub_key().to_string(),
        amount: invoice.amount_milli_satoshis().map(Msat),
        description,
        expires_s: invoice.expires_at().map_or(u64::MAX, |at| at.as_secs()),
    }
}

/// Reads an invoice of any network; with or without `lightning:` before it.
///
/// # Errors
/// [`WalletError::Invalid`] when it is none.
pub fn read(text: &str) -> Result<InvoiceFacts, WalletError> {
    Ok(facts(&parse(text)?))
}

pub(super) fn parse(text: &str) -> Result<Bolt11Invoice, WalletError> {
    let text = text.trim();
    let bare = match text.get(..10) {
        Some(scheme) if scheme.eq_ignore_ascii_case("lightning:") => &text[10..],
        _ => text,
    };
    if bare.len() > MAX_INVOICE {
        return Err(WalletError::Invalid("this is too long for an invoice".to_owned()));
    }
    bare.parse().map_err(|_| WalletError::Invalid("this is no Lightning invoice (BOLT 11)".to_owned()))
}

/// Refuses an invoice of another network.
pub(super) fn check_network(invoice: &Bolt11Invoice, network: Network) -> Result<(), WalletError> {
    let expected = match network {
        Network::Mainnet => Currency::Bitcoin,
        Network::Testnet => Currency::BitcoinTestnet,
        Network::Signet => Currency::Signet,
        Network::Regtest => Currency::Regtest,
    };
    match invoice.currency() == expected {
        true => Ok(()),
        false => Err(WalletError::Invalid(format!("the invoice is not of {network}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An example of BOLT 11: "1 cup coffee", 2500 µBTC, one minute, mainnet.
    const COFFEE: &str = "lnbc2500u1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsxqzpu9qrsgquk0rl77nj30yxdy8j9vdx85fkpmdla2087ne0xh8nhedh8w27kyke0lp53ut353s06fv3qfegext0eh0ymjpf39tuven09sam30g4vgpfna3rh";

    #[test]
    fn an_invoice_is_read() {
        for text in [COFFEE.to_owned(), format!(" lightning:{COFFEE}\n"), format!("LIGHTNING:{COFFEE}")] {
            let facts = read(&text).unwrap();
            assert_eq!(facts.description, "1 cup coffee");
            assert_eq!(facts.amount, Some(Msat(250_000_000)));
            assert_eq!(facts.expires_s, 1_496_314_658 + 60);
            assert_eq!(facts.payee, "03e7156ae33b0a208d0744199163177e909e80176e55d97a2f221ede0f934dd9ad");
        }
        assert!(check_network(&parse(COFFEE).unwrap(), Network::Mainnet).is_ok());
        assert!(check_network(&parse(COFFEE).unwrap(), Network::Regtest).is_err());
        for bad in ["", "lightning:", "lnbc1", &COFFEE[..COFFEE.len() - 1], &"l".repeat(10_000), "😀😀😀😀"] {
            assert!(read(bad).is_err(), "{bad:.20}");
        }
    }

    #[test]
    fn orders_are_checked() {
        let order = InvoiceOrder { amount: None, description: "x".repeat(639), expiry: EXPIRY };
        assert!(order.check().is_ok());
        assert!(InvoiceOrder { description: "x".repeat(640), ..order.clone() }.check().is_err());
        assert!(InvoiceOrder { amount: Some(Msat::ZERO), ..order.clone() }.check().is_err());
        assert!(InvoiceOrder { expiry: Duration::ZERO, ..order.clone() }.check().is_err());
        assert!(InvoiceOrder { expiry: MAX_EXPIRY * 2, ..order }.check().is_err());
    }

    #[test]
    fn what_cannot_be_received_is_said() {
        assert!(warning(Msat::ZERO, None).is_some());
        assert!(warning(Msat(10), Some(Msat(11))).is_some());
        assert_eq!(warning(Msat(10), Some(Msat(10))), None);
    }
}
