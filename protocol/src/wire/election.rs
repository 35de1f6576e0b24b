//! Votes, and the certificates they make.
//!
//! The rules of the machine that uses them are in [`crate::election`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::cluster::{ClusterId, MAX_MEMBERS};
use crate::envelope::{Invalid, Payload, Signed};
use crate::hash::Hash;
use crate::identity::NodeId;

/// How many different views the votes of one certificate may have. With a view at 34 bytes a member and a vote at less
/// than 300 bytes this keeps every certificate below what gossip carries.
pub const MAX_VIEWS: usize = 8;

/// A candidate (the signer) asks for votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VoteRequest {
    /// The cluster.
    pub cluster: ClusterId,
    /// The term to be certified: one above the last certified one.
    pub term: u64,
    /// Which try at this term, from 1: a node votes once in each.
    pub round: u64,
}

impl Payload for VoteRequest {
    const DOMAIN: &'static str = "vote-request";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 256;

    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(self.term > 0, "term", "terms start at 1")?;
        Invalid::unless(self.round > 0, "round", "rounds start at 1")
    }
}

/// A request with what entitles to its term.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidacy {
    /// The request.
    pub request: Signed<VoteRequest>,
    /// The certificate of the term before, unless the voter is thought to have it.
    pub basis: Option<Certificate>,
}

/// The vote of a member (the signer).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vote {
    /// The cluster.
    pub cluster: ClusterId,
    /// The term.
    pub term: u64,
    /// Which try at this term.
    pub round: u64,
    /// Who is voted for.
    pub candidate: NodeId,
    /// Digest of the voter's view ([`view_digest`]).
    pub view: Hash,
}

impl Payload for Vote {
    const DOMAIN: &'static str = "vote";
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 256;

    fn check(&self) -> Result<(), Invalid> {
        Invalid::unless(self.term > 0, "term", "terms start at 1")?;
        Invalid::unless(self.round > 0, "round", "rounds start at 1")
    }
}

/// The digest of a view: BLAKE3 of the members' keys, in order.
pub fn view_digest<'a>(members: impl IntoIterator<Item = &'a NodeId>) -> Hash {
    let mut bytes = Vec::with_capacity(32 * MAX_MEMBERS);
    for member in members {
        bytes.extend_from_slice(member.as_bytes());
    }
    Hash::of(&bytes)
}

/// A vote with the view it speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ballot {
    /// The vote.
    pub vote: Signed<Vote>,
    /// The members the voter admits, itself included, in ascending order.
    pub view: Vec<NodeId>,
}

impl Ballot {
    /// That the view is the one voted with, in order, of bounded size, and has voter and candidate in it.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn check(&self) -> Result<(), Invalid> {
        check_view(&self.view)?;
        let vote = self.vote.payload();
        Invalid::unless(view_digest(&self.view) == vote.view, "view", "not the one voted with")?;
        for member in [self.vote.signer(), vote.candidate] {
            Invalid::unless(self.view.binary_search(&member).is_ok(), "view", "without voter or candidate")?;
        }
        Ok(())
    }
}

fn check_view(view: &[NodeId]) -> Result<(), Invalid> {
    Invalid::unless((1..=MAX_MEMBERS).contains(&view.len()), "view", "1 to 64 members")?;
    Invalid::unless(view.is_sorted_by(|a, b| a < b), "view", "members in ascending order")
}

/// Why a set of votes certifies nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// No votes, too many votes or views, or not in order.
    #[error("votes or views out of bounds or out of order")]
    Shape,
    /// A vote for another cluster, term, round or candidate than the first.
    #[error("the votes do not agree")]
    Disagreement,
    /// A vote whose view is missing or lacks voter or candidate.
    #[error("a vote does not fit its view")]
    View,
    /// The candidate did not vote for itself.
    #[error("the candidate did not stand")]
    NotStanding,
    /// The voters are no strict majority of the view of one of them.
    #[error("no majority in the view of a voter")]
    NoMajority,
    /// Certifies a master of another cluster.
    #[error("another cluster")]
    Cluster,
}

/// Proof that a node is master of a term.
///
/// Valid if the votes are by different members for the same cluster, term, round and candidate; each voter and the
/// candidate are in the voter's view; the voters are a strict majority of the view of every voter; and the candidate is
/// one of them. A value of this type is valid but for its cluster, which [`Certificate::verify`] compares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts", deny_unknown_fields)]
pub struct Certificate {
    /// The different views of the voters, in ascending order of their digests.
    views: Vec<Vec<NodeId>>,
    /// The votes, in ascending order of the voters.
    votes: Vec<Signed<Vote>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parts {
    views: Vec<Vec<NodeId>>,
    votes: Vec<Signed<Vote>>,
}

impl TryFrom<Parts> for Certificate {
    type Error = CertificateError;

