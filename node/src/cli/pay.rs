//! `chat --pay`: paying a gateway that asks for it, from the wallet of this machine's node, within limits.
//!
//! What was bought is kept in the data directory (`l402.json`, for its owner alone) and used again until it is spent. A
//! challenge is written down before it is paid, and stays until its payment is known to have failed: whatever ends in
//! between, the receipt is fetched from the wallet the next time, and nothing is paid twice. What was paid for is never
//! taken out of the file, whatever a gateway says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::Args;
use consortium_ledger::l402::{Challenge, Credential, Macaroon};
use consortium_ledger::lightning::invoice;
use consortium_protocol::msat::Msat;
use jsonrpsee::types::error::INTERNAL_ERROR_CODE;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::client::{Client, ClientArgs, Refused};
use super::terminal::remark;
use super::units;
use crate::data_dir::write_private;
use crate::rpc::{NOT_FOUND, ON_ITS_WAY};

/// File name within the data directory.
const FILE: &str = "l402.json";
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 16 * 1024 * 1024;
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
    till: Arc<Till>,
    per_message: Option<Msat>,
    /// Payments whose credentials were used since the program began.
    tried: BTreeSet<String>,
}

/// What a payment needs that goes on though nobody waits for it any more.
#[derive(Debug)]
struct Till {
    wallet: Client,
    store: Store,
    /// What may be paid yet. Held while something is being paid: one payment at a time.
    left: Mutex<Msat>,
}

/// A credential for what a gateway asked.
#[derive(Debug)]
pub(super) struct Paid {
    /// As a header has it.
    pub(super) credential: String,
    /// It was paid for just now; otherwise it was there, and may be spent.
    pub(super) now: bool,
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
struct Cost {
    amount: Msat,
    fee: Msat,
}

#[derive(Deserialize)]
struct Receipt {
    /// None while it is on its way.
    preimage: Option<String>,
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
        let till = Till { wallet, store, left: Mutex::new(msat(self.max_sats)?) };
        let per_message = self.max_per_message.map(msat).transpose()?;
        let mut purse = Purse { till: Arc::new(till), per_message, tried: BTreeSet::new() };
        // A wallet that does not answer now may do so when something is to be paid.
        if let Err(error) = purse.till.settle().await {
            remark(&format!("[{error:#}]"));
        }
        client.use_credential(purse.another()?);
        Ok(Some(purse))
    }
}

