//! Tabs: where this node stands with another one, and what of it can be settled now.
//!
//! On the payer's books `peer/<worker>/free` rises by pay that is free, and falls by payments and by the payer's own work
//! for the worker. That last falls at once, though it may be held or delayed until later: what of it still waits does not
//! count yet. So both sides come to the same amount, each from its own books:
//!
//! ```text
//! this node owes the peer:   free balance of the peer + own work for it that waits        (negative: the peer owes)
//! ```

use consortium_protocol::{Hash, Msat, NodeId};
use rusqlite::{Transaction, params};
use serde::{Deserialize, Serialize};

use crate::accounts::{self, Account, Book, Owner, Part};
use crate::journal::{self, Kind, Posted};
use crate::ledger::{Ledger, LedgerError, signed, text_at, time};

/// Two clocks, and two looks at what is due, may lie as far apart, in milliseconds: a tail that one side has released
/// and the other is about to release is nothing to argue about, and neither is a payout of a run that one side has heard of
/// first.
pub const SLACK_MS: u64 = 300_000;

/// Where this node stands with a peer. Amounts are msat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tab {
    /// What this node owes the peer now; negative when the peer owes this node.
    pub free: i64,
    /// Pay of the peer that waits for verdicts or is delayed.
    pub peer_waits: i64,
    /// Pay of this node by the peer that waits for verdicts or is delayed.
    pub own_waits: i64,
}

/// The sums of a tab that only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// All that was ever credited to the peer.
    pub accepted: Msat,
    /// All that was ever taken off again.
    pub paid: Msat,
}

/// Between which amounts, in msat, what a peer owes this node may honestly be said to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owed {
    /// At least this.
    pub least: Msat,
    /// By these books, now.
    pub now: Msat,
    /// All that is in these books, what waits included.
    pub most: Msat,
}

impl Tab {
    /// What this node owes now.
    #[must_use]
    pub fn due(&self) -> Msat {
        Msat(u64::try_from(self.free).unwrap_or(0))
    }

    /// What the peer owes now.
    #[must_use]
    pub fn owed(&self) -> Msat {
        Msat(u64::try_from(self.free.saturating_neg()).unwrap_or(0))
    }

    /// What the peer owes now or, as far as this node knows, later.
    #[must_use]
    pub fn exposure(&self) -> Msat {
        let all = self.own_waits.saturating_sub(self.peer_waits).saturating_sub(self.free);
        Msat(u64::try_from(all.max(0)).unwrap_or(0))
    }
}

/// What of this node's work for a peer, or of another's, waits, in msat.
fn waiting(tx: &Transaction<'_>, payer: &Owner, worker: &Owner) -> Result<i64, LedgerError> {
    Ok(tx
        .prepare_cached(
            "SELECT coalesce(sum(CASE state WHEN 'held' THEN pay ELSE tail END), 0) FROM claim
             WHERE payer = ?1 AND worker = ?2 AND state IN ('held', 'tail')",
        )?
        .query_row(params![payer.to_string(), worker.to_string()], |row| row.get(0))?)
}

const EARNED: Owner = Owner::Own(Book::Earned);

fn tab(tx: &Transaction<'_>, peer: &Owner) -> Result<Tab, LedgerError> {
    let balance = accounts::view(tx, peer)?.balance;
    let own_waits = waiting(tx, peer, &EARNED)?;
    let free = balance.free.checked_add(own_waits).ok_or(LedgerError::Overflow)?;
    Ok(Tab { free, peer_waits: balance.held.saturating_add(balance.tail), own_waits })
}

/// What a peer owes for training, in msat, by payouts that it may not have booked yet: it hears of each record by itself.
fn just_trained(tx: &Transaction<'_>, peer: &Owner, now_ms: u64) -> Result<i64, LedgerError> {
    let values = params![peer.to_string(), Kind::Training.as_str(), time(now_ms.saturating_sub(SLACK_MS))];
    Ok(tx
        .prepare_cached(
            "SELECT coalesce(sum(-msat), 0) FROM posting JOIN entry USING (seq)
             WHERE owner = ?1 AND part = 'free' AND msat < 0 AND kind = ?2 AND at_ms >= ?3",
        )?
        .query_row(values, |row| row.get(0))?)
}

fn msat(amount: i64) -> Msat {
    Msat(u64::try_from(amount).unwrap_or(0))
}

