//! The decoder against a plain implementation, and every cut of it against the whole.

use consortium_inference::PREFILL_CHUNK;
use consortium_inference::generate::generate;
use consortium_inference::local::LocalError;
use consortium_inference::logits::all_logits;
use consortium_inference::model_dir::ModelDir;
use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::wire::job::Sampling;
use safetensors::tensor::Dtype;
use serde_json::json;

use crate::support::reference::{self, Scaling};
use crate::support::{Tiny, split, tokens};

/// Largest difference of a logit, relative to the largest logit of its row.
fn worst(tiny: &Tiny, theta: f64, scaling: Scaling) -> f64 {
    let model = tiny.write();
    let dir = ModelDir::open(&model.path).unwrap();
    let tokens = tokens(40, tiny.vocab, 7);
    let ours = all_logits(&dir, &tokens, &[]).unwrap();
    let theirs = reference::logits(&model, &tokens, theta, scaling);
    assert_eq!(ours.len(), theirs.len());
    let mut worst = 0.0_f64;
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours.len(), theirs.len());
        let largest = theirs.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
        for (a, b) in ours.iter().zip(theirs) {
            worst = worst.max((f64::from(*a) - b).abs() / largest);
        }
    }
    worst
}

#[test]
fn agrees_with_the_plain_implementation() {
    let base = Tiny::default();
    let cases = [
        base.clone(),
        Tiny { tied: true, ..base.clone() },
        Tiny { kv_heads: 6, ..base.clone() },
        Tiny { kv_heads: 1, ..base.clone() },
        Tiny { dtype: Dtype::F16, ..base.clone() },
        Tiny { dtype: Dtype::BF16, files: 3, ..base.clone() },
        Tiny { layers: 1, hidden: 64, heads: 4, kv_heads: 4, head_dim: 16, config: json!({"head_dim": null}), ..base },
    ];
    for (case, tiny) in cases.iter().enumerate() {
        let worst = worst(tiny, 10_000.0, Scaling::None);
        assert!(worst < 2e-5, "case {case}: {worst}");
    }
}

#[test]
fn rope_layouts_and_scalings() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    });
    let mut flat = llama3.clone();
    flat["rope_theta"] = json!(500_000.0);
    let cases = [
        (json!({"rope_scaling": llama3, "rope_theta": 500_000.0}), 500_000.0, Scaling::Llama3(8.0, 1.0, 4.0, 32.0)),
        (json!({"rope_parameters": flat, "rope_theta": null}), 500_000.0, Scaling::Llama3(8.0, 1.0, 4.0, 32.0)),
        (json!({"rope_scaling": {"type": "linear", "factor": 4.0}}), 10_000.0, Scaling::Linear(4.0)),
        (json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}), 1000.0, Scaling::None),
    ];
    for (config, theta, scaling) in cases {
        let tiny = Tiny { config: config.clone(), ..Tiny::default() };
        let worst = worst(&tiny, theta, scaling);
        assert!(worst < 2e-5, "{config}: {worst}");
    }
}

#[test]
fn mistral_without_a_window() {
    let config = json!({"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": null});
    assert!(worst(&Tiny { config, ..Tiny::default() }, 10_000.0, Scaling::None) < 2e-5);
}

#[test]
fn every_cut_gives_the_same_bits() {
    for tiny in [Tiny::default(), Tiny { tied: true, dtype: Dtype::BF16, files: 2, ..Tiny::default() }] {
        let model = tiny.write();
        let dir = ModelDir::open(&model.path).unwrap();
        let tokens = tokens(PREFILL_CHUNK + 30, tiny.vocab, 3);
        let whole = all_logits(&dir, &tokens, &[]).unwrap();
        for stages in [1, 2, 3, 5, 8] {
            let cut = all_logits(&dir, &tokens, &split(8, stages)).unwrap();
            assert!(bits(&whole) == bits(&cut), "{stages} stages");
        }
    }
}

fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter().map(|row| row.iter().map(|v| v.to_bits()).collect()).collect()
}

#[test]
fn every_cut_generates_the_same_tokens() {
    let model = Tiny { tied: true, ..Tiny::default() }.write();
    let dir = ModelDir::open(&model.path).unwrap();
    let prompt = tokens(PREFILL_CHUNK + 9, 97, 5);
    for sampling in [
        Sampling { temperature: 0.0, ..Sampling::default() },
        Sampling { seed: 11, ..Sampling::default() },
        Sampling { temperature: 0.7, top_p: 0.9, top_k: 20, repetition_penalty: 1.2, seed: 12, ..Sampling::default() },
    ] {
        let whole = generate(&dir, &prompt, &sampling, 40, &[]).unwrap();
        assert_eq!(whole.len(), 40);
        for stages in [1, 2, 3, 5, 8] {
            let cut = generate(&dir, &prompt, &sampling, 40, &split(8, stages)).unwrap();
            assert_eq!(whole, cut, "{stages} stages, {sampling:?}");
        }
    }
}

#[test]
fn generation_ends_at_eos_and_at_the_context() {
    let model = Tiny { positions: 64, ..Tiny::default() }.write();
    let dir = ModelDir::open(&model.path).unwrap();
    let prompt = tokens(10, 97, 5);
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let all = generate(&dir, &prompt, &greedy, 1000, &[]).unwrap();
    assert_eq!(all.len(), 54);
    let stop = all[20];
    let first = all.iter().position(|id| *id == stop).unwrap();
    let generation = json!({"eos_token_id": [stop, 3]});
    std::fs::write(model.file("generation_config.json"), generation.to_string()).unwrap();
    let dir = ModelDir::open(&model.path).unwrap();
    let ended = generate(&dir, &prompt, &greedy, 1000, &[]).unwrap();
    let first = first.min(all.iter().position(|id| *id == 3).unwrap_or(usize::MAX));
    assert_eq!(ended, all[..first]);
}

#[test]
fn unusable_requests_are_refused() {
    let model = Tiny::default().write();
    let dir = ModelDir::open(&model.path).unwrap();
    assert!(matches!(all_logits(&dir, &[], &[]), Err(LocalError::NoTokens)));
    assert!(matches!(all_logits(&dir, &vec![0; 641], &[]), Err(LocalError::ContextLength { .. })));
    assert!(matches!(all_logits(&dir, &[97], &[]), Err(LocalError::Compute(_))));
    for cut in [vec![(0, 3)], vec![(0, 3), (5, 7)], vec![(0, 8)], vec![(4, 7), (0, 3)], vec![(0, 3), (3, 7)]] {
        let ranges: Vec<LayerRange> =
            cut.iter().map(|(first, last)| LayerRange { first: *first, last: *last }).collect();
        let refused = all_logits(&dir, &[1], &ranges);
        assert!(matches!(refused, Err(LocalError::Splits { .. })), "{cut:?}");
    }
}

#[test]
fn what_parts_weigh() {
    for tied in [false, true] {
        let model = Tiny { tied, ..Tiny::default() }.write();
        let dir = ModelDir::open(&model.path).unwrap();
        let bytes: u64 = model.tensors.values().map(|(_, values)| values.len() as u64 * 4).sum();
        assert_eq!(dir.shard_bytes(dir.all_layers()), bytes);
        let cut: u64 = split(8, 3).iter().map(|range| dir.shard_bytes(*range)).sum();
        assert_eq!(cut, bytes + if tied { dir.embed_bytes() } else { 0 });
        assert_eq!(dir.kv_bytes(LayerRange { first: 2, last: 4 }, 7), 3 * 7 * 2 * 2 * 10 * 4);
    }
}