impl Purse {
    /// The latest credential that was bought and not tried yet; of several for one account, the latest alone.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn another(&mut self) -> Result<Option<String>> {
        let mut accounts = BTreeSet::new();
        for bought in self.till.store.load()?.iter().rev().filter(|bought| bought.preimage.is_some()) {
            // What cannot be used any more stays where it is.
            let Ok(credential) = bought.credential() else { continue };
            if accounts.insert(credential.identifier().token) && self.tried.insert(bought.payment_hash.clone()) {
                return Ok(Some(credential.reveal()));
            }
        }
        Ok(None)
    }

    /// Pays what the gateway asks for, unless that is too much, or an earlier payment has brought what was not used yet. A
    /// payment that has begun goes on when nobody waits for it any more; the next one waits for it.
    ///
    /// # Errors
    /// When the limit is reached, the payment fails, or another is still on its way, in words.
    pub(super) async fn pay(&mut self, asked: &Challenge) -> Result<Paid> {
        // Until then a payment may be in progress that nobody waits for.
        drop(self.till.left.lock().await);
        self.till.settle().await?;
        if let Some(credential) = self.another()? {
            return Ok(Paid { credential, now: false });
        }
        let (till, asked) = (Arc::clone(&self.till), asked.clone());
        let bought = tokio::spawn(async move { till.buy(&asked).await }).await.context("the payment broke off")??;
        let credential = bought.credential()?.reveal();
        self.tried.insert(bought.payment_hash);
        Ok(Paid { credential, now: true })
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

impl Till {
    /// Looks for what became of payments whose outcome was not known.
    ///
    /// # Errors
    /// When the wallet does not answer, or the file cannot be used.
    async fn settle(&self) -> Result<()> {
        for begun in self.store.load()?.into_iter().filter(|bought| bought.preimage.is_none()) {
            self.look_at(begun).await.context("what became of a payment to the gateway cannot be told")?;
        }
        Ok(())
    }

    /// Looks for what became of a payment: what was bought, or nothing where it failed, and both are written down. While it
    /// is on its way, it is as it was.
    async fn look_at(&self, begun: Bought) -> Result<Option<Bought>> {
        let hash = json!({ "hash": begun.payment_hash });
        let receipt: Result<Receipt> = self.wallet.order("wallet_receipt", hash, QUICK).await;
        match receipt {
            Ok(Receipt { preimage: None }) => Ok(Some(begun)),
            Ok(Receipt { preimage }) => {
                let bought = Bought { preimage, ..begun };
                self.store.keep(&bought)?;
                Ok(Some(bought))
            }
            Err(error) if is_not_found(&error) => {
                self.store.give_up(&begun.payment_hash)?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn buy(&self, asked: &Challenge) -> Result<Bought> {
        let facts =
            invoice::read(&asked.invoice).context("the gateway asks for payment by something that is no invoice")?;
        let amount = facts.amount.context("the gateway's invoice does not say how much it asks for")?;
        let mut left = self.left.lock().await;
        ensure!(
            self.store.load()?.iter().all(|bought| bought.preimage.is_some()),
            "an earlier payment to the gateway is still on its way; ask again when it has arrived"
        );
        ensure!(
            amount <= *left,
            "the gateway asks for {}, and of what may be paid (--max-sats) {} are left",
            units::sats(amount.0.into()),
            units::sats(left.0.into())
        );
        let max_fee = Msat((amount.0 / 100).saturating_add(10_000)).min(Msat(left.0 - amount.0));
        let begun = Bought { macaroon: asked.macaroon.clone(), payment_hash: facts.hash.to_string(), preimage: None };
        begun.check()?;
        self.store.keep(&begun)?;
        // All that it may cost is gone until it is known what it did cost.
        let before = *left;
        *left = Msat(before.0 - amount.0 - max_fee.0);
        let order = json!({"invoice": asked.invoice, "max_fee_msat": max_fee.0, "wait_s": WAIT_S});
        let ordered: Result<Cost> = self.wallet.order("wallet_pay", order, Duration::from_secs(WAIT_S) + QUICK).await;
        let trouble = match ordered {
            Ok(cost) => {
                *left = Msat(before.0.saturating_sub(cost.amount.0.saturating_add(cost.fee.0)));
                remark(&told(&cost, *left));
                None
            }
            Err(error) if may_arrive(&error) => {
                return Err(error.context("the payment to the gateway may still arrive"));
            }
            Err(error) => Some(error),
        };
        match (self.look_at(begun).await?, trouble) {
            (Some(bought), _) if bought.preimage.is_some() => Ok(bought),
            (Some(_), None) => bail!("the gateway was paid, and the wallet has no receipt for it yet"),
            (Some(_), Some(error)) => Err(error.context("the payment to the gateway may still arrive")),
            (None, error) => {
                *left = before;
                let error = error.unwrap_or_else(|| anyhow!("the wallet does not know of the payment any more"));
                Err(error.context("the gateway could not be paid"))
            }
        }
    }
}

fn told(cost: &Cost, left: Msat) -> String {
    format!(
        "[paid {} for credit, and {} to those on the way; {} may still be paid]",
        units::sats(cost.amount.0.into()),
        units::sats(cost.fee.0.into()),
        units::sats(left.0.into())
    )
}

/// Whether a payment may arrive though it was not said to: the node did not answer or broke off, or the outcome is not known.
fn may_arrive(error: &anyhow::Error) -> bool {
    let unknown = [Some(ON_ITS_WAY.into()), Some(INTERNAL_ERROR_CODE.into()), None];
    error.downcast_ref::<Refused>().is_none_or(|refused| unknown.contains(&refused.code))
}

/// Whether the wallet says that it made no such payment, and is making none.
fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == Some(NOT_FOUND.into()))
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

    fn credential(&self) -> Result<Credential> {
        let mut preimage = [0; 32];
        hex::decode_to_slice(self.preimage.as_deref().unwrap_or_default(), &mut preimage).context("no preimage")?;
        let credential = Credential::new(self.check()?, preimage)?;
        ensure!(credential.opens(), "the gateway's macaroon is not for the invoice that was paid");
        Ok(credential)
    }
}

/// What was bought of one gateway, as the file has it; before there were lists it had the last alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Kept {
    One(Bought),
    Many(Vec<Bought>),
}

/// Where it is kept: what was bought of each gateway, the latest last, by the base URL of its API.
#[derive(Debug)]
struct Store {
    path: PathBuf,
    gateway: String,
}

impl Store {
    fn all(&self) -> Result<BTreeMap<String, Vec<Bought>>> {
        let damaged = || format!("{} is damaged; move it away if the credit in it is not needed", self.path.display());
        let mut text = String::new();
        match std::fs::File::open(&self.path) {
            Ok(file) => file.take(MAX_FILE).read_to_string(&mut text).with_context(damaged)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.path.display())),
        };
        let all: BTreeMap<String, Kept> = serde_json::from_str(&text).with_context(damaged)?;
        let list = |kept| match kept {
            Kept::One(bought) => vec![bought],
            Kept::Many(list) => list,
        };
        Ok(all.into_iter().map(|(gateway, kept)| (gateway, list(kept))).collect())
    }

    fn load(&self) -> Result<Vec<Bought>> {
        Ok(self.all()?.remove(&self.gateway).unwrap_or_default())
    }

    /// Keeps what was bought, or what is being paid; in the place of what was known of the same payment.
    fn keep(&self, bought: &Bought) -> Result<()> {
        self.change(|list| match list.iter_mut().find(|known| known.payment_hash == bought.payment_hash) {
            // A receipt is never lost again.
            Some(known) if known.preimage.is_some() && bought.preimage.is_none() => {}
            Some(known) => known.clone_from(bought),
            None => list.push(bought.clone()),
        })
    }

    /// Forgets a payment that failed.
    fn give_up(&self, payment_hash: &str) -> Result<()> {
        self.change(|list| list.retain(|known| known.preimage.is_some() || known.payment_hash != payment_hash))
    }

    /// Changes the list while no other program does.
    fn change(&self, change: impl FnOnce(&mut Vec<Bought>)) -> Result<()> {
        let cannot = || format!("cannot write {}", self.path.display());
        let lock = std::fs::File::create(self.path.with_extension("lock")).with_context(cannot)?;
        lock.lock().with_context(cannot)?;
        let mut all = self.all()?;
        change(all.entry(self.gateway.clone()).or_default());
        let bytes = serde_json::to_vec_pretty(&all)?;
        ensure!(bytes.len() as u64 <= MAX_FILE, "{} has no room for more; move it away", self.path.display());
        write_private(&self.path, &bytes).with_context(cannot)
    }
}

