//! `simnet logs`: what the nodes wrote, in the order of its times, and as it comes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::swarm::directory::SwarmDir;
use crate::swarm::process::last_lines;

/// How often followed logs are looked at.
const POLL: Duration = Duration::from_millis(200);

/// Most of one log that is read at a time.
const CHUNK: u64 = 1024 * 1024;

/// One node's log, read up to `offset`.
struct Log {
    prefix: String,
    path: PathBuf,
    offset: u64,
    /// The beginning of a line whose end is not written yet.
    partial: Vec<u8>,
}

/// Prints the last lines of one node, or of all with their names in front.
pub(crate) async fn run(dir: &SwarmDir, node: Option<&str>, follow: bool, lines: usize) -> Result<ExitCode> {
    let mut logs = logs(dir, node)?;
    let mut out = std::io::stdout().lock();
    let mut tail = Vec::new();
    for log in &mut logs {
        log.offset = std::fs::metadata(&log.path).map_or(0, |meta| meta.len());
        let lines = last_lines(&log.path, lines);
        tail.extend(timed(lines).into_iter().map(|(time, line)| (time, format!("{}{line}", log.prefix))));
    }
    // Stable: lines of one node keep their order.
    tail.sort_by(|a, b| a.0.cmp(&b.0));
    let mut quiet = tail.iter().try_for_each(|(_, line)| writeln!(out, "{line}")).is_err();
    while follow && !quiet {
        for log in &mut logs {
            let text = log.more();
            quiet |= out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err();
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(ExitCode::SUCCESS)
}

fn logs(dir: &SwarmDir, node: Option<&str>) -> Result<Vec<Log>> {
    let all = dir.node_names();
    if all.is_empty() {
        bail!("there are no logs in {}", dir.root().display());
    }
    let log = |name: &str, prefix: String| Log { prefix, path: dir.node_log(name), offset: 0, partial: Vec::new() };
    let Some(node) = node else {
        let width = all.iter().map(String::len).max().unwrap_or_default();
        return Ok(all.iter().map(|name| log(name, format!("{name:<width$} | "))).collect());
    };
    let name = all
        .iter()
        .find(|name| *name == node || name.strip_prefix("node-") == Some(node))
        .with_context(|| format!("no node is called {node}: there are {}", all.join(" ")))?;
    Ok(vec![log(name, String::new())])
}

impl Log {
    /// The whole lines written since the last look, each with the prefix.
    fn more(&mut self) -> String {
        let mut bytes = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            // A shorter file is a new one: the swarm was started afresh.
            if file.metadata()?.len() < self.offset {
                self.offset = 0;
                self.partial.clear();
            }
            file.seek(SeekFrom::Start(self.offset))?;
            file.take(CHUNK).read_to_end(&mut bytes)
        });
        self.offset += read.unwrap_or_default() as u64;
        self.partial.append(&mut bytes);
        let end = self.partial.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let whole: Vec<u8> = self.partial.drain(..end).collect();
        let lines = String::from_utf8_lossy(&whole).into_owned();
        lines.lines().map(|line| format!("{}{line}\n", self.prefix)).collect()
    }
}

/// Lines with the time that each begins with; a line without one belongs to the line before it.
fn timed(lines: Vec<String>) -> Vec<(String, String)> {
    let mut time = String::new();
    let stamp = |line: &str| {
        let first = line.split_whitespace().next()?;
        let like_a_time = first.starts_with("20") && first.contains('T') && first.ends_with('Z');
        like_a_time.then(|| first.to_owned())
    };
    lines
        .into_iter()
        .map(|line| {
            time = stamp(&line).unwrap_or_else(|| time.clone());
            (time.clone(), line)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_a_time_stays_where_it_was() {
        let lines = ["2025-01-01T00:00:02Z INFO a", "  at b", "2025-01-01T00:00:03Z c"];
        let times: Vec<_> = timed(lines.map(str::to_owned).to_vec()).into_iter().map(|(time, _)| time).collect();
        assert_eq!(times, ["2025-01-01T00:00:02Z", "2025-01-01T00:00:02Z", "2025-01-01T00:00:03Z"]);
    }

    #[test]
    fn a_followed_log_comes_in_whole_lines() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("log");
        let mut log = Log { prefix: "n | ".into(), path: path.clone(), offset: 0, partial: Vec::new() };
        assert_eq!(log.more(), "");
        std::fs::write(&path, "one\ntw").unwrap();
        assert_eq!(log.more(), "n | one\n");
        std::fs::write(&path, "one\ntwo\n").unwrap();
        assert_eq!(log.more(), "n | two\n");
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(log.more(), "n | new\n");
    }
}
