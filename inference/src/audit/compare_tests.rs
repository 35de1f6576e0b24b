use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

const WIDTH: usize = 96;

fn noise(rng: &mut ChaCha8Rng, count: usize, size: f32) -> Vec<f32> {
    (0..count).map(|_| size * 1.732 * rng.random_range(-1.0..1.0_f32)).collect()
}

fn add(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// Rows, and two recomputations that each round at random.
fn setting(rows: usize, rounding: f32) -> (ChaCha8Rng, Vec<f32>, Vec<f32>, Vec<f32>) {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let truth = noise(&mut rng, rows * WIDTH, 3.0);
    let matching = add(&truth, &noise(&mut rng, truth.len(), rounding));
    (rng, truth.clone(), matching, truth)
}

fn limits() -> PairLimits {
    let limits = |pass, fraud| Limits { pass, fraud };
    PairLimits {
        near: limits(1.5, 1.7),
        far: limits(1.1, 1.2),
        worst: limits(2.5, 4.0),
        job_near: limits(1.45, 1.5),
        job_far: limits(1.05, 1.1),
        systematic: limits(0.1, 0.2),
        margin: limits(0.1, 0.2),
    }
}

#[test]
fn the_unit_is_the_drift_of_rounding() {
    let (mut rng, truth, matching, reference) = setting(70, 0.02);
    let honest = add(&truth, &noise(&mut rng, truth.len(), 0.02));
    let recomputed = Recomputed { matching: &matching, reference: Some(&reference) };
    let job = compare(&honest, recomputed, WIDTH).unwrap();
    assert_eq!(job.blocks.iter().map(|b| b.rows).collect::<Vec<_>>(), [32, 32, 6]);
    for block in &job.blocks {
        assert!((block.far - 1.0).abs() < 0.05 && (block.near - std::f64::consts::SQRT_2).abs() < 0.08, "{block:?}");
        assert!((block.error - 0.0094).abs() < 0.001, "{block:?}");
        assert!((block.median / block.mean - 0.85).abs() < 0.2 && block.p99 < block.max && block.cosine > 0.9999);
    }
    assert!(job.systematic.abs() < 0.1);
    assert_eq!(limits().judge(&job), Finding::Pass);
    // A further error of the size of the rounding.
    let cheat = add(&honest, &noise(&mut rng, honest.len(), 0.02));
    let job = compare(&cheat, recomputed, WIDTH).unwrap();
    assert!(job.blocks.iter().all(|block| (block.far - std::f64::consts::SQRT_2).abs() < 0.07));
    assert_eq!(limits().judge(&job), Finding::Fraud);
}

#[test]
fn a_linear_error_is_systematic_and_proves_nothing() {
    let (mut rng, truth, matching, reference) = setting(64, 0.02);
    let map = noise(&mut rng, WIDTH * WIDTH, 0.003 / (WIDTH as f32).sqrt());
    let moved: Vec<f32> = truth
        .chunks(WIDTH)
        .flat_map(|row| {
            map.chunks(WIDTH).map(|m| m.iter().zip(row).map(|(m, x)| m * x).sum::<f32>()).collect::<Vec<_>>()
        })
        .collect();
    let job = compare(&add(&matching, &moved), Recomputed { matching: &matching, reference: Some(&reference) }, WIDTH);
    let job = job.unwrap();
    assert!(job.systematic > 0.7, "{}", job.systematic);
    assert_eq!(limits().judge(&job), Finding::Inconclusive);
}

#[test]
fn equal_bits_pass_and_the_least_change_of_weights_does_not() {
    let (_, truth, ..) = setting(32, 0.0);
    let exact = compare(&truth, Recomputed { matching: &truth, reference: None }, WIDTH).unwrap();
    assert_eq!((exact.exact(), exact.near, exact.systematic), (1, 0.0, 0.0));
    let block = exact.blocks[0];
    assert!(block.exact && block.cosine == 1.0 && block.exponents == 0.0 && block.max == 0.0);
    let moved: Vec<f32> = truth.iter().map(|v| v * 1.001).collect();
    let job = compare(&moved, Recomputed { matching: &truth, reference: None }, WIDTH).unwrap();
    assert!((job.near - 1000.0).abs() < 1.0 && job.far == job.near, "{job:?}");
}

#[test]
fn what_is_no_number_is_fraud_unless_expected() {
    let (_, truth, matching, reference) = setting(40, 0.02);
    for value in [f32::NAN, f32::INFINITY] {
        let mut forged = truth.clone();
        forged[33 * WIDTH] = value;
        let job = compare(&forged, Recomputed { matching: &matching, reference: Some(&reference) }, WIDTH).unwrap();
        assert!(!job.blocks[0].broken && job.blocks[1].broken);
        assert_eq!(limits().judge(&job), Finding::Fraud);
        let expected = compare(&forged, Recomputed { matching: &forged, reference: None }, WIDTH).unwrap();
        assert_eq!(limits().judge(&expected), Finding::Pass);
    }
    // A row that overflows for the auditor too tells nothing, and the others count.
    let (mut overflowed, mut also) = (truth.clone(), matching.clone());
    (overflowed[WIDTH], overflowed[WIDTH + 5], also[WIDTH]) = (f32::INFINITY, f32::NAN, f32::INFINITY);
    let job = compare(&overflowed, Recomputed { matching: &also, reference: Some(&reference) }, WIDTH).unwrap();
    assert!(!job.blocks[0].broken && job.near.is_finite() && job.far < 1.1 && job.blocks[0].p99 < 1.0, "{job:?}");
    // Zeros against something, and something against zeros.
    let zeros = vec![0.0; truth.len()];
    for (observed, matching) in [(&zeros, &truth), (&truth, &zeros)] {
        let job = compare(observed, Recomputed { matching, reference: None }, WIDTH).unwrap();
        assert_eq!(limits().judge(&job), Finding::Fraud);
    }
}

#[test]
fn one_forged_row_is_seen() {
    let (mut rng, truth, matching, reference) = setting(32, 0.02);
    let mut forged = add(&truth, &noise(&mut rng, truth.len(), 0.02));
    forged[5 * WIDTH..6 * WIDTH].iter_mut().for_each(|v| *v *= 1.1);
    let job = compare(&forged, Recomputed { matching: &matching, reference: Some(&reference) }, WIDTH).unwrap();
    assert!(job.blocks[0].worst > 10.0);
    assert_eq!(limits().judge(&job), Finding::Fraud);
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    for (observed, matching, width) in [(5, 5, 2), (4, 6, 2), (4, 4, 0)] {
        let (observed, matching) = (vec![0.0; observed], vec![0.0; matching]);
        assert!(compare(&observed, Recomputed { matching: &matching, reference: None }, width).is_err());
    }
}
