//! Macaroons: tokens that whoever holds them can narrow, and nobody can widen again.
//!
//! After "Macaroons: Cookies with Contextual Caveats for Decentralized Authorization in the Cloud" (Birgisson et al. 2014),
//! byte for byte as libmacaroons and Go's `macaroon.v2` have them: the key of the chain is HMAC-SHA256 of the secret under
//! `macaroons-key-generator`, each link is HMAC-SHA256 of the next part under the link before it. Only the binary format of
//! version 2 is read, and no caveats of third parties. The crate `libmacaroon` does the same and more; what L402 asks for
//! (unknown caveats pass, repeated ones narrow) would have to be built around it, and the ciphers of third parties' caveats
//! come with it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

/// Largest macaroon read or made, in bytes.
pub const MAX_BYTES: usize = 4096;
/// Most caveats on one.
pub const MAX_CAVEATS: usize = 32;
/// Longest caveat, in bytes.
pub const MAX_CAVEAT: usize = 1024;

/// What libmacaroons derives the key of the chain under.
const KEY_GENERATOR: &[u8] = b"macaroons-key-generator";

// Fields of the binary format.
const VERSION: u8 = 2;
const END: u8 = 0;
const LOCATION: u8 = 1;
const IDENTIFIER: u8 = 2;
const SIGNATURE: u8 = 6;

type Link = [u8; 32];

/// The secret of a token: who knows it can make any macaroon of it.
#[derive(Clone)]
pub struct TokenSecret(Link);

impl TokenSecret {
    /// From its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Draws a new one.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The bytes, for the ledger alone.
    pub(super) const fn reveal(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(..)")
    }
}

