//! Escrows of this node: messages to and from the other parties, and who agrees to what.
//!
//! [`consortium_ledger::escrow`] holds the machine, its log and its driver over the wallet; here is what ties it to the
//! swarm. A message goes to its receiver alone, as a request ([`post`]); its sender is whom the connection authenticated.
//!
//! # Who agrees
//! A validator's offer waits ([`offers`]) until the operator agrees to it or declines it
//! (`consortium-node escrow agree`), as long as the validator repeats it. Code of this node that knows beforehand what it
//! will be offered states it ([`EscrowDesk::expect`]): for a subject, by a validator, up to an amount, once. Nothing else
//! is agreed to, and dust only in so many words.
//!
//! # Books
//! Before a tranche can move, the ledger is told for whom it is; the bookkeeper books what moved: a reward as income of the
//! worker from the sponsor, a bond that was taken as income of the validator from the worker.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use consortium_ledger::Ledger;
use consortium_ledger::escrow::Escrow;
use consortium_ledger::escrow::driver::{EscrowError, EscrowSettings, Escrows, Offer, Post, Received};
use consortium_ledger::escrow::limits::{self, Consent, TermsError};
use consortium_ledger::lightning::Wallet;
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::{NodeId, RootKey};
use consortium_protocol::wire::escrow::{
    EscrowFinding, EscrowId, EscrowKind, EscrowMessage, EscrowTerms, EscrowVerdict, Misconduct,
};
use consortium_protocol::wire::rpc::{Refusal, RefusalCode, Response};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::wall_ms;
use crate::swarm::SwarmHandle;

pub mod names;
mod offers;
mod post;
pub mod view;

pub use offers::{Expectation, TooManyExpected};
use offers::{Heard, Offers, Waiting};

/// The log, within the data directory.
pub const FILE: &str = "escrow.db";
/// Pause before something is said again that was not answered.
const REPEAT: Duration = Duration::from_secs(10);
/// What the others are told of terms that were declined.
const DECLINED: &str = "this node has declined";
/// Messages that are taken at a time.
const AT_A_TIME: usize = 32;
/// Differences with other parties that are remembered.
const MAX_TROUBLE: usize = 1024;

