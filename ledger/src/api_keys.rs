//! Keys for a node's HTTP API.
//!
//! A key is `ck-` and 256 random bits in base58. Only a BLAKE3 hash of it is kept: with that many random bits a
//! plain hash cannot be turned back, so no slow password hash is needed on every request. A key's [`KeyId`], the
//! start of that hash, names it in lists and logs. A revoked key stays listed and never works again.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use subtle::ConstantTimeEq;

use crate::store::{self, OpenError};

/// What every key starts with.
pub const PREFIX: &str = "ck-";
/// Longest label, in characters.
pub const MAX_LABEL: usize = 64;
/// Most keys a ledger keeps, revoked ones included.
pub const MAX_KEYS: u32 = 10_000;

/// Domain of the hash at rest; the same text hashed elsewhere gives another value.
const CONTEXT: &str = "consortium 2026 ledger api key at rest v1";
/// Random bytes of a key.
const SECRET_BYTES: usize = 32;
/// Bytes of the hash that name a key.
const ID_BYTES: usize = 6;
/// Longer text than any key is no key, and is not hashed.
const MAX_SECRET_TEXT: usize = 64;

/// Names a key without giving it away: the first 6 bytes of its hash, 12 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(String);

impl KeyId {
    pub(crate) fn of(digest: &blake3::Hash) -> Self {
        Self(digest.to_hex()[..2 * ID_BYTES].to_owned())
    }

    /// The id as text, 12 hex digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for KeyId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 2 * ID_BYTES && text.bytes().all(hex) {
            Ok(Self(text.to_owned()))
        } else {
            Err(KeyError::BadId)
        }
    }
}

/// A key as it is listed; the secret itself is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Its name.
    pub id: KeyId,
    /// What its maker called it; may be empty.
    pub label: String,
    /// When it was made, in seconds since 1970.
    pub created_s: u64,
    /// Whether it was revoked, and so does not work any more.
    pub revoked: bool,
}

/// Why something about API keys failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The ledger could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The ledger could not be read or written.
    #[error("the ledger failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// The system gave no random numbers.
    #[error("no randomness from the system: {0}")]
    Random(getrandom::Error),
    /// The label cannot be used.
    #[error("a label has at most {MAX_LABEL} characters and no control characters")]
    BadLabel,
    /// The text is not the id of a key.
    #[error("a key's id has 12 hex digits, as `key list` shows it")]
    BadId,
    /// There is no key with this id.
    #[error("there is no key {0}")]
    Unknown(KeyId),
    /// The ledger is full of keys.
    #[error("the ledger holds {MAX_KEYS} keys already")]
    Full,
}

/// The API keys of one node. Other processes may use the same ledger at the same time; what they change is seen at
/// the next call.
///
/// Calls block on the disk: an async caller runs them on a thread made for that.
#[derive(Debug)]
pub struct ApiKeys {
    connection: Mutex<Connection>,
}

