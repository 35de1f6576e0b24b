//! Every defect of a model directory has an error of its own that names file and tensor.

use std::fs;
use std::path::Path;

use consortium_inference::ModelError;
use consortium_inference::model_dir::ModelDir;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::support::{ModelOnDisk, Tiny};

fn small() -> Tiny {
    Tiny { layers: 2, ..Tiny::default() }
}

fn refused(model: &ModelOnDisk) -> (ModelError, String) {
    let error = ModelDir::open(&model.path).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("tiny-model"), "no path in: {text}");
    (error, text)
}

fn with_config(config: Value) -> (ModelError, String) {
    refused(&Tiny { config, ..small() }.write())
}

/// Rewrites the single file with one tensor replaced or left out.
fn rewrite(model: &ModelOnDisk, name: &str, with: Option<(Dtype, Vec<usize>)>) {
    let path = model.file("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let zeros = vec![0; 1 << 20];
    let mut views: Vec<(String, TensorView<'_>)> =
        tensors.iter().filter(|(tensor, _)| *tensor != name).map(|(tensor, view)| (tensor.to_owned(), view)).collect();
    if let Some((dtype, shape)) = with {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        views.push((name.to_owned(), TensorView::new(dtype, shape, &zeros[..bytes]).unwrap()));
    }
    let out = model.file("rewritten");
    safetensors::serialize_to_file(views, None, &out).unwrap();
    fs::rename(out, path).unwrap();
}

#[test]
fn good_directories_open() {
    for files in [1, 3] {
        let model = Tiny { files, ..small() }.write();
        let dir = ModelDir::open(&model.path).unwrap();
        assert_eq!(dir.name(), "tiny-model");
        let model_ref = dir.model_ref().unwrap();
        assert_eq!((model_ref.layers, model_ref.context), (2, 640));
    }
}

#[test]
fn no_directory() {
    let error = ModelDir::open("no/such/place").unwrap_err();
    assert!(matches!(error, ModelError::NotADirectory { .. }));
    assert!(error.to_string().contains("no/such/place"));
}

#[test]
fn no_config() {
    let model = small().write();
    fs::remove_file(model.file("config.json")).unwrap();
    let (error, text) = refused(&model);
    assert!(matches!(error, ModelError::MissingFile { .. }));
    assert!(text.contains("config.json"), "{text}");
}

#[test]
fn no_weights() {
    let model = small().write();
    fs::remove_file(model.file("model.safetensors")).unwrap();
    let (error, text) = refused(&model);
    assert!(matches!(error, ModelError::MissingFile { .. }));
    assert!(text.contains("model.safetensors"), "{text}");
}

#[test]
fn a_shard_is_absent() {
    let model = Tiny { files: 3, ..small() }.write();
    fs::remove_file(model.file("model-00002-of-00003.safetensors")).unwrap();
    let (error, text) = refused(&model);
    assert!(matches!(error, ModelError::MissingFile { .. }));
    assert!(text.contains("model-00002-of-00003.safetensors"), "{text}");
}

#[test]
fn an_index_that_leads_out_of_the_directory() {
    let model = Tiny { files: 2, ..small() }.write();
    let index = json!({"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}});
    fs::write(model.file("model.safetensors.index.json"), index.to_string()).unwrap();
    assert!(matches!(refused(&model).0, ModelError::Config { .. }));
}

#[test]
fn an_index_that_names_the_wrong_file() {
    let model = Tiny { files: 2, ..small() }.write();
    let path = model.file("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    index["weight_map"]["not.there"] = json!("model-00001-of-00002.safetensors");
    fs::write(path, index.to_string()).unwrap();
    let (error, text) = refused(&model);
    assert!(matches!(error, ModelError::MissingTensor { .. }));
    assert!(text.contains("not.there") && text.contains("model-00001-of-00002"), "{text}");
}

#[test]
fn a_tensor_is_absent() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let model = small().write();
    rewrite(&model, name, None);
    let (error, text) = refused(&model);
    assert!(matches!(error, ModelError::MissingTensor { .. }));
    assert!(text.contains(name) && text.contains("model.safetensors"), "{text}");
}

#[test]
fn a_tensor_has_the_wrong_shape() {
    let name = "model.layers.0.self_attn.k_proj.weight";
    let model = small().write();
    rewrite(&model, name, Some((Dtype::F32, vec![21, 48])));
    let (error, text) = refused(&model);
    assert!(matches!(error, ModelError::WrongShape { .. }));
    assert!(text.contains(name) && text.contains("[21, 48]") && text.contains("[20, 48]"), "{text}");
}

#[test]
fn a_tensor_has_the_wrong_dtype() {
    let name = "lm_head.weight";
    let model = small().write();
    rewrite(&model, name, Some((Dtype::I8, vec![97, 48])));
    let (error, text) = refused(&model);
    assert!(matches!(error, ModelError::WrongDtype { .. }));
    assert!(text.contains(name) && text.contains("I8"), "{text}");
}

#[test]
fn a_bias_is_not_dropped_in_silence() {
    let model = small().write();
    rewrite(&model, "model.layers.0.self_attn.q_proj.bias", Some((Dtype::F32, vec![60])));
    assert!(matches!(refused(&model).0, ModelError::UnsupportedFeature { .. }));
}

#[test]
fn a_truncated_file() {
    let model = small().write();
    let path = model.file("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    let (error, text) = refused(&model);
    assert!(matches!(error, ModelError::Truncated { .. }));
    assert!(text.contains("model.safetensors") && text.contains("truncated"), "{text}");
}

#[test]
fn corrupt_headers() {
    let good = small().write();
    let bytes = fs::read(good.file("model.safetensors")).unwrap();
    let mut huge = bytes.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut garbled = bytes.clone();
    garbled[8..40].fill(b'x');
    let mut offsets =
        br#"{"model.norm.weight":{"dtype":"F32","shape":[1],"data_offsets":[18446744073709551615,3]}}"#.to_vec();
    offsets.splice(0..0, (offsets.len() as u64).to_le_bytes());
    let mut wrong_size = bytes.clone();
    let at = wrong_size.windows(7).position(|w| w == b"[97,48]").unwrap();
    wrong_size[at..at + 7].copy_from_slice(b"[97,47]");
    for (case, corrupt) in [vec![], b"short".to_vec(), huge, garbled, offsets].iter().enumerate() {
        fs::write(good.file("model.safetensors"), corrupt).unwrap();
        let (error, text) = refused(&good);
        assert!(matches!(error, ModelError::CorruptHeader { .. }), "case {case}: {error:?}");
        assert!(text.contains("model.safetensors"), "{text}");
    }
    fs::write(good.file("model.safetensors"), wrong_size).unwrap();
    assert!(matches!(refused(&good).0, ModelError::WrongShape { .. }));
}

#[test]
fn random_damage_never_panics() {
    use rand::{Rng, SeedableRng};
    let model = Tiny { layers: 1, vocab: 7, ..small() }.write();
    let path = model.file("model.safetensors");
    let good = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
    for _ in 0..400 {
        let mut bytes = good.clone();
        for _ in 0..rng.random_range(1..4) {
            bytes[rng.random_range(0..header)] = rng.random();
        }
        fs::write(&path, &bytes).unwrap();
        // Some damage is none (in a name that nothing asks for, say); whatever opens must also load.
        if let Ok(dir) = ModelDir::open(&model.path) {
            let _ = consortium_inference::logits::all_logits(&dir, &[1], &[]);
        }
    }
}

#[test]
fn files_that_change_while_in_use() {
    let model = small().write();
    let dir = ModelDir::open(&model.path).unwrap();
    let path = model.file("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error =
        consortium_inference::llama::Shard::load(&dir, dir.all_layers(), &candle_core::Device::Cpu).unwrap_err();
    assert!(matches!(error, ModelError::Changed { .. }), "{error:?}");
}

#[test]
fn unsupported_models_are_named() {
    for architecture in ["Qwen2ForCausalLM", "GPT2LMHeadModel"] {
        let (error, text) = with_config(json!({"architectures": [architecture]}));
        assert!(matches!(error, ModelError::UnsupportedArchitecture { .. }));
        assert!(text.contains(architecture) && text.contains("LlamaForCausalLM"), "{text}");
    }
    let mistral = |window: u32| json!({"architectures": ["MistralForCausalLM"], "sliding_window": window});
    for (config, named) in [
        (mistral(128), "sliding window"),
        (json!({"hidden_act": "gelu"}), "gelu"),
        (json!({"attention_bias": true}), "attention_bias"),
        (json!({"mlp_bias": true}), "mlp_bias"),
        (json!({"quantization_config": {"quant_method": "gptq"}}), "gptq"),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}), "yarn"),
        (json!({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}), "dynamic"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
    ] {
        let (error, text) = with_config(config);
        assert!(matches!(error, ModelError::UnsupportedFeature { .. }), "{error:?}");
        assert!(text.contains(named), "{text}");
    }
    // A window as long as the context is none.
    let model = Tiny { config: mistral(640), ..small() }.write();
    assert!(ModelDir::open(&model.path).is_ok());
}

#[test]
fn inconsistent_configs() {
    for config in [
        json!({"architectures": null, "model_type": null}),
        json!({"hidden_size": null}),
        json!({"hidden_size": 0}),
        json!({"hidden_size": -3}),
        json!({"hidden_size": 1_000_000_000_000_u64}),
        json!({"vocab_size": u64::MAX}),
        json!({"num_hidden_layers": 100_000}),
        json!({"num_attention_heads": 5}),
        json!({"num_key_value_heads": 0}),
        json!({"head_dim": 7}),
        json!({"head_dim": null, "num_attention_heads": 7, "num_key_value_heads": 7}),
        json!({"rms_norm_eps": 0.0}),
        json!({"rope_theta": -1.0}),
        json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}),
        json!({"rope_scaling": {"rope_type": "linear"}}),
        json!({"eos_token_id": 97}),
        json!({"eos_token_id": "two"}),
    ] {
        let (error, text) = with_config(config.clone());
        assert!(matches!(error, ModelError::Config { .. }), "{config}: {error:?}");
        assert!(text.contains("config.json"), "{text}");
    }
    let model = small().write();
    fs::write(model.file("config.json"), "{ not json").unwrap();
    assert!(matches!(refused(&model).0, ModelError::Config { .. }));
}

#[test]
fn end_of_sequence_tokens() {
    let open = |config: Value, generation: Option<Value>| {
        let model = Tiny { config, ..small() }.write();
        if let Some(generation) = generation {
            fs::write(model.file("generation_config.json"), generation.to_string()).unwrap();
        }
        ModelDir::open(&model.path).unwrap().config().eos.clone()
    };
    assert_eq!(open(json!({}), None), Vec::<u32>::new());
    assert_eq!(open(json!({"eos_token_id": 2}), None), [2]);
    assert_eq!(open(json!({"eos_token_id": -1}), None), Vec::<u32>::new());
    assert_eq!(open(json!({"eos_token_id": [9, 2, 9]}), None), [2, 9]);
    assert_eq!(open(json!({"eos_token_id": 2}), Some(json!({"eos_token_id": [5, 4]}))), [4, 5]);
    assert_eq!(open(json!({"eos_token_id": 2}), Some(json!({"temperature": 1}))), [2]);
}

#[test]
fn the_digest_is_of_what_the_model_says() {
    let digest = |change: &dyn Fn(&Path)| {
        let model = small().write();
        change(&model.path);
        ModelDir::open(&model.path).unwrap().digest().unwrap()
    };
    let plain = digest(&|_| {});
    assert_eq!(plain, digest(&|_| {}));
    assert_eq!(plain, digest(&|path| fs::write(path.join("README.md"), "x").unwrap()));
    assert_ne!(plain, digest(&|path| fs::write(path.join("tokenizer.json"), "x").unwrap()));
    let other = Tiny { seed: 2, ..small() }.write();
    assert_ne!(plain, ModelDir::open(&other.path).unwrap().digest().unwrap());
}
