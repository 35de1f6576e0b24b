//! The books of all nodes of a swarm, held against each other: what one says that it owes another, that one says that
//! it is owed, to the millisatoshi.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use consortium_node::ledger::accounts::{MAX_PAGE, Owner};
use consortium_node::ledger::ledger::{Ledger, LedgerError};
use consortium_node::ledger::payments::Direction;
use consortium_node::ledger::reconcile::Reconciliation;
use consortium_protocol::identity::NodeId;
use serde::Serialize;

/// The books of one node.
#[derive(Clone, Debug)]
pub struct Books {
    /// What the swarm calls it.
    pub name: String,
    /// Whose they are.
    pub owner: NodeId,
    /// Whether they add up by themselves.
    pub sums: Reconciliation,
    /// What it owes to each other node, less what that one owes to it, in msat; all parts of the accounts.
    pub owes: BTreeMap<NodeId, i128>,
    /// What it paid to each other node over Lightning, in msat.
    pub paid: BTreeMap<NodeId, i128>,
    /// What it got from each other node over Lightning, in msat.
    pub got: BTreeMap<NodeId, i128>,
}

/// Two nodes that do not agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disagreement {
    /// One of them.
    pub a: String,
    /// The other.
    pub b: String,
    /// What `a` says that it owes `b`, in msat.
    pub a_owes: i128,
    /// What `b` says that `a` owes it, in msat.
    pub b_is_owed: i128,
}

/// Payments of one node to another that they do not agree on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// Who pays.
    pub payer: String,
    /// Who is paid.
    pub worker: String,
    /// What the payer's books say, in msat.
    pub paid: i128,
    /// What the worker's say, in msat.
    pub got: i128,
}

/// What holding them together found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Entries of all journals.
    pub entries: u64,
    /// Pairs of nodes of which one owes something to the other.
    pub pairs: usize,
    /// What is owed between nodes in all, in msat.
    pub owed: i128,
    /// What nodes paid each other over Lightning in all, in msat.
    pub settled: i128,
    /// Pairs of which one says that it paid something else than the other got.
    pub unsettled: Vec<Mismatch>,
    /// Nodes whose own books do not add up.
    pub inexact: Vec<String>,
    /// Pairs that do not agree.
    pub disagreements: Vec<Disagreement>,
}

impl Findings {
    /// Whether everything adds up, and all agree.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.inexact.is_empty() && self.disagreements.is_empty() && self.unsettled.is_empty()
    }
}

impl Books {
    /// Reads and verifies the books in a data directory; the node may be running.
    ///
    /// # Errors
    /// When there are none, or they are damaged.
    pub fn read(name: &str, owner: NodeId, data_dir: &Path) -> Result<Self> {
        let path = data_dir.join("ledger.db");
        let open = || -> Result<Self> {
            let ledger = Ledger::open(&path, owner)?;
            ledger.verify()?;
            let mut owes = BTreeMap::new();
            let mut after: Option<Owner> = None;
            loop {
                let page = ledger.accounts(after.as_ref(), MAX_PAGE)?;
                let Some(last) = page.last() else { break };
                after = Some(last.owner.clone());
                owes.extend(page.iter().filter_map(|account| match account.owner {
                    Owner::Peer(node) => Some((node, account.balance.total())),
                    _ => None,
                }));
            }
            let (paid, got) = settlements(&ledger)?;
            Ok(Self { name: name.to_owned(), owner, sums: ledger.reconcile()?, owes, paid, got })
        };
        open().with_context(|| format!("the books of {name} ({})", path.display()))
    }
}

type Sums = BTreeMap<NodeId, i128>;

/// What was paid to peers, and got from them.
fn settlements(ledger: &Ledger) -> Result<(Sums, Sums), LedgerError> {
    let (mut paid, mut got) = (Sums::new(), Sums::new());
    let mut after = None;
    loop {
        let page = ledger.payments_booked(after)?;
        for payment in &page {
            let (Owner::Peer(node), Some(booked)) = (&payment.owner, payment.booked) else { continue };
            let sums = match payment.direction {
                Direction::Outgoing => &mut paid,
                Direction::Incoming => &mut got,
            };
            *sums.entry(*node).or_default() += i128::from(booked.amount.0);
        }
        match page.last().and_then(|payment| payment.booked) {
            Some(last) => after = Some(last.seq),
            None => return Ok((paid, got)),
        }
    }
}

