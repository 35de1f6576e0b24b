//! `consortium-node key`: who may use this node's API.

use std::path::Path;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use consortium_ledger::api_keys::{ApiKeys, KeyId};

use super::terminal::{Align, print, remark, table};
use super::units;
use crate::data_dir;

/// Make, list and revoke keys for this node's API.
#[derive(Subcommand, Debug)]
#[command(
    after_help = "A running node sees changes at once. A node that serves its API beyond its own machine asks for a key.

Examples:
  consortium-node key create --label laptop
  export CONSORTIUM_API_KEY=$(consortium-node key create --label script)
  consortium-node key revoke 3f2a9c01b7de"
)]
pub(super) enum KeyCommand {
    /// Make a key and print it; it cannot be shown again.
    Create {
        /// What the key is for, to tell it from others in the list.
        #[arg(long, default_value = "")]
        label: String,
    },
    /// List the keys, without their secrets.
    List,
    /// Make a key useless, for good.
    Revoke {
        /// The key's id, as listed.
        id: String,
    },
}

/// Runs a `key` command on the ledger of `data_dir`.
///
/// # Errors
/// When the ledger cannot be used, or there is no such key.
pub(super) async fn run(command: KeyCommand, data_dir: &Path) -> Result<()> {
    data_dir::create(data_dir)?;
    let keys = ApiKeys::open(&data_dir.join("ledger.db"))?;
    match command {
        KeyCommand::Create { label } => {
            let (id, secret) = keys.create(&label)?;
            // The secret alone goes to stdout, so that a script can take it.
            let told = print(&format!("{secret}\n")).context("the key was made but could not be printed")?;
            if told {
                remark(&format!("made key {id}; this is the only time it is shown"));
            } else {
                keys.revoke(&id)?;
                remark(&format!("nobody read the new key {id}, so it was revoked again"));
            }
        }
        KeyCommand::List => {
            print(&render(&keys)?)?;
        }
        KeyCommand::Revoke { id } => {
            let id: KeyId = id.parse()?;
            keys.revoke(&id)?;
            remark(&format!("revoked key {id}"));
        }
    }
    Ok(())
}

fn render(keys: &ApiKeys) -> Result<String> {
    let keys = keys.list()?;
    if keys.is_empty() {
        return Ok("there are no keys; make one with `consortium-node key create`\n".to_owned());
    }
    let header = [("ID", Align::Left), ("STATE", Align::Left), ("CREATED", Align::Left), ("LABEL", Align::Left)];
    let rows: Vec<_> = keys
        .into_iter()
        .map(|key| {
            let state = if key.revoked { "revoked" } else { "valid" };
            vec![key.id.to_string(), state.to_owned(), units::ago(key.created_s), key.label]
        })
        .collect();
    Ok(table(&header, &rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_make_a_table() {
        let dir = tempfile::tempdir().unwrap();
        let keys = ApiKeys::open(&dir.path().join("ledger.db")).unwrap();
        assert!(render(&keys).unwrap().contains("key create"));
        let (id, secret) = keys.create("laptop").unwrap();
        keys.revoke(&id).unwrap();
        let (other, _) = keys.create("").unwrap();
        let text = render(&keys).unwrap();
        assert!(text.contains(&format!("{id}  revoked  just now  laptop\n{other}  valid    just now\n")), "{text}");
        assert!(!text.contains(&secret));
    }
}
