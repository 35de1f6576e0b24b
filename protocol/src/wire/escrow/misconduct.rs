//! Preimages that were used without a verdict.

use serde::{Deserialize, Serialize};

use super::{EscrowTerms, EscrowVerdict, LockSecret, check_verdict};
use crate::envelope::{ENVELOPE_BYTES, Invalid, Payload as _, Signed};
use crate::wire::Message;

/// Evidence that a tranche was opened although its validator did not give it out: the terms, by which the validator
/// alone knew the preimage, and the preimage, which the payer got when it was used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Misconduct {
    /// The terms, signed by the validator.
    pub terms: Signed<EscrowTerms>,
    /// The tranche that was opened.
    pub tranche: u8,
    /// What opened it. It was used, and so is secret no longer.
    pub secret: LockSecret,
    /// The verdict, if the payer has one. It does not give out the tranche.
    pub verdict: Option<Signed<EscrowVerdict>>,
}

/// How much evidence weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    /// The validator signed that the tranche is not earned, and it was opened: that is proof.
    Contradicted,
    /// No verdict is known. The validator is guilty unless it shows one ([`Misconduct::is_answered_by`]).
    Unexplained,
}

impl Misconduct {
    /// How much it weighs. Signatures and rules were checked while reading; see [`Message::check`].
    #[must_use]
    pub const fn charge(&self) -> Charge {
        match self.verdict {
            Some(_) => Charge::Contradicted,
            None => Charge::Unexplained,
        }
    }

    /// Whether a verdict of the validator explains what happened. One that contradicts a verdict shown before explains
    /// nothing: two verdicts on one escrow are misconduct as well.
    #[must_use]
    pub fn is_answered_by(&self, verdict: &Signed<EscrowVerdict>) -> bool {
        self.verdict.is_none()
            && check_verdict(verdict, &self.terms).is_ok()
            && verdict.payload().gives(usize::from(self.tranche))
    }
}

impl Message for Misconduct {
    const MAX_BYTES: usize = EscrowTerms::MAX_BYTES + EscrowVerdict::MAX_BYTES + 2 * ENVELOPE_BYTES + 256;

    fn check(&self) -> Result<(), Invalid> {
        let terms = self.terms.payload();
        terms.check_signer(self.terms.signer())?;
        let tranche = usize::from(self.tranche);
        let lock = terms.locks.get(tranche).ok_or(Invalid::new("tranche", "beyond the last"))?;
        Invalid::unless(self.secret.lock() == *lock, "secret", "does not open the tranche")?;
        match &self.verdict {
            None => Ok(()),
            Some(verdict) => {
                check_verdict(verdict, &self.terms)?;
                Invalid::unless(!verdict.payload().gives(tranche), "verdict", "gives out the tranche")
            }
        }
    }
}
