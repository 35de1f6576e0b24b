//! What work costs, said before it starts.
//!
//! All in whole numbers, so that payer and payee come to the same millisatoshi: the price of a layer-token (one layer
//! computed for one position) is `base + floor(base * load / 1000)`, where `load` is how busy the node is in
//! thousandths, at most `max_load`; with `max_load` 0 the price is fixed. A job of `p` positions through `n` layers
//! costs `p * n * price`, and a gateway's fee on top is `floor(cost * fee / 1000)`.

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
    /// A gateway's fee, in thousandths of what the workers get; at most 1000.
    pub fee: u16,
}

/// A price for a job, fixed before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    /// For one token through one layer.
    pub price_per_layer_token: Msat,
    /// Layers of the model.
    pub layers: u16,
    /// Positions at most: the prompt and `max_tokens`.
    pub positions: u64,
    /// What the prompt alone costs, without fee.
    pub prompt: Msat,
    /// What the workers get at most.
    pub work: Msat,
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

    /// What a job costs at most, at a load in thousandths. Steps that were promised this price are charged it, whatever
    /// the load is by then.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`].
    pub fn quote(&self, prompt_tokens: u32, max_tokens: u32, layers: u16, load: u32) -> Result<Quote, LedgerError> {
        let price = self.at(load)?;
        let positions = u64::from(prompt_tokens) + u64::from(max_tokens);
        let cost = |positions: u64| price.checked_mul(positions)?.checked_mul(u64::from(layers));
        (|| {
            let work = cost(positions)?;
            let fee = share(work, u32::from(self.fee))?;
            Some(Quote {
                price_per_layer_token: price,
                layers,
                positions,
                prompt: cost(u64::from(prompt_tokens))?,
                work,
                fee,
                total: work.checked_add(fee)?,
            })
        })()
        .ok_or(LedgerError::Overflow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_and_by_load() {
        let fixed = Prices { base: Msat(7), max_load: 0, fee: 0 };
        assert_eq!(fixed.at(load(9, 2)).unwrap(), Msat(7));
        let by_load = Prices { base: Msat(7), max_load: 2000, fee: 50 };
        assert_eq!(by_load.at(0).unwrap(), Msat(7));
        assert_eq!(by_load.at(load(1, 2)).unwrap(), Msat(10), "7 + floor(3.5)");
        assert_eq!(by_load.at(load(1, 0)).unwrap(), Msat(14));
        assert_eq!(by_load.at(u32::MAX).unwrap(), Msat(21), "no more than max_load");
        let quote = by_load.quote(50, 500, 24, 500).unwrap();
        assert_eq!((quote.work, quote.fee), (Msat(10 * 550 * 24), Msat(6600)));
        assert_eq!(quote.total, Msat(132_000 + 6_600));
        assert_eq!(quote.prompt, Msat(10 * 50 * 24));
    }

    #[test]
    fn what_cannot_be_counted_is_refused() {
        let dear = Prices { base: Msat(u64::MAX), max_load: 1, fee: 0 };
        assert!(matches!(dear.at(1000), Ok(Msat(u64::MAX)) | Err(LedgerError::Overflow)));
        assert!(matches!(dear.quote(1, 1, 1, 0), Err(LedgerError::Overflow)));
        assert_eq!(load(u32::MAX, 0), u32::MAX);
    }
}
