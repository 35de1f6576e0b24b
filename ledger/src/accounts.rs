//! Whose money: owners, the parts of an account, and what stands on it.
//!
//! A positive balance is what this node owes to the account's owner, a negative one what the owner owes to this node.
//! The node's own books are the other side: `own/earned` is what its work brought in (positive), `own/outside` what
//! came in from outside (negative: money held elsewhere for those who paid it in). All balances together are zero.

use std::fmt;
use std::str::FromStr;

use consortium_protocol::{Hash, Msat, NodeId};
use rusqlite::{OptionalExtension, Transaction, params};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::api_keys::KeyId;
use crate::journal::{self, Kind, Posted, Postings};
use crate::ledger::{Ledger, LedgerError, hash_at, signed, text_at};

/// Most accounts on one page of a list.
pub const MAX_PAGE: u32 = 500;

/// Whose account. Its text is `peer/<PeerId>`, `key/<id of the key>` or `own/<book>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// Another node.
    Peer(NodeId),
    /// The holder of an API key of this node.
    Key(KeyId),
    /// One of the node's own books.
    Own(Book),
}

/// The node's own books.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Book {
    /// What the node's own work brought in.
    Earned,
    /// What the node paid for work on its own behalf, rewards and training among it (negative).
    Spent,
    /// What it took as a master.
    Driving,
    /// What it took as a gateway.
    Fees,
    /// What it gave away to try it out (negative).
    Trial,
    /// Bonds that were forfeited: others' to this node, less this node's to others.
    Forfeits,
    /// What came in from outside, less what went out (negative): the other side of deposits and withdrawals.
    Outside,
    /// The operator's own payments: what its wallet received for itself, less what it paid.
    Wallet,
    /// What passing on payments of others brought in, less what others took for passing on those of this node.
    Routing,
    /// What escrows brought in for work that was judged.
    Rewards,
    /// What training brought in.
    Training,
    /// What channels towards peers cost: above zero what peers bore of those opened here, below what this node bore of
    /// theirs.
    Channels,
}

/// The parts of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// To spend or take out.
    Free,
    /// Pay that waits for the verdict of an audit.
    Held,
    /// The part of pay that is delayed.
    Tail,
    /// Put aside: bonds, and reservations for work that was ordered.
    Bonded,
}

impl Part {
    const ALL: [(Self, &'static str); 4] =
        [(Self::Free, "free"), (Self::Held, "held"), (Self::Tail, "tail"), (Self::Bonded, "bonded")];

    /// The name, as in the text of an account.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(part, _)| *part == self).map_or("free", |(_, name)| name)
    }
}

impl Book {
    const ALL: [(Self, &'static str); 12] = [
        (Self::Earned, "earned"),
        (Self::Spent, "spent"),
        (Self::Driving, "driving"),
        (Self::Fees, "fees"),
        (Self::Trial, "trial"),
        (Self::Forfeits, "forfeits"),
        (Self::Outside, "outside"),
        (Self::Wallet, "wallet"),
        (Self::Routing, "routing"),
        (Self::Rewards, "rewards"),
        (Self::Training, "training"),
        (Self::Channels, "channels"),
    ];
}

/// A text that names no account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an account: peer/<PeerId>, key/<id> or own/<book>, and a part")]
pub struct ParseAccountError;

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(node) => write!(f, "peer/{node}"),
            Self::Key(key) => write!(f, "key/{key}"),
            Self::Own(book) => {
                let name = Book::ALL.iter().find(|(other, _)| other == book).map_or("", |(_, name)| name);
                write!(f, "own/{name}")
            }
        }
    }
}

impl FromStr for Owner {
    type Err = ParseAccountError;

    fn from_str(text: &str) -> Result<Self, ParseAccountError> {
        let (kind, name) = text.split_once('/').ok_or(ParseAccountError)?;
        match kind {
            "peer" => name.parse().map(Self::Peer).map_err(|_| ParseAccountError),
            "key" => name.parse().map(Self::Key).map_err(|_| ParseAccountError),
            "own" => Book::ALL
                .iter()
                .find(|(_, other)| *other == name)
                .map(|(book, _)| Self::Own(*book))
                .ok_or(ParseAccountError),
            _ => Err(ParseAccountError),
        }
    }
}

impl FromStr for Part {
    type Err = ParseAccountError;

    fn from_str(text: &str) -> Result<Self, ParseAccountError> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(part, _)| *part).ok_or(ParseAccountError)
    }
}

/// One part of one owner's account: what a posting names. Its text is `<owner>/<part>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    /// Whose.
    pub owner: Owner,
    /// Which part.
    pub part: Part,
}

impl Account {
    /// This part of that owner's account.
    #[must_use]
    pub const fn new(owner: Owner, part: Part) -> Self {
        Self { owner, part }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.part.as_str())
    }
}

impl FromStr for Account {
    type Err = ParseAccountError;

