//! Ties machine, log and wallet together.
//!
//! One turn at a time: what the machine says happened is written down, then what it says is to be done is done, and what
//! comes of that is heard. The wallet's events are read from its records, from where they were read last, so that none is
//! missed over a crash; those that are read twice change nothing. Messages are handed to whoever carries them
//! ([`Post`]) and may be lost: each is repeated until the answer to it has come.
//!
//! Before a tranche can move, the books are told for whom it is ([`Ledger::expect`]): whoever books what the wallet moved
//! then books it as a reward, or as a bond.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use consortium_protocol::wire::Message as _;
use consortium_protocol::wire::escrow::{
    EscrowFinding, EscrowId, EscrowKind, EscrowMessage, EscrowTerms, EscrowVerdict, Misconduct,
};
use consortium_protocol::{Hash, Msat, NodeId, RootKey, Signed};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex, mpsc, watch};
use tracing::warn;

use super::event::Event;
use super::limits::{self, Consent};
use super::log::Log;
use super::machine::{Action, Input};
use super::secrets::Secrets;
use super::state::Escrow;
use crate::ledger::Ledger;
use crate::lightning::Wallet;

mod error;
mod hear;
mod perform;
mod turns;

pub use error::EscrowError;

/// Messages that wait to be carried; more are dropped, and said again later.
const POSTS: usize = 256;
/// How often the height of the chain is looked at, and what is under way.
const LOOK: Duration = Duration::from_secs(1);

/// A message for another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Post {
    /// For whom.
    pub to: NodeId,
    /// The message. A [`EscrowMessage::Release`] holds preimages: it goes to its receiver alone.
    pub message: EscrowMessage,
}

/// A step of the driver, told before and after it is taken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Before these events, by their names, are written down.
    Persist(Vec<String>),
    /// After.
    Persisted(Vec<String>),
    /// Before something is done.
    Do(Action),
    /// After it was done, whatever came of it.
    Done(Action),
}

/// Hears every step; it must not block.
pub type Observer = Arc<dyn Fn(EscrowId, &Step) + Send + Sync>;

/// How the driver works.
#[derive(Clone)]
pub struct EscrowSettings {
    /// Pause before something is said again that was not answered.
    pub repeat: Duration,
    /// Where it is said, before a tranche can move, for whom it is; none where nothing is booked.
    pub books: Option<Ledger>,
    /// Who hears every step.
    pub observer: Option<Observer>,
}

impl Default for EscrowSettings {
    fn default() -> Self {
        Self { repeat: Duration::from_secs(30), books: None, observer: None }
    }
}

/// What a validator offers to judge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// What for.
    pub kind: EscrowKind,
    /// Whose money is locked.
    pub payer: NodeId,
    /// Who gets what is earned: this node, for a bond.
    pub payee: NodeId,
    /// How many tranches: one, unless they are of [`EscrowKind::Tranches`].
    pub tranches: u8,
    /// The amount of the first.
    pub unit: Msat,
    /// Blocks that it may be locked for.
    pub delta: u16,
    /// Digest of what is judged, and by what rules.
    pub subject: Hash,
}

/// How a message was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// It is about an escrow that this node takes part in.
    Taken(EscrowId),
    /// It offers terms, to which the node may agree ([`Escrows::agree`]).
    Offered(Signed<EscrowTerms>),
}

/// The escrows of a node. A clone is the same.
#[derive(Clone)]
pub struct Escrows {
    inner: Arc<Inner>,
}

struct Inner {
    wallet: Wallet,
    log: Log,
    key: RootKey,
    secrets: Secrets,
    settings: EscrowSettings,
    post: mpsc::Sender<Post>,
    open: Mutex<Open>,
}

/// What changes.
struct Open {
    escrows: BTreeMap<EscrowId, Escrow>,
    /// When a tranche was sent, or found sent at the start; none once it was seen to.
    sent: BTreeMap<(EscrowId, u8), Option<Instant>>,
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

impl Escrows {
    /// Opens the log at `path` and goes on where it ends. Gives the messages that are to be carried to other nodes.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn open(
        wallet: Wallet,
        path: &Path,
        key: &RootKey,
        settings: EscrowSettings,
    ) -> Result<(Self, mpsc::Receiver<Post>), EscrowError> {
        let (path, me) = (path.to_owned(), key.node_id());
        let opening = tokio::task::spawn_blocking(move || {
            let log = Log::open(&path, me)?;
            let escrows = log.unfinished()?;
            Ok::<_, EscrowError>((log, escrows))
        });
        let (log, escrows) = opening.await.map_err(|_| EscrowError::Stopped)??;
        let (post, posts) = mpsc::channel(POSTS);
        let open = Mutex::new(Open { escrows, sent: BTreeMap::new() });
        let secrets = Secrets::of(key);
        let inner = Inner { wallet, log, key: key.clone(), secrets, settings, post, open };
        inner.bind_wallet().await?;
        inner.note_sent().await?;
        Ok((Self { inner: Arc::new(inner) }, posts))
    }

