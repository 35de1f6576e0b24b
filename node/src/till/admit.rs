//! Letting in who has paid.

use std::time::{Duration, Instant};

use consortium_ledger::api_keys::KeyId;
use consortium_ledger::l402::header::HeaderError;
use consortium_ledger::l402::terms::Rate;
use consortium_ledger::l402::tokens::{Admission, Refusal, Verdict};
use consortium_ledger::l402::{Credential, Terms};
use consortium_protocol::hash::Hash;

use super::{Till, Trouble, USE};
use crate::buckets::Pace;
use crate::clock;

/// How long a payment that was made may take to be in the books: its payee hears of it a moment after its payer.
const ARRIVAL: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

/// Why somebody is not let in.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// What came is no credential.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The credential does not work.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Its payment is not in the books yet.
    #[error("the payment has been made and has not arrived here yet; try again in a moment")]
    NotArrived,
    /// Something else is in the way.
    #[error(transparent)]
    Trouble(#[from] Trouble),
}

impl Till {
    /// What the credential in the value of an `Authorization` header is good for.
    ///
    /// # Errors
    /// [`AdmitError`].
    pub async fn admit(&self, header: &str) -> Result<Admission, AdmitError> {
        let credential = Credential::parse(header)?;
        let give_up = Instant::now() + ARRIVAL;
        loop {
            let (shown, now_s) = (credential.clone(), clock::since_epoch().as_secs());
            let verdict = self.books(move |ledger| ledger.l402_admit(&shown, now_s)).await;
            match verdict.ok_or(Trouble::Closed)?.map_err(Trouble::from)? {
                Verdict::Admitted(admission) => return Ok(admission),
                Verdict::Refused(refusal) => return Err(refusal.into()),
                Verdict::Arriving if Instant::now() >= give_up => return Err(AdmitError::NotArrived),
                Verdict::Arriving => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Counts a request against the limits of how often: that of every token, and those of a credential's caveats.
    ///
    /// # Errors
    /// How long to wait.
    pub fn count(&self, account: &KeyId, terms: &Terms) -> Result<(), Duration> {
        let whose = Hash::of(format!("use of {account}").as_bytes());
        self.inner.rates.take(whose, 1, USE, Instant::now())?;
        terms.rates().iter().try_for_each(|rate| self.count_one(*rate))
    }

    fn count_one(&self, rate: Rate) -> Result<(), Duration> {
        if rate.per_minute == 0 {
            return Err(Duration::from_secs(60));
        }
        let pace = Pace { burst: rate.per_minute, per_second: f64::from(rate.per_minute) / 60.0 };
        self.inner.rates.take(rate.name, 1, pace, Instant::now())
    }
}
