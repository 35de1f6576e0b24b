//! Days and times of day in UTC, for people: the proleptic Gregorian calendar, counted in whole days from 1970.

/// Days from 1970-01-01 to a day of the calendar.
fn days_from(year: i64, month: i64, day: i64) -> i64 {
    // Years from March on: the leap day comes last.
    let year = year - i64::from(month <= 2);
    let (era, month) = (year.div_euclid(400), (month + 9) % 12);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Year, month and day that lie so many days after 1970-01-01.
fn day_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

/// A time in milliseconds since 1970 as `2026-11-20T16:05:09Z`.
#[must_use]
pub fn timestamp(at_ms: u64) -> String {
    let seconds = i64::try_from(at_ms / 1000).unwrap_or(i64::MAX);
    let (year, month, day) = day_of(seconds / 86_400);
    let of_day = seconds % 86_400;
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The beginning of a day written `2026-11-20`, in milliseconds since 1970; none for what is no day after 1969.
#[must_use]
pub fn day(text: &str) -> Option<u64> {
    let mut parts = text.splitn(3, '-').map(|part| {
        let digits = !part.is_empty() && part.len() <= 4 && part.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| part.parse::<i64>().ok()).flatten()
    });
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if !(1..=12).contains(&month) {
        return None;
    }
    let days = days_from(year, month, day);
    // A day that the month does not have is another one of the calendar.
    (day_of(days) == (year, month, day)).then_some(days)?.checked_mul(86_400_000)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_is_found_again() {
        let mut last = day_of(-1);
        assert_eq!(last, (1969, 12, 31));
        for days in 0..200_000 {
            let (year, month, day) = day_of(days);
            assert_eq!(days_from(year, month, day), days);
            let follows = (year, month, day) > last && (day == last.2 + 1 || day == 1);
            assert!(follows, "{last:?} {year}-{month}-{day}");
            last = (year, month, day);
        }
    }

    #[test]
    fn days_and_times_are_written_as_people_do() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(951_782_399_000), "2000-02-28T23:59:59Z");
        assert_eq!(timestamp(1_790_000_000_123), "2026-09-21T14:13:20Z");
        assert_eq!(day("2026-09-21"), Some(1_789_948_800_000));
        assert_eq!(day("2000-2-29"), Some(951_782_400_000));
        for bad in
            ["", "2026", "2026-09", "2026-02-29", "2026-13-01", "2026-00-01", "2026-09-31", "1969-12-31", "+1-1-1"]
        {
            assert_eq!(day(bad), None, "{bad}");
        }
        assert!(timestamp(u64::MAX).ends_with('Z'));
    }
}
