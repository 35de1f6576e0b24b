//! What this node has seen of others itself. None of it can be proved to anyone: it stays here, beside the score and
//! not in it.

use consortium_protocol::NodeId;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use crate::ledger::{Ledger, LedgerError, node_at, time};

/// Nodes of which a record is kept.
pub const MAX_NODES: u32 = 4096;
/// The longest gap between two observations that is taken for time watched, in milliseconds: what passed while this
/// node itself was down says nothing of others.
pub const MAX_GAP_MS: u64 = 60_000;
/// When as much time was watched, both sides of the uptime ratio are halved: the past fades.
pub const WATCH_WINDOW_MS: u64 = 30 * 24 * 3600 * 1000;
/// The latency at which the local score is half of what it would be with none, in microseconds.
const HALF_LATENCY_US: f64 = 200_000.0;

/// What was seen of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Who: the name is the public key.
    pub node: NodeId,
    /// Wall time of the first observation, in milliseconds since 1970.
    pub first_seen_ms: u64,
    /// Wall time at which it was last seen alive.
    pub last_seen_ms: u64,
    /// For how long it was watched, fading ([`WATCH_WINDOW_MS`]).
    pub watched_ms: u64,
    /// For how much of that it was alive.
    pub up_ms: u64,
    /// Average latency in microseconds: each sample moves it by an eighth of the difference.
    pub latency_us: Option<u64>,
    /// Tokens it computed in jobs of this node.
    pub tokens: u64,
}

impl NodeRecord {
    /// The part of the time watched that it was alive; 0 if it was not watched yet.
    #[must_use]
    pub fn uptime_ratio(&self) -> f64 {
        if self.watched_ms == 0 { 0.0 } else { self.up_ms as f64 / self.watched_ms as f64 }
    }

    /// Uptime ratio times `200 ms / (200 ms + latency)`, without the second factor while no latency is known: 0 to 1,
    /// for choosing among nodes, never for judging them.
    #[must_use]
    pub fn local_score(&self) -> f64 {
        let latency = self.latency_us.unwrap_or_default() as f64;
        self.uptime_ratio() * (HALF_LATENCY_US / (HALF_LATENCY_US + latency))
    }
}

const COLUMNS: &str = "node, first_seen_ms, last_seen_ms, watched_ms, up_ms, latency_us, tokens";

fn read(row: &Row<'_>) -> rusqlite::Result<NodeRecord> {
    Ok(NodeRecord {
        node: node_at(row, 0)?,
        first_seen_ms: row.get(1)?,
        last_seen_ms: row.get(2)?,
        watched_ms: row.get(3)?,
        up_ms: row.get(4)?,
        latency_us: row.get(5)?,
        tokens: row.get(6)?,
    })
}

pub(crate) fn find(tx: &Transaction<'_>, node: &NodeId) -> Result<Option<NodeRecord>, LedgerError> {
    Ok(tx
        .prepare_cached(&format!("SELECT {COLUMNS} FROM node_record WHERE node = ?1"))?
        .query_row([node.as_bytes()], read)
        .optional()?)
}

