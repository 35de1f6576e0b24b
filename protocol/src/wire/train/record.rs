//! Records: what came of a round, and where the run stands after it.

use serde::{Deserialize, Serialize};

use super::{
    Beacon, Candidate, Certified, Commit, EvalNonce, Finite, Join, Locks, LossPair, MAX_ACCOUNTS, MAX_BATCHES,
    MAX_CANDIDATES, MAX_PEERS, MAX_VALIDATORS, Reveal, RunId, ScoreCard, check_time, rises,
};
use crate::cbor;
use crate::envelope::{Invalid, Payload, Signed};
use crate::hash::Hash;
use crate::identity::NodeId;
use crate::msat::Msat;
use crate::wire::Message;

/// Longest [`Record`], in bytes: 64 outcomes of at most 400, 128 members of at most 270, and the rest.
pub(super) const MAX_RECORD: usize = 80 * 1024;
/// Longest [`Body`], in bytes: nine cards, and for each of 64 peers two commitments, a reveal and a join of at most 2100 together.
pub(super) const MAX_BODY: usize = MAX_VALIDATORS * (ScoreCard::MAX_BYTES + 200) + MAX_PEERS * 2100;

/// Why an update is kept out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Refusal {
    /// The peer committed to nothing.
    Missing,
    /// It committed when that was over.
    Late,
    /// It committed to two things.
    Equivocated,
    /// What it committed to could not be had in time.
    Withheld,
    /// It is not an update of this model.
    Malformed,
    /// The peer says itself that it began from other parameters than the common ones.
    WrongState,
    /// A loss was no positive number.
    NoLoss,
    /// Most validators do not say that they measured it, nor why not.
    Disputed,
    /// It is too much like another peer's.
    Copy,
    /// The peer trained on other parameters than the common ones.
    OutOfSync,
    /// It makes batches worse that nobody trained on, or a single held-out one by much.
    Harm,
    /// It does not improve the loss on what nobody trained on by the margin.
    BelowMargin,
    /// The aggregate that it was trained from was taken back.
    Reverted,
}

impl Refusal {
    /// Whether a validator can see it by itself; the others follow from all cards.
    #[must_use]
    pub fn is_observed(self) -> bool {
        self <= Self::NoLoss
    }

    /// Whether its peer pays for the work that it made.
    #[must_use]
    pub fn costs_fee(self) -> bool {
        !matches!(self, Self::Missing | Self::Late | Self::Disputed | Self::Reverted)
    }
}

/// What became of a peer's update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It is in the aggregate.
    Accepted {
        /// BLAKE3 of the update.
        update: Hash,
        /// How long it is.
        bytes: u64,
        /// Digest of the norms of its tensors; the medians that clip follow from those of all accepted updates.
        norms: Hash,
    },
    /// It is not.
    Refused(Refusal),
}

/// What a round brought a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// The peer.
    pub peer: NodeId,
    /// What became of its update.
    pub fate: Fate,
    /// Its mean score on batches that nobody trained on, of median losses; none if too few measured it.
    pub score: Option<Finite>,
    /// The pair of median score of each batch of its own rows.
    pub assigned: Vec<LossPair>,
    /// Of each batch of rows that were nobody's.
    pub unassigned: Vec<LossPair>,
    /// Of each held-out batch.
    pub held_out: Vec<LossPair>,
    /// What it earned.
    pub pay: Msat,
    /// What its refused update cost it.
    pub fee: Msat,
}

/// A peer's account, over all rounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// The peer.
    pub peer: NodeId,
    /// Whether it takes part in the next round.
    pub active: bool,
    /// The round of the newest [`Join`] that was heeded, or of its last part in the run; of who did not deliver then, the
    /// last round that it sits out. A [`Join`] of a later round counts.
    pub since: u64,
    /// Mean of its rating.
    pub mu: Finite,
    /// Standard deviation of its rating.
    pub sigma: Finite,
    /// How reliably its updates improve its own batches more than others; -1 to 1.
    pub reliability: Finite,
    /// What its updates were worth together, and the variance of that; zero where every update is judged by itself, and then
    /// not written.
    #[serde(default, skip_serializing_if = "Finite::is_zero")]
    pub merit: Finite,
    /// See [`Self::merit`].
    #[serde(default, skip_serializing_if = "Finite::is_zero")]
    pub merit_variance: Finite,
    /// All that it ever earned.
    pub earned: Msat,
    /// All fees; may be more than was earned.
    pub fees: Msat,
    /// All that was ever to be paid out.
    pub paid: Msat,
}

