//! Channels that settle tabs: offered, agreed on, begun, and told of.

use std::collections::BTreeSet;

use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire::tab::ChannelOffer;
use rusqlite::{OptionalExtension as _, Row, params};

use super::tabs::{Side, int};
use super::{Storage, StorageError};

/// What tells a channel from others with the same node: its name in the wallet, once it is known, and the names of those
/// that were there before it, one to a line.
pub(super) const SCHEMA: &str = "ALTER TABLE tab_channel ADD COLUMN channel TEXT;
     ALTER TABLE tab_channel ADD COLUMN before TEXT NOT NULL DEFAULT '';";

/// How far a channel towards a worker has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelState {
    /// The worker was asked.
    Offered,
    /// It agreed, and the channel may have been opened.
    Opening,
    /// It is confirmed: the payer tells the worker, who has booked its cost when this is noted there.
    Begun,
    /// Both have booked its cost.
    Told,
}

impl ChannelState {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Offered => "offered",
            Self::Opening => "opening",
            Self::Begun => "begun",
            Self::Told => "told",
        }
    }

    fn of(text: &str) -> Option<Self> {
        [Self::Offered, Self::Opening, Self::Begun, Self::Told].into_iter().find(|state| state.as_str() == text)
    }
}

/// A channel that was offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedChannel {
    /// The offer.
    pub offer: Signed<ChannelOffer>,
    /// The Lightning node of the other side.
    pub lightning: String,
    /// How far it has come.
    pub state: ChannelState,
    /// Its name in this node's wallet, once it is known.
    pub channel: Option<String>,
    /// The names of the channels with that node that were there before: none of them is this one.
    pub before: Vec<String>,
}

const COLUMNS: &str = "signed, lightning, state, channel, before";
type Found = (Vec<u8>, String, String, Option<String>, String);

fn read(row: &Row<'_>) -> rusqlite::Result<Found> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
}

impl Storage {
    /// Notes a channel that was offered, or how far it has come since.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn channel_note(&self, side: Side, noted: &OfferedChannel) -> Result<(), StorageError> {
        let OfferedChannel { offer, lightning, state, channel, before } = noted.clone();
        let (digest, said) = (offer.digest(), offer.payload().clone());
        let peer = if side.own() { said.worker } else { said.payer };
        self.run(move |db| {
            db.execute(
                "INSERT INTO tab_channel (offer, own, peer, signed, lightning, state, at_ms, channel, before)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                 ON CONFLICT DO UPDATE SET lightning = excluded.lightning, state = excluded.state,
                                           channel = excluded.channel, before = excluded.before",
                params![
                    digest.as_bytes(),
                    side.own(),
                    peer.as_bytes(),
                    offer.as_bytes(),
                    lightning,
                    state.as_str(),
                    int(said.at_ms),
                    channel,
                    before.join("\n"),
                ],
            )
            .map(drop)
        })
        .await
    }

    /// Forgets a channel that was not opened, or is closed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn channel_dropped(&self, offer: Hash) -> Result<(), StorageError> {
        self.run(move |db| {
            db.execute("UPDATE tab_channel SET state = 'dropped' WHERE offer = ?1", [offer.as_bytes()]).map(drop)
        })
        .await
    }

    /// Forgets what this node agreed to with a payer, as far as nothing came of it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn channels_forgotten(&self, payer: NodeId) -> Result<(), StorageError> {
        self.run(move |db| {
            db.execute(
                "UPDATE tab_channel SET state = 'dropped' WHERE own = 0 AND peer = ?1 AND state = 'offered'",
                [payer.as_bytes()],
            )
            .map(drop)
        })
        .await
    }

    /// The channel of an offer, or else the newest that was not dropped with a peer.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn channel(
        &self,
        side: Side,
        peer: NodeId,
        offer: Option<Hash>,
    ) -> Result<Option<OfferedChannel>, StorageError> {
        let offer = offer.map(|offer| offer.as_bytes().to_vec());
        let found = self
            .run(move |db| {
                db.prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM tab_channel
                     WHERE peer = ?1 AND own = ?2 AND state <> 'dropped' AND (?3 IS NULL OR offer = ?3)
                     ORDER BY at_ms DESC LIMIT 1"
                ))?
                .query_row(params![peer.as_bytes(), side.own(), offer], read)
                .optional()
            })
            .await?;
        found.map(|found| self.decoded(found)).transpose()
    }

    /// The channels that this node opened to settle tabs, or is opening, as far as it is not noted that they are closed.
    ///
    /// # Errors
    /// When the database fails or holds what does not decode.
    pub async fn channels_opened(&self) -> Result<Vec<OfferedChannel>, StorageError> {
        let found: Vec<Found> = self
            .run(|db| {
                let mut query = db.prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM tab_channel WHERE own = 1 AND state IN ('opening', 'begun', 'told')"
                ))?;
                query.query_map([], read)?.collect()
            })
            .await?;
        found.into_iter().map(|found| self.decoded(found)).collect()
    }

    /// The workers towards whom a channel was begun whose cost both have not booked yet.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn channels_unfinished(&self) -> Result<Vec<NodeId>, StorageError> {
        self.run(|db| {
            let mut query = db.prepare_cached(
                "SELECT DISTINCT peer FROM tab_channel WHERE own = 1 AND state IN ('opening', 'begun')",
            )?;
            query.query_map([], |row| row.get(0).map(NodeId::from_bytes))?.collect()
        })
        .await
    }

    /// The names of the channels whose offers are known to be theirs.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn channels_named(&self, side: Side) -> Result<BTreeSet<String>, StorageError> {
        self.run(move |db| {
            let mut query =
                db.prepare_cached("SELECT channel FROM tab_channel WHERE own = ?1 AND channel IS NOT NULL")?;
            query.query_map([side.own()], |row| row.get(0))?.collect()
        })
        .await
    }

    fn decoded(&self, (signed, lightning, state, channel, before): Found) -> Result<OfferedChannel, StorageError> {
        let damaged = || StorageError::DamagedOwed { file: self.file.to_string() };
        let offer = Signed::decode(&signed).map_err(|_| damaged())?;
        let state = ChannelState::of(&state).ok_or_else(damaged)?;
        let before = before.lines().map(str::to_owned).collect();
        Ok(OfferedChannel { offer, lightning, state, channel, before })
    }
}

