//! `consortium-node model`: the models on this node's disk.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use consortium_inference::logits::all_logits;
use consortium_inference::model_dir::ModelDir;
use consortium_protocol::wire::heartbeat::LayerRange;
use indicatif::{ProgressBar, ProgressStyle};

use crate::library;

/// Lists, imports, shows and probes models.
#[derive(Subcommand, Debug)]
pub enum ModelCommand {
    /// List imported models.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Copy a model directory (config.json, safetensors, tokenizer.json) into the data directory, checked.
    Import {
        /// The directory.
        dir: PathBuf,
        /// Name to give it [default: the directory's].
        #[arg(long)]
        name: Option<String>,
    },
    /// Show what a model is: architecture, layers, sizes, digest.
    Show {
        /// A directory, or the name of an imported model.
        model: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Compute the logits of every position, for comparison with other implementations.
    Logits(LogitsArgs),
}

/// Arguments of `model logits`.
#[derive(Args, Debug)]
pub struct LogitsArgs {
    /// A directory, or the name of an imported model; needs no tokenizer.
    model: String,
    /// Token ids.
    #[arg(long, value_delimiter = ',', required = true, value_name = "ID,ID,...")]
    tokens: Vec<u32>,
    /// Compute by stages of these layers, in one process.
    #[arg(long, value_delimiter = ',', value_name = "0-3,4-7")]
    layers_split: Vec<LayerRange>,
    /// Print `{"logits": [[f32; vocab]; positions]}`; without it, the five likeliest tokens of each position.
    #[arg(long)]
    json: bool,
}

/// Runs a `model` command.
///
/// # Errors
/// When a model is not found or damaged.
pub async fn run(command: ModelCommand, data_dir: &Path) -> Result<()> {
    match command {
        ModelCommand::List { json } => list(data_dir, json),
        ModelCommand::Import { dir, name } => import(data_dir, &dir, name.as_deref()),
        ModelCommand::Show { model, json } => show(data_dir, &model, json),
        ModelCommand::Logits(args) => logits(data_dir, &args),
    }
}

fn list(data_dir: &Path, json: bool) -> Result<()> {
    let mut rows = Vec::new();
    for path in library::list(data_dir)? {
        match ModelDir::open(&path) {
            Ok(model) => rows.push(describe(&model)?),
            Err(error) => eprintln!("skipped {}: {error}", path.display()),
        }
    }
    if json {
        println!("{}", serde_json::Value::Array(rows));
    } else if rows.is_empty() {
        println!("no imported models; add one with: consortium-node model import DIR");
    } else {
        println!("{:<28} {:>6} {:>12} {:>8}  digest", "name", "layers", "parameters", "context");
        for row in rows {
            let text = |key: &str| row[key].as_str().map_or_else(|| row[key].to_string(), str::to_owned);
            println!(
                "{:<28} {:>6} {:>12} {:>8}  {:.16}",
                text("name"),
                text("layers"),
                text("parameters"),
                text("context"),
                text("digest")
            );
        }
    }
    Ok(())
}

fn import(data_dir: &Path, dir: &Path, name: Option<&str>) -> Result<()> {
    let total: u64 = std::fs::read_dir(dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()))
        .sum();
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {msg}")?;
    let bar = ProgressBar::new(total).with_style(style);
    let model = library::import(data_dir, dir, name, |file, bytes| {
        bar.set_message(file.file_name().unwrap_or_default().to_string_lossy().into_owned());
        bar.inc(bytes);
    })?;
    bar.finish_and_clear();
    println!("imported {}; serve it with: consortium-node start --model {}", model.name(), model.name());
    Ok(())
}

fn show(data_dir: &Path, model: &str, json: bool) -> Result<()> {
    let model = ModelDir::open(library::find(data_dir, model)?)?;
    let description = describe(&model)?;
    if json {
        println!("{description}");
        return Ok(());
    }
    for (key, value) in description.as_object().into_iter().flatten() {
        println!("{key:<14} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
    Ok(())
}

fn describe(model: &ModelDir) -> Result<serde_json::Value> {
    let config = model.config();
    let reference = model.model_ref()?;
    let weights = model.shard_bytes(model.all_layers());
    Ok(serde_json::json!({
        "name": reference.name,
        "path": model.path(),
        "digest": reference.digest.to_string(),
        "layers": reference.layers,
        "context": reference.context,
        "hidden": config.hidden_size,
        "vocabulary": config.vocab_size,
        "parameters": config.parameters(),
        "memory": format!("{:.1} MiB of weights when all layers are loaded", weights as f64 / 1048576.0),
    }))
}

fn logits(data_dir: &Path, args: &LogitsArgs) -> Result<()> {
    let model = ModelDir::open(library::find(data_dir, &args.model)?)?;
    let splits = if args.layers_split.is_empty() { vec![model.all_layers()] } else { args.layers_split.clone() };
    let logits = all_logits(&model, &args.tokens, &splits)?;
    ensure!(
        logits.iter().flatten().all(|value| value.is_finite()),
        "the model's logits are not finite: its weights are damaged"
    );
    if args.json {
        println!("{}", serde_json::json!({ "logits": logits }));
        return Ok(());
    }
    for (position, row) in logits.iter().enumerate() {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        let best: Vec<String> = order.iter().take(5).map(|id| format!("{id} ({:.3})", row[*id])).collect();
        println!("{position:>5}  {}", best.join("  "));
    }
    Ok(())
}
