//! Processor time of processes, from `/proc/PID/stat`.

/// Ticks of a second in `/proc`: Linux shows user space 100 on every architecture it shares with us.
const TICKS: f64 = 100.0;

/// Seconds of processor time that the processes have used since they started; none where `/proc` does not tell.
pub(crate) fn seconds(pids: &[u32]) -> Option<f64> {
    let ticks = pids.iter().map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        used(&stat)
    });
    Some(ticks.sum::<Option<u64>>()? as f64 / TICKS)
}

/// User and system time: the fields 14 and 15, of which the second, the name, may hold blanks.
fn used(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = "17 (a ) b) S 1 17 17 0 -1 4194560 1 0 0 0 250 31 0 0 20 0 1 0 100 0 0";
        assert_eq!(used(stat), Some(281));
        assert_eq!(used("17 (a)"), None);
    }
}
