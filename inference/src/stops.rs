//! Stop strings in streamed text.

/// Watches a stream of text for stop strings. Text that may be the start of one is held back, so no part of a stop
/// string is ever given out.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    matched: bool,
}

/// What may be given out after some text came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopStep {
    /// Text that is certainly before any stop string; may be empty.
    pub text: String,
    /// Whether a stop string was completed: the generation is over.
    pub matched: bool,
}

impl StopMatcher {
    /// A matcher for these strings; empty ones are left out.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops: stops.into_iter().filter(|s| !s.is_empty()).collect(), held: String::new(), matched: false }
    }

    /// Takes the next text. The stop string that is completed first counts, of several completed by the same character
    /// the longest; how the text is cut into pieces makes no difference. After a match nothing more comes out.
    pub fn push(&mut self, text: &str) -> StopStep {
        if self.matched {
            return StopStep { text: String::new(), matched: true };
        }
        self.held.push_str(text);
        if let Some(start) = self.first_match() {
            self.matched = true;
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return StopStep { text, matched: true };
        }
        let tail = self.held.split_off(self.certain());
        StopStep { text: std::mem::replace(&mut self.held, tail), matched: false }
    }

    /// The end of the stream: what was held back and is no stop string after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the stop string starts that is completed first.
    fn first_match(&self) -> Option<usize> {
        self.stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start)))
            .min()
            .map(|(_, start)| start)
    }

    /// Length of the held text before the longest suffix that may become a stop string.
    fn certain(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest.saturating_sub(1));
        self.held
            .char_indices()
            .map(|(index, _)| index)
            .filter(|index| *index >= from)
            .find(|index| self.stops.iter().any(|stop| stop.starts_with(&self.held[*index..])))
            .unwrap_or(self.held.len())
    }
}
