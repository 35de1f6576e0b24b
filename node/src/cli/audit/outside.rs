//! `consortium-node audit run`: an audit by somebody who has the model's files and the ear of a node that paid, and was
//! never in the swarm.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use consortium_inference::audit::compare::Finding as Numbers;
use consortium_inference::audit::thresholds::Thresholds;
use consortium_inference::model_dir::ModelDir;
use consortium_ledger::reputation::Finding as Found;
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::wire::audit::{NumericClass, Outcome, StageReceipt};
use consortium_protocol::wire::job::JobId;
use indicatif::ProgressBar;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::audit::check::{BlockFinding, Finding, check};
use crate::audit::proof::{MAX_PROOF, Proof};
use crate::cli::client::{Client, ClientArgs};
use crate::cli::terminal::{print, printable, remark};
use crate::clock::wall_ms;
use crate::{keyfile, library};

/// Fraud was found.
const FRAUD: u8 = 3;
/// Time for the node to have a stage show what it keeps, or to weigh a verdict.
const PATIENCE: Duration = Duration::from_secs(320);

/// Arguments of `audit run`.
#[derive(Args, Debug)]
#[command(
    after_help = "The node that paid for the job is asked for the signed order, the receipts, its nonce, and what each stage shows;
everything is checked here, and nothing that the node says is taken for granted. It answers callers on its own machine
alone, and for ten minutes after the job. Exit code: 0 if no fraud was found, 3 if there was, 1 if the audit could not
be done. A fraud proof is written to a file that `audit verify` checks on any machine; it holds the job's tokens."
)]
pub(in crate::cli) struct RunArgs {
    /// The job, as `chat` and the API name it.
    #[arg(value_name = "JOB")]
    job: JobId,
    /// Only this stage, counted from 0 [default: all that the node did not compute itself].
    #[arg(long, value_name = "N")]
    stage: Option<u16>,
    /// The model's directory, or the name of an imported model.
    #[arg(long, value_name = "DIR")]
    model: String,
    /// Thresholds as `audit calibrate` writes them [default: those this software comes with].
    #[arg(long, value_name = "FILE")]
    thresholds: Option<PathBuf>,
    /// Where fraud proofs are written.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Sign a verdict and hand it in to the node.
    #[arg(long)]
    submit: bool,
    /// Directory of the key that signs; made if there is none [default: the data directory].
    #[arg(long, value_name = "DIR", requires = "submit")]
    key: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// A page of what a stage shows.
#[derive(Deserialize)]
struct Page {
    digest: Hash,
    bytes: u64,
    data: String,
    next: Option<u64>,
}

/// A verdict that was handed in.
#[derive(Deserialize)]
struct Weighed {
    counted: bool,
    why: String,
}

/// An audit of one stage.
struct Audited {
    proof: Proof,
    receipt: Signed<StageReceipt>,
    finding: Finding,
    /// The fraud proof: its digest, and where it was written.
    written: Option<(Hash, PathBuf)>,
}

/// Audits a job, stage by stage.
///
/// # Errors
/// When the node does not answer or has nothing to show, it is about another model, or a file cannot be used.
pub(super) async fn run(args: RunArgs, data_dir: &Path) -> Result<ExitCode> {
    let thresholds = match &args.thresholds {
        Some(path) => Thresholds::read(path)?,
        None => Thresholds::compiled_in(),
    };
    let path = library::find(data_dir, &args.model)?;
    let opening = tokio::task::spawn_blocking(move || {
        let dir = ModelDir::open(path)?;
        let digest = dir.digest()?;
        Ok::<_, anyhow::Error>((dir, digest))
    });
    let (dir, digest) = opening.await.context("opening the model broke off")??;
    let tools = Arc::new((dir, digest, thresholds));
    let client = Client::find(args.client, data_dir)?;
    let stages = match args.stage {
        Some(stage) => vec![stage],
        None => stages(&client, args.job).await?,
    };
    ensure!(!stages.is_empty(), "the node computed all of this job itself, and paid nobody for it");
    let (mut documents, mut fraud) = (Vec::new(), false);
    for stage in stages {
        let audited = audit(&client, args.job, stage, &tools, &args.out).await?;
        fraud |= audited.finding.outcome == Outcome::Fraud;
        if !args.json {
            print(&said(&audited))?;
        }
        let weighed = match args.submit {
            true => Some(submit(&client, &audited, args.key.as_deref().unwrap_or(data_dir)).await?),
            false => None,
        };
        documents.push(document(&audited, weighed.as_ref()));
        if let (Some(Weighed { counted, why }), false) = (weighed, args.json) {
            let how = if counted { "and counts" } else { "and does not count" };
            print(&format!("handed in  {how}: {}\n", printable(&why)))?;
        }
    }
    if args.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&documents)?))?;
    }
    Ok(if fraud { ExitCode::from(FRAUD) } else { ExitCode::SUCCESS })
}

/// The stages of a job that others than the payer computed.
async fn stages(client: &Client, job: JobId) -> Result<Vec<u16>> {
    let shown: Value = client.rpc("job_receipts", json!({"job": job})).await?;
    let payer = &shown["order"]["order"]["payer"];
    let receipts = shown["receipts"].as_array().context("the node's answer makes no sense")?;
    Ok((0..).zip(receipts).filter(|(_, receipt)| receipt["signer"] != *payer).map(|(stage, _)| stage).collect())
}

