//! What a client reads of a job: tokens to text, with stop strings cut out.

use consortium_inference::stops::StopMatcher;
use consortium_inference::tokenizer::Detokenizer;
use consortium_protocol::wire::job::{JobError, JobErrorCode};

/// Tokens to text, with stop strings cut out.
pub(super) struct TextOut {
    detokenizer: Detokenizer,
    stops: StopMatcher,
    stopped: bool,
}

#[derive(Default)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) matched: bool,
}

impl TextOut {
    /// Goes on behind tokens whose text the client has already.
    pub(super) fn resume(detokenizer: Detokenizer, stops: Vec<String>, emitted: &[u32]) -> Result<Self, JobError> {
        let mut text = Self { detokenizer, stops: StopMatcher::new(stops), stopped: false };
        for id in emitted {
            text.push(*id)?;
        }
        Ok(text)
    }

    pub(super) fn push(&mut self, id: u32) -> Result<Piece, JobError> {
        if self.stopped {
            return Ok(Piece::default());
        }
        let piece =
            self.detokenizer.push(id).map_err(|error| JobError::new(JobErrorCode::Internal, error.to_string()))?;
        let step = self.stops.push(&piece);
        self.stopped = step.matched;
        Ok(Piece { text: step.text, matched: step.matched })
    }

    /// What was held back.
    pub(super) fn finish(&mut self) -> Result<String, JobError> {
        if self.stopped {
            return Ok(String::new());
        }
        let rest =
            self.detokenizer.finish().map_err(|error| JobError::new(JobErrorCode::Internal, error.to_string()))?;
        let step = self.stops.push(&rest);
        if step.matched { Ok(step.text) } else { Ok(step.text + &self.stops.finish()) }
    }
}