    fn try_from(parts: Parts) -> Result<Self, CertificateError> {
        let certificate = Self { views: parts.views, votes: parts.votes };
        certificate.check()?;
        Ok(certificate)
    }
}

impl Certificate {
    /// Makes a certificate of as many of `ballots` as support each other: a ballot is left out if the voters do not
    /// have a majority in its view. `None` if what remains does not certify `candidate`. All ballots must be for the
    /// same term and round.
    pub fn assemble(candidate: NodeId, ballots: &BTreeMap<NodeId, Ballot>) -> Option<Self> {
        let mut kept: BTreeMap<NodeId, &Ballot> = ballots.iter().map(|(voter, ballot)| (*voter, ballot)).collect();
        loop {
            let voters: BTreeSet<NodeId> = kept.keys().copied().collect();
            let before = kept.len();
            kept.retain(|_, ballot| has_majority(&voters, &ballot.view));
            if kept.len() == before {
                break;
            }
        }
        if !kept.contains_key(&candidate) {
            return None;
        }
        let views: BTreeMap<Hash, &Vec<NodeId>> =
            kept.values().map(|ballot| (ballot.vote.payload().view, &ballot.view)).collect();
        Self::try_from(Parts {
            views: views.into_values().cloned().collect(),
            votes: kept.into_values().map(|ballot| ballot.vote.clone()).collect(),
        })
        .ok()
    }

    /// Checks everything that makes a certificate valid in `cluster`.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn verify(&self, cluster: ClusterId) -> Result<(), CertificateError> {
        if self.first().cluster != cluster {
            return Err(CertificateError::Cluster);
        }
        self.check()
    }

    /// The term.
    pub fn term(&self) -> u64 {
        self.first().term
    }

    /// The master of that term.
    pub fn master(&self) -> NodeId {
        self.first().candidate
    }

    /// The votes, in ascending order of the voters.
    pub fn votes(&self) -> &[Signed<Vote>] {
        &self.votes
    }

    /// Who voted, in ascending order.
    pub fn voters(&self) -> impl Iterator<Item = NodeId> {
        self.votes.iter().map(Signed::signer)
    }

    fn first(&self) -> &Vote {
        self.votes.first().expect("a certificate without votes is never made").payload()
    }

    fn check(&self) -> Result<(), CertificateError> {
        let bounded = (1..=MAX_MEMBERS).contains(&self.votes.len())
            && (1..=MAX_VIEWS).contains(&self.views.len())
            && self.votes.is_sorted_by(|a, b| a.signer() < b.signer());
        if !bounded || self.views.iter().any(|view| check_view(view).is_err()) {
            return Err(CertificateError::Shape);
        }
        let digests: Vec<Hash> = self.views.iter().map(view_digest).collect();
        if !digests.is_sorted_by(|a, b| a < b) {
            return Err(CertificateError::Shape);
        }
        let first = self.first();
        let voters: BTreeSet<NodeId> = self.voters().collect();
        let mut used = BTreeSet::new();
        for vote in &self.votes {
            let said = vote.payload();
            let agrees = said.cluster == first.cluster
                && said.term == first.term
                && said.round == first.round
                && said.candidate == first.candidate;
            if !agrees {
                return Err(CertificateError::Disagreement);
            }
            let place = digests.binary_search(&said.view).map_err(|_| CertificateError::View)?;
            let view = &self.views[place];
            if [vote.signer(), said.candidate].iter().any(|member| view.binary_search(member).is_err()) {
                return Err(CertificateError::View);
            }
            used.insert(place);
        }
        // A view that no vote speaks of would be a second encoding of the same certificate.
        if used.len() != self.views.len() {
            return Err(CertificateError::Shape);
        }
        if !voters.contains(&first.candidate) {
            return Err(CertificateError::NotStanding);
        }
        if !self.views.iter().all(|view| has_majority(&voters, view)) {
            return Err(CertificateError::NoMajority);
        }
        Ok(())
    }
}

fn has_majority(voters: &BTreeSet<NodeId>, view: &[NodeId]) -> bool {
    let present = view.iter().filter(|member| voters.contains(member)).count();
    2 * present > view.len()
}

/// Why a voter does not vote. A hint: it is not signed, and nothing but timing follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// The term asked for.
    pub term: u64,
    /// The last round the voter voted in at the term asked for; 0 if none.
    pub round: u64,
    /// The kind.
    pub reason: RefusedReason,
}

/// What kind of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RefusedReason {
    /// The voter lacks the certificate of the term before: ask again with it.
    Behind,
    /// The voter has voted in this round or a later one, or in a higher term.
    Voted,
    /// There is a master, or a better candidate, that the voter would rather have.
    Preferred,
    /// The voter does not admit the candidate, or thinks it gone, or unwilling.
    Unfit,
}

/// What election machines say to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ElectionMessage {
    /// Vote for me.
    Request(Candidacy),
    /// My vote.
    Vote(Ballot),
    /// No vote.
    Refused(Refused),
    /// Who is master.
    Certificate(Certificate),
    /// Which certificate do you obey?
    Ask,
}

impl ElectionMessage {
    /// The rules that are not checked while reading.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn check(&self) -> Result<(), Invalid> {
        match self {
            Self::Vote(ballot) => ballot.check(),
            Self::Request(_) | Self::Refused(_) | Self::Certificate(_) | Self::Ask => Ok(()),
        }
    }
}
