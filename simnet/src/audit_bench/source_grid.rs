//! The scheme of the document that this project began with, for comparison: values clamped to 100 either way, times 64,
//! rounded, hashed.

use serde::Serialize;

/// Cells of 1.
const CELLS: f32 = 64.0;
/// Where values are clamped.
const CLAMP: f32 = 100.0;

/// What two blocks look like on the grid.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Likeness {
    /// Every value is in the same cell: the hashes are equal.
    pub equal: bool,
    /// Every value is in the same cell or the next.
    pub within_one_step: bool,
    /// The most cells that lie between two values; infinite where there is no telling.
    pub steps: f32,
}

/// Compares two blocks of values.
pub fn likeness(a: &[f32], b: &[f32]) -> Likeness {
    let cell = |value: f32| (value.clamp(-CLAMP, CLAMP) * CELLS).round();
    let apart = |(a, b): (&f32, &f32)| match (cell(*a) - cell(*b)).abs() {
        steps if steps.is_nan() => f32::INFINITY,
        steps => steps,
    };
    let steps = match a.len() == b.len() {
        true => a.iter().zip(b).map(apart).fold(0.0, f32::max),
        false => f32::INFINITY,
    };
    Likeness { equal: steps == 0.0, within_one_step: steps <= 1.0, steps }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_a_64th_wide() {
        let says = |a: f32, b: f32| {
            let likeness = likeness(&[a], &[b]);
            (likeness.equal, likeness.within_one_step)
        };
        assert_eq!(says(1.0, 1.007), (true, true));
        assert_eq!(says(1.0, 1.009), (false, true));
        assert_eq!(says(1.0, 1.03), (false, false));
        assert_eq!(says(150.0, 4000.0), (true, true));
        // What is below half a cell is nothing to it.
        assert_eq!(says(0.0, 0.0077), (true, true));
        assert_eq!(says(f32::NAN, 1.0), (false, false));
    }
}
