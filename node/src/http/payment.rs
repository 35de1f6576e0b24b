//! Who pays for a completion, and the 402 of those who cannot yet.

use consortium_ledger::api_keys::KeyId;
use consortium_ledger::l402::terms::Capability;
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::job::JobRequest;

use super::error::ApiError;
use super::guard::Asking;
use super::{AppState, Shared};
use crate::billing::{Bill, BillingError, JobAccount, Offer, Payer};
use crate::till::{AskError, Till};

impl Shared {
    /// The till, where whoever has no credential is asked to pay.
    pub(super) fn selling(&self) -> Option<&Till> {
        self.app.till.as_ref().filter(|till| till.is_open_to_all())
    }

    /// Who pays for what somebody asks for.
    pub(super) fn payer(&self, asking: &Asking) -> Payer {
        match asking.key() {
            Some(key) => Payer::Key { key: key.clone(), budgets: asking.budgets().to_vec() },
            None if asking.is_operator() || self.selling().is_none() => Payer::Own,
            None => Payer::Nobody,
        }
    }
}

/// Opens the account of a job, if its payer may have it and can pay.
///
/// # Errors
/// 402 with an invoice where paying helps; 403 and 429 by the caveats of a credential; what the job would fail with.
pub(super) async fn open(
    state: &AppState,
    asking: &Asking,
    request: &JobRequest,
) -> Result<(JobAccount, Bill), ApiError> {
    asking.allows(Capability::Infer)?;
    if !asking.allows_model(&request.model) {
        return Err(ApiError::not_allowed("use this model"));
    }
    if let (Some(till), Some(account), Some(terms)) = (&state.app.till, asking.key(), asking.terms()) {
        till.count(account, terms).map_err(ApiError::too_often)?;
    }
    match state.app.billing.open(&state.payer(asking), request).await {
        Err(BillingError::Insufficient { offer, free, reserved }) => {
            let Some(till) = &state.app.till else { return Err(ApiError::insufficient(&offer, free, reserved, None)) };
            Err(ask(till, asking, &offer, free, reserved).await)
        }
        opened => Ok(opened?),
    }
}

/// A 402: with an invoice for the account that asks, or for a new one where it has none that may be topped up.
async fn ask(till: &Till, asking: &Asking, offer: &Offer, free: i64, reserved: i64) -> ApiError {
    let account: Option<&KeyId> = asking.key().filter(|_| asking.is_whole());
    let lacking = match account {
        Some(_) => i128::from(offer.quote.total.0) - i128::from(free),
        None => i128::from(offer.quote.total.0),
    };
    let lacking = Msat(u64::try_from(lacking.max(0)).unwrap_or(u64::MAX));
    match till.ask(asking.caller(), account, lacking).await {
        Ok(request) => match account {
            Some(_) => ApiError::insufficient(offer, free, reserved, Some(&request)),
            None => ApiError::payment_required(offer, &request),
        },
        // There is no way to have so much credit: asking for less is all there is.
        Err(error @ AskError::AboveLimit { .. }) => {
            ApiError::insufficient(offer, free, reserved, None).because(&error.to_string())
        }
        Err(error) => error.into(),
    }
}
