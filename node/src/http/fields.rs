//! The fields of a JSON object, taken out one by one with their type checked; what is left at the end is unknown.

use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::error::ApiError;

/// Fields not yet taken, with the path that leads to them.
#[derive(Debug)]
pub(super) struct Fields {
    rest: Map<String, Value>,
    /// `""`, or such as `messages[0].`.
    path: String,
}

/// A field that is accepted where it asks for nothing this API does not do anyway.
pub(super) struct Harmless {
    /// Name of the field.
    pub(super) name: &'static str,
    /// Whether a value (never null) is one of those.
    pub(super) passes: fn(&Value) -> bool,
    /// Which values pass, in words; empty when none does.
    pub(super) allowed: &'static str,
}

impl Fields {
    /// Parses a body.
    ///
    /// # Errors
    /// 400 for anything but one JSON object without repeated names.
    pub(super) fn parse(text: &str) -> Result<Self, ApiError> {
        let Distinct(rest) = serde_json::from_str(text)
            .map_err(|error| ApiError::body(format!("The body is not a valid JSON object: {error}.")))?;
        Ok(Self { rest, path: String::new() })
    }

    /// The fields of a nested object; `path` is the object's own.
    ///
    /// # Errors
    /// 400 when the value is not an object.
    pub(super) fn nested(value: Value, path: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(rest) => Ok(Self { rest, path: format!("{path}.") }),
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// Whether a value is there that nobody took yet.
    pub(super) fn has(&self, name: &str) -> bool {
        self.rest.get(name).is_some_and(|value| !value.is_null())
    }

    /// The full path of a field.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// Takes a value; null counts as absent, as it does for OpenAI.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        // `swap_remove` would change which of several unknown fields is named.
        self.rest.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Takes a string.
    pub(super) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(&self.path(name), "a string", &other)),
        }
    }

    /// Takes a boolean.
    pub(super) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(&self.path(name), "a boolean", &other)),
        }
    }

    /// Takes a number within a range.
    pub(super) fn number(&mut self, name: &str, range: RangeInclusive<f32>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let Some(number) = value.as_f64() else {
            return Err(wrong_type(&self.path(name), "a number", &value));
        };
        if number < f64::from(*range.start()) || number > f64::from(*range.end()) {
            let path = self.path(name);
            let message = format!("'{path}' must be between {} and {}, not {number}.", range.start(), range.end());
            return Err(ApiError::field(&path, "out_of_range", message));
        }
        #[expect(clippy::cast_possible_truncation, reason = "in range; only digits beyond f32 are lost")]
        Ok(Some(number as f32))
    }

    /// Takes a whole number within a range.
    pub(super) fn integer(&mut self, name: &str, range: RangeInclusive<i128>) -> Result<Option<i128>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let Some(number) = value.as_number().and_then(Number::as_i128) else {
            return Err(wrong_type(&self.path(name), "an integer", &value));
        };
        if !range.contains(&number) {
            let path = self.path(name);
            let message = format!("'{path}' must be between {} and {}, not {number}.", range.start(), range.end());
            return Err(ApiError::field(&path, "out_of_range", message));
        }
        Ok(Some(number))
    }

    /// Takes a list.
    pub(super) fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(wrong_type(&self.path(name), "an array", &other)),
        }
    }

    /// Takes the fields of a table, refusing the values that ask for what is not supported.
    pub(super) fn harmless(&mut self, table: &[Harmless]) -> Result<(), ApiError> {
        for field in table {
            let Some(value) = self.take(field.name) else {
                continue;
            };
            if (field.passes)(&value) {
                continue;
            }
            let path = self.path(field.name);
            return Err(if field.allowed.is_empty() {
                ApiError::field(&path, "unsupported_parameter", format!("'{path}' is not supported by this API."))
            } else {
                let message =
                    format!("This value of '{path}' is not supported by this API; it may be {}.", field.allowed);
                ApiError::field(&path, "unsupported_value", message)
            });
        }
        Ok(())
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// 400 naming the first field that nobody took.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        match self.rest.keys().next() {
            None => Ok(()),
            Some(name) => Err(ApiError::unknown_field(&self.path(name))),
        }
    }
}

/// 400 for a value of the wrong type.
pub(super) fn wrong_type(path: &str, expected: &str, found: &Value) -> ApiError {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number with a fraction or out of range",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    ApiError::field(path, "invalid_type", format!("'{path}' must be {expected}, not {found}."))
}

/// An object in which no name comes twice: of two values one would be ignored.
struct Distinct(Map<String, Value>);

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Distinct;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Distinct, A::Error> {
                let mut map = Map::new();
                while let Some((name, value)) = access.next_entry::<String, Value>()? {
                    if map.contains_key(&name) {
                        return Err(A::Error::custom(format_args!("the field '{name:.80}' comes twice")));
                    }
                    map.insert(name, value);
                }
                Ok(Distinct(map))
            }
        }
        deserializer.deserialize_map(Object)
    }
}
