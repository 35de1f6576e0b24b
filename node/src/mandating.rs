//! What this node signs for as the payer of a job, before it hands it to a master: anew to each that it hands it to.

use std::sync::Arc;

use consortium_inference::session::MAX_ATTEMPTS;
use consortium_protocol::cluster::ClusterId;
use consortium_protocol::envelope::Signed;
use consortium_protocol::identity::{NodeId, RootKey};
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::job::{JobError, JobErrorCode, JobRequest};
use consortium_protocol::wire::mandate::Mandate;
use tokio::sync::watch;

use crate::billing::{JobAccount, most_tokens};
use crate::clock::wall_ms;
use crate::cluster::ClusterView;
use crate::config::{MAX_MASTER_FEE, MAX_PRICE};
use crate::tabs::mandates::LASTS_MS;

/// A job of this node itself is at the prices of the day: so many times the dearest of now at most, as they move while
/// it runs.
const MOST: u64 = 4;

/// Signs for this node's jobs.
#[derive(Clone)]
pub struct Mandating {
    /// The node's key.
    pub key: Arc<RootKey>,
    /// The cluster.
    pub cluster: ClusterId,
    /// Who serves what, and what they ask.
    pub view: watch::Receiver<ClusterView>,
}

impl Mandating {
    /// What `master` may order for a job that is charged to `account`.
    ///
    /// # Errors
    /// `ModelNotFound` if neither this node nor the master has the model.
    pub fn sign(
        &self,
        master: NodeId,
        request: &JobRequest,
        account: &JobAccount,
    ) -> Result<Signed<Mandate>, JobError> {
        let view = self.view.borrow();
        let model = view.model(&request.model, [&self.key.node_id(), &master]);
        let model = model.ok_or_else(|| not_served(&view, &master, &request.model))?;
        let mandate = Mandate {
            cluster: self.cluster,
            job: request.job,
            master,
            model: model.digest,
            positions: positions(request, model.context),
            position_cost: account.most_per_position().unwrap_or_else(|| of_the_day(&view, &master, model.layers)),
            challenge: request.challenge,
            until_ms: wall_ms().saturating_add(LASTS_MS),
        };
        Ok(Signed::sign(&self.key, mandate))
    }
}

/// All that a master's attempts can come to: prompt and longest answer, as far as the model can attend to them.
fn positions(request: &JobRequest, context: u32) -> u32 {
    let answer = request.max_tokens.unwrap_or(context);
    let once = most_tokens(&request.prompt).saturating_add(answer.into()).min(context.into());
    u32::try_from(once.saturating_mul(MAX_ATTEMPTS.into())).unwrap_or(u32::MAX).max(1)
}

fn of_the_day(view: &ClusterView, master: &NodeId, layers: u16) -> Msat {
    let asked = view.members.values().map(|member| member.heartbeat.price_per_layer_token);
    let dearest = asked.filter(|price| *price <= MAX_PRICE).max().unwrap_or(Msat::ZERO);
    let fee = view.members.get(master).map_or(Msat::ZERO, |member| member.heartbeat.master_fee.min(MAX_MASTER_FEE));
    Msat(dearest.0.saturating_mul(layers.into()).saturating_add(fee.0).saturating_mul(MOST))
}

fn not_served(view: &ClusterView, master: &NodeId, name: &str) -> JobError {
    let models = view.members.get(master).map(|member| member.heartbeat.models.as_slice()).unwrap_or_default();
    let known: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
    JobError {
        param: Some("model".to_owned()),
        ..JobError::new(
            JobErrorCode::ModelNotFound,
            format!("the model `{name}` is not served here; there is: {}", known.join(", ")),
        )
    }
}

#[cfg(test)]
mod tests {
    use consortium_protocol::hash::Hash;
    use consortium_protocol::wire::job::{JobId, Prompt, Sampling};

    use super::*;

    #[test]
    fn a_payer_signs_for_all_attempts_and_no_more_than_the_model_holds() {
        let request = |prompt: usize, max_tokens| JobRequest {
            job: JobId([1; 16]),
            model: "tiny".to_owned(),
            prompt: Prompt::Tokens(vec![1; prompt]),
            sampling: Sampling::default(),
            max_tokens,
            stop: Vec::new(),
            ignore_eos: false,
            emitted: Vec::new(),
            challenge: Hash::of(b"challenge"),
        };
        assert_eq!(positions(&request(10, Some(5)), 2048), 15 * MAX_ATTEMPTS);
        assert_eq!(positions(&request(10, None), 2048), 2048 * MAX_ATTEMPTS);
        assert_eq!(positions(&request(10, Some(u32::MAX)), 2048), 2048 * MAX_ATTEMPTS);
        assert_eq!(positions(&request(3000, Some(1)), 2048), 2048 * MAX_ATTEMPTS);
        assert_eq!(positions(&request(10, None), u32::MAX), u32::MAX);
    }
}
