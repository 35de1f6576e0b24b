//! What the caveats of a macaroon say.
//!
//! A caveat is `condition=value`. Those that mean something here, with the names of the specification where it has any:
//!
//! | condition | value | allows |
//! |---|---|---|
//! | `services` | `consortium:0`, more after commas | this service, at its only tier |
//! | `consortium_capabilities` | `infer`, `account`, `refund` | completions; looking at the account; taking credit out |
//! | `consortium_valid_until` | seconds since 1970 | until then |
//! | `consortium_models` | names, with commas between | these models |
//! | `consortium_requests_per_minute` | a number | so many requests a minute |
//! | `consortium_budget_msat` | a number | spending so much, in all |
//!
//! A condition that comes again may only narrow: a list to a part of it, a number to one no larger. Budgets and rates all
//! count, each on its own and with all that were narrowed further from the same macaroon; there may be four of each. A condition that is not known
//! here is passed over, as the specification asks, for it may be meant for somebody else; a known one whose value makes no
//! sense spoils the macaroon.

use std::collections::BTreeSet;

use consortium_protocol::{Hash, Msat};

use super::SERVICE;

/// Longest name of a model in a caveat is what a caveat holds; this many at most.
const MAX_ITEMS: usize = 64;
/// Most budgets, and most rates, that a macaroon has: each is counted by itself.
const MAX_LIMITS: usize = 4;

/// What a macaroon may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// Completions.
    Infer,
    /// To see what is on the account.
    Account,
    /// To take credit out.
    Refund,
}

impl Capability {
    /// Its name in a caveat.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Account => "account",
            Self::Refund => "refund",
        }
    }
}

/// A limit of how often. `name` tells it from other limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The caveat, with all before it.
    pub name: Hash,
    /// Requests a minute.
    pub per_minute: u32,
}

/// A limit of how much. `name` tells it from other limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// The caveat, with all before it.
    pub name: Hash,
    /// In all.
    pub limit: Msat,
}

/// What the caveats of a macaroon allow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    services: Option<BTreeSet<String>>,
    capabilities: Option<BTreeSet<String>>,
    models: Option<BTreeSet<String>>,
    valid_until_s: Option<u64>,
    rates: Vec<Rate>,
    budgets: Vec<Budget>,
}

