//! The worker's side: a payer's word is compared with the books, and answered with an invoice.

use std::time::{Duration, Instant};

use consortium_ledger::Ledger;
use consortium_ledger::accounts::Owner;
use consortium_ledger::lightning::invoice::{EXPIRY, InvoiceOrder, MAX_EXPIRY};
use consortium_ledger::lightning::{PaymentHash, Wallet};
use consortium_ledger::payments::Direction;
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::escrow::LockSecret;
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
/// Payments that were expected and never came are forgotten this often.
const SWEEP: Duration = Duration::from_secs(3600);
/// They are forgotten at this age, in milliseconds: the longest invoice is over by then, and a day more.
const UNPAID_MS: u64 = (MAX_EXPIRY.as_secs() + 24 * 3600) * 1000;

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
        self.take_receipts(wallet, from, &said.receipts).await.map_err(internal)?;
        let owed = self.books(move |ledger| ledger.tab_owed(&from, wall_ms())).await.map_err(internal)?;
        // Nothing is kept about those who owe nothing.
        if owed.most == Msat::ZERO {
            let receipts = self.receipts(wallet, from).await.map_err(internal)?;
            return Ok(self.answer(&tab, TabSays::Disputed { owed: Msat::ZERO }, receipts));
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
        let receipts = if due > owed.now { self.receipts(wallet, from).await.map_err(internal)? } else { Vec::new() };
        Ok(self.answer(&tab, says, receipts))
    }

    fn answer(&self, tab: &Signed<Tab>, says: TabSays, receipts: Vec<LockSecret>) -> Signed<TabAnswer> {
        Signed::sign(&self.inner.parts.key, TabAnswer { tab: tab.digest(), says, receipts })
    }

    /// An invoice over what is owed, or over a part of it: the rest follows.
    async fn invoice(&self, wallet: &Wallet, payer: NodeId, owed: Msat) -> Result<TabSays, Refusal> {
        let lightning = wallet.node_id().parse().map_err(internal)?;
        let receivable = wallet.largest_incoming().await.map_err(internal)?;
        let amount = at_a_time(owed, receivable, self.rules().settle_min);
        let open = self.storage().settlements_open_with(Side::Worker, payer).await.map_err(internal)?;
        let now_s = wall_ms() / 1000;
        let again = self.good_again(again(&open, amount, now_s)).await.map_err(internal)?;
        if let Some(Settlement { amount, invoice, .. }) = again {
            return Ok(TabSays::Invoice { lightning, amount, invoice, receivable });
        }
        if is_full(&open, now_s) {
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

    /// The first of these that is not paid yet.
    async fn good_again(&self, invoices: Vec<&Settlement>) -> anyhow::Result<Option<Settlement>> {
        for invoiced in invoices {
            if !self.is_received(invoiced.hash).await? {
                return Ok(Some(invoiced.clone()));
            }
        }
        Ok(None)
    }

    async fn is_received(&self, hash: Hash) -> anyhow::Result<bool> {
        let known = self.books(move |ledger| ledger.payment(Direction::Incoming, &hash)).await?;
        Ok(known.is_some_and(|known| known.booked.is_some()))
    }

    /// Notes which invoices were paid, and which never will be.
    async fn look_at_invoices(&self, wallet: &Wallet) -> anyhow::Result<()> {
        for invoiced in self.storage().settlements_open(Side::Worker).await? {
            let (hash, now) = (invoiced.hash, wall_ms());
            if self.is_received(hash).await? {
                debug!(payer = %invoiced.peer, msat = invoiced.amount.0, "a tab was settled");
                self.storage().settlement_end(Side::Worker, hash, true, now).await?;
            } else if invoiced.expires_s.saturating_add(LATE_S) < now / 1000 {
                wallet.forget_invoice(PaymentHash::from_bytes(*hash.as_bytes())).await?;
                self.books(move |ledger| ledger.forget_payment(Direction::Incoming, &hash)).await?;
                self.storage().settlement_end(Side::Worker, hash, false, now).await?;
            }
        }
        Ok(())
    }
}

/// Follows the invoices that were handed out, until `stop`.
pub(super) async fn watch(tabs: Tabs, wallet: Wallet, stop: CancellationToken) {
    let mut events = wallet.events();
    let mut swept: Option<Instant> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
            event = events.recv() => match event {
                Err(RecvError::Closed) => return,
                _ => tokio::time::sleep(BOOKING).await,
            },
        }
        if let Err(error) = tabs.look_at_invoices(&wallet).await {
            warn!(%error, "which invoices were paid cannot be noted");
        }
        if swept.is_none_or(|at| at.elapsed() >= SWEEP) {
            let before_ms = wall_ms().saturating_sub(UNPAID_MS);
            if let Err(error) = tabs.books(move |ledger| ledger.forget_unpaid(before_ms)).await {
                warn!(%error, "payments that never came cannot be forgotten");
            }
            swept = Some(Instant::now());
        }
    }
}

