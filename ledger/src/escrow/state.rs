//! One party's side of an escrow: the sum of its events.

use std::collections::BTreeSet;

use consortium_protocol::wire::escrow::{EscrowKind, EscrowTerms, EscrowVerdict};
use consortium_protocol::{Msat, NodeId, Signed};
use serde::{Deserialize, Serialize};

use super::event::Event;
use super::machine::SLACK;

/// Blocks of a delta that Lightning keeps for closing a channel, as the wallet's holds have it.
pub(super) const LIGHTNINGS: u16 = 39;

/// Who a party is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Pays for work.
    Sponsor,
    /// Works: is paid, or pledges a bond.
    Worker,
    /// Judges, and has the preimages; the payee of a bond.
    Validator,
}

impl Role {
    /// The role of a node under terms; none if it has no part.
    #[must_use]
    pub fn of(terms: &Signed<EscrowTerms>, node: NodeId) -> Option<Self> {
        let about = terms.payload();
        match about.kind {
            _ if node == terms.signer() => Some(Self::Validator),
            EscrowKind::Bond if node == about.payer => Some(Self::Worker),
            EscrowKind::Reward | EscrowKind::Tranches if node == about.payer => Some(Self::Sponsor),
            EscrowKind::Reward | EscrowKind::Tranches if node == about.payee => Some(Self::Worker),
            _ => None,
        }
    }
}

/// How a tranche is doing, as this party sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Nothing is locked.
    Created,
    /// It is locked.
    Held {
        /// The height at which it goes back.
        deadline: u32,
    },
    /// It is being taken.
    Settling {
        /// The height at which it goes back, if it is not taken before.
        deadline: u32,
    },
    /// It is paid. Nothing follows.
    Settled,
    /// It is being sent back.
    Cancelling,
    /// It is back with its payer, or was never locked.
    Cancelled,
    /// Its time was over: it went back, or goes back, without anyone's doing. Only a payment that arrived all the same
    /// follows.
    Expired,
}

impl State {
    /// Whether it is over.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Settled | Self::Cancelled | Self::Expired)
    }

    fn after(self, event: &Event) -> Self {
        match (self, event) {
            (Self::Created, Event::Sent { deadline, .. } | Event::Held { deadline, .. }) => {
                Self::Held { deadline: *deadline }
            }
            (Self::Held { deadline }, Event::Settling { .. }) => Self::Settling { deadline },
            (Self::Created | Self::Held { .. }, Event::Cancelling { .. }) => Self::Cancelling,
            // What arrived has arrived, whatever was thought before.
            (_, Event::Settled { .. }) => Self::Settled,
            (state, Event::Cancelled { .. }) if !state.is_final() => Self::Cancelled,
            (state, Event::Expired { .. }) if !state.is_final() => Self::Expired,
            (state, _) => state,
        }
    }
}

/// A tranche.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tranche {
    /// How it is doing.
    pub state: State,
    /// How much it is.
    pub amount: Msat,
    /// Its hold invoice, once there is one.
    pub invoice: Option<String>,
    /// Its preimage, sealed, once it has come.
    pub sealed: Option<[u8; 32]>,
}

/// One party's side of an escrow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Escrow {
    pub(super) terms: Signed<EscrowTerms>,
    pub(super) role: Role,
    pub(super) opened: u32,
    pub(super) tranches: Vec<Tranche>,
    pub(super) verdict: Option<Signed<EscrowVerdict>>,
    pub(super) heard: BTreeSet<NodeId>,
    pub(super) given_up: bool,
}

impl Escrow {
    /// At its beginning. None if the node has no part in it, or the amounts make no sense.
    #[must_use]
    pub fn new(terms: Signed<EscrowTerms>, me: NodeId, height: u32) -> Option<Self> {
        let role = Role::of(&terms, me)?;
        let tranches = (0..terms.payload().locks.len()).map(|tranche| {
            let amount = terms.payload().amount(tranche)?;
            Some(Tranche { state: State::Created, amount, invoice: None, sealed: None })
        });
        let tranches = tranches.collect::<Option<_>>()?;
        Some(Self { terms, role, opened: height, tranches, verdict: None, heard: BTreeSet::new(), given_up: false })
    }

    /// The sum of its events, of which the first must be [`Event::Opened`].
    pub fn replay(me: NodeId, events: impl IntoIterator<Item = Event>) -> Option<Self> {
        let mut events = events.into_iter();
        let Some(Event::Opened { terms, height }) = events.next() else { return None };
        let mut escrow = Self::new(terms, me, height)?;
        events.for_each(|event| escrow.apply(&event));
        Some(escrow)
    }

