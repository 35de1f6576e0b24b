//! How validators agree on one record for a round.

use serde::{Deserialize, Serialize};

use super::record::{MAX_BODY, MAX_RECORD};
use super::{Body, MAX_VALIDATORS, Record, RunId, rises};
use crate::envelope::{ENVELOPE_BYTES, Invalid, Payload, Signed};
use crate::hash::Hash;
use crate::identity::NodeId;

/// The first word on a record: the signer will support no other in this view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vote {
    /// The run.
    pub run: RunId,
    /// The round.
    pub round: u64,
    /// The attempt at it.
    pub view: u64,
    /// Id of the record.
    pub record: Hash,
}

impl Payload for Vote {
    const DOMAIN: &'static str = "train-vote";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 192;

    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// The last word on a record: the signer saw a quorum of votes for it in this view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// The run.
    pub run: RunId,
    /// The round.
    pub round: u64,
    /// The attempt at it.
    pub view: u64,
    /// Id of the record.
    pub record: Hash,
}

impl Payload for Seal {
    const DOMAIN: &'static str = "train-seal";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 192;

    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// Seals of different validators for one record in one view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certified {
    /// The run.
    pub run: RunId,
    /// The round.
    pub round: u64,
    /// The view.
    pub view: u64,
    /// Id of the record.
    pub record: Hash,
    /// The seals, in ascending order of the signers.
    pub seals: Vec<Signed<Seal>>,
}

impl Certified {
    /// Longest encoding, in bytes.
    pub(super) const MAX_BYTES: usize = MAX_VALIDATORS * (Seal::MAX_BYTES + ENVELOPE_BYTES) + 256;

    /// That all seals say the same.
    ///
    /// # Errors
    /// They do not, or are too many or out of order.
    pub fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(self.seals.len() <= MAX_VALIDATORS, "seals", "more than 9")?;
        Invalid::unless(rises(self.seals.iter().map(Signed::signer)), "seals", "not in ascending order")?;
        let of = Seal { run: self.run, round: self.round, view: self.view, record: self.record };
        Invalid::unless(self.seals.iter().all(|seal| *seal.payload() == of), "seals", "of something else")
    }

    /// Who sealed.
    pub fn signers(&self) -> impl Iterator<Item = NodeId> {
        self.seals.iter().map(Signed::signer)
    }
}

/// Votes of different validators for one record in one view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locked {
    /// The view.
    pub view: u64,
    /// The votes, in ascending order of the signers.
    pub votes: Vec<Signed<Vote>>,
}

impl Locked {
    const MAX_BYTES: usize = MAX_VALIDATORS * (Vote::MAX_BYTES + ENVELOPE_BYTES) + 64;

    /// That all votes are for this record, in this view.
    ///
    /// # Errors
    /// They are not, or are too many or out of order.
    pub fn check(&self, record: &Record) -> Result<(), Invalid> {
        Invalid::unless(self.votes.len() <= MAX_VALIDATORS, "votes", "more than 9")?;
        Invalid::unless(rises(self.votes.iter().map(Signed::signer)), "votes", "not in ascending order")?;
        let of = Vote { run: record.run, round: record.round, view: self.view, record: record.id() };
        Invalid::unless(self.votes.iter().all(|vote| *vote.payload() == of), "votes", "for something else")
    }

    /// Who voted.
    pub fn signers(&self) -> impl Iterator<Item = NodeId> {
        self.votes.iter().map(Signed::signer)
    }
}

/// The record that a lead (the signer) would have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    /// The attempt.
    pub view: u64,
    /// The record; one of an earlier view if that may have been sealed.
    pub record: Record,
    /// What it follows from.
    pub body: Body,
    /// The lead's own vote for it: small enough to be passed on to all, so that a lead that says two things is found out.
    pub vote: Signed<Vote>,
    /// Votes that it had in an earlier view.
    pub locked: Option<Locked>,
}

impl Payload for Proposal {
    const DOMAIN: &'static str = "train-proposal";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = MAX_RECORD + MAX_BODY + Vote::MAX_BYTES + ENVELOPE_BYTES + Locked::MAX_BYTES + 128;

    fn check(&self) -> Result<(), Invalid> {
        self.record.check()?;
        self.body.check()?;
        Invalid::unless(self.record.body == self.body.digest(), "body", "another")?;
        Invalid::unless(self.record.view <= self.view, "view", "before the record's")?;
        let vote = Vote { run: self.record.run, round: self.record.round, view: self.view, record: self.record.id() };
        Invalid::unless(*self.vote.payload() == vote, "vote", "for something else")?;
        match &self.locked {
            Some(locked) => {
                Invalid::unless(locked.view < self.view, "locked", "not of an earlier view")?;
                locked.check(&self.record)
            }
            None => Ok(()),
        }
    }
}

/// The signer gives up the views before this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewView {
    /// The run.
    pub run: RunId,
    /// The round.
    pub round: u64,
    /// The view to be tried.
    pub view: u64,
    /// The record of which it saw the latest quorum of votes, with these.
    pub locked: Option<(Signed<Proposal>, Locked)>,
}

impl Payload for NewView {
    const DOMAIN: &'static str = "train-new-view";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = Proposal::MAX_BYTES + ENVELOPE_BYTES + Locked::MAX_BYTES + 256;

    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(self.view > 0, "view", "the first needs no asking")?;
        let Some((proposal, locked)) = &self.locked else { return Ok(()) };
        let record = &proposal.payload().record;
        Invalid::unless((record.run, record.round) == (self.run, self.round), "locked", "in another round")?;
        Invalid::unless(locked.view < self.view, "locked", "not in an earlier view")?;
        locked.check(record)
    }
}
