//! Backups: written, and used.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use consortium_ledger::lightning::backup::{self, BackupPeer, MAX_BACKUP};
use consortium_ledger::lightning::recover::Recovered;
use serde_json::{Value, json};

use super::super::client::{Asking, Client};
use super::super::terminal::{print, printable, remark};
use super::{QUICK, WITH_PEER};
use crate::keyfile;

/// Time for a bitcoind to look through all outputs.
const SCAN: Duration = Duration::from_secs(330);

/// Has the node make a backup, and writes it.
pub(super) async fn write(file: &Path, asking: Asking, data_dir: &Path) -> Result<()> {
    let answer: Value = Client::find(asking.client, data_dir)?.order("wallet_backup", json!({}), QUICK).await?;
    let bytes =
        hex::decode(answer["backup"].as_str().unwrap_or_default()).context("the node's answer makes no sense")?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut out = options.open(file).with_context(|| format!("cannot write {}", file.display()))?;
    out.write_all(&bytes).and_then(|()| out.sync_all()).with_context(|| format!("cannot write {}", file.display()))?;
    if asking.json {
        print(&format!("{}\n", json!({"file": file, "bytes": bytes.len()})))?;
    }
    remark(&format!(
        "{} is written. It is of use only with the root key: keep {} as well, in another place, and secret. Make a new \
         backup after opening channels",
        file.display(),
        data_dir.join(keyfile::FILE).display()
    ));
    Ok(())
}

/// Connects to the peers of a backup.
pub(super) async fn restore(file: &Path, asking: Asking, data_dir: &Path) -> Result<()> {
    ensure!(
        data_dir.join(keyfile::FILE).exists(),
        "put the root key, {}, into {} first",
        keyfile::FILE,
        data_dir.display()
    );
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).and_then(|file| file.take(MAX_BACKUP as u64 + 1).read_to_end(&mut bytes));
    opened.with_context(|| format!("cannot read {}", file.display()))?;
    let backup = backup::open(&bytes, &keyfile::load_or_create(data_dir)?)?;
    let client = Client::find(asking.client, data_dir)?;
    let status: Value = client.rpc("wallet_status", json!({})).await?;
    ensure!(
        status["node_id"] == backup.node_id.as_str() && status["network"] == backup.network.as_str(),
        "the backup is of a wallet on {}, and the node that runs has another",
        printable(&backup.network)
    );
    let mut reached = 0;
    for peer in &backup.peers {
        match connect(&client, peer).await {
            Ok(()) => reached += 1,
            Err(error) => remark(&format!("{}: {error:#}", printable(&peer.id))),
        }
    }
    let told = json!({"peers": backup.peers.len(), "reached": reached, "channels": backup.channels});
    if asking.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&told)?))?;
    }
    remark(&format!(
        "{reached} of {} peers are reached; they close the {} channels that this wallet no longer knows. Leave the node \
         running; when the closings are confirmed, in an hour or two, fetch their money with `wallet sweep`",
        backup.peers.len(),
        backup.channels.len()
    ));
    Ok(())
}

/// Fetches what peers paid out.
pub(super) async fn sweep(asking: Asking, data_dir: &Path) -> Result<()> {
    let client = Client::find(asking.client, data_dir)?;
    let answer: Value = client.order("wallet_sweep", json!({}), SCAN).await?;
    if asking.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&answer["swept"])?))?;
        return Ok(());
    }
    let text = match serde_json::from_value::<Option<Recovered>>(answer["swept"].clone())? {
        None => {
            "nothing was found: no peer has closed a lost channel yet, or its closing is not confirmed\n".to_owned()
        }
        Some(found) => format!(
            "{} sat from {} closed channels are on their way to the on-chain wallet, less {} sat of fees ({})\n",
            found.sat,
            found.payouts,
            found.fee_sat,
            printable(&found.txid)
        ),
    };
    print(&text)?;
    Ok(())
}

async fn connect(client: &Client, peer: &BackupPeer) -> Result<()> {
    let mut last = None;
    for address in &peer.addresses {
        let params = json!({"peer": format!("{}@{address}", peer.id)});
        match client.order::<Value>("wallet_connect", params, WITH_PEER).await {
            Ok(_) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error),
        None => bail!("no address of it is known"),
    }
}
