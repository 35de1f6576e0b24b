//! Audits of the committed model: honest work in every class, cheats in every class, commitments and draws.
#![allow(clippy::unwrap_used, clippy::panic)]

mod cheats;
mod support;

use std::sync::Arc;

use cheats::{Tamper, write};
use consortium_inference::audit::classes::{available, own_class};
use consortium_inference::audit::compare::Finding;
use consortium_inference::audit::replay::{ReplayInputs, replay};
use consortium_inference::llama::Shard;
use consortium_inference::model_dir::ModelDir;
use consortium_inference::sampling::Sampler;
use consortium_inference::stage::{HiddenStates, SessionParams, StageHandle, StageOptions, Step, StepResult};
use consortium_protocol::wire::audit::{BLOCK, NumericClass};
use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::wire::job::Sampling;
use support::{Inputs, ROWS, audit, auditor_of, model_path, name, text};

/// Depths as in a cut into two and into single layers.
const STAGES: [LayerRange; 3] =
    [LayerRange { first: 0, last: 4 }, LayerRange { first: 5, last: 9 }, LayerRange { first: 3, last: 3 }];

#[test]
fn honest_work_is_never_fraud_for_anyone() {
    let dir = ModelDir::open(model_path()).unwrap();
    let tokens = text(&dir, "Tell me a story about a dog and a bell", 1);
    let (mut blocks, mut passed) = (0, 0);
    for range in STAGES {
        for auditee in available() {
            let worker = Shard::load_class(&dir, range, auditee).unwrap();
            let inputs = Inputs::of(&dir, range.first, auditee, &tokens);
            // A prompt of 64 tokens, then one row at a time.
            let observed = decode(&worker, &inputs, 64);
            for auditor in available() {
                let audited = audit(&dir, range, auditor, auditee, &inputs, &observed);
                let who = format!("{} audits {} over layers {range}", name(auditor), name(auditee));
                assert!(audited.finding < Finding::Fraud, "{who}: {:#?}", audited.stats);
                blocks += audited.blocks.len();
                passed += audited.blocks.iter().filter(|f| **f == Finding::Pass).count();
                if auditee == own_class() {
                    assert_eq!(audited.stats.exact(), audited.blocks.len(), "{who}");
                    assert_eq!(audited.finding, Finding::Pass);
                }
            }
        }
    }
    assert!(passed * 100 >= blocks * 99, "{passed} of {blocks} blocks pass");
}

/// A prompt in one chunk, the rest row by row.
fn decode(shard: &Shard, inputs: &Inputs, prompt: usize) -> Vec<f32> {
    use consortium_inference::llama::{HeadRows, StageInput};
    let width = shard.config().hidden_size;
    let mut cache = shard.cache(ROWS as u32).unwrap();
    let mut out = Vec::new();
    let mut from = 0;
    while from < ROWS {
        let to = if from == 0 { prompt } else { from + 1 };
        let input = match inputs.rows(shard, from, to) {
            ReplayInputs::Tokens(tokens) => StageInput::Tokens(tokens),
            ReplayInputs::Hidden(rows) => {
                let tensor = HiddenStates {
                    rows: (to - from) as u32,
                    width: width as u32,
                    data: rows.iter().flat_map(|v| v.to_le_bytes()).collect(),
                };
                StageInput::Hidden(tensor.to_tensor(shard.device()).unwrap())
            }
        };
        let hidden = shard.forward_keeping(&mut cache, input, from, HeadRows::None).unwrap().hidden;
        out.extend(hidden.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        from = to;
    }
    out
}

/// What a dishonest worker may do.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Cheat {
    Weights(Tamper),
    Zeros,
    Noise,
    /// Attends to the last 64 rows at most.
    ShortContext,
    /// Sends the outputs of other tokens.
    Replayed,
    /// Sends its inputs.
    Nothing,
}

/// Cheats that every block of a same-class audit shows.
const MATERIAL: [Cheat; 11] = [
    Cheat::Weights(Tamper::PerRow(8)),
    Cheat::Weights(Tamper::PerGroup(8)),
    Cheat::Weights(Tamper::PerRow(4)),
    Cheat::Weights(Tamper::PerGroup(4)),
    Cheat::Weights(Tamper::SkipLayer(3)),
    Cheat::Weights(Tamper::SkipAttention(3)),
    Cheat::Zeros,
    Cheat::Noise,
    Cheat::ShortContext,
    Cheat::Replayed,
    Cheat::Nothing,
];

