//! What a certain record has its author pay.

use consortium_protocol::wire::train::{Entry, RunSpec};
use consortium_protocol::{Hash, NodeId, Signed};

use crate::train::Owed;

/// Domain of a payout's name.
const CONTEXT: &str = "consortium training payout 1";

/// Something to be paid, and what author, peer and validators know of it from the same record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// What.
    pub(super) owed: Owed,
    /// Its name.
    pub(super) name: Hash,
    /// The record that says so.
    pub(super) record: Hash,
    /// When that was proposed, in milliseconds since 1970.
    pub(super) at_ms: u64,
    /// Who may judge an escrow for it, in the order in which they try: the validators that the record names, but for those
    /// who pay or are paid.
    pub(super) judges: Vec<NodeId>,
}

/// The name of a payout: BLAKE3 in `derive_key` mode over the run, the round (big-endian) and the peer.
pub(super) fn name(owed: &Owed) -> Hash {
    let round = owed.round.to_be_bytes();
    let named = [owed.run.0.as_bytes().as_slice(), &round, owed.peer.as_bytes()].concat();
    Hash::from_bytes(blake3::derive_key(CONTEXT, &named))
}

impl Due {
    /// All that an entry has paid, but for what its author would pay to itself.
    pub(super) fn by(spec: &Signed<RunSpec>, entry: &Entry) -> Vec<Self> {
        let owed = Owed::by(spec, entry);
        if owed.is_empty() {
            return Vec::new();
        }
        let (record, at_ms) = (entry.record.id(), entry.record.at_ms);
        let due = |owed: Owed| {
            let judges = entry.record.validators.iter().map(|validator| validator.id);
            let judges = judges.filter(|id| *id != owed.author && *id != owed.peer).collect();
            Self { name: name(&owed), owed, record, at_ms, judges }
        };
        owed.into_iter().filter(|owed| owed.author != owed.peer).map(due).collect()
    }
}
