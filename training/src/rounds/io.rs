//! What goes into the machine, and what comes out.

use std::sync::Arc;

use consortium_protocol::wire::train::{
    Beacon, Commit, Entry, LossPair, Measure, Pledged, Refusal, ScoreCard, TrainMessage,
};
use consortium_protocol::{Hash, Millis, Msat, NodeId, RootKey, Signed};
use serde::{Deserialize, Serialize};

use super::Ballot;

/// What a node would do in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wish {
    /// Follow it.
    Watch,
    /// Train.
    Train,
    /// Judge, as soon as there is a place. Validators of the run judge whatever they wish.
    Validate,
}

/// Parameters on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// The round whose record was carried out; 0 for the initial ones.
    pub round: u64,
    /// Their hash.
    pub state: Hash,
}

/// What a machine begins with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's key.
    pub key: Arc<RootKey>,
    /// What it would do.
    pub wish: Wish,
    /// How often to say again what may have been lost.
    pub resend: Millis,
    /// The parameters it has.
    pub held: Option<Held>,
}

/// What a node must remember of a run, in the order in which it was said to. Of all but entries, which are the log, only
/// the newest of its kind counts; of what this peer committed to, the newest of each of the last two rounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stored {
    /// Certain records, one after the other.
    Entries(Vec<Entry>),
    /// How far this validator bound itself.
    Ballot(Ballot),
    /// What this validator measured: it must not say another thing in this round.
    Card(Signed<ScoreCard>),
    /// What this peer committed to: it must not commit to another thing in this round.
    Trained {
        /// The commitment.
        commit: Signed<Commit>,
        /// The update.
        update: Hash,
        /// Its length.
        bytes: u64,
    },
}

/// What happens to the machine.
#[derive(Clone, Debug)]
pub enum Input {
    /// A message arrived; `from` passed it on.
    Message {
        /// Who to ask back.
        from: NodeId,
        /// The message.
        message: TrainMessage,
    },
    /// Time went by; several times in the shortest phase.
    Tick,
    /// [`Output::Train`] is done.
    Trained {
        /// The round.
        round: u64,
        /// BLAKE3 of the update.
        update: Hash,
        /// Its length.
        bytes: u64,
    },
    /// [`Output::Train`] cannot be done, and not in this round any more.
    NotTrained {
        /// The round.
        round: u64,
    },
    /// [`Output::Fetch`] is done.
    Fetched {
        /// The round.
        round: u64,
        /// Whose update.
        peer: NodeId,
        /// Whether it is here, well formed, and of the right length.
        result: Result<(), FetchFailure>,
    },
    /// [`Output::Evaluate`] is done.
    Evaluated {
        /// The round.
        round: u64,
        /// What the last aggregate did, if that was to be judged.
        aggregate: Vec<LossPair>,
        /// Of each update of the order.
        findings: Vec<(NodeId, Result<Measure, Refusal>)>,
    },
    /// [`Output::Aggregate`], [`Output::Revert`] or [`Output::Resync`] is done, and durable.
    Applied(Held),
    /// It could not be done; the parameters are to be fetched.
    NotApplied,
    /// A validator says that it holds this node's bond: a join takes that where the run wants it, and a new one each time,
    /// of the round that goes on.
    Pledged(Signed<Pledged>),
    /// This node would leave at the end of the round.
    Leave,
    /// It would take part again, after [`Self::Leave`].
    Return,
}

/// Why an update is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchFailure {
    /// Nobody gave it, or it was longer than said.
    Missing,
    /// It is no update of this model.
    Malformed,
}

/// What the machine wants done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Tell everyone in the run; may be lost. [`TrainMessage::is_small`] tells what gossip carries; of the rest, a
    /// proposal or a new view goes to the validators, an entry to everyone.
    Broadcast(TrainMessage),
    /// Tell one node; may be lost.
    Send {
        /// The node.
        to: NodeId,
        /// The message.
        message: TrainMessage,
    },
    /// Send the entry of this round, and those after it, from the log, as many as one message takes.
    SendEntries {
        /// To whom.
        to: NodeId,
        /// The round.
        round: u64,
    },
    /// Make this durable before anything that follows is done.
    Persist(Stored),
    /// Train on this node's part of the assignment.
    Train {
        /// The round.
        round: u64,
        /// Rounds with training before this one: the place in the schedule of the learning rate.
        trained: u64,
        /// Draws the rows.
        beacon: Beacon,
        /// Among whom, in this order.
        peers: Vec<NodeId>,
        /// State hash of the parameters to begin from: the newest, or for who comes back late those of before.
        base: Hash,
    },
    /// From now on give the update to whoever asks.
    Publish {
        /// The round.
        round: u64,
        /// BLAKE3 of the update.
        update: Hash,
    },
    /// Fetch an update.
    Fetch {
        /// The round.
        round: u64,
        /// Whose.
        peer: NodeId,
        /// BLAKE3 of it.
        update: Hash,
        /// Its length.
        bytes: u64,
    },
    /// Measure updates.
    Evaluate {
        /// The round.
        round: u64,
        /// Draws the peers' own rows and those that are nobody's.
        assignment: Beacon,
        /// Among whom, in this order.
        peers: Vec<NodeId>,
        /// Draws the held-out rows.
        evaluation: Beacon,
        /// State hash of the common parameters.
        base: Hash,
        /// Of those that the peers trained from: the same, or where peers do not wait those that the round before began from.
        from: Hash,
        /// The parameters before the last aggregate, if that is to be judged: their loss is `before`.
        judge: Option<Hash>,
        /// The updates, in the order in which they were committed to here.
        updates: Vec<(NodeId, Hash)>,
    },
    /// Apply these updates in this order, and keep the parameters of before for a round.
    Aggregate {
        /// The round.
        round: u64,
        /// State hash of the parameters to apply them to.
        base: Hash,
        /// Peer, BLAKE3 and length of each.
        updates: Vec<(NodeId, Hash, u64)>,
    },
    /// Take back the last aggregate.
    Revert {
        /// The round whose record says so.
        round: u64,
        /// State hash of the parameters of before.
        to: Hash,
    },
    /// Fetch the common parameters.
    Resync {
        /// The round whose record they follow from.
        round: u64,
        /// Their hash.
        state: Hash,
        /// Who says it has them; more may.
        donors: Vec<NodeId>,
    },
    /// The sponsor is to pay this: whole units of the run's smallest tranche.
    Owe {
        /// Whom.
        peer: NodeId,
        /// By the record of this round.
        round: u64,
        /// How much.
        amount: Msat,
        /// In units.
        units: u32,
    },
    /// The run has ended; the log is complete.
    Ended,
}
