//! `chat --pay`: paying a gateway that asks for it, from the wallet of this machine's node, within limits.
//!
//! The credential that was bought is kept in the data directory (`l402.json`, for its owner alone) and used again until it
//! is spent. The challenge is written down before it is paid: should the program end in between, the receipt is fetched
//! from the wallet the next time, and nothing is paid twice.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use consortium_ledger::l402::{Challenge, Credential, Macaroon};
use consortium_ledger::lightning::invoice;
use consortium_protocol::msat::Msat;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::{Client, ClientArgs};
use super::terminal::remark;
use super::units;

/// File name within the data directory.
const FILE: &str = "l402.json";
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;
/// Time for a payment to arrive, in seconds.
const WAIT_S: u64 = 60;
/// Time for the node to do what it does by itself.
const QUICK: Duration = Duration::from_secs(30);
/// How often the account is looked at until an answer is charged.
const LOOKS: u32 = 5;

/// How much may be paid.
#[derive(Args, Debug)]
pub(super) struct PayArgs {
    /// Pay when the gateway asks for it, from the wallet of this machine's node.
    #[arg(long)]
    pay: bool,
    /// Pay no more than this in all before the program ends, in sat, fees included.
    #[arg(long, default_value_t = 5000, requires = "pay", value_name = "SAT")]
    max_sats: u64,
    /// Ask for nothing that may cost more, in sat; an answer without --max-tokens is kept short enough.
    #[arg(long, requires = "pay", value_name = "SAT")]
    max_per_message: Option<u64>,
}

/// Pays for one gateway.
#[derive(Debug)]
pub(super) struct Purse {
    wallet: Client,
    store: Store,
    left: Msat,
    per_message: Option<Msat>,
}

/// A gateway that wants money.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct PaymentRequired {
    /// What it says.
    pub(super) message: String,
    /// How to pay.
    pub(super) challenge: Challenge,
}

#[derive(Deserialize)]
struct Quote {
    prompt_tokens: u64,
    max_tokens: u64,
    total_msat: u64,
}

#[derive(Deserialize)]
struct Account {
    free_msat: i64,
    reserved_msat: i64,
}

#[derive(Deserialize)]
struct Paid {
    amount: Msat,
    fee: Msat,
}

#[derive(Deserialize)]
struct Receipt {
    preimage: String,
}

impl PayArgs {
    /// The purse for the gateway that `client` talks to, if there is to be one; the client gets the credential that was
    /// bought before.
    ///
    /// # Errors
    /// When no node runs here, or its credentials cannot be read.
    pub(super) async fn purse(&self, client: &mut Client, data_dir: &Path) -> Result<Option<Purse>> {
        if !self.pay {
            return Ok(None);
        }
        let wallet = Client::find(ClientArgs::default(), data_dir)
            .context("--pay pays from the wallet of this machine's node, and there is none")?;
        let msat = |sat| Msat::from_sat(sat).context("the limit is more than all bitcoin there is");
        let store = Store { path: data_dir.join(FILE), gateway: client.base().to_owned() };
        let mut purse = Purse {
            wallet,
            store,
            left: msat(self.max_sats)?,
            per_message: self.max_per_message.map(msat).transpose()?,
        };
        client.use_credential(purse.bought_before().await?);
        Ok(Some(purse))
    }
}

impl Purse {
    /// The credential that was bought the last time.
    async fn bought_before(&mut self) -> Result<Option<String>> {
        let Some(bought) = self.store.load()? else { return Ok(None) };
        match (&bought.preimage, &bought.payment_hash) {
            (Some(_), _) => bought.credential().map(Some),
            // It was being paid when the program ended.
            (None, hash) => {
                let receipt: Result<Receipt> =
                    self.wallet.order("wallet_receipt", json!({ "hash": hash }), QUICK).await;
                let Ok(receipt) = receipt else { return Ok(None) };
                let bought = Bought { preimage: Some(receipt.preimage), ..bought };
                let credential = bought.credential()?;
                self.store.save(Some(&bought))?;
                Ok(Some(credential))
            }
        }
    }