/// Why caveats make no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    /// A known condition has a value that is not of its kind.
    #[error("the caveat `{0}` makes no sense")]
    Value(&'static str),
    /// A condition comes again and allows more than before.
    #[error("the caveat `{0}` widens the one before it")]
    Widens(&'static str),
    /// A condition of which each is counted comes too often.
    #[error("there are more than {MAX_LIMITS} caveats `{0}`")]
    Many(&'static str),
}

const SERVICES: &str = "services";
const CAPABILITIES: &str = "consortium_capabilities";
const VALID_UNTIL: &str = "consortium_valid_until";
const MODELS: &str = "consortium_models";
const RATE: &str = "consortium_requests_per_minute";
const BUDGET: &str = "consortium_budget_msat";

/// The caveats that every macaroon is made with: the service, and until when it is good.
#[must_use]
pub fn minted(valid_until_s: u64) -> [String; 2] {
    [format!("{SERVICES}={SERVICE}:0"), format!("{VALID_UNTIL}={valid_until_s}")]
}

impl Terms {
    /// Reads caveats, each with its link of the macaroon's chain.
    ///
    /// # Errors
    /// [`TermsError`] says which caveat is wrong.
    pub fn read(caveats: &[Vec<u8>], links: &[[u8; 32]]) -> Result<Self, TermsError> {
        let mut terms = Self::default();
        for (caveat, link) in caveats.iter().zip(links) {
            // What is not text has no condition that is known.
            let Some((condition, value)) = std::str::from_utf8(caveat).ok().and_then(|text| text.split_once('='))
            else {
                continue;
            };
            terms.narrow(condition.trim(), value.trim(), link)?;
        }
        Ok(terms)
    }

    fn narrow(&mut self, condition: &str, value: &str, link: &[u8; 32]) -> Result<(), TermsError> {
        // The link is the key of further caveats, and so a secret of who holds the macaroon: its hash is not.
        let name = || Hash::from_bytes(blake3::derive_key("consortium ledger l402 caveat 1", link));
        match condition {
            SERVICES => subset(&mut self.services, SERVICES, value),
            CAPABILITIES => subset(&mut self.capabilities, CAPABILITIES, value),
            MODELS => subset(&mut self.models, MODELS, value),
            VALID_UNTIL => {
                let until = number(VALID_UNTIL, value)?;
                at_most(VALID_UNTIL, until, self.valid_until_s)?;
                self.valid_until_s = Some(until);
                Ok(())
            }
            RATE => {
                let wanted = u32::try_from(number(RATE, value)?).map_err(|_| TermsError::Value(RATE))?;
                at_most(RATE, wanted, self.rates.last().map(|rate| rate.per_minute))?;
                room(RATE, self.rates.len())?;
                self.rates.push(Rate { name: name(), per_minute: wanted });
                Ok(())
            }
            BUDGET => {
                let limit = Msat(number(BUDGET, value)?);
                at_most(BUDGET, limit, self.budgets.last().map(|budget| budget.limit))?;
                room(BUDGET, self.budgets.len())?;
                self.budgets.push(Budget { name: name(), limit });
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether this service is among those named, or none is.
    #[must_use]
    pub fn serves_here(&self) -> bool {
        let here = |service: &String| service.split_once(':').is_some_and(|(name, _)| name == SERVICE);
        self.services.as_ref().is_none_or(|services| services.iter().any(here))
    }

    /// Whether this may be done.
    #[must_use]
    pub fn allows(&self, capability: Capability) -> bool {
        self.capabilities.as_ref().is_none_or(|allowed| allowed.contains(capability.name()))
    }

    /// Whether this model may be used.
    #[must_use]
    pub fn allows_model(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|allowed| allowed.contains(model))
    }

    /// Until when, in seconds since 1970.
    #[must_use]
    pub fn valid_until_s(&self) -> Option<u64> {
        self.valid_until_s
    }

    /// The limits of how often; all hold.
    #[must_use]
    pub fn rates(&self) -> &[Rate] {
        &self.rates
    }

    /// The limits of how much; all hold.
    #[must_use]
    pub fn budgets(&self) -> &[Budget] {
        &self.budgets
    }
}

fn subset(list: &mut Option<BTreeSet<String>>, condition: &'static str, value: &str) -> Result<(), TermsError> {
    let items: BTreeSet<String> = value.split(',').map(|item| item.trim().to_owned()).collect();
    if items.len() > MAX_ITEMS || items.contains("") {
        return Err(TermsError::Value(condition));
    }
    if list.as_ref().is_some_and(|before| !items.is_subset(before)) {
        return Err(TermsError::Widens(condition));
    }
    *list = Some(items);
    Ok(())
}

fn number(condition: &'static str, value: &str) -> Result<u64, TermsError> {
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|_| digits).ok_or(TermsError::Value(condition))
}

fn room(condition: &'static str, limits: usize) -> Result<(), TermsError> {
    if limits < MAX_LIMITS { Ok(()) } else { Err(TermsError::Many(condition)) }
}

fn at_most<T: PartialOrd>(condition: &'static str, wanted: T, before: Option<T>) -> Result<(), TermsError> {
    match before {
        Some(before) if wanted > before => Err(TermsError::Widens(condition)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::l402::{Macaroon, TokenSecret};

    fn read(caveats: &[&str]) -> Result<Terms, TermsError> {
        let secret = TokenSecret::from_bytes([5; 32]);
        let made = caveats.iter().try_fold(Macaroon::mint(&secret, b"id"), |m, caveat| m.with_caveat(caveat)).unwrap();
        Terms::read(made.caveats(), &made.verify(&secret).unwrap())
    }

    #[test]
    fn what_is_minted_allows_everything_for_a_time() {
        let minted = minted(1_800_000_000);
        assert_eq!(minted, ["services=consortium:0", "consortium_valid_until=1800000000"]);
        let terms = read(&[&minted[0], &minted[1]]).unwrap();
        assert!(terms.serves_here() && terms.allows(Capability::Refund) && terms.allows_model("org/tiny"));
        assert_eq!((terms.valid_until_s(), terms.rates().len(), terms.budgets().len()), (Some(1_800_000_000), 0, 0));
        assert!(!read(&["services=loop:0,consortiums:0"]).unwrap().serves_here());
        assert!(read(&["services=loop:0,consortium:3"]).unwrap().serves_here());
    }

    #[test]
    fn caveats_narrow() {
        let terms = read(&[
            "consortium_models=a/b,c",
            "consortium_models = c",
            "consortium_capabilities=infer,account",
            "consortium_valid_until=20",
            "consortium_valid_until=10",
            "consortium_requests_per_minute=60",
            "consortium_requests_per_minute=60",
            "consortium_budget_msat=5000",
            "consortium_budget_msat=70",
            "somebody_elses=business",
            "no condition at all",
        ])
        .unwrap();
        assert!(terms.allows_model("c") && !terms.allows_model("a/b"));
        assert!(terms.allows(Capability::Infer) && !terms.allows(Capability::Refund));
        assert_eq!(terms.valid_until_s(), Some(10));
        let budgets: Vec<Msat> = terms.budgets().iter().map(|budget| budget.limit).collect();
        assert_eq!(budgets, [Msat(5000), Msat(70)]);
        assert_ne!(terms.budgets()[0].name, terms.budgets()[1].name);
        assert_eq!(terms.rates().len(), 2);
    }

    #[test]
    fn what_widens_or_makes_no_sense_is_refused() {
        for (caveats, condition) in [
            (["consortium_models=a", "consortium_models=a,b"], MODELS),
            (["services=consortium:0", "services=loop:0"], SERVICES),
            (["consortium_capabilities=account", "consortium_capabilities=refund"], CAPABILITIES),
            (["consortium_valid_until=10", "consortium_valid_until=11"], VALID_UNTIL),
            (["consortium_requests_per_minute=1", "consortium_requests_per_minute=2"], RATE),
            (["consortium_budget_msat=7", "consortium_budget_msat = 8"], BUDGET),
        ] {
            assert_eq!(read(&caveats), Err(TermsError::Widens(condition)));
        }
        for condition in [RATE, BUDGET] {
            let limit = format!("{condition}=9");
            assert!(read(&[limit.as_str(); 4]).is_ok());
            assert_eq!(read(&[limit.as_str(); 5]), Err(TermsError::Many(condition)));
        }
        for (caveat, condition) in [
            ("consortium_valid_until=", VALID_UNTIL),
            ("consortium_valid_until=+5", VALID_UNTIL),
            ("consortium_valid_until=99999999999999999999999", VALID_UNTIL),
            ("consortium_requests_per_minute=-1", RATE),
            ("consortium_requests_per_minute=4294967296", RATE),
            ("consortium_budget_msat=1e3", BUDGET),
            ("consortium_models=", MODELS),
            ("consortium_models=a,,b", MODELS),
        ] {
            assert_eq!(read(&[caveat]), Err(TermsError::Value(condition)), "{caveat}");
        }
    }

    #[test]
    fn a_limit_is_shared_by_all_that_were_narrowed_from_it() {
        let of = |caveats: &[&str]| read(caveats).unwrap().budgets().to_vec();
        let (first, second) = (of(&["a=1", "consortium_budget_msat=9"]), of(&["consortium_budget_msat=9"]));
        assert_ne!(first[0].name, second[0].name);
        assert_eq!(first[0].name, of(&["a=1", "consortium_budget_msat=9", "b=2"])[0].name);
    }

    proptest! {
        #[test]
        fn more_caveats_never_allow_more(
            before in proptest::collection::vec("consortium_(models|valid_until|budget_msat)=[0-9a,]{1,3}", 0..5),
            more in "consortium_(models|valid_until|budget_msat|capabilities)=[0-9a,infer]{0,4}",
        ) {
            let mut caveats: Vec<&str> = before.iter().map(String::as_str).collect();
            let Ok(wide) = read(&caveats) else { return Ok(()) };
            caveats.push(&more);
            let Ok(narrow) = read(&caveats) else { return Ok(()) };
            prop_assert!(narrow.valid_until_s().unwrap_or(u64::MAX) <= wide.valid_until_s().unwrap_or(u64::MAX));
            prop_assert!(narrow.budgets().starts_with(wide.budgets()));
            for model in ["0", "1", "a", "aa"] {
                prop_assert!(wide.allows_model(model) || !narrow.allows_model(model));
            }
        }
    }
}