    /// Offers to judge: draws a name, makes the hashes, signs the terms, and tells payer and payee.
    ///
    /// # Errors
    /// When the offer makes no sense, or this node would not agree to it.
    pub async fn offer(&self, offer: Offer, consent: Consent) -> Result<Signed<EscrowTerms>, EscrowError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id)?;
        let id = EscrowId(id);
        let locks = self.inner.secrets.locks(id, offer.tranches);
        let Offer { kind, payer, payee, unit, delta, subject, .. } = offer;
        let terms = EscrowTerms { id, kind, payer, payee, locks, unit, delta, subject, at_ms: now_ms() };
        consortium_protocol::Payload::check(&terms)?;
        let terms = Signed::sign(&self.inner.key, terms);
        self.agree(terms.clone(), consent).await?;
        Ok(terms)
    }

    /// Takes part in an escrow. A payer will pay, as soon as the payee's invoices have come.
    ///
    /// # Errors
    /// When the terms are not to be agreed to ([`limits::check`]), the name is taken, or this node is to pay a hash that it
    /// has paid before.
    pub async fn agree(&self, terms: Signed<EscrowTerms>, consent: Consent) -> Result<EscrowId, EscrowError> {
        let inner = &self.inner;
        limits::check(&terms, inner.key.node_id(), consent)?;
        let id = terms.payload().id;
        let mut open = inner.open.lock().await;
        inner.check_unused(&terms).await?;
        inner.begin(&mut open, id, &terms).await?;
        inner.turn(&mut open, id, Input::Tick, true).await?;
        Ok(id)
    }

    /// Takes a message. Its sender must have been authenticated.
    ///
    /// # Errors
    /// When it is about nothing known here, is not for its sender to say, or cannot be acted on.
    pub async fn receive(&self, from: NodeId, message: EscrowMessage) -> Result<Received, EscrowError> {
        message.check()?;
        let inner = &self.inner;
        let digest = message.terms();
        let known = inner.on_log(move |log| log.find(&digest)).await?;
        let id = match (known, message) {
            (None, EscrowMessage::Terms(terms)) if terms.signer() == from => return Ok(Received::Offered(terms)),
            (None, _) => return Err(EscrowError::Unknown),
            (Some(id), EscrowMessage::Terms(_)) => return Ok(Received::Taken(id)),
            (Some(id), message) => {
                let mut open = inner.open.lock().await;
                let input = inner.heard(&mut open, id, from, message).await?;
                inner.turn(&mut open, id, input, true).await?;
                id
            }
        };
        Ok(Received::Taken(id))
    }

    /// Judges: signs the verdict and has it carried out. The same again gives the same.
    ///
    /// # Errors
    /// When this node does not judge it, not all of it is locked, it is too late, or it was judged otherwise.
    pub async fn judge(
        &self,
        id: EscrowId,
        finding: EscrowFinding,
        earned: u32,
        evidence: Hash,
    ) -> Result<Signed<EscrowVerdict>, EscrowError> {
        let inner = &self.inner;
        let mut open = inner.open.lock().await;
        let escrow = inner.escrow(&mut open, id).await?;
        if escrow.terms().signer() != inner.key.node_id() {
            return Err(EscrowError::NotValidator(id));
        }
        let verdict = match escrow.verdict() {
            Some(known)
                if (known.payload().finding, known.payload().earned, known.payload().evidence)
                    == (finding, earned, evidence) =>
            {
                known.clone()
            }
            _ => {
                let terms = escrow.terms().digest();
                let verdict = EscrowVerdict { escrow: id, terms, finding, earned, evidence, at_ms: now_ms() };
                Signed::sign(&inner.key, verdict)
            }
        };
        let input = Input::Verdict { verdict: verdict.clone(), sealed: Vec::new() };
        inner.turn(&mut open, id, input, true).await?;
        Ok(verdict)
    }

    /// How an escrow is doing, also one that is over.
    ///
    /// # Errors
    /// When there is none, or the log cannot be read.
    pub async fn escrow(&self, id: EscrowId) -> Result<Escrow, EscrowError> {
        let mut open = self.inner.open.lock().await;
        self.inner.escrow(&mut open, id).await
    }

    /// Escrows in which something is still to be done.
    pub async fn unfinished(&self) -> Vec<(EscrowId, Escrow)> {
        let open = self.inner.open.lock().await;
        open.escrows.iter().map(|(id, escrow)| (*id, escrow.clone())).collect()
    }

    /// Escrows with their places in the log, also those that are over, the newest first, from before a place on; at most
    /// `limit`.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn newest(&self, before: Option<u64>, limit: u32) -> Result<Vec<(u64, Escrow)>, EscrowError> {
        let places = self.inner.on_log(move |log| log.newest(before, limit)).await?;
        let mut found = Vec::with_capacity(places.len());
        for (place, id) in places {
            found.push((place, self.escrow(id).await?));
        }
        Ok(found)
    }

    /// Escrows in which this is judged, also those that are over.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn about(&self, subject: Hash) -> Result<Vec<Escrow>, EscrowError> {
        let names = self.inner.on_log(move |log| log.about(&subject)).await?;
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            found.push(self.escrow(name).await?);
        }
        Ok(found)
    }

    /// When what happened in an escrow was written down, in milliseconds since 1970, and by which name.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn history(&self, id: EscrowId) -> Result<Vec<(u64, String)>, EscrowError> {
        self.inner.on_log(move |log| log.history(id)).await
    }

    /// The height of the chain, as the wallet has it.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.inner.wallet.height()
    }

    /// Evidence that preimages of an escrow that this node paid were used without a verdict that gives them out.
    ///
    /// # Errors
    /// When there is no such escrow, or the wallet cannot be asked.
    pub async fn misconduct(&self, id: EscrowId) -> Result<Vec<Misconduct>, EscrowError> {
        let escrow = self.escrow(id).await?;
        self.inner.misconduct(&escrow).await
    }

    /// Whether all that this node has locked in an escrow, and the wallet shows, is locked in channels with its payee.
    /// Nothing else is paid for; this looks at what really happened. [`Escrows::run`] looks, too, and gives up what it does
    /// not find there.
    ///
    /// # Errors
    /// When there is no such escrow, or the wallet cannot be asked.
    pub async fn is_direct(&self, id: EscrowId) -> Result<bool, EscrowError> {
        let escrow = self.escrow(id).await?;
        self.inner.is_direct(&escrow).await
    }

    /// Works until it is told to stop: hears the wallet, watches the height, repeats what was not answered.
    pub async fn run(&self, mut stop: watch::Receiver<bool>) {
        let mut events = self.inner.wallet.events();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut height, mut repeated) = (0, None::<Instant>);
        loop {
            let looks = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                _ = look.tick() => true,
                event = events.recv() => match event {
                    // What was missed is in the records.
                    Ok(_) | Err(RecvError::Lagged(_)) => false,
                    Err(RecvError::Closed) => return,
                },
            };
            if let Err(error) = self.inner.hear_wallet().await {
                warn!(%error, "the wallet's events could not be taken");
            }
            if looks {
                let repeats = repeated.is_none_or(|at| at.elapsed() >= self.inner.settings.repeat);
                if repeats {
                    repeated = Some(Instant::now());
                }
                let rose = std::mem::replace(&mut height, self.inner.wallet.height()) != height;
                self.inner.look(rose || repeats, repeats).await;
            }
        }
    }
}

