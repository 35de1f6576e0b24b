//! `node.db`: peers seen, the election's promises, receipts of this node's jobs, and what is owed for them. One
//! connection, used from blocking tasks.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use consortium_protocol::cbor;
use consortium_protocol::cluster::ClusterId;
use consortium_protocol::election::Persisted;
use consortium_protocol::envelope::{ENVELOPE_BYTES, Payload as _, Signed};
use consortium_protocol::wire::audit::StageReceipt;
use consortium_protocol::wire::job::JobId;
use consortium_protocol::wire::pipeline::{self, SessionOpen};
use rusqlite::{Connection, OptionalExtension as _, params};

mod owed;
#[cfg(feature = "lightning")]
pub mod payees;
pub mod tab_channels;
pub mod tabs;

pub use owed::{Owed, OwedState};

/// Each entry takes the database from version `i` to `i + 1`.
const MIGRATIONS: &[&str] = &[
    "CREATE TABLE peers (peer_id TEXT PRIMARY KEY, addresses TEXT NOT NULL, last_seen_s INTEGER NOT NULL) STRICT;
     CREATE TABLE elections (cluster BLOB PRIMARY KEY, promises BLOB NOT NULL) STRICT;",
    "CREATE TABLE life (only INTEGER PRIMARY KEY CHECK (only = 0), incarnation INTEGER NOT NULL) STRICT;",
    "CREATE TABLE receipts (job BLOB PRIMARY KEY CHECK (length(job) = 16), at_ms INTEGER NOT NULL,
                            order_and_chain BLOB NOT NULL) STRICT, WITHOUT ROWID;
     CREATE INDEX receipts_age ON receipts (at_ms);",
    "CREATE TABLE owed (receipt BLOB PRIMARY KEY CHECK (length(receipt) = 32), job BLOB NOT NULL,
                        worker BLOB NOT NULL CHECK (length(worker) = 32), audit BLOB NOT NULL,
                        account TEXT NOT NULL, drawn INTEGER NOT NULL, at_ms INTEGER NOT NULL,
                        booked INTEGER NOT NULL, told INTEGER NOT NULL, verdict BLOB) STRICT, WITHOUT ROWID;
     CREATE INDEX owed_of_worker ON owed (worker, at_ms);
     CREATE INDEX owed_job ON owed (job);
     CREATE TABLE acceptances (receipt BLOB PRIMARY KEY CHECK (length(receipt) = 32), at_ms INTEGER NOT NULL,
                               signed BLOB NOT NULL) STRICT, WITHOUT ROWID;
     CREATE INDEX acceptances_age ON acceptances (at_ms);",
    tabs::SCHEMA,
    tab_channels::SCHEMA,
    "ALTER TABLE acceptances RENAME COLUMN receipt TO digest;",
];
/// Largest stored promise: a certificate of 64 votes fits many times over.
const MAX_PROMISES: usize = 4 << 20;
/// Peers remembered between runs.
const MAX_PEERS: u32 = 512;
/// Jobs whose receipts are kept: the newest.
const MAX_RECEIPTS: u32 = 10_000;
/// Largest stored order with its chain of receipts.
const MAX_ORDER_AND_CHAIN: usize = SessionOpen::MAX_BYTES + ENVELOPE_BYTES + pipeline::MAX_RECEIPTS + 64;

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// SQLite says no: damaged, full, or locked for too long.
    #[error("{file}: {source}")]
    Sqlite {
        /// The database file.
        file: String,
        /// SQLite's own words.
        source: rusqlite::Error,
    },
    /// Written by a later version of this software.
    #[error("{file} has version {found}, and this software knows versions up to {known}; upgrade it to use this data")]
    Newer {
        /// The database file.
        file: String,
        /// Version found.
        found: usize,
        /// Newest version known.
        known: usize,
    },
    /// Stored promises that do not decode.
    #[error("{file}: the stored election state is damaged; restore the file from a backup")]
    Damaged {
        /// The database file.
        file: String,
    },
    /// Stored receipts that do not decode.
    #[error("{file}: the stored receipts of job {job} are damaged")]
    DamagedReceipts {
        /// The database file.
        file: String,
        /// The job.
        job: JobId,
    },
    /// Stored debts that do not decode.
    #[error("{file}: what is stored of this node's debts is damaged; restore the file from a backup")]
    DamagedOwed {
        /// The database file.
        file: String,
    },
    /// The blocking task was cut off by the shutdown.
    #[error("the node is shutting down")]
    Closed,
}