impl Member {
    /// What it is still owed; zero if its fees are higher.
    #[must_use]
    pub fn due(&self) -> Msat {
        self.fees.checked_add(self.paid).and_then(|less| self.earned.checked_sub(less)).unwrap_or(Msat::ZERO)
    }
}

/// A validator of the next round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validator {
    /// Its name.
    pub id: NodeId,
    /// In how many records before this one in a row its card, or its nonce, was missing; this one included.
    pub silent: u32,
    /// How many of its losses in this round are off from the medians by more than machines differ.
    pub strayed: u32,
    /// What it will open in the next round.
    pub locks: Option<Locks>,
}

/// Who waits to become a validator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidacy {
    /// Its name.
    pub id: NodeId,
    /// The record that first listed it.
    pub since: u64,
    /// The round in which it last said so.
    pub heard: u64,
}

/// What is fixed a round earlier where peers train while a round is judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ahead {
    /// The peers of the next round, in ascending order: those that were active after the record before, for they train already.
    pub peers: Vec<NodeId>,
    /// The draw of the assignment of the round after the next, among those that are active after this record.
    pub assignment: Beacon,
}

/// The record of a round. Everything in it but `view` and `at_ms` follows from the specification, the record before and
/// the body; whoever has these can check it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The run.
    pub run: RunId,
    /// The round, from 1; the record before the first, 0, follows from the specification alone. In round 1 nobody
    /// trains: peers join and validators lock their first nonces.
    pub round: u64,
    /// The attempt in which it was first proposed; its lead follows from that.
    pub view: u64,
    /// Wall time at its lead, in milliseconds since 1970: not before that of the record before, and near that of those who
    /// voted for it.
    pub at_ms: u64,
    /// Id of the record before.
    pub previous: Hash,
    /// Digest of the body.
    pub body: Hash,
    /// State hash of the parameters that the round began from.
    pub base: Hash,
    /// Whether the last aggregate is to be taken back: it made things worse.
    pub reverts: bool,
    /// Rounds so far in which an update was measured.
    pub trained: u64,
    /// Whether this is the last record.
    pub ended: bool,
    /// What the round brought, for each of its peers in ascending order.
    pub outcomes: Vec<Outcome>,
    /// What is paid out now, in units of the run's smallest tranche: 1 to 4095, in ascending order of the peers.
    pub payouts: Vec<(NodeId, u32)>,
    /// All accounts, in ascending order of the peers.
    pub members: Vec<Member>,
    /// The validators of the next round, in ascending order.
    pub validators: Vec<Validator>,
    /// Who would become one, in ascending order.
    pub candidates: Vec<Candidacy>,
    /// The draw of the next round's assignment.
    pub assignment: Beacon,
    /// What is fixed beyond the next round; nothing, and not written, where peers wait for the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<Ahead>,
}

impl Record {
    /// The name of the record.
    #[must_use]
    pub fn id(&self) -> Hash {
        let mut bytes = b"consortium/train-record\0".to_vec();
        bytes.extend_from_slice(&cbor::to_vec(self));
        Hash::of(&bytes)
    }

    /// The peers that are active, in ascending order: those of the next round, or, where that was fixed a round earlier, of the
    /// one after.
    pub fn peers(&self) -> impl Iterator<Item = NodeId> {
        self.members.iter().filter(|member| member.active).map(|member| member.peer)
    }

    /// The account of a peer.
    #[must_use]
    pub fn member(&self, peer: NodeId) -> Option<&Member> {
        self.members.binary_search_by_key(&peer, |member| member.peer).ok().map(|place| &self.members[place])
    }

    /// A validator of the next round.
    #[must_use]
    pub fn validator(&self, id: NodeId) -> Option<&Validator> {
        self.validators.binary_search_by_key(&id, |validator| validator.id).ok().map(|place| &self.validators[place])
    }

    /// The lead of the next round in an attempt.
    #[must_use]
    pub fn lead(&self, view: u64) -> Option<NodeId> {
        let count = self.validators.len() as u64;
        let turn = (self.round % count.max(1) + 1 + view % count.max(1)) % count.max(1);
        self.validators.get(usize::try_from(turn).ok()?).map(|validator| validator.id)
    }

    /// The accepted updates, in the order in which they are aggregated.
    pub fn accepted(&self) -> impl Iterator<Item = (NodeId, Hash, u64)> {
        self.outcomes.iter().filter_map(|outcome| match outcome.fate {
            Fate::Accepted { update, bytes, .. } => Some((outcome.peer, update, bytes)),
            Fate::Refused(_) => None,
        })
    }

