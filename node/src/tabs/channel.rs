//! A channel just in time: a worker that no payment can reach is given one by its payer, and bears its cost.
//!
//! The payer says beforehand what the channel costs; the worker agrees with its signature, and connects to the payer's
//! Lightning node, which it can do from behind a router. Over that connection the payer opens a private channel. When it is
//! being opened, both take the cost off the tab, each in its own journal under the digest of the offer: the payer first,
//! who then tells the worker until that one has booked it, too. A pair has one such channel.

use anyhow::{Context as _, bail};
use consortium_ledger::lightning::Wallet;
use consortium_ledger::lightning::channels::{ChannelState as InWallet, SMALLEST_SAT};
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::rpc::{Refusal, RefusalCode, Request, Response};
use consortium_protocol::wire::tab::{ChannelAgreed, ChannelBegun, ChannelOffer, MAX_ADDRESSES};
use tracing::{info, warn};

use super::payer::{Invoiced, Payer};
use super::{Tabs, disputed, internal, sats};
use crate::clock::wall_ms;
use crate::storage::tab_channels::{ChannelState, OfferedChannel};
use crate::storage::tabs::Side;

/// A channel holds at least so many times what is due, and at least this many sat.
const TIMES: u64 = 10;
const LEAST_SAT: u64 = 100_000;
/// What a channel costs is at most this part of what is due.
const PART: u64 = 2;
/// Time for a worker to agree: it connects meanwhile.
const AGREE: std::time::Duration = std::time::Duration::from_secs(90);
/// Time for a worker to book.
const BOOK: std::time::Duration = std::time::Duration::from_secs(20);
/// An offer older than this, or further in the future, is not taken, in milliseconds.
const FRESH_MS: u64 = 600_000;

impl Payer {
    /// Opens a channel towards a worker that could not be paid, if that is what it lacks.
    pub(super) async fn open_towards(&self, worker: NodeId, invoiced: &Invoiced, due: Msat) -> anyhow::Result<()> {
        let lightning = invoiced.lightning.to_string();
        if let Some(known) = self.tabs.storage().channel(Side::Payer, worker, None).await?
            && known.state != ChannelState::Offered
        {
            return self.waits_for_channel(&known.lightning).await;
        }
        if invoiced.receivable >= invoiced.amount() {
            bail!("no way to its Lightning node with enough room was found");
        }
        let size_sat = self.affordable(due).await?;
        let status = self.wallet.status().await?;
        let addresses = dialable(&status.listen, &self.swarm.listening().borrow());
        if addresses.is_empty() {
            bail!(
                "no payment can reach it, and it could not reach this node's wallet either: that needs --lightning-listen"
            );
        }
        let offer = ChannelOffer {
            payer: self.tabs.me(),
            worker,
            at_ms: wall_ms(),
            size_sat,
            cost: self.tabs.rules().channel_cost,
            lightning: status.node_id.parse().context("the wallet's own key")?,
            addresses,
        };
        let offer = Signed::sign(&self.tabs.inner.parts.key, offer);
        self.agreed(worker, &offer, &lightning).await?;
        self.tabs.storage().channel_note(Side::Payer, &offer, lightning.clone(), ChannelState::Opening).await?;
        self.wallet.open_channel_back(&lightning, size_sat).await.context("the channel towards it is not opened")?;
        info!(%worker, size_sat, "opening a channel towards a worker that no payment can reach");
        self.go_on_with_channel(worker).await?;
        self.waits_for_channel(&lightning).await
    }

    /// What may be put into a channel for what is due, in sat.
    async fn affordable(&self, due: Msat) -> anyhow::Result<u64> {
        let rules = self.tabs.rules();
        if rules.channel_budget_sat == 0 {
            bail!("no payment can reach it; with --channel-budget this node would open a channel towards it");
        }
        if due < Msat(rules.channel_cost.0.saturating_mul(PART)) {
            bail!(
                "no payment can reach it; a channel towards it costs {}, and is opened once twice as much is due",
                sats(rules.channel_cost)
            );
        }
        let left = rules.channel_budget_sat.saturating_sub(self.tabs.storage().channels_opened_sat().await?);
        let size = due.whole_sat().saturating_mul(TIMES).max(LEAST_SAT).min(left);
        if size < SMALLEST_SAT || Msat::from_sat(size).is_none_or(|size| size <= due) {
            bail!("no payment can reach it, and {left} sat are left of the budget for channels");
        }
        Ok(size)
    }

