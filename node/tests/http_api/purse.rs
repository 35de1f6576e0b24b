//! A wallet in name only: its invoices are paid when the test says so.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::SystemTime;

use consortium_node::till::{Cashier, CashierError, Invoice, Outcome, Reading};
use consortium_protocol::msat::Msat;
use futures::future::BoxFuture;
use sha2::Digest as _;

use crate::support::*;

/// Invoices are `invoice<n>` of its own, and `theirs<n>:<msat>` of others.
#[derive(Debug, Default)]
pub(crate) struct Purse {
    made: Mutex<BTreeMap<String, ([u8; 32], Msat)>>,
    pub(crate) paid: Mutex<Vec<(String, Msat)>>,
    /// How payments end.
    pub(crate) fails: Mutex<Option<String>>,
    pub(crate) forgotten: Mutex<Vec<Hash>>,
}

pub(crate) fn now_s() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

impl Purse {
    /// The preimage and the amount of an invoice.
    pub(crate) fn opened(&self, invoice: &str) -> ([u8; 32], Msat) {
        self.made.lock().unwrap()[invoice]
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> Hash {
    Hash::from_bytes(sha2::Sha256::digest(bytes).into())
}

impl Cashier for Purse {
    fn invoice(&self, amount: Msat, _: String, expiry: Duration) -> BoxFuture<'_, Result<Invoice, CashierError>> {
        let mut made = self.made.lock().unwrap();
        let n = u8::try_from(made.len()).unwrap();
        let (text, preimage) = (format!("invoice{n}"), [n; 32]);
        made.insert(text.clone(), (preimage, amount));
        let made = Invoice { text, hash: sha256(&preimage), expires_s: now_s() + expiry.as_secs() };
        Box::pin(async { Ok(made) })
    }

    fn read(&self, invoice: &str) -> Result<Reading, CashierError> {
        let (name, msat) = invoice.split_once(':').ok_or_else(|| CashierError("this is no invoice".to_owned()))?;
        Ok(Reading { hash: sha256(name.as_bytes()), amount: msat.parse().ok().map(Msat), expires_s: now_s() + 60 })
    }

    fn pay(&self, invoice: String, max_fee: Msat) -> BoxFuture<'_, Outcome> {
        let outcome = match self.fails.lock().unwrap().clone() {
            Some(why) => Outcome::Failed(why),
            None => {
                self.paid.lock().unwrap().push((invoice, max_fee));
                Outcome::Sent
            }
        };
        Box::pin(async { outcome })
    }

    fn fate(&self, _: Hash) -> BoxFuture<'_, Result<Outcome, CashierError>> {
        Box::pin(async { Ok(Outcome::OnItsWay) })
    }

    fn forget(&self, hash: Hash) -> BoxFuture<'_, Result<(), CashierError>> {
        self.forgotten.lock().unwrap().push(hash);
        Box::pin(async { Ok(()) })
    }
}
