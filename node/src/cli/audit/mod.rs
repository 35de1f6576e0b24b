//! `consortium-node audit`: verdicts that the running node keeps, and proofs that need no node at all.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Subcommand;
use consortium_ledger::reputation::Finding;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire::job::JobId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Asking, Client};
use super::terminal::{Align, print, printable, short_peer, table};
use super::units;

mod calibrate;
mod order;
mod outside;
mod verify;

/// Digits of a digest in a table.
const SHORT: usize = 16;

/// Show audits, and check fraud proofs.
#[derive(Subcommand, Debug)]
#[command(after_help = "Examples:
  consortium-node audit list --peer 12D3KooW...
  consortium-node audit show 3f2a9c01b7de55aa
  consortium-node audit order 0011...eeff
  consortium-node audit run 0011...eeff --rpc http://127.0.0.1:8080/rpc --model ./my-model
  consortium-node audit verify fraud.proof --model ./my-model")]
pub(super) enum AuditCommand {
    /// List the verdicts that the running node keeps, the newest first.
    List {
        /// Only those about the work of this PeerId.
        #[arg(long, value_name = "PEER")]
        peer: Option<NodeId>,
        /// How many at most.
        #[arg(long, default_value_t = 20)]
        limit: usize,
        #[command(flatten)]
        asking: Asking,
    },
    /// Show one verdict, and where its fraud proof is.
    Show {
        /// Its digest, or the beginning of it.
        digest: String,
        #[command(flatten)]
        asking: Asking,
    },
    /// Have the running node audit a job that it paid for, whether that was drawn or not.
    Order(order::OrderArgs),
    /// Audit a job from outside: with the model's files, and what the node that paid shows.
    Run(Box<outside::RunArgs>),
    /// Check a fraud proof with nothing but the model's files; needs no node.
    Verify(verify::VerifyArgs),
    /// Measure how far honest numbers lie apart on this machine, and write thresholds; needs no node.
    Calibrate(calibrate::CalibrateArgs),
}

/// A verdict as the node shows it.
#[derive(Debug, Deserialize)]
struct AuditView {
    digest: Hash,
    auditor: NodeId,
    auditee: NodeId,
    job: JobId,
    attempt: u32,
    stage: u16,
    outcome: Finding,
    blocks: u32,
    exact: u32,
    proof: Option<Hash>,
    at_ms: u64,
    #[serde(default)]
    fraud_proof: Option<ProofView>,
}

/// Where a proof is.
#[derive(Debug, Deserialize)]
struct ProofView {
    bytes: Option<u64>,
    file: Option<String>,
}

/// Runs an `audit` command.
///
/// # Errors
/// When no node answers, a digest is not known, or a file cannot be used.
pub(super) async fn run(command: AuditCommand, data_dir: &Path) -> Result<ExitCode> {
    match command {
        AuditCommand::List { peer, limit, asking } => list(peer, limit, asking, data_dir).await?,
        AuditCommand::Show { digest, asking } => show(&digest, asking, data_dir).await?,
        AuditCommand::Order(args) => order::run(args, data_dir).await?,
        AuditCommand::Run(args) => return Box::pin(outside::run(*args, data_dir)).await,
        AuditCommand::Verify(args) => return verify::run(args, data_dir).await,
        AuditCommand::Calibrate(args) => calibrate::run(args, data_dir).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(peer: Option<NodeId>, limit: usize, asking: Asking, data_dir: &Path) -> Result<()> {
    let client = Client::find(asking.client, data_dir)?;
    let wanted = json!({"peer_id": peer, "limit": limit.clamp(1, 200)});
    let audits: Vec<Value> = client.pages("audit_list", wanted, "audits", limit).await?;
    if asking.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&audits)?))?;
        return Ok(());
    }
    let audits: Vec<AuditView> = serde_json::from_value(audits.into()).context("the node's answer makes no sense")?;
    print(&render(&audits))?;
    Ok(())
}

