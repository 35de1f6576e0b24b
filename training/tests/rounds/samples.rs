//! Specifications and keys.

use consortium_protocol::wire::train::{
    Batches, DataSpec, Finite, HyperParameters, ModelSpec, PaySchedule, PayWay, Phases, RunSpec,
};
use consortium_protocol::{Hash, Msat, NodeId, RootKey, Signed};

/// The `n`th key; keys of validators are below 100, of peers above.
pub(crate) fn key(n: usize) -> RootKey {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&(n as u64).to_le_bytes());
    RootKey::from_seed(seed)
}

/// The name of the `n`th key.
pub(crate) fn id(n: usize) -> NodeId {
    key(n).node_id()
}

fn number(value: f64) -> Finite {
    Finite::new(value).unwrap()
}

/// A run of `validators`, of which `quorum` make a record certain, with short rounds.
pub(crate) fn spec(validators: usize, quorum: u32, delta_ms: u64, rounds: u64) -> RunSpec {
    let mut ids: Vec<NodeId> = (0..validators).map(id).collect();
    ids.sort_unstable();
    RunSpec {
        name: "a run".into(),
        model: ModelSpec { name: "a model".into(), config: "{}".into(), initial: Hash::of(b"initial") },
        tokenizer: Hash::of(b"tokenizer"),
        data: DataSpec {
            name: "some data".into(),
            digest: Hash::of(b"data"),
            training_rows: 1_000_000,
            held_out_rows: 1000,
        },
        training: HyperParameters {
            local_steps: 10,
            batch: 4,
            sequence: 128,
            inner_rate: number(1e-3),
            warmup_rounds: 2,
            final_part: number(0.1),
            weight_decay: number(0.1),
            outer_rate: number(1.0),
            feedback: number(0.95),
            overlap: false,
        },
        max_update_bytes: 1 << 20,
        phases: Phases { train_ms: 400, commit_ms: 300, reveal_ms: 400, score_ms: 400, settle_ms: 800, delta_ms },
        least_peers: 1,
        most_peers: 8,
        validators: ids,
        reserves: Vec::new(),
        quorum,
        replace_after: 3,
        batches: Batches { assigned: 1, unassigned: 1, held_out: 2, doubt: Finite::default() },
        pay: PaySchedule {
            budget: Msat(1_000_000),
            base_rate: Msat(30_000),
            fee: Msat(2000),
            unit: Msat(10_000),
            least_units: 3,
            way: PayWay::Accounts,
            bond: Msat::ZERO,
        },
        rounds,
        starts_at_ms: 1_000,
    }
}

/// Signed by its author.
pub(crate) fn signed(spec: RunSpec) -> Signed<RunSpec> {
    Signed::sign(&key(99), spec)
}
