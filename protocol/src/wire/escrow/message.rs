//! Messages between the parties. Each may be said again without harm.

use serde::{Deserialize, Serialize};

use super::{EscrowTerms, EscrowVerdict, LockSecret, MAX_TRANCHES, check_verdict};
use crate::envelope::{ENVELOPE_BYTES, Invalid, Payload as _, Signed};
use crate::hash::Hash;
use crate::wire::{Message, check_text};

/// The longest invoice of an escrow, in bytes; those in use have a few hundred.
pub const MAX_INVOICE: usize = 2_048;

/// What one party says to another. Those that name the terms do so by the digest of the signed ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EscrowMessage {
    /// Validator to payer and payee: this is offered.
    Terms(Signed<EscrowTerms>),
    /// Payee to payer: pay these.
    Invoices {
        /// Which escrow.
        terms: Hash,
        /// A hold invoice for each tranche, in their order.
        invoices: Vec<String>,
    },
    /// Payee to validator: everything is locked. It is the payee's claim and proves nothing to others.
    Held {
        /// Which escrow.
        terms: Hash,
        /// The first height at which some of it goes back.
        deadline: u32,
    },
    /// Validator to payer, and to a payee who gets nothing.
    Verdict {
        /// The terms, which the verdict is checked against.
        terms: Signed<EscrowTerms>,
        /// The verdict.
        verdict: Signed<EscrowVerdict>,
    },
    /// Validator to payee, in private: the preimages of what was earned. Secret.
    Release {
        /// The terms, which all else is checked against.
        terms: Signed<EscrowTerms>,
        /// The verdict that gives them out.
        verdict: Signed<EscrowVerdict>,
        /// The preimages of the tranches earned, the smallest first.
        secrets: Vec<LockSecret>,
    },
    /// Payer or payee to validator: the verdict, and what came with it, is kept.
    Heard {
        /// Which escrow.
        terms: Hash,
    },
    /// Payer to payee and validator, before everything is locked: it will not be; send back what is.
    GivenUp {
        /// Which escrow.
        terms: Hash,
    },
}

impl EscrowMessage {
    /// The digest of the terms that it is about.
    #[must_use]
    pub fn terms(&self) -> Hash {
        match self {
            Self::Terms(terms) | Self::Verdict { terms, .. } | Self::Release { terms, .. } => terms.digest(),
            Self::Invoices { terms, .. }
            | Self::Held { terms, .. }
            | Self::Heard { terms }
            | Self::GivenUp { terms } => *terms,
        }
    }
}

impl Message for EscrowMessage {
    const MAX_BYTES: usize =
        EscrowTerms::MAX_BYTES + EscrowVerdict::MAX_BYTES + 2 * ENVELOPE_BYTES + MAX_TRANCHES * (MAX_INVOICE + 8) + 256;

    fn check(&self) -> Result<(), Invalid> {
        match self {
            Self::Terms(terms) => terms.payload().check_signer(terms.signer()),
            Self::Invoices { invoices, .. } => {
                Invalid::unless((1..=MAX_TRANCHES).contains(&invoices.len()), "invoices", "1 to 12")?;
                invoices.iter().try_for_each(|invoice| check_text(invoice, MAX_INVOICE, "invoices"))
            }
            Self::Verdict { terms, verdict } => check_verdict(verdict, terms),
            Self::Release { terms, verdict, secrets } => {
                check_verdict(verdict, terms)?;
                let locks = terms.payload().locks.iter().enumerate();
                let earned = locks.filter(|(tranche, _)| verdict.payload().gives(*tranche)).map(|(_, lock)| *lock);
                let opened = secrets.iter().map(LockSecret::lock);
                Invalid::unless(!secrets.is_empty() && earned.eq(opened), "secrets", "not of what was earned")
            }
            Self::Held { .. } | Self::Heard { .. } | Self::GivenUp { .. } => Ok(()),
        }
    }
}
