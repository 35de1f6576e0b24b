//! What a crash must not make a node forget about tabs: the last words of payers and to workers, invoices handed out and
//! payments begun. Channels are in [`super::tab_channels`].

use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::tab::Tab;
use rusqlite::{OptionalExtension as _, Row, Transaction, params};

use super::{Storage, StorageError};

pub(super) const SCHEMA: &str =
    "CREATE TABLE tab_word (peer BLOB NOT NULL CHECK (length(peer) = 32), own INTEGER NOT NULL CHECK (own IN (0, 1)),
                           seq INTEGER NOT NULL, accepted INTEGER NOT NULL, paid INTEGER NOT NULL,
                           PRIMARY KEY (peer, own)) STRICT, WITHOUT ROWID;
     CREATE TABLE tab_since (worker BLOB PRIMARY KEY CHECK (length(worker) = 32), at_ms INTEGER NOT NULL)
         STRICT, WITHOUT ROWID;
     CREATE TABLE settlement (hash BLOB NOT NULL CHECK (length(hash) = 32), own INTEGER NOT NULL CHECK (own IN (0, 1)),
                              peer BLOB NOT NULL CHECK (length(peer) = 32), msat INTEGER NOT NULL, invoice TEXT NOT NULL,
                              expires_s INTEGER NOT NULL, asked_ms INTEGER NOT NULL,
                              state TEXT NOT NULL CHECK (state IN ('open', 'paid', 'failed')), ended_ms INTEGER,
                              PRIMARY KEY (hash, own)) STRICT, WITHOUT ROWID;
     CREATE UNIQUE INDEX settlement_alone ON settlement (peer) WHERE own = 1 AND state = 'open';
     CREATE INDEX settlement_open ON settlement (own, expires_s) WHERE state = 'open';
     CREATE INDEX settlement_of_peer ON settlement (peer, own, state, ended_ms);
     CREATE TABLE tab_channel (offer BLOB PRIMARY KEY CHECK (length(offer) = 32), own INTEGER NOT NULL,
                               peer BLOB NOT NULL CHECK (length(peer) = 32), signed BLOB NOT NULL,
                               lightning TEXT NOT NULL, state TEXT NOT NULL
                                   CHECK (state IN ('offered', 'opening', 'begun', 'told', 'dropped')),
                               at_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
     CREATE INDEX tab_channel_of_peer ON tab_channel (peer, own, state);";

/// Open settlements read at a time.
const MAX_OPEN: u32 = 1024;
/// Settlements that failed and are kept: the newest.
const MAX_ENDED: u32 = 10_000;

/// On which side of a settlement this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It is paid.
    Worker,
    /// It pays.
    Payer,
}

impl Side {
    pub(super) const fn own(self) -> bool {
        matches!(self, Self::Payer)
    }
}

/// A payment that settles a tab: begun by a payer, or invoiced by a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// Its payment hash.
    pub hash: Hash,
    /// The other side.
    pub peer: NodeId,
    /// How much.
    pub amount: Msat,
    /// The worker's invoice.
    pub invoice: String,
    /// When that ends, in seconds since 1970.
    pub expires_s: u64,
    /// When it was asked for, in milliseconds since 1970.
    pub asked_ms: u64,
}

/// A settlement that was paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// How much.
    pub amount: Msat,
    /// When it was asked for, in milliseconds since 1970.
    pub asked_ms: u64,
    /// When this node had it in its books.
    pub ended_ms: u64,
}

/// What became of settlements with a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// All that was paid.
    pub total: Msat,
    /// How many payments that were.
    pub count: u64,
    /// The last of them.
    pub last: Option<Settled>,
}

pub(super) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn settlement(row: &Row<'_>) -> rusqlite::Result<Settlement> {
    Ok(Settlement {
        hash: Hash::from_bytes(row.get(0)?),
        peer: NodeId::from_bytes(row.get(1)?),
        amount: Msat(row.get(2)?),
        invoice: row.get(3)?,
        expires_s: row.get(4)?,
        asked_ms: row.get(5)?,
    })
}

