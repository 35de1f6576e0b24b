//! Runs as they are shown to people and programs.

use consortium_protocol::wire::train::{Entry, Fate, Finite, RunId, RunSpec};
use consortium_protocol::{NodeId, Signed};
use consortium_training::rounds::Wish;
use consortium_training::run::held_out_loss;
use serde::{Deserialize, Serialize};

use super::pause::Standing;

/// A run in a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    /// Its name among nodes.
    pub run: RunId,
    /// Its name among people.
    pub name: String,
    /// Who announced it, and pays.
    pub author: NodeId,
    /// The model's name.
    pub model: String,
    /// How many parameters that has; 0 if its shape cannot be read.
    pub parameters: u64,
    /// When it begins, in milliseconds since 1970.
    pub starts_at_ms: u64,
    /// Rounds with training that it is to have.
    pub rounds: u64,
    /// Whether peers train on while a round is judged.
    #[serde(default)]
    pub overlap: bool,
    /// Peers that take part, as far as is known.
    pub peers: u32,
    /// Validators.
    pub validators: u32,
    /// Most that all peers together get for a round, in millisatoshi.
    pub budget_msat: u64,
    /// What this node does in it; none if it takes no part.
    pub wish: Option<Wish>,
    /// The last certain round that this node knows; 0 before the first.
    pub round: u64,
    /// Rounds with training up to it; 0 in a run that this node only heard of, or has left.
    pub trained: u64,
    /// The file that comes before this node can take part; none if none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coming: Option<Coming>,
}

/// A file of a run on its way here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coming {
    /// What it is.
    pub what: String,
    /// Bytes of it that are here.
    pub here: u64,
    /// All of its bytes.
    pub bytes: u64,
}

impl RunSummary {
    /// Of a run that was only heard of.
    #[must_use]
    pub fn of(spec: &Signed<RunSpec>) -> Self {
        let said = spec.payload();
        Self {
            run: RunId::of(spec),
            name: said.name.clone(),
            author: spec.signer(),
            model: said.model.name.clone(),
            parameters: parameters(said),
            starts_at_ms: said.starts_at_ms,
            rounds: said.rounds,
            overlap: said.training.overlap,
            peers: 0,
            validators: u32::try_from(said.validators.len()).unwrap_or(u32::MAX),
            budget_msat: said.pay.budget.0,
            wish: None,
            round: 0,
            trained: 0,
            coming: None,
        }
    }
}

/// How many parameters the model of a run has; 0 if its shape is none.
fn parameters(spec: &RunSpec) -> u64 {
    let config = consortium_training::run::config_of(&spec.model.config);
    let shape = |shape: Vec<usize>| shape.iter().map(|n| *n as u64).product::<u64>();
    config.map_or(0, |config| config.parameters().into_iter().map(|p| shape(p.1)).sum())
}

/// What goes on in a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The run has not begun.
    #[default]
    Waiting,
    /// Peers take local steps.
    Training,
    /// This peer has committed to its update.
    Committed,
    /// Updates are fetched and measured.
    Scoring,
    /// Validators agree on the record.
    Settling,
    /// This node has not the common parameters, or not the whole log.
    CatchingUp,
    /// The run has ended, or this node has left it.
    Ended,
}

/// A run that this node takes part in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunStatus {
    /// The run.
    #[serde(flatten)]
    pub summary: RunSummary,
    /// What goes on.
    pub phase: Phase,
    /// The round whose record the parameters here follow; none if there are none yet.
    pub held_round: Option<u64>,
    /// Whether those are the parameters after the last record.
    pub in_sync: bool,
    /// Local steps that this node has taken in the round, and how many it takes.
    pub progress: (u64, u64),
    /// The newest rounds, the oldest first. In JSON they are the `history`: `rounds` is how many there are to be.
    #[serde(rename = "history")]
    pub rounds: Vec<RoundLine>,
    /// Tokens that this node's local steps took each second in the last round that it trained in; 0 before.
    pub tokens_per_second: f64,
    /// All that this node ever earned in the run, in millisatoshi.
    pub earned_msat: u64,
    /// All fees of its refused updates, in millisatoshi.
    pub fees_msat: u64,
    /// All that was to be paid out to it so far, in millisatoshi.
    pub paid_msat: u64,
    /// How long rounds take by their records, in seconds: the mean over the newest; 0 before there are two.
    pub seconds_per_round: f64,
    /// How it stands with its terms, if it trains on terms: [`super::pause`].
    pub pause: Option<Standing>,
    /// This node's bond; none if the run wants none, or this node has pledged none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bond: Option<BondView>,
    /// What went wrong last, and was not put right since.
    pub last_error: Option<String>,
}