    /// Pays what the gateway asks for, unless that is too much; gives the credential.
    ///
    /// # Errors
    /// When the limit is reached or the payment fails, in words.
    pub(super) async fn pay(&mut self, asked: &Challenge) -> Result<String> {
        let facts =
            invoice::read(&asked.invoice).context("the gateway asks for payment by something that is no invoice")?;
        let amount = facts.amount.context("the gateway's invoice does not say how much it asks for")?;
        let max_fee = Msat((amount.0 / 100).saturating_add(10_000)).min(Msat(self.left.0.saturating_sub(amount.0)));
        ensure!(
            amount <= self.left,
            "the gateway asks for {}, and of what may be paid (--max-sats) {} are left",
            units::sats(amount.0.into()),
            units::sats(self.left.0.into())
        );
        let hash = facts.hash.to_string();
        let begun = Bought { macaroon: asked.macaroon.clone(), payment_hash: hash.clone(), preimage: None };
        begun.check()?;
        self.store.save(Some(&begun))?;
        let order = json!({"invoice": asked.invoice, "max_fee_msat": max_fee.0, "wait_s": WAIT_S});
        let within = Duration::from_secs(WAIT_S) + QUICK;
        let paid: Result<Paid> = self.wallet.order("wallet_pay", order, within).await;
        let paid = paid.context("the gateway could not be paid")?;
        let spent = Msat(paid.amount.0.saturating_add(paid.fee.0));
        self.left = Msat(self.left.0.saturating_sub(spent.0));
        let receipt: Receipt = self.wallet.order("wallet_receipt", json!({ "hash": hash }), QUICK).await?;
        let bought = Bought { preimage: Some(receipt.preimage), ..begun };
        let credential = bought.credential()?;
        self.store.save(Some(&bought))?;
        remark(&format!(
            "[paid {} for credit, and {} to those on the way; {} may still be paid]",
            units::sats(paid.amount.0.into()),
            units::sats(paid.fee.0.into()),
            units::sats(self.left.0.into())
        ));
        Ok(credential)
    }

    /// The credential does not work any more.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn forget(&self) -> Result<()> {
        self.store.save(None)
    }

    /// Keeps a request within what a message may cost: by a limit of tokens, where it has none of its own.
    ///
    /// # Errors
    /// When it may cost more all the same.
    pub(super) async fn keep_within(&self, client: &Client, request: &mut Value, own_limit: Option<u32>) -> Result<()> {
        let Some(most) = self.per_message else { return Ok(()) };
        request["max_tokens"] = own_limit.map_or(Value::Null, |tokens| json!(tokens));
        let mut quote: Quote = client.post("/quote", request).await?;
        if quote.total_msat > most.0 && own_limit.is_none() {
            let positions = u128::from(quote.prompt_tokens) + u128::from(quote.max_tokens);
            let allowed = u128::from(most.0) * positions / u128::from(quote.total_msat);
            let tokens = allowed.saturating_sub(quote.prompt_tokens.into());
            if tokens == 0 {
                bail!("the message alone may cost more than {} (--max-per-message)", units::sats(most.0.into()));
            }
            request["max_tokens"] = json!(u32::try_from(tokens).unwrap_or(u32::MAX));
            quote = client.post("/quote", request).await?;
        }
        ensure!(
            quote.total_msat <= most.0,
            "the answer may cost {}, more than {} (--max-per-message); ask for less with --max-tokens",
            units::sats(quote.total_msat.into()),
            units::sats(most.0.into())
        );
        Ok(())
    }

    /// Credit that is left at the gateway, in msat, once what was asked is charged; none if it does not say.
    pub(super) async fn credit(client: &Client) -> Option<i64> {
        let mut looked = None;
        for _ in 0..LOOKS {
            let account: Account = client.document("/v1/account").await.ok()?;
            looked = Some(account.free_msat);
            if account.reserved_msat == 0 {
                break;
            }
            tokio::time::sleep(QUICK / 300).await;
        }
        looked
    }
}

