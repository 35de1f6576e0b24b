//! `consortium-node audit order`: the running node audits a job that it paid for.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire::job::JobId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{AuditView, describe};
use crate::cli::client::{Asking, Client};
use crate::cli::terminal::{print, remark};

/// Whether there is a verdict is looked at this often.
const LOOK: Duration = Duration::from_secs(1);

/// Arguments of `audit order`.
#[derive(Args, Debug)]
#[command(
    after_help = "The node audits the stages itself, or hands them to the auditors that it was started with, or to a \
member with the model. Jobs can be audited for ten minutes."
)]
pub(in crate::cli) struct OrderArgs {
    /// The job, as `chat` and the API name it.
    #[arg(value_name = "JOB")]
    job: JobId,
    /// Only this stage, counted from 0 [default: all that others computed].
    #[arg(long, value_name = "N")]
    stage: Option<u16>,
    /// How many seconds to wait for the verdicts.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    wait: u64,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Deserialize)]
struct Orders {
    audits: Vec<Ordered>,
}

#[derive(Deserialize)]
struct Ordered {
    stage: u16,
    auditee: NodeId,
    receipt: Hash,
}

/// Orders audits, and shows the verdicts as they come.
///
/// # Errors
/// When no node answers, the job is not one of its own or too long ago, or there is no verdict in time.
pub(super) async fn run(args: OrderArgs, data_dir: &Path) -> Result<()> {
    let client = Client::find(args.asking.client, data_dir)?;
    let orders: Orders = client.rpc("audit_order", json!({"job": args.job, "stage": args.stage})).await?;
    if orders.audits.is_empty() {
        bail!("the node computed all of this job itself: there is nothing to audit");
    }
    let deadline = Instant::now() + Duration::from_secs(args.wait);
    let mut verdicts = Vec::new();
    for ordered in orders.audits {
        let Some(verdict) = wait_for(&client, &ordered, deadline).await? else {
            bail!(
                "there is no verdict on stage {} of {} yet: the node's log says what it waits for, and `audit list` what \
                 comes of it",
                ordered.stage,
                ordered.auditee
            );
        };
        if !args.asking.json {
            let audit: AuditView =
                serde_json::from_value(verdict.clone()).context("the node's answer makes no sense")?;
            print(&format!("{}\n", describe(&audit)))?;
        }
        verdicts.push(verdict);
    }
    if args.asking.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&verdicts)?))?;
    }
    Ok(())
}

async fn wait_for(client: &Client, ordered: &Ordered, deadline: Instant) -> Result<Option<Value>> {
    let mut said = false;
    loop {
        let page: Value = client.rpc("audit_list", json!({"peer_id": ordered.auditee, "limit": 200})).await?;
        let receipt = json!(ordered.receipt);
        let audits = page["audits"].as_array().into_iter().flatten();
        if let Some(verdict) = audits.into_iter().find(|audit| audit["receipt"] == receipt) {
            return Ok(Some(verdict.clone()));
        }
        if Instant::now() + LOOK > deadline {
            return Ok(None);
        }
        if !said {
            remark(&format!("waiting for the audit of stage {}", ordered.stage));
            said = true;
        }
        tokio::time::sleep(LOOK).await;
    }
}
