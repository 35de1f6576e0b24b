//! Sixteen lanes, whatever the machine has.
//!
//! A logical vector has 16 lanes and is held in one, two or four registers (AVX-512, AVX2, NEON), or in sixteen scalars.
//! What is computed does not depend on which.

use std::array;

use pulp::Simd;

/// Lanes of a logical vector.
pub(crate) const LANES: usize = 16;

/// A logical vector in `REGS` registers.
pub(crate) type Wide<S, const REGS: usize> = [<S as Simd>::f32s; REGS];

/// All lanes zero.
#[inline(always)]
pub(crate) fn zero<S: Simd, const REGS: usize>(simd: S) -> Wide<S, REGS> {
    [simd.splat_f32s(0.0); REGS]
}

/// `a * b + c` with one rounding.
#[inline(always)]
pub(crate) fn fused<S: Simd, const REGS: usize>(
    simd: S,
    a: &Wide<S, REGS>,
    b: &Wide<S, REGS>,
    c: &Wide<S, REGS>,
) -> Wide<S, REGS> {
    array::from_fn(|reg| simd.mul_add_f32s(a[reg], b[reg], c[reg]))
}

/// The logical vector that starts at element `16 * index` of `slice`.
#[inline(always)]
pub(crate) fn load<S: Simd, const REGS: usize>(slice: &[f32], index: usize) -> Wide<S, REGS> {
    let (registers, _) = S::as_simd_f32s(&slice[index * LANES..(index + 1) * LANES]);
    array::from_fn(|reg| registers[reg])
}

/// Writes a logical vector to element `16 * index` of `slice`.
#[inline(always)]
pub(crate) fn store<S: Simd, const REGS: usize>(wide: &Wide<S, REGS>, slice: &mut [f32], index: usize) {
    let (registers, _) = S::as_mut_simd_f32s(&mut slice[index * LANES..(index + 1) * LANES]);
    registers[..REGS].copy_from_slice(wide);
}

/// The sum of all lanes, by one tree.
#[inline(always)]
pub(crate) fn sum<S: Simd, const REGS: usize>(wide: &Wide<S, REGS>) -> f32 {
    let mut lanes = [0.0; LANES];
    store::<S, REGS>(wide, &mut lanes, 0);
    tree_sum(&lanes)
}

/// The sum of sixteen numbers, by one tree.
#[inline(always)]
pub(crate) fn tree_sum(lanes: &[f32; LANES]) -> f32 {
    let eight: [f32; 8] = array::from_fn(|i| lanes[i] + lanes[i + 8]);
    let four: [f32; 4] = array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}
