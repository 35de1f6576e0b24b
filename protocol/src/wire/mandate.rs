//! The payer's word that it will pay for a job.
//!
//! A master orders work that another pays for. So that it cannot name whom it likes, the payer signs a [`Mandate`] to the
//! one master that it hands the job to, and every order of the job encloses it ([`super::pipeline::SessionOpen`]). A job
//! that goes on under the next master goes on under a mandate to that one.

use serde::{Deserialize, Serialize};

use super::job::JobId;
use super::pipeline::SessionOpen;
use crate::cluster::ClusterId;
use crate::envelope::{Invalid, Payload, Signed};
use crate::hash::Hash;
use crate::identity::NodeId;
use crate::msat::Msat;

/// What its signer, the payer, lets a master order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mandate {
    /// The cluster.
    pub cluster: ClusterId,
    /// The job.
    pub job: JobId,
    /// Who may order work for it: nobody else.
    pub master: NodeId,
    /// Digest of the model.
    pub model: Hash,
    /// Positions that each stage may be given at most, all attempts together; at least 1.
    pub positions: u32,
    /// What one position through all layers may cost at most, the master's fee included.
    pub position_cost: Msat,
    /// The payer's commitment to the nonce of the audit's draw ([`super::audit::Nonce`]).
    pub challenge: Hash,
    /// Until when work may begin, in milliseconds since 1970.
    pub until_ms: u64,
}

impl Payload for Mandate {
    const DOMAIN: &'static str = "mandate";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 512;

    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(self.positions > 0, "positions", "none")
    }
}

/// Checks that an order is what its payer has signed for: a job of its own, by the master that it named, of this model,
/// with no more positions and at no higher cost. How long that holds, and how often, is not looked at here.
///
/// # Errors
/// The first field that the payer did not sign for.
pub fn check_mandate(order: &Signed<SessionOpen>) -> Result<(), Invalid> {
    let (open, signer) = (order.payload(), order.payload().mandate.signer());
    let mandate = open.mandate.payload();
    let rule = Invalid::unless;
    rule(open.payer == signer, "payer", "signed nothing for this order")?;
    rule((mandate.cluster, mandate.job) == (open.cluster, open.job), "job", "not what the payer signed for")?;
    rule(
        (mandate.master, mandate.master) == (order.signer(), open.driver),
        "driver",
        "not the master that the payer signed for",
    )?;
    rule(mandate.model == open.model, "model", "not what the payer signed for")?;
    rule(mandate.challenge == open.challenge, "challenge", "not what the payer signed for")?;
    rule(open.max_positions <= mandate.positions, "max_positions", "more than the payer signed for")?;
    let cost = open.position_cost();
    rule(cost.is_some_and(|cost| cost <= mandate.position_cost), "prices", "higher than the payer signed for")
}
