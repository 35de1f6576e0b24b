//! Whom this node paid for work, and how much: what channels may be worth.

use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;
use rusqlite::params;

use super::{Storage, StorageError};

/// A worker that was paid over Lightning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payee {
    /// The worker.
    pub peer: NodeId,
    /// All that it was paid.
    pub paid: Msat,
    /// Its newest invoice that was paid.
    pub invoice: String,
}

impl Storage {
    /// The workers that this node paid over Lightning since a time (in milliseconds since 1970), those that got the most
    /// first; at most `limit`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn payees(&self, since_ms: u64, limit: u32) -> Result<Vec<Payee>, StorageError> {
        let since = i64::try_from(since_ms).unwrap_or(i64::MAX);
        self.run(move |db| {
            // With max() the other columns are those of the newest row.
            let mut wanted = db.prepare_cached(
                "SELECT peer, sum(msat) AS paid, invoice, max(ended_ms) FROM settlement
                 WHERE own = 1 AND state = 'paid' AND ended_ms >= ?1
                 GROUP BY peer ORDER BY paid DESC, peer LIMIT ?2",
            )?;
            let rows = wanted.query_map(params![since, limit], |row| {
                Ok(Payee { peer: NodeId::from_bytes(row.get(0)?), paid: Msat(row.get(1)?), invoice: row.get(2)? })
            })?;
            rows.collect()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::tabs::{Settlement, Side};
    use consortium_protocol::hash::Hash;

    #[tokio::test]
    async fn those_who_got_the_most_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(&dir.path().join("node.db")).unwrap();
        let peer = |n: u8| NodeId::from_bytes([n; 32]);
        for (n, who, msat, side, paid) in [
            (1, 1, 500, Side::Payer, true),
            (2, 2, 300, Side::Payer, true),
            (3, 2, 400, Side::Payer, true),
            (4, 1, 9000, Side::Payer, false),
            (5, 3, 9000, Side::Worker, true),
        ] {
            let begun = Settlement {
                hash: Hash::from_bytes([n; 32]),
                peer: peer(who),
                amount: Msat(msat),
                invoice: format!("invoice {n}"),
                expires_s: 1,
                asked_ms: 1,
            };
            assert!(storage.settlement_begin(side, begun).await.unwrap());
            storage.settlement_end(side, Hash::from_bytes([n; 32]), paid, u64::from(n) * 10).await.unwrap();
        }
        let told = storage.payees(0, 9).await.unwrap();
        let short = |payee: &Payee| (payee.peer, payee.paid.0, payee.invoice.clone());
        assert_eq!(
            told.iter().map(short).collect::<Vec<_>>(),
            [(peer(2), 700, "invoice 3".to_owned()), (peer(1), 500, "invoice 1".to_owned())]
        );
        assert_eq!(storage.payees(0, 1).await.unwrap().len(), 1);
        assert_eq!(short(&storage.payees(30, 9).await.unwrap()[0]), (peer(2), 400, "invoice 3".to_owned()));
    }
}
