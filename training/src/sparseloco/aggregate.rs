//! From messages to the next parameters, to the bit the same on all machines.
//!
//! Every operation here is an IEEE 754 addition, multiplication, division or square root of single numbers in a fixed
//! order, each rounded by itself: no fused multiply-add, no reassociation, no library function. The messages must be in the
//! order of the round record.

use super::OUTER_RATE;
use super::error::SparseError;
use super::layout::Layout;
use super::message::Update;

impl Update {
    /// The Euclidean norm of every tensor.
    #[must_use]
    pub fn norms(&self) -> Vec<f64> {
        self.levels().iter().zip(self.layout().grids()).map(|(l, g)| l.square(g.kept()).sqrt()).collect()
    }

    /// The part of what is kept, from 0 to 1, that another update keeps too, with the same sign.
    ///
    /// # Errors
    /// [`SparseError::Aggregate`] if the other is for another layout.
    pub fn overlap(&self, other: &Self) -> Result<f64, SparseError> {
        check(self.layout(), &[other])?;
        let (mut ours, mut theirs, mut common) = (self.reader(), other.reader(), 0u64);
        for (tensor, grid) in self.layout().grids().iter().enumerate() {
            ours.begin(tensor, grid.kept());
            theirs.begin(tensor, grid.kept());
            for block in grid.blocks() {
                let (a, b) = (ours.next(&block), theirs.next(&block));
                for (place, position) in a.positions.iter().enumerate() {
                    let same = |at: usize| (a.negative >> place ^ b.negative >> at) & 1 == 0;
                    common += u64::from(b.positions.binary_search(position).is_ok_and(same));
                }
            }
        }
        Ok(common as f64 / self.layout().kept().max(1) as f64)
    }

    /// Calls `visit` with tensor, element and value of all that the update holds, in order.
    pub fn for_each(&self, mut visit: impl FnMut(usize, usize, f32)) {
        let mut reader = self.reader();
        for ((tensor, grid), levels) in self.layout().grids().iter().enumerate().zip(self.levels()) {
            reader.begin(tensor, grid.kept());
            let values = Signed::new(levels.low, levels.high);
            for block in grid.blocks() {
                let kept = reader.next(&block);
                for (place, position) in kept.positions.iter().enumerate() {
                    visit(tensor, block.element(*position), values.of(kept.negative >> place, kept.high >> place));
                }
            }
        }
    }
}

/// The four values of a tensor.
#[derive(Clone, Copy, Debug)]
struct Signed([f32; 4]);

impl Signed {
    fn new(low: f32, high: f32) -> Self {
        Self([low, -low, high, -high])
    }

    /// By the lowest bits of both numbers.
    fn of(&self, negative: u64, high: u64) -> f32 {
        self.0[(negative & 1 | (high & 1) << 1) as usize]
    }
}

/// The median over peers of every tensor's norm: of an even number the lower one, as `torch.median` has it.
///
/// # Errors
/// [`SparseError::Aggregate`] without an update, or if one is for another layout.
pub fn median_norms(layout: &Layout, updates: &[&Update]) -> Result<Vec<f64>, SparseError> {
    check(layout, updates)?;
    let norms: Vec<Vec<f64>> = updates.iter().map(|u| u.norms()).collect();
    let median = |tensor: usize| {
        let mut all: Vec<f64> = norms.iter().map(|n| n[tensor]).collect();
        all.sort_by(f64::total_cmp);
        all[(all.len() - 1) / 2]
    };
    Ok((0..layout.grids().len()).map(median).collect())
}

/// Refuses an empty round, and updates of other layouts.
pub(super) fn check(layout: &Layout, updates: &[&Update]) -> Result<(), SparseError> {
    let sound = !updates.is_empty() && updates.iter().all(|u| u.layout().tag() == layout.tag());
    if sound { Ok(()) } else { Err(SparseError::Aggregate) }
}

/// The mean over all peers of their updates, each tensor of each clipped to the median norm, written over `mean`.
///
/// Where a peer sent nothing its value counts as zero, as in the paper: the reference code divides by the number of peers
/// that sent something there. `medians` are those of the round record, see [`median_norms`]. `mean` is the only memory of
/// any size: messages are decoded side by side, block by block.
///
/// # Errors
/// [`SparseError::Sizes`] or [`SparseError::Aggregate`]; nothing is changed then.
pub fn aggregate(
    layout: &Layout,
    updates: &[&Update],
    medians: &[f64],
    mean: &mut [Vec<f32>],
) -> Result<(), SparseError> {
    layout.fits(mean)?;
    check(layout, updates)?;
    if medians.len() != mean.len() || !medians.iter().all(|m| m.is_finite() && *m >= 0.0) {
        return Err(SparseError::Aggregate);
    }
    let mut readers: Vec<_> = updates.iter().map(|u| u.reader()).collect();
    for (tensor, (grid, mean)) in layout.grids().iter().zip(mean).enumerate() {
        let kept = grid.kept();
        let scaled = |u: &&Update| {
            let levels = u.levels()[tensor];
            let factor = clip(levels.square(kept).sqrt(), medians[tensor]);
            let scale = |level: f32| (f64::from(level) * factor / updates.len() as f64) as f32;
            Signed::new(scale(levels.low), scale(levels.high))
        };
        let values: Vec<Signed> = updates.iter().map(scaled).collect();
        readers.iter_mut().for_each(|r| r.begin(tensor, kept));
        mean.fill(0.0);
        for block in grid.blocks() {
            for (reader, values) in readers.iter_mut().zip(&values) {
                let kept = reader.next(&block);
                let (mut negative, mut high) = (kept.negative, kept.high);
                for position in kept.positions {
                    mean[block.element(*position)] += values.of(negative, high);
                    (negative, high) = (negative >> 1, high >> 1);
                }
            }
        }
    }
    Ok(())
}

/// What a tensor of this norm is multiplied by so that its norm is at most the median.
fn clip(norm: f64, median: f64) -> f64 {
    if norm > median { median / norm } else { 1.0 }
}

/// The outer step: takes the mean update off the parameters, at a rate of one.
///
/// # Errors
/// [`SparseError::Sizes`] if either has other tensors than the layout.
pub fn outer_step(layout: &Layout, parameters: &mut [Vec<f32>], mean: &[Vec<f32>]) -> Result<(), SparseError> {
    layout.fits(parameters)?;
    layout.fits(mean)?;
    for (p, m) in parameters.iter_mut().flatten().zip(mean.iter().flatten()) {
        *p -= OUTER_RATE * m;
    }
    Ok(())
}
