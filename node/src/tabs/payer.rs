//! The payer's side: whoever is owed enough, or for long enough, is asked for an invoice and paid, once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use consortium_ledger::Ledger;
use consortium_ledger::accounts::Owner;
use consortium_ledger::lightning::event::FailureReason;
use consortium_ledger::lightning::invoice;
use consortium_ledger::lightning::lookup::Fate;
use consortium_ledger::lightning::pay::PayOrder;
use consortium_ledger::lightning::{PaymentHash, Wallet, WalletError, WalletEvent};
use consortium_ledger::payments::Direction;
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::rpc::{Request, Response};
use consortium_protocol::wire::tab::{LightningId, Tab, TabAnswer, TabSays};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Tabs, lock, sats};
use crate::clock::wall_ms;
use crate::cluster::ClusterView;
use crate::storage::tabs::{Settlement, Side};
use crate::swarm::SwarmHandle;

/// What is due is looked at this often.
const LOOK: Duration = Duration::from_millis(500);
/// Workers that are being paid at a time.
const AT_A_TIME: usize = 4;
/// Time for a worker to answer.
const ASK: Duration = Duration::from_secs(20);
/// How long the outcome of a payment is waited for; then it is looked after from time to time.
const OUTCOME: Duration = Duration::from_secs(30);
/// Time for the bookkeeper to book a payment that arrived.
const BOOKED: Duration = Duration::from_secs(10);
const BOOKED_LOOK: Duration = Duration::from_millis(20);
/// A payment of which the wallet knows nothing is given up so long after its invoice ended, in seconds.
const FORGOTTEN_S: u64 = 600;
/// Pause after a first failure; it doubles with each, up to [`LONGEST`].
const PAUSE: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(600);

/// Fees at most: five hundredths of what is paid, and 10 sat.
fn fee_limit(amount: Msat) -> Msat {
    Msat((amount.0 / 20).saturating_add(10_000))
}

#[derive(Clone)]
pub(super) struct Payer {
    pub(super) tabs: Tabs,
    pub(super) wallet: Wallet,
    pub(super) swarm: SwarmHandle,
    view: watch::Receiver<ClusterView>,
    /// When a worker that could not be paid is tried again, and after how many failures.
    pauses: Arc<Mutex<BTreeMap<NodeId, (u32, Instant)>>>,
}

/// What is to be done about a worker.
enum Step {
    /// A payment was begun: what became of it?
    Follow(Settlement),
    /// A channel was begun: what became of it?
    Channel,
    Settle,
}

/// A worker's answer, checked.
pub(super) struct Invoiced {
    pub(super) lightning: LightningId,
    pub(super) receivable: Msat,
    settlement: Settlement,
}

impl Payer {
    pub(super) fn new(tabs: Tabs, wallet: Wallet, swarm: SwarmHandle, view: watch::Receiver<ClusterView>) -> Self {
        Self { tabs, wallet, swarm, view, pauses: Arc::default() }
    }