impl Ledger {
    /// Where this node stands with a peer.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`], [`LedgerError::Database`].
    pub fn tab(&self, peer: &NodeId) -> Result<Tab, LedgerError> {
        self.read(|tx| tab(tx, &Owner::Peer(*peer)))
    }

    /// Where this node stands with every peer with whom it has anything to settle, or will.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`], [`LedgerError::Database`].
    pub fn tabs(&self) -> Result<Vec<(NodeId, Tab)>, LedgerError> {
        self.read(|tx| {
            let mut statement = tx.prepare_cached(
                "SELECT DISTINCT owner FROM balance WHERE owner > 'peer/' AND owner < 'peer0' AND msat <> 0",
            )?;
            let owners: Vec<Owner> = statement.query_map([], |row| text_at(row, 0))?.collect::<Result<_, _>>()?;
            let mut tabs = Vec::new();
            for owner in owners {
                if let Owner::Peer(node) = owner {
                    tabs.push((node, tab(tx, &owner)?));
                }
            }
            Ok(tabs)
        })
    }

    /// The sums of the tab with a peer whom this node owes; each is at least what it was before. Reads the whole
    /// history of the account.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`], [`LedgerError::Database`].
    pub fn tab_sums(&self, peer: &NodeId) -> Result<Sums, LedgerError> {
        let owner = Owner::Peer(*peer);
        self.read(|tx| {
            let (credited, taken): (i64, i64) = tx
                .prepare_cached(
                    "SELECT coalesce(sum(max(msat, 0)), 0), coalesce(sum(max(-msat, 0)), 0) FROM posting
                     WHERE owner = ?1 AND part = 'free'",
                )?
                .query_row([owner.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let waits = waiting(tx, &owner, &EARNED)?;
            Ok(Sums { accepted: msat(credited), paid: msat(taken.checked_sub(waits).ok_or(LedgerError::Overflow)?) })
        })
    }

    /// What a peer that would settle owes this node.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`], [`LedgerError::Database`].
    pub fn tab_owed(&self, peer: &NodeId, now_ms: u64) -> Result<Owed, LedgerError> {
        let peer = Owner::Peer(*peer);
        self.read(|tx| {
            let tab = tab(tx, &peer)?;
            let sum = |condition: &str, payer: &Owner, worker: &Owner, at_ms: u64| -> Result<i64, LedgerError> {
                let values = params![payer.to_string(), worker.to_string(), time(at_ms)];
                let query = format!(
                    "SELECT coalesce(sum(tail), 0) FROM claim WHERE payer = ?1 AND worker = ?2 AND {condition}"
                );
                Ok(tx.prepare_cached(&query)?.query_row(values, |row| row.get(0))?)
            };
            // Own tails that the payer may not have released yet.
            let released = sum("state = 'paid' AND due_ms >= ?3", &peer, &EARNED, now_ms.saturating_sub(SLACK_MS))?;
            // Tails of the peer that it may have released already.
            let soon: i64 = tx
                .prepare_cached(
                    "SELECT coalesce(sum(tail), 0) FROM claim WHERE worker = ?1 AND state = 'tail' AND due_ms <= ?2",
                )?
                .query_row(params![peer.to_string(), time(now_ms.saturating_add(SLACK_MS))], |row| row.get(0))?;
            let now = tab.free.checked_neg().ok_or(LedgerError::Overflow)?;
            let trained = just_trained(tx, &peer, now_ms)?;
            let least = now.saturating_sub(released).saturating_sub(soon).saturating_sub(trained);
            Ok(Owed { least: msat(least), now: msat(now), most: msat(now.saturating_add(tab.own_waits)) })
        })
    }

    /// Takes the cost of a channel off a tab: on the books of the payer, who opened it (`opened`), and on those of the
    /// worker. Once per `reference`, which both sides have alike.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`], [`LedgerError::Reused`], [`LedgerError::Database`].
    pub fn book_channel(
        &self,
        peer: &NodeId,
        cost: Msat,
        opened: bool,
        reference: Hash,
        now_ms: u64,
    ) -> Result<Posted, LedgerError> {
        let peer = Account::new(Owner::Peer(*peer), Part::Free);
        let own = Account::new(Owner::Own(Book::Channels), Part::Free);
        let (from, to) = if opened { (peer, own) } else { (own, peer) };
        let postings = journal::transfer(from, to, signed(cost)?);
        self.write(|tx| journal::append_once(tx, &self.owner(), Kind::Channel, reference, now_ms, postings))
    }
}

#[cfg(test)]
mod tests {
    use consortium_protocol::RootKey;
    use consortium_protocol::wire::heartbeat::LayerRange;
    use consortium_protocol::wire::job::JobId;

    use super::*;
    use crate::cells::Cells;
    use crate::metering::{JobRecord, StageWork, Terms};

    const TERMS: Terms = Terms { tail: 200, tail_ms: 1000, hold_ms: 5000 };

    fn node(n: u8) -> NodeId {
        RootKey::from_seed([n; 32]).node_id()
    }

    fn books(n: u8) -> (tempfile::TempDir, Ledger) {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger.db"), node(n)).unwrap();
        (dir, ledger)
    }

    /// Work of `worker` for `payer`, booked at both.
    fn work(payer: &Ledger, worker: &Ledger, job: u8, positions: u32, drawn: bool, now_ms: u64) {
        for ledger in [payer, worker] {
            let record = JobRecord {
                job: JobId([job; 16]),
                attempt: 1,
                payer: Owner::Peer(payer.owner()),
                fee: 0,
                stages: vec![StageWork {
                    stage: 0,
                    worker: worker.owner(),
                    cells: Cells { layers: LayerRange { first: 0, last: 0 }, start: 0, stop: positions },
                    price: Msat(10),
                    receipt: Hash::of(&[job]),
                    drawn,
                }],
            };
            ledger.record_job(&record, &TERMS, now_ms).unwrap();
        }
    }

    #[test]
    fn both_sides_come_to_the_same_amount_whatever_waits() {
        let ((_a, payer), (_b, worker)) = (books(1), books(2));
        let agree = |due: u64| {
            let (ours, theirs) = (payer.tab(&node(2)).unwrap(), worker.tab(&node(1)).unwrap());
            assert_eq!(
                (ours.free, ours.peer_waits, ours.own_waits),
                (-theirs.free, theirs.own_waits, theirs.peer_waits)
            );
            assert_eq!((ours.due(), theirs.owed()), (Msat(due), Msat(due)));
            let sums = payer.tab_sums(&node(2)).unwrap();
            assert_eq!(sums.accepted.0 - sums.paid.0, due);
            sums
        };
        work(&payer, &worker, 1, 100, false, 0);
        let first = agree(800);
        work(&payer, &worker, 2, 100, true, 0);
        assert_eq!(agree(800), first, "what is held is not in it");
        // The payer works, too: that is taken off as it becomes free.
        work(&worker, &payer, 3, 10, false, 0);
        agree(720);
        assert_eq!(worker.tab(&node(1)).unwrap().exposure(), Msat(800 + 200 + 1000 - 100));
        for ledger in [&payer, &worker] {
            ledger.release_due(&TERMS, 1000).unwrap();
        }
        let second = agree(900);
        assert!(second.accepted >= first.accepted && second.paid >= first.paid);
        let paid = Hash::of(b"paid");
        for (ledger, opened, peer) in [(&payer, true, 2), (&worker, false, 1)] {
            assert!(matches!(ledger.book_channel(&node(peer), Msat(300), opened, paid, 9).unwrap(), Posted::New(_)));
            assert!(matches!(
                ledger.book_channel(&node(peer), Msat(300), opened, paid, 9).unwrap(),
                Posted::Already(_)
            ));
        }
        agree(600);
        assert_eq!(payer.tabs().unwrap(), [(node(2), payer.tab(&node(2)).unwrap())]);
    }

    #[test]
    fn a_tail_that_one_side_released_first_is_no_lie() {
        let ((_a, payer), (_b, worker)) = (books(1), books(2));
        work(&payer, &worker, 1, 100, false, 0);
        worker.release_due(&TERMS, 1000).unwrap();
        assert_eq!(
            worker.tab_owed(&node(1), 1000).unwrap(),
            Owed { least: Msat(800), now: Msat(1000), most: Msat(1000) }
        );
        let later = worker.tab_owed(&node(1), 1001 + SLACK_MS).unwrap();
        assert_eq!(later.least, Msat(1000), "the payer has had its time");
        assert_eq!(payer.tab(&node(2)).unwrap().due(), Msat(800));
    }
}
