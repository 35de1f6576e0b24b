//! The layers that this node holds for its cluster: loads them when the master assigns them, within the memory offered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use consortium_inference::model_dir::ModelDir;
use consortium_inference::stage::{StageHandle, StageOptions};
use consortium_protocol::hash::Hash;
use consortium_protocol::wire::heartbeat::{Lease, ModelRef};
use consortium_protocol::wire::rpc::{Assign, Refusal, RefusalCode, Response};
use tokio::sync::{Mutex, watch};
use tracing::{info, warn};

use crate::library::Library;

/// Steps waiting for one stage before its sessions are held back.
const STEP_QUEUE: usize = 64;
/// Sessions open on a stage at a time.
const MAX_SESSIONS: usize = 32;

/// A loaded range of layers.
#[derive(Clone)]
pub struct Shard {
    /// What is announced of it.
    pub lease: Lease,
    /// The model it is a part of.
    pub model: ModelRef,
    /// Where it computes.
    pub stage: StageHandle,
}

/// Cloneable handle to the layers held.
#[derive(Clone)]
pub struct Shards {
    library: Library,
    memory_bytes: u64,
    /// Held while loading: one load at a time, in order of arrival.
    loading: Arc<Mutex<()>>,
    held: watch::Sender<Vec<Shard>>,
    active: Arc<AtomicU32>,
}

/// A session in progress.
#[derive(Debug)]
pub struct ActiveSession(Arc<AtomicU32>);

impl Drop for ActiveSession {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shards {
    /// Nothing held yet; `memory_bytes` is the most that weights and caches may take.
    #[must_use]
    pub fn new(library: Library, memory_bytes: u64) -> Self {
        Self {
            library,
            memory_bytes,
            loading: Arc::default(),
            held: watch::Sender::new(Vec::new()),
            active: Arc::default(),
        }
    }

    /// What is held, now and as it changes.
    #[must_use]
    pub fn held(&self) -> watch::Receiver<Vec<Shard>> {
        self.held.subscribe()
    }

    /// Sessions open on all stages together.
    #[must_use]
    pub fn sessions(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// Counts a session for as long as the guard lives.
    #[must_use]
    pub fn begin_session(&self) -> ActiveSession {
        self.active.fetch_add(1, Ordering::Relaxed);
        ActiveSession(Arc::clone(&self.active))
    }

    /// The shard that covers exactly this range of a model.
    #[must_use]
    pub fn find(&self, model: &Hash, range: consortium_protocol::wire::heartbeat::LayerRange) -> Option<Shard> {
        self.held.borrow().iter().find(|shard| shard.lease.model == *model && shard.lease.range == range).cloned()
    }

    /// Carries out an assignment of a master that this node obeys. Layers already held are kept and only the lease is
    /// renewed; other layers of the same model make way.
    pub async fn assign(&self, assign: &Assign) -> Response {
        let _one_at_a_time = self.loading.lock().await;
        match self.load(assign).await {
            Ok((lease, load_ms)) => Response::Loaded { lease, load_ms },
            Err(refusal) => {
                warn!(range = %assign.range, model = assign.model.name, reason = refusal.message, "refused an assignment");
                Response::Refused(refusal)
            }
        }
    }

    /// Lets go of all layers of a model.
    pub async fn release(&self, model: &Hash) {
        let _one_at_a_time = self.loading.lock().await;
        self.held.send_modify(|held| held.retain(|shard| shard.lease.model != *model));
    }

    async fn load(&self, assign: &Assign) -> Result<(Lease, u64), Refusal> {
        let lease = Lease { model: assign.model.digest, range: assign.range, term: assign.term };
        let mut adopted = false;
        self.held.send_modify(|held| {
            for shard in held.iter_mut().filter(|s| s.lease.model == lease.model && s.lease.range == lease.range) {
                shard.lease = lease;
                adopted = true;
            }
        });
        if adopted {
            return Ok((lease, 0));
        }
        let Some((model, dir)) = self.library.get(&assign.model.digest) else {
            return Err(refusal(
                RefusalCode::UnknownModel,
                format!("this node has no copy of {} with digest {}", assign.model.name, assign.model.digest),
            ));
        };
        let kv_budget_bytes = self.room_for(dir, assign)?;
        // Only what will fit makes other layers of the model give way: they may be the cluster's only copy.
        self.held.send_modify(|held| held.retain(|shard| shard.lease.model != lease.model));
        let started = Instant::now();
        let options =
            StageOptions { max_sessions: MAX_SESSIONS, kv_budget_bytes, queue: STEP_QUEUE, ..Default::default() };
        let stage = StageHandle::spawn(Arc::clone(dir), assign.range, options)
            .await
            .map_err(|error| refusal(RefusalCode::BadModel, error.to_string()))?;
        let load_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        info!(model = model.name, layers = %assign.range, load_ms, "layers loaded");
        let shard = Shard { lease, model: model.clone(), stage };
        self.held.send_modify(|held| held.push(shard));
        Ok((lease, load_ms))
    }

    /// Memory left for caches after the weights, or why they do not fit.
    fn room_for(&self, dir: &ModelDir, assign: &Assign) -> Result<u64, Refusal> {
        dir.check_range(assign.range).map_err(|error| refusal(RefusalCode::BadModel, error.to_string()))?;
        let others: u64 = self
            .held
            .borrow()
            .iter()
            .filter(|shard| shard.lease.model != assign.model.digest)
            .filter_map(|shard| Some(self.library.get(&shard.lease.model)?.1.shard_bytes(shard.lease.range)))
            .sum();
        let weights = dir.shard_bytes(assign.range);
        self.memory_bytes
            .checked_sub(others)
            .and_then(|left| left.checked_sub(weights))
            .filter(|room| *room > 0)
            .ok_or_else(|| {
                refusal(
                    RefusalCode::OutOfMemory,
                    format!(
                        "layers {} need {weights} bytes, and of the {} bytes offered {others} are taken",
                        assign.range, self.memory_bytes
                    ),
                )
            })
    }
}

fn refusal(code: RefusalCode, message: String) -> Refusal {
    Refusal::new(code, message)
}
