//! What one attempt at a job has computed, as its receipts will have to say it.

use consortium_protocol::envelope::Signed;
use consortium_protocol::wire::pipeline::SessionOpen;

/// What the present attempt has computed, for its receipts.
#[derive(Default)]
pub(super) struct Attempt {
    pub(super) number: u32,
    pub(super) order: Option<Signed<SessionOpen>>,
    /// The prompt, what was emitted before, and every token drawn since, whether it was emitted or not.
    pub(super) tokens: Vec<u32>,
    pub(super) drawn_from: u32,
    /// The last step that asked for a token, until it came.
    pub(super) awaited: Option<u32>,
}

impl Attempt {
    /// Whether there is anything to sign for.
    pub(super) fn began(&self) -> bool {
        self.awaited.is_some() || self.tokens.len() > self.drawn_from as usize
    }

    /// Takes a token that was drawn, if it is the one that is awaited.
    pub(super) fn drawn(&mut self, seq: u32, pos: u32, id: u32) {
        if self.tokens.len() == pos as usize && self.awaited == Some(seq) {
            self.awaited = None;
            self.tokens.push(id);
        }
    }
}
