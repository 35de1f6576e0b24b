//! From a few wishes to a whole specification.

use std::sync::Arc;
use std::time::Instant;

use consortium_protocol::wire::train::{
    Batches, DataSpec, Finite, HyperParameters, MAX_VALIDATORS, ModelSpec, PaySchedule, PayWay, Phases, RunSpec,
};
use consortium_protocol::{Hash, Msat, NodeId, Payload};
use serde::{Deserialize, Serialize};

use super::data::{ROWS as ROWS_NAME, stories};
use super::size::ModelSize;
use super::submission::Submission;
use super::task::{examination_of, state_of, task_of};
use crate::collective::{Data, Parameters, Task};
use crate::corpus::Split;
use crate::dataset::{Files, Location, Packed, Read, pack};
use crate::error::TrainError;
use crate::gauntlet::DOUBT;
use crate::optimizer::AdamW;
use crate::sparseloco::{FEEDBACK, OUTER_RATE, compress};
use crate::tokenizer::Tokenizer;
use crate::trainer::gradients;

/// Rows to train on, and as many held out. They are generated: more cost nothing.
const ROWS: u64 = 1 << 20;
/// Rows of each split in which something to learn is looked for.
const LOOKED_AT: u64 = 32;
/// How much slower than planned a peer, or a validator, may be.
const SLACK: f64 = 3.0;
/// With a budget, what an update of quality 1 gets, and what a refused one costs, as parts of the budget of a round.
const BASE_PART: u64 = 20;
const FEE_PART: u64 = 50;
/// Where a peer may earn as much in a run, tranches are of a thousand sat and pay on-chain if they must; else of one sat.
const LARGE: u64 = 100_000;

/// What is paid for a round, in sat. Nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PayPlan {
    /// Most that all peers together get for a round.
    pub budget_sat: u64,
    /// What an update of quality 1 gets; by default a twentieth of the budget.
    pub base_sat: Option<u64>,
    /// What a refused update costs; by default a fiftieth of the budget.
    pub fee_sat: Option<u64>,
    /// The smallest tranche; by default 1 sat, or 1000 where a peer may earn a hundred times as much or escrows pay.
    pub unit_sat: Option<u64>,
    /// Whether escrows pay, in place of accounts.
    pub escrow: bool,
    /// What a peer pledges before it may join; nothing by default. Only where escrows pay.
    pub bond_sat: u64,
}

/// What may be chosen about a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunPlan {
    /// What people call it.
    pub name: String,
    /// What is trained.
    pub model: ModelSize,
    /// Names initial parameters, and the corpus where `data` has no files.
    pub seed: u64,
    /// Text to train on; stories that are generated if there is none.
    pub data: Files,
    /// Rounds with training.
    pub rounds: u64,
    /// Local steps of AdamW in a round.
    pub local_steps: u32,
    /// Rows of a local step.
    pub batch: u32,
    /// Tokens of a row.
    pub sequence: u32,
    /// Highest inner learning rate.
    pub inner_rate: f64,
    /// Rounds over which it rises to that.
    pub warmup_rounds: u32,
    /// The part of it that is left in the last round.
    pub final_part: f64,
    /// Weight decay of AdamW.
    pub weight_decay: f64,
    /// Whether peers train on while a round is exchanged and judged: see [`HyperParameters::overlap`].
    pub overlap: bool,
    /// With fewer peers a round passes without training.
    pub least_peers: u32,
    /// More are turned away.
    pub most_peers: u32,
    /// Who judges: 1 to 9 nodes, which do not train.
    pub validators: Vec<NodeId>,
    /// Who takes the place of a validator that is gone.
    pub reserves: Vec<NodeId>,
    /// Signatures that make a record certain; by default as [`quorum_of`] says.
    pub quorum: Option<u32>,
    /// See [`Phases::delta_ms`]; zero, unless the quorum is smaller than that of [`quorum_of`].
    pub delta_ms: u64,
    /// How fast the peers train; measured here if it is not said.
    pub tokens_per_second: Option<f64>,
    /// How much slower peers are than what was measured, as they share processors: 1 for machines of their own.
    pub crowding: f64,
    /// How fast the slowest link is, in megabits per second.
    pub link_mbit: f64,
    /// How long a message takes, at most, as a rule.
    pub latency_ms: u64,
    /// What is paid.
    pub pay: PayPlan,
    /// Wall time before which nothing begins, in milliseconds since 1970.
    pub starts_at_ms: u64,
}

