//! SparseLoCo as its formulas stand in the papers: dense, slow and obvious. Tests and benches hold the real thing against it.

use super::{FEEDBACK, OUTER_RATE};

/// The blocks of a tensor as lists of elements: 64 x 64 of a matrix, runs of 4096 of a vector.
#[must_use]
pub fn blocks(shape: &[usize]) -> Vec<Vec<usize>> {
    let (rows, columns, height, width) = match *shape {
        [rows, columns] => (rows, columns, 64, 64),
        _ => (1, shape.iter().product(), 1, 4096),
    };
    let mut all = Vec::new();
    for top in (0..rows).step_by(height) {
        for left in (0..columns).step_by(width) {
            let mut block = Vec::new();
            for row in top..rows.min(top + height) {
                block.extend((left..columns.min(left + width)).map(|column| row * columns + column));
            }
            all.push(block);
        }
    }
    all
}

/// `a = beta e + delta`.
#[must_use]
pub fn accumulate(error: &[f32], delta: &[f32]) -> Vec<f32> {
    error.iter().zip(delta).map(|(e, d)| FEEDBACK * e + d).collect()
}

/// The elements that are kept of a tensor, rising in each block: the largest 64th of each by magnitude, the first of equals.
#[must_use]
pub fn top_k(values: &[f32], shape: &[usize]) -> Vec<usize> {
    let mut kept = Vec::new();
    for mut block in blocks(shape) {
        let count = block.len().div_ceil(64);
        block.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
        block.truncate(count);
        block.sort_unstable();
        kept.extend(block);
    }
    kept
}

/// The two-bit quantiser of the published code: centred, four steps over six standard deviations, each level the mean of
/// what fell into it. Gives for every value its code and what is received for it.
#[must_use]
pub fn quantize(values: &[f32]) -> Vec<(u8, f64)> {
    let count = values.len() as f64;
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / count;
    let centred: Vec<f64> = values.iter().map(|v| f64::from(*v) - mean).collect();
    let deviation = (centred.iter().map(|c| c * c).sum::<f64>() / (count - 1.0)).sqrt();
    let step = if deviation > 0.0 { 6.0 * deviation / 4.0 } else { 1.0 };
    let codes: Vec<u8> = centred.iter().map(|c| (c / step + 2.0).round_ties_even().clamp(0.0, 3.0) as u8).collect();
    let level = |code: u8| {
        let of_code: Vec<f64> = centred.iter().zip(&codes).filter(|(_, c)| **c == code).map(|(v, _)| *v).collect();
        of_code.iter().sum::<f64>() / of_code.len().max(1) as f64 + mean
    };
    let levels = [0, 1, 2, 3].map(level);
    codes.into_iter().map(|c| (c, levels[usize::from(c)])).collect()
}

/// The Euclidean norm of a tensor.
#[must_use]
pub fn norm(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt()
}

/// The mean over all peers of one tensor, each first scaled down to the lower median of the norms.
#[must_use]
pub fn mean(updates: &[Vec<f32>]) -> Vec<f64> {
    let norms: Vec<f64> = updates.iter().map(|u| norm(u)).collect();
    let mut sorted = norms.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[(sorted.len() - 1) / 2];
    let mut sum = vec![0f64; updates[0].len()];
    for (update, norm) in updates.iter().zip(norms) {
        let factor = if norm > median { median / norm } else { 1.0 };
        sum.iter_mut().zip(update).for_each(|(s, u)| *s += factor * f64::from(*u));
    }
    sum.into_iter().map(|s| s / updates.len() as f64).collect()
}

/// `theta <- theta - alpha mean`.
#[must_use]
pub fn outer_step(parameters: &[f32], mean: &[f64]) -> Vec<f64> {
    parameters.iter().zip(mean).map(|(p, m)| f64::from(*p) - f64::from(OUTER_RATE) * m).collect()
}
