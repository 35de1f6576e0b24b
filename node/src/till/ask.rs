//! Asking for money.

use std::net::IpAddr;
use std::time::Duration;

use consortium_ledger::LedgerError;
use consortium_ledger::api_keys::KeyId;
use consortium_ledger::l402::Challenge;
use consortium_ledger::l402::tokens::{MintError, Offer};
use consortium_protocol::msat::Msat;

use super::{Till, Trouble};
use crate::clock;
use crate::rpc::limit::one_of_many;

/// How long an invoice is good for.
const EXPIRY: Duration = Duration::from_secs(600);
/// How long a token is good for; each payment begins it anew.
const VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);

/// What somebody is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// As a header has it.
    pub challenge: Challenge,
    /// Whose credit it becomes.
    pub account: KeyId,
    /// How much.
    pub amount: Msat,
    /// The payment, 32 bytes in hexadecimal digits.
    pub payment_hash: String,
    /// Until when it can be paid, in seconds since 1970.
    pub expires_s: u64,
}

/// Why nobody can pay.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It would be more credit than an account may have.
    #[error("an account here may have {} msat of credit, and this would make it {}", limit.0, would_be.0)]
    AboveLimit {
        /// What it may have.
        limit: Msat,
        /// What it would have.
        would_be: Msat,
    },
    /// The node keeps as much money of others as it will.
    #[error("this node keeps as much credit for others as it will, and sells no more now")]
    AboveCustody,
    /// Too many invoices are unpaid.
    #[error("too many invoices are unpaid ({0}); pay one of them, or try again later")]
    Many(String),
    /// The account is not there any more.
    #[error("the account was closed")]
    NoAccount,
    /// Something else is in the way.
    #[error(transparent)]
    Trouble(#[from] Trouble),
}

impl From<MintError> for AskError {
    fn from(error: MintError) -> Self {
        match error {
            MintError::Ledger(LedgerError::UnknownKey(_)) => Self::NoAccount,
            MintError::Ledger(error) => Self::Trouble(error.into()),
            MintError::Full => Self::AboveCustody,
            other => Self::Many(other.to_string()),
        }
    }
}

impl Till {
    /// An invoice over what is lacking, or a bundle if that is more, in whole sats; for an account that there is, or a
    /// new one.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(&self, caller: IpAddr, account: Option<&KeyId>, lacking: Msat) -> Result<Request, AskError> {
        let bundle = self.settings().bundle.max(Msat(lacking.0.div_ceil(1000).saturating_mul(1000)));
        self.ask_for(caller, account, bundle, lacking).await
    }

    /// An invoice over so much, of which at least `lacking` is needed: what is above is left out where an account may not
    /// have so much.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask_for(
        &self,
        caller: IpAddr,
        account: Option<&KeyId>,
        wanted: Msat,
        lacking: Msat,
    ) -> Result<Request, AskError> {
        let _one_at_a_time = self.inner.asking.lock().await;
        // From this machine come the requests of a proxy that does not say whose they are: they are not all one customer's.
        let local = caller.to_canonical().is_loopback();
        let caller = if local { String::new() } else { one_of_many(caller).to_string() };
        let amount = self.allowed(&caller, account, wanted, lacking).await?;
        let what = "credit for completions at a Consortium node".to_owned();
        let made = self.inner.cashier.invoice(amount, what, EXPIRY).await.map_err(Trouble::from)?;
        let now_s = clock::since_epoch().as_secs();
        let offer = Offer {
            payment_hash: *made.hash.as_bytes(),
            amount,
            caller,
            invoice_until_s: made.expires_s,
            token_until_s: now_s.saturating_add(VALIDITY.as_secs()),
        };
        let account = account.cloned();
        let minted = self.books(move |ledger| ledger.l402_mint(account.as_ref(), &offer, now_s)).await;
        let (account, macaroon) = minted.ok_or(Trouble::Closed)??;
        Ok(Request {
            challenge: Challenge { macaroon: macaroon.to_text(), invoice: made.text },
            account,
            amount,
            payment_hash: made.hash.to_string(),
            expires_s: made.expires_s,
        })
    }

    /// How much of `wanted` may be sold now, before an invoice is made that nobody may get.
    async fn allowed(
        &self,
        caller: &str,
        account: Option<&KeyId>,
        wanted: Msat,
        lacking: Msat,
    ) -> Result<Msat, AskError> {
        let (caller, account, now_s) = (caller.to_owned(), account.cloned(), clock::since_epoch().as_secs());
        let looked = self.books(move |ledger| {
            ledger.l402_room(&caller, now_s)?;
            Ok::<_, MintError>(ledger.l402_custody(account.as_ref(), now_s)?)
        });
        let (of_account, of_all) = looked.await.ok_or(Trouble::Closed)??;
        let (limit, all) = (self.settings().max_credit, self.settings().max_custody);
        // Whole sats: many wallets pay nothing else.
        let room = limit.0.saturating_sub(of_account.0) / 1000 * 1000;
        let amount = Msat(wanted.0.min(room));
        if amount < lacking || amount == Msat::ZERO {
            let would_be = Msat(of_account.0.saturating_add(wanted.0));
            return Err(AskError::AboveLimit { limit, would_be });
        }
        match of_all.0.saturating_add(amount.0) > all.0 {
            true => Err(AskError::AboveCustody),
            false => Ok(amount),
        }
    }
}
