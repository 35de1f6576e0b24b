//! One task for each run that wants bonds: reads the log, holds bonds, pledges this node's own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use consortium_ledger::escrow::driver::Offer;
use consortium_ledger::escrow::limits::Consent;
use consortium_ledger::escrow::{Escrow, Role};
use consortium_protocol::wire::escrow::{EscrowFinding, EscrowId, EscrowKind};
use consortium_protocol::wire::train::{Pledged, RunId, RunSpec, TrainAnswer, TrainRequest, pledge_subject};
use consortium_protocol::{Hash, Msat, NodeId, RootKey, Signed};
use consortium_training::rounds::bond::{Pledges, is_usable};
use consortium_training::rounds::{Wish, genesis};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::MOST_OPEN;
use super::desk::Shared;
use super::holder::{Bond, Known, Now, Step, would_hold};
use super::pledge::{Own, Search, is_forfeited, may_expect, view};
use crate::clock::wall_ms;
use crate::escrow::{DeskError, EscrowDesk, Expectation};
use crate::swarm::SwarmHandle;
use crate::train::RunHandle;
use crate::train::log::Tail;
use crate::train::net::ask;
use crate::train::store::{Store, StoreError};
use crate::train::view::RunStatus;

/// Pause between two looks while something is under way.
const LOOK: Duration = Duration::from_secs(1);
/// Time in which a validator that is asked gives its word: less than a round takes.
const MOMENT: Duration = Duration::from_millis(150);
/// A bond whose peer was heard of in this time is not given back, if it can still be of use.
const LATELY: Duration = Duration::from_secs(10);
/// Longest pause before the run begins.
const LONG_LOOK: Duration = Duration::from_secs(3600);
/// An offer that was asked for is agreed to for so long, in milliseconds.
const EXPECTED: u64 = 60 * 1000;

/// What the task of a run needs.
pub(super) struct Parts {
    pub(super) desk: EscrowDesk,
    pub(super) key: Arc<RootKey>,
    pub(super) swarm: SwarmHandle,
    pub(super) spec: Signed<RunSpec>,
    pub(super) directory: PathBuf,
    /// None if this node takes no part in the run any more.
    pub(super) handle: Option<RunHandle>,
    pub(super) shared: Shared,
}

/// Looks after the bonds of one run.
pub(super) struct Follower {
    parts: Parts,
    run: RunId,
    me: NodeId,
    /// None while it is being read.
    log: Option<(Tail, Known)>,
    /// In which round each bond that is held was last spoken for, or first seen.
    said: BTreeMap<EscrowId, u64>,
    /// When the peer of each was last heard of, or it was first seen locked.
    heard: BTreeMap<EscrowId, (Instant, bool)>,
    search: Search,
    /// What this node expects to be offered: by whom, and until when.
    expects: Option<(NodeId, u64)>,
    why: Option<String>,
    stop: CancellationToken,
}

impl Follower {
    /// Of a run, until `stop`.
    pub(super) fn new(parts: Parts, stop: CancellationToken) -> Self {
        let known = Known { last: genesis(&parts.spec), pledges: Pledges::default(), forfeited: BTreeMap::new() };
        Self {
            run: RunId::of(&parts.spec),
            me: parts.key.node_id(),
            log: Some((Tail::of(&parts.directory), known)),
            said: BTreeMap::new(),
            heard: BTreeMap::new(),
            search: Search::default(),
            expects: None,
            why: None,
            stop,
            parts,
        }
    }

    /// Works until it is stopped, or until nothing is left to be done.
    pub(super) async fn work(mut self) {
        let mut news = self.parts.handle.as_ref().map(RunHandle::watch);
        loop {
            if !self.read().await {
                return;
            }
            let busy = self.look(news.as_ref()).await;
            if news.is_none() && !busy {
                return;
            }
            let pause = if busy { LOOK } else { self.until_the_start().min(LONG_LOOK) };
            let round = self.log.as_ref().map_or(0, |(_, known)| known.last.round);
            tokio::select! {
                () = self.stop.cancelled() => return,
                goes_on = later(&mut news, round) => if !goes_on {
                    news = None;
                    if !self.has_left() {
                        return;
                    }
                },
                () = self.parts.shared.is_asked() => {}
                () = tokio::time::sleep(pause), if !pause.is_zero() => {}
            }
        }
    }

    fn until_the_start(&self) -> Duration {
        Duration::from_millis(self.parts.spec.payload().starts_at_ms.saturating_sub(wall_ms()))
    }

    /// Whether this node has left the run, and is not only stopping.
    fn has_left(&mut self) -> bool {
        self.parts.handle = None;
        matches!(Store::wish(&self.parts.directory), Ok(None))
    }

    /// Reads what has come to the log; false if that can never go on.
    async fn read(&mut self) -> bool {
        let Some((mut log, mut known)) = self.log.take() else { return false };
        let me = self.me;
        let reading = tokio::task::spawn_blocking(move || {
            let read = log.read(|entry| {
                known.add(me, entry);
                Ok::<_, StoreError>(())
            });
            (log, known, read)
        });
        let Ok((log, known, read)) = reading.await else { return false };
        if let Err(error) = read {
            warn!(run = %self.run, %error, "bonds of a run wait");
        }
        self.log = Some((log, known));
        true
    }

