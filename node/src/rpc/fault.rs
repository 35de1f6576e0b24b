//! Why a call failed, and how JSON-RPC says so.

use consortium_ledger::ledger::LedgerError;
use jsonrpsee::types::ErrorObjectOwned;
use jsonrpsee::types::error::{INTERNAL_ERROR_CODE, INVALID_PARAMS_CODE, SERVER_IS_BUSY_CODE};

use crate::audit::desk::DeskError;
use crate::storage::StorageError;

/// What was asked for is not kept here.
pub const NOT_FOUND: i32 = -32001;
/// Answered on the node's own machine alone.
pub const NOT_FOR_YOU: i32 = -32002;
/// The wallet did not do what was asked of it; the message says why and what to do.
pub const WALLET_REFUSED: i32 = -32003;
/// The payment was sent, and its outcome is not known yet.
pub const ON_ITS_WAY: i32 = -32004;
/// Nothing came of what was asked of a training run; the message says why.
pub const RUN_REFUSED: i32 = -32005;

/// A failed call.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The parameters are not those of the method.
    #[error("{0}")]
    Params(String),
    /// What was asked for is not kept here.
    #[error("{0}")]
    NotFound(String),
    /// The caller is on another machine.
    #[error("this is answered on the node's own machine alone")]
    NotForYou,
    /// The caller has not shown that it is the operator.
    #[error(
        "this is for the node's operator alone: call it from the node's own machine, with the token of its data directory"
    )]
    NotTheOperator,
    /// This node takes no part in training.
    #[error("this node takes no part in training")]
    NoTraining,
    /// Nothing came of it, and why.
    #[error("{0}")]
    Train(String),
    /// There is no wallet.
    #[cfg(feature = "lightning")]
    #[error("this node runs without a wallet; give it one with --lightning (`consortium-node start --help`)")]
    NoWallet,
    /// The wallet did not do it, and says why.
    #[cfg(feature = "lightning")]
    #[error("{0}")]
    Wallet(String),
    /// The outcome of a payment is not known yet.
    #[cfg(feature = "lightning")]
    #[error("{0}")]
    OnItsWay(String),
    /// The wallet failed.
    #[cfg(feature = "lightning")]
    #[error("the wallet failed: {0}")]
    WalletBroken(String),
    /// The ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// There is no audit.
    #[error(transparent)]
    Desk(#[from] DeskError),
    /// The node's database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// What is owed cannot be read.
    #[error("{0}")]
    Tabs(String),
    /// An answer that cannot be put into JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The call was cut off by the shutdown.
    #[error("the node is shutting down")]
    Closed,
}

impl From<Fault> for ErrorObjectOwned {
    fn from(fault: Fault) -> Self {
        let internal = |text: &str| Self::owned(INTERNAL_ERROR_CODE, text, None::<()>);
        let code = match &fault {
            Fault::Params(_) | Fault::Ledger(LedgerError::Invalid(_)) => INVALID_PARAMS_CODE,
            Fault::Desk(DeskError::Busy) => SERVER_IS_BUSY_CODE,
            Fault::NotFound(_) | Fault::Desk(_) => NOT_FOUND,
            Fault::NotForYou | Fault::NotTheOperator => NOT_FOR_YOU,
            Fault::Closed => INTERNAL_ERROR_CODE,
            Fault::NoTraining | Fault::Train(_) => RUN_REFUSED,
            #[cfg(feature = "lightning")]
            Fault::NoWallet | Fault::Wallet(_) => WALLET_REFUSED,
            #[cfg(feature = "lightning")]
            Fault::OnItsWay(_) => ON_ITS_WAY,
            #[cfg(feature = "lightning")]
            Fault::WalletBroken(_) => {
                tracing::error!(error = %fault, "an RPC call failed");
                return internal("the wallet failed; the node's log says why");
            }
            Fault::Ledger(_) | Fault::Storage(_) | Fault::Tabs(_) | Fault::Json(_) => {
                tracing::error!(error = %fault, "an RPC call failed");
                return internal("the node could not read what was asked for; its log says why");
            }
        };
        Self::owned(code, fault.to_string(), None::<()>)
    }
}