/// Why bytes are no macaroon that is read here, or one cannot have another caveat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a macaroon: {0}")]
pub struct MacaroonError(&'static str);

/// A token with its caveats. Who has it has all that it allows: it is not shown.
#[derive(Clone)]
pub struct Macaroon {
    location: Option<Vec<u8>>,
    identifier: Vec<u8>,
    caveats: Vec<Vec<u8>>,
    signature: Link,
}

fn link(key: &[u8], part: &[u8]) -> Link {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(part);
    mac.finalize().into_bytes().into()
}

impl Macaroon {
    /// A new one, without caveats.
    #[must_use]
    pub fn mint(secret: &TokenSecret, identifier: &[u8]) -> Self {
        Self::create(None, secret.reveal(), identifier)
    }

    fn create(location: Option<&[u8]>, secret: &[u8], identifier: &[u8]) -> Self {
        let signature = link(&link(KEY_GENERATOR, secret), identifier);
        let (location, identifier) = (location.map(<[u8]>::to_vec), identifier.to_vec());
        Self { location, identifier, caveats: Vec::new(), signature }
    }

    /// The same with one caveat more.
    ///
    /// # Errors
    /// When it is too long, or there are too many.
    pub fn with_caveat(mut self, caveat: &str) -> Result<Self, MacaroonError> {
        if caveat.is_empty() || caveat.len() > MAX_CAVEAT {
            return Err(MacaroonError("a caveat is empty or too long"));
        }
        if self.caveats.len() >= MAX_CAVEATS {
            return Err(MacaroonError("it has too many caveats"));
        }
        self.signature = link(&self.signature, caveat.as_bytes());
        self.caveats.push(caveat.as_bytes().to_vec());
        if self.to_bytes().len() > MAX_BYTES {
            return Err(MacaroonError("it is too long"));
        }
        Ok(self)
    }

    /// What it identifies.
    #[must_use]
    pub fn identifier(&self) -> &[u8] {
        &self.identifier
    }

    /// Its caveats, in their order.
    #[must_use]
    pub fn caveats(&self) -> &[Vec<u8>] {
        &self.caveats
    }

    /// Checks that it was made with this secret. Gives the links of the chain, one for each caveat: a link names its caveat
    /// with all that came before. Takes as long for one wrong signature as for another.
    #[must_use]
    pub fn verify(&self, secret: &TokenSecret) -> Option<Vec<[u8; 32]>> {
        self.chain(secret.reveal())
    }

    fn chain(&self, secret: &[u8]) -> Option<Vec<Link>> {
        let mut last = link(&link(KEY_GENERATOR, secret), &self.identifier);
        let mut links = Vec::with_capacity(self.caveats.len());
        for caveat in &self.caveats {
            last = link(&last, caveat);
            links.push(last);
        }
        bool::from(last.ct_eq(&self.signature)).then_some(links)
    }

    /// The binary format.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        if let Some(location) = &self.location {
            put(&mut bytes, LOCATION, location);
        }
        put(&mut bytes, IDENTIFIER, &self.identifier);
        bytes.push(END);
        for caveat in &self.caveats {
            put(&mut bytes, IDENTIFIER, caveat);
            bytes.push(END);
        }
        bytes.push(END);
        put(&mut bytes, SIGNATURE, &self.signature);
        bytes
    }

    /// Reads the binary format.
    ///
    /// # Errors
    /// When it is something else, too large, or has a caveat of a third party.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MacaroonError> {
        if bytes.len() > MAX_BYTES {
            return Err(MacaroonError("it is too long"));
        }
        let mut reader = Reader(bytes.strip_prefix(&[VERSION]).ok_or(MacaroonError("its version is not 2"))?);
        let location = reader.optional(LOCATION)?;
        let identifier = reader.field(IDENTIFIER)?;
        reader.end()?;
        let mut caveats = Vec::new();
        while !reader.at_end() {
            // A caveat may have a location, of a third party; what follows then is not read either.
            let caveat = reader.field(IDENTIFIER)?;
            reader.end()?;
            if caveat.len() > MAX_CAVEAT || caveats.len() >= MAX_CAVEATS {
                return Err(MacaroonError("a caveat is too long, or there are too many"));
            }
            caveats.push(caveat.to_vec());
        }
        reader.end()?;
        let signature = reader.field(SIGNATURE)?;
        let signature = signature.try_into().map_err(|_| MacaroonError("its signature has another length than 32"))?;
        if !reader.0.is_empty() {
            return Err(MacaroonError("something follows it"));
        }
        Ok(Self { location: location.map(<[u8]>::to_vec), identifier: identifier.to_vec(), caveats, signature })
    }

    /// As text: the bytes in standard base64.
    #[must_use]
    pub fn to_text(&self) -> String {
        STANDARD.encode(self.to_bytes())
    }

    /// Reads base64 of either alphabet, with padding or without.
    ///
    /// # Errors
    /// As [`Macaroon::from_bytes`], and when it is no base64.
    pub fn from_text(text: &str) -> Result<Self, MacaroonError> {
        if text.len() > MAX_BYTES.div_ceil(3) * 4 {
            return Err(MacaroonError("it is too long"));
        }
        let standard: String = text.chars().map(|c| if c == '-' { '+' } else { c }).collect();
        let standard = standard.replace('_', "/");
        let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let engine = GeneralPurpose::new(&base64::alphabet::STANDARD, config);
        let bytes = engine.decode(standard).map_err(|_| MacaroonError("it is not base64"))?;
        Self::from_bytes(&bytes)
    }
}

impl fmt::Debug for Macaroon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Macaroon").field("caveats", &self.caveats.len()).finish_non_exhaustive()
    }
}

