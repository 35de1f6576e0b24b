//! What payer and worker say about pay.
//!
//! A worker's receipt says what it did; the payer's [`Acceptance`] encloses it and says what is owed for it. With both
//! signatures each side books the same amount. How an audit of the work went is told by the auditor's
//! [`Verdict`](super::audit::Verdict), which the payer passes on.

use serde::{Deserialize, Serialize};

use super::audit::StageReceipt;
use super::pipeline::SessionOpen;
use crate::envelope::{ENVELOPE_BYTES, Invalid, Payload, Signed};
use crate::msat::Msat;

/// The payer's word that it owes for what a stage signed for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acceptance {
    /// The order of the work: it holds the prices.
    pub order: Signed<SessionOpen>,
    /// The worker's receipt.
    pub receipt: Signed<StageReceipt>,
    /// Whether the work was drawn for an audit: its pay waits for the verdict.
    pub drawn: bool,
    /// What is owed: the price of the order for each layer and position of the receipt.
    pub pay: Msat,
}

impl Acceptance {
    /// What an order pays for the work of one of its receipts; none on overflow, or for a stage that it does not have.
    #[must_use]
    pub fn pay_of(order: &SessionOpen, receipt: &StageReceipt) -> Option<Msat> {
        let price = order.prices.get(usize::from(receipt.stage))?;
        price.checked_mul(u64::from(receipt.range.count()))?.checked_mul(u64::from(receipt.positions))
    }
}

impl Payload for Acceptance {
    const DOMAIN: &'static str = "acceptance";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = SessionOpen::MAX_BYTES + StageReceipt::MAX_BYTES + 2 * ENVELOPE_BYTES + 128;

    fn check(&self) -> Result<(), Invalid> {
        let (order, receipt) = (self.order.payload(), self.receipt.payload());
        Invalid::unless(receipt.order == self.order.digest(), "receipt", "for another order")?;
        let named = (receipt.cluster, receipt.job, receipt.attempt, receipt.model);
        Invalid::unless(
            named == (order.cluster, order.job, order.attempt, order.model),
            "receipt",
            "does not repeat the order",
        )?;
        let hop = order.route.get(usize::from(receipt.stage));
        let fits = hop.is_some_and(|hop| (hop.node, hop.range) == (self.receipt.signer(), receipt.range));
        Invalid::unless(fits, "receipt", "not by the node of the route")?;
        Invalid::unless(Self::pay_of(order, receipt) == Some(self.pay), "pay", "not what the order pays")
    }
}
