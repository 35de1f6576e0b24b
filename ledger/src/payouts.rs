//! What training runs pay, in the books of who pays and of who is paid.
//!
//! A certain record of a run says what its author is to pay to whom; both have the record, and each books it by itself, so
//! that no message about money can be lost or be wrong. The reference is the name of the payout, which both have alike:
//! each books it once, however often it is told.
//!
//! ```text
//! the author   own/spent -> the peer's account
//! the peer     the author's account -> own/training
//! ```
//! So it stands on the tab between the two ([`crate::tabs`]), which is settled as any other. What an escrow has paid of it
//! was booked when it moved, as a reward ([`crate::payments`]), and is no part of the tab: at the peer it is counted as
//! training instead, `own/rewards -> own/training`, and the author has nothing more to book. Both parts are one entry of
//! [`Kind::Training`].

use consortium_protocol::{Hash, Msat, NodeId};

use crate::accounts::{Account, Book, Owner, Part};
use crate::journal::{self, Kind, Posted, Postings};
use crate::ledger::{Ledger, LedgerError, signed};
use crate::payments::Direction;

/// What a run pays out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payout {
    /// Its name, which who pays and who is paid have alike.
    pub reference: Hash,
    /// Whether this node is paid, or pays.
    pub direction: Direction,
    /// The other one.
    pub peer: NodeId,
    /// How much.
    pub amount: Msat,
    /// What of it an escrow has paid; zero where there was none.
    pub escrowed: Msat,
}

impl Payout {
    fn postings(&self) -> Result<Postings, LedgerError> {
        let (amount, escrowed) = (signed(self.amount)?, signed(self.escrowed)?);
        let on_the_tab = amount.checked_sub(escrowed).filter(|rest| *rest >= 0).ok_or(LedgerError::Overflow)?;
        let own = |book| Account::new(Owner::Own(book), Part::Free);
        let peer = Account::new(Owner::Peer(self.peer), Part::Free);
        let mut postings = match self.direction {
            Direction::Outgoing => journal::transfer(own(Book::Spent), peer, on_the_tab),
            Direction::Incoming => {
                Postings::from([(peer, -on_the_tab), (own(Book::Rewards), -escrowed), (own(Book::Training), amount)])
            }
        };
        postings.retain(|_, msat| *msat != 0);
        Ok(postings)
    }
}

impl Ledger {
    /// Books a payout, once.
    ///
    /// # Errors
    /// [`LedgerError::Reused`] when another amount was booked for it, or for another node; [`LedgerError::Overflow`], also
    /// when an escrow paid more than all of it; [`LedgerError::Database`].
    pub fn book_payout(&self, payout: &Payout, now_ms: u64) -> Result<Posted, LedgerError> {
        let postings = payout.postings()?;
        if postings.is_empty() {
            return Ok(Posted::Nothing);
        }
        // A run is gone through from its beginning whenever the node starts: what is known needs no lock on the file.
        let known = self.read(|tx| journal::posted(tx, Kind::Training, &payout.reference, &postings))?;
        match known {
            Some(posted) => Ok(posted),
            None => self.write(|tx| {
                journal::append_once(tx, &self.owner(), Kind::Training, payout.reference, now_ms, postings)
            }),
        }
    }

    /// Whether anything was booked for the payout of this name.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn is_payout_booked(&self, reference: &Hash) -> Result<bool, LedgerError> {
        Ok(self.read(|tx| journal::find(tx, Kind::Training, reference))?.is_some())
    }
}

#[cfg(test)]
mod tests {
    use consortium_protocol::RootKey;

    use super::*;
    use crate::earnings::Source;
    use crate::payments::{Expected, Moved, Purpose};

    fn node(n: u8) -> NodeId {
        RootKey::from_seed([n; 32]).node_id()
    }

    fn books(n: u8) -> (tempfile::TempDir, Ledger) {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger.db"), node(n)).unwrap();
        (dir, ledger)
    }

    fn payout(name: &[u8], direction: Direction, peer: u8, amount: u64, escrowed: u64) -> Payout {
        let (amount, escrowed) = (Msat(amount), Msat(escrowed));
        Payout { reference: Hash::of(name), direction, peer: node(peer), amount, escrowed }
    }

    fn income(ledger: &Ledger, source: Source) -> i64 {
        let earnings = ledger.earnings(0, 1000).unwrap();
        earnings.incomes.iter().find(|income| income.source == source).unwrap().msat
    }

