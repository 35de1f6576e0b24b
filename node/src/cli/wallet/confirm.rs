//! Asking before money moves.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use anyhow::Result;

use crate::cli::terminal::remark;

/// Longest answer, in bytes.
const MAX_ANSWER: u64 = 64;

/// Whether to go on: asked on a terminal, and taken for granted where `yes` says so or nobody is there to be asked.
///
/// # Errors
/// When the terminal cannot be used.
pub(in crate::cli) fn confirmed(question: &str, yes: bool) -> Result<bool> {
    if yes || !io::stdin().is_terminal() {
        return Ok(true);
    }
    eprint!("{question} [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().take(MAX_ANSWER).read_line(&mut answer)?;
    let agreed = is_yes(&answer);
    if !agreed {
        remark("nothing was done");
    }
    Ok(agreed)
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_one() {
        assert!(["y\n", "Yes\r\n", "YES"].into_iter().all(is_yes));
        assert!(!["", "\n", "n", "yeah", "no"].into_iter().any(is_yes));
    }
}
