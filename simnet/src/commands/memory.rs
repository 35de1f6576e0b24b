//! What a process keeps in memory, where the system tells it.

/// Bytes of a process that are in memory now; none where the system does not tell, or there is no such process.
pub(crate) fn resident(pid: u32) -> Option<u64> {
    kibibytes(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)?.checked_mul(1024)
}

/// The line `VmRSS:   1234 kB`.
fn kibibytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_read() {
        assert_eq!(kibibytes("Name:\tx\nVmRSS:\t   21504 kB\nThreads:\t5\n"), Some(21_504));
        assert_eq!(kibibytes("Name:\tx\n"), None, "a process that has ended");
        #[cfg(target_os = "linux")]
        assert!(resident(std::process::id()).unwrap() > 1 << 20);
    }
}
