//! The run that made `consortium-tiny`, as far as it is kept beside the model: its log.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use consortium_protocol::wire::train::RunId;
use consortium_training::model::LlamaConfig;
use consortium_training::run::archive::Archive;
use consortium_training::run::held_out_loss;
use consortium_training::run::replay::{Depth, replay};

#[test]
fn its_log_holds_and_is_of_the_model_beside_it() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/consortium-tiny");
    let archive = Archive::open(&model.join("run")).unwrap();
    let spec = archive.spec().unwrap();
    let (mut first, mut last) = (None, None);
    let done = replay(&archive, Depth::Log, &mut |step| {
        let loss = held_out_loss(step.entry);
        first = first.or(loss);
        last = loss.or(last);
    })
    .unwrap();
    assert!(done.holds() && done.sums.last.ended);
    assert_eq!(done.sums.last.trained, spec.payload().rounds);
    assert!(first.unwrap() > 6.0 && last.unwrap() < 0.25, "{first:?} {last:?}");
    assert_eq!(archive.tokenizer().unwrap(), fs::read(model.join("tokenizer.json")).unwrap());
    let shape: LlamaConfig = serde_json::from_str(&spec.payload().model.config).unwrap();
    assert_eq!(shape, LlamaConfig::tiny());
    let card = fs::read_to_string(model.join("README.md")).unwrap();
    assert!(card.contains(&RunId::of(&spec).to_string()), "the card names another run");
}
