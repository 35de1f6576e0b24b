//! The operator's authority: a secret that whoever runs the node can read, and nobody else.
//!
//! At each start a node draws 32 random bytes and leaves them in its data directory, in `operator.token`, readable by its
//! owner alone. What moves money asks for them in a header of their own ([`HEADER`]), besides being called on the node's
//! own machine. A web page in the operator's browser cannot send it: it cannot read files, and a page of another origin
//! that adds a header must ask first (CORS) and gets no leave; nor can another user of the machine, or the holder of an
//! API key, wherever they call from. The secret ends with the node.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq as _;

use crate::data_dir::write_private;

/// The header that carries the token.
pub const HEADER: &str = "consortium-operator";
const FILE: &str = "operator.token";
const DIGITS: u64 = 64;

/// The secret of a running node.
#[derive(Clone, PartialEq, Eq)]
pub struct OperatorToken(String);

impl OperatorToken {
    fn path(data_dir: &Path) -> PathBuf {
        data_dir.join(FILE)
    }

    /// Draws a new one and leaves it for the operator; that of an earlier start is worth nothing from then on.
    ///
    /// # Errors
    /// When there are no random numbers, or the file cannot be written.
    pub fn create(data_dir: &Path) -> io::Result<Self> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        let token = Self(hex::encode(bytes));
        write_private(&Self::path(data_dir), token.0.as_bytes())?;
        Ok(token)
    }

    /// The token of the node that runs on `data_dir`, as its text.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn read(data_dir: &Path) -> io::Result<String> {
        let mut text = String::new();
        std::fs::File::open(Self::path(data_dir))?.take(DIGITS).read_to_string(&mut text)?;
        Ok(text)
    }

    /// Takes it away at a clean shutdown.
    pub fn remove(data_dir: &Path) {
        let _absent = std::fs::remove_file(Self::path(data_dir));
    }

    /// Whether `text` is this token. Takes as long for one wrong text as for another.
    #[must_use]
    pub fn is(&self, text: &str) -> bool {
        self.0.as_bytes().ct_eq(text.as_bytes()).into()
    }
}

impl std::fmt::Debug for OperatorToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OperatorToken(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_private_and_new_at_each_start() {
        let dir = tempfile::tempdir().unwrap();
        assert!(OperatorToken::read(dir.path()).is_err());
        let first = OperatorToken::create(dir.path()).unwrap();
        let text = OperatorToken::read(dir.path()).unwrap();
        assert!(first.is(&text));
        assert!(!first.is("") && !first.is(&text[1..]) && !first.is(&"0".repeat(64)));
        assert!(!format!("{first:?}").contains(&text));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = dir.path().join(FILE).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let second = OperatorToken::create(dir.path()).unwrap();
        assert!(!second.is(&text), "that of an earlier start is worth nothing");
        OperatorToken::remove(dir.path());
        assert!(OperatorToken::read(dir.path()).is_err());
    }
}
