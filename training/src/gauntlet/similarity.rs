//! Updates that are too much like others.

use super::score::median;

/// No honest population was seen to overlap more.
const MOST_USUAL: f64 = 0.5;

/// Which of `count` updates are copies, given the overlap of each pair, from 0 to 1; see
/// [`crate::sparseloco::overlaps`]. Updates are in the order in which they were committed to: of two alike the later
/// is the copy.
///
/// Honest peers overlap too, much in the first rounds (44 % were seen) and little later (9 %), so no fixed limit serves.
/// The limit lies halfway between the median over all pairs and identity.
#[must_use]
pub fn copies(count: usize, overlap: impl Fn(usize, usize) -> f64) -> Vec<bool> {
    let pairs = || (0..count).flat_map(|later| (0..later).map(move |earlier| (earlier, later)));
    let overlaps: Vec<f64> = pairs().map(|(a, b)| overlap(a, b)).collect();
    // Where more than half of all pairs are alike, copies would pass for what is usual.
    let usual = median(&overlaps).clamp(0.0, MOST_USUAL);
    let limit = (1.0 + usual) / 2.0;
    let mut copied = vec![false; count];
    for ((_, later), overlap) in pairs().zip(&overlaps) {
        copied[later] |= *overlap > limit;
    }
    copied
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sparseloco::{Layout, Update, compress};

    #[test]
    fn exploit_of_fixed_limits_honest_peers_of_a_first_round_are_not_accused() {
        assert_eq!(copies(5, |a, b| 0.42 + 0.01 * (a + b) as f64 / 2.0), [false; 5]);
    }

    #[test]
    fn a_copy_is_found_early_and_late_in_a_run_and_it_is_the_later_one() {
        for usual in [0.44, 0.09, 0.016] {
            let found = copies(5, |a, b| if (a, b) == (1, 4) { 0.8 } else { usual });
            assert_eq!(found, [false, false, false, false, true], "{usual}");
        }
    }

    #[test]
    fn copies_in_the_majority_are_copies_all_the_same() {
        assert_eq!(copies(4, |_, _| 1.0), [false, true, true, true]);
        assert_eq!(copies(2, |_, _| 0.99), [false, true]);
        assert!(copies(0, |_, _| 1.0).is_empty());
    }

    #[test]
    fn overlap_counts_elements_of_equal_sign() {
        let layout = Layout::new(&[vec![64 * 4]]).unwrap();
        let of = |values: [f32; 4]| {
            let mut delta = layout.zeros();
            delta[0][..4].copy_from_slice(&values);
            delta[0][4..6].copy_from_slice(&[0.5, 0.5]);
            Update::read(&layout, compress(&layout, &mut layout.zeros(), &delta).unwrap()).unwrap()
        };
        let (a, b) = (of([1.0, 1.0, 1.0, 1.0]), of([-1.0, 1.0, 0.1, 1.0]));
        assert!((a.overlap(&a).unwrap() - 1.0).abs() < 1e-12);
        assert!((a.overlap(&b).unwrap() - 0.5).abs() < 1e-12);
    }
}