    pub(super) async fn run(self, stop: CancellationToken) {
        let mut paying = JoinSet::new();
        let mut at_work = BTreeMap::new();
        let mut ages = BTreeMap::new();
        let mut hurry = false;
        let mut events = self.wallet.events();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(ended) = paying.join_next_with_id(), if !paying.is_empty() => {
                    let id = ended.map_or_else(|broken| broken.id(), |(id, ())| id);
                    at_work.remove(&id);
                    continue;
                }
                () = self.tabs.inner.hurry.notified() => hurry = true,
                told = events.recv() => match told.map(|told| told.event) {
                    Ok(WalletEvent::ChannelReady { .. }) => lock(&self.pauses).clear(),
                    Err(RecvError::Closed) => return,
                    _ => continue,
                },
                _ = look.tick() => {}
            }
            let busy: BTreeSet<NodeId> = at_work.values().copied().collect();
            match self.wanted(&mut ages, &busy, std::mem::take(&mut hurry)).await {
                Err(error) => warn!(%error, "what is to be settled cannot be read"),
                Ok(wanted) => {
                    for (worker, step) in wanted.into_iter().take(AT_A_TIME.saturating_sub(at_work.len())) {
                        let payer = self.clone();
                        let task = paying.spawn(async move { payer.take(worker, step).await });
                        at_work.insert(task.id(), worker);
                    }
                }
            }
        }
    }

    /// What is to be done now. `ages` says since when something is due to a worker.
    async fn wanted(
        &self,
        ages: &mut BTreeMap<NodeId, Option<u64>>,
        busy: &BTreeSet<NodeId>,
        hurry: bool,
    ) -> anyhow::Result<Vec<(NodeId, Step)>> {
        let (rules, now_ms) = (*self.tabs.rules(), wall_ms());
        let open = self.tabs.storage().settlements_open(Side::Payer).await?;
        let begun: BTreeSet<NodeId> = open.iter().map(|settlement| settlement.peer).collect();
        let mut wanted: Vec<(NodeId, Step)> = open
            .into_iter()
            .filter(|settlement| !busy.contains(&settlement.peer) && self.is_time(&settlement.peer))
            .map(|settlement| (settlement.peer, Step::Follow(settlement)))
            .collect();
        let present: BTreeSet<NodeId> = self.view.borrow().members.keys().copied().collect();
        for (worker, tab) in self.tabs.books(Ledger::tabs).await? {
            let due = tab.due();
            let since = self.since(ages, worker, due >= rules.settle_min, now_ms).await?;
            let old =
                since.is_some_and(|since| u128::from(now_ms.saturating_sub(since)) >= rules.settle_after.as_millis());
            if since.is_none() || !(old || hurry || due >= rules.settle_at) {
                continue;
            }
            if self.tabs.inner.parts.standings.is_banned(&worker) {
                self.tabs.note_trouble(worker, Some("it was seen to cheat: nothing more is paid to it".to_owned()));
            } else if !present.contains(&worker) {
                self.tabs.note_trouble(worker, Some("it is away".to_owned()));
            } else if !begun.contains(&worker) && !busy.contains(&worker) && (hurry || self.is_time(&worker)) {
                wanted.push((worker, Step::Settle));
            }
        }
        for worker in self.tabs.storage().channels_unfinished().await? {
            let idle = !busy.contains(&worker) && wanted.iter().all(|(other, _)| *other != worker);
            if idle && present.contains(&worker) && self.is_time(&worker) {
                wanted.push((worker, Step::Channel));
            }
        }
        Ok(wanted)
    }

    /// Since when something is due to a worker; none if nothing is.
    async fn since(
        &self,
        ages: &mut BTreeMap<NodeId, Option<u64>>,
        worker: NodeId,
        due: bool,
        now_ms: u64,
    ) -> anyhow::Result<Option<u64>> {
        if let Some(known) = ages.get(&worker).filter(|known| known.is_some() == due) {
            return Ok(*known);
        }
        let since = self.tabs.storage().tab_since(worker, due, now_ms).await?;
        let since = due.then_some(since);
        ages.insert(worker, since);
        Ok(since)
    }

    fn is_time(&self, worker: &NodeId) -> bool {
        lock(&self.pauses).get(worker).is_none_or(|(_, at)| Instant::now() >= *at)
    }

    async fn take(&self, worker: NodeId, step: Step) {
        let done = match step {
            Step::Follow(settlement) => self.follow(settlement).await,
            Step::Channel => self.go_on_with_channel(worker).await,
            Step::Settle => self.settle(worker).await,
        };
        let Err(error) = done else {
            lock(&self.pauses).remove(&worker);
            return self.tabs.note_trouble(worker, None);
        };
        let why = format!("{error:#}");
        debug!(%worker, why, "a tab is not settled yet");
        let failures = {
            let mut pauses = lock(&self.pauses);
            let failures = pauses.get(&worker).map_or(0, |(failures, _)| *failures);
            let pause = PAUSE.saturating_mul(1 << failures.min(16)).min(LONGEST);
            pauses.insert(worker, (failures + 1, Instant::now() + pause));
            failures
        };
        if failures == 0 {
            warn!(%worker, why, "a tab is not settled yet");
        }
        self.tabs.note_trouble(worker, Some(why));
    }

    /// Looks what became of a payment that was begun, and pays it if nothing did.
    async fn follow(&self, settlement: Settlement) -> anyhow::Result<()> {
        if self.is_booked(settlement.hash).await? {
            return self.end(&settlement, true).await;
        }
        let hash = PaymentHash::from_bytes(*settlement.hash.as_bytes());
        let now_s = wall_ms() / 1000;
        match self.wallet.fate(hash).await? {
            Fate::Failed => self.end(&settlement, false).await,
            Fate::OnItsWay | Fate::Sent => bail!("a payment of {} is on its way", sats(settlement.amount)),
            Fate::Unsent if now_s < settlement.expires_s => self.pay(&settlement).await,
            Fate::Unsent if now_s > settlement.expires_s.saturating_add(FORGOTTEN_S) => {
                self.end(&settlement, false).await
            }
            Fate::Unsent => bail!("whether {} were paid is not known yet", sats(settlement.amount)),
        }
    }

    /// Asks a worker for an invoice over what is due, and pays it.
    async fn settle(&self, worker: NodeId) -> anyhow::Result<()> {
        self.go_on_with_channel(worker).await?;
        let sums = self.tabs.books(move |ledger| ledger.tab_sums(&worker)).await?;
        let asked_ms = wall_ms();
        let seq = self.tabs.storage().tab_next(worker, sums.accepted, sums.paid).await?;
        let receipts = self.tabs.receipts(&self.wallet, worker).await?;
        let tab = Tab { payer: self.tabs.me(), worker, seq, accepted: sums.accepted, paid: sums.paid, receipts };
        let due = tab.due().context("the books make no sense: more was paid than accepted")?;
        let tab = Signed::sign(&self.tabs.inner.parts.key, tab);
        let digest = tab.digest();
        let answer = self.swarm.request(worker, Request::Settle(Box::new(tab)), ASK).await;
        let answer = match answer.context("it does not answer")? {
            Response::Tab(answer) if answer.signer() == worker && answer.payload().tab == digest => answer,
            Response::Refused(refusal) => bail!("it refuses: {}", refusal.message),
            _ => bail!("its answer does not fit the question"),
        };
        if self.tabs.take_receipts(&self.wallet, worker, &answer.payload().receipts).await? {
            // The next word, if one is still due, tells of them.
            return Ok(());
        }
        let invoiced = check(answer.payload(), worker, due, asked_ms)?;
        if invoiced.settlement.amount < self.tabs.rules().settle_min {
            // No more comes at a time.
            if invoiced.receivable == invoiced.amount() {
                return self.open_towards(worker, &invoiced, due).await;
            }
            bail!("its books show only {} yet", sats(invoiced.settlement.amount));
        }
        if !self.tabs.storage().settlement_begin(Side::Payer, invoiced.settlement.clone()).await? {
            bail!("a payment to it is under way already");
        }
        match self.pay(&invoiced.settlement).await {
            Err(error) if no_way(&error) => self.open_towards(worker, &invoiced, due).await,
            paid => paid,
        }
    }

    /// Pays what was written down.
    async fn pay(&self, settlement: &Settlement) -> anyhow::Result<()> {
        let Settlement { hash, peer, amount, .. } = *settlement;
        let expected = move |ledger: &Ledger| {
            ledger.expect_payment(Direction::Outgoing, hash, &Owner::Peer(peer), amount, "tab", wall_ms())
        };
        self.tabs.books(expected).await?;
        let order = PayOrder {
            invoice: settlement.invoice.clone(),
            amount: None,
            max_fee: Some(fee_limit(amount)),
            within: OUTCOME,
        };
        match self.wallet.pay(order).await {
            Ok(_) | Err(WalletError::AlreadyPaid(_)) => {
                let waiting = async {
                    while !self.is_booked(hash).await? {
                        tokio::time::sleep(BOOKED_LOOK).await;
                    }
                    self.end(settlement, true).await
                };
                tokio::time::timeout(BOOKED, waiting).await.context("what was paid is not booked yet")?
            }
            // It may arrive yet: nothing else is paid to this worker until that is known.
            Err(error @ (WalletError::OnItsWay(_) | WalletError::Late { .. } | WalletError::Stopped)) => {
                Err(error.into())
            }
            Err(error) => {
                self.end(settlement, false).await?;
                Err(error.into())
            }
        }
    }

    async fn end(&self, settlement: &Settlement, paid: bool) -> anyhow::Result<()> {
        let now = wall_ms();
        self.tabs.storage().settlement_end(Side::Payer, settlement.hash, paid, now).await?;
        if paid {
            let ms = now.saturating_sub(settlement.asked_ms);
            info!(worker = %settlement.peer, msat = settlement.amount.0, ms, "settled a tab");
        }
        Ok(())
    }

    async fn is_booked(&self, hash: Hash) -> anyhow::Result<bool> {
        let known = self.tabs.books(move |ledger| ledger.payment(Direction::Outgoing, &hash)).await?;
        Ok(known.is_some_and(|known| known.booked.is_some()))
    }
}

