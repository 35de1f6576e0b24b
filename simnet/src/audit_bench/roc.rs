//! How detection trades against false alarms.

/// Detection against false alarms, from no alarm at all on: `(false positives, detected)`, both shares.
pub fn curve(honest: &[f64], cheats: &[f64]) -> Vec<(f64, f64)> {
    let sorted = |scores: &[f64]| {
        let mut scores = scores.to_vec();
        scores.sort_unstable_by(|a, b| b.total_cmp(a));
        scores
    };
    let (honest, cheats) = (sorted(honest), sorted(cheats));
    let above = |scores: &[f64], threshold: f64| scores.partition_point(|score| *score > threshold);
    let share = |count: usize, all: &[f64]| count as f64 / all.len().max(1) as f64;
    let mut points = Vec::new();
    let mut thresholds = honest.clone();
    thresholds.dedup();
    // A threshold at every honest score, so that it raises no alarm and those above it do.
    for threshold in thresholds {
        points.push((share(above(&honest, threshold), &honest), share(above(&cheats, threshold), &cheats)));
    }
    points.push((1.0, 1.0));
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apart_and_alike() {
        assert_eq!(curve(&[0.1, 0.2], &[3.0, 0.9]), [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0)]);
        assert_eq!(curve(&[0.1, 0.2], &[0.15, 0.05]), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)]);
        assert_eq!(curve(&[0.0, 0.0], &[0.0, 1.0]), [(0.0, 0.5), (1.0, 1.0)]);
    }
}
