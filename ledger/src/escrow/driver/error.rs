//! Why something about an escrow failed.

use consortium_protocol::wire::escrow::EscrowId;
use consortium_protocol::{Invalid, Msat};

use crate::escrow::limits::TermsError;
use crate::escrow::log::LogError;
use crate::escrow::machine::Refused;
use crate::ledger::LedgerError;
use crate::lightning::WalletError;
use crate::lightning::error::sats;

/// A failed operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EscrowError {
    /// The wallet failed.
    #[error(transparent)]
    Wallet(#[from] WalletError),
    /// The books failed, or have another payment with a hash of the escrow.
    #[error(transparent)]
    Books(#[from] LedgerError),
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The terms are not agreed to.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// What was heard is not taken.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A message breaks its rules.
    #[error("a message about an escrow is not as it must be: {0}")]
    Message(#[from] Invalid),
    /// There is no such escrow.
    #[error("this node has no such escrow; were its terms agreed to?")]
    Unknown,
    /// An invoice is not what the terms say.
    #[error("the invoice of tranche {tranche} does not fit the terms: {why}")]
    Invoice {
        /// Which tranche.
        tranche: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A hash of the terms was paid before.
    #[error("this wallet has paid the hash of tranche {tranche} before: its preimage may be known to others")]
    UsedHash {
        /// Which tranche.
        tranche: usize,
    },
    /// There is no channel with the payee.
    #[error(
        "there is no channel with the payee {payee} that can be used now. An escrow is paid through no other node: one on \
         the way may be the validator's, who knows the preimages and could take the money. Open a channel with the payee"
    )]
    NoDirectChannel {
        /// Its Lightning key.
        payee: String,
    },
    /// The channel with the payee cannot carry it.
    #[error(
        "the channel with the payee carries {payments} more payments of {} together now, and the escrow has {wanted_payments} \
         of {}. The payee's side takes 50 payments and, of an announced channel, a tenth of its size at once: wait, take a \
         smaller escrow, or open a larger channel",
        sats(*.room), sats(*.wanted)
    )]
    NoRoom {
        /// How much it carries.
        room: Msat,
        /// How many payments it carries.
        payments: usize,
        /// How much the escrow is.
        wanted: Msat,
        /// How many tranches it has.
        wanted_payments: usize,
    },
    /// No random numbers.
    #[error("the system has no random numbers: {0}")]
    Random(#[from] getrandom::Error),
    /// The escrow is not judged by this node.
    #[error("escrow {0} is not judged by this node")]
    NotValidator(EscrowId),
    /// A task broke off.
    #[error("escrows are shutting down")]
    Stopped,
}