impl RunPlan {
    /// The defaults for a model, with these validators. For `small` and `tiny` a round is 30 steps of 8 rows, of which an
    /// update's examination is 5 %; `nano` is for tests, and takes what is quick.
    #[must_use]
    pub fn new(model: ModelSize, validators: Vec<NodeId>) -> Self {
        let (rounds, local_steps, batch, sequence, inner_rate) = match model {
            ModelSize::Nano => (10, 4, 4, 48, 1e-2),
            ModelSize::Small => (40, 30, 8, 64, 4e-3),
            ModelSize::Tiny => (60, 30, 8, 128, 2.5e-3),
        };
        Self {
            name: format!("consortium-{model}"),
            model,
            seed: 1,
            data: Files::default(),
            rounds,
            local_steps,
            batch,
            sequence,
            inner_rate,
            warmup_rounds: 2,
            final_part: 0.1,
            weight_decay: 0.05,
            overlap: false,
            least_peers: 2,
            most_peers: 16,
            validators,
            reserves: Vec::new(),
            quorum: None,
            delta_ms: 0,
            tokens_per_second: None,
            crowding: 1.0,
            link_mbit: 10.0,
            latency_ms: 1000,
            pay: PayPlan::default(),
            starts_at_ms: 0,
        }
    }

    /// Makes all that an announcement needs: reads the data, trains the tokenizer, draws the initial parameters, measures how
    /// long a step takes where that is not said. It takes seconds. `parts` is on how many threads a step is measured.
    ///
    /// # Errors
    /// [`TrainError::Setting`] or [`TrainError::Run`] for a wish that makes no run, [`TrainError::Dataset`] or
    /// [`TrainError::Io`] for data that cannot be read.
    pub fn prepare(&self, parts: usize) -> Result<Prepared, TrainError> {
        let config = self.model.config();
        let mut spec = self.draft(serde_json::to_string(&config)?)?;
        // What is wrong is said before anything that takes time.
        check_bond(&spec)?;
        check(&spec)?;
        let (tokenizer, rows) = match self.data.paths.is_empty() {
            true => (Tokenizer::train(self.seed, self.model.documents(), config.vocab_size)?, None),
            false => {
                let packed = pack(&self.data, config.vocab_size, self.sequence as usize)?;
                spec.data = self.named(&packed);
                (packed.tokenizer, Some((packed.bytes, packed.read)))
            }
        };
        let tokenizer = tokenizer.to_json()?.into_bytes();
        spec.tokenizer = Hash::of(&tokenizer);
        let (data, read) = rows.unzip();
        let data: Option<Arc<[u8]>> = data.map(Arc::from);
        let task = task_of(&spec, &tokenizer, data.clone().map(Location::Memory), parts)?;
        check_stories(&task)?;
        let initial = Parameters::fresh(&task, self.seed)?;
        spec.model.initial = state_of(&initial);
        let row_seconds = match self.tokens_per_second {
            Some(speed) if speed.is_finite() && speed > 0.0 => f64::from(self.sequence) / speed,
            Some(_) => return Err(setting("tokens_per_second", "must be above zero")),
            None => row_seconds(&task, &initial)? * self.crowding.clamp(1.0, 1e3),
        };
        let update = compress(task.layout(), &mut task.layout().zeros(), initial.values())?.len() as u64;
        let most = Submission::longest(&task) as u64;
        let times = self.times(&spec, row_seconds, update)?;
        spec.max_update_bytes = most;
        spec.phases = self.phases(&times);
        check_bond(&spec)?;
        check(&spec)?;
        let beside = times.transfer + times.score + 2.0 * self.latency_ms as f64 / 1000.0;
        let cost = spec.pay.budget.checked_mul(spec.rounds);
        let expected = Expected {
            read,
            parameters: task.layout().parameters(),
            update_bytes: update,
            tokens_per_second: f64::from(self.sequence) / row_seconds,
            round_seconds: if self.overlap { times.train.max(beside) } else { times.train + beside },
            validation_share: examination_of(&spec).share(task.recipe().rows_each()),
            most_cost: cost.ok_or_else(|| setting("budget", "is more money than there is"))?,
        };
        Ok(Prepared { spec, initial, tokenizer, data, task, expected })
    }

