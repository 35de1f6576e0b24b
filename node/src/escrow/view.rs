//! Escrows as the RPC tells of them.

use consortium_ledger::escrow::limits::DUST;
use consortium_ledger::escrow::state::Tranche;
use consortium_ledger::escrow::{Escrow, Role, State};
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::escrow::{EscrowId, EscrowTerms};
use serde::{Deserialize, Serialize};

use super::names::{Finding, Kind};
use super::{DeskError, EscrowDesk, Waiting, lock};
use crate::clock::wall_ms;

/// Most escrows on a page.
pub const MAX_PAGE: u32 = 200;

/// Escrows of a node, the newest first, and offers that wait for its word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EscrowsView {
    /// The height of the chain.
    pub height: u32,
    /// Offers of validators to which this node has not agreed.
    pub offers: Vec<OfferView>,
    /// Escrows that this node takes part in.
    pub escrows: Vec<EscrowView>,
    /// Where the next page begins; none after the last.
    pub next: Option<u64>,
}

/// What a validator signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermsView {
    /// The name.
    pub escrow: EscrowId,
    /// What for.
    pub kind: Kind,
    /// Whose money is locked.
    pub payer: NodeId,
    /// Who gets what is earned.
    pub payee: NodeId,
    /// Who judges.
    pub validator: NodeId,
    /// The first tranche, in msat.
    pub unit: Msat,
    /// How many units there are; each tranche has twice as many as the one before.
    pub units: u64,
    /// All of it, in msat.
    pub total: Msat,
    /// Blocks that it may be locked for.
    pub delta: u16,
    /// Digest of what is judged, and by what rules.
    pub subject: Hash,
    /// When it was offered, in milliseconds since 1970.
    pub at_ms: u64,
    /// Digest of the signed terms.
    pub terms: Hash,
    /// Whether a tranche is so small that it cannot be enforced on-chain.
    pub dust: bool,
}

/// An offer that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferView {
    /// What is offered.
    #[serde(flatten)]
    pub terms: TermsView,
    /// Who this node would be.
    pub role: Option<Role>,
    /// When it came, in milliseconds since 1970.
    pub came_ms: u64,
}

/// How a tranche is doing, as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrancheView {
    /// How much it is, in msat.
    pub amount: Msat,
    /// How it is doing.
    pub state: Phase,
    /// The height at which it goes back, while it is locked.
    pub deadline: Option<u32>,
}

/// How a tranche, or all of an escrow, is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Nothing is locked yet.
    Created,
    /// Locked.
    Held,
    /// Being taken.
    Settling,
    /// Being sent back.
    Cancelling,
    /// Over, and paid; of tranches: some of it.
    Settled,
    /// Over, and back with its payer.
    Cancelled,
    /// Over: its time ran out.
    Expired,
}

/// The verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictView {
    /// What was found.
    pub finding: Finding,
    /// Units earned.
    pub earned: u32,
    /// Digest of the evidence.
    pub evidence: Hash,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The verdict as signed, in hexadecimal digits.
    pub signed: String,
}

/// What last went wrong with another party.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TroubleView {
    /// With whom.
    pub with: NodeId,
    /// What.
    pub why: String,
}

/// An escrow, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EscrowView {
    /// What was agreed to.
    #[serde(flatten)]
    pub terms: TermsView,
    /// Who this node is.
    pub role: Role,
    /// How all of it is doing.
    pub state: Phase,
    /// Whether it is over.
    pub over: bool,
    /// While something is locked: the first height at which some of it goes back.
    pub deadline: Option<u32>,
    /// The height at which this node agreed.
    pub opened: u32,
    /// Whether the payer has given up to lock all of it.
    pub given_up: bool,
    /// What was paid, in msat.
    pub paid: Msat,
    /// The tranches, the smallest first.
    pub tranches: Vec<TrancheView>,
    /// The verdict, once it is known here.
    pub verdict: Option<VerdictView>,
    /// What last went wrong.
    pub trouble: Vec<TroubleView>,
}

/// One escrow with what happened in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OneView {
    /// The height of the chain.
    pub height: u32,
    /// The escrow.
    #[serde(flatten)]
    pub escrow: EscrowView,
    /// What happened, by the names of the log.
    pub events: Vec<EventView>,
    /// The terms as signed, in hexadecimal digits.
    pub signed: String,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// What.
    pub event: String,
}