    fn from_str(text: &str) -> Result<Self, ParseAccountError> {
        let (owner, part) = text.rsplit_once('/').ok_or(ParseAccountError)?;
        Ok(Self { owner: owner.parse()?, part: part.parse()? })
    }
}

macro_rules! serde_as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}
serde_as_text!(Owner);
serde_as_text!(Account);

/// What stands on an account, in msat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balances {
    /// To spend or take out; negative when the owner owes this node.
    pub free: i64,
    /// Waiting for the verdict of an audit.
    pub held: i64,
    /// Delayed.
    pub tail: i64,
    /// Put aside.
    pub bonded: i64,
}

impl Balances {
    pub(crate) fn part(&mut self, part: Part) -> &mut i64 {
        match part {
            Part::Free => &mut self.free,
            Part::Held => &mut self.held,
            Part::Tail => &mut self.tail,
            Part::Bonded => &mut self.bonded,
        }
    }

    /// All parts together, in msat.
    #[must_use]
    pub fn total(&self) -> i128 {
        [self.free, self.held, self.tail, self.bonded].into_iter().map(i128::from).sum()
    }
}

/// An account as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountView {
    /// Whose.
    pub owner: Owner,
    /// What stands on it.
    pub balance: Balances,
    /// Credited for work in all, less what was taken back, in msat; held and delayed amounts included.
    pub earned: i64,
    /// Charged for work in all, less what was given back, in msat.
    pub spent: i64,
}

