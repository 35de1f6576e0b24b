//! What terms a party may agree to, and what it has to be asked about.

use consortium_protocol::wire::escrow::{EscrowKind, EscrowTerms};
use consortium_protocol::{Msat, NodeId, Signed};

use super::state::Role;

/// The largest amount that cannot be enforced on-chain: when a channel is closed by force while it is locked, it is lost
/// to fees, whoever it was meant for.
pub const DUST: Msat = Msat(354_000);
/// The smallest tranche at all: Lightning's fees have a base of a sat per hop.
pub const SMALLEST: Msat = Msat(1_000);
/// The longest delta of what is locked for others' work: a day. Lightning is no place for weeks.
pub const LONGEST_FOR_WORK: u16 = 144;

/// What a party has agreed to, in so many words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Consent {
    /// Tranches of [`DUST`] or less, of which each is lost if its channel is closed by force meanwhile.
    pub dust: bool,
}

/// Why terms are not agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TermsError {
    /// The signer may not judge this.
    #[error("the terms are not as they must be: {0}")]
    Invalid(#[from] consortium_protocol::Invalid),
    /// This node has no part in it.
    #[error("this node is neither payer nor payee nor validator of the escrow")]
    NoPart,
    /// Dust, without a word.
    #[error(
        "the smallest tranche has {}.{:03} sat: {} sat or less cannot be enforced on-chain, and are lost if a channel is \
         closed by force meanwhile. Take a larger unit, or agree to dust in so many words",
        .0.whole_sat(), .0.0 % 1000, DUST.whole_sat()
    )]
    Dust(Msat),
    /// Less than Lightning can carry with sense.
    #[error("a tranche has 1 sat at least")]
    Small,
    /// Money locked for longer than a day.
    #[error("money for work may be locked for {LONGEST_FOR_WORK} blocks at most, not {0}")]
    Long(u16),
}

/// Checks that a party may agree to terms; gives its role.
///
/// # Errors
/// [`TermsError`], in words for the operator.
pub fn check(terms: &Signed<EscrowTerms>, me: NodeId, consent: Consent) -> Result<Role, TermsError> {
    let offered = terms.payload();
    offered.check_signer(terms.signer())?;
    let role = Role::of(terms, me).ok_or(TermsError::NoPart)?;
    if offered.unit < SMALLEST {
        return Err(TermsError::Small);
    }
    if offered.unit <= DUST && !consent.dust {
        return Err(TermsError::Dust(offered.unit));
    }
    match offered.kind {
        EscrowKind::Reward | EscrowKind::Tranches if offered.delta > LONGEST_FOR_WORK => {
            Err(TermsError::Long(offered.delta))
        }
        _ => Ok(role),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::escrow::samples;

    fn with(change: impl FnOnce(&mut EscrowTerms)) -> Signed<EscrowTerms> {
        let mut terms = samples::tranches(3).payload().clone();
        change(&mut terms);
        Signed::sign(&samples::key(3), terms)
    }

    #[test]
    fn dust_needs_a_word() {
        let me = samples::key(1).node_id();
        let word = Consent { dust: true };
        let dust = with(|terms| terms.unit = Msat(354_000));
        let refused = check(&dust, me, Consent::default()).unwrap_err();
        assert_eq!(refused, TermsError::Dust(Msat(354_000)));
        assert!(refused.to_string().contains("354.000 sat") && refused.to_string().contains("lost"), "{refused}");
        assert_eq!(check(&dust, me, word), Ok(Role::Sponsor));
        assert!(check(&with(|terms| terms.unit = Msat(354_001)), me, Consent::default()).is_ok());
        assert_eq!(check(&with(|terms| terms.unit = Msat(999)), me, word), Err(TermsError::Small));
    }

    #[test]
    fn money_for_work_is_locked_for_a_day_at_most() {
        let me = samples::key(2).node_id();
        assert_eq!(check(&with(|terms| terms.delta = 145), me, Consent::default()), Err(TermsError::Long(145)));
        assert_eq!(check(&with(|terms| terms.delta = 144), me, Consent::default()), Ok(Role::Worker));
        assert_eq!(check(&samples::bond(900), samples::key(1).node_id(), Consent::default()), Ok(Role::Worker));
        let stranger = samples::key(9).node_id();
        assert_eq!(check(&with(|_| ()), stranger, Consent::default()), Err(TermsError::NoPart));
    }
}
