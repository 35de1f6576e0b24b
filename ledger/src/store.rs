//! Opening `ledger.db`, and the wallet's own database.
//!
//! The schema's version is SQLite's `user_version`: the number of migrations applied. A file with a higher version
//! was written by newer software and is left untouched. Write-ahead logging lets readers and one writer of several
//! processes work at once; a writer waits for another up to [`BUSY_TIMEOUT`].

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

/// How long a statement waits for another process's write to finish.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Marks the file as a Consortium ledger ("CLDG"), so that another program's database is not taken for one.
const APPLICATION_ID: i32 = 0x434c_4447;

/// The schema's history: entry `n` leads from version `n` to `n + 1`. Entries are never changed, only added.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE api_key (
        id         TEXT    PRIMARY KEY NOT NULL,
        label      TEXT    NOT NULL,
        digest     BLOB    NOT NULL UNIQUE CHECK (length(digest) = 32),
        created_s  INTEGER NOT NULL,
        revoked_s  INTEGER
    ) STRICT;
    ",
    "
    CREATE TABLE entry (
        seq        INTEGER PRIMARY KEY NOT NULL CHECK (seq >= 0),
        at_ms      INTEGER NOT NULL,
        kind       TEXT    NOT NULL,
        reference  BLOB    NOT NULL CHECK (length(reference) = 32),
        hash       BLOB    NOT NULL CHECK (length(hash) = 32),
        UNIQUE (kind, reference)
    ) STRICT;
    CREATE TABLE posting (
        seq        INTEGER NOT NULL REFERENCES entry (seq),
        owner      TEXT    NOT NULL,
        part       TEXT    NOT NULL,
        msat       INTEGER NOT NULL CHECK (msat <> 0),
        PRIMARY KEY (seq, owner, part)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX posting_of_owner ON posting (owner, seq);
    CREATE TABLE node (
        level      INTEGER NOT NULL CHECK (level > 0),
        place      INTEGER NOT NULL,
        hash       BLOB    NOT NULL CHECK (length(hash) = 32),
        PRIMARY KEY (level, place)
    ) STRICT, WITHOUT ROWID;

    CREATE TRIGGER entry_stays BEFORE UPDATE ON entry BEGIN SELECT raise(ABORT, 'the journal only grows'); END;
    CREATE TRIGGER entry_kept BEFORE DELETE ON entry BEGIN SELECT raise(ABORT, 'the journal only grows'); END;
    CREATE TRIGGER posting_stays BEFORE UPDATE ON posting BEGIN SELECT raise(ABORT, 'the journal only grows'); END;
    CREATE TRIGGER posting_kept BEFORE DELETE ON posting BEGIN SELECT raise(ABORT, 'the journal only grows'); END;

    CREATE TABLE balance (
        owner      TEXT    NOT NULL,
        part       TEXT    NOT NULL,
        msat       INTEGER NOT NULL,
        PRIMARY KEY (owner, part)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE turnover (
        owner      TEXT    PRIMARY KEY NOT NULL,
        earned     INTEGER NOT NULL,
        spent      INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE claim (
        id         INTEGER PRIMARY KEY NOT NULL,
        seq        INTEGER NOT NULL REFERENCES entry (seq),
        job        BLOB    NOT NULL CHECK (length(job) = 16),
        attempt    INTEGER NOT NULL,
        stage      INTEGER NOT NULL,
        receipt    BLOB    NOT NULL CHECK (length(receipt) = 32),
        first      INTEGER NOT NULL,
        last       INTEGER NOT NULL,
        start      INTEGER NOT NULL,
        stop       INTEGER NOT NULL,
        worker     TEXT    NOT NULL,
        payer      TEXT    NOT NULL,
        pay        INTEGER NOT NULL CHECK (pay >= 0),
        fee        INTEGER NOT NULL CHECK (fee >= 0),
        tail       INTEGER NOT NULL CHECK (tail BETWEEN 0 AND pay),
        state      TEXT    NOT NULL CHECK (state IN ('held', 'tail', 'paid', 'returned', 'forfeited')),
        due_ms     INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX claim_of_job ON claim (job, attempt, stage);
    CREATE INDEX claim_due ON claim (due_ms) WHERE state IN ('held', 'tail');
    CREATE INDEX claim_of_worker ON claim (worker) WHERE state IN ('held', 'tail');

    CREATE TABLE batch (
        size       INTEGER PRIMARY KEY NOT NULL CHECK (size > 0),
        at_ms      INTEGER NOT NULL,
        head       BLOB    NOT NULL
    ) STRICT;
    CREATE TABLE seen_head (
        id         INTEGER PRIMARY KEY NOT NULL,
        signer     BLOB    NOT NULL CHECK (length(signer) = 32),
        size       INTEGER NOT NULL,
        head       BLOB    NOT NULL,
        UNIQUE (signer, size)
    ) STRICT;
    CREATE TABLE equivocation (
        signer     BLOB    PRIMARY KEY NOT NULL CHECK (length(signer) = 32),
        at_ms      INTEGER NOT NULL,
        proof      BLOB    NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE node_record (
        node       BLOB    PRIMARY KEY NOT NULL CHECK (length(node) = 32),
        first_seen_ms  INTEGER NOT NULL,
        last_seen_ms   INTEGER NOT NULL,
        watched_ms     INTEGER NOT NULL,
        up_ms          INTEGER NOT NULL,
        latency_us     INTEGER,
        tokens         INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE evidence (
        digest     BLOB    PRIMARY KEY NOT NULL CHECK (length(digest) = 32),
        subject    BLOB    NOT NULL CHECK (length(subject) = 32),
        signer     BLOB    NOT NULL CHECK (length(signer) = 32),
        topic      BLOB    NOT NULL CHECK (length(topic) = 32),
        finding    TEXT    NOT NULL,
        at_ms      INTEGER NOT NULL,
        bytes      BLOB    NOT NULL,
        UNIQUE (signer, subject, topic)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX evidence_about ON evidence (subject, digest);
    CREATE INDEX evidence_age ON evidence (at_ms);
    CREATE TABLE rebutted (
        verdict    BLOB    PRIMARY KEY NOT NULL CHECK (length(verdict) = 32),
        at_ms      INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    ",
    // The proof that an old verdict names follows its name, in canonical CBOR, in the signed bytes.
    "
    ALTER TABLE evidence ADD COLUMN proof BLOB CHECK (length(proof) = 32);
    UPDATE evidence SET proof = substr(bytes, instr(bytes, x'6570726f6f665820') + 8, 32)
        WHERE finding = 'fraud' AND instr(bytes, x'6570726f6f665820') > 0
            AND length(bytes) >= instr(bytes, x'6570726f6f665820') + 39;
    CREATE INDEX evidence_newest ON evidence (subject, at_ms, digest);
    CREATE INDEX evidence_of_proof ON evidence (proof, signer) WHERE proof IS NOT NULL;
    ",
    "
    CREATE TABLE reservation (
        job        BLOB    PRIMARY KEY NOT NULL CHECK (length(job) = 16),
        seq        INTEGER NOT NULL REFERENCES entry (seq),
        owner      TEXT    NOT NULL,
        msat       INTEGER NOT NULL CHECK (msat >= 0)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX claim_of_entry ON claim (seq);
    ",
    "
    CREATE TABLE payment (
        direction  TEXT    NOT NULL CHECK (direction IN ('in', 'out')),
        hash       BLOB    NOT NULL CHECK (length(hash) = 32),
        owner      TEXT    NOT NULL,
        msat       INTEGER NOT NULL CHECK (msat >= 0),
        note       TEXT    NOT NULL,
        at_ms      INTEGER NOT NULL,
        seq        INTEGER REFERENCES entry (seq),
        moved      INTEGER,
        fee        INTEGER,
        CHECK ((seq IS NULL) = (moved IS NULL) AND (seq IS NULL) = (fee IS NULL)),
        PRIMARY KEY (direction, hash)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX payment_booked ON payment (seq) WHERE seq IS NOT NULL;
    CREATE TABLE followed (
        source     TEXT    PRIMARY KEY NOT NULL,
        seq        INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    ",
    "
    CREATE INDEX claim_of_pair ON claim (payer, worker, state, due_ms, tail, pay) WHERE state IN ('held', 'tail', 'paid');
    ",
    "
    CREATE TABLE l402_token (
        account    TEXT    PRIMARY KEY NOT NULL,
        token      BLOB    NOT NULL UNIQUE CHECK (length(token) = 32),
        secret     BLOB    NOT NULL CHECK (length(secret) = 32),
        created_s  INTEGER NOT NULL,
        expires_s  INTEGER NOT NULL,
        paid_s     INTEGER,
        revoked_s  INTEGER
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE l402_invoice (
        hash       BLOB    PRIMARY KEY NOT NULL CHECK (length(hash) = 32),
        account    TEXT    NOT NULL,
        caller     TEXT    NOT NULL,
        expires_s  INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX l402_invoice_end ON l402_invoice (expires_s, caller);
    CREATE INDEX l402_invoice_of_account ON l402_invoice (account);
    CREATE TABLE l402_budget (
        name       BLOB    PRIMARY KEY NOT NULL CHECK (length(name) = 32),
        account    TEXT    NOT NULL,
        msat       INTEGER NOT NULL CHECK (msat >= 0)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE l402_budget_of_job (
        job        BLOB    NOT NULL CHECK (length(job) = 16),
        name       BLOB    NOT NULL REFERENCES l402_budget (name) ON DELETE CASCADE,
        PRIMARY KEY (job, name)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX l402_budget_in_use ON l402_budget_of_job (name);
    CREATE TABLE l402_refund (
        hash       BLOB    PRIMARY KEY NOT NULL CHECK (length(hash) = 32),
        account    TEXT    NOT NULL,
        invoice    TEXT    NOT NULL,
        msat       INTEGER NOT NULL CHECK (msat > 0),
        fee        INTEGER NOT NULL CHECK (fee >= 0),
        attempt    INTEGER NOT NULL CHECK (attempt > 0),
        state      TEXT    NOT NULL CHECK (state IN ('open', 'paid', 'failed')),
        at_s       INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX l402_refund_open ON l402_refund (account) WHERE state = 'open';
    ",
    "
    ALTER TABLE payment ADD COLUMN purpose TEXT NOT NULL DEFAULT 'account'
        CHECK (purpose IN ('account', 'reward', 'bond'));
    ",
];

/// Why the ledger could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file could not be created or reached.
    #[error("cannot open the ledger {path}: {source}")]
    File {
        /// The ledger's path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// SQLite refused.
    #[error("cannot open the ledger {path}: {source}")]
    Database {
        /// The ledger's path.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The file is a database of some other program.
    #[error("{path} is not a Consortium ledger")]
    Foreign {
        /// The path given.
        path: PathBuf,
    },
    /// The file was written by newer software.
    #[error("the ledger {path} has schema version {found}, this software knows up to {known}: update it")]
    Newer {
        /// The ledger's path.
        path: PathBuf,
        /// Version found in the file.
        found: i64,
        /// Newest version this software can read.
        known: i64,
    },
}

/// What a database of this crate is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schema {
    /// SQLite's mark of whose file it is.
    pub(crate) application_id: i32,
    /// The schema's history, from version 0 on.
    pub(crate) migrations: &'static [&'static str],
}

/// Opens the ledger at `path`, creating it (readable by its owner only) or bringing its schema up to date.
///
/// # Errors
/// [`OpenError`] when the file cannot be used; nothing has then been changed in it.
pub fn open(path: &Path) -> Result<Connection, OpenError> {
    open_with(path, Schema { application_id: APPLICATION_ID, migrations: MIGRATIONS })
}

/// As [`open`], for a database with a schema of its own.
pub(crate) fn open_with(path: &Path, schema: Schema) -> Result<Connection, OpenError> {
    create_private(path).map_err(|source| OpenError::File { path: path.to_owned(), source })?;
    let database = |source| OpenError::Database { path: path.to_owned(), source };
    let mut connection = Connection::open(path).map_err(database)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(database)?;
    // Looked at before the first write, so that what is not ours stays as it is.
    check_owner(&mut connection, schema, path)?;
    enter_wal(&connection).map_err(database)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(database)?;
    connection.pragma_update(None, "foreign_keys", true).map_err(database)?;
    migrate(&mut connection, schema, path)?;
    Ok(connection)
}

/// Creates the file with owner-only access when it is not there; SQLite gives its journal the same mode.
///
/// A file that is there must not even be opened: to close it again would drop the locks by which SQLite holds it for
/// this process (POSIX ties them to process and file), and the next process to close it would take the write-ahead log
/// away from under this one.
fn create_private(path: &Path) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        created => created.map(drop),
    }
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Refuses what is not a ledger, or a newer one. One read transaction: another process may be creating the ledger
/// right now, and its tables must not be seen without its mark.
fn check_owner(connection: &mut Connection, schema: Schema, path: &Path) -> Result<(), OpenError> {
    let database = |source| OpenError::Database { path: path.to_owned(), source };
    let snapshot = connection.transaction().map_err(database)?;
    let owner: i32 = snapshot.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(database)?;
    let tables: i64 =
        snapshot.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(database)?;
    if owner != schema.application_id && (owner != 0 || tables != 0) {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    check_version(version(&snapshot).map_err(database)?, schema, path).map(drop)
}

/// The number of migrations already applied.
fn check_version(found: i64, schema: Schema, path: &Path) -> Result<usize, OpenError> {
    usize::try_from(found).ok().filter(|applied| *applied <= schema.migrations.len()).ok_or_else(|| OpenError::Newer {
        path: path.to_owned(),
        found,
        known: i64::try_from(schema.migrations.len()).unwrap_or(i64::MAX),
    })
}

/// Switches to write-ahead logging. SQLite does not always call the busy handler for this switch, hence the loop.
fn enter_wal(connection: &Connection) -> rusqlite::Result<()> {
    let give_up = Instant::now() + BUSY_TIMEOUT;
    loop {
        let result = connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()));
        match result {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

/// Applies what is missing, in one transaction that holds the write lock from its start: of two processes that open
/// a new file together, one creates the schema and the other finds it done.
fn migrate(connection: &mut Connection, schema: Schema, path: &Path) -> Result<(), OpenError> {
    let database = |source| OpenError::Database { path: path.to_owned(), source };
    if check_version(version(connection).map_err(database)?, schema, path)? == schema.migrations.len() {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(database)?;
    let applied = check_version(version(&transaction).map_err(database)?, schema, path)?;
    for migration in schema.migrations.iter().skip(applied) {
        transaction.execute_batch(migration).map_err(database)?;
    }
    transaction.pragma_update(None, "application_id", schema.application_id).map_err(database)?;
    transaction.pragma_update(None, "user_version", schema.migrations.len()).map_err(database)?;
    transaction.commit().map_err(database)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_again_at_the_same_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        drop(open(&path).unwrap());
        let again = open(&path).unwrap();
        assert_eq!(version(&again).unwrap(), i64::try_from(MIGRATIONS.len()).unwrap());
    }

    #[test]
    fn a_file_of_the_first_version_is_brought_up_to_date() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(MIGRATIONS[0]).unwrap();
        old.execute_batch("INSERT INTO api_key VALUES ('0123456789ab', 'kept', zeroblob(32), 1, NULL)").unwrap();
        old.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        old.pragma_update(None, "user_version", 1).unwrap();
        drop(old);
        let now = open(&path).unwrap();
        assert_eq!(version(&now).unwrap(), i64::try_from(MIGRATIONS.len()).unwrap());
        let kept: String = now.query_row("SELECT label FROM api_key", [], |row| row.get(0)).unwrap();
        assert_eq!(kept, "kept");
        assert!(now.query_row("SELECT count(*) FROM entry", [], |row| row.get::<_, u32>(0)).unwrap() == 0);
    }

    #[test]
    fn old_accusations_are_found_by_their_proof() {
        use consortium_protocol::wire::audit::{Compute, KernelFamily, NumericClass, Outcome, Verdict};
        use consortium_protocol::wire::job::JobId;
        use consortium_protocol::{ClusterId, Hash, RootKey, Signed};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        let key = RootKey::from_seed([1; 32]);
        let word = Verdict {
            cluster: ClusterId(Hash::of(b"cluster")),
            auditee: RootKey::from_seed([2; 32]).node_id(),
            job: JobId([3; 16]),
            attempt: 1,
            stage: 0,
            receipt: Hash::of(b"receipt"),
            outcome: Outcome::Fraud,
            blocks: 400,
            exact: 30,
            class: NumericClass { compute: Compute::F32, kernels: KernelFamily::Invariant, engine: 1 },
            proof: Some(Hash::of(b"proof")),
            at_ms: 1_800_000_000_000,
        };
        let passed = Verdict { outcome: Outcome::Pass, proof: None, ..word.clone() };
        let old = Connection::open(&path).unwrap();
        old.execute_batch(&MIGRATIONS[..2].concat()).unwrap();
        for (n, word) in [word, passed].into_iter().enumerate() {
            let (signed, finding) = (Signed::sign(&key, word), ["fraud", "pass"][n]);
            old.execute(
                "INSERT INTO evidence VALUES (?1, zeroblob(32), zeroblob(32), ?1, ?2, 5, ?3)",
                rusqlite::params![signed.digest().as_bytes(), finding, signed.as_bytes()],
            )
            .unwrap();
        }
        old.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        old.pragma_update(None, "user_version", 2).unwrap();
        drop(old);
        let now = open(&path).unwrap();
        let mut rows = now.prepare("SELECT finding, proof FROM evidence ORDER BY finding").unwrap();
        let rows: Vec<(String, Option<[u8; 32]>)> =
            rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect();
        let proof = *Hash::of(b"proof").as_bytes();
        assert_eq!(rows, [("fraud".to_owned(), Some(proof)), ("pass".to_owned(), None)]);
    }

    #[test]
    fn newer_file_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        let before = std::fs::read(&path).unwrap();
        assert!(matches!(open(&path), Err(OpenError::Newer { found: 99, .. })));
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn foreign_databases_and_other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let foreign = dir.path().join("foreign.db");
        Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
        assert!(matches!(open(&foreign), Err(OpenError::Foreign { .. })));
        let text = dir.path().join("notes.txt");
        std::fs::write(&text, "not a database, only some words long enough to be read as a header......").unwrap();
        assert!(matches!(open(&text), Err(OpenError::Database { .. })));
        assert!(matches!(open(&dir.path().join("no/such/dir.db")), Err(OpenError::File { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