pub(crate) fn view(tx: &Transaction<'_>, owner: &Owner) -> Result<AccountView, LedgerError> {
    let name = owner.to_string();
    let mut balance = Balances::default();
    let mut statement = tx.prepare_cached("SELECT part, msat FROM balance WHERE owner = ?1")?;
    for row in statement.query_map([&name], |row| Ok((text_at::<Part>(row, 0)?, row.get(1)?)))? {
        let (part, msat) = row?;
        *balance.part(part) = msat;
    }
    let turnover = tx
        .prepare_cached("SELECT earned, spent FROM turnover WHERE owner = ?1")?
        .query_row([&name], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (earned, spent) = turnover.unwrap_or_default();
    Ok(AccountView { owner: owner.clone(), balance, earned, spent })
}

/// Takes `amount` from the free part of an account that has it.
pub(crate) fn take(tx: &Transaction<'_>, owner: &Owner, amount: Msat) -> Result<i64, LedgerError> {
    let free = view(tx, owner)?.balance.free;
    let wanted = signed(amount)?;
    if free < wanted {
        return Err(LedgerError::Insufficient { owner: owner.clone(), free, wanted: amount });
    }
    Ok(wanted)
}

impl Ledger {
    /// What stands on an account; zeros for one that was never used.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn account(&self, owner: &Owner) -> Result<AccountView, LedgerError> {
        self.read(|tx| view(tx, owner))
    }

    /// The accounts whose names follow `after`, in the order of their names; at most `limit`, and [`MAX_PAGE`].
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn accounts(&self, after: Option<&Owner>, limit: u32) -> Result<Vec<AccountView>, LedgerError> {
        let after = after.map(ToString::to_string).unwrap_or_default();
        self.read(|tx| {
            let mut statement =
                tx.prepare_cached("SELECT DISTINCT owner FROM balance WHERE owner > ?1 ORDER BY owner LIMIT ?2")?;
            let owners: Vec<Owner> = statement
                .query_map(params![after, limit.min(MAX_PAGE)], |row| text_at(row, 0))?
                .collect::<Result<_, _>>()?;
            owners.iter().map(|owner| view(tx, owner)).collect()
        })
    }

    /// Money came in for an account: a payment received, or a debt paid. Once per `reference`, such as a payment hash.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`], [`LedgerError::Reused`], [`LedgerError::Database`].
    pub fn deposit(&self, to: &Owner, amount: Msat, reference: Hash, now_ms: u64) -> Result<Posted, LedgerError> {
        let msat = signed(amount)?;
        self.write(|tx| {
            let postings = journal::transfer(outside(), Account::new(to.clone(), Part::Free), msat);
            journal::append_once(tx, &self.owner(), Kind::Deposit, reference, now_ms, postings)
        })
    }

    /// Money went out from the free part of an account. Once per `reference`.
    ///
    /// # Errors
    /// [`LedgerError::Insufficient`], [`LedgerError::Overflow`], [`LedgerError::Reused`], [`LedgerError::Database`].
    pub fn withdraw(&self, from: &Owner, amount: Msat, reference: Hash, now_ms: u64) -> Result<Posted, LedgerError> {
        let msat = signed(amount)?;
        self.write(|tx| {
            let postings = journal::transfer(Account::new(from.clone(), Part::Free), outside(), msat);
            if let Some(posted) = journal::posted(tx, Kind::Withdrawal, &reference, &postings)? {
                return Ok(posted);
            }
            take(tx, from, amount)?;
            journal::append_once(tx, &self.owner(), Kind::Withdrawal, reference, now_ms, postings)
        })
    }

    /// Gives a key its trial credit, once in its life.
    ///
    /// # Errors
    /// [`LedgerError::UnknownKey`], [`LedgerError::Overflow`], [`LedgerError::Database`].
    pub fn grant_trial(&self, key: &KeyId, amount: Msat, now_ms: u64) -> Result<Posted, LedgerError> {
        let msat = signed(amount)?;
        let reference = Hash::of(key.as_str().as_bytes());
        self.write(|tx| {
            if let Some(seq) = journal::find(tx, Kind::Trial, &reference)? {
                return Ok(Posted::Already(seq));
            }
            let valid: bool = tx.query_row(
                "SELECT count(*) FROM api_key WHERE id = ?1 AND revoked_s IS NULL",
                [key.as_str()],
                |row| row.get(0),
            )?;
            if !valid {
                return Err(LedgerError::UnknownKey(key.clone()));
            }
            let trial = Account::new(Owner::Own(Book::Trial), Part::Free);
            let postings = journal::transfer(trial, Account::new(Owner::Key(key.clone()), Part::Free), msat);
            journal::append_once(tx, &self.owner(), Kind::Trial, reference, now_ms, postings)
        })
    }

    /// Puts aside a part of what is free on an account as a bond. Once per `reference`. For what ordered work may cost
    /// see [`Ledger::reserve`].
    ///
    /// # Errors
    /// [`LedgerError::Insufficient`], [`LedgerError::Overflow`], [`LedgerError::Reused`], [`LedgerError::Database`].
    pub fn bond(&self, owner: &Owner, amount: Msat, reference: Hash, now_ms: u64) -> Result<Posted, LedgerError> {
        let msat = signed(amount)?;
        self.write(|tx| {
            let free = Account::new(owner.clone(), Part::Free);
            let postings = journal::transfer(free, Account::new(owner.clone(), Part::Bonded), msat);
            if let Some(posted) = journal::posted(tx, Kind::Bonded, &reference, &postings)? {
                return Ok(posted);
            }
            take(tx, owner, amount)?;
            journal::append_once(tx, &self.owner(), Kind::Bonded, reference, now_ms, postings)
        })
    }

    /// Gives back what [`Ledger::bond`] put aside under this reference.
    ///
    /// # Errors
    /// [`LedgerError::NoBond`] when there is none or it was forfeited, [`LedgerError::Database`].
    pub fn unbond(&self, reference: Hash, now_ms: u64) -> Result<Posted, LedgerError> {
        self.end_bond(Kind::Unbonded, reference, now_ms)
    }

    /// Takes what [`Ledger::bond`] put aside under this reference for the node's book of forfeits.
    ///
    /// # Errors
    /// [`LedgerError::NoBond`] when there is none or it was given back, [`LedgerError::Database`].
    pub fn forfeit(&self, reference: Hash, now_ms: u64) -> Result<Posted, LedgerError> {
        self.end_bond(Kind::Forfeited, reference, now_ms)
    }

    fn end_bond(&self, kind: Kind, reference: Hash, now_ms: u64) -> Result<Posted, LedgerError> {
        self.write(|tx| {
            if let Some(seq) = journal::find(tx, kind, &reference)? {
                return Ok(Posted::Already(seq));
            }
            let other = if kind == Kind::Unbonded { Kind::Forfeited } else { Kind::Unbonded };
            let begun = journal::find(tx, Kind::Bonded, &reference)?;
            let (Some(begun), None) = (begun, journal::find(tx, other, &reference)?) else {
                return Err(LedgerError::NoBond(reference));
            };
            let mut postings = Postings::new();
            for (account, msat) in journal::postings(tx, begun)? {
                if account.part == Part::Bonded {
                    let to = match kind {
                        Kind::Unbonded => Account::new(account.owner.clone(), Part::Free),
                        _ => Account::new(Owner::Own(Book::Forfeits), Part::Free),
                    };
                    postings = journal::transfer(account, to, msat);
                }
            }
            journal::append_once(tx, &self.owner(), kind, reference, now_ms, postings)
        })
    }

    /// The references of bonds that stand, oldest first: what a node that was interrupted has to bring to an end. At
    /// most [`MAX_PAGE`].
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn open_bonds(&self) -> Result<Vec<Hash>, LedgerError> {
        self.read(|tx| {
            let mut statement = tx.prepare_cached(
                "SELECT reference FROM entry AS begun WHERE kind = 'bonded' AND NOT EXISTS (
                     SELECT 1 FROM entry WHERE kind IN ('unbonded', 'forfeited') AND reference = begun.reference
                 ) ORDER BY seq LIMIT ?1",
            )?;
            let rows = statement.query_map([MAX_PAGE], |row| hash_at(row, 0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}

pub(crate) fn outside() -> Account {
    Account::new(Owner::Own(Book::Outside), Part::Free)
}
