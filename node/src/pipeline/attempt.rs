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

    /// Positions that the stages were given at once and have not answered yet.
    pub(super) fn being_fed(&self) -> u32 {
        if self.awaited.is_some() && self.tokens.len() == self.drawn_from as usize { self.drawn_from } else { 0 }
    }

    /// Takes a token that was drawn, if it is the one that is awaited.
    pub(super) fn drawn(&mut self, seq: u32, pos: u32, id: u32) {
        if self.tokens.len() == pos as usize && self.awaited == Some(seq) {
            self.awaited = None;
            self.tokens.push(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_being_fed_until_its_first_token_comes() {
        let mut attempt = Attempt { tokens: vec![7; 600], drawn_from: 600, ..Attempt::default() };
        assert_eq!((attempt.being_fed(), attempt.began()), (0, false), "nothing was sent yet");
        attempt.awaited = Some(2);
        assert_eq!((attempt.being_fed(), attempt.began()), (600, true));
        attempt.drawn(2, 600, 9);
        attempt.awaited = Some(3);
        assert_eq!(attempt.being_fed(), 0, "one token is quick");
    }
}
