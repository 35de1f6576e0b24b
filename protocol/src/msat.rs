//! Money.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Millisatoshi, a thousandth of 10⁻⁸ bitcoin. Arithmetic is checked: money never wraps and never rounds on its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Msat(pub u64);

impl Msat {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// As many whole satoshi; `None` on overflow.
    pub const fn from_sat(sat: u64) -> Option<Self> {
        match sat.checked_mul(1000) {
            Some(msat) => Some(Self(msat)),
            None => None,
        }
    }

    /// Whole satoshi, the rest dropped.
    pub const fn whole_sat(self) -> u64 {
        self.0 / 1000
    }

    /// The sum; `None` on overflow.
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(msat) => Some(Self(msat)),
            None => None,
        }
    }

    /// The difference; `None` if `other` is more.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(msat) => Some(Self(msat)),
            None => None,
        }
    }

    /// As often as `times`; `None` on overflow.
    pub const fn checked_mul(self, times: u64) -> Option<Self> {
        match self.0.checked_mul(times) {
            Some(msat) => Some(Self(msat)),
            None => None,
        }
    }

    /// A `by`th part, rounded down; `None` if `by` is zero.
    pub const fn checked_div(self, by: u64) -> Option<Self> {
        match self.0.checked_div(by) {
            Some(msat) => Some(Self(msat)),
            None => None,
        }
    }

    /// The sum of all; `None` on overflow.
    pub fn sum(amounts: impl IntoIterator<Item = Self>) -> Option<Self> {
        amounts.into_iter().try_fold(Self::ZERO, Self::checked_add)
    }
}

impl fmt::Display for Msat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} msat", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_is_checked() {
        assert_eq!(Msat::from_sat(2), Some(Msat(2000)));
        assert_eq!(Msat::from_sat(u64::MAX), None);
        assert_eq!(Msat(1999).whole_sat(), 1);
        assert_eq!(Msat(1).checked_sub(Msat(2)), None);
        assert_eq!(Msat(u64::MAX).checked_add(Msat(1)), None);
        assert_eq!(Msat(u64::MAX).checked_mul(2), None);
        assert_eq!(Msat(7).checked_div(2), Some(Msat(3)));
        assert_eq!(Msat(7).checked_div(0), None);
        assert_eq!(Msat::sum([Msat(1), Msat(2)]), Some(Msat(3)));
        assert_eq!(Msat::sum([Msat(u64::MAX), Msat(2)]), None);
    }
}
