//! The headers of L402.
//!
//! The challenge is `L402 macaroon="M", invoice="I", version="0", token="M"`: the specification asks for the last two, and
//! clients in use look for the first two, in this order. A credential is `L402 M:P`, P the preimage as 64 hexadecimal
//! digits; the old name of the scheme, LSAT, is understood too.

use std::fmt;

use subtle::ConstantTimeEq as _;

use super::identifier::Identifier;
use super::macaroon::{MAX_BYTES, Macaroon, MacaroonError};
use crate::ledger::hex;

/// Longest header read, in bytes.
pub const MAX_HEADER: usize = 16 * 1024;
const SCHEMES: [&str; 2] = ["L402", "LSAT"];

/// Why a header is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It is of another scheme.
    #[error("this is not L402")]
    Scheme,
    /// It is too long, or has not the parts of its kind.
    #[error("this is not what L402 has in its headers")]
    Shape,
    /// The macaroon is none, or not of L402.
    #[error("{0}")]
    Macaroon(#[from] MacaroonError),
    /// The macaroon's identifier is not that of L402, version 0.
    #[error("the macaroon is not of L402, version 0")]
    Identifier,
}

/// What a 402 asks for.
#[derive(Clone, PartialEq, Eq)]
pub struct Challenge {
    /// The macaroon, as text.
    pub macaroon: String,
    /// The invoice that is to be paid.
    pub invoice: String,
}

/// What a request brings: a macaroon, and the preimage of its payment. Not shown.
#[derive(Clone)]
pub struct Credential {
    macaroon: Macaroon,
    identifier: Identifier,
    preimage: [u8; 32],
}

/// What comes after the scheme, if it is L402.
fn after_scheme(header: &str) -> Result<&str, HeaderError> {
    if header.len() > MAX_HEADER {
        return Err(HeaderError::Shape);
    }
    let (scheme, rest) = header.trim().split_once(' ').ok_or(HeaderError::Scheme)?;
    let known = SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known));
    if known { Ok(rest.trim()) } else { Err(HeaderError::Scheme) }
}

/// Whether a header is of this scheme, whatever else is in it.
#[must_use]
pub fn is_l402(header: &str) -> bool {
    let scheme = header.trim_start().split(' ').next().unwrap_or_default();
    SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known))
}

impl Challenge {
    /// Reads the value of a `WWW-Authenticate` header: the macaroon under either of its names, in any order.
    ///
    /// # Errors
    /// [`HeaderError`]; the macaroon and the invoice themselves are not looked into.
    pub fn parse(header: &str) -> Result<Self, HeaderError> {
        let (mut macaroon, mut token, mut invoice) = (None, None, None);
        let mut rest = after_scheme(header)?;
        while !rest.is_empty() {
            let (name, after) = rest.split_once('=').ok_or(HeaderError::Shape)?;
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"').ok_or(HeaderError::Shape)?,
                None => after.split_at(after.find(',').unwrap_or(after.len())),
            };
            let place = match name.trim() {
                name if name.eq_ignore_ascii_case("macaroon") => Some(&mut macaroon),
                name if name.eq_ignore_ascii_case("token") => Some(&mut token),
                name if name.eq_ignore_ascii_case("invoice") => Some(&mut invoice),
                _ => None,
            };
            if let Some(place) = place
                && place.replace(value.trim().to_owned()).is_some()
            {
                return Err(HeaderError::Shape);
            }
            rest = after.trim_start().trim_start_matches(',').trim_start();
        }
        let plain =
            |text: &String| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"');
        let macaroon = macaroon.or(token).filter(plain).ok_or(HeaderError::Shape)?;
        Ok(Self { macaroon, invoice: invoice.filter(plain).ok_or(HeaderError::Shape)? })
    }
}

impl fmt::Display for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { macaroon, invoice } = self;
        write!(f, r#"L402 macaroon="{macaroon}", invoice="{invoice}", version="0", token="{macaroon}""#)
    }
}

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Challenge").field("invoice", &self.invoice).finish_non_exhaustive()
    }
}

impl Credential {
    /// Puts a macaroon and the preimage of its payment together.
    ///
    /// # Errors
    /// [`HeaderError::Identifier`].
    pub fn new(macaroon: Macaroon, preimage: [u8; 32]) -> Result<Self, HeaderError> {
        let identifier = Identifier::from_bytes(macaroon.identifier()).ok_or(HeaderError::Identifier)?;
        Ok(Self { macaroon, identifier, preimage })
    }

