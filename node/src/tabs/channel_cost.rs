//! The cost of a channel just in time: booked by both sides once the channel is confirmed, or by neither.
//!
//! The worker books first, when the payer tells it that the channel is begun and it sees that for itself; the payer books
//! when it hears so. A channel may end before the worker has seen it. Then the payer says that it is gone: either the
//! worker has booked its cost already, and so does the payer, or it forgets the offer for good, and nobody books it. Both
//! are asked again until they are answered, whatever ends in between; and what is not confirmed for days is given up.

use anyhow::{Context as _, bail};
use consortium_ledger::lightning::Wallet;
use consortium_ledger::lightning::channels::{ChannelView, Closing};
use consortium_protocol::envelope::Signed;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire::rpc::{Refusal, RefusalCode, Request, Response};
use consortium_protocol::wire::tab::{ChannelBegun, ChannelGone};
use tracing::{info, warn};

use super::channel::find;
use super::payer::Payer;
use super::{Tabs, disputed, internal};
use crate::clock::wall_ms;
use crate::storage::tab_channels::{ChannelState, OfferedChannel};
use crate::storage::tabs::Side;

/// Time for a worker to book.
const BOOK: std::time::Duration = std::time::Duration::from_secs(20);
/// A channel that is not confirmed so long after it was offered is given up, in milliseconds: its fee was too low, or its
/// coins went elsewhere.
const GIVE_UP_MS: u64 = 3 * 24 * 3600 * 1000;

/// What a payer does next about a channel.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// All is done.
    Nothing,
    /// It was never opened, and its worker was told of nothing.
    Forget,
    /// It is not confirmed yet.
    Wait,
    /// It was not confirmed for long: the channel of this name is closed.
    GiveUp(String),
    /// The channel of this name is confirmed: the worker is told.
    Begin(String),
    /// The worker was told before: it is told again.
    TellAgain,
    /// The worker was told, and the channel is no more.
    TellGone,
}

fn next(known: &OfferedChannel, channels: &[ChannelView], now_ms: u64) -> Next {
    let offered_ms = known.offer.payload().at_ms;
    match (known.state, find(known, channels, true)) {
        (ChannelState::Offered | ChannelState::Told, _) => Next::Nothing,
        // Lightning forgets what was not funded.
        (ChannelState::Opening, None) => Next::Forget,
        (ChannelState::Opening, Some(channel)) if channel.confirmations > 0 => Next::Begin(channel.id.clone()),
        (ChannelState::Opening, Some(channel)) if now_ms > offered_ms.saturating_add(GIVE_UP_MS) => {
            Next::GiveUp(channel.id.clone())
        }
        (ChannelState::Opening, Some(_)) => Next::Wait,
        (ChannelState::Begun, Some(_)) => Next::TellAgain,
        (ChannelState::Begun, None) => Next::TellGone,
    }
}

impl Payer {
    /// Brings a channel that was begun to the point where both sides have booked its cost, or both never will.
    pub(super) async fn go_on_with_channel(&self, worker: NodeId) -> anyhow::Result<()> {
        let storage = self.tabs.storage();
        let Some(mut known) = storage.channel(Side::Payer, worker, None).await? else { return Ok(()) };
        match next(&known, &self.wallet.channels().await?, wall_ms()) {
            Next::Nothing => Ok(()),
            Next::Forget => Ok(storage.channel_dropped(known.offer.digest()).await?),
            Next::Wait => bail!("the channel towards it is not confirmed yet"),
            Next::GiveUp(name) => {
                warn!(%worker, channel = name, "a channel that was not confirmed for days is given up");
                self.wallet.close_channel(&name, Closing::Forced).await?;
                bail!("the channel towards it was not confirmed, and is given up")
            }
            Next::Begin(name) => {
                known.channel = Some(name);
                known.state = ChannelState::Begun;
                storage.channel_note(Side::Payer, &known).await?;
                self.tell_begun(worker, known).await
            }
            Next::TellAgain => self.tell_begun(worker, known).await,
            Next::TellGone => self.tell_gone(worker, known).await,
        }
    }

    /// Has the worker book the cost, and books it then.
    async fn tell_begun(&self, worker: NodeId, known: OfferedChannel) -> anyhow::Result<()> {
        let begun = Signed::sign(&self.tabs.inner.parts.key, ChannelBegun { offer: known.offer.digest() });
        match self.swarm.request(worker, Request::ChannelBegun(Box::new(begun)), BOOK).await {
            Ok(Response::Ack) => self.both_booked(worker, known).await,
            Ok(Response::Refused(refusal)) => bail!("it has not booked its channel: {}", refusal.message),
            Ok(_) => bail!("its answer does not fit the question"),
            Err(error) => bail!("it has not booked its channel: {error}"),
        }
    }

    /// Tells the worker that the channel is no more, unless its cost is booked.
    async fn tell_gone(&self, worker: NodeId, known: OfferedChannel) -> anyhow::Result<()> {
        let offer = known.offer.digest();
        let gone = Signed::sign(&self.tabs.inner.parts.key, ChannelGone { offer });
        match self.swarm.request(worker, Request::ChannelGone(Box::new(gone)), BOOK).await {
            Ok(Response::Ack) => {
                info!(%worker, "a channel was gone before its worker saw it: nobody books its cost");
                Ok(self.tabs.storage().channel_dropped(offer).await?)
            }
            Ok(Response::Refused(refusal)) if refusal.code == RefusalCode::Disputed => {
                self.both_booked(worker, known).await
            }
            Ok(Response::Refused(refusal)) => bail!("it has not heard that its channel is gone: {}", refusal.message),
            Ok(_) => bail!("its answer does not fit the question"),
            Err(error) => bail!("it has not heard that its channel is gone: {error}"),
        }
    }

