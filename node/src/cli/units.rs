//! Numbers in units that people read.

use crate::clock::since_epoch;

/// Bytes in binary units, such as `4.0 GiB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be shown as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// An amount of millisatoshi in sats, such as `1234.5 sat`.
pub(crate) fn sats(msat: i128) -> String {
    let (whole, rest) = (msat.unsigned_abs() / 1000, msat.unsigned_abs() % 1000);
    let sign = if msat < 0 { "-" } else { "" };
    let rest = match rest {
        0 => String::new(),
        _ => format!(".{rest:03}").trim_end_matches('0').to_owned(),
    };
    format!("{sign}{whole}{rest} sat")
}

/// A span in its two largest units, such as `3 h 12 min`.
pub(super) fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min"),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// How long ago a moment was, given in seconds since 1970.
pub(super) fn ago(then_s: u64) -> String {
    match since_epoch().as_secs().saturating_sub(then_s) {
        0..10 => "just now".to_owned(),
        seconds => format!("{} ago", span(seconds)),
    }
}

/// A time given in microseconds, such as `850 µs` or `1.2 ms`.
pub(super) fn micros(count: u32) -> String {
    match count {
        0..1000 => format!("{count} µs"),
        1000..1_000_000 => format!("{:.1} ms", f64::from(count) / 1e3),
        _ => format!("{:.1} s", f64::from(count) / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_humane() {
        let sizes = [0, 1023, 1024, 4 << 20, (1 << 30) - 1, 7 << 30, u64::MAX].map(bytes);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "4.0 MiB", "1.0 GiB", "7.0 GiB", "16777216.0 TiB"]);
        let spans = [0, 59, 60, 3599, 3600, 86_399, 86_400, 200_000].map(span);
        assert_eq!(spans, ["0 s", "59 s", "1 min", "59 min", "1 h 0 min", "23 h 59 min", "1 d 0 h", "2 d 7 h"]);
        assert_eq!([999, 1200, 2_500_000].map(micros), ["999 µs", "1.2 ms", "2.5 s"]);
        assert_eq!([0, 1, -1500, 1_000_020].map(sats), ["0 sat", "0.001 sat", "-1.5 sat", "1000.02 sat"]);
        assert_eq!(ago(u64::MAX), "just now");
        assert!(ago(0).ends_with(" h ago"));
    }
}
