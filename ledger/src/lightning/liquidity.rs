//! Where channels are worth their money: what to open and what to close, within a budget, and what to tell the operator.
//!
//! [`plan`] and [`hints`] are functions of what they are given; the node looks every few minutes and does one step. A
//! channel is opened to the peer that is worth the most, which is what moved between it and this node, by its
//! reputation. The budget bounds all channels that this wallet has opened, also by order. A channel that this node
//! opened and that nothing went through for long is closed, together with its peer, when a better one needs its place.
//! Nothing is ever closed by force.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use consortium_protocol::Msat;

use super::channels::{ChannelState, ChannelView, OpenOrder, SMALLEST_SAT};
use super::error::{WalletError, sats};
use super::wallet::{Wallet, now_ms};

/// A channel is opened for so many times what moved between the peer and this node.
const TIMES: u64 = 4;
/// What a peer must be worth for a channel.
const LEAST_WORTH: Msat = Msat(1_000_000);
/// A channel opened by itself is not larger, in sat.
const LARGEST_SAT: u64 = 5_000_000;
/// What is left on-chain for the fee of an opening, in sat.
const FEE_SAT: u64 = 5_000;
/// Time without a payment after which a channel may be closed for a better one, in milliseconds.
const IDLE_MS: u64 = 30 * 24 * 3600 * 1000;
/// Time after which a peer that is away is told about, in milliseconds.
const AWAY_MS: u64 = 3 * 24 * 3600 * 1000;
/// From this part of a channel on, in hundredths, its money counts as being all on one side.
const LOPSIDED: u64 = 90;

/// What may be put into channels, in sat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget(pub u64);

/// More than the budget allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a channel of {wanted} sat is above the budget for channels: {used} sat of {budget} are in use. Close a channel that \
     is not needed (`wallet channels`, `wallet close`), or raise --channel-budget"
)]
pub struct OverBudget {
    /// What was to be put in.
    pub wanted: u64,
    /// What is in channels that this wallet opened.
    pub used: u64,
    /// The budget.
    pub budget: u64,
}

impl Budget {
    /// What is in channels that this wallet opened, in sat.
    #[must_use]
    pub fn used(channels: &[ChannelView]) -> u64 {
        let opened = channels.iter().filter(|channel| channel.opened_here);
        opened.fold(0, |sum, channel| sum.saturating_add(channel.size_sat))
    }

    /// What may still be put into channels, in sat.
    #[must_use]
    pub fn left(self, channels: &[ChannelView]) -> u64 {
        self.0.saturating_sub(Self::used(channels))
    }

    /// Whether a channel of `wanted` sat may be opened beside those there are.
    ///
    /// # Errors
    /// [`OverBudget`], in words for the operator.
    pub fn check(self, wanted: u64, channels: &[ChannelView]) -> Result<(), OverBudget> {
        match wanted <= self.left(channels) {
            true => Ok(()),
            false => Err(OverBudget { wanted, used: Self::used(channels), budget: self.0 }),
        }
    }
}

/// A peer as far as channels are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The public key of its Lightning node.
    pub id: String,
    /// Where that can be reached, `HOST:PORT`; none where it cannot.
    pub address: Option<String>,
    /// What moved between it and this node, both ways together.
    pub moved: Msat,
    /// Its reputation, in thousandths; at most 1000.
    pub reputation: u16,
}

impl Candidate {
    /// What moved, by reputation.
    fn worth(&self) -> Msat {
        Msat(self.moved.0 / 1000 * u64::from(self.reputation.min(1000)))
    }
}

/// A channel and how it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    /// The channel.
    pub channel: ChannelView,
    /// Time since something went through it, or since it was first seen, in milliseconds.
    pub idle_ms: u64,
    /// Time since its peer was last there, in milliseconds.
    pub away_ms: u64,
}

/// Since when channels are as they are. It is kept in memory alone, and so begins anew with the wallet: what counts on a
/// channel being idle or a peer being away comes later then, never sooner.
#[derive(Clone, Debug, Default)]
pub struct Uses(BTreeMap<String, Use>);

#[derive(Clone, Copy, Debug)]
struct Use {
    spendable: Msat,
    moved_ms: u64,
    there_ms: u64,
}

