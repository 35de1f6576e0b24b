//! What this node owes for work, until the worker has booked it and its audit is settled: what a crash must not forget.

use consortium_ledger::accounts::Owner;
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire::Message as _;
use consortium_protocol::wire::audit::{AuditOrder, Verdict};
use consortium_protocol::wire::job::JobId;
use consortium_protocol::wire::pay::Part;
use rusqlite::{Row, params};

use super::{Storage, StorageError};

/// Rows that one read returns: the oldest.
const MAX_ROWS: u32 = 1024;
/// Rows of one worker that one read returns: the oldest.
const MAX_OF_WORKER: u32 = 32;
/// Rows that are kept: of what is booked and still to be said, the oldest beyond are let go.
const MAX_OWED: u32 = 100_000;

/// Work that this node pays for: that of one stage, or the master's.
#[derive(Clone, Debug, PartialEq)]
pub struct Owed {
    /// Order, receipts up to the stage's, and nonce: all that an audit of it needs.
    pub audit: AuditOrder,
    /// What of the last of these receipts is paid.
    pub part: Part,
    /// Who is charged.
    pub account: Owner,
    /// Whether it was drawn for an audit.
    pub drawn: bool,
    /// When its receipt was accepted, in milliseconds since 1970.
    pub at_ms: u64,
}

impl Owed {
    /// Names it in the storage: the digest of the receipt, or, for driving, a hash of that.
    #[must_use]
    pub fn key(&self) -> Option<Hash> {
        let receipt = self.audit.receipt()?.digest();
        Some(match self.part {
            Part::Stage => receipt,
            Part::Driving => Hash::of(receipt.as_bytes()),
        })
    }

    /// Who is paid.
    #[must_use]
    pub fn payee(&self) -> Option<NodeId> {
        match self.part {
            Part::Stage => self.audit.receipt().map(Signed::signer),
            Part::Driving => Some(self.audit.order.payload().driver),
        }
    }
}

/// How far the paying of [`Owed`] work has come.
#[derive(Clone, Debug, PartialEq)]
pub struct OwedState {
    /// The work.
    pub owed: Owed,
    /// Whether it is in the ledger.
    pub booked: bool,
    /// Whether the worker has booked it.
    pub told: bool,
    /// The verdict that its pay goes by, once there is one.
    pub verdict: Option<Signed<Verdict>>,
}

const UNTOLD: &str = "booked = 1 AND (told = 0 OR verdict IS NOT NULL)";

type Stored = ([u8; 32], Vec<u8>, String, bool, u64, bool, bool, Option<Vec<u8>>);

fn read(row: &Row<'_>) -> rusqlite::Result<Stored> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?, row.get(7)?))
}

fn decode((key, audit, account, drawn, at_ms, booked, told, verdict): Stored) -> Option<OwedState> {
    let audit = AuditOrder::decode(&audit).ok()?;
    let part = if audit.receipt()?.digest() == Hash::from_bytes(key) { Part::Stage } else { Part::Driving };
    let owed = Owed { audit, part, account: account.parse().ok()?, drawn, at_ms };
    let verdict = match verdict {
        Some(bytes) => Some(Signed::decode(&bytes).ok()?),
        None => None,
    };
    Some(OwedState { owed, booked, told, verdict })
}

