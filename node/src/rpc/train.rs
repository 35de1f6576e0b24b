//! `train_*`: runs of training that this node knows, and what its operator would do in them.
//!
//! Looking is for the node's own machine; whatever makes the node work, write files or sign is for its operator
//! ([`crate::operator`]).

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use consortium_protocol::wire::train::RunId;
use consortium_protocol::{RootKey, Signed};
use consortium_training::TrainError;
use consortium_training::rounds::Wish;
use consortium_training::run::Wishes;
use jsonrpsee::RpcModule;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Context;
use super::earnings::MAX_MILLIWATTS;
use super::fault::Fault;
use super::methods::json as shown;
use super::over::{For, over};
use super::params::Nothing;
use crate::clock::wall_ms;
use crate::power;
use crate::train::pause::Terms;
use crate::train::{RunError, Trainings};

/// What the methods use.
#[derive(Clone)]
pub struct TrainingDesk {
    /// The runs.
    pub runs: Trainings,
    /// Signs what is announced.
    pub key: Arc<RootKey>,
}

/// A run to be announced.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Announce {
    #[serde(default)]
    wishes: Wishes,
    #[serde(default)]
    dry_run: bool,
}

/// One run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct One {
    run: RunId,
}

/// A part in a run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Join {
    run: RunId,
    #[serde(default = "train")]
    wish: Wish,
    #[serde(default)]
    pause: Option<Terms>,
}

/// A run to be written down.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Export {
    run: RunId,
    directory: PathBuf,
}

fn train() -> Wish {
    Wish::Train
}

/// Adds the methods.
pub(super) fn register(module: &mut RpcModule<Context>) {
    add(module, "train_list", For::Machine, async |desk: TrainingDesk, _: Nothing| {
        shown(json!({"runs": desk.runs.list()}))
    });
    add(module, "train_status", For::Machine, async |desk: TrainingDesk, wanted: One| {
        let status = desk.runs.status(&wanted.run).ok_or_else(|| unknown(&desk, wanted.run))?;
        shown(json!({"me": desk.key.node_id(), "status": status}))
    });
    add(module, "train_announce", For::Operator, announce);
    add(module, "train_join", For::Operator, join);
    add(module, "train_leave", For::Operator, async |desk: TrainingDesk, wanted: One| {
        desk.runs.leave(wanted.run).await?;
        shown(json!({"run": wanted.run}))
    });
    add(module, "train_export", For::Operator, async |desk: TrainingDesk, wanted: Export| {
        if !wanted.directory.is_absolute() {
            return Err(Fault::Params("directory: a whole path, from the root on".to_owned()));
        }
        shown(desk.runs.export(wanted.run, wanted.directory).await?)
    });
}

async fn join(desk: TrainingDesk, wanted: Join) -> Result<Value, Fault> {
    let Join { run, wish, pause } = wanted;
    if let Some(terms) = pause {
        check(wish, terms).await?;
    }
    desk.runs.join(run, wish, pause).await?;
    shown(json!({"run": run, "wish": wish, "pause": pause}))
}

/// Whether a peer can be held to terms.
async fn check(wish: Wish, terms: Terms) -> Result<(), Fault> {
    let refused = |why: String| Err(Fault::Params(why));
    if wish != Wish::Train {
        return refused("pause: for who trains".to_owned());
    }
    match terms.milliwatts {
        Some(given) if !(1..=MAX_MILLIWATTS).contains(&given) => {
            refused(format!("pause: milliwatts: 1 to {MAX_MILLIWATTS}"))
        }
        None if power::measured().await.is_none() => {
            refused("pause: this machine does not tell what it takes: give milliwatts, by --watts".to_owned())
        }
        _ => Ok(()),
    }
}

/// Why there is no status.
fn unknown(desk: &TrainingDesk, run: RunId) -> Fault {
    let heard = desk.runs.list().into_iter().any(|summary| summary.run == run);
    Fault::NotFound(match heard {
        true => format!(
            "this node takes no part in run {run}: `consortium-node train join {run}`, with --watch to follow it"
        ),
        false => format!("this node knows no run {run}; `consortium-node train join` looks for it in the swarm"),
    })
}

async fn announce(desk: TrainingDesk, wanted: Announce) -> Result<Value, Fault> {
    if wanted.wishes.data.iter().any(|path| !path.is_absolute()) {
        return Err(Fault::Params("wishes: data: whole paths, from the root on".to_owned()));
    }
    let plan = wanted.wishes.plan(desk.key.node_id(), wall_ms());
    let prepared = tokio::task::spawn_blocking(move || {
        let made = plan.prepare(1)?;
        let initial = made.initial.to_bytes()?;
        Ok::<_, TrainError>((made, initial))
    });
    let (made, initial) = prepared.await.map_err(|_| Fault::Closed)?.map_err(|error| match error {
        TrainError::Setting { .. } | TrainError::Run { .. } | TrainError::Dataset { .. } => {
            Fault::Params(error.to_string())
        }
        other => Fault::Train(other.to_string()),
    })?;
    let expected = made.expected.clone();
    let signed = Signed::sign(&desk.key, made.spec);
    let spec = signed.payload().clone();
    Trainings::may_announce(&signed).map_err(|error| Fault::Params(error.to_string()))?;
    let run = match wanted.dry_run {
        true => None,
        false => Some(desk.runs.announce(signed, made.tokenizer, initial, made.data).await?),
    };
    shown(json!({"run": run, "spec": spec, "expected": expected}))
}

fn add<P, F, R>(module: &mut RpcModule<Context>, name: &'static str, whom: For, run: F)
where
    P: DeserializeOwned + Send + 'static,
    F: Fn(TrainingDesk, P) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<Value, Fault>> + Send + 'static,
{
    over(module, name, whom, |context| context.training.clone().ok_or(Fault::NoTraining), run);
}

impl From<RunError> for Fault {
    fn from(error: RunError) -> Self {
        Self::Train(error.to_string())
    }
}
