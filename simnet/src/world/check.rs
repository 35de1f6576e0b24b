//! What must hold after every step.
//!
//! - No host ever obeys two masters of one term, over all its lives.
//! - No host obeys a term without a valid certificate.
//! - The term a host obeys never goes down, over all its lives.
//! - No host votes twice in one round of a term, and no vote leaves before it is on disk.

use std::collections::BTreeMap;

use consortium_protocol::election::{Certificate, ElectionMessage};
use consortium_protocol::{ClusterId, NodeId};

use super::host::Host;
use super::network::Packet;

#[derive(Default)]
struct Record {
    obeyed: BTreeMap<u64, NodeId>,
    highest: u64,
    votes: BTreeMap<(u64, u64), NodeId>,
}

/// Remembers what every host did.
pub struct Witness {
    cluster: ClusterId,
    records: Vec<Record>,
}

impl Witness {
    /// A witness of `hosts` hosts.
    pub fn new(cluster: ClusterId, hosts: usize) -> Self {
        Self { cluster, records: (0..hosts).map(|_| Record::default()).collect() }
    }

    /// Sees a host after a step.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn observe(&mut self, index: usize, host: &Host) -> Result<(), String> {
        // A crash may come between a decision and its way to the disk: then it was never acted on.
        let current = match host.election() {
            Some(election) => election.current(),
            None => host.disk().obeyed.as_ref(),
        };
        match current {
            Some(certificate) => self.obeys(index, host, certificate),
            None if self.records[index].highest > 0 => Err(format!("{} forgot its term", host.id().short())),
            None => Ok(()),
        }
    }

    fn obeys(&mut self, index: usize, host: &Host, current: &Certificate) -> Result<(), String> {
        let record = &mut self.records[index];
        let (term, master, name) = (current.term(), current.master(), host.id().short());
        match record.obeyed.get(&term) {
            // Nothing new since the last step.
            Some(before) if *before == master && record.highest == term => return Ok(()),
            Some(before) if *before != master => {
                return Err(format!("{name} obeys two masters of term {term}"));
            }
            _ => {}
        }
        if term < record.highest {
            let highest = record.highest;
            return Err(format!("{name} went from term {highest} to {term}"));
        }
        if let Err(error) = current.verify(self.cluster) {
            return Err(format!("{name} obeys without proof: {error}"));
        }
        record.highest = term;
        record.obeyed.insert(term, master);
        if host.election().is_some() && host.disk().obeyed.as_ref() != Some(current) {
            return Err(format!("{name} obeys what is not on its disk"));
        }
        Ok(())
    }

    /// Sees what a host sends, with its disk as it is at that moment.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn sent(&mut self, index: usize, host: &Host, packet: &Packet) -> Result<(), String> {
        let (term, round, candidate) = match packet {
            Packet::Election { message: ElectionMessage::Vote(ballot), .. } => {
                let vote = ballot.vote.payload();
                (vote.term, vote.round, vote.candidate)
            }
            Packet::Election { message: ElectionMessage::Request(candidacy), .. } => {
                // Who asks for votes has given its own.
                let asked = candidacy.request.payload();
                (asked.term, asked.round, host.id())
            }
            _ => return Ok(()),
        };
        let name = host.id().short();
        let durable = host.disk().voted.as_ref().is_some_and(|ballot| {
            let vote = ballot.vote.payload();
            (vote.term, vote.round, vote.candidate) == (term, round, candidate)
        });
        if !durable {
            return Err(format!("{name} sent a vote in round {round} of term {term} that is not on its disk"));
        }
        match self.records[index].votes.insert((term, round), candidate) {
            Some(before) if before != candidate => Err(format!("{name} voted twice in round {round} of term {term}")),
            _ => Ok(()),
        }
    }
}