/// Cheats about which only the table speaks (set AUDIT_REPORT to see it): the weights of a moment ago.
const SLIGHT: [Cheat; 2] = [Cheat::Weights(Tamper::Stale(1e-2)), Cheat::Weights(Tamper::Stale(1e-3))];

fn cheat(cheat: Cheat, worker: &Shard, honest: &Shard, inputs: &Inputs, others: &Inputs) -> Vec<f32> {
    let width = honest.config().hidden_size;
    let mut state = 1_u32;
    match cheat {
        Cheat::Weights(_) => inputs.run(worker, 0),
        Cheat::Zeros => vec![0.0; ROWS * width],
        Cheat::Noise => {
            let rows = inputs.run(honest, 0);
            let rms = (rows.iter().map(|v| v * v).sum::<f32>() / rows.len() as f32).sqrt();
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                rms * 3.46 * (state as f32 / u32::MAX as f32 - 0.5)
            };
            (0..rows.len()).map(|_| next()).collect()
        }
        Cheat::ShortContext => (0..ROWS / BLOCK)
            .flat_map(|block| {
                let from = (block * BLOCK).saturating_sub(64);
                let rows = replay(honest, inputs.rows(honest, from, (block + 1) * BLOCK), 0).unwrap().outputs;
                rows[rows.len() - BLOCK * width..].to_vec()
            })
            .collect(),
        Cheat::Replayed => others.run(honest, 0),
        Cheat::Nothing if inputs.hidden.is_empty() => others.run(honest, 0),
        Cheat::Nothing => inputs.hidden.clone(),
    }
}

#[test]
fn cheats_are_fraud_on_every_block_in_the_class_they_claim() {
    let dir = ModelDir::open(model_path()).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let tokens = text(&dir, "Tell me a story about a cat and a boat", 2);
    let other_tokens = text(&dir, "Tell me a story about a crow and a coin", 3);
    let mut report = String::new();
    for what in MATERIAL.into_iter().chain(SLIGHT) {
        let tampered = match what {
            Cheat::Weights(tamper) => {
                let path = temp.path().join(format!("{tamper:?}"));
                write(&model_path(), &path, tamper);
                Some(ModelDir::open(&path).unwrap())
            }
            _ => None,
        };
        // The coarse ones are seen the better the fewer the layers.
        let stages = if is_8_bit(what) { &STAGES[..] } else { &STAGES[..2] };
        for range in stages.iter().copied() {
            // What is done to layer 3 is not done to a stage without it.
            if matches!(what, Cheat::Weights(Tamper::SkipLayer(3) | Tamper::SkipAttention(3))) && range.first > 3 {
                continue;
            }
            for auditee in available() {
                let honest = Shard::load_class(&dir, range, auditee).unwrap();
                let worker = Shard::load_class(tampered.as_ref().unwrap_or(&dir), range, auditee).unwrap();
                let inputs = Inputs::of(&dir, range.first, auditee, &tokens);
                let others = Inputs::of(&dir, range.first, auditee, &other_tokens);
                let observed = cheat(what, &worker, &honest, &inputs, &others);
                // The context is whole until the window is full.
                let skipped = if what == Cheat::ShortContext { 64 / BLOCK + 1 } else { 0 };
                for auditor in auditors(what, auditee) {
                    let audited = audit(&dir, range, auditor, auditee, &inputs, &observed);
                    let blocks = &audited.blocks[skipped..];
                    let fraud = blocks.iter().filter(|f| **f == Finding::Fraud).count();
                    let who = format!("{what:?}: {} audits {} over layers {range}", name(auditor), name(auditee));
                    let (near, far) = (audited.stats.near, audited.stats.far);
                    let systematic = audited.stats.systematic;
                    report += &format!(
                        "{who}: {fraud} of {} blocks, job {:?}, near {near:.3} far {far:.3} systematic {systematic:.2}\n",
                        blocks.len(),
                        audited.finding
                    );
                    let gentle = what == Cheat::Weights(Tamper::PerGroup(8));
                    if MATERIAL.contains(&what) {
                        assert_eq!(audited.finding, Finding::Fraud, "{report}");
                        // The gentlest of them may leave a block in doubt where honest rounding is as coarse.
                        let least = if gentle { blocks.len() * 2 / 3 } else { blocks.len() };
                        assert!(fraud >= least || auditor != auditee, "{report}\n{:#?}", audited.stats);
                    }
                }
            }
        }
    }
    if std::env::var_os("AUDIT_REPORT").is_some() {
        eprintln!("{report}");
    }
}