    /// Bounds and order of the lists.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn check(&self) -> Result<(), Invalid> {
        check_time(self.at_ms, "at_ms")?;
        Invalid::unless(self.round <= i64::MAX as u64 && self.view <= i64::MAX as u64, "round", "above 2^63 - 1")?;
        Invalid::unless(self.outcomes.len() <= MAX_PEERS, "outcomes", "more than 64")?;
        Invalid::unless(rises(self.outcomes.iter().map(|o| o.peer)), "outcomes", "not in ascending order")?;
        Invalid::unless(self.payouts.len() <= MAX_ACCOUNTS, "payouts", "more than 128")?;
        Invalid::unless(rises(self.payouts.iter().map(|p| p.0)), "payouts", "not in ascending order")?;
        Invalid::unless(self.members.len() <= MAX_ACCOUNTS, "members", "more than 128")?;
        Invalid::unless(rises(self.members.iter().map(|m| m.peer)), "members", "not in ascending order")?;
        Invalid::unless(self.peers().count() <= MAX_PEERS, "members", "more than 64 that are active")?;
        Invalid::unless((1..=MAX_VALIDATORS).contains(&self.validators.len()), "validators", "1 to 9")?;
        Invalid::unless(rises(self.validators.iter().map(|v| v.id)), "validators", "not in ascending order")?;
        Invalid::unless(self.candidates.len() <= MAX_CANDIDATES, "candidates", "more than 16")?;
        Invalid::unless(rises(self.candidates.iter().map(|c| c.id)), "candidates", "not in ascending order")?;
        let ahead = self.ahead.iter().all(|ahead| ahead.peers.len() <= MAX_PEERS && rises(ahead.peers.iter().copied()));
        Invalid::unless(ahead, "ahead", "more than 64 peers, or not in ascending order")?;
        let few = |o: &Outcome| [&o.assigned, &o.unassigned, &o.held_out].iter().all(|kind| kind.len() <= MAX_BATCHES);
        Invalid::unless(self.outcomes.iter().all(few), "outcomes", "more than 4 batches")
    }
}

/// What a record follows from: signed statements, each list in ascending order of its signers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    /// What validators measured.
    pub cards: Vec<Signed<ScoreCard>>,
    /// What the held-out batches were drawn with.
    pub nonces: Vec<Signed<EvalNonce>>,
    /// What peers committed to. Two by one peer prove that it said two things.
    pub commits: Vec<Signed<Commit>>,
    /// What they showed.
    pub reveals: Vec<Signed<Reveal>>,
    /// Who came or left.
    pub joins: Vec<Signed<Join>>,
    /// Who would be a validator.
    pub candidates: Vec<Signed<Candidate>>,
}

impl Body {
    /// BLAKE3 of its canonical encoding.
    #[must_use]
    pub fn digest(&self) -> Hash {
        Hash::of(&cbor::to_vec(self))
    }

    /// Bounds and order of the lists.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn check(&self) -> Result<(), Invalid> {
        fn by_signer<T: Payload>(list: &[Signed<T>], most: usize, field: &'static str) -> Result<(), Invalid> {
            let fits = list.len() <= most && rises(list.iter().map(Signed::signer));
            Invalid::unless(fits, field, "too many, or not in ascending order of the signers")
        }
        by_signer(&self.cards, MAX_VALIDATORS, "cards")?;
        by_signer(&self.nonces, MAX_VALIDATORS, "nonces")?;
        by_signer(&self.reveals, MAX_PEERS, "reveals")?;
        by_signer(&self.joins, MAX_PEERS, "joins")?;
        by_signer(&self.candidates, MAX_CANDIDATES, "candidates")?;
        let ordered = rises(self.commits.iter().map(|commit| (commit.signer(), commit.digest())));
        Invalid::unless(ordered && self.commits.len() <= 2 * MAX_PEERS, "commits", "too many, or out of order")
    }
}

/// A certified record with its body: what the log of a run is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The record.
    pub record: Record,
    /// What it follows from.
    pub body: Body,
    /// The validators' word that it is the only one of its round.
    pub seals: Certified,
}

impl Message for Entry {
    const MAX_BYTES: usize = MAX_RECORD + MAX_BODY + Certified::MAX_BYTES + 64;

    fn check(&self) -> Result<(), Invalid> {
        self.record.check()?;
        self.body.check()?;
        self.seals.check()?;
        Invalid::unless(self.record.body == self.body.digest(), "body", "another")?;
        let of = (self.seals.run, self.seals.round, self.seals.record);
        Invalid::unless(of == (self.record.run, self.record.round, self.record.id()), "seals", "of another record")
    }
}
