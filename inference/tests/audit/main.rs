//! Scratch.
#![allow(clippy::unwrap_used, clippy::panic, dead_code)]
mod cheats;
use consortium_inference::audit::calibrate::*;
use consortium_inference::{model_dir::ModelDir, tokenizer::TextTokenizer};
use std::path::Path;

#[test]
#[ignore]
fn scratch_calibrate() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../training/models/consortium-tiny");
    let dir = ModelDir::open(&path).unwrap();
    let tok = TextTokenizer::open(&path).unwrap();
    let n: usize = std::env::var("PROMPTS").unwrap().parse().unwrap();
    let texts = [
        "Tell me a story about a fox and a lantern",
        "Tell me a story about a bear",
        "Once there was a mouse who",
        "Tell me a story about a key and a river",
        "Hello",
        "The owl said",
        "Tell me a story about a girl and a kite",
        "What did the dog find?",
    ];
    let prompts = texts.iter().take(n).map(|t| tok.encode(t, false).unwrap()).collect();
    let plan = Plan::new(&dir, prompts);
    let start = std::time::Instant::now();
    let t = calibrate(&dir, &plan, &mut |p| eprintln!("{:?} {:?}", start.elapsed(), p)).unwrap();
    std::fs::write(std::env::var("OUT").unwrap(), t.to_json().unwrap()).unwrap();
}