/// Whether a payment failed for want of a way to its payee.
fn no_way(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(
            WalletError::NoRoute { .. } | WalletError::Failed(FailureReason::NoRoute | FailureReason::RetriesExhausted)
        )
    )
}

/// Checks that an answer is an invoice of the Lightning node that the worker names, over no more than is due.
fn check(answer: &TabAnswer, worker: NodeId, due: Msat, asked_ms: u64) -> anyhow::Result<Invoiced> {
    let (lightning, said, text, receivable) = match &answer.says {
        TabSays::Invoice { lightning, amount, invoice, receivable } => (*lightning, *amount, invoice, *receivable),
        TabSays::Disputed { owed } => {
            bail!("it disputes the tab: {} are due here, {} by its books", sats(due), sats(*owed))
        }
    };
    let facts = invoice::read(text).context("its invoice cannot be read")?;
    if facts.payee != lightning.to_string() {
        bail!("its invoice is for another Lightning node than the one it names");
    }
    let amount =
        facts.amount.filter(|amount| *amount == said).ok_or_else(|| anyhow!("its invoice is over another amount"))?;
    if amount > due {
        bail!("its invoice is over {}, more than the {} that are due", sats(amount), sats(due));
    }
    let hash = Hash::from_bytes(*facts.hash.as_bytes());
    let (invoice, expires_s) = (text.clone(), facts.expires_s);
    let settlement = Settlement { hash, peer: worker, amount, invoice, expires_s, asked_ms };
    Ok(Invoiced { lightning, receivable, settlement })
}

