//! Receipts: payments that failed for their payer, and arrived all the same.
//!
//! When a channel is closed by force while a small payment goes through it, there is no output for that on the chain: the
//! payer's money goes with the fee of the closing, and its wallet says, some blocks later, that the payment failed. Its
//! payee may have claimed it by then. So those who settle show each other the preimages of what they have received from
//! the other last: who holds one has paid (BOLT 11), and books it. A worker that shows one for nothing harms itself.

use consortium_ledger::lightning::lookup::Fate;
use consortium_ledger::lightning::{PaymentHash, Wallet};
use consortium_ledger::payments::{Direction, Moved};
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::escrow::LockSecret;
use consortium_protocol::wire::tab::MAX_RECEIPTS;
use tracing::warn;

use super::Tabs;
use crate::clock::wall_ms;
use crate::storage::tabs::{Settlement, Side};

impl Tabs {
    /// Preimages of what a peer has paid last.
    pub(super) async fn receipts(&self, wallet: &Wallet, payer: NodeId) -> anyhow::Result<Vec<LockSecret>> {
        let mut receipts = Vec::new();
        for paid in self.storage().settlements_paid_with(Side::Worker, payer, MAX_RECEIPTS).await? {
            let given = wallet.given_receipt(PaymentHash::from_bytes(*paid.hash.as_bytes())).await?;
            receipts.extend(given.map(|preimage| LockSecret::from_bytes(*preimage.reveal())));
        }
        Ok(receipts)
    }

    /// Books payments to a peer that failed here and arrived, as these receipts show. True if there were any.
    pub(super) async fn take_receipts(
        &self,
        wallet: &Wallet,
        peer: NodeId,
        receipts: &[LockSecret],
    ) -> anyhow::Result<bool> {
        let mut taken = false;
        for receipt in receipts {
            let hash = Hash::from_bytes(*receipt.lock().as_bytes());
            let Some(Settlement { amount, .. }) = self.storage().settlement_failed(peer, hash).await? else {
                continue;
            };
            if wallet.fate(PaymentHash::from_bytes(*hash.as_bytes())).await? != Fate::Failed {
                continue;
            }
            let moved = Moved { direction: Direction::Outgoing, hash, amount, fee: Msat::ZERO };
            self.books(move |ledger| ledger.book_payment(&moved, wall_ms())).await?;
            self.storage().settlement_arrived(hash, wall_ms()).await?;
            warn!(worker = %peer, msat = amount.0, "a payment that a closing channel had cut off has arrived: booked");
            taken = true;
        }
        Ok(taken)
    }
}
