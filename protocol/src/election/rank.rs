//! Which of the willing should be master.

use std::cmp::Reverse;

use crate::identity::NodeId;
use crate::wire::heartbeat::Heartbeat;

/// What the election knows of a member. The default is a member that is gone and knows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Heard of late.
    pub alive: bool,
    /// Would be master, and is not leaving.
    pub willing: bool,
    /// This node's opinion of it; more is better.
    pub reputation: u32,
    /// Seconds since its start.
    pub uptime_s: u64,
    /// What it offers: memory in bytes.
    pub capacity: u64,
    /// The term it obeys; 0 if none.
    pub term: u64,
    /// The master it obeys.
    pub master: Option<NodeId>,
    /// Wall time of its last heartbeat, in milliseconds since 1970. Of this node's own alone use is made.
    pub wall_ms: u64,
}

impl Standing {
    /// What a member's own heartbeat says, with what this node thinks of it.
    pub fn of(heartbeat: &Heartbeat, alive: bool, reputation: u32) -> Self {
        Self {
            alive,
            willing: heartbeat.willing && !heartbeat.leaving,
            reputation,
            uptime_s: heartbeat.uptime_s,
            capacity: heartbeat.memory_bytes,
            term: heartbeat.term,
            master: heartbeat.master,
            wall_ms: heartbeat.sent_at_ms,
        }
    }

    /// Orders the willing, best first. Uptime counts by powers of two of minutes, so that nodes started together are
    /// equals.
    pub(super) fn rank(&self, id: NodeId) -> impl Ord + use<> {
        let minutes = self.uptime_s / 60;
        (Reverse(self.reputation), Reverse(u64::BITS - minutes.leading_zeros()), Reverse(self.capacity), id)
    }
}