    /// The specification less what is computed: tokenizer, initial parameters, longest update, phases.
    fn draft(&self, config: String) -> Result<RunSpec, TrainError> {
        let validators = sorted(&self.validators);
        let usual = quorum_of(validators.len());
        let quorum = self.quorum.unwrap_or(usual);
        if quorum < usual && self.delta_ms == 0 {
            let reason = format!("below {usual} needs delta_ms: the longest that a message between validators takes");
            return Err(setting("quorum", reason));
        }
        if !(self.link_mbit.is_finite() && self.link_mbit > 0.0) {
            return Err(setting("link_mbit", "must be above zero"));
        }
        let number = |name, value: f64| Finite::new(value).ok_or_else(|| setting(name, "must be a number"));
        Ok(RunSpec {
            name: self.name.clone(),
            model: ModelSpec { name: format!("consortium-{}", self.model), config, initial: Hash::from_bytes([0; 32]) },
            tokenizer: Hash::from_bytes([0; 32]),
            data: stories(self.seed, ROWS),
            training: HyperParameters {
                local_steps: self.local_steps,
                batch: self.batch,
                sequence: self.sequence,
                inner_rate: number("inner_rate", self.inner_rate)?,
                warmup_rounds: self.warmup_rounds,
                final_part: number("final_part", self.final_part)?,
                weight_decay: number("weight_decay", self.weight_decay)?,
                outer_rate: number("outer_rate", f64::from(OUTER_RATE))?,
                feedback: number("feedback", decimal(FEEDBACK))?,
                overlap: self.overlap,
            },
            max_update_bytes: 1,
            phases: Phases { train_ms: 1, commit_ms: 1, reveal_ms: 1, score_ms: 1, settle_ms: 8, delta_ms: 0 },
            least_peers: self.least_peers,
            most_peers: self.most_peers,
            validators,
            reserves: sorted(&self.reserves),
            quorum,
            replace_after: 3,
            batches: Batches { assigned: 2, unassigned: 2, held_out: 3, doubt: number("doubt", DOUBT)? },
            pay: self.pay(),
            rounds: self.rounds,
            starts_at_ms: self.starts_at_ms,
        })
    }

    /// What the specification says of data from files.
    fn named(&self, packed: &Packed) -> DataSpec {
        // Names have a bound, and nothing in them that a terminal obeys.
        let first = self.data.paths.first().and_then(|path| path.file_stem()).unwrap_or_default().to_string_lossy();
        let name: String = first.chars().filter(|c| c.is_alphanumeric() || "-_.".contains(*c)).take(20).collect();
        let others = match self.data.paths.len() {
            0 | 1 => String::new(),
            all => format!("+{}", all - 1),
        };
        DataSpec {
            name: format!("{ROWS_NAME}{}{others}", if name.is_empty() { "text" } else { &name }),
            digest: Hash::of(&packed.bytes),
            training_rows: packed.training_rows,
            held_out_rows: packed.held_out_rows,
        }
    }

    fn pay(&self) -> PaySchedule {
        let plan = &self.pay;
        let sat = |amount: u64| Msat(amount.saturating_mul(1000));
        let large = plan.budget_sat.saturating_mul(self.rounds) / u64::from(self.most_peers.max(1)) >= LARGE;
        let unit = plan.unit_sat.unwrap_or(if large || plan.escrow { 1000 } else { 1 });
        PaySchedule {
            budget: sat(plan.budget_sat),
            base_rate: plan.base_sat.map_or(Msat(sat(plan.budget_sat).0 / BASE_PART), sat),
            fee: plan.fee_sat.map_or(Msat(sat(plan.budget_sat).0 / FEE_PART), sat),
            unit: sat(unit),
            // A thousand sat at least: above what the chain calls dust.
            least_units: u32::try_from(1000_u64.div_ceil(unit.max(1))).unwrap_or(1).max(1),
            way: if plan.escrow { PayWay::Escrow } else { PayWay::Accounts },
            bond: sat(plan.bond_sat),
        }
    }

