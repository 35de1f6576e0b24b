//! Channels: what there is, opening, closing; and peers.

use std::time::Duration;

use consortium_protocol::Msat;
use ldk_node::bitcoin::Txid;
use ldk_node::bitcoin::secp256k1::PublicKey;
use ldk_node::lightning::ln::msgs::SocketAddress;
use ldk_node::{ChannelDetails, NodeError, UserChannelId};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tracing::debug;

use super::coins::Spending;
use super::error::{self, WalletError};
use super::event::{WalletEvent, channel_name};
use super::liquidity::Budget;
use super::onchain::random_id;
use super::records::Recorded;
use super::wallet::{Inner, LOCAL, Wallet, now_ms};

/// The smallest channel opened from here, in sat: below it, its reserve and a closing fee are most of it.
pub const SMALLEST_SAT: u64 = 20_000;
/// Time to reach a peer and to agree on a channel.
const AGREE: Duration = Duration::from_secs(30);
/// Lightning carries no reason longer than this to a peer.
const FORCED: &str = "closed by its owner";

/// A channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelView {
    /// Its name in this wallet: 32 hexadecimal digits that do not change.
    pub id: String,
    /// The public key of the other side.
    pub peer: String,
    /// The output that funds it, `TXID:N`, once it is known.
    pub funding: Option<String>,
    /// How it is doing.
    pub state: ChannelState,
    /// All that is in it, in sat.
    pub size_sat: u64,
    /// What can be sent through it.
    pub spendable: Msat,
    /// What can be received through it.
    pub receivable: Msat,
    /// Own money that stays in it as a pledge, in sat.
    pub reserve_sat: u64,
    /// Others may route through it.
    pub announced: bool,
    /// It was opened, and its closing is paid, by this side.
    pub opened_here: bool,
    /// Confirmations of its funding, and how many are needed.
    pub confirmations: u32,
    /// How many confirmations are needed.
    pub needed: u32,
}

/// How a channel is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChannelState {
    /// It can be used.
    Usable,
    /// The other side is away.
    PeerAway,
    /// Its funding is not confirmed.
    Pending,
    /// It is about to be closed, or not agreed on yet.
    Waiting,
}

/// A channel to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOrder {
    /// The other side: `PUBKEY@HOST:PORT`.
    pub peer: String,
    /// All that is put in, in sat.
    pub size_sat: u64,
    /// Of it, what is given to the other side.
    pub push: Msat,
    /// Others may route through it.
    pub announced: bool,
}

/// How a channel is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// Together with the other side, which must be there: cheap, and both have their money at once.
    Cooperative,
    /// Alone: dearer, and one's own money is locked for days.
    Forced,
}

impl Wallet {
    /// All channels, the largest first.
    ///
    /// # Errors
    /// When the wallet is stopping.
    pub async fn channels(&self) -> Result<Vec<ChannelView>, WalletError> {
        self.ask("listing channels", LOCAL, |inner| {
            let mut channels: Vec<ChannelView> = inner.node.list_channels().iter().map(view).collect();
            channels.sort_by(|a, b| b.size_sat.cmp(&a.size_sat).then_with(|| a.id.cmp(&b.id)));
            Ok(channels)
        })
        .await
    }

    /// Opens a channel, when what was spent on-chain before is seen, and waits until the other side has agreed and the
    /// chain source has its funding. Gives its name.
    ///
    /// # Errors
    /// When the peer cannot be reached or refuses, there is not enough on-chain money, or what is given away is above a
    /// limit; when the wallet has not seen what it spent before, or the chain source does not take the funding.
    pub async fn open_channel(&self, order: OpenOrder) -> Result<String, WalletError> {
        self.spend(move |wallet| async move { wallet.open_now(order).await }).await
    }

    /// As [`Wallet::open_channel`], if the budget allows it beside the channels there are when its turn has come.
    ///
    /// # Errors
    /// As [`Wallet::open_channel`], and [`WalletError::OverBudget`].
    pub async fn open_channel_within(&self, budget: Budget, order: OpenOrder) -> Result<String, WalletError> {
        let opening = move |wallet: Self| async move {
            budget.check(order.size_sat, &wallet.channels().await?)?;
            wallet.open_now(order).await
        };
        self.spend(opening).await
    }