impl From<State> for Phase {
    fn from(state: State) -> Self {
        match state {
            State::Created => Self::Created,
            State::Held { .. } => Self::Held,
            State::Settling { .. } => Self::Settling,
            State::Settled => Self::Settled,
            State::Cancelling => Self::Cancelling,
            State::Cancelled => Self::Cancelled,
            State::Expired => Self::Expired,
        }
    }
}

impl Phase {
    /// The phase of all tranches together: what is still to happen first, then how it ended.
    fn of(tranches: &[Tranche]) -> Self {
        let has = |phase: Self| tranches.iter().any(|tranche| Self::from(tranche.state) == phase);
        let order = [
            Self::Settling,
            Self::Cancelling,
            Self::Created,
            Self::Held,
            Self::Settled,
            Self::Expired,
            Self::Cancelled,
        ];
        order.into_iter().find(|phase| has(*phase)).unwrap_or(Self::Cancelled)
    }
}

fn deadline(state: State) -> Option<u32> {
    match state {
        State::Held { deadline } | State::Settling { deadline } => Some(deadline),
        _ => None,
    }
}

impl From<&Signed<EscrowTerms>> for TermsView {
    fn from(signed: &Signed<EscrowTerms>) -> Self {
        let terms = signed.payload();
        Self {
            escrow: terms.id,
            kind: terms.kind.into(),
            payer: terms.payer,
            payee: terms.payee,
            validator: signed.signer(),
            unit: terms.unit,
            units: terms.units(),
            total: terms.total().unwrap_or_default(),
            delta: terms.delta,
            subject: terms.subject,
            at_ms: terms.at_ms,
            terms: signed.digest(),
            dust: terms.unit <= DUST,
        }
    }
}

impl EscrowDesk {
    /// Escrows from the place `after` of the page before on, and all offers that wait.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn view(&self, after: Option<u64>, limit: u32) -> Result<EscrowsView, DeskError> {
        let found = self.inner.escrows.newest(after, limit).await?;
        let full = u32::try_from(found.len()).is_ok_and(|count| count >= limit);
        let next = found.last().map(|(place, _)| *place).filter(|_| full);
        let escrows = found.iter().map(|(_, escrow)| self.shown(escrow)).collect();
        let waiting = lock(&self.inner.offers).waiting(wall_ms());
        let offers = waiting.iter().map(|waiting| self.offer_shown(waiting)).collect();
        Ok(EscrowsView { height: self.inner.escrows.height(), offers, escrows, next })
    }

    /// One escrow.
    ///
    /// # Errors
    /// When there is none, or the log cannot be read.
    pub async fn one(&self, id: EscrowId) -> Result<OneView, DeskError> {
        let escrow = self.inner.escrows.escrow(id).await?;
        let history = self.inner.escrows.history(id).await?;
        Ok(OneView {
            height: self.inner.escrows.height(),
            escrow: self.shown(&escrow),
            events: history.into_iter().map(|(at_ms, event)| EventView { at_ms, event }).collect(),
            signed: hex::encode(escrow.terms().as_bytes()),
        })
    }

    fn offer_shown(&self, waiting: &Waiting) -> OfferView {
        let role = Role::of(&waiting.terms, self.inner.me);
        OfferView { terms: (&waiting.terms).into(), role, came_ms: waiting.came_ms }
    }

    fn shown(&self, escrow: &Escrow) -> EscrowView {
        let terms = TermsView::from(escrow.terms());
        let tranches = escrow.tranches();
        let paid = tranches.iter().filter(|tranche| tranche.state == State::Settled).map(|tranche| tranche.amount);
        let verdict = escrow.verdict().map(|signed| VerdictView {
            finding: signed.payload().finding.into(),
            earned: signed.payload().earned,
            evidence: signed.payload().evidence,
            at_ms: signed.payload().at_ms,
            signed: hex::encode(signed.as_bytes()),
        });
        let trouble = lock(&self.inner.trouble)
            .iter()
            .filter(|((about, _), _)| *about == terms.terms && !escrow.is_final())
            .map(|((_, with), why)| TroubleView { with: *with, why: why.clone() })
            .collect();
        EscrowView {
            role: escrow.role(),
            state: Phase::of(tranches),
            over: escrow.is_final(),
            deadline: tranches.iter().filter_map(|tranche| deadline(tranche.state)).min(),
            opened: escrow.opened(),
            given_up: escrow.is_given_up(),
            paid: Msat::sum(paid).unwrap_or_default(),
            tranches: tranches
                .iter()
                .map(|tranche| TrancheView {
                    amount: tranche.amount,
                    state: tranche.state.into(),
                    deadline: deadline(tranche.state),
                })
                .collect(),
            verdict,
            trouble,
            terms,
        }
    }
}
