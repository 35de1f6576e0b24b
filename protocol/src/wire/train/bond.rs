//! Bonds of a run's peers: what is pledged, for how long, and a validator's word that it is.

use serde::{Deserialize, Serialize};

use super::run::LEAST_ESCROWED;
use super::{PayWay, RunId, RunSpec};
use crate::envelope::{Invalid, Payload};
use crate::identity::NodeId;
use crate::msat::Msat;
use crate::wire::escrow::{DELTA, EscrowId, MAX_DELTA};

/// Blocks of a bond's delta in which it does not stand for a peer: Lightning keeps 39, the last 24 are for acting in time,
/// and the others may pass until it is locked.
const APART: u64 = 96;
/// A block may come in half the usual time, here in milliseconds.
const BLOCK_MS: u64 = 5 * 60 * 1000;
/// Rounds besides those with training for which a bond stands: in one peers come, and one may pass without training.
const MORE_ROUNDS: u64 = 2;

/// A validator (the signer) holds the bond of a peer. The peer shows it when it joins ([`Join::bond`](super::Join::bond)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pledged {
    /// The run.
    pub run: RunId,
    /// The round in which it says so: so old is the word, and it is soon void.
    pub round: u64,
    /// Whose bond it is.
    pub peer: NodeId,
    /// The escrow that holds it; its subject is [`pledge_subject`](super::pledge_subject).
    pub escrow: EscrowId,
}

impl Payload for Pledged {
    const DOMAIN: &'static str = "train-pledged";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 192;

    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

impl RunSpec {
    /// Whether its peers pledge a bond.
    #[must_use]
    pub fn has_bond(&self) -> bool {
        self.pay.bond > Msat::ZERO
    }

    /// For how many blocks a bond must still be locked when so many rounds with training are to come, if each takes as long
    /// as it may.
    #[must_use]
    pub fn bond_blocks(&self, rounds: u64) -> u64 {
        let p = &self.phases;
        let parts = [p.train_ms, p.commit_ms, p.reveal_ms, p.score_ms, p.settle_ms];
        let round = parts.iter().fold(0_u64, |sum, part| sum.saturating_add(*part));
        rounds.saturating_add(MORE_ROUNDS).saturating_mul(round).div_ceil(BLOCK_MS)
    }

    /// The delta of a bond's invoice, in blocks; none if the run may last for longer than a bond can be locked.
    #[must_use]
    pub fn bond_delta(&self) -> Option<u16> {
        let blocks = self.bond_blocks(self.rounds).saturating_add(APART);
        u16::try_from(blocks).ok().filter(|delta| *delta <= MAX_DELTA).map(|delta| delta.max(DELTA))
    }

    pub(super) fn check_bond(&self) -> Result<(), Invalid> {
        if !self.has_bond() {
            return Ok(());
        }
        Invalid::unless(self.pay.way == PayWay::Escrow, "bond", "only where escrows pay, for which all have wallets")?;
        let locks = self.pay.bond >= LEAST_ESCROWED;
        Invalid::unless(locks, "bond", "an escrow takes 355 sat at least: less cannot be enforced on the chain")?;
        Invalid::unless(self.bond_delta().is_some(), "bond", "the run may last for longer than a bond can be locked")
    }
}
