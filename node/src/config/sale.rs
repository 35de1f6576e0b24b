//! Settings of what is sold over Lightning.

use consortium_protocol::msat::Msat;
use serde::Deserialize;

use super::ConfigError;
use crate::till::TillSettings;

/// Settings of the till as they may stand in the configuration file, the environment or flags: all optional. Their names
/// are those of the flags.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SaleSettings {
    /// See [`TillSettings::open_to_all`].
    pub l402: Option<bool>,
    /// In sat; see [`TillSettings::bundle`].
    pub l402_bundle: Option<u64>,
    /// In sat; see [`TillSettings::max_credit`].
    pub l402_max_credit: Option<u64>,
    /// In sat; see [`TillSettings::max_custody`].
    pub l402_max_custody: Option<u64>,
}

impl SaleSettings {
    /// These settings, and `lower`'s where these are silent.
    #[must_use]
    pub fn or(self, lower: Self) -> Self {
        Self {
            l402: self.l402.or(lower.l402),
            l402_bundle: self.l402_bundle.or(lower.l402_bundle),
            l402_max_credit: self.l402_max_credit.or(lower.l402_max_credit),
            l402_max_custody: self.l402_max_custody.or(lower.l402_max_custody),
        }
    }

    /// Checks the values, for a node with a wallet or without.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn resolve(self, has_wallet: bool) -> Result<TillSettings, ConfigError> {
        let defaults = TillSettings::default();
        let settings = TillSettings {
            open_to_all: self.l402.unwrap_or(false),
            bundle: sat("l402-bundle", self.l402_bundle)?.unwrap_or(defaults.bundle),
            max_credit: sat("l402-max-credit", self.l402_max_credit)?.unwrap_or(defaults.max_credit),
            max_custody: sat("l402-max-custody", self.l402_max_custody)?.unwrap_or(defaults.max_custody),
        };
        let bad = |name, amount: Msat, reason: &str| {
            let (value, reason) = ((amount.0 / 1000).to_string(), reason.to_owned());
            Err(ConfigError::Value { name, value, reason })
        };
        match settings {
            TillSettings { open_to_all: true, .. } if !has_wallet => {
                let reason = "what is sold over Lightning needs a wallet: add --lightning NETWORK".to_owned();
                Err(ConfigError::Value { name: "l402", value: "true".to_owned(), reason })
            }
            TillSettings { bundle, max_credit, .. } if bundle > max_credit => {
                bad("l402-bundle", bundle, "is more than an account may have (l402-max-credit)")
            }
            TillSettings { max_credit, max_custody, .. } if max_credit > max_custody => {
                bad("l402-max-credit", max_credit, "is more than all accounts together may have (l402-max-custody)")
            }
            settings => Ok(settings),
        }
    }
}

fn sat(name: &'static str, value: Option<u64>) -> Result<Option<Msat>, ConfigError> {
    let Some(sat) = value else { return Ok(None) };
    let amount = Msat::from_sat(sat).filter(|amount| *amount > Msat::ZERO);
    let reason = || "must be above zero, and no more than all bitcoin there is".to_owned();
    amount.map(Some).ok_or_else(|| ConfigError::Value { name, value: sat.to_string(), reason: reason() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(toml: &str) -> SaleSettings {
        toml::from_str(toml).unwrap()
    }

    #[test]
    fn nothing_is_sold_without_a_word_or_without_a_wallet() {
        assert_eq!(settings("").resolve(false).unwrap(), TillSettings::default());
        assert!(!TillSettings::default().open_to_all);
        let sold = settings("l402 = true\nl402-bundle = 50").or(settings("l402-bundle = 9\nl402-max-credit = 60"));
        let resolved = sold.clone().resolve(true).unwrap();
        assert!(resolved.open_to_all);
        assert_eq!((resolved.bundle, resolved.max_credit), (Msat(50_000), Msat(60_000)));
        assert!(sold.resolve(false).unwrap_err().to_string().contains("--lightning"));
    }

    #[test]
    fn limits_make_sense() {
        for (toml, name) in [
            ("l402-bundle = 0", "l402-bundle"),
            ("l402-bundle = 9\nl402-max-credit = 8", "l402-bundle"),
            ("l402-max-credit = 2000000", "l402-max-credit"),
            ("l402-max-custody = 18446744073709551615", "l402-max-custody"),
        ] {
            let error = settings(toml).resolve(true).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name} `")), "{error}");
        }
    }
}
