//! Channels that settle tabs: offered, agreed on, begun, and told of.

use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire::tab::ChannelOffer;
use rusqlite::{OptionalExtension as _, params};

use super::tabs::{Side, int};
use super::{Storage, StorageError};

/// How far a channel towards a worker has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelState {
    /// The worker was asked.
    Offered,
    /// It agreed, and the channel may have been opened.
    Opening,
    /// It is being opened, and its cost is to be booked and told.
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
}

impl Storage {
    /// Notes a channel that was offered.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn channel_note(
        &self,
        side: Side,
        offer: &Signed<ChannelOffer>,
        lightning: String,
        state: ChannelState,
    ) -> Result<(), StorageError> {
        let (digest, said, signed) = (offer.digest(), offer.payload(), offer.as_bytes().to_vec());
        let peer = if side.own() { said.worker } else { said.payer };
        let at_ms = said.at_ms;
        self.run(move |db| {
            let values =
                params![digest.as_bytes(), side.own(), peer.as_bytes(), signed, lightning, state.as_str(), int(at_ms)];
            db.execute(
                "INSERT INTO tab_channel VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT DO UPDATE SET lightning = excluded.lightning, state = excluded.state",
                values,
            )
            .map(drop)
        })
        .await
    }

    /// Forgets a channel that was not opened.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn channel_dropped(&self, offer: Hash) -> Result<(), StorageError> {
        self.run(move |db| {
            db.execute("UPDATE tab_channel SET state = 'dropped' WHERE offer = ?1", [offer.as_bytes()]).map(drop)
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
        let found: Option<(Vec<u8>, String, String)> = self
            .run(move |db| {
                db.prepare_cached(
                    "SELECT signed, lightning, state FROM tab_channel
                     WHERE peer = ?1 AND own = ?2 AND state <> 'dropped' AND (?3 IS NULL OR offer = ?3)
                     ORDER BY at_ms DESC LIMIT 1",
                )?
                .query_row(params![peer.as_bytes(), side.own(), offer], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })
                .optional()
            })
            .await?;
        let damaged = || StorageError::DamagedOwed { file: self.file.to_string() };
        found
            .map(|(signed, lightning, state)| {
                let offer = Signed::decode(&signed).map_err(|_| damaged())?;
                let state = ChannelState::of(&state).ok_or_else(damaged)?;
                Ok(OfferedChannel { offer, lightning, state })
            })
            .transpose()
    }

    /// What is in the channels that this node opened to settle tabs, in sat.
    ///
    /// # Errors
    /// When the database fails or holds what does not decode.
    pub async fn channels_opened_sat(&self) -> Result<u64, StorageError> {
        let signed: Vec<Vec<u8>> = self
            .run(|db| {
                let mut query = db.prepare_cached(
                    "SELECT signed FROM tab_channel WHERE own = 1 AND state IN ('opening', 'begun', 'told')",
                )?;
                query.query_map([], |row| row.get(0))?.collect()
            })
            .await?;
        let mut sum = 0_u64;
        for bytes in signed {
            let offer = Signed::<ChannelOffer>::decode(&bytes)
                .map_err(|_| StorageError::DamagedOwed { file: self.file.to_string() })?;
            sum = sum.saturating_add(offer.payload().size_sat);
        }
        Ok(sum)
    }
}