/// Everyone audits weights of 8 bits, the auditee's own class all else.
fn auditors(what: Cheat, auditee: NumericClass) -> Vec<NumericClass> {
    if is_8_bit(what) { available().to_vec() } else { vec![auditee] }
}

fn is_8_bit(what: Cheat) -> bool {
    matches!(what, Cheat::Weights(Tamper::PerRow(8) | Tamper::PerGroup(8)))
}

#[test]
fn the_last_stage_gives_what_a_replay_gives() {
    let dir = Arc::new(ModelDir::open(model_path()).unwrap());
    let tokens = text(&dir, "Tell me a story about a hen", 4);
    let range = LayerRange { first: 6, last: 9 };
    let inputs = Inputs::of(&dir, range.first, own_class(), &tokens);
    let width = dir.config().hidden_size;
    let sampling = Sampling { temperature: 2.0, seed: 9, ..Sampling::default() };
    let params = SessionParams { sampling: sampling.clone(), prompt_len: 40, max_positions: ROWS as u32 };
    let (mut hidden, mut drawn) = (Vec::new(), Vec::new());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let stage = StageHandle::spawn(Arc::clone(&dir), range, StageOptions::default()).await.unwrap();
        let guard = stage.open_guarded([1; 16], params).await.unwrap();
        let mut pos = 0;
        for (seq, rows) in [40, 1, 1, 7, 1, 60, 1].into_iter().enumerate() {
            let bytes = inputs.hidden[pos * width..(pos + rows) * width].iter().flat_map(|v| v.to_le_bytes()).collect();
            let step = Step {
                seq: seq as u32,
                pos: pos as u32,
                tokens: tokens[pos..pos + rows].to_vec(),
                hidden: Some(HiddenStates { rows: rows as u32, width: width as u32, data: bytes }),
                sample: rows == 1,
            };
            let output = match seq {
                0 => guard.step(step.clone()).await.unwrap(),
                _ => guard.step_keeping(step.clone()).await.unwrap(),
            };
            pos += rows;
            assert_eq!(output.hidden.is_some(), seq > 0);
            hidden.extend(output.hidden.map_or_else(|| vec![0; rows * width * 4], |h| h.data));
            if let StepResult::Token(token) = output.kind {
                drawn.push((pos as u32, token));
            }
        }
    });
    let shard = Shard::load_class(&dir, range, own_class()).unwrap();
    let replayed = replay(&shard, ReplayInputs::Hidden(&inputs.hidden), 0).unwrap();
    let bytes: Vec<u8> = replayed.outputs.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert!(hidden[40 * width * 4..] == bytes[40 * width * 4..hidden.len()]);

    // The draws are checked from the replay, and draws from another seed are not them.
    let auditor = auditor_of(&dir, range, own_class(), own_class());
    let stranger = Sampler::new(Sampling { seed: 10, ..sampling.clone() }, 40);
    let sampler = Sampler::new(sampling, 40);
    assert_eq!(drawn.len(), 4);
    let judged = auditor.draws(&replayed, &sampler, &tokens, &drawn).unwrap();
    assert!(judged.iter().all(|judged| *judged == (0.0, Finding::Pass)), "{judged:?}");
    let judged = auditor.draws(&replayed, &stranger, &tokens, &drawn).unwrap();
    assert!(judged.iter().any(|(margin, finding)| *margin > 0.1 && *finding == Finding::Fraud), "{judged:?}");
    assert!(auditor.draws(&replayed, &sampler, &tokens, &[(0, 1)]).is_err());
    assert!(auditor.draws(&replayed, &sampler, &tokens, &[(ROWS as u32 + 1, 1)]).is_err());
    assert!(replayed.logits(&shard, ROWS..ROWS + 1).is_err());
    let first = Shard::load_class(&dir, LayerRange { first: 0, last: 2 }, own_class()).unwrap();
    assert!(replay(&first, ReplayInputs::Hidden(&inputs.hidden), 0).is_err());
    assert!(replay(&shard, ReplayInputs::Hidden(&inputs.hidden[1..]), 0).is_err());
    assert!(replay(&shard, ReplayInputs::Hidden(&[]), 0).is_err());
    assert!(replay(&first, ReplayInputs::Tokens(&vec![1; 1025]), 0).is_err());
}