    /// Adds an event.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Invoiced { tranche, invoice } => {
                if let Some(tranche) = self.tranches.get_mut(usize::from(*tranche)) {
                    tranche.invoice.get_or_insert_with(|| invoice.clone());
                }
            }
            Event::Unlocked { tranche, sealed } => {
                if let Some(tranche) = self.tranches.get_mut(usize::from(*tranche)) {
                    tranche.sealed.get_or_insert(*sealed);
                }
            }
            Event::Ready { deadline } => {
                for tranche in self.tranches.iter_mut().filter(|tranche| tranche.state == State::Created) {
                    tranche.state = State::Held { deadline: *deadline };
                }
            }
            Event::Judged(verdict) => {
                self.verdict.get_or_insert_with(|| verdict.clone());
            }
            Event::Heard { by } => {
                self.heard.insert(*by);
            }
            Event::GivenUp => self.given_up = true,
            Event::Opened { .. } => {}
            Event::Sent { tranche, .. }
            | Event::Held { tranche, .. }
            | Event::Settling { tranche }
            | Event::Settled { tranche }
            | Event::Cancelling { tranche }
            | Event::Cancelled { tranche }
            | Event::Expired { tranche } => {
                if let Some(tranche) = self.tranches.get_mut(usize::from(*tranche)) {
                    tranche.state = tranche.state.after(event);
                }
            }
        }
    }

    /// The terms.
    #[must_use]
    pub fn terms(&self) -> &Signed<EscrowTerms> {
        &self.terms
    }

    /// Who this party is.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// The tranches, the smallest first.
    #[must_use]
    pub fn tranches(&self) -> &[Tranche] {
        &self.tranches
    }

    /// The verdict, once it is known.
    #[must_use]
    pub fn verdict(&self) -> Option<&Signed<EscrowVerdict>> {
        self.verdict.as_ref()
    }

    /// The height of the chain at which this party agreed.
    #[must_use]
    pub fn opened(&self) -> u32 {
        self.opened
    }

    /// Whether its payer has given up to lock all of it, as far as this party has heard.
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        self.given_up
    }

    /// Whether this party's money is locked.
    #[must_use]
    pub fn pays(&self) -> bool {
        self.role == Role::Sponsor || (self.role == Role::Worker && self.is_bond())
    }

    /// Whether this party gets what is earned.
    #[must_use]
    pub fn is_paid(&self) -> bool {
        !self.pays() && (self.role == Role::Worker || self.is_bond())
    }

    /// Whether every tranche is over.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.tranches.iter().all(|tranche| tranche.state.is_final())
    }

    /// Tranches that were paid although no verdict gives them: for the payer, a reason to ask the validator for one, and
    /// with a verdict, proof ([`consortium_protocol::wire::escrow::Misconduct`]).
    pub fn unexplained(&self) -> impl Iterator<Item = u8> + '_ {
        self.states().filter(|(tranche, state)| *state == State::Settled && !self.gives(*tranche)).map(|(n, _)| n)
    }

    /// Whether its payer may send again what found no way: nothing else is locked meanwhile, nobody judged, and the payee
    /// would still have time.
    #[cfg_attr(not(feature = "lightning"), allow(dead_code))]
    pub(super) fn may_send_again(&self, height: u32) -> bool {
        let over = self.opened.saturating_add(u32::from(self.terms.payload().delta));
        self.pays() && self.tranches.len() == 1 && self.verdict.is_none() && !self.given_up && height < over
    }

    /// Tranches that are still to be paid.
    pub(super) fn payable(&self) -> impl Iterator<Item = u8> + '_ {
        let stopped = !self.pays() || self.verdict.is_some() || self.given_up;
        let open = self.states().zip(&self.tranches).filter(move |_| !stopped);
        open.filter(|((_, state), about)| *state == State::Created && about.invoice.is_some()).map(|((n, _), _)| n)
    }

    /// Whether a tranche that was sent, and is in no channel, is not to be sent again.
    #[cfg_attr(not(feature = "lightning"), allow(dead_code))]
    pub(super) fn is_past_sending(&self, tranche: u8, height: u32) -> bool {
        let over = match self.tranches.get(usize::from(tranche)).map(|tranche| tranche.state) {
            Some(State::Held { deadline }) => height >= deadline,
            _ => true,
        };
        over || self.verdict.is_some() || self.given_up
    }

    /// Whether a payment that arrives at a height goes back sooner than was agreed on. Lightning keeps 39 blocks of the
    /// delta; whoever pays may leave out more.
    pub(super) fn is_short(&self, deadline: u32, height: u32) -> bool {
        let agreed = u32::from(self.terms.payload().delta.saturating_sub(LIGHTNINGS));
        deadline.saturating_add(SLACK) < height.saturating_add(agreed)
    }

    /// Whether all that a verdict asks of this party is there: whoever is paid needs the preimage of each tranche that the
    /// verdict gives, unless that is over. The validator stops telling who says that it has heard.
    pub(super) fn has_heard(&self) -> bool {
        let has = |tranche: &Tranche| tranche.sealed.is_some() || tranche.state.is_final();
        let mut given = (0..=u8::MAX).zip(&self.tranches).filter(|(tranche, _)| self.gives(*tranche));
        self.verdict.is_some() && (!self.is_paid() || given.all(|(_, tranche)| has(tranche)))
    }

    pub(super) fn is_bond(&self) -> bool {
        self.terms.payload().kind == EscrowKind::Bond
    }

    pub(super) fn gives(&self, tranche: u8) -> bool {
        self.verdict.as_ref().is_some_and(|verdict| verdict.payload().gives(usize::from(tranche)))
    }

    /// Every tranche's number and state.
    pub(super) fn states(&self) -> impl Iterator<Item = (u8, State)> + '_ {
        (0..=u8::MAX).zip(self.tranches.iter().map(|tranche| tranche.state))
    }
}