fn put(bytes: &mut Vec<u8>, field: u8, content: &[u8]) {
    bytes.push(field);
    let mut length = content.len();
    while length >= 0x80 {
        bytes.push(length.to_le_bytes()[0] | 0x80);
        length >>= 7;
    }
    bytes.push(length.to_le_bytes()[0]);
    bytes.extend_from_slice(content);
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn at_end(&self) -> bool {
        self.0.first() == Some(&END)
    }

    fn end(&mut self) -> Result<(), MacaroonError> {
        self.0 = self.0.strip_prefix(&[END]).ok_or(MacaroonError("a part does not end where it should"))?;
        Ok(())
    }

    fn optional(&mut self, field: u8) -> Result<Option<&'a [u8]>, MacaroonError> {
        if self.0.first() == Some(&field) { self.field(field).map(Some) } else { Ok(None) }
    }

    fn field(&mut self, field: u8) -> Result<&'a [u8], MacaroonError> {
        self.0 = self.0.strip_prefix(&[field]).ok_or(MacaroonError("it has another field than expected"))?;
        let length = self.length()?;
        let (content, rest) = self.0.split_at_checked(length).ok_or(MacaroonError("it breaks off"))?;
        self.0 = rest;
        Ok(content)
    }

    /// A length of at most two bytes, seven bits each, the low ones first: more than there can be.
    fn length(&mut self) -> Result<usize, MacaroonError> {
        let mut length = 0;
        for shift in [0, 7] {
            let (byte, rest) = self.0.split_first().ok_or(MacaroonError("it breaks off"))?;
            self.0 = rest;
            length |= usize::from(byte & 0x7f) << shift;
            match (byte & 0x80, shift > 0 && *byte == 0) {
                (_, true) => return Err(MacaroonError("a length has more bytes than it needs")),
                (0, false) => return Ok(length),
                _ => {}
            }
        }
        Err(MacaroonError("a field is too long"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::hex;

    /// The example of libmacaroons' README.
    #[test]
    fn the_bank_of_libmacaroons() {
        let secret = b"this is our super secret key; only we should know it";
        let macaroon = Macaroon::create(Some(b"http://mybank/"), secret, b"we used our secret key");
        assert_eq!(hex(&macaroon.signature), "e3d9e02908526c4c0039ae15114115d97fdd68bf2ba379b342aaf0f617d0552f");
        let mut signed = macaroon;
        for (caveat, signature) in [
            ("account = 3735928559", "1efe4763f290dbce0c1d08477367e11f4eee456a64933cf662d79772dbb82128"),
            ("time < 2015-01-01T00:00", "696665d0229f9f801b588bb3f68bbdb806b26d1fbcd40ca22d9017bce4a075f1"),
            ("email = alice@example.org", "882e6d59496ed5245edb7ab5b8839ecd63e5d504e54839804f164070d8eed952"),
        ] {
            signed = signed.with_caveat(caveat).unwrap();
            assert_eq!(hex(&signed.signature), signature);
        }
        let links = signed.chain(secret).unwrap();
        assert_eq!((links.len(), links.last()), (3, Some(&signed.signature)));
        assert!(signed.chain(b"another secret").is_none());
    }

    /// The test vectors of libmacaroons for version 2: `caveat_v2_1`, and the same with another key.
    #[test]
    fn vectors_of_libmacaroons() {
        let text = "AgETaHR0cDovL2V4YW1wbGUub3JnLwIFa2V5aWQAAhRhY2NvdW50ID0gMzczNTkyODU1OQAABiD1SAf23G7fiL8PcwazgiVio2JTPb9zObphdl2kvSWdhw";
        let macaroon = Macaroon::from_text(text).unwrap();
        assert_eq!(
            (macaroon.identifier(), macaroon.caveats()),
            (&b"keyid"[..], &[b"account = 3735928559".to_vec()][..])
        );
        assert!(macaroon.chain(b"this is the key").is_some());
        assert!(macaroon.chain(b"this is not the key").is_none());
        assert_eq!(macaroon.to_text().trim_end_matches('='), text);
        let made = Macaroon::create(Some(b"http://example.org/"), b"this is the key", b"keyid");
        assert_eq!(made.with_caveat("account = 3735928559").unwrap().to_bytes(), macaroon.to_bytes());
    }

    fn secret(byte: u8) -> TokenSecret {
        TokenSecret::from_bytes([byte; 32])
    }

    #[test]
    fn a_caveat_cannot_be_taken_off_changed_or_moved() {
        let whole = Macaroon::mint(&secret(1), b"id");
        let narrow = whole.clone().with_caveat("a=1").unwrap().with_caveat("b=2").unwrap();
        assert!(narrow.verify(&secret(1)).is_some() && narrow.verify(&secret(2)).is_none());
        let forged = |change: &dyn Fn(&mut Macaroon)| {
            let mut forged = narrow.clone();
            change(&mut forged);
            forged.verify(&secret(1)).is_none()
        };
        assert!(forged(&|m| drop(m.caveats.pop())));
        assert!(forged(&|m| m.caveats.clear()));
        assert!(forged(&|m| m.caveats.swap(0, 1)));
        assert!(forged(&|m| m.caveats[1] = b"b=3".to_vec()));
        assert!(forged(&|m| m.identifier = b"di".to_vec()));
        assert!(forged(&|m| m.signature[31] ^= 1));
        assert!(forged(&|m| m.signature = link(&m.signature, b"c")));
    }

    #[test]
    fn it_is_bounded_and_not_shown() {
        let whole = Macaroon::mint(&secret(1), &[7; 66]);
        assert!(
            whole.clone().with_caveat(&"x".repeat(MAX_CAVEAT + 1)).is_err() && whole.clone().with_caveat("").is_err()
        );
        let mut full = whole.clone();
        for n in 0..MAX_CAVEATS {
            full = full.with_caveat(&format!("c={n}")).unwrap();
        }
        assert_eq!(Macaroon::from_bytes(&full.to_bytes()).unwrap().caveats().len(), MAX_CAVEATS);
        assert!(full.clone().with_caveat("one=more").is_err());
        let long = (0..3).try_fold(whole.clone(), |m, _| m.with_caveat(&"x".repeat(MAX_CAVEAT))).unwrap();
        assert!(long.with_caveat(&"x".repeat(MAX_CAVEAT)).is_err(), "too long as a whole");
        let shown = format!("{full:?} {:?}", secret(1));
        assert!(
            !shown.contains(&hex(&full.signature)) && !shown.contains("0101") && !shown.contains("1, 1"),
            "{shown}"
        );
    }

    #[test]
    fn third_parties_are_refused() {
        // As libmacaroons writes one: a caveat with a verification id (field 4).
        let mut bytes = vec![VERSION];
        put(&mut bytes, IDENTIFIER, b"id");
        bytes.push(END);
        put(&mut bytes, IDENTIFIER, b"third");
        put(&mut bytes, 4, b"vid");
        bytes.extend([END, END]);
        put(&mut bytes, SIGNATURE, &[0; 32]);
        assert!(Macaroon::from_bytes(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn anything_may_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,200}") {
            // Whatever is read is written the same: no two texts of bytes are one macaroon.
            if let Ok(macaroon) = Macaroon::from_bytes(&bytes) {
                prop_assert_eq!(macaroon.to_bytes(), bytes);
            }
            let _never_panics = Macaroon::from_text(&text);
        }

        #[test]
        fn damaged_ones_are_noticed(
            caveats in proptest::collection::vec("[a-z]{1,8}=[a-z0-9]{0,200}", 0..6),
            at in any::<prop::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let made = caveats.iter().try_fold(Macaroon::mint(&secret(3), &[9; 66]), |m, c| m.with_caveat(c)).unwrap();
            let mut bytes = made.to_bytes();
            prop_assert_eq!(Macaroon::from_text(&made.to_text()).unwrap().verify(&secret(3)).unwrap().len(), caveats.len());
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(damaged) = Macaroon::from_bytes(&bytes) {
                prop_assert!(damaged.verify(&secret(3)).is_none());
            }
        }
    }
}