/// What was ordered and signed for in one of this node's jobs.
#[derive(Clone, Debug, PartialEq)]
pub struct JobReceipts {
    /// When they were accepted, in milliseconds since 1970.
    pub at_ms: u64,
    /// The master's order.
    pub order: Signed<SessionOpen>,
    /// One receipt of each stage, in the order of the route.
    pub chain: Vec<Signed<StageReceipt>>,
}

/// Cloneable handle to the database.
#[derive(Clone)]
pub struct Storage {
    file: Arc<str>,
    connection: Arc<Mutex<Connection>>,
}

impl Storage {
    /// Opens (and if need be creates or migrates) the database at `path`.
    ///
    /// # Errors
    /// When it is damaged, or was written by newer software: then it is left untouched.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let file: Arc<str> = path.display().to_string().into();
        let sqlite = |source| StorageError::Sqlite { file: file.to_string(), source };
        let mut connection = Connection::open(path).map_err(sqlite)?;
        connection.busy_timeout(Duration::from_secs(5)).map_err(sqlite)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(sqlite)?;
        // A promise must outlive a power cut: a node that forgot its vote could vote twice.
        connection.pragma_update(None, "synchronous", "FULL").map_err(sqlite)?;
        let found: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(sqlite)?;
        if found > MIGRATIONS.len() {
            return Err(StorageError::Newer { file: file.to_string(), found, known: MIGRATIONS.len() });
        }
        let transaction = connection.transaction().map_err(sqlite)?;
        for migration in &MIGRATIONS[found..] {
            transaction.execute_batch(migration).map_err(sqlite)?;
        }
        transaction.pragma_update(None, "user_version", MIGRATIONS.len()).map_err(sqlite)?;
        transaction.commit().map_err(sqlite)?;
        Ok(Self { file, connection: Arc::new(Mutex::new(connection)) })
    }

    /// The promises made in elections of `cluster`; none at the first start.
    ///
    /// # Errors
    /// When the database fails or holds what does not decode.
    pub async fn election(&self, cluster: ClusterId) -> Result<Option<Persisted>, StorageError> {
        let bytes: Option<Vec<u8>> = self
            .run(move |db| {
                db.query_row("SELECT promises FROM elections WHERE cluster = ?1", [cluster.0.as_bytes()], |row| {
                    row.get(0)
                })
                .optional()
            })
            .await?;
        bytes
            .map(|bytes| {
                cbor::from_slice(&bytes, MAX_PROMISES)
                    .map_err(|_| StorageError::Damaged { file: self.file.to_string() })
            })
            .transpose()
    }

    /// Makes promises durable. They may be acted upon only after this returns.
    ///
    /// # Errors
    /// When the database fails (a full disk, for example): the promises are then not made.
    pub async fn save_election(&self, cluster: ClusterId, promises: &Persisted) -> Result<(), StorageError> {
        let bytes = cbor::to_vec(promises);
        self.run(move |db| {
            db.execute("INSERT OR REPLACE INTO elections VALUES (?1, ?2)", params![cluster.0.as_bytes(), bytes])
                .map(drop)
        })
        .await
    }

    /// The incarnation of a life that begins at `wall_ms`, since 1970: that time, or one more than the last life's if
    /// the wall clock went back meanwhile, for others take the life with the lower number for a thing of the past.
    ///
    /// # Errors
    /// When the database fails: the life may not begin.
    pub async fn next_incarnation(&self, wall_ms: u64) -> Result<u64, StorageError> {
        let now = i64::try_from(wall_ms).unwrap_or(i64::MAX);
        let next: i64 = self
            .run(move |db| {
                db.query_row(
                    "INSERT INTO life VALUES (0, ?1)
                     ON CONFLICT DO UPDATE SET incarnation = max(incarnation + 1, excluded.incarnation)
                     RETURNING incarnation",
                    [now],
                    |row| row.get(0),
                )
            })
            .await?;
        Ok(u64::try_from(next).unwrap_or_default())
    }

    /// Addresses of the peers seen last, newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn peer_addresses(&self) -> Result<Vec<String>, StorageError> {
        self.run(|db| {
            let mut query = db.prepare("SELECT addresses FROM peers ORDER BY last_seen_s DESC LIMIT 64")?;
            let rows = query.query_map([], |row| row.get::<_, String>(0))?;
            let mut addresses = Vec::new();
            for row in rows {
                addresses.extend(row?.lines().map(str::to_owned));
            }
            Ok(addresses)
        })
        .await
    }

    /// Remembers peers (`(peer id, addresses)`) seen at `now_s`, Unix seconds.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn save_peers(&self, peers: Vec<(String, Vec<String>)>, now_s: i64) -> Result<(), StorageError> {
        self.run(move |db| {
            let transaction = db.transaction()?;
            for (peer, addresses) in peers {
                transaction.execute(
                    "INSERT OR REPLACE INTO peers VALUES (?1, ?2, ?3)",
                    params![peer, addresses.join("\n"), now_s],
                )?;
            }
            transaction.execute(
                "DELETE FROM peers WHERE peer_id NOT IN (SELECT peer_id FROM peers ORDER BY last_seen_s DESC LIMIT ?1)",
                [MAX_PEERS],
            )?;
            transaction.commit()
        })
        .await
    }

    /// Keeps the receipts of one of this node's jobs, in the place of those of an earlier attempt. Of jobs beyond
    /// 10,000 the oldest are let go.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn save_receipts(&self, receipts: &JobReceipts) -> Result<(), StorageError> {
        let bytes = cbor::to_vec(&(&receipts.order, &receipts.chain));
        let (job, at_ms) = (receipts.order.payload().job, i64::try_from(receipts.at_ms).unwrap_or(i64::MAX));
        self.run(move |db| {
            let transaction = db.transaction()?;
            transaction.execute("INSERT OR REPLACE INTO receipts VALUES (?1, ?2, ?3)", params![job.0, at_ms, bytes])?;
            transaction.execute(
                "DELETE FROM receipts WHERE job IN
                     (SELECT job FROM receipts ORDER BY at_ms DESC, job DESC LIMIT -1 OFFSET ?1)",
                [MAX_RECEIPTS],
            )?;
            transaction.commit()
        })
        .await
    }

    /// The receipts of a job, if they are kept.
    ///
    /// # Errors
    /// When the database fails or holds what does not decode.
    pub async fn receipts(&self, job: JobId) -> Result<Option<JobReceipts>, StorageError> {
        let stored: Option<(u64, Vec<u8>)> = self
            .run(move |db| {
                db.query_row("SELECT at_ms, order_and_chain FROM receipts WHERE job = ?1", params![job.0], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .optional()
            })
            .await?;
        let decode = |(at_ms, bytes): (u64, Vec<u8>)| {
            let (order, chain) = cbor::from_slice(&bytes, MAX_ORDER_AND_CHAIN)
                .map_err(|_| StorageError::DamagedReceipts { file: self.file.to_string(), job })?;
            Ok(JobReceipts { at_ms, order, chain })
        };
        stored.map(decode).transpose()
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StorageError> {
        let connection = Arc::clone(&self.connection);
        let done =
            tokio::task::spawn_blocking(move || work(&mut connection.lock().unwrap_or_else(PoisonError::into_inner)));
        let result = done.await.map_err(|_| StorageError::Closed)?;
        result.map_err(|source| StorageError::Sqlite { file: self.file.to_string(), source })
    }
}

#[cfg(test)]
mod tests {
    use consortium_protocol::hash::Hash;
    use consortium_protocol::identity::RootKey;
    use consortium_protocol::msat::Msat;
    use consortium_protocol::wire::heartbeat::LayerRange;
    use consortium_protocol::wire::job::Sampling;
    use consortium_protocol::wire::mandate::Mandate;
    use consortium_protocol::wire::pipeline::Hop;

    use super::*;

    #[tokio::test]
    async fn peers_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.db");
        let peers = vec![("a".to_owned(), vec!["/ip4/127.0.0.1/tcp/1".to_owned(), "/ip4/127.0.0.1/tcp/2".to_owned()])];
        Storage::open(&path).unwrap().save_peers(peers, 5).await.unwrap();
        let again = Storage::open(&path).unwrap().peer_addresses().await.unwrap();
        assert_eq!(again, ["/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2"]);
    }

    #[tokio::test]
    async fn a_life_outranks_the_last_one_though_the_clock_went_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.db");
        for (wall, incarnation) in [(1000, 1000), (400, 1001), (400, 1002), (2000, 2000)] {
            assert_eq!(Storage::open(&path).unwrap().next_incarnation(wall).await.unwrap(), incarnation);
        }
    }

    #[tokio::test]
    async fn receipts_are_kept_by_job_the_latest_of_each() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(&dir.path().join("node.db")).unwrap();
        let key = RootKey::from_seed([1; 32]);
        let job = |n: u8| JobId([n; 16]);
        let kept = |n: u8, attempt: u32| {
            let open = SessionOpen {
                cluster: ClusterId(Hash::of(b"cluster")),
                term: 3,
                job: job(n),
                attempt,
                model: Hash::of(b"model"),
                driver: key.node_id(),
                route: vec![Hop { node: key.node_id(), range: LayerRange { first: 0, last: 3 } }],
                prices: vec![Msat(1)],
                master_fee: Msat(0),
                sampling: Sampling::default(),
                prompt_len: 1,
                max_positions: 8,
                payer: key.node_id(),
                challenge: Hash::of(b"challenge"),
                mandate: Signed::sign(
                    &key,
                    Mandate {
                        cluster: ClusterId(Hash::of(b"cluster")),
                        job: job(n),
                        master: key.node_id(),
                        model: Hash::of(b"model"),
                        positions: 10_000,
                        position_cost: Msat(1000),
                        challenge: Hash::of(b"challenge"),
                        until_ms: 1 << 60,
                    },
                ),
            };
            JobReceipts { at_ms: u64::from(n), order: Signed::sign(&key, open), chain: Vec::new() }
        };
        for receipts in [kept(1, 1), kept(2, 1), kept(1, 2)] {
            storage.save_receipts(&receipts).await.unwrap();
        }
        assert_eq!(storage.receipts(job(1)).await.unwrap(), Some(kept(1, 2)));
        assert_eq!(storage.receipts(job(2)).await.unwrap(), Some(kept(2, 1)));
        assert_eq!(storage.receipts(job(3)).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_database_of_the_first_version_is_brought_up_to_date() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.db");
        let raw = Connection::open(&path).unwrap();
        raw.execute_batch(MIGRATIONS[0]).unwrap();
        raw.pragma_update(None, "user_version", 1).unwrap();
        drop(raw);
        assert_eq!(Storage::open(&path).unwrap().next_incarnation(7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_newer_database_is_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.db");
        drop(Storage::open(&path).unwrap());
        let raw = Connection::open(&path).unwrap();
        raw.pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(Storage::open(&path), Err(StorageError::Newer { found: 99, .. })));
        let kept: usize = raw.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(kept, 99);
    }

    #[test]
    fn a_damaged_database_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.db");
        std::fs::write(&path, b"this is no database, but it is long enough to be mistaken for one........").unwrap();
        let error = Storage::open(&path).err().unwrap().to_string();
        assert!(error.contains("node.db"), "{error}");
    }
}