/// How this node's bond for a run is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BondView {
    /// How it is doing.
    pub state: BondState,
    /// How much it is, in millisatoshi.
    pub msat: u64,
    /// The validator that holds it, or held it last.
    pub validator: Option<NodeId>,
    /// While it is held: the height of the chain at which it goes back, whatever happens.
    pub deadline: Option<u32>,
    /// Why nothing goes on.
    pub why: Option<String>,
}

/// How a bond is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BondState {
    /// This node would pledge it, and nothing is locked yet.
    Wanted,
    /// It is locked.
    Held,
    /// It came back.
    Returned,
    /// The validator took it.
    Forfeited,
}

impl RunStatus {
    /// Of a run that has not begun here.
    #[must_use]
    pub fn new(summary: RunSummary) -> Self {
        Self {
            summary,
            phase: Phase::Waiting,
            held_round: None,
            in_sync: false,
            progress: (0, 0),
            rounds: Vec::new(),
            tokens_per_second: 0.0,
            earned_msat: 0,
            fees_msat: 0,
            paid_msat: 0,
            seconds_per_round: 0.0,
            pause: None,
            bond: None,
            last_error: None,
        }
    }
}

/// A round that is certain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundLine {
    /// Its number.
    pub round: u64,
    /// When its record was made by its lead's clock, in milliseconds since 1970.
    pub at_ms: u64,
    /// Seconds since the record before.
    pub seconds: f64,
    /// Mean loss of the parameters that the round began from, on its held-out batches, in nats per token.
    pub held_out_loss: Option<f64>,
    /// Whether it took back the aggregate before.
    pub reverted: bool,
    /// Validators who signed losses that are not those of most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub strayed: Vec<NodeId>,
    /// What became of the peers.
    pub peers: Vec<PeerLine>,
}

/// What became of a peer in a round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerLine {
    /// The peer.
    pub node: NodeId,
    /// Mean score on batches that nobody trained on.
    pub score: Option<f64>,
    /// Its rating after the round: the mean less three deviations.
    pub rating: f64,
    /// `accepted`, or why its update was refused.
    pub fate: String,
    /// What it earned, in millisatoshi.
    pub pay_msat: u64,
    /// What its refused update cost it, in millisatoshi.
    pub fee_msat: u64,
}

impl RoundLine {
    /// Of an entry; `before_ms` is the time of the one before.
    #[must_use]
    pub fn of(entry: &Entry, before_ms: Option<u64>) -> Self {
        let record = &entry.record;
        let peers = record.outcomes.iter().map(|outcome| {
            let rating = record.member(outcome.peer).map_or(0.0, |m| m.mu.get() - 3.0 * m.sigma.get());
            PeerLine {
                node: outcome.peer,
                score: outcome.score.map(Finite::get),
                rating,
                fate: fate(&outcome.fate),
                pay_msat: outcome.pay.0,
                fee_msat: outcome.fee.0,
            }
        });
        let seconds = before_ms.map_or(0.0, |before| record.at_ms.saturating_sub(before) as f64 / 1e3);
        Self {
            round: record.round,
            at_ms: record.at_ms,
            seconds,
            held_out_loss: held_out_loss(entry),
            reverted: record.reverts,
            strayed: record.validators.iter().filter(|v| v.strayed > 0).map(|v| v.id).collect(),
            peers: peers.collect(),
        }
    }
}

fn fate(fate: &Fate) -> String {
    match fate {
        Fate::Accepted { .. } => "accepted".to_owned(),
        Fate::Refused(refusal) => kebab(&format!("{refusal:?}")),
    }
}

/// `BelowMargin` as `below-margin`.
fn kebab(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 2);
    for letter in name.chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.extend(letter.to_lowercase());
    }
    text
}

/// What [`super::Trainings::export`] wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// Rounds in the log.
    pub rounds: u64,
    /// Updates that are with it.
    pub updates: u64,
    /// Updates that the log names and that this node has no more: losses of their rounds cannot be computed again.
    pub missing: u64,
    /// Whether the parameters that the run began with are with it.
    pub initial: bool,
    /// The round that the newest parameters follow.
    pub held_round: Option<u64>,
}