#[cfg(test)]
mod tests {
    use consortium_ledger::l402::{Identifier, TokenSecret};

    use super::*;

    fn bought(payment: u8, token: u8) -> Bought {
        let preimage = [payment; 32];
        let payment_hash = *consortium_ledger::lightning::Preimage::from_bytes(preimage).hash().as_bytes();
        let identifier = Identifier { payment_hash, token: [token; 32] };
        let macaroon = Macaroon::mint(&TokenSecret::from_bytes([2; 32]), &identifier.to_bytes());
        let (payment_hash, preimage) = (hex::encode(payment_hash), Some(hex::encode(preimage)));
        Bought { macaroon: macaroon.to_text(), payment_hash, preimage }
    }

    #[test]
    fn what_was_bought_is_kept_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = |gateway: &str| Store { path: dir.path().join(FILE), gateway: gateway.to_owned() };
        let begun = Bought { preimage: None, ..bought(7, 1) };
        assert!(store("a").load().unwrap().is_empty() && begun.credential().is_err());
        store("a").keep(&begun).unwrap();
        store("b").keep(&bought(7, 1)).unwrap();
        assert!(store("a").load().unwrap()[0].preimage.is_none());
        let credential = store("b").load().unwrap()[0].credential().unwrap();
        assert!(Credential::parse(&credential.reveal()).unwrap().opens());
        let anothers = Bought { preimage: Some(hex::encode([8; 32])), ..begun };
        assert!(anothers.credential().unwrap_err().to_string().contains("not for the invoice"));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(dir.path().join(FILE).metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(store("a").load().err().unwrap().to_string().contains("damaged"));
        let before = json!({ "a": bought(3, 1) });
        std::fs::write(dir.path().join(FILE), before.to_string()).unwrap();
        assert!(store("a").load().unwrap()[0].credential().is_ok(), "as it was kept before there were lists");
    }