    /// Does what is to be done now; whether something is under way.
    async fn look(&mut self, news: Option<&watch::Receiver<RunStatus>>) -> bool {
        let Some((log, known)) = self.log.take() else { return false };
        let holds = self.hold(&known).await;
        let wish = news.and_then(|news| news.borrow().summary.wish);
        let pledges = match self.pledge(&known, wish).await {
            Ok(pledges) => pledges,
            Err(error) => {
                self.why = Some(error.to_string());
                true
            }
        };
        self.log = Some((log, known));
        holds || pledges
    }

    /// Does what a validator does; whether it has bonds open.
    async fn hold(&mut self, known: &Known) -> bool {
        let escrows = self.parts.desk.unfinished().await;
        let open: Vec<Bond> = escrows.iter().filter(|escrow| self.is_held_here(escrow)).map(Bond::of).collect();
        self.said.retain(|id, _| open.iter().any(|bond| bond.id == *id));
        self.heard.retain(|id, _| open.iter().any(|bond| bond.id == *id));
        let asked = {
            let mut told = self.parts.shared.told();
            let judges = known.last.validator(self.me).is_some() && !known.last.ended;
            told.holds = self.parts.handle.is_some() && judges && self.until_the_start().is_zero();
            told.words.retain(|_, word| is_usable(word.payload().round, known.round()));
            std::mem::take(&mut told.asked)
        };
        for bond in &open {
            self.decide(known, *bond, asked.contains(&bond.peer)).await;
        }
        self.offer(known, &open, asked).await;
        !open.is_empty()
    }

    /// Whether it is a bond of this run that this node holds, or would hold.
    fn is_held_here(&self, escrow: &Escrow) -> bool {
        let terms = escrow.terms();
        let about = terms.payload();
        (terms.signer(), about.kind) == (self.me, EscrowKind::Bond)
            && about.subject == pledge_subject(self.run, about.payer)
    }

    async fn decide(&mut self, known: &Known, bond: Bond, asks: bool) {
        let round = known.round();
        let said_in = *self.said.entry(bond.id).or_insert(round);
        let lately = self.is_heard_lately(&bond, asks || bond.stands(known));
        let now = Now { lately, height: self.parts.desk.height(), asks, said_in, here: self.parts.handle.is_some() };
        let judged = match bond.step(known, self.parts.spec.payload(), self.me, now) {
            Step::Wait => return,
            Step::Say => {
                self.said.insert(bond.id, round);
                let word = Pledged { run: self.run, round, peer: bond.peer, escrow: bond.id };
                let word = Signed::sign(&self.parts.key, word);
                self.parts.shared.told().words.insert(bond.peer, word);
                return;
            }
            Step::GiveBack => self.judge(bond, EscrowFinding::Accepted, known.last.id()).await,
            Step::Take(record) => self.judge(bond, EscrowFinding::Abuse, record).await,
        };
        if let Err(error) = judged {
            warn!(run = %self.run, peer = %bond.peer, %error, "a bond cannot be decided on");
        }
    }

    /// Whether the peer of a bond is there, or was a short time ago: it asked for it, locked it, or took part with it.
    fn is_heard_lately(&mut self, bond: &Bond, is_there: bool) -> bool {
        let (at, locked) = self.heard.entry(bond.id).or_insert((Instant::now(), false));
        if is_there || (bond.is_locked() && !*locked) {
            (*at, *locked) = (Instant::now(), bond.is_locked());
        }
        at.elapsed() < LATELY
    }

    async fn judge(&self, bond: Bond, finding: EscrowFinding, record: Hash) -> Result<(), DeskError> {
        // First of all nobody is told any more that it is held.
        self.parts.shared.told().words.remove(&bond.peer);
        self.parts.desk.judge(bond.id, finding, None, record).await?;
        info!(run = %self.run, peer = %bond.peer, ?finding, "decided on a bond of a training run");
        Ok(())
    }

    /// Offers to hold the bonds of those that asked, and have none here.
    async fn offer(&self, known: &Known, open: &[Bond], asked: BTreeSet<NodeId>) {
        let spec = self.parts.spec.payload();
        let Some(delta) = spec.bond_delta().filter(|_| self.parts.shared.told().holds) else { return };
        let room = MOST_OPEN.saturating_sub(open.len());
        let new = asked.into_iter().filter(|peer| open.iter().all(|bond| bond.peer != *peer));
        for peer in new.filter(|peer| would_hold(known, spec, self.me, *peer)).take(room) {
            let offer = Offer {
                kind: EscrowKind::Bond,
                payer: peer,
                payee: self.me,
                tranches: 1,
                unit: spec.pay.bond,
                delta,
                subject: pledge_subject(self.run, peer),
            };
            if let Err(error) = self.parts.desk.offer(offer, Consent::default()).await {
                warn!(run = %self.run, %peer, %error, "a bond cannot be held");
            }
        }
    }