impl Uses {
    /// Notes how the channels are now, and tells how they are used. Those that are gone are forgotten.
    pub fn look(&mut self, channels: Vec<ChannelView>, now_ms: u64) -> Vec<InUse> {
        self.0.retain(|id, _| channels.iter().any(|channel| channel.id == *id));
        let look = |channel: ChannelView| {
            let new = Use { spendable: channel.spendable, moved_ms: now_ms, there_ms: now_ms };
            let known = self.0.entry(channel.id.clone()).or_insert(new);
            if known.spendable != channel.spendable {
                (known.spendable, known.moved_ms) = (channel.spendable, now_ms);
            }
            if channel.state != ChannelState::PeerAway {
                known.there_ms = now_ms;
            }
            let since = |then: u64| now_ms.saturating_sub(then);
            InUse { idle_ms: since(known.moved_ms), away_ms: since(known.there_ms), channel }
        };
        channels.into_iter().map(look).collect()
    }
}

/// What is known when it is decided.
#[derive(Clone, Debug, Default)]
pub struct Situation {
    /// The channels.
    pub channels: Vec<InUse>,
    /// The peers.
    pub peers: Vec<Candidate>,
    /// The budget; zero for none, and then nothing is done.
    pub budget: Budget,
    /// What is on-chain and free to be spent, in sat.
    pub spendable_sat: u64,
    /// What is kept on-chain for each channel, in sat.
    pub reserve_sat: u64,
    /// This wallet has a name and an address, so that its channels can be announced.
    pub can_announce: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Wait,
    /// Open a channel.
    Open(OpenOrder),
    /// Close a channel together with its peer.
    Close(String),
}

/// The next step, if any.
#[must_use]
pub fn plan(situation: &Situation) -> Step {
    if situation.budget == Budget(0) {
        return Step::Wait;
    }
    let Some((best, address)) = best(situation) else { return Step::Wait };
    let channels: Vec<ChannelView> = situation.channels.iter().map(|used| used.channel.clone()).collect();
    let wanted = best.moved.whole_sat().saturating_mul(TIMES).clamp(SMALLEST_SAT, LARGEST_SAT);
    let left = situation.budget.left(&channels);
    if left < SMALLEST_SAT {
        return idle(situation).map_or(Step::Wait, Step::Close);
    }
    let onchain = situation.spendable_sat.saturating_sub(situation.reserve_sat).saturating_sub(FEE_SAT);
    let size_sat = wanted.min(left).min(onchain);
    if size_sat < SMALLEST_SAT {
        return Step::Wait;
    }
    let peer = format!("{}@{address}", best.id);
    Step::Open(OpenOrder { peer, size_sat, push: Msat::ZERO, announced: situation.can_announce })
}

/// The peer that is worth a channel most, and has none.
fn best(situation: &Situation) -> Option<(&Candidate, &str)> {
    let joined = |id: &str| situation.channels.iter().any(|used| used.channel.peer == id);
    let worthy = situation.peers.iter().filter(|peer| peer.worth() >= LEAST_WORTH && !joined(&peer.id));
    let reachable = worthy.filter_map(|peer| Some((peer, peer.address.as_deref()?)));
    reachable.max_by(|(a, _), (b, _)| a.worth().cmp(&b.worth()).then_with(|| b.id.cmp(&a.id)))
}

/// The channel that was opened here and that nothing went through for longest.
fn idle(situation: &Situation) -> Option<String> {
    let idle = situation.channels.iter().filter(|used| {
        let channel = &used.channel;
        channel.opened_here && channel.state == ChannelState::Usable && used.idle_ms >= IDLE_MS
    });
    let longest = idle.max_by(|a, b| a.idle_ms.cmp(&b.idle_ms).then_with(|| b.channel.id.cmp(&a.channel.id)));
    longest.map(|used| used.channel.id.clone())
}

/// What the operator could do, in sentences; empty when all is well.
#[must_use]
pub fn hints(situation: &Situation) -> Vec<String> {
    let mut told: Vec<String> = situation.channels.iter().filter_map(hint).collect();
    let usable = || situation.channels.iter().filter(|used| used.channel.state == ChannelState::Usable);
    if usable().next().is_none() {
        return told;
    }
    if usable().all(|used| used.channel.receivable == Msat::ZERO) {
        told.push(
            "nothing can be received: all money is on this side. Pay with it over Lightning, have a peer open a channel \
             to this node, or start with --lsp"
                .to_owned(),
        );
    }
    if usable().all(|used| used.channel.spendable == Msat::ZERO) {
        told.push("nothing can be sent: all money is on the other side. Receive some, or open a channel".to_owned());
    }
    told
}

