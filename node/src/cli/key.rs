//! `consortium-node key`: who may use this node's API, and with how much credit: keys, and tokens that were bought (L402).

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use consortium_ledger::accounts::Owner;
use consortium_ledger::api_keys::{ApiKey, ApiKeys, KeyError, KeyId};
use consortium_ledger::ledger::Ledger;
use consortium_protocol::hash::Hash;
use consortium_protocol::msat::Msat;

use super::terminal::{Align, print, remark, table};
use super::units;
use crate::clock::{since_epoch, wall_ms};
use crate::{data_dir, keyfile};

/// Tokens read at a time.
const PAGE: u32 = 500;
/// What a new key may spend before anything was paid for it: a thousand sats.
const TRIAL: Msat = Msat(1_000_000);

/// Make, list, credit and revoke keys for this node's API.
#[derive(Subcommand, Debug)]
#[command(
    after_help = "A running node sees changes at once. A node that serves its API beyond its own machine asks for a key.

Examples:
  consortium-node key create --label laptop
  export CONSORTIUM_API_KEY=$(consortium-node key create --label script)
  consortium-node key credit 3f2a9c01b7de 500000
  consortium-node key revoke 3f2a9c01b7de"
)]
pub(super) enum KeyCommand {
    /// Make a key and print it; it cannot be shown again.
    Create {
        /// What the key is for, to tell it from others in the list.
        #[arg(long, default_value = "")]
        label: String,
        /// Credit to try it with, in thousandths of a sat.
        #[arg(long, visible_alias = "credit", default_value_t = TRIAL.0, value_name = "MSAT")]
        trial_credit: u64,
    },
    /// List the keys, and the tokens that were bought over Lightning (L402), with their credit, without their secrets.
    List,
    /// Add to a key's credit, for money that was received for it. With --l402 the key's holder can have it paid out over
    /// Lightning.
    Credit {
        /// The key's id, as listed.
        id: String,
        /// How much, in thousandths of a sat.
        #[arg(value_name = "MSAT")]
        amount: u64,
    },
    /// Make a key or a token useless, for good. Credit that is left on it stays in the books.
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
    let file = data_dir.join("ledger.db");
    let keys = ApiKeys::open(&file)?;
    let ledger = Ledger::open(&file, keyfile::load_or_create(data_dir)?.node_id())?;
    match command {
        KeyCommand::Create { label, trial_credit } => {
            let (id, secret) = keys.create(&label)?;
            ledger.grant_trial(&id, Msat(trial_credit), wall_ms())?;
            // The secret alone goes to stdout, so that a script can take it.
            let told = print(&format!("{secret}\n")).context("the key was made but could not be printed")?;
            if told {
                let credit = units::sats(trial_credit.into());
                remark(&format!("made key {id} with {credit} of credit; this is the only time it is shown"));
            } else {
                keys.revoke(&id)?;
                remark(&format!("nobody read the new key {id}, so it was revoked again"));
            }
        }
        KeyCommand::List => {
            print(&render(&keys, &ledger)?)?;
        }
        KeyCommand::Credit { id, amount } => {
            let free = credit(&keys, &ledger, &id.parse()?, Msat(amount))?;
            remark(&format!("key {id} has {} of credit now", units::sats(free.into())));
        }
        KeyCommand::Revoke { id } => {
            let id: KeyId = id.parse()?;
            let what = revoke(&keys, &ledger, &id)?;
            remark(&format!("revoked {what} {id}"));
        }
    }
    Ok(())
}

/// Adds to what is free on a key's account; returns what is free then, in msat.
fn credit(keys: &ApiKeys, ledger: &Ledger, id: &KeyId, amount: Msat) -> Result<i64> {
    let valid = keys.list()?.iter().any(|key| key.id == *id && !key.revoked);
    ensure!(valid, "there is no valid key {id}; `consortium-node key list` shows those there are");
    let owner = Owner::Key(id.clone());
    ledger.deposit(&owner, amount, Hash::from_bytes(rand::random()), wall_ms())?;
    Ok(ledger.account(&owner)?.balance.free)
}

/// Revokes a key, or else a token; tells which it was.
fn revoke(keys: &ApiKeys, ledger: &Ledger, id: &KeyId) -> Result<&'static str> {
    match keys.revoke(id) {
        Ok(()) => Ok("key"),
        Err(KeyError::Unknown(_)) => {
            let revoked = ledger.l402_revoke(id, since_epoch().as_secs());
            revoked.with_context(|| format!("there is no key or token {id}"))?;
            Ok("token")
        }
        Err(error) => Err(error.into()),
    }
}