impl Inner {
    /// Does what blocks on the disk.
    async fn on_log<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Log) -> Result<T, super::log::LogError> + Send + 'static,
    ) -> Result<T, EscrowError> {
        let log = self.log.clone();
        Ok(tokio::task::spawn_blocking(move || work(&log)).await.map_err(|_| EscrowError::Stopped)??)
    }

    fn observe(&self, id: EscrowId, step: &Step) {
        if let Some(observer) = &self.settings.observer {
            observer(id, step);
        }
    }

    async fn escrow(&self, open: &mut Open, id: EscrowId) -> Result<Escrow, EscrowError> {
        if let Some(escrow) = open.escrows.get(&id) {
            return Ok(escrow.clone());
        }
        self.on_log(move |log| log.load(id)).await?.ok_or(EscrowError::Unknown)
    }

    async fn begin(&self, open: &mut Open, id: EscrowId, terms: &Signed<EscrowTerms>) -> Result<(), EscrowError> {
        let opened = Event::Opened { terms: terms.clone(), height: self.wallet.height() };
        self.persist(id, vec![opened]).await?;
        // As it was begun, should that be longer ago.
        let escrow = self.on_log(move |log| log.load(id)).await?.ok_or(EscrowError::Unknown)?;
        open.escrows.entry(id).or_insert(escrow);
        Ok(())
    }
}
