//! Writing to a terminal, or to whatever stands in its place.

use std::io::{self, ErrorKind, IsTerminal as _, Write as _};

/// Writes to stdout at once. Gives `false` when its reader has gone, as `head` does: then there is nothing left to do.
///
/// # Errors
/// Any other failure to write.
pub(super) fn print(text: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes a remark to stderr, dimmed on a terminal.
pub(super) fn remark(text: &str) {
    if io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        eprintln!("\x1b[2m{text}\x1b[0m");
    } else {
        eprintln!("{text}");
    }
}

/// Text from elsewhere without the control characters that would let it take over a terminal; line breaks and tabs
/// stay.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|char| !char.is_control() || matches!(char, '\n' | '\t')).collect()
}

/// The end of a PeerId, which tells peers apart; the beginning is the same in all.
pub(super) fn short_peer(peer: &str) -> String {
    match peer.char_indices().nth_back(5) {
        Some((start, _)) if start > 0 => format!("…{}", printable(&peer[start..])),
        _ => printable(peer),
    }
}

/// How a column of a table is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table: a header and rows of as many cells, each column as wide as its widest cell.
pub(super) fn table(header: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].0.chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for ((cell, (_, align)), width) in cells.zip(header).zip(&widths) {
            match align {
                Align::Left => line.push_str(&format!("{cell:<width$}  ")),
                Align::Right => line.push_str(&format!("{cell:>width$}  ")),
            }
        }
        format!("{}\n", line.trim_end())
    };
    let mut text = line(&mut header.iter().map(|(name, _)| *name));
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let rows = [vec!["…abc".to_owned(), "7".to_owned()], vec!["x".to_owned(), "1234567".to_owned()]];
        let text = table(&[("PEER", Align::Left), ("RTT", Align::Right)], &rows);
        assert_eq!(text, "PEER      RTT\n…abc        7\nx     1234567\n");
    }

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        assert_eq!(printable("a\x1b[31mb\u{9b}0mc\rd\te\n\u{7}"), "a[31mb0mcd\te\n");
        assert_eq!(short_peer("12D3KooWabcdef"), "…abcdef");
        assert_eq!(short_peer("abc"), "abc");
        assert_eq!(short_peer(""), "");
    }
}
