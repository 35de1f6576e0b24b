//! The till: where a gateway's customers pay over Lightning, for credit that they spend request by request.
//!
//! ```text
//! ask      an invoice and a macaroon for it: of a new token, or for credit of an account that there is
//! admit    what a credential is good for; how often it may be used
//! refund   credit back to who paid it
//! tend     invoices that were never paid are forgotten, refunds that a crash interrupted are brought to an end
//! cashier  what the till needs of a wallet
//! ```
//!
//! The ledger knows tokens and accounts ([`consortium_ledger::l402`]), [`crate::billing`] reserves and charges, and
//! `bookkeeper` books what was paid; the till moves no money in the books by itself.
//!
//! # The gateway is a custodian
//! Credit that is not spent yet is the customer's money in the node's keeping. It is bounded, for each account and for all
//! together ([`TillSettings`]): nothing more is asked for once that is reached, and what was asked for before may still be paid.
//! A customer can lose, at most, what is on the account, if the node's operator keeps it or
//! loses the ledger. The customer takes it out again at any time, less the fees of its way. Preimage and macaroon together
//! are money: whoever gets hold of both spends the credit. They go over the wire as they are, so beyond one's own machine
//! the API belongs behind TLS.

use std::sync::{Arc, Mutex};

use std::collections::BTreeSet;

use consortium_ledger::ledger::{Ledger, LedgerError};
use consortium_protocol::hash::Hash;
use consortium_protocol::msat::Msat;
use tokio_util::sync::CancellationToken;

mod admit;
mod ask;
mod cashier;
mod refund;
mod tend;

pub use admit::AdmitError;
pub use ask::{AskError, Request};
pub use cashier::{Cashier, CashierError, Invoice, Outcome, Reading};
pub use refund::{RefundError, Refunded, largest};

use crate::buckets::{Buckets, Pace};

/// Credit that is sold at a time by default.
pub const BUNDLE: Msat = Msat(1_000_000);
/// Credit that an account may have by default.
pub const MAX_CREDIT: Msat = Msat(100_000_000);
/// Credit that all accounts together may have by default.
pub const MAX_CUSTODY: Msat = Msat(1_000_000_000);

/// Credentials with limits of how often that are told apart.
const MAX_RATES: usize = 4096;
/// How often a token may be used, whatever its caveats say.
const USE: Pace = Pace { burst: 1200, per_second: 20.0 };

/// What is sold, and how much of others' money is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TillSettings {
    /// Whoever has no credential is asked to pay; otherwise only accounts that there are can be topped up.
    pub open_to_all: bool,
    /// Credit that is sold at a time, unless a request needs more.
    pub bundle: Msat,
    /// Credit that an account may have.
    pub max_credit: Msat,
    /// Credit that all accounts together may have.
    pub max_custody: Msat,
}

impl Default for TillSettings {
    fn default() -> Self {
        Self { open_to_all: false, bundle: BUNDLE, max_credit: MAX_CREDIT, max_custody: MAX_CUSTODY }
    }
}

/// Takes and gives back customers' money. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Till {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    ledger: Ledger,
    cashier: Arc<dyn Cashier>,
    settings: TillSettings,
    /// How often credentials were used, and how often credit was taken out.
    rates: Buckets<Hash>,
    /// One invoice is made at a time, so that the bounds hold.
    asking: tokio::sync::Mutex<()>,
    /// Refunds that a task of this process is busy with.
    refunding: Mutex<BTreeSet<Hash>>,
}

impl Till {
    /// A till over a ledger and a wallet, tended until `stop`.
    #[must_use]
    pub fn open(ledger: Ledger, cashier: Arc<dyn Cashier>, settings: TillSettings, stop: CancellationToken) -> Self {
        let inner = Inner {
            ledger,
            cashier,
            settings,
            rates: Buckets::of_at_most(MAX_RATES),
            asking: tokio::sync::Mutex::default(),
            refunding: Mutex::default(),
        };
        let till = Self { inner: Arc::new(inner) };
        tokio::spawn(till.clone().tend(stop));
        till
    }

    /// Whether whoever has no credential is asked to pay.
    #[must_use]
    pub fn is_open_to_all(&self) -> bool {
        self.inner.settings.open_to_all
    }

    /// What is sold, and how much of others' money is kept.
    #[must_use]
    pub fn settings(&self) -> &TillSettings {
        &self.inner.settings
    }

    /// Does something with the ledger, on a thread made for waiting; none when the node is shutting down.
    async fn books<T: Send + 'static>(&self, work: impl FnOnce(&Ledger) -> T + Send + 'static) -> Option<T> {
        let ledger = self.inner.ledger.clone();
        tokio::task::spawn_blocking(move || work(&ledger)).await.ok()
    }
}

/// What stops anything at the till that is nobody's fault but the node's.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The wallet cannot be used.
    #[error(transparent)]
    Wallet(#[from] CashierError),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    Closed,
}