fn render(audits: &[AuditView]) -> String {
    if audits.is_empty() {
        return "no audits are on record\n".to_owned();
    }
    let header = [
        ("WHEN", Align::Left),
        ("OUTCOME", Align::Left),
        ("NODE", Align::Left),
        ("BY", Align::Left),
        ("JOB", Align::Left),
        ("STAGE", Align::Right),
        ("BLOCKS", Align::Right),
        ("EXACT", Align::Right),
        ("DIGEST", Align::Left),
    ];
    let rows: Vec<_> = audits
        .iter()
        .map(|audit| {
            vec![
                units::ago(audit.at_ms / 1000),
                audit.outcome.as_str().to_owned(),
                short_peer(&audit.auditee.to_string()),
                short_peer(&audit.auditor.to_string()),
                format!("{:.8}", audit.job),
                audit.stage.to_string(),
                audit.blocks.to_string(),
                audit.exact.to_string(),
                format!("{:.*}", SHORT, audit.digest),
            ]
        })
        .collect();
    table(&header, &rows)
}

async fn show(digest: &str, asking: Asking, data_dir: &Path) -> Result<()> {
    let client = Client::find(asking.client, data_dir)?;
    let digest = full_digest(&client, digest).await?;
    let audit: Value = client.rpc("audit_get", json!({"digest": digest})).await?;
    if asking.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&audit)?))?;
        return Ok(());
    }
    let audit: AuditView = serde_json::from_value(audit).context("the node's answer makes no sense")?;
    print(&describe(&audit))?;
    Ok(())
}

/// The digest that begins like this, among those that the node keeps.
async fn full_digest(client: &Client, digest: &str) -> Result<String> {
    if digest.len() == 64 {
        return Ok(digest.to_owned());
    }
    ensure!(digest.len() >= 4, "give at least four digits of the digest");
    let audits: Vec<AuditView> = client.pages("audit_list", json!({"limit": 200}), "audits", usize::MAX).await?;
    let mut matching = audits.iter().map(|audit| audit.digest.to_string()).filter(|full| full.starts_with(digest));
    match (matching.next(), matching.next()) {
        (Some(full), None) => Ok(full),
        (None, _) => bail!("no verdict on record has a digest that begins with '{}'", printable(digest)),
        (Some(_), Some(_)) => bail!("several digests begin with '{}'; give more of it", printable(digest)),
    }
}

fn describe(audit: &AuditView) -> String {
    let mut lines = vec![
        ("digest", audit.digest.to_string()),
        ("outcome", audit.outcome.as_str().to_owned()),
        ("node", audit.auditee.to_string()),
        ("auditor", audit.auditor.to_string()),
        ("when", units::ago(audit.at_ms / 1000)),
        ("job", format!("{}, attempt {}, stage {}", audit.job, audit.attempt, audit.stage)),
        ("blocks", format!("{} checked, {} of them equal bit for bit", audit.blocks, audit.exact)),
    ];
    if let Some(proof) = audit.proof {
        lines.push(("proof", proof.to_string()));
        let kept = match &audit.fraud_proof {
            Some(ProofView { bytes: Some(bytes), file }) => {
                let place = file.as_deref().map_or_else(|| "at the node".to_owned(), printable);
                format!("{place}, {}; check it with `consortium-node audit verify`", units::bytes(*bytes))
            }
            _ => "not kept by this node; the auditor has it".to_owned(),
        };
        lines.push(("kept", kept));
    }
    lines.iter().map(|(name, value)| format!("{name:<10} {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use consortium_protocol::identity::RootKey;

    #[test]
    fn audits_make_a_table_and_one_is_described() {
        let audit = AuditView {
            digest: Hash::of(b"verdict"),
            auditor: RootKey::from_seed([1; 32]).node_id(),
            auditee: RootKey::from_seed([2; 32]).node_id(),
            job: JobId([0xab; 16]),
            attempt: 1,
            stage: 2,
            outcome: Finding::Fraud,
            blocks: 9,
            exact: 0,
            proof: Some(Hash::of(b"proof")),
            at_ms: u64::MAX,
            fraud_proof: Some(ProofView { bytes: Some(2048), file: None }),
        };
        let text = describe(&audit);
        assert!(text.contains("kept       at the node, 2.0 KiB; check it"), "{text}");
        let text = render(&[audit]);
        let row = text.lines().nth(1).unwrap();
        assert!(row.starts_with("just now  fraud    …"), "{text}");
        let short = &Hash::of(b"verdict").to_string()[..SHORT];
        assert!(row.ends_with(&format!("abababab      2       9      0  {short}")), "{text}");
        assert_eq!(render(&[]), "no audits are on record\n");
    }
}
