//! Stages on their threads.

use std::sync::Arc;
use std::time::Duration;

use consortium_inference::generate::generate;
use consortium_inference::model_dir::ModelDir;
use consortium_inference::stage::{
    HiddenStates, SessionParams, StageError, StageHandle, StageOptions, Step, StepResult,
};
use consortium_inference::{ModelError, PREFILL_CHUNK};
use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::wire::job::Sampling;

use crate::support::{ModelOnDisk, Tiny, split, tokens};

fn model() -> (ModelOnDisk, Arc<ModelDir>) {
    let model = Tiny::default().write();
    let dir = Arc::new(ModelDir::open(&model.path).unwrap());
    (model, dir)
}

fn params(sampling: &Sampling, prompt_len: usize) -> SessionParams {
    SessionParams { sampling: sampling.clone(), prompt_len: prompt_len as u32, max_positions: 400 }
}

fn step(seq: u32, pos: u32, tokens: &[u32]) -> Step {
    Step { seq, pos, tokens: tokens.to_vec(), hidden: None, sample: true }
}

async fn spawn(dir: &Arc<ModelDir>, range: LayerRange, options: StageOptions) -> StageHandle {
    StageHandle::spawn(Arc::clone(dir), range, options).await.unwrap()
}

/// Runs a prompt through stages as the node does.
async fn run(stages: &[StageHandle], id: u8, prompt: &[u32], sampling: &Sampling, count: usize) -> Vec<u32> {
    let mut guards = Vec::new();
    for stage in stages {
        guards.push(stage.open_guarded([id; 16], params(sampling, prompt.len())).await.unwrap());
    }
    let mut out = Vec::new();
    let (mut seq, mut pos) = (0, 0);
    let mut rows = prompt.to_vec();
    while out.len() < count {
        let chunks: Vec<Vec<u32>> = rows.chunks(PREFILL_CHUNK).map(<[u32]>::to_vec).collect();
        for (index, tokens) in chunks.iter().enumerate() {
            let mut hidden: Option<HiddenStates> = None;
            for guard in &guards {
                let sample = index + 1 == chunks.len();
                let step = Step { seq, pos, tokens: tokens.clone(), hidden: hidden.take(), sample };
                match guard.step(step).await.unwrap().kind {
                    StepResult::Hidden(states) => hidden = Some(states),
                    StepResult::Token(token) => out.push(token),
                    StepResult::Nothing => assert!(!sample),
                }
            }
            seq += 1;
            pos += tokens.len() as u32;
        }
        rows = vec![*out.last().unwrap()];
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stages_give_what_the_whole_gives() {
    let (_model, dir) = model();
    let prompt = tokens(PREFILL_CHUNK + 11, 97, 2);
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let drawn = Sampling { seed: 4, frequency_penalty: 0.5, presence_penalty: 0.2, ..Sampling::default() };
    for sampling in [greedy, drawn] {
        let expected = generate(&dir, &prompt, &sampling, 20, &[]).unwrap();
        for count in [1, 3] {
            let mut stages = Vec::new();
            for range in split(8, count) {
                stages.push(spawn(&dir, range, StageOptions::default()).await);
            }
            // Two sessions at once do not disturb each other.
            let (a, b) = tokio::join!(run(&stages, 1, &prompt, &sampling, 20), run(&stages, 2, &prompt, &sampling, 20));
            assert_eq!(a, expected);
            assert_eq!(b, expected);
        }
    }
}

#[tokio::test]
async fn steps_are_checked() {
    let (_model, dir) = model();
    let sampling = Sampling::default();
    let whole = spawn(&dir, LayerRange { first: 0, last: 3 }, StageOptions::default()).await;
    let guard = whole.open_guarded([1; 16], params(&sampling, 3)).await.unwrap();
    let opened_twice = whole.open([1; 16], params(&sampling, 3)).await;
    assert!(matches!(opened_twice, Err(StageError::DuplicateSession)));
    assert!(matches!(whole.step([9; 16], step(0, 0, &[1])).await, Err(StageError::UnknownSession)));
    assert!(matches!(guard.step(step(0, 0, &[])).await, Err(StageError::Malformed(_))));
    assert!(matches!(guard.step(step(0, 0, &[0; 513])).await, Err(StageError::Malformed(_))));
    assert!(matches!(guard.step(step(0, 0, &[97])).await, Err(StageError::Token(97))));
    assert!(matches!(guard.step(step(0, 0, &[0; 401])).await, Err(StageError::BeyondLimit { limit: 400, needs: 401 })));
    assert!(matches!(guard.step(step(0, 5, &[1])).await, Err(StageError::Position { expected: 0, got: 5 })));
    assert!(matches!(guard.step(step(1, 0, &[1])).await, Err(StageError::Sequence { expected: 0, got: 1 })));
    let StepResult::Hidden(hidden) = guard.step(step(0, 0, &[1, 2, 3])).await.unwrap().kind else {
        panic!("the first stage gives activations");
    };
    assert_eq!((hidden.rows, hidden.width, hidden.data.len()), (3, 48, 3 * 48 * 4));
    // A replay is refused and changes nothing.
    assert!(matches!(guard.step(step(0, 0, &[1, 2, 3])).await, Err(StageError::Sequence { expected: 1, got: 0 })));
    assert!(matches!(guard.step(step(1, 0, &[1])).await, Err(StageError::Position { expected: 3, got: 0 })));
    assert!(guard.step(step(1, 3, &[4])).await.is_ok());

    let last = spawn(&dir, LayerRange { first: 4, last: 7 }, StageOptions::default()).await;
    let guard = last.open_guarded([1; 16], params(&sampling, 3)).await.unwrap();
    let with = |hidden: Option<HiddenStates>| Step { hidden, ..step(0, 0, &[1, 2, 3]) };
    assert!(matches!(guard.step(with(None)).await, Err(StageError::Malformed(_))));
    for wrong in [
        HiddenStates { width: 47, ..hidden.clone() },
        HiddenStates { rows: 2, ..hidden.clone() },
        HiddenStates { data: vec![0; 8], ..hidden.clone() },
        HiddenStates { rows: u32::MAX, width: u32::MAX, data: Vec::new() },
    ] {
        assert!(matches!(guard.step(with(Some(wrong))).await, Err(StageError::Width { .. })));
    }
    assert!(matches!(guard.step(with(Some(hidden.clone()))).await.unwrap().kind, StepResult::Token(_)));
    // Activations that are not numbers cost the session, not the stage.
    let poisoned = HiddenStates { rows: 1, width: 48, data: f32::NAN.to_le_bytes().repeat(48) };
    let broken = Step { seq: 1, pos: 3, tokens: vec![1], hidden: Some(poisoned), sample: true };
    assert!(matches!(guard.step(broken).await, Err(StageError::Sample(_))));
    assert!(matches!(guard.step(with(Some(hidden.clone()))).await, Err(StageError::UnknownSession)));
    let again = last.open_guarded([2; 16], params(&sampling, 3)).await.unwrap();
    assert!(again.step(with(Some(hidden))).await.is_ok());
}

#[tokio::test]
async fn sessions_and_memory_are_bounded_and_given_back() {
    let (_model, dir) = model();
    let range = dir.all_layers();
    let options =
        StageOptions { max_sessions: 3, kv_budget_bytes: dir.kv_bytes(range, 1000), ..StageOptions::default() };
    let stage = spawn(&dir, range, options).await;
    let open = |id: u8, max_positions: u32| {
        let params = SessionParams { max_positions, ..params(&Sampling::default(), 1) };
        stage.open_guarded([id; 16], params)
    };
    assert!(matches!(open(0, 641).await, Err(StageError::TooManyPositions { asked: 641, limit: 640 })));
    let first = open(1, 600).await.unwrap();
    assert!(matches!(open(2, 500).await, Err(StageError::KvBudget { .. })));
    let _second = open(2, 300).await.unwrap();
    let _third = open(3, 100).await.unwrap();
    assert!(matches!(open(4, 1).await, Err(StageError::TooManySessions { limit: 3 })));
    drop(first);
    // Closing is seen before the next command.
    let _fourth = open(4, 500).await.unwrap();
}

#[tokio::test]
async fn idle_sessions_are_evicted() {
    let (_model, dir) = model();
    let options = StageOptions { idle: Duration::from_millis(80), ..StageOptions::default() };
    let stage = spawn(&dir, dir.all_layers(), options).await;
    stage.open([1; 16], params(&Sampling::default(), 1)).await.unwrap();
    assert!(stage.step([1; 16], step(0, 0, &[1])).await.is_ok());
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(matches!(stage.step([1; 16], step(1, 1, &[1])).await, Err(StageError::UnknownSession)));
}

#[tokio::test]
async fn an_abandoned_open_does_not_leak() {
    let (_model, dir) = model();
    let options = StageOptions { max_sessions: 1, ..StageOptions::default() };
    let stage = spawn(&dir, dir.all_layers(), options).await;
    for _ in 0..20 {
        let open = stage.open([1; 16], params(&Sampling::default(), 1));
        let _ = tokio::time::timeout(Duration::ZERO, open).await;
        stage.close([1; 16]);
    }
    // Whatever order the commands came in, the place is free in the end.
    tokio::time::sleep(Duration::from_millis(50)).await;
    stage.close([1; 16]);
    assert!(stage.open([2; 16], params(&Sampling::default(), 1)).await.is_ok());
}

#[tokio::test]
async fn the_thread_ends_with_the_last_handle() {
    let (model, dir) = model();
    let weak = Arc::downgrade(&dir);
    let stage = spawn(&dir, dir.all_layers(), StageOptions::default()).await;
    drop(dir);
    let clone = stage.clone();
    assert_eq!(clone.info().range, LayerRange { first: 0, last: 7 });
    assert!(clone.measure().await.unwrap() > 0);
    drop(stage);
    assert!(clone.measure().await.is_ok());
    drop(clone);
    for _ in 0..200 {
        if weak.strong_count() == 0 {
            drop(model);
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the thread goes on");
}

#[tokio::test]
async fn a_shard_that_cannot_be_loaded() {
    let (model, dir) = model();
    let outside = StageHandle::spawn(Arc::clone(&dir), LayerRange { first: 3, last: 8 }, StageOptions::default()).await;
    assert!(matches!(outside, Err(StageError::Model(ModelError::Range { layers: 8, .. }))));
    std::fs::remove_file(model.file("model.safetensors")).unwrap();
    let gone = StageHandle::spawn(dir, LayerRange { first: 3, last: 7 }, StageOptions::default()).await;
    assert!(matches!(gone, Err(StageError::Model(ModelError::MissingFile { .. }))));
}