#[cfg(test)]
mod tests {
    use consortium_protocol::identity::RootKey;
    use consortium_protocol::msat::Msat;

    use super::*;

    #[tokio::test]
    async fn a_channel_that_is_closed_leaves_the_sum_and_makes_room_for_another() {
        let (key, worker) = (RootKey::from_seed([1; 32]), RootKey::from_seed([2; 32]).node_id());
        let lightning = "03e7156ae33b0a208d0744199163177e909e80176e55d97a2f221ede0f934dd9ad";
        let offered = |at_ms, before: &[&str]| {
            let offer = ChannelOffer {
                payer: key.node_id(),
                worker,
                at_ms,
                size_sat: 100_000,
                cost: Msat(500),
                lightning: lightning.parse().unwrap(),
                addresses: vec!["127.0.0.1:9735".to_owned()],
            };
            OfferedChannel {
                offer: Signed::sign(&key, offer),
                lightning: lightning.to_owned(),
                state: ChannelState::Opening,
                channel: None,
                before: before.iter().map(|name| (*name).to_owned()).collect(),
            }
        };
        let dir = tempfile::tempdir().unwrap();
        let open = || Storage::open(&dir.path().join("node.db")).unwrap();
        let mut first = offered(1, &[]);
        open().channel_note(Side::Payer, &first).await.unwrap();
        assert_eq!(open().channels_unfinished().await.unwrap(), [worker]);
        (first.state, first.channel) = (ChannelState::Told, Some("a".to_owned()));
        open().channel_note(Side::Payer, &first).await.unwrap();
        assert!(open().channels_unfinished().await.unwrap().is_empty());
        let names = open().channels_named(Side::Payer).await.unwrap();
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["a"]);
        assert!(open().channels_named(Side::Worker).await.unwrap().is_empty());
        let second = offered(2, &["a", "b"]);
        open().channel_note(Side::Payer, &second).await.unwrap();
        assert_eq!(open().channel(Side::Payer, worker, None).await.unwrap(), Some(second.clone()));
        assert_eq!(open().channels_opened().await.unwrap().len(), 2);
        open().channel_dropped(first.offer.digest()).await.unwrap();
        assert_eq!(open().channels_opened().await.unwrap(), [second]);
    }
}