/// Holds the books of nodes against each other.
#[must_use]
pub fn compare(all: &[Books]) -> Findings {
    let mut findings = Findings {
        entries: all.iter().map(|books| books.sums.entries).sum(),
        pairs: 0,
        owed: 0,
        settled: 0,
        unsettled: Vec::new(),
        inexact: all.iter().filter(|books| !books.sums.is_exact()).map(|books| books.name.clone()).collect(),
        disagreements: Vec::new(),
    };
    let owes = |a: &Books, b: &Books| a.owes.get(&b.owner).copied().unwrap_or_default();
    for (index, a) in all.iter().enumerate() {
        for b in &all[index + 1..] {
            let (a_owes, b_is_owed) = (owes(a, b), -owes(b, a));
            findings.pairs += usize::from(a_owes != 0 || b_is_owed != 0);
            findings.owed += a_owes.abs();
            if a_owes != b_is_owed {
                let (a, b) = (a.name.clone(), b.name.clone());
                findings.disagreements.push(Disagreement { a, b, a_owes, b_is_owed });
            }
        }
    }
    for payer in all {
        for worker in all {
            let paid = payer.paid.get(&worker.owner).copied().unwrap_or_default();
            let got = worker.got.get(&payer.owner).copied().unwrap_or_default();
            findings.settled += paid;
            if paid != got {
                let (payer, worker) = (payer.name.clone(), worker.name.clone());
                findings.unsettled.push(Mismatch { payer, worker, paid, got });
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use consortium_protocol::identity::RootKey;

    use super::*;

    fn node(n: u8) -> NodeId {
        RootKey::from_seed([n; 32]).node_id()
    }

    fn books(n: u8, owes: &[(u8, i128)], balances: i128) -> Books {
        let sums = Reconciliation { entries: 2, postings: 0, balances, owed: 0, own: 0, differences: Vec::new() };
        let owes = owes.iter().map(|(other, msat)| (node(*other), *msat)).collect();
        Books { name: format!("node-{n}"), owner: node(n), sums, owes, paid: Sums::new(), got: Sums::new() }
    }

    #[test]
    fn a_debt_has_two_sides() {
        let agreed = [books(1, &[(2, 500), (3, -20)], 0), books(2, &[(1, -500)], 0), books(3, &[(1, 20)], 0)];
        let findings = compare(&agreed);
        assert!(findings.is_exact(), "{findings:?}");
        assert_eq!((findings.entries, findings.pairs, findings.owed), (6, 2, 520));

        let apart = [books(1, &[(2, 500)], 0), books(2, &[(1, -499)], 1), books(3, &[(2, 7)], 0)];
        let findings = compare(&apart);
        assert_eq!(findings.inexact, ["node-2"]);
        let said: Vec<(i128, i128)> = findings.disagreements.iter().map(|d| (d.a_owes, d.b_is_owed)).collect();
        assert_eq!(said, [(500, 499), (0, -7)]);
    }

    #[test]
    fn a_payment_has_two_sides() {
        let paid = |n: u8, to: u8, msat: i128| Books { paid: Sums::from([(node(to), msat)]), ..books(n, &[], 0) };
        let got = |n: u8, from: u8, msat: i128| Books { got: Sums::from([(node(from), msat)]), ..books(n, &[], 0) };
        let findings = compare(&[paid(1, 2, 70), got(2, 1, 70)]);
        assert!(findings.is_exact() && findings.settled == 70, "{findings:?}");
        let findings = compare(&[paid(1, 2, 70), got(2, 1, 69), got(3, 1, 5)]);
        let said: Vec<_> = findings.unsettled.iter().map(|m| (m.worker.as_str(), m.paid, m.got)).collect();
        assert_eq!(said, [("node-2", 70, 69), ("node-3", 0, 5)]);
        assert!(!findings.is_exact());
    }
}
