//! What payers owe this node for its work: booked when they say so, with their signature.

use consortium_ledger::accounts::Owner;
use consortium_ledger::journal::Posted;
use consortium_ledger::ledger::{Ledger, LedgerError};
use consortium_ledger::metering::{JobRecord, StageWork, Terms};
use consortium_protocol::cluster::ClusterId;
use consortium_protocol::envelope::Signed;
use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::audit::Verdict;
use consortium_protocol::wire::pay::{Acceptance, Part};
use consortium_protocol::wire::rpc::{Refusal, RefusalCode};
use tracing::{debug, warn};

use super::standings::Standings;
use crate::clock::wall_ms;
use crate::config::{MAX_MASTER_FEE, MAX_PRICE};
use crate::storage::Storage;
use crate::tabs::Credit;

/// Cloneable handle to the worker's side of the books.
#[derive(Clone)]
pub struct Earning {
    /// The cluster.
    pub cluster: ClusterId,
    /// The ledger behind it.
    pub standings: Standings,
    /// Where the payers' words are kept.
    pub storage: Storage,
    /// Where work counts that no payer has accepted.
    pub credit: Credit,
}

fn disputed(why: &str) -> Refusal {
    Refusal::new(RefusalCode::Disputed, why)
}

impl Earning {
    /// Books what `from` says that it owes for work of this node.
    ///
    /// # Errors
    /// A refusal: disputed when it is not so, internal when the books cannot be written.
    pub async fn accepted(&self, from: NodeId, acceptance: Signed<Acceptance>) -> Result<(), Refusal> {
        let (said, me) = (acceptance.payload(), self.standings.me());
        let (order, receipt) = (said.order.payload(), &said.receipt);
        if (acceptance.signer(), order.payer) != (from, from) || order.cluster != self.cluster {
            return Err(disputed("a payer speaks for itself, in its own cluster"));
        }
        // Nobody but its signer drives an order.
        let ordered = said.part == Part::Stage || said.order.signer() == me;
        if said.payee() != me || from == me || !ordered {
            return Err(disputed("that is not work of this node for another"));
        }
        let work = match said.part {
            Part::Stage => {
                let price = order.prices.get(usize::from(receipt.payload().stage)).copied().unwrap_or(Msat::ZERO);
                StageWork::of(receipt, price, said.drawn)
            }
            Part::Driving => StageWork::driving(order, receipt),
        };
        let (price, stage) = (work.price, work.stage);
        // What nobody pays is not taken for money: books that it fills could not hold honest pay.
        let most = if said.part == Part::Stage { MAX_PRICE } else { MAX_MASTER_FEE };
        if price > most {
            return Err(disputed("no token is worth so much"));
        }
        let record =
            JobRecord { job: order.job, attempt: order.attempt, payer: Owner::Peer(from), fee: 0, stages: vec![work] };
        // Of work that overlaps with what was paid before, only the rest is.
        let booked = move |ledger: &Ledger| match ledger.record_job(&record, &Terms::default(), wall_ms())? {
            Posted::New(seq) => ledger.work_booked(seq),
            Posted::Already(_) | Posted::Nothing => Ok(Msat::ZERO),
        };
        let booked = self.book(booked).await?;
        self.credit.accepted(&from, &receipt.payload().order, stage, booked);
        let (digest, signed) = (acceptance.digest(), acceptance.as_bytes().to_vec());
        debug!(payer = %from, job = %order.job, msat = said.pay.0, "earned");
        if let Err(error) = self.storage.keep_acceptance(digest, wall_ms(), signed).await {
            warn!(%error, "a payer's word could not be kept");
        }
        Ok(())
    }

    /// Books what becomes of pay that waited for the verdict that `from` goes by.
    ///
    /// # Errors
    /// As [`Earning::accepted`].
    pub async fn judged(&self, from: NodeId, verdict: Signed<Verdict>) -> Result<(), Refusal> {
        let said = verdict.payload();
        debug!(payer = %from, job = %said.job, outcome = ?said.outcome, "judged");
        self.book(move |ledger| ledger.settle_with(&from, &verdict, &Terms::default(), wall_ms()).map(drop)).await
    }

    async fn book<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Ledger) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let ledger = self.standings.ledger().clone();
        let internal = |error: &dyn std::fmt::Display| Refusal::new(RefusalCode::Internal, error.to_string());
        match tokio::task::spawn_blocking(move || work(&ledger)).await {
            Ok(Ok(booked)) => Ok(booked),
            Ok(Err(error @ (LedgerError::NotAParty | LedgerError::Invalid(_) | LedgerError::Overflow))) => {
                Err(disputed(&error.to_string()))
            }
            Ok(Err(error)) => {
                warn!(%error, "what this node earned cannot be booked");
                Err(internal(&error))
            }
            Err(error) => Err(internal(&error)),
        }
    }
}
