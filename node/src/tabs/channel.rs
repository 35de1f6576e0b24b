//! A channel just in time: a worker that no payment can reach is given one by its payer, and bears its cost.
//!
//! The payer says beforehand what the channel costs; the worker agrees with its signature, and connects to the payer's
//! Lightning node, which it can do from behind a router. Over that connection the payer opens a private channel. Once its
//! funding is in a block, both take the cost off the tab, each in its own journal under the digest of the offer
//! (`channel_cost`). A pair has one such channel, and another when it is full or closed.

use anyhow::{Context as _, bail};
use consortium_ledger::lightning::channels::{ChannelState as InWallet, ChannelView, SMALLEST_SAT};
use consortium_ledger::lightning::{Wallet, WalletError};
use consortium_protocol::envelope::Signed;
use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::rpc::{Refusal, RefusalCode, Request, Response};
use consortium_protocol::wire::tab::{ChannelAgreed, ChannelOffer, MAX_ADDRESSES};
use tracing::{info, warn};

use super::payer::{Invoiced, Payer};
use super::{Tabs, disputed, internal, sats};
use crate::clock::wall_ms;
use crate::storage::tab_channels::{ChannelState, OfferedChannel};
use crate::storage::tabs::Side;

/// A channel holds at least so many times what is due, and at least this many sat.
const TIMES: u64 = 10;
const LEAST_SAT: u64 = 100_000;
/// What stays in a channel is a hundredth of it, and at least this many sat.
const LEAST_RESERVE_SAT: u64 = 1000;
/// What a channel costs is at most this part of what is due.
const PART: u64 = 2;
/// Time for a worker to agree: it connects meanwhile.
const AGREE: std::time::Duration = std::time::Duration::from_secs(90);
/// An offer older than this, or further in the future, is not taken, in milliseconds.
const FRESH_MS: u64 = 600_000;

impl Payer {
    /// Opens a channel towards a worker that could not be paid, if that is what it lacks.
    pub(super) async fn open_towards(&self, worker: NodeId, invoiced: &Invoiced, due: Msat) -> anyhow::Result<()> {
        let lightning = invoiced.lightning.to_string();
        if let Some(known) = self.tabs.storage().channel(Side::Payer, worker, None).await?
            && known.state != ChannelState::Offered
        {
            self.may_open_another(&known, due).await?;
        }
        if invoiced.receivable >= invoiced.amount() && invoiced.amount() >= self.tabs.rules().settle_min {
            bail!("no way to its Lightning node with enough room was found");
        }
        let size_sat =
            self.affordable(due).await.with_context(|| format!("it can receive only {}", sats(invoiced.receivable)))?;
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
        let before = names_with(&self.wallet.channels().await?, &lightning);
        let opening = OfferedChannel { offer, lightning, state: ChannelState::Opening, channel: None, before };
        self.open(opening).await?;
        info!(%worker, size_sat, "opening a channel towards a worker that no payment can reach");
        self.go_on_with_channel(worker).await?;
        bail!("the channel towards it is not usable yet")
    }

    /// Opens a channel that was agreed on, and notes its name.
    async fn open(&self, mut opening: OfferedChannel) -> anyhow::Result<()> {
        let storage = self.tabs.storage();
        storage.channel_note(Side::Payer, &opening).await?;
        match self.wallet.open_channel_back(&opening.lightning, opening.offer.payload().size_sat).await {
            Ok(name) => {
                opening.channel = Some(name);
                Ok(storage.channel_note(Side::Payer, &opening).await?)
            }
            Err(error) => {
                // It may come about yet if it was only late.
                let failed = !matches!(error, WalletError::Late { .. } | WalletError::Stopped);
                if failed && find(&opening, &self.wallet.channels().await?, true).is_none() {
                    storage.channel_dropped(opening.offer.digest()).await?;
                }
                Err(error).context("the channel towards it is not opened")
            }
        }
    }

