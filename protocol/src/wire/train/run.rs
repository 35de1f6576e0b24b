//! The specification of a run, signed by its author.

use serde::{Deserialize, Serialize};

use super::{Finite, MAX_BATCHES, MAX_CANDIDATES, MAX_PEERS, MAX_VALIDATORS, check_time, rises};
use crate::envelope::{Invalid, Payload};
use crate::hash::Hash;
use crate::identity::NodeId;
use crate::msat::Msat;
use crate::wire::{MAX_MODEL_NAME, check_text};

/// Longest `config.json` of a model, in bytes.
const MAX_CONFIG: usize = 4096;
/// Longest phase: a week.
const MAX_PHASE_MS: u64 = 7 * 24 * 3600 * 1000;
/// The smallest tranche of an escrow: of less, a channel that is closed by force makes fees.
pub(super) const LEAST_ESCROWED: Msat = Msat(355_000);
/// Longest update, in bytes.
const MAX_UPDATE: u64 = 4 << 30;

/// Everything that is fixed about a run. Its author signs it; the digest of that is the run's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// What people call it, 1 to 96 bytes.
    pub name: String,
    /// What is trained.
    pub model: ModelSpec,
    /// BLAKE3 of the tokenizer's file.
    pub tokenizer: Hash,
    /// What it is trained on.
    pub data: DataSpec,
    /// How it is trained.
    pub training: HyperParameters,
    /// Longest update taken, in bytes.
    pub max_update_bytes: u64,
    /// How long the parts of a round take.
    pub phases: Phases,
    /// With fewer peers a round passes without training.
    pub least_peers: u32,
    /// More are turned away.
    pub most_peers: u32,
    /// Who judges, in ascending order: that is their order of leading, too.
    pub validators: Vec<NodeId>,
    /// Who takes the place of a validator that is gone, the first first; after them whoever volunteered first.
    pub reserves: Vec<NodeId>,
    /// Signatures of validators that make a record certain: more than half of them.
    pub quorum: u32,
    /// Records without a card of a validator after which it is replaced.
    pub replace_after: u32,
    /// Batches of each measurement.
    pub batches: Batches,
    /// What is paid.
    pub pay: PaySchedule,
    /// The run ends after as many rounds in which an update was measured.
    pub rounds: u64,
    /// Wall time before which nothing begins, in milliseconds since 1970.
    pub starts_at_ms: u64,
}

/// A model before its first round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Its name.
    pub name: String,
    /// Its shape: `config.json` as in transformers, at most 4096 bytes.
    pub config: String,
    /// State hash of the initial parameters.
    pub initial: Hash,
}

/// The data of a run. Rows are numbered; training and held-out rows are never the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// Its name.
    pub name: String,
    /// BLAKE3 of the dataset, or of what generates it.
    pub digest: Hash,
    /// Rows to train on.
    pub training_rows: u64,
    /// Rows held out, numbered after them.
    pub held_out_rows: u64,
}

/// How peers train, and how their updates are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HyperParameters {
    /// Local steps of AdamW in a round.
    pub local_steps: u32,
    /// Rows of a step.
    pub batch: u32,
    /// Tokens of a row.
    pub sequence: u32,
    /// Highest inner learning rate.
    pub inner_rate: Finite,
    /// Rounds over which it rises to that.
    pub warmup_rounds: u32,
    /// The part of it that is left in the last round, after a cosine.
    pub final_part: Finite,
    /// Weight decay of AdamW.
    pub weight_decay: Finite,
    /// Outer learning rate.
    pub outer_rate: Finite,
    /// What is left of the error feedback after a round.
    pub feedback: Finite,
    /// Whether peers train on while a round is exchanged and judged. Then the local steps of a round begin from the parameters
    /// that the round before began from, and who trains on which rows is fixed a round earlier. Not written if they do not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overlap: bool,
}

/// Lengths of the parts of a round, in milliseconds. They are counted from when a node learns the record before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phases {
    /// Local steps.
    pub train_ms: u64,
    /// From then on until commitments are late.
    pub commit_ms: u64,
    /// From then on until updates must be at hand.
    pub reveal_ms: u64,
    /// From then on until cards are due.
    pub score_ms: u64,
    /// From then on until the next lead is tried; doubles with each.
    pub settle_ms: u64,
    /// How long a message between two honest validators takes at most. A validator waits for twice that before it seals,
    /// so that a lead that says two things is found out. Zero where the quorum makes that needless: see `rounds`.
    pub delta_ms: u64,
}

impl Phases {
    fn check(&self) -> Result<(), Invalid> {
        let all = [self.train_ms, self.commit_ms, self.reveal_ms, self.score_ms, self.settle_ms];
        Invalid::unless(all.iter().all(|ms| (1..=MAX_PHASE_MS).contains(ms)), "phases", "1 ms to 7 days")?;
        let seals_in_time = self.delta_ms.checked_mul(8).is_some_and(|least| least <= self.settle_ms);
        Invalid::unless(seals_in_time, "delta_ms", "above an eighth of settle_ms")
    }
}

/// Batches that every validator measures each update on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batches {
    /// Of the rows the peer was to train on, 1 to 4.
    pub assigned: u32,
    /// Of rows that nobody was to train on in this round; at most 4. With none the held-out ones stand for them.
    pub unassigned: u32,
    /// Of held-out rows, drawn when all have committed; 1 to 4.
    pub held_out: u32,
    /// By how many standard errors of its batches a score is doubted, before it counts against an update or an aggregate: 0 to
    /// 8. With none, which is not written, every update must show the margin by itself.
    #[serde(default, skip_serializing_if = "Finite::is_zero")]
    pub doubt: Finite,
}

