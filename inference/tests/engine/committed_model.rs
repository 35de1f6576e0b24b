//! The model that is committed with the project.

use std::path::Path;

use consortium_inference::chat_template::ChatTemplate;
use consortium_inference::generate::generate;
use consortium_inference::model_dir::ModelDir;
use consortium_inference::tokenizer::TextTokenizer;
use consortium_protocol::wire::job::{ChatMessage, Sampling};

use crate::support::split;

#[test]
fn it_speaks_and_every_cut_of_it_says_the_same() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../training/models/consortium-tiny");
    let dir = ModelDir::open(&path).unwrap();
    assert_eq!(dir.name(), "consortium-tiny");
    let tokenizer = TextTokenizer::open(&path).unwrap();
    assert!(tokenizer.vocab_size() <= dir.config().vocab_size);
    let template = ChatTemplate::open(&path).unwrap().expect("the model has a chat template");
    let message = ChatMessage { role: "user".into(), content: "Hello".into() };
    let text = template.render(&[message], true).unwrap();
    let prompt = tokenizer.encode(&text, false).unwrap();
    assert!(!prompt.is_empty());
    for sampling in [Sampling { temperature: 0.0, ..Sampling::default() }, Sampling { seed: 3, ..Sampling::default() }]
    {
        let whole = generate(&dir, &prompt, &sampling, 48, &[]).unwrap();
        let mut detokenizer = tokenizer.detokenizer();
        let mut streamed: String = whole.iter().map(|id| detokenizer.push(*id).unwrap()).collect();
        streamed += &detokenizer.finish().unwrap();
        assert_eq!(streamed, tokenizer.decode(&whole).unwrap());
        for stages in [2, 3].into_iter().filter(|stages| *stages <= dir.config().layers) {
            let cut = generate(&dir, &prompt, &sampling, 48, &split(dir.config().layers, stages)).unwrap();
            assert_eq!(whole, cut, "{stages} stages");
        }
    }
}