    /// Nothing, if the channel towards a worker is full or closed; else what is waited for.
    async fn may_open_another(&self, known: &OfferedChannel, due: Msat) -> anyhow::Result<()> {
        let channels = self.wallet.channels().await?;
        match find(known, &channels, true) {
            None => Ok(self.tabs.storage().channel_dropped(known.offer.digest()).await?),
            Some(channel) => match channel.state {
                InWallet::Usable if channel.spendable >= due => {
                    bail!("the channel towards it has room, and the payment failed all the same")
                }
                InWallet::Usable => Ok(()),
                InWallet::PeerAway => bail!("its Lightning node is away"),
                InWallet::Pending | InWallet::Waiting => bail!("the channel towards it is not usable yet"),
            },
        }
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
        let left = rules.channel_budget_sat.saturating_sub(self.tabs.in_channels_sat(&self.wallet).await?);
        let size = due.whole_sat().saturating_mul(TIMES).max(LEAST_SAT).min(left);
        if size < SMALLEST_SAT || !holds(size, due) {
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
}

/// The channel of an offer among those of the wallet: the one of its name or, where that is not known yet, one of its size
/// with its node that was not there before.
pub(super) fn find<'a>(
    known: &OfferedChannel,
    channels: &'a [ChannelView],
    opened_here: bool,
) -> Option<&'a ChannelView> {
    channels.iter().find(|channel| match &known.channel {
        Some(name) => channel.id == *name,
        None => {
            let new = !known.before.contains(&channel.id);
            let fits = channel.size_sat == known.offer.payload().size_sat && channel.opened_here == opened_here;
            new && fits && channel.peer == known.lightning
        }
    })
}

fn names_with(channels: &[ChannelView], lightning: &str) -> Vec<String> {
    channels.iter().filter(|channel| channel.peer == lightning).map(|channel| channel.id.clone()).collect()
}

/// Whether what is owed can be paid through a channel of this size, in sat: its reserve stays in it.
fn holds(size_sat: u64, owed: Msat) -> bool {
    let reserve = (size_sat / 100).max(LEAST_RESERVE_SAT);
    Msat::from_sat(size_sat.saturating_sub(reserve)).is_some_and(|room| room >= owed)
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
        let receivable = wallet.largest_incoming().await.map_err(internal)?;
        is_worth(said, owed, receivable, self.rules().channel_cost).map_err(disputed)?;
        let channels = wallet.channels().await.map_err(internal)?;
        let lightning = said.lightning.to_string();
        if channels.iter().any(|channel| {
            let coming = matches!(channel.state, InWallet::Pending | InWallet::Waiting);
            channel.peer == lightning && !channel.opened_here && coming
        }) {
            return Err(disputed("the channel before is not usable yet"));
        }
        self.connect(wallet, said).await?;
        let own = wallet.node_id().parse().map_err(internal)?;
        // Who offers anew has given up what it offered before.
        self.storage().channels_forgotten(from).await.map_err(internal)?;
        let before = names_with(&channels, &lightning);
        let offered =
            OfferedChannel { offer: offer.clone(), lightning, state: ChannelState::Offered, channel: None, before };
        self.storage().channel_note(Side::Worker, &offered).await.map_err(internal)?;
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

    /// What is in the channels that were opened to settle tabs and are not closed, in sat. Those that are closed are
    /// noted as such.
    pub(super) async fn in_channels_sat(&self, wallet: &Wallet) -> anyhow::Result<u64> {
        let (opened, channels) = (self.storage().channels_opened().await?, wallet.channels().await?);
        let mut sum = 0_u64;
        for known in opened {
            if known.state == ChannelState::Opening || find(&known, &channels, true).is_some() {
                sum = sum.saturating_add(known.offer.payload().size_sat);
            } else if known.state == ChannelState::Told {
                self.storage().channel_dropped(known.offer.digest()).await?;
            }
        }
        Ok(sum)
    }
}

