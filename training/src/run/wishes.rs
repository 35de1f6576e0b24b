//! What an author says of a run: anything may be left out.

use std::path::PathBuf;

use consortium_protocol::NodeId;
use serde::{Deserialize, Serialize};

use super::plan::{PayPlan, RunPlan};
use super::size::ModelSize;
use crate::dataset::Files;

/// A plan with everything optional, as it is read from a file or from elsewhere. What is not known is refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wishes {
    /// [`RunPlan::name`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// [`RunPlan::model`]; the other defaults are for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelSize>,
    /// [`RunPlan::seed`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// [`Files::paths`] of [`RunPlan::data`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// [`Files::skip_broken`] of [`RunPlan::data`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_broken: Option<bool>,
    /// [`RunPlan::rounds`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounds: Option<u64>,
    /// [`RunPlan::local_steps`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_steps: Option<u32>,
    /// [`RunPlan::batch`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<u32>,
    /// [`RunPlan::sequence`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u32>,
    /// [`RunPlan::inner_rate`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inner_rate: Option<f64>,
    /// [`RunPlan::warmup_rounds`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_rounds: Option<u32>,
    /// [`RunPlan::final_part`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_part: Option<f64>,
    /// [`RunPlan::weight_decay`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// [`RunPlan::overlap`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap: Option<bool>,
    /// [`RunPlan::least_peers`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub least_peers: Option<u32>,
    /// [`RunPlan::most_peers`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most_peers: Option<u32>,
    /// [`RunPlan::validators`]; the author alone if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub validators: Vec<NodeId>,
    /// [`RunPlan::reserves`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reserves: Vec<NodeId>,
    /// [`RunPlan::quorum`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quorum: Option<u32>,
    /// [`RunPlan::delta_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta_ms: Option<u64>,
    /// [`RunPlan::tokens_per_second`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// [`RunPlan::link_mbit`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_mbit: Option<f64>,
    /// [`RunPlan::latency_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u64>,
    /// [`PayPlan::budget_sat`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_sat: Option<u64>,
    /// [`PayPlan::base_sat`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_sat: Option<u64>,
    /// [`PayPlan::fee_sat`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fee_sat: Option<u64>,
    /// [`PayPlan::unit_sat`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit_sat: Option<u64>,
    /// [`PayPlan::escrow`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub escrow: Option<bool>,
    /// [`PayPlan::bond_sat`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bond_sat: Option<u64>,
    /// [`RunPlan::starts_at_ms`]; at once if it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub starts_at_ms: Option<u64>,
}

