//! Says what happens as it happens, with the seconds since the start.

use std::io::Write;
use std::time::{Duration, Instant};

/// Prints steps to one stream.
#[derive(Debug)]
pub(crate) struct Steps {
    started: Instant,
    stream: Stream,
}

/// Where steps go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// People watch.
    Stdout,
    /// Stdout belongs to somebody else: the command of `--exec`, or a table.
    Stderr,
}

impl Steps {
    /// Starts the clock.
    pub(crate) fn new(stream: Stream) -> Self {
        Self { started: Instant::now(), stream }
    }

    /// One step that has been taken. A stream that nobody reads any more is no reason to stop.
    pub(crate) fn say(&self, step: &str) {
        self.line(&format!("{:>6.1} s  {step}", self.elapsed().as_secs_f64()));
    }

    /// Text without a time.
    pub(crate) fn line(&self, text: &str) {
        let _ = match self.stream {
            Stream::Stdout => writeln!(std::io::stdout().lock(), "{text}"),
            Stream::Stderr => writeln!(std::io::stderr().lock(), "{text}"),
        };
    }

    /// What went wrong, on stderr wherever the steps go.
    pub(crate) fn fail(&self, why: &str) {
        let seconds = self.elapsed().as_secs_f64();
        let _ = writeln!(std::io::stderr().lock(), "{seconds:>6.1} s  {why}");
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}
