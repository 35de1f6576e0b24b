//! `escrow.db`: what happened, in the order in which it happened, and never changed.
//!
//! An escrow is the sum of its events. The events of one turn are written together or not at all; an event of a name that
//! its escrow has already is the same thing told again and changes nothing. Beside the events stands up to where the
//! wallet's own events were read: behind the truth after a crash, never ahead of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consortium_protocol::wire::escrow::{EscrowId, EscrowTerms, HashLock};
use consortium_protocol::{Hash, NodeId, Signed, cbor};
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};

use super::event::{Event, MAX_EVENT};
use super::state::Escrow;
use crate::store::{self, OpenError, Schema};

/// "CESC".
const APPLICATION_ID: i32 = 0x4345_5343;

const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE event (
        seq     INTEGER PRIMARY KEY NOT NULL,
        escrow  BLOB    NOT NULL CHECK (length(escrow) = 16),
        name    TEXT    NOT NULL,
        at_ms   INTEGER NOT NULL,
        body    BLOB    NOT NULL,
        UNIQUE (escrow, name)
    ) STRICT;
    CREATE TRIGGER event_stays BEFORE UPDATE ON event BEGIN SELECT raise(ABORT, 'the log only grows'); END;
    CREATE TRIGGER event_kept BEFORE DELETE ON event BEGIN SELECT raise(ABORT, 'the log only grows'); END;
    CREATE TABLE digest (
        terms   BLOB    PRIMARY KEY NOT NULL CHECK (length(terms) = 32),
        escrow  BLOB    NOT NULL UNIQUE CHECK (length(escrow) = 16)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE lock (
        hash    BLOB    PRIMARY KEY NOT NULL CHECK (length(hash) = 32),
        escrow  BLOB    NOT NULL CHECK (length(escrow) = 16),
        tranche INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE finished (
        escrow  BLOB    PRIMARY KEY NOT NULL CHECK (length(escrow) = 16)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE wallet (
        id      INTEGER PRIMARY KEY NOT NULL CHECK (id = 1),
        seq     INTEGER NOT NULL CHECK (seq >= 0)
    ) STRICT;
",
    "
    ALTER TABLE wallet ADD COLUMN name TEXT;
    CREATE TABLE elsewhere (
        escrow  BLOB    PRIMARY KEY NOT NULL CHECK (length(escrow) = 16)
    ) STRICT, WITHOUT ROWID;
",
    "CREATE INDEX event_opened ON event (seq) WHERE name = 'opened';",
    // Those of before are about nothing that is looked for by its subject.
    "
    CREATE TABLE subject (
        subject BLOB    NOT NULL CHECK (length(subject) = 32),
        escrow  BLOB    NOT NULL CHECK (length(escrow) = 16),
        PRIMARY KEY (subject, escrow)
    ) STRICT, WITHOUT ROWID;
",
];

/// Why the log failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// SQLite failed.
    #[error("the log of escrows failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// An event in it cannot be read, or its events make no escrow of this node.
    #[error("the log of escrows is damaged at escrow {0}")]
    Damaged(EscrowId),
    /// An escrow of that name is there.
    #[error("there is an escrow {0} already, or one with a hash of it, with other terms")]
    Taken(EscrowId),
}

/// The log of one node. A clone is the same; calls block on the disk.
#[derive(Clone, Debug)]
pub struct Log {
    connection: Arc<Mutex<Connection>>,
    me: NodeId,
}

impl Log {
    /// Opens the log of a node, or begins it.
    ///
    /// # Errors
    /// When the file cannot be used, is not one, or was written by newer software.
    pub fn open(path: &Path, me: NodeId) -> Result<Self, LogError> {
        let schema = Schema { application_id: APPLICATION_ID, migrations: MIGRATIONS };
        Ok(Self { connection: Arc::new(Mutex::new(store::open_with(path, schema)?)), me })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic in between left a transaction that was rolled back.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down what happened, together. Gives how much of it was new.
    ///
    /// # Errors
    /// [`LogError::Taken`] when an escrow of that name began with other terms; when the disk fails.
    pub fn append(&self, escrow: EscrowId, events: &[Event], at_ms: u64) -> Result<usize, LogError> {
        let mut connection = self.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut new = 0;
        for event in events {
            if let Event::Opened { terms, .. } = event {
                note_terms(&transaction, escrow, terms)?;
            }
            new += transaction.execute(
                "INSERT INTO event (escrow, name, at_ms, body) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
                params![escrow.0, event.name().as_str(), i64::try_from(at_ms).unwrap_or(i64::MAX), cbor::to_vec(event)],
            )?;
        }
        transaction.commit()?;
        Ok(new)
    }

    /// An escrow, as its events make it; none if there is none.
    ///
    /// # Errors
    /// When the disk fails, or the log is damaged.
    pub fn load(&self, escrow: EscrowId) -> Result<Option<Escrow>, LogError> {
        let events = self.events(escrow)?;
        if events.is_empty() {
            return Ok(None);
        }
        Escrow::replay(self.me, events).map(Some).ok_or(LogError::Damaged(escrow))
    }

    /// What happened in an escrow.
    ///
    /// # Errors
    /// When the disk fails, or the log is damaged.
    pub fn events(&self, escrow: EscrowId) -> Result<Vec<Event>, LogError> {
        let connection = self.lock();
        let mut wanted = connection.prepare_cached("SELECT body FROM event WHERE escrow = ?1 ORDER BY seq")?;
        let bodies = wanted.query_map([escrow.0], |row| row.get::<_, Vec<u8>>(0))?;
        let mut events = Vec::new();
        for body in bodies {
            events.push(cbor::from_slice(&body?, MAX_EVENT).map_err(|_| LogError::Damaged(escrow))?);
        }
        Ok(events)
    }

    /// Escrows with their places in the log, the newest first, from before a place on; at most `limit`.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn newest(&self, before: Option<u64>, limit: u32) -> Result<Vec<(u64, EscrowId)>, LogError> {
        let connection = self.lock();
        let mut wanted = connection.prepare_cached(
            "SELECT seq, escrow FROM event WHERE name = 'opened' AND seq < ?1 ORDER BY seq DESC LIMIT ?2",
        )?;
        let before = before.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX);
        let places = wanted.query_map(params![before, limit], |row| Ok((row.get(0)?, row.get(1).map(EscrowId)?)))?;
        Ok(places.collect::<Result<_, _>>()?)
    }

    /// When what happened in an escrow was written down, in milliseconds since 1970, and by which name.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn history(&self, escrow: EscrowId) -> Result<Vec<(u64, String)>, LogError> {
        let connection = self.lock();
        let mut wanted = connection.prepare_cached("SELECT at_ms, name FROM event WHERE escrow = ?1 ORDER BY seq")?;
        let lines = wanted.query_map([escrow.0], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(lines.collect::<Result<_, _>>()?)
    }

    /// The name of the escrow with terms of this digest.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn find(&self, terms: &Hash) -> Result<Option<EscrowId>, LogError> {
        let connection = self.lock();
        let mut wanted = connection.prepare_cached("SELECT escrow FROM digest WHERE terms = ?1")?;
        Ok(wanted.query_row([terms.as_bytes()], |row| row.get(0).map(EscrowId)).optional()?)
    }

    /// The names of the escrows in which this is judged.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn about(&self, subject: &Hash) -> Result<Vec<EscrowId>, LogError> {
        let connection = self.lock();
        let mut wanted = connection.prepare_cached("SELECT escrow FROM subject WHERE subject = ?1 ORDER BY escrow")?;
        let names = wanted.query_map([subject.as_bytes()], |row| row.get(0).map(EscrowId))?;
        Ok(names.collect::<Result<_, _>>()?)
    }

    /// The escrow and the tranche with this hash.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn by_lock(&self, lock: &HashLock) -> Result<Option<(EscrowId, u8)>, LogError> {
        let connection = self.lock();
        let mut wanted = connection.prepare_cached("SELECT escrow, tranche FROM lock WHERE hash = ?1")?;
        let found = wanted.query_row([lock.as_bytes()], |row| Ok((EscrowId(row.get(0)?), row.get(1)?)));
        Ok(found.optional()?)
    }

    /// Escrows in which something is still to be done.
    ///
    /// # Errors
    /// When the disk fails, or the log is damaged.
    pub fn unfinished(&self) -> Result<BTreeMap<EscrowId, Escrow>, LogError> {
        let names = {
            let connection = self.lock();
            let mut wanted =
                connection.prepare("SELECT escrow FROM digest WHERE escrow NOT IN (SELECT escrow FROM finished)")?;
            let names = wanted.query_map([], |row| row.get(0).map(EscrowId))?;
            names.collect::<Result<Vec<_>, _>>()?
        };
        let mut found = BTreeMap::new();
        for name in names {
            found.extend(self.load(name)?.map(|escrow| (name, escrow)));
        }
        Ok(found)
    }

    /// Notes that there is nothing more to be done in an escrow.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn finish(&self, escrow: EscrowId) -> Result<(), LogError> {
        self.lock().execute("INSERT OR IGNORE INTO finished VALUES (?1)", [escrow.0])?;
        Ok(())
    }

    /// Notes the name of the wallet's records. If it was another before, its events are read from the beginning, and
    /// escrows of which something was sent are [`Log::is_elsewhere`]. Tells whether it was.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn bind_wallet(&self, name: &str) -> Result<bool, LogError> {
        let mut connection = self.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let known: Option<Option<String>> =
            transaction.query_row("SELECT name FROM wallet", [], |row| row.get(0)).optional()?;
        let other = known.flatten().is_some_and(|known| known != name);
        if other {
            transaction.execute("UPDATE wallet SET seq = 0", [])?;
            let sent = "INSERT OR IGNORE INTO elsewhere SELECT DISTINCT escrow FROM event WHERE name GLOB 'sent *'
                        AND escrow NOT IN (SELECT escrow FROM finished)";
            transaction.execute(sent, [])?;
        }
        let sql = "INSERT INTO wallet (id, seq, name) VALUES (1, 0, ?1) ON CONFLICT (id) DO UPDATE SET name = ?1";
        transaction.execute(sql, [name])?;
        transaction.commit()?;
        Ok(other)
    }

    /// Whether something of an escrow was sent from another wallet than the present one.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn is_elsewhere(&self, escrow: EscrowId) -> Result<bool, LogError> {
        let connection = self.lock();
        let mut wanted = connection.prepare_cached("SELECT 1 FROM elsewhere WHERE escrow = ?1")?;
        Ok(wanted.exists([escrow.0])?)
    }

    /// Up to where the wallet's events were read.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn wallet_seq(&self) -> Result<u64, LogError> {
        let seq: Option<i64> = self.lock().query_row("SELECT seq FROM wallet", [], |row| row.get(0)).optional()?;
        Ok(seq.and_then(|seq| u64::try_from(seq).ok()).unwrap_or(0))
    }

    /// Notes up to where the wallet's events were read and taken.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn note_wallet_seq(&self, seq: u64) -> Result<(), LogError> {
        let sql = "INSERT INTO wallet (id, seq) VALUES (1, ?1) ON CONFLICT (id) DO UPDATE SET seq = max(seq, ?1)";
        self.lock().execute(sql, [i64::try_from(seq).unwrap_or(i64::MAX)])?;
        Ok(())
    }
}