    /// The worker's agreement to an offer.
    async fn agreed(&self, worker: NodeId, offer: &Signed<ChannelOffer>, lightning: &str) -> anyhow::Result<()> {
        let answer = self.swarm.request(worker, Request::Channel(Box::new(offer.clone())), AGREE).await;
        match answer.context("it does not answer the offer of a channel")? {
            Response::Channel(agreed) => {
                let said = agreed.payload();
                let fits = agreed.signer() == worker && said.offer == offer.digest();
                if !fits || said.lightning.to_string() != lightning {
                    bail!("its answer does not fit the offer of a channel");
                }
                Ok(())
            }
            Response::Refused(refusal) => bail!("it refuses a channel: {}", refusal.message),
            _ => bail!("its answer does not fit the offer of a channel"),
        }
    }

    async fn waits_for_channel(&self, lightning: &str) -> anyhow::Result<()> {
        let channels = self.wallet.channels().await?;
        match channels.iter().find(|channel| channel.peer == lightning).map(|channel| channel.state) {
            None => bail!("the channel towards it was closed; open another one (`wallet open`)"),
            Some(InWallet::Usable) => bail!("no way to its Lightning node with enough room was found"),
            Some(InWallet::PeerAway) => bail!("its Lightning node is away"),
            Some(InWallet::Pending | InWallet::Waiting) => bail!("the channel towards it is not confirmed yet"),
        }
    }

    /// Brings a channel that was begun to the point where both sides have booked its cost.
    pub(super) async fn go_on_with_channel(&self, worker: NodeId) -> anyhow::Result<()> {
        let Some(known) = self.tabs.storage().channel(Side::Payer, worker, None).await? else { return Ok(()) };
        let OfferedChannel { offer, lightning, state } = known;
        match state {
            ChannelState::Offered | ChannelState::Told => return Ok(()),
            ChannelState::Opening => {
                let channels = self.wallet.channels().await?;
                let found = channels.iter().find(|channel| channel.peer == lightning && channel.opened_here);
                match found.map(|channel| channel.funding.is_some()) {
                    Some(true) => {}
                    Some(false) => bail!("the channel towards it is being agreed on"),
                    // Lightning forgets over a restart what was not funded.
                    None => return Ok(self.tabs.storage().channel_dropped(offer.digest()).await?),
                }
                self.tabs.storage().channel_note(Side::Payer, &offer, lightning.clone(), ChannelState::Begun).await?;
            }
            ChannelState::Begun => {}
        }
        let (digest, cost) = (offer.digest(), offer.payload().cost);
        self.tabs.books(move |ledger| ledger.book_channel(&worker, cost, true, digest, wall_ms())).await?;
        let begun = Signed::sign(&self.tabs.inner.parts.key, ChannelBegun { offer: digest });
        match self.swarm.request(worker, Request::ChannelBegun(Box::new(begun)), BOOK).await {
            Ok(Response::Ack) => {
                self.tabs.storage().channel_note(Side::Payer, &offer, lightning, ChannelState::Told).await?;
                Ok(())
            }
            Ok(Response::Refused(refusal)) => bail!("it has not booked its channel: {}", refusal.message),
            Ok(_) => bail!("its answer does not fit the question"),
            Err(error) => bail!("it has not booked its channel: {error}"),
        }
    }
}

/// Where the wallet can be reached: an address of all interfaces stands for those that the node listens on.
fn dialable(listen: &[String], swarm: &[String]) -> Vec<String> {
    let hosts = swarm.iter().filter_map(|address| {
        let host = address.strip_prefix("/ip4/")?.split('/').next()?;
        (!host.starts_with("127.")).then_some(host)
    });
    let hosts: std::collections::BTreeSet<&str> = hosts.collect();
    let mut found = Vec::new();
    for address in listen {
        match address.strip_prefix("0.0.0.0:").or_else(|| address.strip_prefix("[::]:")) {
            Some(port) => found.extend(hosts.iter().map(|host| format!("{host}:{port}"))),
            None => found.push(address.clone()),
        }
    }
    found.truncate(MAX_ADDRESSES);
    found
}

