//! `consortium-node audit verify`: a fraud proof on a machine that was never in the swarm.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use consortium_inference::audit::thresholds::Thresholds;
use consortium_inference::model_dir::ModelDir;
use consortium_ledger::reputation::Finding as Found;
use consortium_protocol::envelope::Signed;
use consortium_protocol::wire::audit::{NumericClass, Outcome};
use indicatif::ProgressBar;
use serde_json::json;

use crate::audit::check::{Finding, check_alone};
use crate::audit::proof::Proof;
use crate::cli::terminal::print;
use crate::library;

/// The proof does not hold.
const NOT_PROVED: u8 = 3;

/// Arguments of `audit verify`.
#[derive(Args, Debug)]
#[command(
    after_help = "The signatures, the order and the receipts are checked, then the stage is computed again from what it showed and
compared with what it signed for. Exit code: 0 if fraud is proved, 3 if it is not, 1 if the file or the model
cannot be used."
)]
pub(in crate::cli) struct VerifyArgs {
    /// The fraud proof.
    file: PathBuf,
    /// The model's directory, or the name of an imported model.
    #[arg(long, value_name = "DIR")]
    model: String,
    /// Thresholds as `audit calibrate` writes them [default: those this software comes with].
    #[arg(long, value_name = "FILE")]
    thresholds: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Checks a proof, and says what was signed by whom and what follows.
///
/// # Errors
/// When the file is no proof, the model is another, or its classes were not calibrated.
pub(super) async fn run(args: VerifyArgs, data_dir: &Path) -> Result<ExitCode> {
    let thresholds = match &args.thresholds {
        Some(path) => Thresholds::read(path)?,
        None => Thresholds::compiled_in(),
    };
    let dir = ModelDir::open(library::find(data_dir, &args.model)?)?;
    let proof = Proof::read(&args.file).await?;
    if !args.json {
        print(&said(&proof))?;
    }
    let wheel = ProgressBar::new_spinner().with_message("computing the stage again");
    wheel.enable_steady_tick(Duration::from_millis(120));
    let checking = tokio::task::spawn_blocking(move || (check_alone(&proof, &dir, &thresholds), proof));
    let (finding, proof) = checking.await.context("the check broke off")?;
    wheel.finish_and_clear();
    let finding = finding?;
    let text = if args.json { document(&proof, &finding)? } else { concluded(&proof, &finding) };
    print(&text)?;
    Ok(if finding.outcome == Outcome::Fraud { ExitCode::SUCCESS } else { ExitCode::from(NOT_PROVED) })
}

/// What is in the file.
fn said(proof: &Proof) -> String {
    let order = &proof.order.order;
    let open = order.payload();
    let mut lines = vec![
        ("job".to_owned(), format!("{}, attempt {}, term {}", open.job, open.attempt, open.term)),
        ("model".to_owned(), open.model.to_string()),
        ("ordered by".to_owned(), format!("{} (order {})", order.signer(), order.digest())),
        ("paid by".to_owned(), format!("{}, whose nonce is the one committed to", open.payer)),
    ];
    for receipt in &proof.order.chain {
        let said = receipt.payload();
        let text = format!("layers {}, {} rows, signed by {}", said.range, said.positions, receipt.signer());
        lines.push((format!("stage {}", said.stage), text));
    }
    let shown = proof.opened.inputs.len() + proof.opened.outputs.len();
    let tokens = proof.opened.opening.tokens.len();
    lines.push((
        "shown".to_owned(),
        format!("{tokens} tokens and {shown} bytes of hidden states, by the last of these"),
    ));
    lines.iter().map(|(name, text)| format!("{name:<10} {text}\n")).collect()
}

fn concluded(proof: &Proof, finding: &Finding) -> String {
    let accused = proof.order.receipt().map_or_else(String::new, |receipt| receipt.signer().to_string());
    let verdict = match finding.outcome {
        Outcome::Fraud => format!("FRAUD: {accused} signed for work that it did not do"),
        Outcome::Withheld => "not proved: what the file shows is not what was signed for".to_owned(),
        Outcome::Pass => format!("not proved: {accused} did the work that it signed for"),
        Outcome::Inconclusive => "not proved: the numbers are off, but honest ones may be as well".to_owned(),
    };
    let Finding { blocks, exact, detail, .. } = finding;
    let NumericClass { compute, kernels, engine } = finding.class;
    format!(
        "checked    {blocks} blocks, {exact} of them equal bit for bit, computed in {compute:?} by {kernels:?} kernels {engine}\n\
         found      {detail}\n\
         {verdict}\n"
    )
}

fn document(proof: &Proof, finding: &Finding) -> Result<String> {
    let order = &proof.order.order;
    let chain: Vec<_> = proof
        .order
        .chain
        .iter()
        .map(|receipt| json!({"signer": receipt.signer(), "digest": receipt.digest(), "receipt": receipt.payload()}))
        .collect();
    let whole = json!({
        "proved": finding.outcome == Outcome::Fraud,
        "outcome": Found::from(finding.outcome),
        "accused": proof.order.receipt().map(Signed::signer),
        "blocks": finding.blocks,
        "exact": finding.exact,
        "class": finding.class,
        "detail": finding.detail,
        "order": {"signer": order.signer(), "digest": order.digest(), "order": order.payload()},
        "receipts": chain,
    });
    Ok(format!("{}\n", serde_json::to_string_pretty(&whole)?))
}