/// What is invoiced of what is owed: as much as can be received at a time, but all where that is less than is worth a
/// payment. Then no payment succeeds, and its payer learns that more room is needed.
fn at_a_time(owed: Msat, receivable: Msat, least: Msat) -> Msat {
    if receivable < least.min(owed) { owed } else { owed.min(receivable) }
}

/// Open invoices that may be handed out again for this amount. When no more are made, those over less will do, the largest
/// first.
fn again(open: &[Settlement], amount: Msat, now_s: u64) -> Vec<&Settlement> {
    let all_of_it = !is_full(open, now_s);
    let good = |invoiced: &&Settlement| {
        let fits = invoiced.amount == amount || (!all_of_it && invoiced.amount < amount);
        fits && invoiced.expires_s > now_s.saturating_add(GOOD_FOR_S)
    };
    let mut found: Vec<&Settlement> = open.iter().filter(good).collect();
    found.sort_by_key(|invoiced| std::cmp::Reverse(invoiced.amount));
    found
}

/// Whether no more invoices are made for their payer: those that have expired do not count.
fn is_full(open: &[Settlement], now_s: u64) -> bool {
    open.iter().filter(|invoiced| invoiced.expires_s > now_s).count() >= MAX_OPEN
}

#[cfg(test)]
mod tests {
    use consortium_protocol::identity::RootKey;

    use super::*;

    #[test]
    fn what_cannot_be_received_in_parts_worth_a_payment_is_invoiced_whole() {
        let amount = |owed, receivable| at_a_time(Msat(owed), Msat(receivable), Msat(354)).0;
        assert_eq!([amount(9000, 0), amount(9000, 200), amount(9000, 353)], [9000; 3]);
        assert_eq!([amount(9000, 354), amount(9000, 5000), amount(9000, 10_000)], [354, 5000, 9000]);
        assert_eq!([amount(100, 50), amount(100, 100)], [100, 100]);
    }

    #[test]
    fn many_invoices_that_were_not_paid_do_not_lock_a_tab() {
        let now_s = 10_000;
        let invoiced = |n: u8, expires_s| Settlement {
            hash: Hash::of(&[n]),
            peer: RootKey::from_seed([1; 32]).node_id(),
            amount: Msat(100 + u64::from(n)),
            invoice: String::new(),
            expires_s,
            asked_ms: 1,
        };
        let expired: Vec<_> = (0..40).map(|n| invoiced(n, now_s)).collect();
        assert!(!is_full(&expired, now_s));
        assert!(again(&expired, Msat(105), now_s).is_empty());
        let mut open: Vec<_> = (0..15).map(|n| invoiced(n, now_s + 3000)).collect();
        assert_eq!(again(&open, Msat(105), now_s), [&open[5]]);
        assert!(again(&open, Msat(200), now_s).is_empty());
        open.push(invoiced(15, now_s + 1));
        assert!(is_full(&open, now_s));
        // The largest that is good for a while; the rest is paid later.
        assert_eq!(again(&open, Msat(200), now_s)[0].amount, Msat(114));
        assert_eq!(again(&open, Msat(103), now_s)[0].amount, Msat(103));
    }
}