impl ApiKeys {
    /// Opens the ledger at `path`, creating it when there is none.
    ///
    /// # Errors
    /// [`KeyError::Open`].
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        Ok(Self { connection: Mutex::new(store::open(path)?) })
    }

    /// Makes a key and returns its id and the secret, which cannot be had again.
    ///
    /// # Errors
    /// [`KeyError::BadLabel`], [`KeyError::Full`], [`KeyError::Random`], [`KeyError::Database`].
    pub fn create(&self, label: &str) -> Result<(KeyId, String), KeyError> {
        if label.chars().count() > MAX_LABEL || label.chars().any(char::is_control) {
            return Err(KeyError::BadLabel);
        }
        let mut connection = self.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let count: u32 = transaction.query_row("SELECT count(*) FROM api_key", [], |row| row.get(0))?;
        if count >= MAX_KEYS {
            return Err(KeyError::Full);
        }
        // Ids are 48 bits, so two keys may share one, however unlikely; the second then is drawn again.
        let (id, secret, digest) = loop {
            let (id, secret, digest) = draw()?;
            let taken: bool = transaction.query_row(
                "SELECT EXISTS (SELECT 1 FROM api_key WHERE id = ?1) OR EXISTS (SELECT 1 FROM l402_token WHERE account = ?1)",
                [id.as_str()],
                |row| row.get(0),
            )?;
            if !taken {
                break (id, secret, digest);
            }
        };
        transaction.execute(
            "INSERT INTO api_key (id, label, digest, created_s) VALUES (?1, ?2, ?3, unixepoch())",
            params![id.as_str(), label, digest.as_bytes()],
        )?;
        transaction.commit()?;
        Ok((id, secret))
    }

    /// All keys, oldest first, revoked ones included.
    ///
    /// # Errors
    /// [`KeyError::Database`].
    pub fn list(&self) -> Result<Vec<ApiKey>, KeyError> {
        let connection = self.lock();
        let mut statement = connection.prepare(
            "SELECT id, label, created_s, revoked_s IS NOT NULL FROM api_key ORDER BY created_s, rowid LIMIT ?1",
        )?;
        let rows = statement.query_map([MAX_KEYS], |row| {
            Ok(ApiKey { id: KeyId(row.get(0)?), label: row.get(1)?, created_s: row.get(2)?, revoked: row.get(3)? })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Makes a key useless. Revoking it again changes nothing.
    ///
    /// # Errors
    /// [`KeyError::Unknown`], [`KeyError::Database`].
    pub fn revoke(&self, id: &KeyId) -> Result<(), KeyError> {
        let changed = self
            .lock()
            .execute("UPDATE api_key SET revoked_s = coalesce(revoked_s, unixepoch()) WHERE id = ?1", [id.as_str()])?;
        if changed == 0 { Err(KeyError::Unknown(id.clone())) } else { Ok(()) }
    }

    /// The id of the key whose secret this is; none when it is no key, unknown or revoked.
    ///
    /// # Errors
    /// [`KeyError::Database`].
    pub fn verify(&self, secret: &str) -> Result<Option<KeyId>, KeyError> {
        if secret.len() > MAX_SECRET_TEXT || !secret.starts_with(PREFIX) {
            return Ok(None);
        }
        let digest = hash(secret);
        let id = KeyId::of(&digest);
        // The index is searched by the id alone, which is public; the rest of the hash is compared in constant time.
        let stored: Option<[u8; 32]> = self
            .lock()
            .prepare_cached("SELECT digest FROM api_key WHERE id = ?1 AND revoked_s IS NULL")?
            .query_row([id.as_str()], |row| row.get(0))
            .optional()?;
        let same = stored.is_some_and(|stored| stored.ct_eq(digest.as_bytes()).into());
        Ok(same.then_some(id))
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic while the lock was held rolled its transaction back: the connection is as good as before.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hash(secret: &str) -> blake3::Hash {
    blake3::Hash::from_bytes(blake3::derive_key(CONTEXT, secret.as_bytes()))
}

fn draw() -> Result<(KeyId, String, blake3::Hash), KeyError> {
    let mut bytes = [0; SECRET_BYTES];
    getrandom::fill(&mut bytes).map_err(KeyError::Random)?;
    let secret = format!("{PREFIX}{}", bs58::encode(bytes).into_string());
    let digest = hash(&secret);
    Ok((KeyId::of(&digest), secret, digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> (tempfile::TempDir, ApiKeys) {
        let dir = tempfile::tempdir().unwrap();
        let keys = ApiKeys::open(&dir.path().join("ledger.db")).unwrap();
        (dir, keys)
    }

    #[test]
    fn a_key_works_until_it_is_revoked() {
        let (_dir, keys) = keys();
        let (id, secret) = keys.create("laptop").unwrap();
        let (other, other_secret) = keys.create("").unwrap();
        assert_eq!(keys.verify(&secret).unwrap(), Some(id.clone()));
        keys.revoke(&id).unwrap();
        assert_eq!(keys.verify(&secret).unwrap(), None);
        assert_eq!(keys.verify(&other_secret).unwrap(), Some(other.clone()));
        keys.revoke(&id).unwrap();
        let list = keys.list().unwrap();
        assert_eq!((&list[0].id, list[0].label.as_str(), list[0].revoked), (&id, "laptop", true));
        assert_eq!((&list[1].id, list[1].revoked), (&other, false));
    }

    #[test]
    fn only_exact_secrets_are_accepted() {
        let (_dir, keys) = keys();
        let (_, secret) = keys.create("one").unwrap();
        let upper = secret.to_uppercase();
        let longer = format!("{secret}1");
        let shorter = &secret[..secret.len() - 1];
        let bare = &secret[PREFIX.len()..];
        let spaced = format!(" {secret}");
        let long = format!("{PREFIX}{}", "1".repeat(1 << 20));
        for wrong in ["", PREFIX, "ck-nothing", &upper, &longer, shorter, bare, &spaced, &long] {
            assert_eq!(keys.verify(wrong).unwrap(), None, "{wrong:.80}");
        }
    }

    #[test]
    fn a_shared_id_is_not_enough() {
        let (_dir, keys) = keys();
        let (id, secret) = keys.create("one").unwrap();
        keys.lock().execute("UPDATE api_key SET digest = zeroblob(32) WHERE id = ?1", [id.as_str()]).unwrap();
        assert_eq!(keys.verify(&secret).unwrap(), None);
    }

    #[test]
    fn the_secret_is_not_in_the_file() {
        let (dir, keys) = keys();
        let (_, secret) = keys.create("one").unwrap();
        drop(keys);
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            let needle = &secret.as_bytes()[PREFIX.len()..];
            assert!(!bytes.windows(needle.len()).any(|window| window == needle));
        }
    }

    #[test]
    fn labels_and_ids_are_checked() {
        let (_dir, keys) = keys();
        assert!(matches!(keys.create(&"x".repeat(MAX_LABEL + 1)), Err(KeyError::BadLabel)));
        assert!(matches!(keys.create("a\u{1b}[31m"), Err(KeyError::BadLabel)));
        keys.create(&"ü".repeat(MAX_LABEL)).unwrap();
        for wrong in ["", "0123456789a", "0123456789aB", "0123456789abc"] {
            assert!(matches!(wrong.parse::<KeyId>(), Err(KeyError::BadId)));
        }
        let unknown: KeyId = "0123456789ab".parse().unwrap();
        assert!(matches!(keys.revoke(&unknown), Err(KeyError::Unknown(_))));
    }

    #[test]
    fn two_processes_share_the_file() {
        let (dir, keys) = keys();
        let path = dir.path().join("ledger.db");
        let other = ApiKeys::open(&path).unwrap();
        let (id, secret) = other.create("cli").unwrap();
        assert_eq!(keys.verify(&secret).unwrap(), Some(id.clone()));
        other.revoke(&id).unwrap();
        assert_eq!(keys.verify(&secret).unwrap(), None);
    }

    #[test]
    fn many_openers_and_writers_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let keys = ApiKeys::open(&path).unwrap();
                    for _ in 0..5 {
                        let (id, secret) = keys.create("load").unwrap();
                        assert_eq!(keys.verify(&secret).unwrap(), Some(id));
                    }
                });
            }
        });
        assert_eq!(ApiKeys::open(&path).unwrap().list().unwrap().len(), 40);
    }
}