impl Storage {
    /// Notes what is owed for a job, before it is booked.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn owe(&self, stages: Vec<Owed>) -> Result<(), StorageError> {
        self.run(move |db| {
            let transaction = db.transaction()?;
            for owed in &stages {
                let (Some(key), Some(payee)) = (owed.key(), owed.payee()) else { continue };
                let at_ms = i64::try_from(owed.at_ms).unwrap_or(i64::MAX);
                transaction.execute(
                    "INSERT OR IGNORE INTO owed VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, 0, NULL)",
                    params![
                        key.as_bytes(),
                        owed.audit.order.payload().job.0,
                        payee.as_bytes(),
                        owed.audit.encode(),
                        owed.account.to_string(),
                        owed.drawn,
                        at_ms,
                    ],
                )?;
            }
            transaction.execute(
                "DELETE FROM owed WHERE booked = 1 AND receipt IN
                     (SELECT receipt FROM owed ORDER BY at_ms DESC, receipt DESC LIMIT -1 OFFSET ?1)",
                [MAX_OWED],
            )?;
            transaction.commit()
        })
        .await
    }

    /// Notes that a job's work is in the ledger.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn owe_booked(&self, job: JobId) -> Result<(), StorageError> {
        self.run(move |db| db.execute("UPDATE owed SET booked = 1 WHERE job = ?1", [job.0]).map(drop)).await
    }

    /// Notes that the payee has booked what is owed under a key; forgets it, if it waits for no verdict.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn owe_told(&self, key: Hash) -> Result<(), StorageError> {
        self.run(move |db| {
            let transaction = db.transaction()?;
            transaction.execute("UPDATE owed SET told = 1 WHERE receipt = ?1", [key.as_bytes()])?;
            transaction
                .execute("DELETE FROM owed WHERE receipt = ?1 AND drawn = 0 AND verdict IS NULL", [key.as_bytes()])?;
            transaction.commit()
        })
        .await
    }

    /// Notes the verdict that pay goes by.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn owe_judged(&self, verdict: &Signed<Verdict>) -> Result<(), StorageError> {
        let (receipt, bytes) = (verdict.payload().receipt, verdict.as_bytes().to_vec());
        self.run(move |db| {
            let change = "UPDATE owed SET verdict = ?2 WHERE receipt = ?1 AND verdict IS NULL";
            db.execute(change, params![receipt.as_bytes(), bytes]).map(drop)
        })
        .await
    }

    /// Forgets what was owed under a key: all is said.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn owe_settled(&self, key: Hash) -> Result<(), StorageError> {
        self.run(move |db| db.execute("DELETE FROM owed WHERE receipt = ?1", [key.as_bytes()]).map(drop)).await
    }

    /// What is owed and not booked: the oldest 1024 stages.
    ///
    /// # Errors
    /// When the database fails or holds what does not decode.
    pub async fn owed_unbooked(&self) -> Result<Vec<OwedState>, StorageError> {
        self.owed("booked = 0", None, MAX_ROWS).await
    }

    /// What was drawn for an audit and waits for its verdict, of those accepted since `since_ms`: the oldest 1024.
    ///
    /// # Errors
    /// As [`Storage::owed_unbooked`].
    pub async fn owed_unjudged(&self, since_ms: u64) -> Result<Vec<OwedState>, StorageError> {
        let since = i64::try_from(since_ms).unwrap_or(i64::MAX);
        self.owed(&format!("drawn = 1 AND verdict IS NULL AND at_ms >= {since}"), None, MAX_ROWS).await
    }

    /// Workers that are to be told something.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn owed_workers(&self) -> Result<Vec<NodeId>, StorageError> {
        self.run(|db| {
            let query = format!("SELECT DISTINCT worker FROM owed WHERE {UNTOLD}");
            let mut query = db.prepare_cached(&query)?;
            query.query_map([], |row| row.get(0).map(NodeId::from_bytes))?.collect()
        })
        .await
    }

    /// What a worker is to be told: the oldest 32 stages.
    ///
    /// # Errors
    /// As [`Storage::owed_unbooked`].
    pub async fn owed_to(&self, worker: NodeId) -> Result<Vec<OwedState>, StorageError> {
        self.owed(&format!("worker = ?2 AND {UNTOLD}"), Some(worker), MAX_OF_WORKER).await
    }

    async fn owed(&self, condition: &str, worker: Option<NodeId>, limit: u32) -> Result<Vec<OwedState>, StorageError> {
        let query = format!(
            "SELECT receipt, audit, account, drawn, at_ms, booked, told, verdict FROM owed WHERE {condition}
             ORDER BY at_ms, receipt LIMIT ?1"
        );
        let worker = worker.map(|worker| worker.as_bytes().to_vec());
        let stored: Vec<Stored> = self
            .run(move |db| {
                let mut query = db.prepare_cached(&query)?;
                match worker {
                    Some(worker) => query.query_map(params![limit, worker], read)?.collect(),
                    None => query.query_map([limit], read)?.collect(),
                }
            })
            .await?;
        let damaged = || StorageError::DamagedOwed { file: self.file.to_string() };
        stored.into_iter().map(|row| decode(row).ok_or_else(damaged)).collect()
    }

    /// Keeps a payer's signed word that it owes this node, under its digest: of those beyond 10,000 the oldest are let go.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keep_acceptance(&self, digest: Hash, at_ms: u64, signed: Vec<u8>) -> Result<(), StorageError> {
        let at_ms = i64::try_from(at_ms).unwrap_or(i64::MAX);
        self.run(move |db| {
            let transaction = db.transaction()?;
            transaction.execute(
                "INSERT OR IGNORE INTO acceptances VALUES (?1, ?2, ?3)",
                params![digest.as_bytes(), at_ms, signed],
            )?;
            transaction.execute(
                "DELETE FROM acceptances WHERE digest IN
                     (SELECT digest FROM acceptances ORDER BY at_ms DESC, digest DESC LIMIT -1 OFFSET ?1)",
                [super::MAX_RECEIPTS],
            )?;
            transaction.commit()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use consortium_ledger::accounts::Book;
    use consortium_protocol::cluster::ClusterId;
    use consortium_protocol::identity::RootKey;
    use consortium_protocol::msat::Msat;
    use consortium_protocol::wire::audit::{
        Compute, KernelFamily, Nonce, NumericClass, Outcome, StageReceipt, boundary_key,
    };
    use consortium_protocol::wire::heartbeat::LayerRange;
    use consortium_protocol::wire::job::Sampling;
    use consortium_protocol::wire::mandate::Mandate;
    use consortium_protocol::wire::pipeline::{Hop, SessionOpen};

    use super::*;

    const CLASS: NumericClass = NumericClass { compute: Compute::F32, kernels: KernelFamily::Invariant, engine: 1 };

    fn owed(job: u8, drawn: bool) -> Owed {
        let (key, nonce) = (RootKey::from_seed([1; 32]), Nonce([job; 32]));
        let range = LayerRange { first: 0, last: 3 };
        let open = SessionOpen {
            cluster: ClusterId(Hash::of(b"cluster")),
            term: 3,
            job: JobId([job; 16]),
            attempt: 1,
            model: Hash::of(b"model"),
            driver: key.node_id(),
            route: vec![Hop { node: key.node_id(), range }],
            prices: vec![Msat(1)],
            master_fee: Msat(0),
            sampling: Sampling::default(),
            prompt_len: 1,
            max_positions: 8,
            payer: key.node_id(),
            challenge: nonce.commitment(),
            mandate: Signed::sign(
                &key,
                Mandate {
                    cluster: ClusterId(Hash::of(b"cluster")),
                    job: JobId([job; 16]),
                    master: key.node_id(),
                    model: Hash::of(b"model"),
                    positions: 10_000,
                    position_cost: Msat(1000),
                    challenge: nonce.commitment(),
                    until_ms: 1 << 60,
                },
            ),
        };
        let order = Signed::sign(&key, open);
        let root = Hash::from_bytes(boundary_key(JobId([job; 16]), 1, 0));
        let receipt = StageReceipt {
            cluster: ClusterId(Hash::of(b"cluster")),
            term: 3,
            job: JobId([job; 16]),
            attempt: 1,
            order: order.digest(),
            model: Hash::of(b"model"),
            range,
            stage: 0,
            class: CLASS,
            positions: 7,
            inputs: root,
            outputs: root,
            grid: root,
            upstream: None,
            challenge: nonce.commitment(),
        };
        let audit = AuditOrder { order, chain: vec![Signed::sign(&key, receipt)], nonce };
        Owed { audit, part: Part::Stage, account: Owner::Own(Book::Spent), drawn, at_ms: 1000 + u64::from(job) }
    }

    fn verdict(owed: &Owed) -> Signed<Verdict> {
        let key = RootKey::from_seed([2; 32]);
        let receipt = owed.audit.receipt().unwrap();
        let said = receipt.payload();
        let verdict = Verdict {
            cluster: said.cluster,
            auditee: receipt.signer(),
            job: said.job,
            attempt: said.attempt,
            stage: said.stage,
            receipt: receipt.digest(),
            outcome: Outcome::Pass,
            blocks: 1,
            exact: 1,
            class: CLASS,
            proof: None,
            at_ms: 2000,
        };
        Signed::sign(&key, verdict)
    }

    #[tokio::test]
    async fn what_a_master_is_owed_stands_beside_what_the_last_stage_is() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(&dir.path().join("node.db")).unwrap();
        let stage = owed(1, false);
        let driving = Owed { part: Part::Driving, ..stage.clone() };
        storage.owe(vec![stage.clone(), driving.clone()]).await.unwrap();
        storage.owe_booked(JobId([1; 16])).await.unwrap();
        let left = async || -> Vec<Owed> {
            let states = storage.owed_to(driving.payee().unwrap()).await.unwrap();
            states.into_iter().map(|state| state.owed).collect()
        };
        let mut both = left().await;
        both.sort_by_key(|owed| owed.part);
        assert_eq!(both, [stage.clone(), driving.clone()]);
        storage.owe_told(stage.key().unwrap()).await.unwrap();
        assert_eq!(left().await, std::slice::from_ref(&driving));
        storage.owe_settled(driving.key().unwrap()).await.unwrap();
        assert!(left().await.is_empty());
    }

    #[tokio::test]
    async fn what_is_owed_outlives_the_process_until_all_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.db");
        let (plain, drawn) = (owed(1, false), owed(2, true));
        let receipt = |owed: &Owed| owed.audit.receipt().unwrap().digest();
        let open = || Storage::open(&path).unwrap();
        let worker = RootKey::from_seed([1; 32]).node_id();
        open().owe(vec![plain.clone(), drawn.clone()]).await.unwrap();
        open().owe(vec![plain.clone()]).await.unwrap();

        let left = open().owed_unbooked().await.unwrap();
        let expected = |owed: &Owed| OwedState { owed: owed.clone(), booked: false, told: false, verdict: None };
        assert_eq!(left, [expected(&plain), expected(&drawn)]);
        assert!(open().owed_to(worker).await.unwrap().is_empty(), "nothing is said before it is booked");
        open().owe_booked(JobId([1; 16])).await.unwrap();
        open().owe_booked(JobId([2; 16])).await.unwrap();
        assert_eq!(open().owed_to(worker).await.unwrap().len(), 2);

        open().owe_told(receipt(&plain)).await.unwrap();
        open().owe_told(receipt(&drawn)).await.unwrap();
        assert!(open().owed_to(worker).await.unwrap().is_empty());
        let waiting = open().owed_unjudged(0).await.unwrap();
        assert_eq!(waiting, [OwedState { booked: true, told: true, ..expected(&drawn) }], "its verdict is due");

        open().owe_judged(&verdict(&drawn)).await.unwrap();
        let untold = open().owed_to(worker).await.unwrap();
        assert_eq!(untold[0].verdict, Some(verdict(&drawn)));
        assert!(open().owed_unjudged(0).await.unwrap().is_empty());
        open().owe_settled(receipt(&drawn)).await.unwrap();
        assert!(open().owed_to(worker).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_is_not_booked_is_never_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(&dir.path().join("node.db")).unwrap();
        storage.owe(vec![owed(1, true), owed(2, true)]).await.unwrap();
        let since = async |since| storage.owed_unjudged(since).await.unwrap().len();
        assert_eq!((since(0).await, since(1002).await, since(1003).await), (2, 1, 0), "old audits are over");
        assert_eq!(storage.owed_unbooked().await.unwrap().len(), 2);
        assert!(storage.owed_workers().await.unwrap().is_empty());
        storage.owe_booked(JobId([2; 16])).await.unwrap();
        assert_eq!(storage.owed_unbooked().await.unwrap().len(), 1);
        assert_eq!(storage.owed_workers().await.unwrap(), [RootKey::from_seed([1; 32]).node_id()]);
    }
}