    #[test]
    fn what_was_paid_for_is_never_lost() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store { path: dir.path().join(FILE), gateway: "a".to_owned() };
        let (paid, failing) = (bought(1, 1), Bought { preimage: None, ..bought(2, 1) });
        store.keep(&paid).unwrap();
        store.keep(&failing).unwrap();
        assert!(store.load().unwrap()[0].credential().is_ok(), "a top-up that has begun leaves what was there");
        store.give_up(&failing.payment_hash).unwrap();
        store.give_up(&paid.payment_hash).unwrap();
        store.keep(&Bought { preimage: None, ..paid.clone() }).unwrap();
        let left = store.load().unwrap();
        assert!(left.len() == 1 && left[0].preimage == paid.preimage);
    }

    #[test]
    fn only_a_refusal_is_a_failure() {
        let refused = |code| anyhow::Error::from(Refused::new(code)).context("more words");
        assert!(
            may_arrive(&anyhow!("no answer"))
                && may_arrive(&refused(ON_ITS_WAY))
                && may_arrive(&refused(INTERNAL_ERROR_CODE))
        );
        assert!(!may_arrive(&refused(NOT_FOUND)));
        assert!(is_not_found(&refused(NOT_FOUND)) && !is_not_found(&anyhow!("no answer")));
        assert!(!is_not_found(&refused(ON_ITS_WAY)));
    }

    #[tokio::test]
    async fn each_account_is_tried_once_with_its_latest_credential() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store { path: dir.path().join(FILE), gateway: "a".to_owned() };
        for (payment, account) in [(1, 1), (2, 2), (3, 1)] {
            store.keep(&bought(payment, account)).unwrap();
        }
        store.keep(&Bought { preimage: None, ..bought(4, 1) }).unwrap();
        let wallet = Client::find(ClientArgs::naming("http://127.0.0.1:9/v1"), dir.path()).unwrap();
        let till = Till { wallet, store, left: Mutex::new(Msat(5)) };
        let mut purse = Purse { till: Arc::new(till), per_message: None, tried: BTreeSet::new() };
        let mut next = || purse.another().unwrap();
        let expected = [bought(3, 1), bought(2, 2)].map(|bought| Some(bought.credential().unwrap().reveal()));
        assert_eq!([next(), next()], expected);
        assert_eq!(next(), None);
        // The top-up has arrived meanwhile.
        purse.till.store.keep(&bought(4, 1)).unwrap();
        assert_eq!(purse.another().unwrap(), Some(bought(4, 1).credential().unwrap().reveal()));
        assert_eq!(*purse.till.left.lock().await, Msat(5));
    }
}
