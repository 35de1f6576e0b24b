//! The log of a run: each record is checked against the one before.

use std::collections::BTreeMap;

use consortium_protocol::wire::Message;
use consortium_protocol::wire::train::{Entry, Record, RunId, RunSpec};
use consortium_protocol::{Msat, NodeId, Signed};

use super::outcome::{Unfit, genesis, outcome};

/// Why an entry does not continue a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEntry {
    /// It breaks a rule of its type.
    #[error(transparent)]
    Invalid(#[from] consortium_protocol::Invalid),
    /// It is of another run, or another round than the next.
    #[error("another run, or not the next round")]
    Order,
    /// It names another record as the one before.
    #[error("the record before is another")]
    Previous,
    /// It is said to be older than the record before.
    #[error("its time is before that of the record before")]
    Time,
    /// Fewer validators than the quorum sealed it.
    #[error("not sealed by a quorum of the validators")]
    Quorum,
    /// Nothing follows from its body.
    #[error("its body does not fit: {0}")]
    Unfit(#[from] Unfit),
    /// Something else follows from its body than it says: scores, pay, ratings, people or beacon.
    #[error("its outcome does not follow from its body")]
    Outcome,
}

/// A run as far as it is certain. Holding one means that everything in it was checked.
#[derive(Clone, Debug)]
pub struct Chain {
    spec: Signed<RunSpec>,
    last: Record,
    entry: Option<Entry>,
}

impl Chain {
    /// A run before its first round.
    #[must_use]
    pub fn new(spec: Signed<RunSpec>) -> Self {
        Self { last: genesis(&spec), spec, entry: None }
    }

    /// The run.
    #[must_use]
    pub fn run(&self) -> RunId {
        self.last.run
    }

    /// Its specification.
    #[must_use]
    pub fn spec(&self) -> &RunSpec {
        self.spec.payload()
    }

    /// The last record.
    #[must_use]
    pub fn last(&self) -> &Record {
        &self.last
    }

    /// The last entry; none before the first.
    #[must_use]
    pub fn entry(&self) -> Option<&Entry> {
        self.entry.as_ref()
    }

    /// The round that is going on.
    #[must_use]
    pub fn round(&self) -> u64 {
        self.last.round + 1
    }

    /// Checks an entry and goes on from it.
    ///
    /// # Errors
    /// The entry is not what follows; the chain stays as it was.
    pub fn append(&mut self, entry: Entry) -> Result<(), BadEntry> {
        entry.check()?;
        let record = &entry.record;
        if record.run != self.run() || record.round != self.round() {
            return Err(BadEntry::Order);
        }
        if record.previous != self.last.id() {
            return Err(BadEntry::Previous);
        }
        if record.at_ms < self.last.at_ms {
            return Err(BadEntry::Time);
        }
        let ours = entry.seals.signers().filter(|signer| self.last.validator(*signer).is_some()).count();
        if ours != entry.seals.seals.len() || ours < self.spec().quorum as usize {
            return Err(BadEntry::Quorum);
        }
        if outcome(self.spec(), &self.last, &entry.body, record.view, record.at_ms)? != *record {
            return Err(BadEntry::Outcome);
        }
        self.last = entry.record.clone();
        self.entry = Some(entry);
        Ok(())
    }
}

/// What a replayed log comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// The last record.
    pub last: Record,
    /// What each peer earned, less its fees, in millisatoshi: negative for who came out with less than it began with.
    pub balances: BTreeMap<NodeId, i128>,
    /// What was paid out to each.
    pub paid: BTreeMap<NodeId, Msat>,
    /// In how many rounds each validator's losses were off from the medians.
    pub strayed: BTreeMap<NodeId, u64>,
}

/// A log that is replayed, entry by entry.
#[derive(Clone, Debug)]
pub struct Replaying {
    chain: Chain,
    sums: Replay,
}

impl Replaying {
    /// Before the first entry.
    #[must_use]
    pub fn new(spec: Signed<RunSpec>) -> Self {
        let chain = Chain::new(spec);
        let sums = Replay {
            last: chain.last().clone(),
            balances: BTreeMap::new(),
            paid: BTreeMap::new(),
            strayed: BTreeMap::new(),
        };
        Self { chain, sums }
    }

    /// The log so far.
    #[must_use]
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Checks the next entry and adds up what it pays.
    ///
    /// # Errors
    /// It does not fit.
    pub fn append(&mut self, entry: Entry) -> Result<(), BadEntry> {
        self.chain.append(entry)?;
        let record = self.chain.last();
        for outcome in &record.outcomes {
            *self.sums.balances.entry(outcome.peer).or_default() +=
                i128::from(outcome.pay.0) - i128::from(outcome.fee.0);
        }
        for (peer, units) in &record.payouts {
            let amount = self.chain.spec().pay.unit.checked_mul(u64::from(*units));
            let sum = self.sums.paid.entry(*peer).or_default();
            *sum = amount.and_then(|amount| sum.checked_add(amount)).ok_or(Unfit::Sum)?;
        }
        for validator in &record.validators {
            *self.sums.strayed.entry(validator.id).or_default() += u64::from(validator.strayed > 0);
        }
        Ok(())
    }

    /// What it came to.
    #[must_use]
    pub fn finish(self) -> Replay {
        Replay { last: self.chain.last, ..self.sums }
    }
}

/// Checks a whole log without a model: signatures, chain, quorums, beacons, and that the very scores and pay follow from
/// the signed losses. That the losses themselves are true takes the model and the data: see [`crate::run::replay`].
///
/// # Errors
/// The round of the first entry that does not fit, and why.
pub fn replay<'a>(
    spec: Signed<RunSpec>,
    entries: impl IntoIterator<Item = &'a Entry>,
) -> Result<Replay, (u64, BadEntry)> {
    let mut replaying = Replaying::new(spec);
    for entry in entries {
        let round = replaying.chain().round();
        replaying.append(entry.clone()).map_err(|bad| (round, bad))?;
    }
    Ok(replaying.finish())
}