/// Why the desk did not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeskError {
    /// The escrow, its wallet or its log say no.
    #[error(transparent)]
    Escrow(#[from] EscrowError),
    /// No such offer waits.
    #[error(
        "no offer {0} waits here: it was agreed to or declined already, or its validator has not repeated it for ten \
         minutes; see `consortium-node escrow list`"
    )]
    NoOffer(EscrowId),
    /// Too much is expected.
    #[error(transparent)]
    TooManyExpected(#[from] TooManyExpected),
    /// How much was earned is not said.
    #[error("say how many of the {0} units were earned")]
    Earned(u64),
    /// What was earned does not go with the finding.
    #[error("{0}")]
    Finding(&'static str),
}

/// Cloneable handle to the escrows of this node.
#[derive(Clone)]
pub struct EscrowDesk {
    inner: Arc<Inner>,
}

struct Inner {
    escrows: Escrows,
    me: NodeId,
    offers: Mutex<Offers>,
    /// What last went wrong, by the digest of the terms and the other party.
    trouble: Mutex<BTreeMap<(Hash, NodeId), String>>,
    room: Semaphore,
    /// Held while an offer is heard, answered early, or agreed to: one that was just agreed to must not wait again.
    agreeing: tokio::sync::Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is changed in one step: a panic leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl EscrowDesk {
    /// Opens the log in the data directory, and goes on where it ends. Gives what is to be carried to others.
    ///
    /// # Errors
    /// When the log cannot be read: what is locked could not be looked after.
    pub async fn open(
        wallet: Wallet,
        data_dir: &Path,
        key: &RootKey,
        books: Ledger,
    ) -> anyhow::Result<(Self, mpsc::Receiver<Post>)> {
        let settings = EscrowSettings { repeat: REPEAT, books: Some(books), observer: None };
        let path = data_dir.join(FILE);
        let (escrows, posts) = Escrows::open(wallet, &path, key, settings).await.context("cannot open the escrows")?;
        let inner = Inner {
            escrows,
            me: key.node_id(),
            offers: Mutex::default(),
            trouble: Mutex::default(),
            room: Semaphore::new(AT_A_TIME),
            agreeing: tokio::sync::Mutex::default(),
        };
        Ok((Self { inner: Arc::new(inner) }, posts))
    }

    /// This node.
    #[must_use]
    pub fn me(&self) -> NodeId {
        self.inner.me
    }

    /// Works until `stop`: follows the wallet and the height, and carries messages.
    #[must_use]
    pub fn spawn(&self, posts: mpsc::Receiver<Post>, swarm: SwarmHandle, stop: CancellationToken) -> JoinHandle<()> {
        let desk = self.clone();
        tokio::spawn(async move {
            let stopping = watch::Sender::new(false);
            let stopped = async {
                stop.cancelled().await;
                stopping.send_replace(true);
            };
            // A turn that was begun is ended: half of one is only half written down.
            tokio::join!(
                desk.inner.escrows.run(stopping.subscribe()),
                post::carry(&desk, posts, &swarm, stop.clone()),
                stopped
            );
        })
    }

    /// Takes a message of another party, whom the connection has authenticated.
    pub async fn receive(&self, from: NodeId, message: EscrowMessage) -> Response {
        let Ok(_room) = self.inner.room.try_acquire() else {
            return refused(RefusalCode::Busy, "too many messages about escrows at once");
        };
        let _agreed_to_or_not = match message {
            EscrowMessage::Terms(_) | EscrowMessage::Invoices { .. } => Some(self.inner.agreeing.lock().await),
            _ => None,
        };
        self.take(from, message).await
    }

    async fn take(&self, from: NodeId, message: EscrowMessage) -> Response {
        let about = message.terms();
        if lock(&self.inner.offers).keep(from, &message) {
            return Response::Ack;
        }
        match self.inner.escrows.receive(from, message).await {
            Ok(Received::Taken(_)) => {
                self.note(about, from, None);
                Response::Ack
            }
            Ok(Received::Offered(terms)) => self.offered(terms).await,
            Err(EscrowError::Unknown) if lock(&self.inner.offers).is_declined(&about) => {
                refused(RefusalCode::NotAgreed, DECLINED)
            }
            Err(error) => {
                if !matches!(error, EscrowError::Unknown) {
                    self.note(about, from, Some(error.to_string()));
                }
                Response::Refused(refusal(&error))
            }
        }
    }

    async fn offered(&self, terms: Signed<EscrowTerms>) -> Response {
        // Dust is for whoever agrees to decide.
        if let Err(error) = limits::check(&terms, self.inner.me, Consent { dust: true }) {
            return refused(RefusalCode::Disputed, &error.to_string());
        }
        let (id, validator) = (terms.payload().id, terms.signer());
        let heard = lock(&self.inner.offers).hear(&terms, wall_ms());
        match heard {
            Heard::Waits => Response::Ack,
            Heard::Expected(expectation) => match self.inner.escrows.agree(terms, expectation.consent).await {
                Ok(id) => {
                    info!(escrow = %id, %validator, "agreed to an escrow that was expected");
                    Response::Ack
                }
                Err(error) => {
                    warn!(escrow = %id, %error, "an escrow that was expected cannot be agreed to");
                    lock(&self.inner.offers).expect_again(*expectation);
                    Response::Refused(refusal(&error))
                }
            },
            Heard::Declined => refused(RefusalCode::NotAgreed, DECLINED),
            Heard::Full => refused(RefusalCode::Busy, "too many offers wait here; agree to some, or decline them"),
            Heard::Taken => refused(RefusalCode::Disputed, "another offer has that name"),
        }
    }

    /// Offers to judge, and tells payer and payee.
    ///
    /// # Errors
    /// When the offer makes no sense, or this node would not agree to it.
    pub async fn offer(&self, offer: Offer, consent: Consent) -> Result<Signed<EscrowTerms>, DeskError> {
        Ok(self.inner.escrows.offer(offer, consent).await?)
    }

    /// States what will be agreed to, once, as soon as it is offered; at once if it is already.
    ///
    /// # Errors
    /// When too much is expected, or what was offered cannot be agreed to.
    pub async fn expect(&self, expectation: Expectation) -> Result<Option<EscrowId>, DeskError> {
        let _none_comes_meanwhile = self.inner.agreeing.lock().await;
        let found = lock(&self.inner.offers).expect(expectation, wall_ms())?;
        match found {
            Some((waiting, expectation)) => self.agree_to(waiting, expectation.consent).await.map(Some),
            None => Ok(None),
        }
    }

    /// Agrees to an offer that waits.
    ///
    /// # Errors
    /// When there is none, or it is not to be agreed to; then it waits on.
    pub async fn agree(&self, id: EscrowId, consent: Consent) -> Result<EscrowId, DeskError> {
        let _none_comes_meanwhile = self.inner.agreeing.lock().await;
        let waiting = lock(&self.inner.offers).take(id).ok_or(DeskError::NoOffer(id))?;
        self.agree_to(waiting, consent).await
    }

    async fn agree_to(&self, waiting: Waiting, consent: Consent) -> Result<EscrowId, DeskError> {
        let payee = waiting.terms.payload().payee;
        match self.inner.escrows.agree(waiting.terms.clone(), consent).await {
            Ok(id) => {
                if let Some(early) = waiting.early {
                    let _said_again_if_refused = self.take(payee, early).await;
                }
                Ok(id)
            }
            Err(error) => {
                lock(&self.inner.offers).put_back(waiting);
                Err(error.into())
            }
        }
    }

    /// Declines an offer that waits; its validator hears it when it repeats it.
    ///
    /// # Errors
    /// When there is none.
    pub fn decline(&self, id: EscrowId) -> Result<(), DeskError> {
        let declined = lock(&self.inner.offers).decline(id, wall_ms());
        if declined { Ok(()) } else { Err(DeskError::NoOffer(id)) }
    }

    /// Declines all offers that wait to have something judged for which no escrow is needed any more.
    pub fn decline_about(&self, subject: Hash) {
        lock(&self.inner.offers).decline_about(&subject, wall_ms());
    }

    /// Forgets what was stated beforehand about what is to be judged: only what is agreed to already goes on.
    pub async fn expect_no_more(&self, subject: Hash) {
        let _none_comes_meanwhile = self.inner.agreeing.lock().await;
        lock(&self.inner.offers).expect_no_more(&subject);
    }

    /// The height of the chain, as the wallet has it.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.inner.escrows.height()
    }

    /// Escrows of this node in which something is still to be done.
    pub async fn unfinished(&self) -> Vec<Escrow> {
        self.inner.escrows.unfinished().await.into_iter().map(|(_, escrow)| escrow).collect()
    }

    /// Escrows of this node in which something is judged, also those that are over.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn about(&self, subject: Hash) -> Result<Vec<Escrow>, DeskError> {
        Ok(self.inner.escrows.about(subject).await?)
    }

    /// Judges an escrow of this node, and has the verdict carried out. `earned` are the units that the payee gets; it may
    /// be left out where the finding says it.
    ///
    /// # Errors
    /// When this node does not judge it, not all of it is locked, it is too late, it was judged otherwise, or what was
    /// earned does not go with the finding.
    pub async fn judge(
        &self,
        id: EscrowId,
        finding: EscrowFinding,
        earned: Option<u32>,
        evidence: Hash,
    ) -> Result<Signed<EscrowVerdict>, DeskError> {
        let escrow = self.inner.escrows.escrow(id).await?;
        let earned = earned_by(escrow.terms().payload(), finding, earned)?;
        Ok(self.inner.escrows.judge(id, finding, earned, evidence).await?)
    }

    /// Evidence that preimages of an escrow that this node paid were used without a verdict that gives them out.
    ///
    /// # Errors
    /// When there is no such escrow, or the wallet cannot be asked.
    pub async fn misconduct(&self, id: EscrowId) -> Result<Vec<Misconduct>, DeskError> {
        Ok(self.inner.escrows.misconduct(id).await?)
    }

    /// Notes what went wrong with another party; none if all is well.
    fn note(&self, about: Hash, with: NodeId, why: Option<String>) {
        let mut trouble = lock(&self.inner.trouble);
        match why {
            None => drop(trouble.remove(&(about, with))),
            Some(why) if trouble.len() < MAX_TROUBLE || trouble.contains_key(&(about, with)) => {
                trouble.insert((about, with), why);
            }
            Some(_) => {}
        }
    }

    /// Forgets what went wrong in escrows that are over.
    async fn forget_trouble(&self) {
        let open = self.inner.escrows.unfinished().await;
        let open: Vec<Hash> = open.iter().map(|(_, escrow)| escrow.terms().digest()).collect();
        lock(&self.inner.trouble).retain(|(about, _), _| open.contains(about));
    }
}

