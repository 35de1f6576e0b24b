//! Tabs between nodes, settled over Lightning.
//!
//! What payers accept makes both sides book the same debt ([`crate::audit`]): that is the tab, netted. What of it is free
//! is settled when it passes a threshold or a time. The payer (`payer`) signs where it stands, the worker (`payee`)
//! compares that with its own books and answers, signed, with an invoice; the payer writes down what it is about to
//! pay, pays it, and the bookkeeper of each side books what moved. One payment to a worker is under way at a time, named
//! by its hash: whatever ends in between, it is paid once, and looked after until its end is known.
//!
//! # What is at stake
//! A worker can lose what it lets a payer owe: its limit ([`credit`]), which begins at a tenth and grows with what the
//! payer has paid, and one session more. Work that runs, and work that the payer has not accepted, count against it
//! ([`unaccepted`]): the latter for hours, or until the worker is started anew. Who pays for a session has signed for it: a
//! mandate to the one master that it handed the job to, for so many positions at such a cost, and for minutes; every worker
//! goes by it, with or without a wallet, and counts what is used of it over all attempts ([`mandates`]). So a master can
//! name nobody who did not ask it for a job. What it can waste is the mandate of a job that it was given: on each worker
//! the positions of [`MAX_ATTEMPTS`](consortium_inference::session::MAX_ATTEMPTS) attempts, and as many again on a worker
//! that is started anew within that time. Each node that asks for jobs begins with a limit of its own, and keys cost
//! nothing. A payer pays for nothing that it has not accepted, and nothing to a node that it has seen cheat. A worker that
//! no payment can reach is given a channel (`channel`), within a budget; its cost, agreed to by the worker's signature, is
//! taken off the tab on both sides. The worker books no cost before it sees the channel confirmed, the payer none before
//! the worker has; of a channel that is gone before that, neither does (`channel_cost`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use consortium_ledger::ledger::{Ledger, LedgerError};
#[cfg(feature = "lightning")]
use consortium_ledger::lightning::Wallet;
use consortium_protocol::envelope::Signed;
use consortium_protocol::identity::{NodeId, RootKey};
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::rpc::{Refusal, RefusalCode, Response};
use consortium_protocol::wire::tab::{ChannelBegun, ChannelGone, ChannelOffer, Tab};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::audit::standings::Standings;
use crate::config::TabRules;
use crate::storage::Storage;
use crate::swarm::SwarmHandle;

#[cfg(feature = "lightning")]
mod channel;
#[cfg(feature = "lightning")]
mod channel_cost;
pub mod credit;
pub mod mandates;
#[cfg(feature = "lightning")]
mod payee;
#[cfg(feature = "lightning")]
mod payer;
#[cfg(feature = "lightning")]
mod receipts;
pub mod unaccepted;
pub mod view;

pub use credit::Credit;
pub use unaccepted::{Running, Work};

/// What tabs are kept with.
pub struct TabParts {
    /// Signs the node's words.
    pub key: Arc<RootKey>,
    /// What must not be forgotten.
    pub storage: Storage,
    /// The ledger, and who is shut out.
    pub standings: Standings,
    /// When is settled what.
    pub rules: TabRules,
    /// What pays; none for none.
    #[cfg(feature = "lightning")]
    pub wallet: Option<Wallet>,
}

/// Cloneable handle to this node's tabs.
#[derive(Clone)]
pub struct Tabs {
    inner: Arc<Inner>,
}

struct Inner {
    parts: TabParts,
    credit: Credit,
    /// Why nothing is settled, by worker, or why a payer's word is not taken.
    trouble: Mutex<BTreeMap<NodeId, String>>,
    /// Payers that are being answered.
    answering: Mutex<BTreeSet<NodeId>>,
    hurry: Notify,
}

/// Ends when dropped.
struct Answering<'a> {
    tabs: &'a Tabs,
    payer: NodeId,
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        lock(&self.tabs.inner.answering).remove(&self.payer);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is changed in one step: a panic leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sats(amount: Msat) -> String {
    crate::cli::units::sats(amount.0.into())
}

fn disputed(why: impl Into<String>) -> Refusal {
    Refusal::new(RefusalCode::Disputed, why)
}

impl Tabs {
    /// Tabs kept with these.
    #[must_use]
    pub fn new(parts: TabParts) -> Self {
        #[cfg(feature = "lightning")]
        let wallet = parts.wallet.is_some();
        #[cfg(not(feature = "lightning"))]
        let wallet = false;
        let credit = Credit::new(parts.standings.ledger().clone(), parts.storage.clone(), parts.rules, wallet);
        let inner =
            Inner { parts, credit, trouble: Mutex::default(), answering: Mutex::default(), hurry: Notify::new() };
        Self { inner: Arc::new(inner) }
    }

