//! What payer and worker say about pay.
//!
//! A worker's receipt says what it did; the payer's [`Acceptance`] encloses it and says what is owed for it. With both
//! signatures each side books the same amount. The master's fee is owed for the positions that the last stage signs for. How an audit of the work went is told by the auditor's
//! [`Verdict`](super::audit::Verdict), which the payer passes on.

use serde::{Deserialize, Serialize};

use super::audit::StageReceipt;
use super::pipeline::SessionOpen;
use crate::envelope::{ENVELOPE_BYTES, Invalid, Payload, Signed};
use crate::identity::NodeId;
use crate::msat::Msat;

/// What somebody is paid for in an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Part {
    /// The layers of a stage.
    Stage,
    /// Driving the job: the master's.
    Driving,
}

/// The payer's word that it owes for what a stage signed for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acceptance {
    /// The order of the work: it holds the prices.
    pub order: Signed<SessionOpen>,
    /// The worker's receipt; for the master, that of the last stage.
    pub receipt: Signed<StageReceipt>,
    /// What of it is paid: the stage's work, or driving it.
    pub part: Part,
    /// Whether the work was drawn for an audit: its pay waits for the verdict. Driving never is.
    pub drawn: bool,
    /// What is owed: the price of the order for each layer and position of the receipt, or the master's fee for each
    /// position.
    pub pay: Msat,
}

impl Acceptance {
    /// What an order pays for a part of what one of its receipts says; none on overflow, for a stage that it does not have,
    /// and for driving by another receipt than the last.
    #[must_use]
    pub fn pay_of(order: &SessionOpen, receipt: &StageReceipt, part: Part) -> Option<Msat> {
        let stage = usize::from(receipt.stage);
        let position = match part {
            Part::Stage => order.prices.get(stage)?.checked_mul(u64::from(receipt.range.count()))?,
            Part::Driving if stage + 1 == order.route.len() => order.master_fee,
            Part::Driving => return None,
        };
        position.checked_mul(u64::from(receipt.positions))
    }

    /// Who is paid.
    #[must_use]
    pub fn payee(&self) -> NodeId {
        match self.part {
            Part::Stage => self.receipt.signer(),
            Part::Driving => self.order.payload().driver,
        }
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
        Invalid::unless(!(self.drawn && self.part == Part::Driving), "drawn", "driving is not audited")?;
        Invalid::unless(Self::pay_of(order, receipt, self.part) == Some(self.pay), "pay", "not what the order pays")
    }
}