    #[test]
    fn both_sides_book_the_same_debt_once() {
        let ((_a, author), (_b, peer)) = (books(1), books(2));
        for at_ms in [5, 9] {
            for (name, amount) in [(b"first", 30_000), (b"later", 20_000)] {
                author.book_payout(&payout(name, Direction::Outgoing, 2, amount, 0), at_ms).unwrap();
                peer.book_payout(&payout(name, Direction::Incoming, 1, amount, 0), at_ms).unwrap();
            }
        }
        assert_eq!((author.length().unwrap(), peer.length().unwrap()), (2, 2));
        assert_eq!(author.tab(&node(2)).unwrap().due(), Msat(50_000));
        assert_eq!(peer.tab(&node(1)).unwrap().owed(), Msat(50_000));
        // The author may not have heard of the record yet.
        let owed = |now_ms| peer.tab_owed(&node(1), now_ms).unwrap();
        assert_eq!((owed(9).least, owed(9).now, owed(9).most), (Msat::ZERO, Msat(50_000), Msat(50_000)));
        assert_eq!(owed(6 + crate::tabs::SLACK_MS).least, Msat(50_000));
        assert_eq!((income(&peer, Source::Training), income(&peer, Source::Rewards)), (50_000, 0));
        assert_eq!(author.earnings(0, 1000).unwrap().spent_msat, 50_000);
        let account = author.account(&Owner::Peer(node(2))).unwrap();
        assert_eq!((account.earned, account.spent), (50_000, 0));
        let lines = author.statement(&Owner::Peer(node(2)), 0, 1000, None, 10).unwrap().lines;
        assert!(lines.len() == 2 && lines.iter().all(|line| line.kind == Kind::Training));
        assert!(author.reconcile().unwrap().is_exact() && peer.reconcile().unwrap().is_exact());
        assert_eq!((author.verify().unwrap(), peer.verify().unwrap()), (2, 2));
    }

    #[test]
    fn another_amount_under_the_same_name_is_refused() {
        let (_dir, ledger) = books(1);
        let first = payout(b"one", Direction::Outgoing, 2, 100, 0);
        assert!(!ledger.is_payout_booked(&first.reference).unwrap());
        assert_eq!(ledger.book_payout(&first, 1).unwrap(), Posted::New(0));
        assert!(ledger.is_payout_booked(&first.reference).unwrap());
        for other in [Payout { amount: Msat(101), ..first }, Payout { peer: node(3), ..first }] {
            assert!(matches!(ledger.book_payout(&other, 2), Err(LedgerError::Reused(_))));
        }
        let beyond = payout(b"two", Direction::Incoming, 2, 100, 101);
        assert!(matches!(ledger.book_payout(&beyond, 2), Err(LedgerError::Overflow)));
        assert_eq!(ledger.book_payout(&payout(b"two", Direction::Outgoing, 2, 0, 0), 2).unwrap(), Posted::Nothing);
        assert_eq!(ledger.length().unwrap(), 1);
    }

    #[test]
    fn what_an_escrow_paid_is_on_no_tab_and_counts_as_training() {
        let ((_a, author), (_b, peer)) = (books(1), books(2));
        let hash = Hash::of(b"tranche");
        for (ledger, direction, other) in [(&author, Direction::Outgoing, 2), (&peer, Direction::Incoming, 1)] {
            let (owner, amount, note) = (Owner::Peer(node(other)), Msat(60_000), String::new());
            ledger.expect(&Expected { direction, hash, owner, amount, purpose: Purpose::Reward, note }, 1).unwrap();
            ledger.book_payment(&Moved { direction, hash, amount, fee: Msat::ZERO }, 2).unwrap();
            // Of 80 sat, 60 came by escrow: 20 are on the tab.
            ledger.book_payout(&payout(b"run", direction, other, 80_000, 60_000), 3).unwrap();
            assert!(ledger.reconcile().unwrap().is_exact());
        }
        assert_eq!((income(&peer, Source::Training), income(&peer, Source::Rewards)), (80_000, 0));
        assert_eq!(author.earnings(0, 1000).unwrap().spent_msat, 80_000);
        assert_eq!(author.tab(&node(2)).unwrap().due(), Msat(20_000));
        assert_eq!(peer.tab(&node(1)).unwrap().owed(), Msat(20_000));
        // All of it by escrow: the author has nothing more to book.
        let all = payout(b"all", Direction::Outgoing, 2, 60_000, 60_000);
        assert_eq!(author.book_payout(&all, 4).unwrap(), Posted::Nothing);
    }
}