    /// Does what a peer does; whether something is under way.
    async fn pledge(&mut self, known: &Known, wish: Option<Wish>) -> Result<bool, DeskError> {
        let subject = pledge_subject(self.run, self.me);
        let escrows = self.parts.desk.about(subject).await?;
        let own: Vec<Own> = escrows.iter().filter(|escrow| escrow.role() == Role::Worker).map(Own::of).collect();
        let wanted = self.wants(known, wish) && !is_forfeited(&own);
        if wanted {
            self.seek(known, subject, &own).await?;
        } else {
            self.expect_no_more(subject).await;
            self.parts.desk.decline_about(subject);
            self.why = None;
        }
        let amount = self.parts.spec.payload().pay.bond;
        let view = view(&own, wanted.then_some(amount), self.why.as_deref());
        let open = escrows.iter().any(|escrow| !escrow.is_final());
        self.parts.shared.told().view = view;
        Ok(wanted || open)
    }

    /// Whether this node would join the run, and has not.
    fn wants(&self, known: &Known, wish: Option<Wish>) -> bool {
        let last = &known.last;
        let active = last.member(self.me).is_some_and(|member| member.active);
        let begun = self.until_the_start().is_zero();
        wish == Some(Wish::Train) && begun && !last.ended && !active && last.validator(self.me).is_none()
    }

    /// Asks a validator to hold this node's bond, and joins with its word.
    async fn seek(&mut self, known: &Known, subject: Hash, own: &[Own]) -> Result<(), DeskError> {
        let validators: Vec<NodeId> = known.last.validators.iter().map(|validator| validator.id).collect();
        let now_ms = wall_ms();
        let Some(validator) = self.search.next(&validators, self.me, own, now_ms) else {
            self.why = Some("a bond could not be locked: see `consortium-node escrow list`".to_owned());
            return Ok(());
        };
        self.expect(validator, subject, own, now_ms).await?;
        let asking = self.ask(validator, own.iter().any(|bond| bond.is_locked_with(validator)));
        let answer = tokio::select! {
            () = self.stop.cancelled() => return Ok(()),
            answer = asking => answer,
        };
        match answer {
            Some(TrainAnswer::Pledged(word)) if self.is_mine(&word, validator) => {
                self.search.heard(validator, wall_ms());
                self.why = None;
                if let Some(handle) = &self.parts.handle {
                    handle.pledged(word).await;
                }
            }
            Some(TrainAnswer::Taken) => self.why = None,
            answer => {
                let said = if answer.is_some() { "does not take a bond now" } else { "cannot be reached" };
                self.why = Some(format!("validator {} {said}", validator.short()));
                self.search.refused(own);
            }
        }
        Ok(())
    }

    /// Asks a validator; of one that holds the bond the word is had a moment after it was asked for.
    async fn ask(&self, validator: NodeId, holds: bool) -> Option<TrainAnswer> {
        let request = TrainRequest::Pledge(self.run);
        let answer = ask(&self.parts.swarm, validator, &request).await?;
        if !holds {
            return Some(answer);
        }
        tokio::time::sleep(MOMENT).await;
        ask(&self.parts.swarm, validator, &request).await
    }

    fn is_mine(&self, word: &Signed<Pledged>, validator: NodeId) -> bool {
        let said = word.payload();
        (word.signer(), said.run, said.peer) == (validator, self.run, self.me)
    }

    /// States that an offer of this validator is agreed to, and of no other.
    async fn expect(&mut self, validator: NodeId, subject: Hash, own: &[Own], now_ms: u64) -> Result<(), DeskError> {
        // What was stated is used up by an offer that was agreed to.
        let may = may_expect(own, validator);
        if may && self.expects.is_some_and(|(by, until_ms)| by == validator && now_ms < until_ms) {
            return Ok(());
        }
        self.expect_no_more(subject).await;
        let spec = self.parts.spec.payload();
        let Some(longest) = spec.bond_delta().filter(|_| may) else { return Ok(()) };
        let (amount, until_ms): (Msat, u64) = (spec.pay.bond, now_ms.saturating_add(EXPECTED));
        let expectation = Expectation {
            validator,
            subject,
            kind: EscrowKind::Bond,
            payer: Some(self.me),
            payee: Some(validator),
            least: amount,
            most: amount,
            longest,
            consent: Consent::default(),
            until_ms,
        };
        self.expects = Some((validator, until_ms));
        self.parts.desk.expect(expectation).await?;
        Ok(())
    }

    async fn expect_no_more(&mut self, subject: Hash) {
        if self.expects.take().is_some() {
            self.parts.desk.expect_no_more(subject).await;
        }
    }
}

/// Waits for a record after that of `round`; false once there will be none.
async fn later(news: &mut Option<watch::Receiver<RunStatus>>, round: u64) -> bool {
    match news {
        Some(news) => news.wait_for(|status| status.summary.round > round).await.is_ok(),
        None => std::future::pending().await,
    }
}