    /// How long the parts of a round take if everyone is as fast as planned.
    fn times(&self, spec: &RunSpec, row_seconds: f64, update_bytes: u64) -> Result<Times, TrainError> {
        let rows = f64::from(self.local_steps) * f64::from(self.batch);
        let examination = examination_of(spec);
        // A row forward costs a third of a row trained; what is asked once for all counts like two updates.
        let measured = examination.passes() as f64 * (f64::from(self.most_peers) + 2.0) / 3.0;
        let bits = update_bytes as f64 * 8.0 * f64::from(self.most_peers);
        let times =
            Times { train: rows * row_seconds, transfer: bits / (self.link_mbit * 1e6), score: measured * row_seconds };
        let sum = times.train + times.transfer + times.score;
        if sum * SLACK > 7.0 * 24.0 * 3600.0 {
            return Err(setting("local_steps", format!("take {sum:.0} s a round: fewer steps, or a smaller model")));
        }
        Ok(times)
    }

    fn phases(&self, times: &Times) -> Phases {
        let ms = |seconds: f64| (seconds * 1000.0 * SLACK).ceil() as u64;
        let margin = self.latency_ms.saturating_mul(4).max(100);
        Phases {
            train_ms: ms(times.train).saturating_add(margin),
            commit_ms: margin,
            reveal_ms: ms(times.transfer).saturating_add(margin),
            score_ms: ms(times.score).saturating_add(margin),
            settle_ms: self.latency_ms.saturating_add(self.delta_ms).saturating_mul(8).max(400),
            delta_ms: self.delta_ms,
        }
    }
}

/// Seconds of the parts of a round.
struct Times {
    train: f64,
    transfer: f64,
    score: f64,
}

/// What can be said of a run before it begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    /// What was read of the files with its data; none if these are generated.
    #[serde(default)]
    pub read: Option<Read>,
    /// Numbers in the model.
    pub parameters: u64,
    /// An update, in bytes.
    pub update_bytes: u64,
    /// How fast a peer trains.
    pub tokens_per_second: f64,
    /// A round with the most peers, in seconds, if all are as fast as planned.
    pub round_seconds: f64,
    /// What examining an update costs, as a part of the training that it came from.
    pub validation_share: f64,
    /// What all rounds cost at most.
    pub most_cost: Msat,
}

/// A run that can be announced once its specification is signed.
#[derive(Debug)]
pub struct Prepared {
    /// The specification.
    pub spec: RunSpec,
    /// The initial parameters.
    pub initial: Parameters,
    /// The tokenizer's file.
    pub tokenizer: Vec<u8>,
    /// The file of its data; none if these are generated.
    pub data: Option<Arc<[u8]>>,
    /// What the specification means.
    pub task: Task,
    /// What to expect of it.
    pub expected: Expected,
}

/// The least signatures with which no two records of a round can become certain, whatever the network does, if at most every
/// third of `validators` (rounded down, less one) lies: 1 of 1, 2 of 3, 3 of 4, 5 of 7, 6 of 9. See [`crate::rounds`].
#[must_use]
pub fn quorum_of(validators: usize) -> u32 {
    let count = u32::try_from(validators.min(MAX_VALIDATORS)).unwrap_or(0);
    let liars = count.saturating_sub(1) / 3;
    (count + liars) / 2 + 1
}

/// Seconds that a row of training takes on this machine: of a step after one that warms up.
fn row_seconds(task: &Task, initial: &Parameters) -> Result<f64, TrainError> {
    let (recipe, model) = (task.recipe(), initial.model()?);
    let sizes: Vec<usize> = initial.values().iter().map(Vec::len).collect();
    let mut adam = AdamW::new(recipe.adam, &sizes);
    let mut took = 0.0;
    for step in 0..2 {
        let begun = Instant::now();
        let rows: Vec<u64> = (0..).take(recipe.batch).collect();
        let (_, grads) = gradients(&model, &task.batch(Split::Train, &rows)?, recipe.parts)?;
        adam.step(model.vars(), &grads, recipe.rate(0, step, step))?;
        took = begun.elapsed().as_secs_f64();
    }
    Ok((took / recipe.batch as f64).max(1e-6))
}

/// Refuses stories in rows so short that hardly any holds more than a request: nobody's loss would ever become less. A file of
/// rows has something to learn in each.
fn check_stories(task: &Task) -> Result<(), TrainError> {
    let Data::Stories { rows, .. } = task.recipe().data else {
        return Ok(());
    };
    let numbers: Vec<u64> = (0..rows.min(LOOKED_AT)).collect();
    for split in [Split::Train, Split::HeldOut] {
        if task.batch(split, &numbers)?.rows_without_targets() > 0 {
            let length = task.recipe().length;
            return Err(setting(
                "sequence",
                format!("is too short: in rows of {length} tokens of stories there is nothing to learn"),
            ));
        }
    }
    Ok(())
}