/// Tokens that were bought, as rows of the table. That of a key is the key's.
fn tokens(keys: &[ApiKey], ledger: &Ledger) -> Result<Vec<Vec<String>>> {
    let mut rows = Vec::new();
    let mut after = None;
    loop {
        let page = ledger.l402_tokens(after.as_ref(), PAGE)?;
        let Some(last) = page.last() else { return Ok(rows) };
        after = Some(last.account.clone());
        for token in page.into_iter().filter(|token| keys.iter().all(|key| key.id != token.account)) {
            let state = match token.expires_s <= since_epoch().as_secs() {
                _ if token.revoked => "revoked",
                true => "expired",
                false => "valid",
            };
            rows.push(row(ledger, &token.account, state, token.created_s, "(L402)".to_owned())?);
        }
    }
}

fn row(ledger: &Ledger, id: &KeyId, state: &str, created_s: u64, label: String) -> Result<Vec<String>> {
    let balance = ledger.account(&Owner::Key(id.clone()))?.balance;
    let (free, reserved) = (balance.free.to_string(), balance.bonded.to_string());
    Ok(vec![id.to_string(), state.to_owned(), units::ago(created_s), free, reserved, label])
}

fn render(keys: &ApiKeys, ledger: &Ledger) -> Result<String> {
    let keys = keys.list()?;
    let bought = tokens(&keys, ledger)?;
    if keys.is_empty() && bought.is_empty() {
        return Ok("there are no keys; make one with `consortium-node key create`\n".to_owned());
    }
    let header = [
        ("ID", Align::Left),
        ("STATE", Align::Left),
        ("CREATED", Align::Left),
        ("CREDIT MSAT", Align::Right),
        ("RESERVED", Align::Right),
        ("LABEL", Align::Left),
    ];
    let key_row = |key: ApiKey| {
        let state = if key.revoked { "revoked" } else { "valid" };
        row(ledger, &key.id, state, key.created_s, key.label)
    };
    let mut rows: Vec<_> = keys.into_iter().map(key_row).collect::<Result<_>>()?;
    rows.extend(bought);
    Ok(table(&header, &rows))
}

#[cfg(test)]
mod tests {
    use consortium_ledger::l402::Credential;
    use consortium_ledger::l402::tokens::Offer;
    use consortium_ledger::payments::{Direction, Moved};
    use consortium_protocol::identity::RootKey;
    use consortium_protocol::wire::job::JobId;
    use sha2::Digest as _;

    use super::*;

    #[test]
    fn keys_make_a_table() {
        let dir = tempfile::tempdir().unwrap();
        let keys = ApiKeys::open(&dir.path().join("ledger.db")).unwrap();
        let node = RootKey::from_seed([1; 32]).node_id();
        let ledger = Ledger::open(&dir.path().join("ledger.db"), node).unwrap();
        assert!(render(&keys, &ledger).unwrap().contains("key create"));
        let (id, secret) = keys.create("laptop").unwrap();
        keys.revoke(&id).unwrap();
        let (other, _) = keys.create("").unwrap();
        assert_eq!(credit(&keys, &ledger, &other, Msat(500)).unwrap(), 500);
        assert_eq!(credit(&keys, &ledger, &other, Msat(500)).unwrap(), 1000, "each time anew");
        assert!(credit(&keys, &ledger, &id, Msat(500)).unwrap_err().to_string().contains("no valid key"));
        ledger.reserve(&Owner::Key(other.clone()), JobId([1; 16]), Msat(300), wall_ms()).unwrap();
        let text = render(&keys, &ledger).unwrap();
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1], [id.as_str(), "revoked", "just", "now", "0", "0", "laptop"], "{text}");
        assert_eq!(rows[2], [other.as_str(), "valid", "just", "now", "700", "300"], "{text}");
        assert!(!text.contains(&secret));
    }

    #[test]
    fn tokens_that_were_bought_are_listed_and_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let keys = ApiKeys::open(&dir.path().join("ledger.db")).unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger.db"), RootKey::from_seed([1; 32]).node_id()).unwrap();
        let now_s = since_epoch().as_secs();
        let payment_hash: [u8; 32] = sha2::Sha256::digest([1; 32]).into();
        let offer = Offer {
            payment_hash,
            amount: Msat(700),
            caller: String::new(),
            invoice_until_s: now_s + 9,
            token_until_s: now_s + 900,
        };
        let (id, macaroon) = ledger.l402_mint(None, &offer, now_s).unwrap();
        assert!(render(&keys, &ledger).unwrap().contains("there are no keys"), "nobody has paid");
        let hash = Hash::from_bytes(payment_hash);
        let moved = Moved { direction: Direction::Incoming, hash, amount: Msat(700), fee: Msat(0) };
        ledger.book_payment(&moved, 1).unwrap();
        ledger.l402_admit(&Credential::new(macaroon, [1; 32]).unwrap(), now_s).unwrap();
        let row = |text: &str| text.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(row(&render(&keys, &ledger).unwrap()), format!("{id} valid just now 700 0 (L402)"));
        assert_eq!(revoke(&keys, &ledger, &id).unwrap(), "token");
        assert!(row(&render(&keys, &ledger).unwrap()).contains("revoked"));
        assert!(revoke(&keys, &ledger, &"000000000000".parse().unwrap()).is_err());
    }
}