/// Notes where an escrow is found by the digest of its terms, and by its hashes. Nothing may have two meanings.
fn note_terms(transaction: &Transaction<'_>, escrow: EscrowId, terms: &Signed<EscrowTerms>) -> Result<(), LogError> {
    let digest = terms.digest();
    let sql = "INSERT OR IGNORE INTO digest VALUES (?1, ?2)";
    transaction.execute(sql, params![digest.as_bytes(), escrow.0])?;
    let sql = "INSERT OR IGNORE INTO subject VALUES (?1, ?2)";
    transaction.execute(sql, params![terms.payload().subject.as_bytes(), escrow.0])?;
    let known = "SELECT 1 FROM digest WHERE terms = ?1 AND escrow = ?2";
    let mut fits = transaction.prepare(known)?.exists(params![digest.as_bytes(), escrow.0])?;
    for (tranche, lock) in (0..=u8::MAX).zip(&terms.payload().locks) {
        let sql = "INSERT OR IGNORE INTO lock VALUES (?1, ?2, ?3)";
        transaction.execute(sql, params![lock.as_bytes(), escrow.0, tranche])?;
        let known = "SELECT 1 FROM lock WHERE hash = ?1 AND escrow = ?2 AND tranche = ?3";
        fits &= transaction.prepare(known)?.exists(params![lock.as_bytes(), escrow.0, tranche])?;
    }
    if fits { Ok(()) } else { Err(LogError::Taken(escrow)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::escrow::machine::Input;
    use crate::escrow::samples;

    #[test]
    fn an_escrow_is_the_sum_of_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("escrow.db");
        let (terms, me) = (samples::tranches(2), samples::key(2).node_id());
        let id = terms.payload().id;
        let log = Log::open(&path, me).unwrap();
        assert_eq!(log.load(id).unwrap(), None);
        let mut escrow = Escrow::new(terms.clone(), me, 100).unwrap();
        let opened = Event::Opened { terms: terms.clone(), height: 100 };
        assert_eq!(log.append(id, std::slice::from_ref(&opened), 1).unwrap(), 1);
        assert_eq!(log.append(id, &[opened], 2).unwrap(), 0, "told again");
        let secret = samples::secrets().preimage(id, 0);
        let sealed = vec![(0, crate::escrow::secrets::Secrets::of(&samples::key(2)).seal(id, 0, &secret))];
        for input in [
            Input::Invoice { tranche: 0, invoice: "a".to_owned() },
            Input::Invoice { tranche: 1, invoice: "b".to_owned() },
            Input::Held { tranche: 0, deadline: 200 },
            Input::Held { tranche: 1, deadline: 201 },
            Input::Verdict { verdict: samples::verdict(&terms, 1), sealed },
        ] {
            let turn = escrow.handle(&input, 101).unwrap();
            log.append(id, &turn.events, 3).unwrap();
            escrow = turn.next;
            assert_eq!(log.load(id).unwrap().as_ref(), Some(&escrow));
        }
        drop(log);
        let log = Log::open(&path, me).unwrap();
        assert_eq!(log.unfinished().unwrap(), BTreeMap::from([(id, escrow)]));
        assert_eq!(log.find(&terms.digest()).unwrap(), Some(id));
        assert_eq!(log.newest(None, 9).unwrap(), [(1, id)]);
        assert_eq!(log.newest(Some(1), 9).unwrap(), []);
        assert_eq!(log.history(id).unwrap()[..2], [(1, "opened".to_owned()), (3, "invoiced 0".to_owned())]);
        assert_eq!(log.by_lock(&terms.payload().locks[1]).unwrap(), Some((id, 1)));
        log.finish(id).unwrap();
        assert!(log.unfinished().unwrap().is_empty());
        let bytes = std::fs::read(&path).unwrap();
        let wal = std::fs::read(dir.path().join("escrow.db-wal")).unwrap();
        let has = |bytes: &[u8]| bytes.windows(32).any(|window| window == secret.reveal());
        assert!(!has(&bytes) && !has(&wal), "no preimage in clear");
    }

    #[test]
    fn the_log_only_grows_and_a_name_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let (terms, me) = (samples::reward(), samples::key(1).node_id());
        let id = terms.payload().id;
        let log = Log::open(&dir.path().join("escrow.db"), me).unwrap();
        log.append(id, &[Event::Opened { terms: terms.clone(), height: 1 }], 1).unwrap();
        for sql in ["UPDATE event SET at_ms = 9", "DELETE FROM event"] {
            assert!(log.lock().execute(sql, []).unwrap_err().to_string().contains("only grows"));
        }
        let mut other = terms.payload().clone();
        other.at_ms += 1;
        let other = Event::Opened { terms: Signed::sign(&samples::key(3), other), height: 1 };
        assert!(matches!(log.append(id, &[other], 1), Err(LogError::Taken(taken)) if taken == id));
        log.note_wallet_seq(7).unwrap();
        log.note_wallet_seq(5).unwrap();
        assert_eq!(log.wallet_seq().unwrap(), 7);
    }

    #[test]
    fn what_another_wallet_sent_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let (sent, unsent, me) = (samples::tranches(2), samples::reward(), samples::key(1).node_id());
        let log = Log::open(&dir.path().join("escrow.db"), me).unwrap();
        for terms in [&sent, &unsent] {
            log.append(terms.payload().id, &[Event::Opened { terms: terms.clone(), height: 1 }], 1).unwrap();
        }
        log.append(sent.payload().id, &[Event::Sent { tranche: 1, deadline: 9 }], 1).unwrap();
        // A log from before names were noted is of the wallet that is there.
        log.note_wallet_seq(7).unwrap();
        for _ in 0..2 {
            assert!(!log.bind_wallet("one").unwrap());
        }
        let elsewhere = || [&sent, &unsent].map(|terms| log.is_elsewhere(terms.payload().id).unwrap());
        assert_eq!((log.wallet_seq().unwrap(), elsewhere()), (7, [false, false]));
        assert!(log.bind_wallet("other").unwrap());
        assert_eq!((log.wallet_seq().unwrap(), elsewhere()), (0, [true, false]));
        log.note_wallet_seq(3).unwrap();
        assert!(!log.bind_wallet("other").unwrap());
        assert_eq!((log.wallet_seq().unwrap(), elsewhere()), (3, [true, false]));
    }

    #[test]
    fn a_newer_log_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("escrow.db");
        let me = samples::key(1).node_id();
        drop(Log::open(&path, me).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(Log::open(&path, me), Err(LogError::Open(OpenError::Newer { found: 99, .. }))));
    }
}
