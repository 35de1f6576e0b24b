//! Errors as Bitcoin Core's RPC tells them (`rpc/protocol.h`).

use bitcoin::consensus::encode;
use serde_json::{Value, json};

use crate::chain::{ChainError, FaucetError, MempoolError, TransactionError};

/// An error with the number that clients know it by.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("RPC error {code}: {message}")]
pub struct RpcError {
    /// Bitcoin Core's number.
    pub code: i64,
    /// What went wrong.
    pub message: String,
}

pub(super) const MISC: i64 = -1;
pub(super) const TYPE: i64 = -3;
pub(super) const WALLET: i64 = -4;
pub(super) const NOT_FOUND: i64 = -5;
pub(super) const INSUFFICIENT_FUNDS: i64 = -6;
pub(super) const INVALID_PARAMETER: i64 = -8;
pub(super) const DESERIALIZATION: i64 = -22;
pub(super) const VERIFY: i64 = -25;
pub(super) const REJECTED: i64 = -26;
pub(super) const ALREADY_CONFIRMED: i64 = -27;
pub(super) const INVALID_REQUEST: i64 = -32_600;
pub(super) const METHOD_NOT_FOUND: i64 = -32_601;
pub(super) const INTERNAL: i64 = -32_603;
pub(super) const PARSE: i64 = -32_700;

impl RpcError {
    pub(super) fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(super) fn to_json(&self) -> Value {
        json!({"code": self.code, "message": self.message})
    }
}

impl From<MempoolError> for RpcError {
    fn from(error: MempoolError) -> Self {
        let code = match &error {
            MempoolError::Confirmed => ALREADY_CONFIRMED,
            MempoolError::Invalid(TransactionError::MissingInputs) => VERIFY,
            _ => REJECTED,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ChainError> for RpcError {
    fn from(error: ChainError) -> Self {
        let code = match &error {
            ChainError::Unknown => NOT_FOUND,
            ChainError::Genesis => INVALID_PARAMETER,
            ChainError::Store(_) => MISC,
            _ => VERIFY,
        };
        Self::new(code, error.to_string())
    }
}

impl From<FaucetError> for RpcError {
    fn from(error: FaucetError) -> Self {
        let code = match &error {
            FaucetError::InsufficientFunds => INSUFFICIENT_FUNDS,
            FaucetError::NoPayee | FaucetError::Dust => INVALID_PARAMETER,
            FaucetError::TooLarge | FaucetError::Sign(_) => WALLET,
        };
        Self::new(code, error.to_string())
    }
}

impl From<encode::FromHexError> for RpcError {
    fn from(_: encode::FromHexError) -> Self {
        Self::new(DESERIALIZATION, "TX decode failed. Make sure the tx has at least one input.")
    }
}
