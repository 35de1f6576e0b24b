//! What goes into a turn of the machine, and what comes out of it.

use consortium_protocol::wire::escrow::EscrowVerdict;
use consortium_protocol::{Invalid, NodeId, Signed};

use super::event::Event;
use super::state::Escrow;

/// What a party hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Time has passed, or the program has started.
    Tick,
    /// The wallet made a tranche's invoice.
    Invoice {
        /// Which tranche.
        tranche: u8,
        /// The invoice.
        invoice: String,
    },
    /// The payee's invoices, one for each tranche. They were checked against the terms.
    Invoices {
        /// Who says so.
        from: NodeId,
        /// The invoices.
        invoices: Vec<String>,
    },
    /// The wallet has sent a tranche's payment.
    Sent {
        /// Which tranche.
        tranche: u8,
        /// The height from which on the payee's node sends it back by itself.
        deadline: u32,
    },
    /// The wallet holds a tranche's payment.
    Held {
        /// Which tranche.
        tranche: u8,
        /// The height at which it goes back.
        deadline: u32,
    },
    /// A tranche's payment is settled, say the payer's or the payee's wallet.
    Arrived {
        /// Which tranche.
        tranche: u8,
    },
    /// A tranche's payment failed, says the payer's wallet, and its money is back.
    Failed {
        /// Which tranche.
        tranche: u8,
    },
    /// A tranche that was cancelled is not in the payee's channels any more.
    Gone {
        /// Which tranche.
        tranche: u8,
    },
    /// A tranche went back at its deadline, says the payee's wallet.
    Over {
        /// Which tranche.
        tranche: u8,
    },
    /// The payee tells the validator that all of it is held.
    Ready {
        /// Who says so.
        from: NodeId,
        /// The first height at which some of it goes back.
        deadline: u32,
    },
    /// The verdict, made here or received. With it, preimages, sealed.
    Verdict {
        /// The verdict.
        verdict: Signed<EscrowVerdict>,
        /// Sealed preimages and their tranches.
        sealed: Vec<(u8, [u8; 32])>,
    },
    /// A party has kept the verdict.
    Heard {
        /// Who.
        from: NodeId,
    },
    /// The payer could not lock all of it, says the payer to the payee, and the payee to the validator.
    GivenUp {
        /// Who says so.
        from: NodeId,
    },
    /// The payer's wallet finds a payment in a channel that is not with its payee.
    Astray,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Have the wallet make a tranche's hold invoice, and hear [`Input::Invoice`].
    MakeInvoice {
        /// Which tranche.
        tranche: u8,
    },
    /// Have the wallet pay a tranche's invoice, and hear [`Input::Sent`] or [`Input::Failed`].
    Pay {
        /// Which tranche.
        tranche: u8,
    },
    /// Have the wallet take a tranche.
    Settle {
        /// Which tranche.
        tranche: u8,
    },
    /// Have the wallet send a tranche back, and hear [`Input::Gone`] when its channels have it no more.
    Cancel {
        /// Which tranche.
        tranche: u8,
    },
    /// Tell another party something.
    Tell {
        /// Whom.
        to: NodeId,
        /// What.
        word: Word,
    },
}

/// What is told: the message of that name in [`consortium_protocol::wire::escrow::EscrowMessage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// The terms.
    Terms,
    /// The invoices.
    Invoices,
    /// That all of it is held.
    Held {
        /// The first height at which some of it goes back.
        deadline: u32,
    },
    /// The verdict.
    Verdict,
    /// The verdict and the preimages of what was earned.
    Release,
    /// That the verdict is kept.
    Heard,
    /// That the payer could not lock all of it.
    GivenUp,
}

/// Why something heard is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// It is for another party to say or to hear.
    #[error("that is not for this party to say or to hear")]
    NotTheirs,
    /// The verdict does not fit.
    #[error("the verdict does not fit the terms: {0}")]
    Verdict(#[from] Invalid),
    /// Another verdict is known already.
    #[error("another verdict was given already; there is one for each escrow")]
    SecondVerdict,
    /// Not everything is locked.
    #[error("not all of the escrow is locked: there is nothing to judge yet")]
    NotHeld,
    /// The deadline is too close.
    #[error("the escrow can be judged up to block {last}, and the chain is at {height}")]
    TooLate {
        /// The last block at which a verdict can still be carried out.
        last: u32,
        /// The height of the chain.
        height: u32,
    },
    /// Not as many invoices as tranches.
    #[error("not as many invoices as tranches")]
    Count,
}

/// What follows from an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// To be written down, together.
    pub events: Vec<Event>,
    /// To be done after that, in this order.
    pub actions: Vec<Action>,
    /// The escrow after the events.
    pub next: Escrow,
}