/// Whether a channel is worth its cost to a worker that is owed this and can receive so much at a time.
fn is_worth(offer: &ChannelOffer, owed: Msat, receivable: Msat, most: Msat) -> Result<(), String> {
    if offer.cost > most {
        return Err(format!("it costs {}, and {} are paid for a channel here", sats(offer.cost), sats(most)));
    }
    if owed == Msat::ZERO || offer.cost.0.saturating_mul(PART) > owed.0 {
        return Err(format!("it costs {}, and {} are owed", sats(offer.cost), sats(owed)));
    }
    if receivable >= owed {
        return Err(format!("{} can be received without it, and {} are owed", sats(receivable), sats(owed)));
    }
    if !holds(offer.size_sat, owed) {
        return Err(format!("{} sat are too little for the {} that are owed", offer.size_sat, sats(owed)));
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use consortium_protocol::identity::RootKey;

    use super::*;

    const OTHER: &str = "03e7156ae33b0a208d0744199163177e909e80176e55d97a2f221ede0f934dd9ad";

    fn offer(size_sat: u64, cost: Msat) -> ChannelOffer {
        ChannelOffer {
            payer: RootKey::from_seed([1; 32]).node_id(),
            worker: RootKey::from_seed([2; 32]).node_id(),
            at_ms: 1,
            size_sat,
            cost,
            lightning: OTHER.parse().unwrap(),
            addresses: vec!["127.0.0.1:9735".to_owned()],
        }
    }

    /// A channel of that name which the payer opened, as the payer sees it.
    pub(in crate::tabs) fn confirmed(id: &str) -> ChannelView {
        ChannelView {
            id: id.to_owned(),
            peer: OTHER.to_owned(),
            funding: None,
            state: InWallet::Usable,
            size_sat: 100_000,
            spendable: Msat(0),
            receivable: Msat(0),
            reserve_sat: 1000,
            announced: false,
            opened_here: true,
            confirmations: 6,
            needed: 6,
        }
    }

    /// What the payer knows of a channel of that size.
    pub(in crate::tabs) fn offered(state: ChannelState) -> OfferedChannel {
        OfferedChannel {
            offer: Signed::sign(&RootKey::from_seed([1; 32]), offer(100_000, Msat(1))),
            lightning: OTHER.to_owned(),
            state,
            channel: None,
            before: Vec::new(),
        }
    }

    #[test]
    fn a_worker_pays_for_no_channel_that_it_does_not_need() {
        let owed = Msat(20_000_000);
        let worth =
            |size_sat, cost, receivable| is_worth(&offer(size_sat, Msat(cost)), owed, receivable, Msat(500_000));
        assert_eq!(worth(100_000, 500_000, Msat(0)), Ok(()));
        assert_eq!(worth(100_000, 500_000, Msat(19_999_999)), Ok(()));
        assert_eq!(worth(21_000, 500_000, Msat(0)), Ok(()));
        assert!(worth(100_000, 500_001, Msat(0)).unwrap_err().contains("are paid for a channel here"));
        assert!(worth(100_000, 500_000, owed).unwrap_err().contains("can be received without it"));
        assert!(worth(20_999, 500_000, Msat(0)).unwrap_err().contains("too little"), "the reserve stays in it");
        let dear = is_worth(&offer(100_000, Msat(500_000)), Msat(999_999), Msat(0), Msat(500_000));
        assert!(dear.unwrap_err().contains("are owed"));
    }

    #[test]
    fn another_channel_with_the_same_node_is_not_taken_for_the_one_offered() {
        let channel = |id: &str, size_sat, opened_here| ChannelView { size_sat, opened_here, ..confirmed(id) };
        let mut known = OfferedChannel {
            before: names_with(&[channel("old", 100_000, true)], OTHER),
            ..offered(ChannelState::Opening)
        };
        let old = [channel("old", 100_000, true), channel("theirs", 100_000, false), channel("larger", 100_001, true)];
        assert_eq!(find(&known, &old, true), None);
        let all = [&old[..], &[channel("new", 100_000, true)]].concat();
        assert_eq!(find(&known, &all, true).map(|found| found.id.as_str()), Some("new"));
        known.channel = Some("gone".to_owned());
        assert_eq!(find(&known, &all, true), None);
    }

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