impl Invoiced {
    pub(super) fn amount(&self) -> Msat {
        self.settlement.amount
    }
}

#[cfg(test)]
mod tests {
    use consortium_protocol::identity::RootKey;

    use super::*;

    /// An example of BOLT 11: 2500 µBTC.
    const COFFEE: &str = "lnbc2500u1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsxqzpu9qrsgquk0rl77nj30yxdy8j9vdx85fkpmdla2087ne0xh8nhedh8w27kyke0lp53ut353s06fv3qfegext0eh0ymjpf39tuven09sam30g4vgpfna3rh";
    const PAYEE: &str = "03e7156ae33b0a208d0744199163177e909e80176e55d97a2f221ede0f934dd9ad";
    const AMOUNT: Msat = Msat(250_000_000);

    #[test]
    fn an_invoice_is_paid_only_if_it_is_what_was_signed() {
        let worker = RootKey::from_seed([1; 32]).node_id();
        let answer = |lightning: &str, amount, invoice: &str| TabAnswer {
            tab: Hash::of(b"tab"),
            says: TabSays::Invoice {
                lightning: lightning.parse().unwrap(),
                amount,
                invoice: invoice.to_owned(),
                receivable: Msat(0),
            },
            receipts: Vec::new(),
        };
        let other = format!("02{}", &PAYEE[2..]);
        let checked = check(&answer(PAYEE, AMOUNT, COFFEE), worker, AMOUNT, 5).unwrap();
        assert_eq!((checked.settlement.amount, checked.settlement.peer), (AMOUNT, worker));
        let more = Msat(AMOUNT.0 + 1);
        for (bad, due) in [
            (answer(&other, AMOUNT, COFFEE), AMOUNT),
            (answer(PAYEE, more, COFFEE), more),
            (answer(PAYEE, AMOUNT, COFFEE), Msat(AMOUNT.0 - 1)),
            (answer(PAYEE, AMOUNT, "lnbc1"), AMOUNT),
            (
                TabAnswer { tab: Hash::of(b"tab"), says: TabSays::Disputed { owed: AMOUNT }, receipts: Vec::new() },
                AMOUNT,
            ),
        ] {
            assert!(check(&bad, worker, due, 5).is_err(), "{bad:?}");
        }
    }
}
