//! What a wallet has, told apart by what can be done with it.

use consortium_protocol::Msat;
use ldk_node::{ChannelDetails, LightningBalance, PendingSweepBalance};
use serde::{Deserialize, Serialize};

use super::error::WalletError;
use super::hash::PaymentHash;
use super::wallet::{Inner, LOCAL, Wallet};

/// All balances. No amount is in two of its fields, but that what a closing channel pays out is in `closing_sat` until it
/// has six confirmations, and from the first one also in `unconfirmed_sat` or `spendable_sat`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balances {
    /// What can be sent over Lightning now.
    pub spendable: Msat,
    /// The largest single payment that one channel can carry now.
    pub largest: Msat,
    /// What can be received over Lightning now.
    pub receivable: Msat,
    /// Own money in channels that cannot be used now: the peer is away, or the funding is not confirmed.
    pub unusable: Msat,
    /// Payments that are neither here nor there, the most urgent first.
    pub held: Vec<HeldAmount>,
    /// On-chain, free to be spent, in sat.
    pub spendable_sat: u64,
    /// On-chain, not confirmed, in sat.
    pub unconfirmed_sat: u64,
    /// On-chain, kept to get closing channels confirmed, in sat.
    pub reserved_sat: u64,
    /// Coming from channels that are closed, in sat.
    pub closing_sat: u64,
}

/// A payment that is neither here nor there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldAmount {
    /// Which.
    pub hash: PaymentHash,
    /// How much.
    pub amount: Msat,
    /// Where it goes.
    pub direction: HeldDirection,
    /// At this height it goes back to who sent it, or (on-chain) may be taken back.
    pub deadline: u32,
}

/// Where a held payment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeldDirection {
    /// To this wallet, if its preimage is given in time.
    Incoming,
    /// To this wallet: the preimage is given.
    Settling,
    /// Away from this wallet, unless it comes back.
    Outgoing,
}

impl Wallet {
    /// What the wallet has.
    ///
    /// # Errors
    /// When the records cannot be read, or the sum is beyond all bitcoin.
    pub async fn balances(&self) -> Result<Balances, WalletError> {
        self.ask("adding up the balances", LOCAL, of).await
    }
}

pub(super) fn of(inner: &Inner) -> Result<Balances, WalletError> {
    let channels = inner.node.list_channels();
    let details = inner.node.list_balances();
    let usable = || channels.iter().filter(|channel| channel.is_usable);
    let unusable = channels.iter().filter(|channel| !channel.is_usable);
    let sweeping = details.pending_balances_from_channel_closures.iter().map(swept);
    let mut closing = details.lightning_balances.iter().map(closed).chain(sweeping);
    let onchain = details.total_onchain_balance_sats.saturating_sub(details.total_anchor_channels_reserve_sats);
    Ok(Balances {
        spendable: sum(usable(), |channel| channel.outbound_capacity_msat)?,
        largest: usable().map(|channel| Msat(channel.next_outbound_htlc_limit_msat)).max().unwrap_or_default(),
        receivable: sum(usable(), |channel| channel.inbound_capacity_msat)?,
        unusable: sum(unusable, |channel| channel.outbound_capacity_msat)?,
        held: held(inner, &details.lightning_balances)?,
        spendable_sat: details.spendable_onchain_balance_sats,
        unconfirmed_sat: onchain.saturating_sub(details.spendable_onchain_balance_sats),
        reserved_sat: details.total_anchor_channels_reserve_sats,
        closing_sat: closing.try_fold(0_u64, u64::checked_add).ok_or_else(too_much)?,
    })
}

fn too_much() -> WalletError {
    WalletError::Invalid("the balances are beyond all bitcoin there is".to_owned())
}

fn sum<'a>(
    channels: impl Iterator<Item = &'a ChannelDetails>,
    part: fn(&ChannelDetails) -> u64,
) -> Result<Msat, WalletError> {
    Msat::sum(channels.map(|channel| Msat(part(channel)))).ok_or_else(too_much)
}

/// What is held for this wallet by its own records, and what left it by the channels' balances. Payments passed on
/// between others are not this wallet's.
fn held(inner: &Inner, balances: &[LightningBalance]) -> Result<Vec<HeldAmount>, WalletError> {
    let incoming = inner.records.holds()?.into_iter().map(|held| HeldAmount {
        hash: held.hash,
        amount: held.amount,
        direction: if held.settling { HeldDirection::Settling } else { HeldDirection::Incoming },
        deadline: held.deadline,
    });
    let outgoing = balances.iter().filter_map(|balance| match balance {
        LightningBalance::MaybeTimeoutClaimableHTLC {
            payment_hash,
            amount_satoshis,
            claimable_height,
            outbound_payment: true,
            ..
        } => Some(HeldAmount {
            hash: (*payment_hash).into(),
            amount: Msat::from_sat(*amount_satoshis)?,
            direction: HeldDirection::Outgoing,
            deadline: *claimable_height,
        }),
        _ => None,
    });
    let mut all: Vec<HeldAmount> = incoming.chain(outgoing).collect();
    all.sort_by_key(|held| (held.deadline, held.hash));
    Ok(all)
}

/// What a closed channel will give, in sat.
const fn closed(balance: &LightningBalance) -> u64 {
    match balance {
        LightningBalance::ClaimableAwaitingConfirmations { amount_satoshis, .. }
        | LightningBalance::ContentiousClaimable { amount_satoshis, .. }
        | LightningBalance::CounterpartyRevokedOutputClaimable { amount_satoshis, .. } => *amount_satoshis,
        LightningBalance::ClaimableOnChannelClose { .. }
        | LightningBalance::MaybeTimeoutClaimableHTLC { .. }
        | LightningBalance::MaybePreimageClaimableHTLC { .. } => 0,
    }
}

/// What is being moved from a closed channel, in sat; confirmed, it counts as on-chain.
const fn swept(balance: &PendingSweepBalance) -> u64 {
    match balance {
        PendingSweepBalance::PendingBroadcast { amount_satoshis, .. }
        | PendingSweepBalance::BroadcastAwaitingConfirmation { amount_satoshis, .. } => *amount_satoshis,
        PendingSweepBalance::AwaitingThresholdConfirmations { .. } => 0,
    }
}
