//! Amounts as they are typed.

use std::fmt;
use std::str::FromStr;

use consortium_protocol::msat::Msat;

/// Sat with up to three decimals.
///
/// # Errors
/// What is wrong with the text.
pub(in crate::cli) fn sat_amount(text: &str) -> Result<Msat, String> {
    let bad = || format!("'{text}' is no amount in sat; write it like 1500 or 0.25");
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || part.len() > 3 || !digits(whole) || !digits(part) || text.ends_with('.') {
        return Err(bad());
    }
    let part: u64 = format!("{part:0<3}").parse().map_err(|_| bad())?;
    let whole = whole.parse().ok().and_then(Msat::from_sat);
    whole.and_then(|whole| whole.checked_add(Msat(part))).ok_or_else(bad)
}

/// So many sat, or all there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum SatOrAll {
    Sat(u64),
    All,
}

impl FromStr for SatOrAll {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => Ok(Self::All),
            _ => text.parse().map(Self::Sat).map_err(|_| format!("'{text}' is neither a whole number of sat nor all")),
        }
    }
}

impl fmt::Display for SatOrAll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sat(sat) => write!(f, "{sat} sat"),
            Self::All => f.write_str("everything that is free to be spent"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read() {
        for (text, msat) in [("0", 0), ("1500", 1_500_000), ("0.25", 250), ("7.001", 7001), ("12.3", 12_300)] {
            assert_eq!(sat_amount(text), Ok(Msat(msat)), "{text}");
        }
        for bad in
            ["", ".", ".5", "5.", "-1", "+1", "1e3", "1.2345", "1,5", "99999999999999999999", "18446744073709551615"]
        {
            assert!(sat_amount(bad).is_err(), "{bad}");
        }
        assert_eq!("all".parse(), Ok(SatOrAll::All));
        assert_eq!("5".parse(), Ok(SatOrAll::Sat(5)));
        assert!("0.5".parse::<SatOrAll>().is_err());
    }
}
