//! What the author of a run is to pay.

use consortium_protocol::wire::train::{Entry, RunId, RunSpec};
use consortium_protocol::{Msat, NodeId, Signed};

/// What the author of a run is to pay a peer. Run, peer and round name it: it is owed once, however often it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owed {
    /// The run.
    pub run: RunId,
    /// Who pays: this node.
    pub author: NodeId,
    /// Who is paid.
    pub peer: NodeId,
    /// By the record of this round.
    pub round: u64,
    /// How much.
    pub amount: Msat,
    /// In units of the run's smallest tranche.
    pub units: u32,
}

impl Owed {
    /// All that a certain entry pays out.
    pub fn by(spec: &Signed<RunSpec>, entry: &Entry) -> Vec<Self> {
        let (run, author, unit) = (RunId::of(spec), spec.signer(), spec.payload().pay.unit);
        let record = &entry.record;
        let owed = |(peer, units): &(NodeId, u32)| {
            let amount = unit.checked_mul(u64::from(*units))?;
            Some(Self { run, author, peer: *peer, round: record.round, amount, units: *units })
        };
        record.payouts.iter().filter_map(owed).collect()
    }
}