    async fn open_now(&self, order: OpenOrder) -> Result<Spending<String>, WalletError> {
        let mut events = self.events();
        let amount = order.size_sat;
        let opened = self.ask("opening a channel", AGREE, move |inner| open(inner, &order)).await?;
        let agreed = tokio::time::timeout(AGREE, agreed(&mut events, &opened)).await;
        let late = || WalletError::Late { what: "agreeing on a channel with the peer", after: AGREE };
        if let Err(error) = agreed.unwrap_or_else(|_| Err(late())) {
            self.give_up(&opened).await;
            return Err(error);
        }
        let name = opened.clone();
        let txid = self.ask("looking at a channel", LOCAL, move |inner| Ok(funding(inner, &name))).await?;
        Ok(Spending { value: opened, txid: txid.ok_or_else(late)?, amount })
    }

    /// Ends a channel that is not agreed on, lest its funding be made when its coins are spent otherwise.
    async fn give_up(&self, channel: &str) {
        let name = channel.to_owned();
        let ending = self.ask("giving a channel up", LOCAL, move |inner| close(inner, &name, Closing::Forced)).await;
        if let Err(error) = ending {
            debug!(channel, %error, "a channel that is not agreed on is gone by itself");
        }
    }

    /// Begins to close a channel.
    ///
    /// # Errors
    /// When there is no such channel, or its peer is needed and away.
    pub async fn close_channel(&self, channel: &str, how: Closing) -> Result<(), WalletError> {
        let name = channel.to_owned();
        self.ask("closing a channel", LOCAL, move |inner| close(inner, &name, how)).await
    }

    /// Connects to a peer, `PUBKEY@HOST:PORT`, and remembers it.
    ///
    /// # Errors
    /// When it makes no sense or cannot be reached.
    pub async fn connect(&self, peer: &str) -> Result<(), WalletError> {
        let peer = peer.to_owned();
        self.ask("connecting to a peer", AGREE, move |inner| {
            let (id, address) = parse_peer(&peer)?;
            inner.node.connect(id, address, true).map_err(|error| match error {
                NodeError::ConnectionFailed | NodeError::InvalidSocketAddress => {
                    WalletError::Unreachable(id.to_string())
                }
                error => error::of("connecting to a peer")(error),
            })
        })
        .await
    }
}

/// Waits until the other side has agreed to a channel.
async fn agreed(events: &mut broadcast::Receiver<Recorded>, opened: &str) -> Result<(), WalletError> {
    loop {
        match events.recv().await.map(|recorded| recorded.event) {
            Ok(WalletEvent::ChannelPending { channel, .. }) if channel == opened => return Ok(()),
            Ok(WalletEvent::ChannelClosed { channel, reason }) if channel == opened => {
                return Err(WalletError::Invalid(format!("the peer does not agree to the channel: {reason}")));
            }
            Ok(_) => {}
            // It may be among those missed: the list of channels tells.
            Err(RecvError::Lagged(_)) => return Ok(()),
            Err(RecvError::Closed) => return Err(WalletError::Stopped),
        }
    }
}

/// The transaction that funds a channel, if it is agreed on.
fn funding(inner: &Inner, name: &str) -> Option<Txid> {
    let channels = inner.node.list_channels();
    let channel = channels.iter().find(|channel| channel_name(channel.user_channel_id) == name)?;
    Some(channel.funding_txo?.txid)
}

fn view(channel: &ChannelDetails) -> ChannelView {
    let confirmations = channel.confirmations.unwrap_or(0);
    let needed = channel.confirmations_required.unwrap_or(0);
    let state = match channel {
        channel if channel.is_usable => ChannelState::Usable,
        channel if channel.is_channel_ready => ChannelState::PeerAway,
        channel if channel.funding_txo.is_some() && confirmations < needed => ChannelState::Pending,
        _ => ChannelState::Waiting,
    };
    ChannelView {
        id: channel_name(channel.user_channel_id),
        peer: channel.counterparty_node_id.to_string(),
        funding: channel.funding_txo.map(|outpoint| outpoint.to_string()),
        state,
        size_sat: channel.channel_value_sats,
        spendable: Msat(channel.outbound_capacity_msat),
        receivable: Msat(channel.inbound_capacity_msat),
        reserve_sat: channel.unspendable_punishment_reserve.unwrap_or(0),
        announced: channel.is_announced,
        opened_here: channel.is_outbound,
        confirmations,
        needed,
    }
}