/// What was bought of a gateway.
#[derive(Clone, Deserialize, Serialize)]
struct Bought {
    macaroon: String,
    payment_hash: String,
    /// None while it is being paid.
    preimage: Option<String>,
}

impl Bought {
    fn check(&self) -> Result<Macaroon> {
        Macaroon::from_text(&self.macaroon).context("the gateway's macaroon cannot be read")
    }

    /// As a header has it.
    fn credential(&self) -> Result<String> {
        let mut preimage = [0; 32];
        hex::decode_to_slice(self.preimage.as_deref().unwrap_or_default(), &mut preimage).context("no preimage")?;
        let credential = Credential::new(self.check()?, preimage)?;
        ensure!(credential.opens(), "the gateway's macaroon is not for the invoice that was paid");
        Ok(credential.reveal())
    }
}

/// Where it is kept: the credential for each gateway, by the base URL of its API.
#[derive(Debug)]
struct Store {
    path: PathBuf,
    gateway: String,
}

impl Store {
    fn all(&self) -> Result<BTreeMap<String, Bought>> {
        let damaged = || format!("{} is damaged; move it away if the credit in it is not needed", self.path.display());
        let mut text = String::new();
        match std::fs::File::open(&self.path) {
            Ok(file) => file.take(MAX_FILE).read_to_string(&mut text).with_context(damaged)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.path.display())),
        };
        serde_json::from_str(&text).with_context(damaged)
    }

    fn load(&self) -> Result<Option<Bought>> {
        Ok(self.all()?.remove(&self.gateway))
    }

    fn save(&self, bought: Option<&Bought>) -> Result<()> {
        let mut all = self.all()?;
        match bought {
            Some(bought) => drop(all.insert(self.gateway.clone(), bought.clone())),
            None => drop(all.remove(&self.gateway)),
        }
        self.write(&serde_json::to_vec_pretty(&all)?).with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.path.with_extension("json.new");
        if let Err(error) = std::fs::remove_file(&temporary)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(temporary, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use consortium_ledger::l402::{Identifier, TokenSecret};

    use super::*;

    #[test]
    fn what_was_bought_is_kept_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = |gateway: &str| Store { path: dir.path().join(FILE), gateway: gateway.to_owned() };
        let preimage = [7; 32];
        let payment_hash = *consortium_ledger::lightning::Preimage::from_bytes(preimage).hash().as_bytes();
        let identifier = Identifier { payment_hash, token: [1; 32] };
        let macaroon = Macaroon::mint(&TokenSecret::from_bytes([2; 32]), &identifier.to_bytes());
        let begun = Bought { macaroon: macaroon.to_text(), payment_hash: hex::encode(payment_hash), preimage: None };
        assert!(store("a").load().unwrap().is_none() && begun.credential().is_err());
        store("a").save(Some(&begun)).unwrap();
        let bought = Bought { preimage: Some(hex::encode(preimage)), ..begun.clone() };
        store("b").save(Some(&bought)).unwrap();
        assert!(store("a").load().unwrap().unwrap().preimage.is_none());
        let credential = store("b").load().unwrap().unwrap().credential().unwrap();
        assert!(Credential::parse(&credential).unwrap().opens());
        let anothers = Bought { preimage: Some(hex::encode([8; 32])), ..begun };
        assert!(anothers.credential().unwrap_err().to_string().contains("not for the invoice"));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(dir.path().join(FILE).metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        store("b").save(None).unwrap();
        assert!(store("b").load().unwrap().is_none() && store("a").load().unwrap().is_some());
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(store("a").load().err().unwrap().to_string().contains("damaged"));
    }
}