/// How what a record pays out comes to its peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PayWay {
    /// Author and peer book it, each by the record; the tab between the two is settled as any other.
    #[default]
    Accounts,
    /// Over Lightning from the author to the peer, by an escrow for each payout that one of the run's validators judges.
    Escrow,
}

impl PayWay {
    /// Whether it goes without saying: then it is not written.
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// What is paid for a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaySchedule {
    /// Most that all peers together get for a round.
    pub budget: Msat,
    /// What an update of quality 1 gets, as far as the budget goes.
    pub base_rate: Msat,
    /// What an update that was measured and refused costs its peer.
    pub fee: Msat,
    /// The smallest tranche; the others are powers of two of it.
    pub unit: Msat,
    /// Units that must have come together before they are paid; 1 to 4095.
    pub least_units: u32,
    /// How it is paid.
    #[serde(default, skip_serializing_if = "PayWay::is_usual")]
    pub way: PayWay,
    /// What a peer pledges before it may join; nothing as a rule, and then it is not written. It goes back, but for abuse that
    /// the log proves: see `rounds`.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub bond: Msat,
}

fn is_nothing(amount: &Msat) -> bool {
    *amount == Msat::ZERO
}

impl PaySchedule {
    fn check(&self) -> Result<(), Invalid> {
        // Ten bitcoin: sums over all rounds and peers stay below 2^63 for ever.
        let most = Msat(10 * 100_000_000 * 1000);
        let bounded =
            [self.budget, self.base_rate, self.fee, self.unit, self.bond].iter().all(|amount| *amount <= most);
        Invalid::unless(bounded, "pay", "above ten bitcoin")?;
        Invalid::unless(self.unit > Msat::ZERO, "unit", "nothing")?;
        let locks = self.way == PayWay::Accounts || self.unit >= LEAST_ESCROWED;
        Invalid::unless(locks, "unit", "an escrow takes 355 sat at least: less cannot be enforced on the chain")?;
        Invalid::unless((1..4096).contains(&self.least_units), "least_units", "1 to 4095")
    }
}

impl RunSpec {
    fn check_people(&self) -> Result<(), Invalid> {
        let peers = 1..=self.most_peers;
        let most = u32::try_from(MAX_PEERS).unwrap_or(u32::MAX);
        Invalid::unless(peers.contains(&self.least_peers) && self.most_peers <= most, "peers", "1 to 64, least first")?;
        let count = self.validators.len();
        Invalid::unless((1..=MAX_VALIDATORS).contains(&count), "validators", "1 to 9")?;
        Invalid::unless(rises(&self.validators), "validators", "not in ascending order")?;
        Invalid::unless(self.reserves.len() <= MAX_CANDIDATES, "reserves", "more than 16")?;
        let listed = |node| self.validators.binary_search(node).is_ok();
        Invalid::unless(!self.reserves.iter().any(listed), "reserves", "one is a validator")?;
        let quorum = self.quorum as usize;
        Invalid::unless(quorum <= count && 2 * quorum > count, "quorum", "more than half of the validators")?;
        Invalid::unless((1..=1000).contains(&self.replace_after), "replace_after", "1 to 1000")
    }

    fn check_numbers(&self) -> Result<(), Invalid> {
        let t = &self.training;
        let counted = |n: u32, most: u32| (1..=most).contains(&n);
        let steps = counted(t.local_steps, 100_000) && counted(t.batch, 65_536) && counted(t.sequence, 1 << 20);
        Invalid::unless(steps, "training", "steps, batch or sequence out of bounds")?;
        let part = |number: Finite| (0.0..=1.0).contains(&number.get());
        let rates = [t.inner_rate, t.final_part, t.weight_decay, t.feedback].into_iter().all(part);
        Invalid::unless(rates && t.outer_rate.get() > 0.0 && t.outer_rate.get() <= 2.0, "training", "a rate is odd")?;
        let fits = |n: u32, least: usize| (least..=MAX_BATCHES).contains(&(n as usize));
        let b = &self.batches;
        Invalid::unless(fits(b.assigned, 1) && fits(b.unassigned, 0) && fits(b.held_out, 1), "batches", "1 to 4")?;
        Invalid::unless((0.0..=8.0).contains(&b.doubt.get()), "doubt", "0 to 8 standard errors")?;
        let rows = self.data.training_rows.checked_add(self.data.held_out_rows).is_some_and(|all| all < 1 << 62);
        let some = self.data.training_rows > 0 && self.data.held_out_rows > 0;
        Invalid::unless(rows && some, "data", "1 to 2^62 rows, some of them held out")?;
        Invalid::unless((1..=MAX_UPDATE).contains(&self.max_update_bytes), "max_update_bytes", "1 to 2^32")?;
        Invalid::unless((1..=1 << 20).contains(&self.rounds), "rounds", "1 to 2^20")
    }
}

impl Payload for RunSpec {
    const DOMAIN: &'static str = "train-run";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 8 * 1024;

    fn check(&self) -> Result<(), Invalid> {
        for (name, field) in [(&self.name, "name"), (&self.model.name, "model"), (&self.data.name, "data")] {
            Invalid::unless(!name.is_empty(), field, "without a name")?;
            check_text(name, MAX_MODEL_NAME, field)?;
        }
        check_text(&self.model.config, MAX_CONFIG, "config")?;
        self.phases.check()?;
        self.pay.check()?;
        self.check_people()?;
        self.check_numbers()?;
        self.check_bond()?;
        check_time(self.starts_at_ms, "starts_at_ms")
    }
}
