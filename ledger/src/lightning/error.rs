//! Why something about a wallet failed, in words for its owner.

use std::time::Duration;

use consortium_protocol::Msat;
use ldk_node::{BuildError, NodeError};

use super::event::FailureReason;
use super::hash::PaymentHash;
use super::liquidity::OverBudget;
use super::settings::SettingsError;
use crate::store::OpenError;

/// A failed operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalletError {
    /// The settings make no sense.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The wallet's directory or a file in it cannot be used.
    #[error("the wallet's files: {0}")]
    Io(#[from] std::io::Error),
    /// The wallet's own database cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The wallet's own database failed.
    #[error("the wallet's database failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// The wallet's directory is an older copy.
    #[error(
        "{0} is an older copy of the wallet than the one that ran last: run from it, channels lose all that is in them. Put \
         the newest one back. If it is lost, move this one away, start without it, and use `wallet restore` with a backup"
    )]
    Stale(std::path::PathBuf),
    /// ldk-node could not be put together.
    #[error("the Lightning node could not be put together: {}", build_words(.0))]
    Build(BuildError),
    /// ldk-node could not be started.
    #[error("the Lightning node could not be started: {}", start_words(*.0))]
    Start(NodeError),
    /// There is no REST interface of a bitcoind where blocks should be read by it.
    #[error("{place} does not answer as the REST of a bitcoind on this network ({reason}); it must run with -rest=1")]
    Rest {
        /// Where it should be.
        place: String,
        /// What went wrong.
        reason: String,
    },
    /// Something took too long.
    #[error("{what} took longer than {} s", .after.as_secs())]
    Late {
        /// What.
        what: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The wallet is shutting down, or what was asked for broke off.
    #[error("the wallet is shutting down")]
    Stopped,
    /// Something given makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// More than one payment may be.
    #[error("{} with its fees is above the limit of a payment, {}; it was not sent", sats(*.wanted), sats(*.limit))]
    AbovePaymentLimit {
        /// What would have been spent.
        wanted: Msat,
        /// The limit.
        limit: Msat,
    },
    /// More than a day's payments may be.
    #[error(
        "{} were spent within 24 hours, and {} more would be above the limit of {}; it was not sent",
        sats(*.spent), sats(*.wanted), sats(*.limit)
    )]
    AboveDayLimit {
        /// What was spent, or is on its way.
        spent: Msat,
        /// What would have been spent.
        wanted: Msat,
        /// The limit.
        limit: Msat,
    },
    /// The invoice is paid.
    #[error("the invoice {0} is already paid")]
    AlreadyPaid(PaymentHash),
    /// A payment is on its way, and nobody knows yet how it ends.
    #[error(
        "the payment {0} is still on its way: it may yet arrive, or come back. Do not pay in another way; look at \
         `wallet history` for how it ended"
    )]
    OnItsWay(PaymentHash),
    /// There is no way to the payee.
    #[error("{} cannot be paid: {advice}", sats(*.amount))]
    NoRoute {
        /// What was to be paid.
        amount: Msat,
        /// What stands in the way and what to do.
        advice: String,
    },
    /// A payment failed; its money is back.
    #[error("the payment failed and its money is back: {}", .0.advice())]
    Failed(FailureReason),
    /// Not enough on-chain money.
    #[error(
        "there are {} sat to spend on-chain ({reserved} sat more are kept in reserve for closing channels); {needed} sat \
         and the fee are needed. Get an address with `wallet address` and send money to it",
        .spendable
    )]
    Insufficient {
        /// What may be spent, in sat.
        spendable: u64,
        /// What is kept for closing channels, in sat.
        reserved: u64,
        /// What is needed, in sat.
        needed: u64,
    },
    /// The chain source does not have a transaction that it was given.
    #[error(
        "the chain source did not take the transaction {0}: it was refused, or cannot be reached. Its coins are not spent; \
         see `wallet status`, and try again"
    )]
    NotTaken(String),
    /// The wallet has not seen its own last transaction, and would spend the same coins again.
    #[error(
        "the wallet's transaction {0} is on its way, and the wallet itself will see it only in the next block; to spend \
         now could spend the same coins twice. Try again after the next block"
    )]
    NotSeen(String),
    /// A peer cannot be reached.
    #[error("the peer {0} cannot be reached; is its address right, and is it running?")]
    Unreachable(String),
    /// More than may be put into channels.
    #[error(transparent)]
    OverBudget(#[from] OverBudget),
    /// There is no such channel.
    #[error("there is no channel {0:.40}; `wallet channels` lists them")]
    NoChannel(String),
    /// No such hold.
    #[error("no payment is held for {0}")]
    NotHeld(PaymentHash),
    /// A hold whose time is over.
    #[error("the payment {hash} could be claimed up to block {deadline}, and the chain is at {height}")]
    HoldOver {
        /// Which.
        hash: PaymentHash,
        /// Up to when.
        deadline: u32,
        /// The height of the chain.
        height: u32,
    },
    /// A backup that cannot be opened.
    #[error("this backup cannot be opened: it is damaged, or of another node's key")]
    Backup,
    /// ldk-node refused.
    #[error("{what} failed: {error}")]
    Node {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        error: NodeError,
    },
}

impl WalletError {
    /// Whether whoever asked can do something about it; otherwise it is this node's trouble.
    #[must_use]
    pub fn is_callers(&self) -> bool {
        !matches!(
            self,
            Self::Io(_)
                | Self::Stale(_)
                | Self::Open(_)
                | Self::Database(_)
                | Self::Build(_)
                | Self::Start(_)
                | Self::Rest { .. }
        )
    }
}

/// For `map_err` on what ldk-node does.
pub(super) fn of(what: &'static str) -> impl Fn(NodeError) -> WalletError {
    move |error| match error {
        NodeError::NotRunning => WalletError::Stopped,
        error => WalletError::Node { what, error },
    }
}

/// An amount as people read it.
#[must_use]
pub fn sats(amount: Msat) -> String {
    match amount.0 % 1000 {
        0 => format!("{} sat", amount.whole_sat()),
        rest => format!("{}.{rest:03} sat", amount.whole_sat()),
    }
}

fn build_words(error: &BuildError) -> String {
    match error {
        BuildError::NetworkMismatch => {
            "this data directory holds a wallet of another network; give each network its own --data-dir".to_owned()
        }
        BuildError::WalletSetupFailed => {
            "the wallet in this data directory belongs to another key or network, or is damaged".to_owned()
        }
        other => other.to_string(),
    }
}

fn start_words(error: NodeError) -> String {
    match error {
        NodeError::FeerateEstimationUpdateFailed | NodeError::FeerateEstimationUpdateTimeout => {
            "the chain source does not answer as it should; are its address and password right, and is it of this \
             network?"
                .to_owned()
        }
        NodeError::InvalidSocketAddress => {
            "it cannot listen where it should; is another program there? Choose another --lightning-listen".to_owned()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_in_sats() {
        assert_eq!(sats(Msat(21_000)), "21 sat");
        assert_eq!(sats(Msat(1)), "0.001 sat");
        assert_eq!(sats(Msat(1_020)), "1.020 sat");
    }
}
