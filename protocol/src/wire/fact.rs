//! What gossip carries.

use serde::{Deserialize, Serialize};

use super::Message;
use super::audit::Verdict;
use super::election::Certificate;
use super::heartbeat::Heartbeat;
use super::ledger::{Equivocation, Rebuttal, TreeHead};
use super::train::RunSpec;
use crate::envelope::{Invalid, Signed};

/// A small signed fact about a cluster: true whoever passes it on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    /// A node's account of itself.
    Heartbeat(Signed<Heartbeat>),
    /// Who is master, and of which term.
    Certificate(Certificate),
    /// What an auditor found.
    Verdict(Signed<Verdict>),
    /// That an accusation of fraud does not hold.
    Rebuttal(Signed<Rebuttal>),
    /// How far a node's journal goes, and its root.
    TreeHead(Signed<TreeHead>),
    /// That a node said two things about its journal.
    Equivocation(Box<Equivocation>),
    /// That a training run is to be.
    Run(Signed<RunSpec>),
}

impl Message for Fact {
    // Gossipsub carries 64 KiB.
    const MAX_BYTES: usize = 48 * 1024;

    fn check(&self) -> Result<(), Invalid> {
        match self {
            Self::Equivocation(proof) => proof.check(),
            // Signatures and payload rules were checked while reading, and so was the certificate.
            Self::Heartbeat(_)
            | Self::Certificate(_)
            | Self::Verdict(_)
            | Self::Rebuttal(_)
            | Self::TreeHead(_)
            | Self::Run(_) => Ok(()),
        }
    }
}
