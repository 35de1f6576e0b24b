//! Rates with what is known of them.

use serde::Serialize;

/// Errors allowed on each side of an interval of 95 %.
const TAIL: f64 = 0.025;

/// So many out of so many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rate {
    /// How often it was so.
    pub hits: u64,
    /// How often it could have been.
    pub total: u64,
}

impl Rate {
    /// Counts one more.
    pub fn count(&mut self, hit: bool) {
        self.hits += u64::from(hit);
        self.total += 1;
    }

    /// The sum of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { hits: self.hits + other.hits, total: self.total + other.total }
    }

    /// The share; 0 of none.
    pub fn share(self) -> f64 {
        self.hits as f64 / self.total.max(1) as f64
    }

    /// The interval of 95 % of Clopper and Pearson (Biometrika 26, 1934): exact, and rather too wide than too narrow.
    pub fn interval(self) -> (f64, f64) {
        let Self { hits, total } = self;
        let low = match hits {
            0 => 0.0,
            _ => bisect(|p| 1.0 - cumulative(hits - 1, total, p) < TAIL),
        };
        let high = match hits {
            all if all == total => 1.0,
            _ => bisect(|p| cumulative(hits, total, p) > TAIL),
        };
        (low, high)
    }

    /// `12.3 % (11.0 to 13.7)`; a dash where there was nothing to count.
    pub fn percent(self) -> String {
        if self.total == 0 {
            return "-".to_owned();
        }
        let (low, high) = self.interval();
        format!("{} % ({} to {})", figure(100.0 * self.share()), figure(100.0 * low), figure(100.0 * high))
    }
}

/// A percentage with as many decimals as tell something near 0 and near 100.
fn figure(percent: f64) -> String {
    let edge = percent.min(100.0 - percent);
    match edge {
        0.0 => format!("{percent:.0}"),
        e if e < 0.1 => format!("{percent:.3}"),
        e if e < 1.0 => format!("{percent:.2}"),
        _ => format!("{percent:.1}"),
    }
}

/// The largest `p` in `0..1` of which `below` is true, which holds up to some point and not beyond.
fn bisect(below: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if below(middle) { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// Probability of at most `hits` out of `total` at probability `p` each.
fn cumulative(hits: u64, total: u64, p: f64) -> f64 {
    if p <= 0.0 {
        return 1.0;
    }
    if p >= 1.0 {
        return if hits >= total { 1.0 } else { 0.0 };
    }
    // Logarithms of the terms, each from the one before; the largest is taken out so that nothing underflows.
    let step = p.ln() - (-p).ln_1p();
    let mut term = total as f64 * (-p).ln_1p();
    let mut terms = Vec::with_capacity(hits as usize + 1);
    terms.push(term);
    for k in 1..=hits {
        term += ((total - k + 1) as f64 / k as f64).ln() + step;
        terms.push(term);
    }
    let largest = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (largest + terms.iter().map(|term| (term - largest).exp()).sum::<f64>().ln()).exp().min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_tables() {
        let close = |(low, high): (f64, f64), expected: (f64, f64)| {
            assert!((low - expected.0).abs() < 1e-4 && (high - expected.1).abs() < 1e-4, "{low} {high}");
        };
        close(Rate { hits: 0, total: 10_000 }.interval(), (0.0, 0.000_369));
        close(Rate { hits: 5, total: 10 }.interval(), (0.1871, 0.8129));
        close(Rate { hits: 10, total: 10 }.interval(), (0.6915, 1.0));
        close(Rate { hits: 3, total: 1000 }.interval(), (0.000_619, 0.008_742));
    }

    #[test]
    fn rates_are_told() {
        assert_eq!(Rate { hits: 0, total: 10_000 }.percent(), "0 % (0 to 0.037)");
        assert_eq!(Rate::default().percent(), "-");
        assert_eq!(Rate { hits: 1, total: 2 }.and(Rate { hits: 1, total: 2 }).percent(), "50.0 % (6.8 to 93.2)");
    }
}