impl Tabs {
    /// Answers the offer of a channel: agrees if it is worth its cost, and connects to whoever will open it.
    ///
    /// # Errors
    /// A refusal.
    pub(super) async fn answer_offer(
        &self,
        wallet: &Wallet,
        from: NodeId,
        offer: Signed<ChannelOffer>,
    ) -> Result<Signed<ChannelAgreed>, Refusal> {
        let said = offer.payload();
        if (offer.signer(), said.payer, said.worker) != (from, from, self.me()) {
            return Err(disputed("a payer speaks for itself, to its worker"));
        }
        if said.at_ms.abs_diff(wall_ms()) > FRESH_MS {
            return Err(disputed("the offer is not of now"));
        }
        let _one_at_a_time = self.answering(from)?;
        let owed = self.books(move |ledger| ledger.tab_owed(&from, wall_ms())).await.map_err(internal)?.now;
        if owed == Msat::ZERO || said.cost.0.saturating_mul(PART) > owed.0 {
            return Err(disputed(format!("it costs {}, and {} are owed", sats(said.cost), sats(owed))));
        }
        let before = self.storage().channel(Side::Worker, from, None).await.map_err(internal)?;
        if before.is_some_and(|before| before.state != ChannelState::Offered) {
            return Err(disputed("there was such a channel already"));
        }
        self.connect(wallet, said).await?;
        let (lightning, own) = (said.lightning.to_string(), wallet.node_id().parse().map_err(internal)?);
        self.storage().channel_note(Side::Worker, &offer, lightning, ChannelState::Offered).await.map_err(internal)?;
        info!(payer = %from, size_sat = said.size_sat, cost = said.cost.0, "agreed to a channel");
        Ok(Signed::sign(&self.inner.parts.key, ChannelAgreed { offer: offer.digest(), lightning: own }))
    }

    async fn connect(&self, wallet: &Wallet, offer: &ChannelOffer) -> Result<(), Refusal> {
        for address in &offer.addresses {
            match wallet.connect(&format!("{}@{address}", offer.lightning)).await {
                Ok(()) => return Ok(()),
                Err(error) => warn!(payer = %offer.payer, %error, "a payer's Lightning node"),
            }
        }
        Err(Refusal::new(RefusalCode::Busy, "your Lightning node cannot be reached from here"))
    }

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
        let digest: Hash = begun.payload().offer;
        let known = self.storage().channel(Side::Worker, from, Some(digest)).await.map_err(internal)?;
        let Some(known) = known.filter(|_| begun.signer() == from) else {
            return Err(disputed("no such channel was agreed on"));
        };
        let said = known.offer.payload();
        if known.state == ChannelState::Offered {
            let channels = wallet.channels().await.map_err(internal)?;
            let there = channels.iter().any(|channel| {
                channel.peer == known.lightning && channel.size_sat == said.size_sat && channel.funding.is_some()
            });
            if !there {
                return Err(Refusal::new(RefusalCode::Busy, "there is no such channel here yet"));
            }
        }
        let cost = said.cost;
        self.books(move |ledger| ledger.book_channel(&from, cost, false, digest, wall_ms())).await.map_err(internal)?;
        let noted =
            self.storage().channel_note(Side::Worker, &known.offer, known.lightning.clone(), ChannelState::Begun);
        noted.await.map_err(internal)
    }
}

#[cfg(test)]
mod tests {
    use super::dialable;

    #[test]
    fn all_interfaces_stand_for_those_that_are_known() {
        let swarm = ["/ip4/127.0.0.1/tcp/4801", "/ip4/203.0.113.7/tcp/4801", "/ip4/203.0.113.7/udp/4801/quic-v1"];
        let swarm = swarm.map(str::to_owned);
        let all = |listen: &[&str]| dialable(&listen.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(), &swarm);
        assert_eq!(all(&["0.0.0.0:9735"]), ["203.0.113.7:9735"]);
        assert_eq!(all(&["127.0.0.1:9735", "198.51.100.2:1"]), ["127.0.0.1:9735", "198.51.100.2:1"]);
        assert!(all(&[]).is_empty());
    }
}
