//! The worker's side: a payer's word is compared with the books, and answered with an invoice.

use std::time::Duration;

use consortium_ledger::Ledger;
use consortium_ledger::accounts::Owner;
use consortium_ledger::lightning::Wallet;
use consortium_ledger::lightning::invoice::{EXPIRY, InvoiceOrder};
use consortium_ledger::payments::Direction;
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::rpc::{Refusal, RefusalCode};
use consortium_protocol::wire::tab::{Tab, TabAnswer, TabSays};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Tabs, disputed, internal, sats};
use crate::clock::wall_ms;
use crate::storage::tabs::{Settlement, Side};

/// An invoice is given again while it is good for so long, in seconds.
const GOOD_FOR_S: u64 = 600;
/// Invoices of one payer that are open at a time.
const MAX_OPEN: usize = 16;
/// An invoice may be paid so long after its end, in seconds: Lightning goes by the time of blocks.
const LATE_S: u64 = 3 * 3600;
/// Time for the bookkeeper to book what the wallet has told.
const BOOKING: Duration = Duration::from_millis(100);
/// Invoices are looked at this often though the wallet tells nothing.
const LOOK: Duration = Duration::from_secs(2);

impl Tabs {
    /// Answers a payer's word.
    ///
    /// # Errors
    /// A refusal: disputed when the word is not a payer's own next one, busy, internal.
    pub(super) async fn answer_tab(
        &self,
        wallet: &Wallet,
        from: NodeId,
        tab: Signed<Tab>,
    ) -> Result<Signed<TabAnswer>, Refusal> {
        let said = tab.payload();
        if (tab.signer(), said.payer, said.worker) != (from, from, self.me()) {
            return Err(disputed("a payer speaks for itself, of its tab here"));
        }
        let _one_at_a_time = self.answering(from)?;
        let owed = self.books(move |ledger| ledger.tab_owed(&from, wall_ms())).await.map_err(internal)?;
        // Nothing is kept about those who owe nothing.
        if owed.most == Msat::ZERO {
            return Ok(self.answer(&tab, TabSays::Disputed { owed: Msat::ZERO }));
        }
        if let Err(why) = self.storage().tab_heard(said).await.map_err(internal)? {
            warn!(payer = %from, seq = said.seq, why, "a tab is refused");
            return Err(disputed(why));
        }
        let due = said.due().unwrap_or(Msat::ZERO);
        let amount = due.min(owed.most);
        let says = if due < owed.least || due == Msat::ZERO {
            let why = format!("it says that it owes {}; by the books here it owes {}", sats(due), sats(owed.now));
            warn!(payer = %from, why, "a tab is disputed");
            self.note_trouble(from, Some(why));
            TabSays::Disputed { owed: owed.now }
        } else {
            self.note_trouble(from, None);
            self.invoice(wallet, from, amount).await?
        };
        Ok(self.answer(&tab, says))
    }

    fn answer(&self, tab: &Signed<Tab>, says: TabSays) -> Signed<TabAnswer> {
        Signed::sign(&self.inner.parts.key, TabAnswer { tab: tab.digest(), says })
    }

    /// An invoice over what is owed, or over as much of it as can be received at a time: the rest follows.
    async fn invoice(&self, wallet: &Wallet, payer: NodeId, owed: Msat) -> Result<TabSays, Refusal> {
        let lightning = wallet.node_id().parse().map_err(internal)?;
        let receivable = wallet.largest_incoming().await.map_err(internal)?;
        let amount = if receivable == Msat::ZERO { owed } else { owed.min(receivable) };
        let mut open = self.storage().settlements_open(Side::Worker).await.map_err(internal)?;
        open.retain(|invoiced| invoiced.peer == payer);
        let good_until = wall_ms() / 1000 + GOOD_FOR_S;
        let again = open.iter().find(|invoiced| invoiced.amount == amount && invoiced.expires_s > good_until);
        if let Some(again) = again
            && !self.is_received(again.hash).await.map_err(internal)?
        {
            let invoice = again.invoice.clone();
            return Ok(TabSays::Invoice { lightning, amount, invoice, receivable });
        }
        if open.len() >= MAX_OPEN {
            return Err(Refusal::new(RefusalCode::Busy, "too many invoices are open: pay one of them"));
        }
        let order = InvoiceOrder { amount: Some(amount), description: "work".to_owned(), expiry: EXPIRY };
        let made = wallet.invoice(order).await.map_err(internal)?;
        let hash = Hash::from_bytes(*made.hash.as_bytes());
        let now = wall_ms();
        let expected = move |ledger: &Ledger| {
            ledger.expect_payment(Direction::Incoming, hash, &Owner::Peer(payer), amount, "tab", now)
        };
        self.books(expected).await.map_err(internal)?;
        let (invoice, expires_s) = (made.invoice, made.expires_s);
        let begun = Settlement { hash, peer: payer, amount, invoice: invoice.clone(), expires_s, asked_ms: now };
        self.storage().settlement_begin(Side::Worker, begun).await.map_err(internal)?;
        Ok(TabSays::Invoice { lightning, amount, invoice, receivable })
    }

    async fn is_received(&self, hash: Hash) -> anyhow::Result<bool> {
        let known = self.books(move |ledger| ledger.payment(Direction::Incoming, &hash)).await?;
        Ok(known.is_some_and(|known| known.booked.is_some()))
    }

    /// Notes which invoices were paid, and which never will be.
    async fn look_at_invoices(&self) -> anyhow::Result<()> {
        for invoiced in self.storage().settlements_open(Side::Worker).await? {
            let (hash, now) = (invoiced.hash, wall_ms());
            if self.is_received(hash).await? {
                debug!(payer = %invoiced.peer, msat = invoiced.amount.0, "a tab was settled");
                self.storage().settlement_end(Side::Worker, hash, true, now).await?;
            } else if invoiced.expires_s.saturating_add(LATE_S) < now / 1000 {
                self.storage().settlement_end(Side::Worker, hash, false, now).await?;
            }
        }
        Ok(())
    }
}

/// Follows the invoices that were handed out, until `stop`.
pub(super) async fn watch(tabs: Tabs, wallet: Wallet, stop: CancellationToken) {
    let mut events = wallet.events();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
            event = events.recv() => match event {
                Err(RecvError::Closed) => return,
                _ => tokio::time::sleep(BOOKING).await,
            },
        }
        if let Err(error) = tabs.look_at_invoices().await {
            warn!(%error, "which invoices were paid cannot be noted");
        }
    }
}
