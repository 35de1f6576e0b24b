//! What the till needs of a wallet.

use std::fmt::Debug;
use std::time::Duration;

use consortium_protocol::hash::Hash;
use consortium_protocol::msat::Msat;
use futures::future::BoxFuture;

/// An invoice of the node's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invoice {
    /// As it is given to the payer.
    pub text: String,
    /// Its payment.
    pub hash: Hash,
    /// Until when it can be paid, in seconds since 1970.
    pub expires_s: u64,
}

/// What an invoice of somebody says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Its payment.
    pub hash: Hash,
    /// How much it asks for, if it says so.
    pub amount: Option<Msat>,
    /// Until when it can be paid, in seconds since 1970.
    pub expires_s: u64,
}

/// How a payment that was sent ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It arrived.
    Sent,
    /// It did not and will not; why, in words for who wanted it.
    Failed(String),
    /// It may still arrive.
    OnItsWay,
}

/// A wallet that did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CashierError(pub String);

/// A wallet, as far as the till uses it.
pub trait Cashier: Send + Sync + Debug {
    /// Makes an invoice.
    fn invoice(&self, amount: Msat, what: String, expiry: Duration) -> BoxFuture<'_, Result<Invoice, CashierError>>;

    /// Reads an invoice of somebody.
    ///
    /// # Errors
    /// When it is none.
    fn read(&self, invoice: &str) -> Result<Reading, CashierError>;

    /// Pays an invoice and waits for the outcome, as long as it is worth while.
    fn pay(&self, invoice: String, max_fee: Msat) -> BoxFuture<'_, Outcome>;

    /// What became of a payment that was to be sent.
    fn fate(&self, hash: Hash) -> BoxFuture<'_, Result<Outcome, CashierError>>;

    /// Forgets an invoice that was not paid.
    fn forget(&self, hash: Hash) -> BoxFuture<'_, Result<(), CashierError>>;
}

#[cfg(feature = "lightning")]
mod wallet {
    use consortium_ledger::lightning::invoice::{self, InvoiceOrder};
    use consortium_ledger::lightning::lookup::Fate;
    use consortium_ledger::lightning::pay::{OUTCOME, PayOrder};
    use consortium_ledger::lightning::{PaymentHash, Wallet, WalletError};

    use super::*;

    fn refused(error: WalletError) -> CashierError {
        CashierError(error.to_string())
    }

    fn hash(hash: &PaymentHash) -> Hash {
        Hash::from_bytes(*hash.as_bytes())
    }

    async fn outcome(wallet: &Wallet, name: PaymentHash, why: String) -> Result<Outcome, CashierError> {
        Ok(match wallet.fate(name).await.map_err(refused)? {
            Fate::Sent => Outcome::Sent,
            Fate::OnItsWay => Outcome::OnItsWay,
            Fate::Unsent | Fate::Failed => Outcome::Failed(why),
        })
    }

    impl Cashier for Wallet {
        fn invoice(
            &self,
            amount: Msat,
            what: String,
            expiry: Duration,
        ) -> BoxFuture<'_, Result<Invoice, CashierError>> {
            let order = InvoiceOrder { amount: Some(amount), description: what, expiry };
            Box::pin(async move {
                let made = Wallet::invoice(self, order).await.map_err(refused)?;
                Ok(Invoice { hash: hash(&made.hash), text: made.invoice, expires_s: made.expires_s })
            })
        }

        fn read(&self, text: &str) -> Result<Reading, CashierError> {
            let facts = invoice::read(text).map_err(refused)?;
            Ok(Reading { hash: hash(&facts.hash), amount: facts.amount, expires_s: facts.expires_s })
        }

        fn pay(&self, text: String, max_fee: Msat) -> BoxFuture<'_, Outcome> {
            Box::pin(async move {
                let Ok(facts) = invoice::read(&text) else {
                    return Outcome::Failed("the invoice cannot be read".to_owned());
                };
                let order = PayOrder { invoice: text, amount: None, max_fee: Some(max_fee), within: OUTCOME };
                match Wallet::pay(self, order).await {
                    Ok(_) | Err(WalletError::AlreadyPaid(_)) => Outcome::Sent,
                    // The thread that sends it may still be at it.
                    Err(WalletError::OnItsWay(_) | WalletError::Late { .. } | WalletError::Stopped) => {
                        Outcome::OnItsWay
                    }
                    Err(error) => {
                        let known = outcome(self, facts.hash, error.to_string()).await;
                        known.unwrap_or(Outcome::OnItsWay)
                    }
                }
            })
        }

        fn fate(&self, hash: Hash) -> BoxFuture<'_, Result<Outcome, CashierError>> {
            let name = PaymentHash::from_bytes(*hash.as_bytes());
            Box::pin(outcome(self, name, "it was not sent".to_owned()))
        }

        fn forget(&self, hash: Hash) -> BoxFuture<'_, Result<(), CashierError>> {
            let name = PaymentHash::from_bytes(*hash.as_bytes());
            Box::pin(async move { self.forget_invoice(name).await.map_err(refused) })
        }
    }
}