async fn audit(
    client: &Client,
    job: JobId,
    stage: u16,
    tools: &Arc<(ModelDir, Hash, Thresholds)>,
    out: &Path,
) -> Result<Audited> {
    let wheel = ProgressBar::new_spinner().with_message(format!("fetching what stage {stage} shows"));
    wheel.enable_steady_tick(Duration::from_millis(120));
    let bytes = fetch(client, job, stage).await?;
    let proof = Proof::decode(&bytes).await.context("what the node sends makes no sense")?;
    let open = proof.order.order.payload();
    let receipt = proof.order.receipt().context("what the node sends makes no sense")?.clone();
    ensure!((open.job, receipt.payload().stage) == (job, stage), "the node sends something else than was asked for");
    ensure!(
        open.model == tools.1,
        "the job was done with the model of digest {}, and that in --model has digest {}",
        open.model,
        tools.1
    );
    wheel.set_message(format!("computing stage {stage} again"));
    let tools = Arc::clone(tools);
    let checking = tokio::task::spawn_blocking(move || (check(&proof, &tools.0, &tools.2), proof));
    let (finding, proof) = checking.await.context("the check broke off")?;
    wheel.finish_and_clear();
    let finding = finding?;
    let written = match finding.outcome {
        Outcome::Fraud => {
            let path = out.join(format!("fraud-{job:.8}-stage-{stage}.proof"));
            let written = std::fs::write(&path, &bytes);
            written.with_context(|| format!("cannot write {}", path.display()))?;
            Some((Hash::of(&bytes), path))
        }
        _ => None,
    };
    Ok(Audited { proof, receipt, finding, written })
}

/// All pages of what a stage shows.
async fn fetch(client: &Client, job: JobId, stage: u16) -> Result<Vec<u8>> {
    let mut whole = Vec::new();
    let (mut offset, mut digest) = (0, None);
    loop {
        let wanted = json!({"job": job, "stage": stage, "offset": offset});
        let page: Page = client.rpc_within("audit_opening", wanted, PATIENCE).await?;
        ensure!(page.bytes <= MAX_PROOF, "the node sends more than a stage can show");
        ensure!(*digest.get_or_insert(page.digest) == page.digest, "the node sends something else with every page");
        whole.extend(hex::decode(&page.data).context("what the node sends makes no sense")?);
        ensure!(whole.len() as u64 <= page.bytes, "the node sends more than it says");
        match page.next {
            Some(next) => {
                ensure!(next == whole.len() as u64 && next > offset, "the node leaves out a part");
                offset = next;
            }
            None => break,
        }
    }
    ensure!(digest == Some(Hash::of(&whole)), "what the node sent arrived damaged");
    Ok(whole)
}

/// Signs a verdict, and hands it in.
async fn submit(client: &Client, audited: &Audited, key_dir: &Path) -> Result<Weighed> {
    std::fs::create_dir_all(key_dir).with_context(|| format!("cannot create {}", key_dir.display()))?;
    let key = keyfile::load_or_create(key_dir)?;
    let proof = audited.written.as_ref().map(|(digest, _)| *digest);
    let verdict = Signed::sign(&key, audited.finding.verdict(&audited.receipt, proof, wall_ms()));
    remark(&format!("handing in a verdict signed by {}", key.node_id()));
    client.rpc_within("audit_submit", json!({"signed": hex::encode(verdict.as_bytes())}), PATIENCE).await
}

/// An audit in plain words.
fn said(audited: &Audited) -> String {
    let Audited { receipt, finding, written, .. } = audited;
    let work = receipt.payload();
    let mut text = format!(
        "stage {}    layers {}, {} rows, signed by {}\n",
        work.stage,
        work.range,
        work.positions,
        receipt.signer()
    );
    let mut row = 0;
    for (block, found) in finding.each.iter().enumerate() {
        let last = row + found.rows.saturating_sub(1);
        text += &format!("  block {block}, rows {row} to {last}: {}\n", in_words(found));
        row = last + 1;
    }
    let NumericClass { compute, kernels, engine } = finding.class;
    text += &format!("checked    in {compute:?} by {kernels:?} kernels {engine}\nfound      {}\n", finding.detail);
    text += match finding.outcome {
        Outcome::Fraud => "FRAUD: the node signed for work that it did not do\n",
        Outcome::Withheld => "withheld: what the node shows is not what it signed for\n",
        Outcome::Pass => "passed: the node did the work that it signed for\n",
        Outcome::Inconclusive => "inconclusive: the numbers are off, but honest ones may be as well\n",
    };
    if let Some((_, path)) = written {
        text += &format!("proof      {}; it holds the job's tokens\n", path.display());
    }
    text
}

fn in_words(found: &BlockFinding) -> String {
    if found.exact {
        return "equal bit for bit".to_owned();
    }
    let meaning = match found.finding {
        Numbers::Pass => "as honest numbers may be",
        Numbers::Inconclusive => "more than expected, but honest numbers may be",
        Numbers::Fraud => "which no honest computation gives",
    };
    format!("off by {:.3} units of rounding, {meaning}", found.drift)
}

fn document(audited: &Audited, weighed: Option<&Weighed>) -> Value {
    let Audited { proof, receipt, finding, written } = audited;
    let blocks: Vec<Value> = finding
        .each
        .iter()
        .map(|found| {
            json!({
                "finding": format!("{:?}", found.finding).to_lowercase(),
                "rows": found.rows,
                "exact": found.exact,
                "drift": found.drift,
            })
        })
        .collect();
    json!({
        "job": receipt.payload().job,
        "stage": receipt.payload().stage,
        "auditee": receipt.signer(),
        "receipt": receipt.digest(),
        "order": proof.order.order.digest(),
        "outcome": Found::from(finding.outcome),
        "detail": finding.detail,
        "class": finding.class,
        "blocks": blocks,
        "proof": written.as_ref().map(|(digest, _)| digest),
        "file": written.as_ref().map(|(_, path)| path.display().to_string()),
        "counted": weighed.map(|weighed| weighed.counted),
        "why": weighed.map(|weighed| &weighed.why),
    })
}
