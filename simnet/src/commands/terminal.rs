//! What commands print.

use std::io::{ErrorKind, Write};

use anyhow::Result;

/// Prints a line. A reader that has gone away, as `head` does, has read enough.
///
/// # Errors
/// When stdout cannot be written for another reason.
pub(crate) fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
