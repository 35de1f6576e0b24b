//! Two bits for a value: its sign, and which of two magnitudes of its tensor.

use super::RATE_WEIGHT;

/// The two magnitudes of a tensor's update.
///
/// They are `f32` of which the upper half is sent: eight bits of precision, an error of 2^-8 at most, next to nothing
/// beside that of two levels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Levels {
    /// The smaller, of most values.
    pub(super) low: f32,
    /// The larger; equal to the smaller if no value has it.
    pub(super) high: f32,
    /// How many values have the larger.
    pub(super) highs: u64,
}

/// How magnitudes were divided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Division {
    pub(super) levels: Levels,
    /// Magnitudes from here on are high.
    pub(super) threshold: f32,
}

impl Levels {
    /// The square of the Euclidean norm of an update with `kept` values; the same number on all machines: levels have eight
    /// bits, so their squares and the products with counts are exact, and only the sum is rounded.
    pub(super) fn square(&self, kept: u64) -> f64 {
        let square = |level: f32, count: u64| f64::from(level) * f64::from(level) * count as f64;
        square(self.low, kept - self.highs) + square(self.high, self.highs)
    }
}

/// Divides rising `magnitudes` into low and high so that squared error plus weighted bits are least.
///
/// For a given division the best levels are the means of both parts (Lloyd, "Least squares quantization in PCM", 1982);
/// the error then follows from sums alone, and every division of the sorted values is tried: the result is the global
/// optimum, not one of the iteration's fixed points. The rate is the entropy of the division and the bytes of the second
/// level (Chou, Lookabaugh, Gray, "Entropy-constrained vector quantization", 1989).
pub(super) fn divide(magnitudes: &[f32]) -> Division {
    let count = magnitudes.len() as f64;
    let (sum, energy) = magnitudes.iter().fold((0f64, 0f64), |(s, q), m| {
        let m = f64::from(*m);
        (s + m, q + m * m)
    });
    let price = RATE_WEIGHT * energy / count;
    let mut best = (energy - sum * sum / count, 0, sum);
    let mut below = 0f64;
    for (n, pair) in (1..).zip(magnitudes.windows(2)) {
        below += f64::from(pair[0]);
        if pair[0] == pair[1] {
            continue;
        }
        let (n_low, n_high, above) = (f64::from(n), count - f64::from(n), sum - below);
        let error = energy - below * below / n_low - above * above / n_high;
        let bits = 16.0 + n_low * (count / n_low).log2() + n_high * (count / n_high).log2();
        if error + price * bits < best.0 {
            best = (error + price * bits, n as usize, below);
        }
    }
    let (_, n, below) = best;
    let (low, high) = (shorten(below / n as f64), shorten((sum - below) / (count - n as f64)));
    // A part may be empty, and levels too small or too close for their eight bits are one.
    if n == 0 || low >= high {
        let low = shorten(sum / count);
        return Division { levels: Levels { low, high: low, highs: 0 }, threshold: f32::INFINITY };
    }
    Division { levels: Levels { low, high, highs: (magnitudes.len() - n) as u64 }, threshold: magnitudes[n] }
}

/// The nearest `f32` whose lower half is zero, at most the largest finite one.
fn shorten(value: f64) -> f32 {
    let bits = (value as f32).to_bits();
    let upper = (bits >> 16) + (bits >> 15 & 1);
    f32::from_bits(upper.min(0x7f7f) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_clusters_are_found() {
        let mut magnitudes = vec![1.0; 900];
        magnitudes.extend([4.0; 100]);
        let division = divide(&magnitudes);
        assert_eq!(division, Division { levels: Levels { low: 1.0, high: 4.0, highs: 100 }, threshold: 4.0 });
        assert!((division.levels.square(1000) - 2500.0).abs() < 1e-9);
    }

    #[test]
    fn what_costs_more_than_it_saves_is_not_divided() {
        for magnitudes in [vec![0.0; 5], vec![3.0], vec![1.0, 1.001, 1.002], vec![0.0, 0.0, 1e-45]] {
            let levels = divide(&magnitudes).levels;
            assert_eq!((levels.highs, levels.low), (0, levels.high));
        }
    }

    #[test]
    fn levels_are_short_and_finite() {
        for value in [0.0, 1e-45, 1e-38, 0.1, 1.0 / 3.0, 3e5, f64::from(f32::MAX), 1e300] {
            let level = shorten(value);
            assert!(level.is_finite() && level.to_bits() & 0xffff == 0);
            let near = (f64::from(level) - value).abs() <= value / 256.0 + 1e-40;
            assert!(near || value > 3e38, "{value} became {level}");
        }
    }
}