    /// Books what the worker has booked.
    async fn both_booked(&self, worker: NodeId, mut known: OfferedChannel) -> anyhow::Result<()> {
        let (digest, cost) = (known.offer.digest(), known.offer.payload().cost);
        let booked = self.tabs.books(move |ledger| ledger.book_channel(&worker, cost, true, digest, wall_ms())).await;
        booked.context("the cost of a channel cannot be booked")?;
        known.state = ChannelState::Told;
        Ok(self.tabs.storage().channel_note(Side::Payer, &known).await?)
    }
}

impl Tabs {
    /// Takes the cost of a channel off the tab, once it is seen.
    ///
    /// # Errors
    /// A refusal: disputed when nothing was agreed, busy while there is no channel.
    pub(super) async fn answer_begun(
        &self,
        wallet: &Wallet,
        from: NodeId,
        begun: Signed<ChannelBegun>,
    ) -> Result<(), Refusal> {
        let _one_at_a_time = self.answering(from)?;
        let digest = begun.payload().offer;
        let known = self.storage().channel(Side::Worker, from, Some(digest)).await.map_err(internal)?;
        let Some(mut known) = known.filter(|_| begun.signer() == from) else {
            return Err(disputed("no such channel was agreed on"));
        };
        if known.state == ChannelState::Offered {
            // No channel is paid for twice.
            let paid_for = self.storage().channels_named(Side::Worker).await.map_err(internal)?;
            let mut channels = wallet.channels().await.map_err(internal)?;
            channels.retain(|channel| !paid_for.contains(&channel.id));
            match find(&known, &channels, false) {
                Some(channel) if channel.confirmations > 0 => known.channel = Some(channel.id.clone()),
                _ => return Err(Refusal::new(RefusalCode::Busy, "no such channel is confirmed here yet")),
            }
            // What is noted is booked, though this ends in between: the payer asks again until it is.
            known.state = ChannelState::Begun;
            self.storage().channel_note(Side::Worker, &known).await.map_err(internal)?;
        }
        self.book_begun(from, &known).await
    }

    /// Forgets a channel that its payer says is no more, for good.
    ///
    /// # Errors
    /// A refusal: disputed when its cost is booked here.
    pub(super) async fn answer_gone(&self, from: NodeId, gone: Signed<ChannelGone>) -> Result<(), Refusal> {
        if gone.signer() != from {
            return Err(Refusal::new(RefusalCode::NotMaster, "a payer speaks for itself"));
        }
        let _one_at_a_time = self.answering(from)?;
        let offer = gone.payload().offer;
        let known = self.storage().channel(Side::Worker, from, Some(offer)).await.map_err(internal)?;
        match known {
            Some(known) if known.state != ChannelState::Offered => {
                self.book_begun(from, &known).await?;
                Err(disputed("the cost of that channel is booked"))
            }
            Some(_) => self.storage().channel_dropped(offer).await.map_err(internal),
            None => Ok(()),
        }
    }

    /// Once, however often it is asked for.
    async fn book_begun(&self, payer: NodeId, known: &OfferedChannel) -> Result<(), Refusal> {
        let (digest, cost) = (known.offer.digest(), known.offer.payload().cost);
        let booked = self.books(move |ledger| ledger.book_channel(&payer, cost, false, digest, wall_ms())).await;
        booked.map(drop).map_err(internal)
    }
}

#[cfg(test)]
mod tests {
    use super::super::channel::tests::{confirmed, offered};
    use super::*;

    #[test]
    fn a_channel_comes_to_an_end_in_every_state() {
        let now_ms = offered(ChannelState::Opening).offer.payload().at_ms;
        let pending = ChannelView { confirmations: 0, ..confirmed("new") };
        let (none, pending, there) = (&[][..], &[pending][..], &[confirmed("new")][..]);
        let next = |state, channels, later| next(&offered(state), channels, now_ms + later);
        for (state, channels, then) in [
            (ChannelState::Opening, none, Next::Forget),
            (ChannelState::Opening, pending, Next::Wait),
            (ChannelState::Opening, there, Next::Begin("new".to_owned())),
            (ChannelState::Begun, none, Next::TellGone),
            // A reorganisation took its block.
            (ChannelState::Begun, pending, Next::TellAgain),
            (ChannelState::Begun, there, Next::TellAgain),
            (ChannelState::Told, none, Next::Nothing),
            (ChannelState::Told, there, Next::Nothing),
        ] {
            assert_eq!(next(state, channels, GIVE_UP_MS), then, "{state:?}, {} channels", channels.len());
        }
        assert_eq!(next(ChannelState::Opening, pending, GIVE_UP_MS + 1), Next::GiveUp("new".to_owned()));
        assert_eq!(next(ChannelState::Opening, there, GIVE_UP_MS + 1), Next::Begin("new".to_owned()));
    }
}
