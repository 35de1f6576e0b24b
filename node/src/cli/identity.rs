//! `consortium-node identity`: who this node is.

use std::path::Path;

use anyhow::Result;
use clap::Args;

use crate::{data_dir, keyfile};

/// Shows the node's PeerId, making its key if there is none yet.
#[derive(Args, Debug)]
pub struct IdentityArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Prints the identity of `data_dir`.
///
/// # Errors
/// When the key cannot be read or made.
pub async fn run(args: IdentityArgs, data_dir: &Path) -> Result<()> {
    data_dir::create(data_dir)?;
    let key = keyfile::load_or_create(data_dir)?;
    let file = data_dir.join(keyfile::FILE);
    if args.json {
        println!("{}", serde_json::json!({ "peer_id": key.node_id(), "key_file": file }));
    } else {
        println!("peer id   {}", key.node_id());
        println!("key file  {} (keep a copy in a safe place: it is this node's identity)", file.display());
    }
    Ok(())
}
