//! What work costs, said before it starts.
//!
//! All in whole numbers, so that payer and payee come to the same millisatoshi: the price of a layer-token (one layer
//! computed for one position) is `base + floor(base * load / 1000)`, where `load` is how busy the node is in
//! thousandths, at most `max_load`; with `max_load` 0 the price is fixed. A position costs what its layers cost on the
//! nodes that hold them and what its master asks, and a gateway's fee on top of the work is `floor(work * fee / 1000)`.

use consortium_protocol::Msat;
use serde::{Deserialize, Serialize};

use crate::ledger::LedgerError;

/// How a node asks for pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prices {
    /// For one token through one layer, when idle.
    pub base: Msat,
    /// The load, in thousandths, above which the price rises no more; 0: a fixed price.
    pub max_load: u32,
}

/// What one token through a whole pipeline costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// What workers and master get for one position.
    pub per_position: Msat,
    /// Of this, what the master gets.
    pub master: Msat,
    /// A gateway's fee on top, in thousandths; at most 1000.
    pub fee: u16,
}

/// A price for a job, fixed before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    /// Positions at most: the prompt and the longest answer.
    pub positions: u64,
    /// What the prompt alone costs, without fee.
    pub prompt: Msat,
    /// What workers and master get at most.
    pub work: Msat,
    /// Of this, what the master gets.
    pub master: Msat,
    /// The gateway's fee at most.
    pub fee: Msat,
    /// Both: never more is charged.
    pub total: Msat,
}

/// How busy a node is that works on `active` jobs of the `capacity` it can carry, in thousandths; the jobs count as
/// one each if the capacity is not known (0).
#[must_use]
pub fn load(active: u32, capacity: u32) -> u32 {
    u32::try_from(u64::from(active) * 1000 / u64::from(capacity.max(1))).unwrap_or(u32::MAX)
}

/// `amount * thousandths / 1000`, rounded down.
pub(crate) fn share(amount: Msat, thousandths: u32) -> Option<Msat> {
    u64::try_from(u128::from(amount.0) * u128::from(thousandths) / 1000).ok().map(Msat)
}

impl Prices {
    /// The price of a layer-token at a load in thousandths ([`load`]).
    ///
    /// # Errors
    /// [`LedgerError::Overflow`].
    pub fn at(&self, load: u32) -> Result<Msat, LedgerError> {
        share(self.base, load.min(self.max_load))
            .and_then(|more| self.base.checked_add(more))
            .ok_or(LedgerError::Overflow)
    }
}

impl Rate {
    /// The rate of a pipeline whose stages have so many layers at such a price of a layer-token each, under a master that
    /// asks so much for a position.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`].
    pub fn of(stages: impl IntoIterator<Item = (u32, Msat)>, master: Msat, fee: u16) -> Result<Self, LedgerError> {
        let mut per_position = master;
        for (layers, price) in stages {
            let stage = price.checked_mul(u64::from(layers));
            per_position = stage.and_then(|stage| per_position.checked_add(stage)).ok_or(LedgerError::Overflow)?;
        }
        Ok(Self { per_position, master, fee })
    }

    /// What a job of so many positions costs at most, with the fee. Work that was promised at this rate is charged at
    /// it, whatever nodes ask by then.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`].
    pub fn cost(&self, positions: u64) -> Result<Msat, LedgerError> {
        self.quote(0, positions).map(|quote| quote.total)
    }

    /// What a job costs at most whose answer has up to `max_tokens`.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`].
    pub fn quote(&self, prompt_tokens: u64, max_tokens: u64) -> Result<Quote, LedgerError> {
        (|| {
            let positions = prompt_tokens.checked_add(max_tokens)?;
            let work = self.per_position.checked_mul(positions)?;
            let master = self.master.checked_mul(positions)?;
            let fee = share(work, u32::from(self.fee))?;
            let prompt = self.per_position.checked_mul(prompt_tokens)?;
            Some(Quote { positions, prompt, work, master, fee, total: work.checked_add(fee)? })
        })()
        .ok_or(LedgerError::Overflow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_and_by_load() {
        let fixed = Prices { base: Msat(7), max_load: 0 };
        assert_eq!(fixed.at(load(9, 2)).unwrap(), Msat(7));
        let by_load = Prices { base: Msat(7), max_load: 2000 };
        assert_eq!(by_load.at(0).unwrap(), Msat(7));
        assert_eq!(by_load.at(load(1, 2)).unwrap(), Msat(10), "7 + floor(3.5)");
        assert_eq!(by_load.at(load(1, 0)).unwrap(), Msat(14));
        assert_eq!(by_load.at(u32::MAX).unwrap(), Msat(21), "no more than max_load");
    }

    #[test]
    fn a_quote_is_the_sum_of_the_stages_and_the_fees() {
        let rate = Rate::of([(16, Msat(10)), (8, Msat(2))], Msat(8), 50).unwrap();
        assert_eq!(rate.per_position, Msat(184));
        let quote = rate.quote(50, 500).unwrap();
        assert_eq!(quote.master, Msat(8 * 550), "a part of the work");
        assert_eq!((quote.positions, quote.prompt), (550, Msat(184 * 50)));
        assert_eq!((quote.work, quote.fee), (Msat(184 * 550), Msat(5060)));
        assert_eq!((quote.total, rate.cost(550).unwrap()), (Msat(184 * 550 + 5060), quote.total));
        assert_eq!(Rate::of([], Msat::ZERO, 1000).unwrap().cost(u64::MAX).unwrap(), Msat::ZERO);
    }

    #[test]
    fn what_cannot_be_counted_is_refused() {
        let dear = Prices { base: Msat(u64::MAX), max_load: 1000 };
        assert!(matches!(dear.at(1000), Err(LedgerError::Overflow)));
        assert!(matches!(Rate::of([(2, dear.base)], Msat::ZERO, 0), Err(LedgerError::Overflow)));
        let rate = Rate { per_position: dear.base, master: Msat::ZERO, fee: 1 };
        assert!(matches!(rate.cost(2), Err(LedgerError::Overflow)));
        assert!(matches!(rate.cost(1), Err(LedgerError::Overflow)), "the fee is what is too much");
        assert_eq!(load(u32::MAX, 0), u32::MAX);
    }
}