    /// Reads the value of an `Authorization` header.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn parse(header: &str) -> Result<Self, HeaderError> {
        let (macaroon, digits) = after_scheme(header)?.rsplit_once(':').ok_or(HeaderError::Shape)?;
        let preimage = unhex(digits.trim()).ok_or(HeaderError::Shape)?;
        if macaroon.len() > 2 * MAX_BYTES {
            return Err(HeaderError::Shape);
        }
        Self::new(Macaroon::from_text(macaroon.trim())?, preimage)
    }

    /// As the value of an `Authorization` header: who reads it can use it.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("L402 {}:{}", self.macaroon.to_text(), hex(&self.preimage))
    }

    /// The macaroon.
    #[must_use]
    pub fn macaroon(&self) -> &Macaroon {
        &self.macaroon
    }

    /// Which payment and which token.
    #[must_use]
    pub fn identifier(&self) -> &Identifier {
        &self.identifier
    }

    /// Whether the preimage is that of the payment.
    #[must_use]
    pub fn opens(&self) -> bool {
        use sha2::Digest as _;
        let hash: [u8; 32] = sha2::Sha256::digest(self.preimage).into();
        hash.ct_eq(&self.identifier.payment_hash).into()
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("identifier", &self.identifier).finish_non_exhaustive()
    }
}

/// 32 bytes of 64 hexadecimal digits.
fn unhex(digits: &str) -> Option<[u8; 32]> {
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::Digest as _;

    use super::*;
    use crate::l402::TokenSecret;

    fn credential() -> Credential {
        let preimage = [0xab; 32];
        let identifier = Identifier { payment_hash: sha2::Sha256::digest(preimage).into(), token: [2; 32] };
        let macaroon = Macaroon::mint(&TokenSecret::from_bytes([1; 32]), &identifier.to_bytes());
        Credential::new(macaroon.with_caveat("services=consortium:0").unwrap(), preimage).unwrap()
    }

    #[test]
    fn the_challenge_is_in_the_form_that_clients_read() {
        let challenge = Challenge { macaroon: "AgEB+/8=".to_owned(), invoice: "lnbcrt1xyz".to_owned() };
        let text = r#"L402 macaroon="AgEB+/8=", invoice="lnbcrt1xyz", version="0", token="AgEB+/8=""#;
        assert_eq!(challenge.to_string(), text);
        for other in [
            text,
            r#"LSAT macaroon="AgEB+/8=", invoice="lnbcrt1xyz""#,
            r#"l402 version="0",token="AgEB+/8=",invoice="lnbcrt1xyz""#,
            r#"L402 invoice=lnbcrt1xyz, macaroon=AgEB+/8=, realm="a, b""#,
        ] {
            assert_eq!(Challenge::parse(other).as_ref(), Ok(&challenge), "{other}");
        }
        for wrong in [
            "",
            "L402",
            "L402 ",
            "Bearer",
            r#"Basic realm="x""#,
            r#"L402 macaroon="x""#,
            r#"L402 macaroon="x", invoice="y"#,
            r#"L402 macaroon="x", macaroon="z", invoice="y""#,
            r#"L402 macaroon="", invoice="y""#,
            r#"L402 macaroon="a b", invoice="y""#,
        ] {
            assert!(Challenge::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_credential_is_read_back_and_not_shown() {
        let credential = credential();
        let text = credential.reveal();
        let digits = hex(&[0xab; 32]);
        assert!(text.starts_with("L402 Ag") && text.ends_with(&format!(":{digits}")));
        let upper = text.replace(&digits, &digits.to_uppercase());
        let old = text.replacen("L402", "lsat", 1);
        let url_safe = text.replace('+', "-").replace('/', "_").replace('=', "");
        for header in [&text, &upper, &old, &url_safe] {
            let read = Credential::parse(header).unwrap();
            assert!(read.opens() && read.reveal() == text && is_l402(header));
        }
        let (macaroon, _) = text.rsplit_once(':').unwrap();
        for wrong in [
            macaroon.to_owned(),
            format!("{macaroon}:"),
            format!("{text}0"),
            format!("{macaroon}:{}", "g".repeat(64)),
            text.replace("L402 Ag", "L402 Aw"),
            text.replace("L402", "Bearer"),
            format!("L402 :{digits}"),
            format!("L402 {}:{digits}", "A".repeat(MAX_HEADER)),
        ] {
            assert!(Credential::parse(&wrong).is_err(), "{wrong:.90}");
        }
        let other = Credential::parse(&format!("{macaroon}:{}", hex(&[0xac; 32]))).unwrap();
        assert!(!other.opens());
        let shown = format!("{credential:?}");
        assert!(!shown.contains(&digits) && !shown.contains("171") && !text.contains(&shown), "{shown}");
    }

    proptest! {
        #[test]
        fn any_header_may_be_read(text in "\\PC{0,120}", parts in "(L402|lsat) [a-z\"=:, ]{0,60}[0-9a-f]{0,64}") {
            for text in [&text, &parts] {
                let _never_panics = (Challenge::parse(text), Credential::parse(text), is_l402(text));
            }
        }

        #[test]
        fn challenges_are_read_back(macaroon in "[A-Za-z0-9+/]{1,80}={0,2}", invoice in "[a-z0-9]{1,80}") {
            let challenge = Challenge { macaroon, invoice };
            prop_assert_eq!(Challenge::parse(&challenge.to_string()), Ok(challenge));
        }
    }
}
