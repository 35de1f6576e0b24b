//! Trains `consortium-tiny`, or lets a checkpoint or finished model of it speak.
//!
//! ```text
//! train_tiny --out DIR [--steps N] [--batch N] [--seed N] [--threads N] [--checkpoints DIR] [--resume]
//! train_tiny --checkpoints DIR --sample PROMPT [--temperature T]
//! train_tiny --stories N
//! ```
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::PathBuf;

use consortium_training::checkpoint::Checkpoint;
use consortium_training::corpus::{Split, document, stream};
use consortium_training::generate::generate;
use consortium_training::model::{Llama, LlamaConfig};
use consortium_training::progress::Progress;
use consortium_training::tokenizer::Tokenizer;
use consortium_training::{TinyOptions, train_tiny};

fn main() -> Result<(), Box<dyn Error>> {
    let mut options = TinyOptions::new(PathBuf::from("training/models/consortium-tiny"));
    let (mut sample, mut temperature) = (None, 0.0);
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--out" => options.out = value()?.into(),
            "--checkpoints" => options.checkpoints = Some(value()?.into()),
            "--steps" => options.steps = value()?.parse()?,
            "--batch" => options.batch = value()?.parse()?,
            "--seed" => options.seed = value()?.parse()?,
            "--threads" => options.threads = value()?.parse()?,
            "--checkpoint-every" => options.checkpoint_every = value()?.parse()?,
            "--temperature" => temperature = value()?.parse()?,
            "--sample" => sample = Some(value()?),
            "--resume" => options.resume = true,
            "--stories" => return stories(options.seed, value()?.parse()?),
            _ => return Err(format!("unknown argument {flag}").into()),
        }
    }
    if let Some(request) = sample {
        return speak(&options, &request, temperature);
    }
    let report = train_tiny(&options, &mut Progress::stderr())?;
    println!("{report:#?}");
    Ok(())
}

fn stories(seed: u64, count: u64) -> Result<(), Box<dyn Error>> {
    for index in 0..count {
        println!("{:?}\n", document(&mut stream(seed, index), Split::Train));
    }
    Ok(())
}

fn speak(options: &TinyOptions, request: &str, temperature: f32) -> Result<(), Box<dyn Error>> {
    let config = LlamaConfig::tiny();
    let tokenizer = Tokenizer::train(options.seed, 8_000, config.vocab_size)?;
    let model = Llama::from_values(&config, Checkpoint::newest(&options.checkpoint_directory())?.weights)?;
    let answer = generate(&model, &tokenizer.prompt(request)?, 256, temperature, options.seed)?;
    println!("{}", tokenizer.decode(&answer)?);
    Ok(())
}