/// The last word between a pair: sequence, accepted, paid.
fn last_word(tx: &Transaction<'_>, peer: &NodeId, own: bool) -> rusqlite::Result<(u64, u64, u64)> {
    let found = tx
        .prepare_cached("SELECT seq, accepted, paid FROM tab_word WHERE peer = ?1 AND own = ?2")?
        .query_row(params![peer.as_bytes(), own], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    Ok(found.unwrap_or_default())
}

fn note_word(tx: &Transaction<'_>, peer: &NodeId, own: bool, word: (u64, u64, u64)) -> rusqlite::Result<()> {
    let values = params![peer.as_bytes(), own, int(word.0), int(word.1), int(word.2)];
    tx.execute("INSERT OR REPLACE INTO tab_word VALUES (?1, ?2, ?3, ?4, ?5)", values).map(drop)
}

impl Storage {
    /// The number of the next word to a worker with these sums; noted before it is said.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn tab_next(&self, worker: NodeId, accepted: Msat, paid: Msat) -> Result<u64, StorageError> {
        self.run(move |db| {
            let tx = db.transaction()?;
            let seq = last_word(&tx, &worker, true)?.0 + 1;
            note_word(&tx, &worker, true, (seq, accepted.0, paid.0))?;
            tx.commit()?;
            Ok(seq)
        })
        .await
    }

    /// Notes a payer's word, if each of its numbers is at least that of the word before, and its sequence is higher.
    /// Gives the reason if not.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn tab_heard(&self, word: &Tab) -> Result<Result<(), &'static str>, StorageError> {
        let (payer, said) = (word.payer, (word.seq, word.accepted.0, word.paid.0));
        self.run(move |db| {
            let tx = db.transaction()?;
            let last = last_word(&tx, &payer, false)?;
            if said.0 <= last.0 {
                return Ok(Err("its number is not above that of the tab before"));
            }
            if said.1 < last.1 || said.2 < last.2 {
                return Ok(Err("its sums are below those of the tab before"));
            }
            note_word(&tx, &payer, false, said)?;
            tx.commit()?;
            Ok(Ok(()))
        })
        .await
    }

    /// Since when something is due to a worker: from now on if it was not, and no longer if it is not `due`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn tab_since(&self, worker: NodeId, due: bool, now_ms: u64) -> Result<u64, StorageError> {
        self.run(move |db| {
            if !due {
                db.execute("DELETE FROM tab_since WHERE worker = ?1", [worker.as_bytes()])?;
                return Ok(now_ms);
            }
            db.query_row(
                "INSERT INTO tab_since VALUES (?1, ?2) ON CONFLICT DO UPDATE SET at_ms = min(at_ms, ?2) RETURNING at_ms",
                params![worker.as_bytes(), int(now_ms)],
                |row| row.get(0),
            )
        })
        .await
    }

    /// Notes a settlement before it is paid, or before its invoice is handed out; one that failed may be begun again.
    /// False if one is under way: of a payer's to one worker, one is open at a time.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn settlement_begin(&self, side: Side, begun: Settlement) -> Result<bool, StorageError> {
        self.run(move |db| {
            let tx = db.transaction()?;
            let open: bool = tx.query_row(
                "SELECT EXISTS (SELECT 1 FROM settlement WHERE peer = ?1 AND own = 1 AND state = 'open')",
                [begun.peer.as_bytes()],
                |row| row.get(0),
            )?;
            if side.own() && open {
                return Ok(false);
            }
            let values = params![
                begun.hash.as_bytes(),
                side.own(),
                begun.peer.as_bytes(),
                int(begun.amount.0),
                begun.invoice,
                int(begun.expires_s),
                int(begun.asked_ms),
            ];
            let noted = tx.execute(
                "INSERT INTO settlement VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'open', NULL)
                 ON CONFLICT (hash, own) DO UPDATE SET state = 'open', ended_ms = NULL, asked_ms = excluded.asked_ms
                 WHERE state = 'failed' AND peer = excluded.peer AND msat = excluded.msat",
                values,
            )?;
            tx.commit()?;
            Ok(noted > 0)
        })
        .await
    }

    /// Settlements whose end is not known: the oldest 1024.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn settlements_open(&self, side: Side) -> Result<Vec<Settlement>, StorageError> {
        self.run(move |db| {
            let mut query = db.prepare_cached(
                "SELECT hash, peer, msat, invoice, expires_s, asked_ms FROM settlement
                 WHERE own = ?1 AND state = 'open' ORDER BY expires_s, hash LIMIT ?2",
            )?;
            query.query_map(params![side.own(), MAX_OPEN], settlement)?.collect()
        })
        .await
    }

    /// Settlements with a peer whose end is not known: the 1024 that end last.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn settlements_open_with(&self, side: Side, peer: NodeId) -> Result<Vec<Settlement>, StorageError> {
        self.run(move |db| {
            let mut query = db.prepare_cached(
                "SELECT hash, peer, msat, invoice, expires_s, asked_ms FROM settlement
                 WHERE peer = ?1 AND own = ?2 AND state = 'open' ORDER BY expires_s DESC, hash LIMIT ?3",
            )?;
            query.query_map(params![peer.as_bytes(), side.own(), MAX_OPEN], settlement)?.collect()
        })
        .await
    }

    /// Notes how a settlement ended. What failed long ago is let go.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn settlement_end(&self, side: Side, hash: Hash, paid: bool, now_ms: u64) -> Result<(), StorageError> {
        self.run(move |db| {
            let state = if paid { "paid" } else { "failed" };
            db.execute(
                "UPDATE settlement SET state = ?3, ended_ms = ?4 WHERE hash = ?1 AND own = ?2 AND state = 'open'",
                params![hash.as_bytes(), side.own(), state, int(now_ms)],
            )?;
            db.execute(
                "DELETE FROM settlement WHERE state = 'failed' AND hash IN
                     (SELECT hash FROM settlement WHERE state = 'failed' ORDER BY ended_ms DESC LIMIT -1 OFFSET ?1)",
                [MAX_ENDED],
            )
            .map(drop)
        })
        .await
    }

    /// What was settled with a peer last, at most `count`, the newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn settlements_paid_with(
        &self,
        side: Side,
        peer: NodeId,
        count: usize,
    ) -> Result<Vec<Settlement>, StorageError> {
        self.run(move |db| {
            let mut query = db.prepare_cached(
                "SELECT hash, peer, msat, invoice, expires_s, asked_ms FROM settlement
                 WHERE peer = ?1 AND own = ?2 AND state = 'paid' ORDER BY ended_ms DESC, hash LIMIT ?3",
            )?;
            query.query_map(params![peer.as_bytes(), side.own(), count], settlement)?.collect()
        })
        .await
    }

    /// This node's payment of a hash to a peer, if it failed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn settlement_failed(&self, peer: NodeId, hash: Hash) -> Result<Option<Settlement>, StorageError> {
        self.run(move |db| {
            db.prepare_cached(
                "SELECT hash, peer, msat, invoice, expires_s, asked_ms FROM settlement
                 WHERE hash = ?1 AND own = 1 AND peer = ?2 AND state = 'failed'",
            )?
            .query_row(params![hash.as_bytes(), peer.as_bytes()], settlement)
            .optional()
        })
        .await
    }

    /// Notes that this node's payment arrived though it had failed here.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn settlement_arrived(&self, hash: Hash, now_ms: u64) -> Result<(), StorageError> {
        self.run(move |db| {
            let query = "UPDATE settlement SET state = 'paid', ended_ms = ?2
                         WHERE hash = ?1 AND own = 1 AND state = 'failed'";
            db.execute(query, params![hash.as_bytes(), int(now_ms)]).map(drop)
        })
        .await
    }

    /// What was paid between this node and a peer.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn settlement_history(&self, side: Side, peer: NodeId) -> Result<History, StorageError> {
        self.run(move |db| {
            let of_peer = params![peer.as_bytes(), side.own()];
            let (total, count) = db
                .prepare_cached(
                    "SELECT coalesce(sum(msat), 0), count(*) FROM settlement
                     WHERE peer = ?1 AND own = ?2 AND state = 'paid'",
                )?
                .query_row(of_peer, |row| Ok((Msat(row.get(0)?), row.get(1)?)))?;
            let last = db
                .prepare_cached(
                    "SELECT msat, asked_ms, ended_ms FROM settlement WHERE peer = ?1 AND own = ?2 AND state = 'paid'
                     ORDER BY ended_ms DESC LIMIT 1",
                )?
                .query_row(of_peer, |row| {
                    Ok(Settled { amount: Msat(row.get(0)?), asked_ms: row.get(1)?, ended_ms: row.get(2)? })
                })
                .optional()?;
            Ok(History { total, count, last })
        })
        .await
    }

    /// Peers with whom something was settled, or is being settled.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn settlement_peers(&self) -> Result<Vec<NodeId>, StorageError> {
        self.run(|db| {
            let mut query = db.prepare_cached("SELECT DISTINCT peer FROM settlement")?;
            query.query_map([], |row| row.get(0).map(NodeId::from_bytes))?.collect()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use consortium_protocol::identity::RootKey;

    use super::*;

    fn node(n: u8) -> NodeId {
        RootKey::from_seed([n; 32]).node_id()
    }

    fn begun(n: u8, peer: u8) -> Settlement {
        Settlement {
            hash: Hash::of(&[n]),
            peer: node(peer),
            amount: Msat(1000 * u64::from(n)),
            invoice: "lnbcrt1".to_owned(),
            expires_s: 99,
            asked_ms: 5,
        }
    }

    #[tokio::test]
    async fn words_only_rise() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.db");
        let open = || Storage::open(&path).unwrap();
        let word = |seq, accepted, paid| Tab {
            payer: node(1),
            worker: node(2),
            seq,
            accepted: Msat(accepted),
            paid: Msat(paid),
            receipts: Vec::new(),
        };
        assert_eq!(open().tab_heard(&word(3, 100, 10)).await.unwrap(), Ok(()));
        for (seq, accepted, paid) in [(3, 100, 10), (2, 200, 10), (4, 99, 10), (4, 100, 9)] {
            assert!(open().tab_heard(&word(seq, accepted, paid)).await.unwrap().is_err(), "{seq} {accepted} {paid}");
        }
        assert_eq!(open().tab_heard(&word(9, 100, 11)).await.unwrap(), Ok(()));
        for seq in 1..4 {
            assert_eq!(open().tab_next(node(1), Msat(1), Msat(0)).await.unwrap(), seq, "own words are others");
        }
    }

    #[tokio::test]
    async fn one_payment_to_a_worker_is_open_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.db");
        let open = || Storage::open(&path).unwrap();
        assert!(open().settlement_begin(Side::Payer, begun(1, 2)).await.unwrap());
        assert!(!open().settlement_begin(Side::Payer, begun(2, 2)).await.unwrap());
        assert!(open().settlement_begin(Side::Payer, begun(3, 4)).await.unwrap());
        // Of its invoices any number is open.
        for n in [1, 2] {
            assert!(open().settlement_begin(Side::Worker, begun(n, 2)).await.unwrap());
        }
        assert_eq!(open().settlements_open(Side::Payer).await.unwrap().len(), 2);
        let of = async |side, peer| open().settlements_open_with(side, node(peer)).await.unwrap().len();
        assert_eq!((of(Side::Payer, 2).await, of(Side::Worker, 2).await, of(Side::Worker, 4).await), (1, 2, 0));
        open().settlement_end(Side::Payer, Hash::of(&[1]), false, 7).await.unwrap();
        assert_eq!(open().settlement_history(Side::Payer, node(2)).await.unwrap(), History::default());
        // The same invoice may be tried again, one that was paid may not.
        assert!(open().settlement_begin(Side::Payer, begun(1, 2)).await.unwrap());
        assert!(!open().settlement_begin(Side::Payer, begun(2, 2)).await.unwrap());
        open().settlement_end(Side::Payer, Hash::of(&[1]), false, 7).await.unwrap();
        assert!(open().settlement_begin(Side::Payer, begun(2, 2)).await.unwrap());
        open().settlement_end(Side::Payer, Hash::of(&[2]), true, 8).await.unwrap();
        open().settlement_end(Side::Payer, Hash::of(&[2]), false, 9).await.unwrap();
        let last = Some(Settled { amount: Msat(2000), asked_ms: 5, ended_ms: 8 });
        let history = open().settlement_history(Side::Payer, node(2)).await.unwrap();
        assert_eq!(history, History { total: Msat(2000), count: 1, last });
        assert!(!open().settlement_begin(Side::Payer, begun(2, 2)).await.unwrap());
        assert_eq!(open().settlements_open(Side::Worker).await.unwrap().len(), 2);

        // The first one failed, and arrived all the same.
        let failed = async |peer, n: u8| open().settlement_failed(node(peer), Hash::of(&[n])).await.unwrap();
        assert_eq!((failed(2, 1).await, failed(4, 1).await, failed(2, 2).await), (Some(begun(1, 2)), None, None));
        open().settlement_arrived(Hash::of(&[1]), 12).await.unwrap();
        assert_eq!(failed(2, 1).await, None);
        let paid = async |count| open().settlements_paid_with(Side::Payer, node(2), count).await.unwrap();
        assert_eq!((paid(1).await, paid(9).await), (vec![begun(1, 2)], vec![begun(1, 2), begun(2, 2)]));
    }

    #[tokio::test]
    async fn a_debt_keeps_its_age() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.db");
        let since = async |due, now| Storage::open(&path).unwrap().tab_since(node(1), due, now).await.unwrap();
        assert_eq!((since(true, 5).await, since(true, 9).await), (5, 5));
        assert_eq!((since(false, 10).await, since(true, 11).await), (10, 11));
    }
}
