//! Settings of tabs: when what is owed is paid, and how much may be owed.

use std::time::Duration;

use consortium_protocol::msat::Msat;
use serde::Deserialize;

use super::ConfigError;

/// Settings of tabs as they may stand in the configuration file (the table `[tabs]`), the environment or flags: all
/// optional. Their names are those of the flags; amounts are in sat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TabSettings {
    /// See [`TabRules::settle_at`].
    pub settle_at: Option<u64>,
    /// In seconds; see [`TabRules::settle_after`].
    pub settle_after: Option<u64>,
    /// See [`TabRules::settle_min`].
    pub settle_min: Option<u64>,
    /// See [`TabRules::credit_limit`].
    pub credit_limit: Option<u64>,
    /// See [`TabRules::channel_budget_sat`].
    pub channel_budget: Option<u64>,
    /// See [`TabRules::channel_cost`].
    pub channel_cost: Option<u64>,
}

/// When a tab is settled, and how far it may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TabRules {
    /// A worker that is owed as much is paid.
    pub settle_at: Msat,
    /// A worker that is owed anything for so long is paid.
    pub settle_after: Duration,
    /// Less than this is not paid: a smaller payment cannot be enforced on-chain, and fees eat much of it.
    pub settle_min: Msat,
    /// A payer that owes this node more gets no work from it; one that has paid little yet, a tenth of it at least. Only
    /// a node with a wallet looks at it.
    pub credit_limit: Msat,
    /// What this node puts into channels towards workers that no payment can reach, in sat; 0 for none.
    pub channel_budget_sat: u64,
    /// What such a channel costs its worker: the fee of opening it.
    pub channel_cost: Msat,
}

impl Default for TabRules {
    /// 500 sat or an hour, not below what is dust on-chain; 10,000 sat of credit; no channels.
    fn default() -> Self {
        Self {
            settle_at: Msat(500_000),
            settle_after: Duration::from_secs(3600),
            settle_min: Msat(354_000),
            credit_limit: Msat(10_000_000),
            channel_budget_sat: 0,
            channel_cost: Msat(500_000),
        }
    }
}

impl TabRules {
    /// What a payer may owe that has paid so much before.
    #[must_use]
    pub fn limit(&self, paid_before: Msat) -> Msat {
        let newcomer = Msat(self.credit_limit.0 / 10);
        paid_before.clamp(newcomer, self.credit_limit)
    }
}

impl TabSettings {
    /// These settings, and `lower`'s where these are silent.
    #[must_use]
    pub fn or(self, lower: Self) -> Self {
        Self {
            settle_at: self.settle_at.or(lower.settle_at),
            settle_after: self.settle_after.or(lower.settle_after),
            settle_min: self.settle_min.or(lower.settle_min),
            credit_limit: self.credit_limit.or(lower.credit_limit),
            channel_budget: self.channel_budget.or(lower.channel_budget),
            channel_cost: self.channel_cost.or(lower.channel_cost),
        }
    }

    /// Fills the gaps with defaults and checks the values.
    ///
    /// # Errors
    /// [`ConfigError::Value`] names the setting and what is wrong with it.
    pub fn resolve(self) -> Result<TabRules, ConfigError> {
        let defaults = TabRules::default();
        let settle_at = sat("settle-at", self.settle_at, defaults.settle_at)?;
        // Who settles early, by small amounts, has to say so once.
        let least = Msat(defaults.settle_min.0.min(settle_at.0));
        let rules = TabRules {
            settle_at,
            settle_after: self.settle_after.map_or(defaults.settle_after, Duration::from_secs),
            settle_min: sat("settle-min", self.settle_min, least)?,
            credit_limit: sat("credit-limit", self.credit_limit, defaults.credit_limit)?,
            channel_budget_sat: self.channel_budget.unwrap_or(defaults.channel_budget_sat),
            channel_cost: sat("channel-cost", self.channel_cost, defaults.channel_cost)?,
        };
        let bad = |name, value: Msat, reason: &str| {
            Err(ConfigError::Value { name, value: value.whole_sat().to_string(), reason: reason.to_owned() })
        };
        if rules.settle_min == Msat::ZERO {
            return bad("settle-min", rules.settle_min, "must be at least 1 sat");
        }
        if rules.settle_at < rules.settle_min {
            return bad("settle-at", rules.settle_at, "is below settle-min");
        }
        Ok(rules)
    }
}

fn sat(name: &'static str, value: Option<u64>, default: Msat) -> Result<Msat, ConfigError> {
    let Some(sat) = value else { return Ok(default) };
    let reason = "is more than all bitcoin there is".to_owned();
    let enough = Msat::from_sat(sat).filter(|amount| amount.0 <= 21_000_000 * 100_000_000 * 1000);
    enough.ok_or(ConfigError::Value { name, value: sat.to_string(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_make_sense() {
        assert_eq!(TabSettings::default().resolve().unwrap(), TabRules::default());
        let early = TabSettings { settle_at: Some(20), ..TabSettings::default() }.resolve().unwrap();
        assert_eq!((early.settle_at, early.settle_min), (Msat(20_000), Msat(20_000)));
        let with = |settle_at, settle_min, credit_limit| TabSettings {
            settle_at: Some(settle_at),
            settle_min: Some(settle_min),
            credit_limit: Some(credit_limit),
            ..TabSettings::default()
        };
        for (bad, name) in [
            (with(10, 11, 1), "settle-at"),
            (with(10, 0, 1), "settle-min"),
            (with(u64::MAX, 1, 1), "settle-at"),
            (with(1, 1, u64::MAX / 1000), "credit-limit"),
        ] {
            let error = bad.resolve().unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }

    #[test]
    fn credit_grows_with_what_was_paid() {
        let rules = TabRules { credit_limit: Msat(1000), ..TabRules::default() };
        let limits = [0, 50, 100, 600, 1000, 9999].map(|paid| rules.limit(Msat(paid)).0);
        assert_eq!(limits, [100, 100, 100, 600, 1000, 1000]);
    }
}
