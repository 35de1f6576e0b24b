//! Norm and activation, row by row.

use candle_core::{D, Result, Tensor};
use rayon::prelude::*;

use super::simd::{LANES, tree_sum};
use super::{Kernels, elements};

/// Elements below which a second thread is not worth it.
const SEQUENTIAL: usize = 1 << 14;

/// `x` divided by the root of its mean square, times `weight`, for every row.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32, kernels: Kernels) -> Result<Tensor> {
    if kernels != Kernels::Own {
        return kernels.round(candle_nn::ops::rms_norm(x, weight, eps)?);
    }
    let (input, weights) = (elements(x), elements(weight));
    let (values, weights) = (input.as_slice()?, weights.as_slice()?);
    let mut out = vec![0.0; values.len()];
    for (row, out) in values.chunks_exact(weights.len()).zip(out.chunks_exact_mut(weights.len())) {
        let mut lanes = [0.0; LANES];
        for chunk in row.chunks(LANES) {
            chunk.iter().zip(&mut lanes).for_each(|(v, lane)| *lane += v * v);
        }
        let scale = 1.0 / (tree_sum(&lanes) / row.len() as f32 + eps).sqrt();
        for ((out, value), weight) in out.iter_mut().zip(row).zip(weights) {
            *out = value * scale * weight;
        }
    }
    Tensor::from_vec(out, x.shape(), x.device())
}

/// `silu(gate) * up` for rows that hold the gate, then the up projection, `width` elements each.
pub(crate) fn swiglu(gate_up: &Tensor, width: usize, kernels: Kernels) -> Result<Tensor> {
    if kernels != Kernels::Own {
        let gate = kernels.round(candle_nn::ops::silu(&gate_up.narrow(D::Minus1, 0, width)?.contiguous()?)?)?;
        return kernels.round((gate * gate_up.narrow(D::Minus1, width, width)?)?);
    }
    let input = elements(gate_up);
    let values = input.as_slice()?;
    let mut out = vec![0.0; values.len() / 2];
    let row = |(row, out): (&[f32], &mut [f32])| {
        let (gate, up) = row.split_at(width);
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate / (1.0 + exp(-gate)) * up;
        }
    };
    if values.len() < SEQUENTIAL {
        values.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)).for_each(row);
    } else {
        values.par_chunks_exact(2 * width).zip(out.par_chunks_exact_mut(width)).for_each(row);
    }
    Tensor::from_vec(out, (values.len() / (2 * width), width), gate_up.device())
}

/// The exponential function in plain f32 operations, so that it is the same on every machine; within two units in the
/// last place. Below -87.3 it is about 1e-38 rather than less, above 88.3 it is infinite.
///
/// Range reduction to half a binary logarithm and a polynomial of degree 6, after Cephes (S. Moshier, `expf`).
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Adding and subtracting it rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    if x > 88.3 {
        return f32::INFINITY;
    }
    let x = if x < -87.3 { -87.3 } else { x };
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = x - n * 0.693_359_375 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_15e-4_f32;
    for coefficient in [1.398_199_95e-3, 8.333_451_91e-3, 4.166_579_59e-2, 1.666_666_55e-1, 0.5] {
        p = p * r + coefficient;
    }
    let p = p * r * r + r + 1.0;
    p * f32::from_bits(((n as i32 + 127) << 23) as u32)
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exp_is_accurate() {
        let mut worst = 0.0_f64;
        for step in -870_000..880_000 {
            let x = step as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.4e-7, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NEG_INFINITY) < 1.3e-38 && exp(-1e30) > 0.0);
        assert!(exp(f32::NAN).is_nan());
    }
}
