//! Who may use the RPC: whoever can read a file, as with bitcoind's cookie.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bitcoin::hex::DisplayHex;
use rand::Rng;
use subtle::ConstantTimeEq;

/// Name of the user in a cookie that bitcoind makes.
const USER: &str = "__cookie__";

/// Longest cookie that is read, in bytes.
const MAX_COOKIE: u64 = 1024;

/// A user and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    /// The user; never the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Credentials {
    /// A password that nobody knows yet.
    pub fn random() -> Self {
        let password = rand::rng().random::<[u8; 32]>().to_lower_hex_string();
        Self { user: USER.to_owned(), password }
    }

    /// Reads a cookie file: `user:password`.
    ///
    /// # Errors
    /// When it cannot be read, or holds something else.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut text = String::new();
        File::open(path)?.take(MAX_COOKIE).read_to_string(&mut text)?;
        let no_cookie = || io::Error::new(io::ErrorKind::InvalidData, "not a cookie of the form user:password");
        let (user, password) = text.trim_end().split_once(':').ok_or_else(no_cookie)?;
        Ok(Self { user: user.to_owned(), password: password.to_owned() })
    }

    /// Writes the cookie file, which nobody else may read.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let beside = path.with_extension("new");
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
        write!(file, "{}:{}", self.user, self.password)?;
        std::fs::rename(&beside, path)
    }

    /// Whether the value of an `Authorization` header says the same.
    pub(super) fn allow(&self, authorization: &[u8]) -> bool {
        let Some((scheme, given)) = authorization.split_at_checked("Basic ".len()) else { return false };
        let expected = STANDARD.encode(format!("{}:{}", self.user, self.password));
        scheme.eq_ignore_ascii_case(b"Basic ") && bool::from(given.ct_eq(expected.as_bytes()))
    }
}
