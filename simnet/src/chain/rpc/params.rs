//! Parameters of a call: by position or by name, read strictly.

use std::str::FromStr;

use bitcoin::{Address, Amount, Network, ScriptBuf};
use serde_json::Value;

use super::error::{INVALID_PARAMETER, INVALID_REQUEST, MISC, NOT_FOUND, RpcError, TYPE};

/// Parameters in the order in which the method declares them; those left out are null.
#[derive(Clone, Debug)]
pub(super) struct Params {
    names: &'static [&'static str],
    values: Vec<Value>,
}

impl Params {
    /// Reads what came with a call of a method whose parameters are `names`, of which the first `required` must be
    /// there.
    pub(super) fn read(
        given: Value,
        method: &str,
        names: &'static [&'static str],
        required: usize,
    ) -> Result<Self, RpcError> {
        let usage = || RpcError::new(MISC, format!("usage: {method} {}", names.join(" ")));
        let mut values = match given {
            Value::Null => Vec::new(),
            Value::Array(values) if values.len() <= names.len() => values,
            Value::Array(_) => return Err(usage()),
            Value::Object(mut named) => {
                let values = names.iter().map(|name| named.remove(*name).unwrap_or(Value::Null)).collect();
                if let Some((unknown, _)) = named.into_iter().next() {
                    return Err(RpcError::new(INVALID_PARAMETER, format!("Unknown named parameter {unknown}")));
                }
                values
            }
            _ => return Err(RpcError::new(INVALID_REQUEST, "Params must be an array or object")),
        };
        values.resize(names.len(), Value::Null);
        if values.iter().take(required).any(Value::is_null) {
            return Err(usage());
        }
        Ok(Self { names, values })
    }

    /// A parameter; none when it is null or was left out.
    pub(super) fn get(&self, index: usize) -> Option<&Value> {
        self.values.get(index).filter(|value| !value.is_null())
    }

    fn wrong_type(&self, index: usize, expected: &str) -> RpcError {
        let name = self.names.get(index).unwrap_or(&"");
        RpcError::new(TYPE, format!("{name}: JSON value is not of expected type {expected}"))
    }

    fn optional<'a, T>(
        &'a self,
        index: usize,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, RpcError> {
        self.get(index).map(|value| read(value).ok_or_else(|| self.wrong_type(index, expected))).transpose()
    }

    pub(super) fn text(&self, index: usize) -> Result<&str, RpcError> {
        self.optional(index, "string", Value::as_str)?.ok_or_else(|| self.wrong_type(index, "string"))
    }

    pub(super) fn number(&self, index: usize) -> Result<u32, RpcError> {
        self.optional_number(index)?.ok_or_else(|| self.wrong_type(index, "number"))
    }

    pub(super) fn optional_number(&self, index: usize) -> Result<Option<u32>, RpcError> {
        let number = self.optional(index, "number", Value::as_i64)?;
        let name = self.names.get(index).unwrap_or(&"");
        let out_of_range = |_| RpcError::new(INVALID_PARAMETER, format!("{name} out of range"));
        number.map(|number| u32::try_from(number).map_err(out_of_range)).transpose()
    }

    pub(super) fn flag(&self, index: usize, default: bool) -> Result<bool, RpcError> {
        // Verbosity was a flag before it was a number, and is still given as either.
        let read = |value: &Value| value.as_bool().or_else(|| value.as_u64().map(|number| number > 0));
        Ok(self.optional(index, "bool", read)?.unwrap_or(default))
    }

    pub(super) fn verbosity(&self, index: usize, default: u64) -> Result<u64, RpcError> {
        let read = |value: &Value| value.as_u64().or_else(|| value.as_bool().map(u64::from));
        Ok(self.optional(index, "number", read)?.unwrap_or(default))
    }

    pub(super) fn texts(&self, index: usize) -> Result<Vec<&str>, RpcError> {
        let list = self.optional(index, "array", Value::as_array)?;
        let list = list.ok_or_else(|| self.wrong_type(index, "array"))?;
        if !list.iter().all(Value::is_string) {
            return Err(self.wrong_type(index, "array of strings"));
        }
        Ok(list.iter().filter_map(Value::as_str).collect())
    }

    /// A hash or transaction id: 64 hexadecimal digits.
    pub(super) fn hash<T: FromStr>(&self, index: usize) -> Result<T, RpcError> {
        let text = self.text(index)?;
        let name = self.names.get(index).unwrap_or(&"");
        if text.len() != 64 {
            let message = format!("{name} must be of length 64 (not {})", text.len());
            return Err(RpcError::new(INVALID_PARAMETER, message));
        }
        text.parse().map_err(|_| RpcError::new(INVALID_PARAMETER, format!("{name} must be hexadecimal string")))
    }

    pub(super) fn address(&self, index: usize) -> Result<ScriptBuf, RpcError> {
        address(self.text(index)?)
    }

    /// An amount in BTC, as a number or as text.
    pub(super) fn amount(&self, index: usize) -> Result<Amount, RpcError> {
        amount(self.get(index).unwrap_or(&Value::Null))
    }
}

/// The script of a regtest address.
pub(super) fn address(text: &str) -> Result<ScriptBuf, RpcError> {
    let invalid = |_| RpcError::new(NOT_FOUND, "Invalid address");
    let address = Address::from_str(text).map_err(invalid)?;
    Ok(address.require_network(Network::Regtest).map_err(invalid)?.script_pubkey())
}

/// An amount in BTC, as a number or as text.
pub(super) fn amount(value: &Value) -> Result<Amount, RpcError> {
    let btc = bitcoin::Denomination::Bitcoin;
    let amount = match value {
        Value::String(text) => Amount::from_str_in(text, btc).ok(),
        Value::Number(number) => number.as_f64().and_then(|number| Amount::from_btc(number).ok()),
        _ => return Err(RpcError::new(TYPE, "Amount is not a number or string")),
    };
    amount.filter(|amount| *amount <= Amount::MAX_MONEY).ok_or_else(|| RpcError::new(TYPE, "Invalid amount"))
}
