//! The one encoding of a value: deterministic CBOR (RFC 8949 §4.2.1), and a decoder that takes nothing else.
//!
//! Definite lengths, shortest heads, shortest floats, map keys sorted by their encoded bytes, no tags.
//! `decode(encode(v)) == v` and `encode(decode(b)) == b`: two different byte strings are never the same value.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::envelope::Invalid;

/// How deep arrays and maps may nest.
pub const MAX_DEPTH: usize = 16;

/// Why bytes are not a value of the type wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// More bytes than a value of this type may take.
    #[error("{len} bytes, at most {max} are allowed")]
    TooLarge {
        /// Bytes received.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Ends early, nests too deep, has bytes left over, or uses a part of CBOR that this encoding leaves out.
    #[error("malformed CBOR at byte {at}")]
    Malformed {
        /// Where the reader gave up.
        at: usize,
    },
    /// CBOR, but not a value of this type.
    #[error("not a value of this type: {0}")]
    Type(String),
    /// A value of this type in an encoding that is not its own.
    #[error("not in canonical form")]
    NotCanonical,
    /// The value breaks a rule of its type.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The signature does not fit signer, domain, version and payload.
    #[error("the signature does not verify")]
    Signature,
    /// A version this node does not speak.
    #[error("version {found} of {domain}, this node speaks {spoken}")]
    Version {
        /// What is versioned.
        domain: &'static str,
        /// The version received.
        found: u16,
        /// The version spoken.
        spoken: u16,
    },
}

/// The canonical bytes of `value`.
///
/// # Panics
/// Never for the types of this crate. A `Serialize` implementation that fails, or that does not state the length of its
/// collections, is an error of the program.
pub fn to_vec<T: Serialize>(value: &T) -> Vec<u8> {
    let plain = serde_cbor::to_vec(value).expect("a wire type serialises without failing");
    let mut sorted = Vec::with_capacity(plain.len());
    let end = sort_maps(&plain, 0, 0, &mut sorted).expect("a wire type states its lengths and nests within bounds");
    debug_assert_eq!(end, plain.len(), "one value was written");
    sorted
}

/// The value that `bytes` are the canonical encoding of.
///
/// # Errors
/// More than `max_bytes`, bytes left over, deep nesting, another type, or another encoding of the same value.
pub fn from_slice<T: Serialize + DeserializeOwned>(bytes: &[u8], max_bytes: usize) -> Result<T, DecodeError> {
    if bytes.len() > max_bytes {
        return Err(DecodeError::TooLarge { len: bytes.len(), max: max_bytes });
    }
    // Bounds the depth before a recursive reader sees the bytes.
    let end = skip(bytes, 0, 0)?;
    if end != bytes.len() {
        return Err(DecodeError::Malformed { at: end });
    }
    // The reader's message may quote what it read: keep it short.
    let value: T = serde_cbor::from_slice(bytes)
        .map_err(|error| DecodeError::Type(error.to_string().chars().take(200).collect()))?;
    if to_vec(&value) != bytes {
        return Err(DecodeError::NotCanonical);
    }
    Ok(value)
}

/// The head of a data item: major type, its number, and where its content starts.
struct Head {
    major: u8,
    number: u64,
    content: usize,
}