/// The records whose nodes follow `after`, in the order of their keys.
pub(crate) fn page(tx: &Transaction<'_>, after: Option<NodeId>, limit: u32) -> Result<Vec<NodeRecord>, LedgerError> {
    // The empty string sorts before every key.
    let after = after.map(|node| node.as_bytes().to_vec()).unwrap_or_default();
    let mut statement =
        tx.prepare_cached(&format!("SELECT {COLUMNS} FROM node_record WHERE node > ?1 ORDER BY node LIMIT ?2"))?;
    let rows = statement.query_map(params![after, limit], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn store(tx: &Transaction<'_>, record: &NodeRecord) -> Result<(), LedgerError> {
    tx.prepare_cached(&format!("INSERT OR REPLACE INTO node_record ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"))?
        .execute(params![
            record.node.as_bytes(),
            time(record.first_seen_ms),
            time(record.last_seen_ms),
            time(record.watched_ms),
            time(record.up_ms),
            record.latency_us.map(time),
            time(record.tokens),
        ])?;
    Ok(())
}

/// Makes room for one more: forgets whoever was not seen for longest and of whom there is no evidence.
fn make_room(tx: &Transaction<'_>) -> Result<(), LedgerError> {
    let known: u32 = tx.query_row("SELECT count(*) FROM node_record", [], |row| row.get(0))?;
    if known < MAX_NODES {
        return Ok(());
    }
    let forgotten = tx.execute(
        "DELETE FROM node_record WHERE node = (SELECT node FROM node_record
             WHERE NOT EXISTS (SELECT 1 FROM evidence WHERE subject = node)
               AND NOT EXISTS (SELECT 1 FROM evidence WHERE signer = node)
             ORDER BY last_seen_ms, node LIMIT 1)",
        [],
    )?;
    if forgotten == 0 { Err(LedgerError::Full(MAX_NODES)) } else { Ok(()) }
}

fn change(
    tx: &Transaction<'_>,
    node: &NodeId,
    now_ms: u64,
    change: impl FnOnce(&mut NodeRecord),
) -> Result<(), LedgerError> {
    let mut record = match find(tx, node)? {
        Some(record) => record,
        None => {
            make_room(tx)?;
            NodeRecord {
                node: *node,
                first_seen_ms: now_ms,
                last_seen_ms: now_ms,
                watched_ms: 0,
                up_ms: 0,
                latency_us: None,
                tokens: 0,
            }
        }
    };
    change(&mut record);
    store(tx, &record)
}

fn watch(record: &mut NodeRecord, alive: bool, elapsed_ms: u64, now_ms: u64) {
    let elapsed = elapsed_ms.min(MAX_GAP_MS);
    record.watched_ms = record.watched_ms.saturating_add(elapsed);
    if alive {
        record.up_ms = record.up_ms.saturating_add(elapsed);
        record.last_seen_ms = record.last_seen_ms.max(now_ms);
    }
    if record.watched_ms > WATCH_WINDOW_MS {
        record.watched_ms /= 2;
        record.up_ms /= 2;
    }
}

impl Ledger {
    /// Notes whether a node was alive during the last `elapsed_ms`, which are time since the observation before; makes
    /// its record when there is none.
    ///
    /// # Errors
    /// [`LedgerError::Full`], [`LedgerError::Database`].
    pub fn observe(&self, node: &NodeId, alive: bool, elapsed_ms: u64, now_ms: u64) -> Result<(), LedgerError> {
        self.observe_all(&[(*node, alive)], elapsed_ms, now_ms)
    }

    /// [`Ledger::observe`] for many nodes in one transaction: one write to the disk instead of one each.
    ///
    /// # Errors
    /// [`LedgerError::Full`] (nothing is noted then), [`LedgerError::Database`].
    pub fn observe_all(&self, nodes: &[(NodeId, bool)], elapsed_ms: u64, now_ms: u64) -> Result<(), LedgerError> {
        self.write(|tx| {
            nodes.iter().try_for_each(|(node, alive)| {
                change(tx, node, now_ms, |record| watch(record, *alive, elapsed_ms, now_ms))
            })
        })
    }

    /// Notes how long a node took to answer, in microseconds.
    ///
    /// # Errors
    /// [`LedgerError::Full`], [`LedgerError::Database`].
    pub fn observe_latency(&self, node: &NodeId, micros: u64, now_ms: u64) -> Result<(), LedgerError> {
        // An hour is for ever; it bounds what one sample can do.
        let micros = micros.min(3_600_000_000);
        self.write(|tx| {
            change(tx, node, now_ms, |record| {
                let average = record.latency_us.unwrap_or(micros);
                record.latency_us = Some(average - average / 8 + micros / 8);
            })
        })
    }

    /// Notes that a node computed tokens.
    ///
    /// # Errors
    /// [`LedgerError::Full`], [`LedgerError::Database`].
    pub fn observe_tokens(&self, node: &NodeId, tokens: u64, now_ms: u64) -> Result<(), LedgerError> {
        self.write(|tx| change(tx, node, now_ms, |record| record.tokens = record.tokens.saturating_add(tokens)))
    }

    /// What was seen of a node.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn node_record(&self, node: &NodeId) -> Result<Option<NodeRecord>, LedgerError> {
        self.read(|tx| find(tx, node))
    }
}
