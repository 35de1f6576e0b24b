//! Channels that the node opens and closes by itself, one at a time, by the rules of
//! [`consortium_ledger::lightning::liquidity`] and within `--channel-budget`.
//!
//! Useful are the workers that this node pays: what they were paid within the last thirty days, by what this node thinks
//! of them. Those that it has seen cheat get none; those with which no channel could be opened are left alone for a while
//! that grows, and are then tried at their next address.

use std::time::Duration;

use anyhow::Context as _;
use consortium_ledger::lightning::failures::Failures;
use consortium_ledger::lightning::liquidity::{Budget, Candidate, Situation, Step, plan};
use consortium_ledger::lightning::{Wallet, WalletError, invoice};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::audit::standings::Standings;
use crate::clock::wall_ms;
use crate::storage::Storage;
use crate::storage::payees::Payee;

/// How often it is looked at; the first time after as long.
const LOOK: Duration = Duration::from_secs(300);
/// What was paid within this time counts, in milliseconds.
const COUNTED_MS: u64 = 30 * 24 * 3600 * 1000;
/// Workers that are looked at: those that were paid the most.
const MAX_PAYEES: u32 = 50;

/// What is needed to tend the channels.
pub struct Liquidity {
    /// The wallet.
    pub wallet: Wallet,
    /// Whom this node paid.
    pub storage: Storage,
    /// What it thinks of them.
    pub standings: Standings,
    /// What may be put into channels; zero, and channels are only watched.
    pub budget: Budget,
}

impl Liquidity {
    /// Tends the channels until `stop`.
    pub fn spawn(self, stop: CancellationToken) {
        tokio::spawn(async move {
            let mut every = tokio::time::interval(LOOK);
            every.set_missed_tick_behavior(MissedTickBehavior::Delay);
            every.reset();
            let mut failures = Failures::default();
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = every.tick() => {}
                }
                if let Err(error) = self.step(&mut failures).await {
                    warn!("the channels could not be tended: {error:#}");
                }
            }
        });
    }

    /// Does what is best now, if anything.
    async fn step(&self, failures: &mut Failures) -> anyhow::Result<()> {
        match plan(&self.situation(failures).await?) {
            Step::Wait => {}
            Step::Open(order) => {
                let (peer, size_sat) = (order.peer.clone(), order.size_sat);
                let id = peer.split('@').next().unwrap_or(&peer);
                let opening = self.wallet.open_channel_within(self.budget, order).await;
                match &opening {
                    Ok(_) => failures.forget(id),
                    Err(error) if is_peers(error) => failures.note(id, wall_ms()),
                    Err(_) => {}
                }
                let channel = opening.with_context(|| format!("opening a channel with {peer}"))?;
                info!(channel, peer, size_sat, "opened a channel to a peer that is paid much");
            }
            Step::Close(channel) => {
                use consortium_ledger::lightning::channels::Closing;
                self.wallet.close_channel(&channel, Closing::Cooperative).await.context("closing an idle channel")?;
                info!(channel, "closed a channel that nothing goes through, for a better one");
            }
        }
        Ok(())
    }

    async fn situation(&self, failures: &Failures) -> anyhow::Result<Situation> {
        // Watched without a budget, too: hints tell of it.
        let channels = self.wallet.channels_in_use().await?;
        if self.budget == Budget(0) {
            return Ok(Situation { channels, ..Situation::default() });
        }
        let since = wall_ms().saturating_sub(COUNTED_MS);
        let mut peers = Vec::new();
        for payee in self.storage.payees(since, MAX_PAYEES).await? {
            peers.extend(self.candidate(payee, failures).await?);
        }
        Ok(Situation {
            channels,
            peers,
            budget: self.budget,
            spendable_sat: self.wallet.balances().await?.spendable_sat,
            reserve_sat: self.wallet.reserve_sat(),
            can_announce: self.wallet.can_announce(),
        })
    }

    async fn candidate(&self, payee: Payee, failures: &Failures) -> anyhow::Result<Option<Candidate>> {
        // It was paid, so it was once read.
        let Ok(says) = invoice::read(&payee.invoice) else { return Ok(None) };
        if self.standings.is_banned(&payee.peer) {
            return Ok(None);
        }
        let addresses = self.wallet.addresses_of(&says.payee).await?;
        let address = failures.address(&says.payee, &addresses, wall_ms());
        let reputation = thousandths(self.standings.score(&payee.peer));
        Ok(Some(Candidate { id: says.payee, address, moved: payee.paid, reputation }))
    }
}

/// Whether a channel could not be opened because of the peer, and not for want of money or by this wallet's own trouble.
fn is_peers(error: &WalletError) -> bool {
    use WalletError::{Invalid, Late, Node, Unreachable};
    matches!(error, Unreachable(_) | Late { .. } | Invalid(_) | Node { .. })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 0 and 1000")]
fn thousandths(score: f64) -> u16 {
    (score.clamp(0.0, 1.0) * 1000.0) as u16
}