fn head(bytes: &[u8], at: usize) -> Result<Head, DecodeError> {
    let malformed = DecodeError::Malformed { at };
    let first = *bytes.get(at).ok_or_else(|| malformed.clone())?;
    let (major, info) = (first >> 5, first & 31);
    let width = match info {
        0..=23 => 0,
        24..=27 => 1_usize << (info - 24),
        // 28..=30 are reserved, 31 is an indefinite length.
        _ => return Err(malformed),
    };
    let content = at + 1 + width;
    let number = if width == 0 {
        u64::from(info)
    } else {
        bytes.get(at + 1..content).ok_or(malformed)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    Ok(Head { major, number, content })
}

/// Where a string of `length` bytes that starts at `content` ends.
fn string_end(bytes: &[u8], content: usize, length: u64) -> Result<usize, DecodeError> {
    usize::try_from(length)
        .ok()
        .and_then(|length| content.checked_add(length))
        .filter(|end| *end <= bytes.len())
        .ok_or(DecodeError::Malformed { at: content })
}

/// Where the item at `at` ends; checks depth, lengths and that only the allowed parts of CBOR are used.
fn skip(bytes: &[u8], at: usize, depth: usize) -> Result<usize, DecodeError> {
    let malformed = DecodeError::Malformed { at };
    let head = head(bytes, at)?;
    match head.major {
        0 | 1 | 7 => Ok(head.content),
        2 | 3 => string_end(bytes, head.content, head.number),
        4 | 5 if depth < MAX_DEPTH => {
            // An item takes a byte at least: a number larger than what follows is a lie and ends at once.
            let items = head.number.saturating_mul(u64::from(head.major - 3));
            let mut next = head.content;
            for _ in 0..items {
                next = skip(bytes, next, depth + 1)?;
            }
            Ok(next)
        }
        _ => Err(malformed),
    }
}

/// Copies the item at `at` to `out` with the entries of every map in canonical order; returns where the item ends.
fn sort_maps(bytes: &[u8], at: usize, depth: usize, out: &mut Vec<u8>) -> Result<usize, DecodeError> {
    let head = head(bytes, at)?;
    match head.major {
        4 if depth < MAX_DEPTH => {
            out.extend_from_slice(&bytes[at..head.content]);
            let mut next = head.content;
            for _ in 0..head.number {
                next = sort_maps(bytes, next, depth + 1, out)?;
            }
            Ok(next)
        }
        5 if depth < MAX_DEPTH => {
            out.extend_from_slice(&bytes[at..head.content]);
            let mut entries = Vec::new();
            let mut next = head.content;
            for _ in 0..head.number {
                let mut entry = Vec::new();
                next = sort_maps(bytes, next, depth + 1, &mut entry)?;
                let key = entry.len();
                next = sort_maps(bytes, next, depth + 1, &mut entry)?;
                entries.push((entry, key));
            }
            entries.sort_by(|(a, a_key), (b, b_key)| a[..*a_key].cmp(&b[..*b_key]));
            for (entry, _) in entries {
                out.extend_from_slice(&entry);
            }
            Ok(next)
        }
        _ => {
            let end = skip(bytes, at, depth)?;
            out.extend_from_slice(&bytes[at..end]);
            Ok(end)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Sample {
        zebra: u64,
        a: f32,
        bb: Vec<u32>,
        kind: Kind,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    enum Kind {
        Unit,
        Struct { y: bool, x: Option<String> },
    }

    fn sample() -> Sample {
        Sample { zebra: 300, a: 1.5, bb: vec![1, 70_000], kind: Kind::Struct { y: true, x: Some("hi".into()) } }
    }

    #[test]
    fn keys_are_sorted_and_numbers_are_short() {
        let bytes = to_vec(&sample());
        assert_eq!(
            hex::encode(&bytes),
            "a4\
             6161f93e00\
             6262628201 1a00011170\
             646b696e64a166537472756374a26178626869 6179f5\
             657a6562726119012c"
                .replace(' ', "")
        );
        assert_eq!(from_slice::<Sample>(&bytes, 1000).unwrap(), sample());
    }

    #[test]
    fn other_encodings_of_the_same_value_are_refused() {
        let refuse = |hex: &str| {
            let bytes = hex::decode(hex).unwrap();
            assert!(from_slice::<BTreeMap<String, u64>>(&bytes, 100).is_err());
        };
        let fine = hex::decode("a2616101616202").unwrap();
        assert!(from_slice::<BTreeMap<String, u64>>(&fine, 100).is_ok());
        refuse("a2616202616101"); // keys out of order
        refuse("a2616101616101"); // a key twice
        refuse("bf616101616202ff"); // indefinite map
        refuse("a261611801616202"); // long integer
        refuse("a278016101616202"); // long text length
        refuse("a261610161620200"); // a byte left over
        refuse("a26161016162"); // ends early
        refuse("c1a2616101616202"); // tag
        assert!(from_slice::<Sample>(&hex::decode("84181e01").unwrap(), 100).is_err());
        // Floats: 1.5 in four bytes though two would do.
        assert!(from_slice::<f32>(&hex::decode("fa3fc00000").unwrap(), 100).is_err());
        assert!(from_slice::<f32>(&hex::decode("f93e00").unwrap(), 100).is_ok());
        // A variant by its number, a struct as an array: the packed forms of the library underneath.
        assert!(from_slice::<Kind>(&[0x00], 100).is_err());
        assert!(from_slice::<Kind>(&to_vec(&"Unit"), 100).is_ok());
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let deep = vec![0x81; 100_000];
        assert!(matches!(from_slice::<Vec<u64>>(&deep, 1 << 20), Err(DecodeError::Malformed { .. })));
        assert!(matches!(from_slice::<u64>(&[0; 3], 2), Err(DecodeError::TooLarge { len: 3, max: 2 })));
        // Lengths that no memory could hold.
        for hex in ["9bffffffffffffffff", "5bffffffffffffffff", "bbffffffffffffffff"] {
            let bytes = hex::decode(hex).unwrap();
            assert!(from_slice::<Vec<u64>>(&bytes, 100).is_err());
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_its_own_encoding(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(value) = from_slice::<Sample>(&bytes, 64) {
                prop_assert_eq!(to_vec(&value), bytes.clone());
            }
            if let Ok(value) = from_slice::<BTreeMap<String, Vec<u64>>>(&bytes, 64) {
                prop_assert_eq!(to_vec(&value), bytes);
            }
        }

        #[test]
        fn values_survive(zebra: u64, a in -1e6_f32..1e6, bb: Vec<u32>, x: Option<String>) {
            let value = Sample { zebra, a, bb, kind: Kind::Struct { y: false, x } };
            let bytes = to_vec(&value);
            prop_assert_eq!(from_slice::<Sample>(&bytes, bytes.len()).unwrap(), value);
        }
    }
}