impl Wishes {
    /// These, and where they say nothing, others.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        fn some<T>(own: Vec<T>, other: Vec<T>) -> Vec<T> {
            if own.is_empty() { other } else { own }
        }
        Self {
            name: self.name.or(other.name),
            model: self.model.or(other.model),
            seed: self.seed.or(other.seed),
            data: some(self.data, other.data),
            skip_broken: self.skip_broken.or(other.skip_broken),
            rounds: self.rounds.or(other.rounds),
            local_steps: self.local_steps.or(other.local_steps),
            batch: self.batch.or(other.batch),
            sequence: self.sequence.or(other.sequence),
            inner_rate: self.inner_rate.or(other.inner_rate),
            warmup_rounds: self.warmup_rounds.or(other.warmup_rounds),
            final_part: self.final_part.or(other.final_part),
            weight_decay: self.weight_decay.or(other.weight_decay),
            overlap: self.overlap.or(other.overlap),
            least_peers: self.least_peers.or(other.least_peers),
            most_peers: self.most_peers.or(other.most_peers),
            validators: some(self.validators, other.validators),
            reserves: some(self.reserves, other.reserves),
            quorum: self.quorum.or(other.quorum),
            delta_ms: self.delta_ms.or(other.delta_ms),
            tokens_per_second: self.tokens_per_second.or(other.tokens_per_second),
            link_mbit: self.link_mbit.or(other.link_mbit),
            latency_ms: self.latency_ms.or(other.latency_ms),
            budget_sat: self.budget_sat.or(other.budget_sat),
            base_sat: self.base_sat.or(other.base_sat),
            fee_sat: self.fee_sat.or(other.fee_sat),
            unit_sat: self.unit_sat.or(other.unit_sat),
            escrow: self.escrow.or(other.escrow),
            bond_sat: self.bond_sat.or(other.bond_sat),
            starts_at_ms: self.starts_at_ms.or(other.starts_at_ms),
        }
    }

    /// The plan that they come to, of a run that `author` announces at `now_ms`.
    #[must_use]
    pub fn plan(self, author: NodeId, now_ms: u64) -> RunPlan {
        let validators = if self.validators.is_empty() { vec![author] } else { self.validators };
        let usual = RunPlan::new(self.model.unwrap_or_default(), validators);
        RunPlan {
            name: self.name.unwrap_or(usual.name),
            seed: self.seed.unwrap_or(usual.seed),
            data: Files { paths: self.data, skip_broken: self.skip_broken.unwrap_or_default() },
            rounds: self.rounds.unwrap_or(usual.rounds),
            local_steps: self.local_steps.unwrap_or(usual.local_steps),
            batch: self.batch.unwrap_or(usual.batch),
            sequence: self.sequence.unwrap_or(usual.sequence),
            inner_rate: self.inner_rate.unwrap_or(usual.inner_rate),
            warmup_rounds: self.warmup_rounds.unwrap_or(usual.warmup_rounds),
            final_part: self.final_part.unwrap_or(usual.final_part),
            weight_decay: self.weight_decay.unwrap_or(usual.weight_decay),
            overlap: self.overlap.unwrap_or(usual.overlap),
            least_peers: self.least_peers.unwrap_or(usual.least_peers),
            most_peers: self.most_peers.unwrap_or(usual.most_peers),
            reserves: self.reserves,
            quorum: self.quorum,
            delta_ms: self.delta_ms.unwrap_or(usual.delta_ms),
            tokens_per_second: self.tokens_per_second,
            link_mbit: self.link_mbit.unwrap_or(usual.link_mbit),
            latency_ms: self.latency_ms.unwrap_or(usual.latency_ms),
            pay: PayPlan {
                budget_sat: self.budget_sat.unwrap_or_default(),
                base_sat: self.base_sat,
                fee_sat: self.fee_sat,
                unit_sat: self.unit_sat,
                escrow: self.escrow.unwrap_or_default(),
                bond_sat: self.bond_sat.unwrap_or_default(),
            },
            starts_at_ms: self.starts_at_ms.unwrap_or(now_ms),
            ..usual
        }
    }
}

#[cfg(test)]
mod tests {
    use consortium_protocol::RootKey;

    use super::*;

    #[test]
    fn what_is_said_first_counts_and_the_rest_is_the_usual_of_the_model() {
        let author = RootKey::from_seed([1; 32]).node_id();
        let file = Wishes { model: Some(ModelSize::Small), rounds: Some(7), ..Wishes::default() };
        let flags = Wishes { rounds: Some(9), budget_sat: Some(100), ..Wishes::default() };
        let plan = flags.or(file).plan(author, 5);
        let usual = RunPlan::new(ModelSize::Small, vec![author]);
        let pay = PayPlan { budget_sat: 100, ..PayPlan::default() };
        assert_eq!(plan, RunPlan { rounds: 9, pay, starts_at_ms: 5, ..usual });
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let read = serde_json::from_str::<Wishes>(r#"{"ronds": 3}"#).unwrap_err().to_string();
        assert!(read.contains("ronds"), "{read}");
        let none = serde_json::to_string(&Wishes::default()).unwrap();
        assert_eq!(none, "{}", "what is not said is not sent");
    }
}
