//! `consortium-node audit calibrate`: how far honest numbers lie apart.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use consortium_inference::audit::calibrate::{Plan, calibrate};
use consortium_inference::model_dir::ModelDir;
use consortium_inference::tokenizer::TextTokenizer;
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::terminal::{print, remark};
use crate::library;

/// What the sequences begin with: prose, code, numbers, and another language.
const PROMPTS: [&str; 4] = [
    "Once upon a time there was a lighthouse keeper who counted the ships that passed, and wrote down what they carried.",
    "fn main() {\n    let mut total = 0;\n    for n in 1..=100 {\n        if n % 3 == 0 { total += n; }\n    }\n}\n",
    "3.14159, 2.71828, 1.41421, 1.61803; 17 * 23 = 391; the year 1848; 0x7f; 10^9 + 7",
    "Es war einmal ein Müller, der hatte drei Söhne, eine Mühle, einen Esel und einen Kater.",
];

/// Arguments of `audit calibrate`.
#[derive(Args, Debug)]
#[command(
    after_help = "Runs the model in every numeric class that this machine has, cut into stages in several ways, and audits each by
each. Takes minutes on a small model, and much longer on a large one. Pass the file to `audit verify --thresholds`."
)]
pub(in crate::cli) struct CalibrateArgs {
    /// The model's directory, or the name of an imported model.
    #[arg(value_name = "DIR")]
    model: String,
    /// Where to write the thresholds [default: print them].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Length of the sequences, in rows [default: 256, or the model's context if that is shorter].
    #[arg(long, value_name = "N")]
    positions: Option<usize>,
}

/// Measures, and writes thresholds.
///
/// # Errors
/// When the model cannot be loaded or run, or the file cannot be written.
pub(super) async fn run(args: CalibrateArgs, data_dir: &Path) -> Result<()> {
    let dir = ModelDir::open(library::find(data_dir, &args.model)?)?;
    let tokenizer = TextTokenizer::open(dir.path())?;
    let prompts = PROMPTS.iter().map(|text| tokenizer.encode(text, true)).collect::<Result<Vec<_>, _>>()?;
    let mut plan = Plan::new(&dir, prompts);
    if let Some(positions) = args.positions {
        plan.positions = positions.min(dir.config().max_positions as usize);
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} stages {elapsed_precise} ETA {eta_precise}")?;
    let bar = ProgressBar::new(0).with_style(style);
    let measuring = tokio::task::spawn_blocking(move || {
        let thresholds = calibrate(&dir, &plan, &mut |progress| {
            bar.set_length(progress.total as u64);
            bar.set_position(progress.done as u64);
        });
        bar.finish_and_clear();
        thresholds
    });
    let text = measuring.await.context("the calibration broke off")??.to_json()?;
    match args.out {
        None => {
            print(&text)?;
        }
        Some(path) => {
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            remark(&format!("wrote {}", path.display()));
        }
    }
    Ok(())
}