/// The units that go with a finding.
fn earned_by(terms: &EscrowTerms, finding: EscrowFinding, said: Option<u32>) -> Result<u32, DeskError> {
    let implied = match (terms.kind, finding) {
        (EscrowKind::Bond, EscrowFinding::Abuse) | (EscrowKind::Reward, EscrowFinding::Accepted) => 1,
        (EscrowKind::Tranches, EscrowFinding::Accepted) => match said {
            Some(units) if (1..=terms.units()).contains(&units.into()) => return Ok(units),
            _ => return Err(DeskError::Earned(terms.units())),
        },
        _ => 0,
    };
    match said {
        Some(said) if said != implied => Err(DeskError::Finding(match terms.kind {
            EscrowKind::Bond => "a bond is forfeited after abuse, and only then",
            EscrowKind::Reward => "a reward is all or nothing: accepted pays it, and nothing else does",
            EscrowKind::Tranches => "only what is accepted earns anything",
        })),
        _ => Ok(implied),
    }
}

fn refused(code: RefusalCode, why: &str) -> Response {
    Response::Refused(Refusal::new(code, why))
}

/// What another node is told.
fn refusal(error: &EscrowError) -> Refusal {
    let code = match error {
        EscrowError::Unknown | EscrowError::Terms(TermsError::Dust(_)) => RefusalCode::NotAgreed,
        EscrowError::NoDirectChannel { .. } | EscrowError::NoRoom { .. } => RefusalCode::Busy,
        EscrowError::Wallet(error) if error.is_callers() => RefusalCode::Disputed,
        EscrowError::Wallet(_)
        | EscrowError::Log(_)
        | EscrowError::Books(_)
        | EscrowError::Random(_)
        | EscrowError::Stopped => {
            warn!(%error, "a message about an escrow could not be taken");
            return Refusal::new(RefusalCode::Internal, "it failed here; it may be said again");
        }
        _ => RefusalCode::Disputed,
    };
    Refusal::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use consortium_protocol::msat::Msat;
    use consortium_protocol::wire::escrow::HashLock;

    use super::*;

    #[test]
    fn a_finding_says_what_is_earned_and_is_not_contradicted() {
        use EscrowFinding::{Abuse, Accepted, Missed};
        use EscrowKind::{Bond, Reward, Tranches};
        let terms = |kind, tranches: u8| EscrowTerms {
            id: EscrowId([1; 16]),
            kind,
            payer: RootKey::from_seed([1; 32]).node_id(),
            payee: RootKey::from_seed([2; 32]).node_id(),
            locks: (0..tranches).map(|n| HashLock::from_bytes([n; 32])).collect(),
            unit: Msat(1),
            delta: 144,
            subject: Hash::of(b"work"),
            at_ms: 1,
        };
        let earned = |kind, finding, said| {
            let tranches = if kind == Tranches { 3 } else { 1 };
            earned_by(&terms(kind, tranches), finding, said).ok()
        };
        for (kind, finding, units) in [(Bond, Abuse, 1), (Bond, Accepted, 0), (Bond, Missed, 0), (Reward, Accepted, 1)]
            .into_iter()
            .chain([(Reward, Missed, 0), (Reward, Abuse, 0), (Tranches, Missed, 0), (Tranches, Abuse, 0)])
        {
            assert_eq!([earned(kind, finding, None), earned(kind, finding, Some(units))], [Some(units); 2]);
            assert_eq!(earned(kind, finding, Some(1 - units)), None, "{kind:?} {finding:?}");
        }
        let tranches = [None, Some(0), Some(8), Some(5)].map(|said| earned(Tranches, Accepted, said));
        assert_eq!(tranches, [None, None, None, Some(5)]);
    }
}