/// `PUBKEY@HOST:PORT`.
pub(super) fn parse_peer(text: &str) -> Result<(PublicKey, SocketAddress), WalletError> {
    let bad = || WalletError::Invalid(format!("'{text:.120}' is not a peer; write PUBKEY@HOST:PORT"));
    let (id, address) = text.split_once('@').ok_or_else(bad)?;
    Ok((id.parse().map_err(|_| bad())?, address.parse().map_err(|_| bad())?))
}

fn check(inner: &Inner, order: &OpenOrder) -> Result<(PublicKey, SocketAddress), WalletError> {
    let bad = |why: String| Err(WalletError::Invalid(why));
    let (id, address) = parse_peer(&order.peer)?;
    if id == inner.node.node_id() {
        return bad("this is the wallet's own key".to_owned());
    }
    if order.size_sat < SMALLEST_SAT {
        return bad(format!("a channel of {} sat is too small; {SMALLEST_SAT} sat are the least", order.size_sat));
    }
    if Msat::from_sat(order.size_sat).is_none_or(|size| order.push >= size) {
        return bad("more is given to the other side than is in the channel".to_owned());
    }
    if order.announced && (inner.settings.alias.is_none() || inner.settings.listen.is_empty()) {
        return bad(
            "an announced channel needs a node with a name and an address: start it with --lightning-alias and \
                    --lightning-listen, or open a private channel"
                .to_owned(),
        );
    }
    Ok((id, address))
}

fn open(inner: &Inner, order: &OpenOrder) -> Result<String, WalletError> {
    let (id, address) = check(inner, order)?;
    // What is given away is spent; the rest stays the wallet's own.
    let reserved = random_id()?;
    if order.push > Msat::ZERO {
        inner.records.reserve(&reserved, (order.push, order.push), &inner.settings.limits, now_ms())?;
    }
    let push = (order.push > Msat::ZERO).then_some(order.push.0);
    let opened = match order.announced {
        true => inner.node.open_announced_channel(id, address, order.size_sat, push, None),
        false => inner.node.open_channel(id, address, order.size_sat, push, None),
    };
    match opened {
        Ok(channel) => {
            inner.records.spent(&reserved, &reserved, order.push)?;
            Ok(channel_name(channel))
        }
        Err(error) => {
            inner.records.returned(&reserved)?;
            Err(refused(inner, order, error))
        }
    }
}

fn refused(inner: &Inner, order: &OpenOrder, error: NodeError) -> WalletError {
    match error {
        NodeError::InsufficientFunds => {
            let balances = inner.node.list_balances();
            let anchors = inner.node.config().anchor_channels_config;
            WalletError::Insufficient {
                spendable: balances.spendable_onchain_balance_sats,
                reserved: balances.total_anchor_channels_reserve_sats,
                needed: order.size_sat.saturating_add(anchors.map_or(0, |anchors| anchors.per_channel_reserve_sats)),
            }
        }
        NodeError::ConnectionFailed | NodeError::InvalidSocketAddress => WalletError::Unreachable(order.peer.clone()),
        error => error::of("opening a channel")(error),
    }
}

fn close(inner: &Inner, name: &str, how: Closing) -> Result<(), WalletError> {
    let none = || WalletError::NoChannel(name.to_owned());
    let id = u128::from_str_radix(name, 16).map_err(|_| none())?;
    let channels = inner.node.list_channels();
    let channel = channels.iter().find(|channel| channel.user_channel_id == UserChannelId(id)).ok_or_else(none)?;
    let (id, peer) = (&channel.user_channel_id, channel.counterparty_node_id);
    let closing = match how {
        Closing::Cooperative => inner.node.close_channel(id, peer),
        Closing::Forced => inner.node.force_close_channel(id, peer, Some(FORCED.to_owned())),
    };
    closing.map_err(|error| match error {
        NodeError::ChannelClosingFailed => WalletError::Invalid(
            "the channel cannot be closed together now: the peer is away, or payments are on their way. Try again later, \
             or close it alone with --force"
                .to_owned(),
        ),
        error => error::of("closing a channel")(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_read() {
        let key = "02eec7245d6b7d2ccb30380bfbe2a3648cd7a942653f5aa340edcea1f283686619";
        for place in ["127.0.0.1:9735", "[::1]:1", "node.example:9735"] {
            assert!(parse_peer(&format!("{key}@{place}")).is_ok(), "{place}");
        }
        for bad in ["", key, &format!("{key}@"), &format!("{key}@host"), "02ee@127.0.0.1:1", "@127.0.0.1:1"] {
            assert!(parse_peer(bad).is_err(), "{bad}");
        }
    }
}