impl Wallet {
    /// The channels and how they are used, as far as this was looked at since the wallet was started.
    ///
    /// # Errors
    /// When the wallet is stopping.
    pub async fn channels_in_use(&self) -> Result<Vec<InUse>, WalletError> {
        let channels = self.channels().await?;
        let mut uses = self.inner.uses.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(uses.look(channels, now_ms()))
    }

    /// What the operator could do about the channels, in sentences; empty when all is well.
    ///
    /// # Errors
    /// When the wallet is stopping.
    pub async fn hints(&self) -> Result<Vec<String>, WalletError> {
        Ok(hints(&Situation { channels: self.channels_in_use().await?, ..Situation::default() }))
    }

    /// What is kept on-chain for each channel, in sat.
    #[must_use]
    pub fn reserve_sat(&self) -> u64 {
        let anchors = self.inner.node.config().anchor_channels_config;
        anchors.map_or(0, |anchors| anchors.per_channel_reserve_sats)
    }

    /// Whether its channels can be announced: it has a name and an address.
    #[must_use]
    pub fn can_announce(&self) -> bool {
        self.inner.settings.alias.is_some() && !self.inner.settings.listen.is_empty()
    }
}

fn hint(used: &InUse) -> Option<String> {
    let channel = &used.channel;
    let name = format!("channel {:.8} with {:.12}…", channel.id, channel.peer);
    if channel.state == ChannelState::PeerAway && used.away_ms >= AWAY_MS {
        let days = used.away_ms / (24 * 3600 * 1000);
        return Some(format!(
            "{name}: its peer is away for {days} days. If it does not come back, close the channel alone: `wallet close \
             {} --force`",
            channel.id
        ));
    }
    if channel.state != ChannelState::Usable {
        return None;
    }
    let (here, there) = (channel.spendable, channel.receivable);
    let all = here.0.saturating_add(there.0);
    let mostly = |part: Msat| all > 0 && part.0 / 100 >= all / 10_000 * LOPSIDED;
    if mostly(there) {
        return Some(format!(
            "{name}: almost all its money is on the other side ({} can be sent, {} received). Receive less through it, \
             or pay this wallet through it from another channel",
            sats(here),
            sats(there)
        ));
    }
    mostly(here).then(|| {
        format!(
            "{name}: almost all its money is on this side ({} can be sent, {} received). To be paid through it, first \
             pay with it",
            sats(here),
            sats(there)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(id: &str, peer: &str, size_sat: u64, here: u64, state: ChannelState) -> InUse {
        let channel = ChannelView {
            id: id.to_owned(),
            peer: peer.to_owned(),
            funding: None,
            state,
            size_sat,
            spendable: Msat(here * 1000),
            receivable: Msat((size_sat - here) * 1000),
            reserve_sat: 0,
            announced: true,
            opened_here: true,
            confirmations: 6,
            needed: 6,
        };
        InUse { channel, idle_ms: 0, away_ms: 0 }
    }

    fn peer(id: &str, moved_sat: u64, reputation: u16) -> Candidate {
        Candidate { id: id.to_owned(), address: Some("h:1".to_owned()), moved: Msat(moved_sat * 1000), reputation }
    }

    fn situation() -> Situation {
        Situation {
            channels: Vec::new(),
            peers: vec![peer("a", 30_000, 1000), peer("b", 50_000, 500), peer("c", 10, 1000)],
            budget: Budget(300_000),
            spendable_sat: 1_000_000,
            reserve_sat: 25_000,
            can_announce: true,
        }
    }

    #[test]
    fn the_peer_worth_most_gets_a_channel() {
        let mut now = situation();
        let open = |peer: &str, size_sat| {
            Step::Open(OpenOrder { peer: format!("{peer}@h:1"), size_sat, push: Msat::ZERO, announced: true })
        };
        assert_eq!(plan(&now), open("a", 120_000));
        now.channels.push(channel("1", "a", 120_000, 60_000, ChannelState::Pending));
        assert_eq!(plan(&now), open("b", 180_000), "what is left of the budget");
        now.spendable_sat = 100_000;
        assert_eq!(plan(&now), open("b", 70_000), "what is there on-chain");
        now.spendable_sat = 49_999;
        assert_eq!(plan(&now), Step::Wait);
        now.spendable_sat = 1_000_000;
        now.peers[1].address = None;
        assert_eq!(plan(&now), Step::Wait, "c is worth too little");
        now.budget = Budget(0);
        now.peers[1].address = Some("h:1".to_owned());
        assert_eq!(plan(&now), Step::Wait);
    }

    #[test]
    fn an_idle_channel_makes_place_for_a_better_one() {
        let mut now = situation();
        now.channels = vec![
            channel("1", "x", 150_000, 60_000, ChannelState::Usable),
            channel("2", "y", 150_000, 60_000, ChannelState::Usable),
        ];
        assert_eq!(plan(&now), Step::Wait);
        now.channels[0].idle_ms = IDLE_MS;
        now.channels[1].idle_ms = IDLE_MS + 1;
        assert_eq!(plan(&now), Step::Close("2".to_owned()));
        now.budget = Budget(0);
        assert_eq!(plan(&now), Step::Wait, "nothing is done without a budget");
        now.budget = Budget(300_000);
        now.channels[1].channel.opened_here = false;
        assert_ne!(plan(&now), Step::Close("2".to_owned()), "it is the peer's");
        now.peers.clear();
        assert_eq!(plan(&now), Step::Wait, "nobody needs its place");
    }

    #[test]
    fn the_use_of_channels_is_watched() {
        let mut uses = Uses::default();
        let now = |here, state| vec![channel("1", "x", 100_000, here, state).channel];
        let mut look =
            |channels, at| uses.look(channels, at).iter().map(|used| (used.idle_ms, used.away_ms)).collect::<Vec<_>>();
        assert_eq!(look(now(10, ChannelState::Usable), 100), [(0, 0)]);
        assert_eq!(look(now(10, ChannelState::Usable), 150), [(50, 0)]);
        assert_eq!(look(now(10, ChannelState::PeerAway), 170), [(70, 20)]);
        assert_eq!(look(now(11, ChannelState::Usable), 180), [(0, 0)]);
        assert!(look(Vec::new(), 190).is_empty());
        assert_eq!(look(now(11, ChannelState::Usable), 200), [(0, 0)], "it was gone");
    }

    #[test]
    fn a_budget_bounds_what_was_opened_here() {
        let mut theirs = channel("1", "x", 150_000, 0, ChannelState::Usable).channel;
        let ours = channel("2", "y", 100_000, 0, ChannelState::PeerAway).channel;
        theirs.opened_here = false;
        let channels = [theirs, ours];
        assert_eq!(Budget(150_000).check(50_000, &channels), Ok(()));
        let over = Budget(150_000).check(50_001, &channels).unwrap_err();
        assert_eq!(over, OverBudget { wanted: 50_001, used: 100_000, budget: 150_000 });
        assert!(Budget(0).check(1, &[]).is_err());
    }

    #[test]
    fn hints_say_what_to_do() {
        let mut now = Situation {
            channels: vec![
                channel("11112222333", "x", 100_000, 2_000, ChannelState::Usable),
                channel("44445555666", "y", 100_000, 98_000, ChannelState::Usable),
                channel("77778888999", "z", 100_000, 50_000, ChannelState::Usable),
            ],
            ..Situation::default()
        };
        let told = hints(&now);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with("channel 11112222 with x…: almost all its money is on the other side (2000 sat"));
        assert!(told[1].contains("almost all its money is on this side"));
        now.channels.truncate(1);
        now.channels[0].channel.spendable = Msat::ZERO;
        assert!(hints(&now)[1].starts_with("nothing can be sent"));
        now.channels[0].channel.state = ChannelState::PeerAway;
        assert!(hints(&now).is_empty());
        now.channels[0].away_ms = 5 * 24 * 3600 * 1000;
        let told = hints(&now);
        assert!(told[0].contains("away for 5 days") && told[0].contains("--force"), "{told:?}");
    }
}