fn check(spec: &RunSpec) -> Result<(), TrainError> {
    let refuse = |invalid| TrainError::Run { what: "specification", reason: format!("is not valid: {invalid}") };
    spec.check().map_err(refuse)
}

/// Says in plain words what is wrong with a bond.
fn check_bond(spec: &RunSpec) -> Result<(), TrainError> {
    if !spec.has_bond() {
        return Ok(());
    }
    if spec.pay.way != PayWay::Escrow {
        return Err(setting("bond_sat", "takes wallets: only a run that pays by escrow can have a bond"));
    }
    if spec.bond_delta().is_none() {
        let hours = spec.bond_blocks(spec.rounds) / 12;
        let reason = format!(
            "cannot stay locked for as long as the run may last, {hours} hours with all its deadlines: Lightning holds \
             money for 67 hours at most with certainty; take fewer rounds, or no bond"
        );
        return Err(setting("bond_sat", reason));
    }
    Ok(())
}

fn setting(name: &'static str, reason: impl Into<String>) -> TrainError {
    TrainError::Setting { name, reason: reason.into() }
}

fn sorted(ids: &[NodeId]) -> Vec<NodeId> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// A constant as people write it: 0.95, not the nearest number of fewer bits.
fn decimal(value: f32) -> f64 {
    (f64::from(value) * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use consortium_protocol::{RootKey, Signed};

    use super::*;

    fn ids(count: u8) -> Vec<NodeId> {
        (0..count).rev().map(|n| RootKey::from_seed([n; 32]).node_id()).collect()
    }

    fn plan() -> RunPlan {
        RunPlan { tokens_per_second: Some(10_000.0), ..RunPlan::new(ModelSize::Nano, ids(1)) }
    }

    #[test]
    fn quorums_bear_what_they_should() {
        assert_eq!((1..=9).map(quorum_of).collect::<Vec<_>>(), [1, 2, 2, 3, 4, 4, 5, 6, 6]);
        for n in 1..=9usize {
            let (quorum, liars) = (quorum_of(n) as usize, (n - 1) / 3);
            assert!(2 * quorum - n > liars, "two quorums of {n} share an honest validator");
            assert!(quorum <= n - liars, "{n} go on without the liars");
        }
    }

    #[test]
    fn a_plan_makes_a_specification_that_is_valid_and_means_the_task_it_was_made_with() {
        let made = plan().prepare(1).unwrap();
        let signed = Signed::sign(&RootKey::from_seed([1; 32]), made.spec.clone());
        let read = Signed::<RunSpec>::decode(signed.as_bytes()).unwrap();
        let task = task_of(read.payload(), &made.tokenizer, None, 1).unwrap();
        assert_eq!((task.config(), task.recipe()), (made.task.config(), made.task.recipe()));
        assert_eq!(Hash::from_bytes(made.initial.hash().0), made.spec.model.initial);
        assert_eq!(made.expected.most_cost, Msat::ZERO, "nothing is paid unless it is said");
        assert!(made.expected.update_bytes < made.spec.max_update_bytes);
        let again = plan().prepare(1).unwrap();
        assert_eq!(again.spec, made.spec, "the same plan makes the same run");
    }

    #[test]
    fn phases_follow_from_how_fast_peers_are_said_to_be() {
        let fast = plan().prepare(1).unwrap();
        let slow = RunPlan { tokens_per_second: Some(100.0), ..plan() }.prepare(1).unwrap();
        let rows = |made: &Prepared| made.spec.phases.train_ms;
        // 16 rows of 48 tokens, and room for three times as long.
        assert_eq!(rows(&slow) - 4000, (16.0 * 48.0 / 100.0 * 3.0 * 1000.0) as u64);
        assert!(rows(&slow) > rows(&fast) && slow.expected.round_seconds > fast.expected.round_seconds);
        let measured = RunPlan { tokens_per_second: None, ..plan() }.prepare(1).unwrap();
        assert!(measured.expected.tokens_per_second > 0.0);
    }

    #[test]
    fn pay_is_bounded_by_the_budget_and_paid_in_tranches_of_some_size() {
        let paid = |budget_sat| RunPlan { pay: PayPlan { budget_sat, ..PayPlan::default() }, ..plan() };
        let small = paid(100).prepare(1).unwrap();
        let pay = small.spec.pay;
        assert_eq!((pay.budget, pay.base_rate, pay.fee), (Msat(100_000), Msat(5_000), Msat(2_000)));
        assert_eq!((pay.unit, pay.least_units), (Msat(1000), 1000));
        assert_eq!(small.expected.most_cost, Msat(1_000_000));
        let large = paid(1_000_000).prepare(1).unwrap().spec.pay;
        assert_eq!((large.unit, large.least_units), (Msat(1_000_000), 1));
        let escrowed = |unit_sat| RunPlan { pay: PayPlan { unit_sat, escrow: true, ..paid(100).pay }, ..plan() };
        let pay = escrowed(None).prepare(1).unwrap().spec.pay;
        assert_eq!((pay.way, pay.unit, pay.least_units), (PayWay::Escrow, Msat(1_000_000), 1));
        assert!(escrowed(Some(354)).prepare(1).is_err(), "dust");
        assert!(paid(u64::MAX).prepare(1).is_err());
    }

    #[test]
    fn a_bond_takes_escrows_and_a_run_that_ends_before_it_goes_back() {
        let bonded = |escrow, bond_sat| RunPlan { pay: PayPlan { escrow, bond_sat, ..PayPlan::default() }, ..plan() };
        let spec = bonded(true, 5000).prepare(1).unwrap().spec;
        assert_eq!((spec.pay.bond, spec.bond_delta()), (Msat(5_000_000), Some(144)));
        assert!(!bonded(true, 0).prepare(1).unwrap().spec.has_bond());
        let refused = |plan: RunPlan, word: &str| {
            let error = plan.prepare(1).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        };
        refused(bonded(false, 5000), "pays by escrow");
        refused(bonded(true, 354), "bond");
        refused(bonded(true, u64::MAX), "ten bitcoin");
        refused(RunPlan { rounds: 100_000, ..bonded(true, 5000) }, "hours with all its deadlines");
    }

    #[test]
    fn wishes_that_make_no_run_are_refused_in_words() {
        let refused = |plan: RunPlan, word: &str| {
            let error = plan.prepare(1).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        };
        refused(RunPlan { validators: Vec::new(), ..plan() }, "validators");
        refused(RunPlan { validators: ids(10), ..plan() }, "validators");
        refused(RunPlan { validators: ids(4), quorum: Some(2), ..plan() }, "delta_ms");
        refused(RunPlan { validators: ids(4), quorum: Some(2), delta_ms: 100, ..plan() }, "quorum");
        refused(RunPlan { name: String::new(), ..plan() }, "name");
        refused(RunPlan { sequence: 65, ..plan() }, "length");
        refused(RunPlan { sequence: 24, ..plan() }, "nothing to learn");
        refused(RunPlan { batch: 0, ..plan() }, "batch");
        refused(RunPlan { inner_rate: f64::NAN, ..plan() }, "inner_rate");
        refused(RunPlan { tokens_per_second: Some(0.0), ..plan() }, "tokens_per_second");
        refused(RunPlan { link_mbit: 0.0, ..plan() }, "link_mbit");
        refused(RunPlan { tokens_per_second: Some(1e-3), ..plan() }, "local_steps");
        refused(RunPlan { local_steps: 100_000, batch: 1000, ..plan() }, "rows");
        refused(RunPlan { most_peers: 65, ..plan() }, "peers");
        refused(RunPlan { rounds: 0, ..plan() }, "rounds");
    }

    #[test]
    fn a_bare_majority_goes_with_a_bound_on_delays() {
        let made = RunPlan { validators: ids(4), quorum: Some(3), ..plan() }.prepare(1).unwrap();
        assert_eq!((made.spec.quorum, made.spec.phases.delta_ms), (3, 0));
        let made = RunPlan { validators: ids(5), quorum: Some(3), delta_ms: 500, ..plan() }.prepare(1).unwrap();
        assert_eq!((made.spec.quorum, made.spec.phases.delta_ms), (3, 500));
    }
}