    /// How much payers may owe.
    #[must_use]
    pub fn credit(&self) -> &Credit {
        &self.inner.credit
    }

    /// Has all workers paid that can be, at once.
    pub fn hurry(&self) {
        self.inner.hurry.notify_one();
    }

    /// Settles what is due, until `stop`.
    pub fn spawn(
        &self,
        swarm: SwarmHandle,
        view: tokio::sync::watch::Receiver<crate::cluster::ClusterView>,
        stop: CancellationToken,
    ) {
        #[cfg(feature = "lightning")]
        if let Some(wallet) = self.inner.parts.wallet.clone() {
            tokio::spawn(payee::watch(self.clone(), wallet.clone(), stop.clone()));
            tokio::spawn(payer::Payer::new(self.clone(), wallet, swarm, view).run(stop));
        }
        #[cfg(not(feature = "lightning"))]
        let _nothing_is_settled = (swarm, view, stop);
    }

    /// Answers a payer that would settle.
    pub async fn settle(&self, from: NodeId, tab: Signed<Tab>) -> Response {
        #[cfg(feature = "lightning")]
        if let Some(wallet) = &self.inner.parts.wallet {
            return match self.answer_tab(wallet, from, tab).await {
                Ok(answer) => Response::Tab(Box::new(answer)),
                Err(refusal) => Response::Refused(refusal),
            };
        }
        let _unanswered = (from, tab);
        no_lightning()
    }

    /// Answers a payer that would open a channel.
    pub async fn agree(&self, from: NodeId, offer: Signed<ChannelOffer>) -> Response {
        #[cfg(feature = "lightning")]
        if let Some(wallet) = &self.inner.parts.wallet {
            return match self.answer_offer(wallet, from, offer).await {
                Ok(agreed) => Response::Channel(Box::new(agreed)),
                Err(refusal) => Response::Refused(refusal),
            };
        }
        let _unanswered = (from, offer);
        no_lightning()
    }

    /// Takes the cost of a channel off the tab, once it is there.
    pub async fn begun(&self, from: NodeId, begun: Signed<ChannelBegun>) -> Response {
        #[cfg(feature = "lightning")]
        if let Some(wallet) = &self.inner.parts.wallet {
            return match self.answer_begun(wallet, from, begun).await {
                Ok(()) => Response::Ack,
                Err(refusal) => Response::Refused(refusal),
            };
        }
        let _unanswered = (from, begun);
        no_lightning()
    }

    /// Forgets a channel that is no more, unless its cost is booked.
    pub async fn gone(&self, from: NodeId, gone: Signed<ChannelGone>) -> Response {
        #[cfg(feature = "lightning")]
        if self.inner.parts.wallet.is_some() {
            return match self.answer_gone(from, gone).await {
                Ok(()) => Response::Ack,
                Err(refusal) => Response::Refused(refusal),
            };
        }
        let _unanswered = (from, gone);
        no_lightning()
    }

    fn me(&self) -> NodeId {
        self.inner.parts.key.node_id()
    }

    fn storage(&self) -> &Storage {
        &self.inner.parts.storage
    }

    fn rules(&self) -> &TabRules {
        &self.inner.parts.rules
    }

    /// Asks the ledger on a thread made for waiting.
    async fn books<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Ledger) -> Result<T, LedgerError> + Send + 'static,
    ) -> anyhow::Result<T> {
        let ledger = self.inner.parts.standings.ledger().clone();
        Ok(tokio::task::spawn_blocking(move || work(&ledger)).await.context("reading the books broke off")??)
    }

    /// Notes why nothing is settled with a peer; none if all is well.
    fn note_trouble(&self, peer: NodeId, why: Option<String>) {
        let mut trouble = lock(&self.inner.trouble);
        match why {
            Some(why) => trouble.insert(peer, why),
            None => trouble.remove(&peer),
        };
    }

    /// The right to answer a payer: one question of each at a time.
    fn answering(&self, payer: NodeId) -> Result<Answering<'_>, Refusal> {
        if lock(&self.inner.answering).insert(payer) {
            return Ok(Answering { tabs: self, payer });
        }
        Err(Refusal::new(RefusalCode::Busy, "the question before is not answered yet"))
    }
}

fn no_lightning() -> Response {
    Response::Refused(Refusal::new(RefusalCode::NoLightning, "this node has no Lightning wallet: its tab stays open"))
}

/// A fault of this node, in an answer to another.
#[cfg(feature = "lightning")]
fn internal(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(RefusalCode::Internal, error.to_string())
}
