//! How much of what peers keep others keep too.

use super::BLOCK;
use super::aggregate::check;
use super::error::SparseError;
use super::layout::Layout;
use super::message::{Kept, Update};

/// The positions of one block, those with positive values first.
type Places = [[u64; BLOCK / 64]; 2];

/// [`Update::overlap`] of all pairs, at the place of the earlier and then the later: every update is decoded once, side by
/// side with the others. What is not a pair of an earlier and a later is zero.
///
/// # Errors
/// [`SparseError::Aggregate`] without an update, or if one is for another layout.
pub fn overlaps(layout: &Layout, updates: &[&Update]) -> Result<Vec<Vec<f64>>, SparseError> {
    check(layout, updates)?;
    let count = updates.len();
    let mut readers: Vec<_> = updates.iter().map(|u| u.reader()).collect();
    let mut places: Vec<Places> = vec![[[0; BLOCK / 64]; 2]; count];
    let mut common = vec![vec![0u64; count]; count];
    for (tensor, grid) in layout.grids().iter().enumerate() {
        readers.iter_mut().for_each(|r| r.begin(tensor, grid.kept()));
        for block in grid.blocks() {
            for (reader, places) in readers.iter_mut().zip(&mut places) {
                mark(&reader.next(&block), places);
            }
            for (earlier, sums) in common.iter_mut().enumerate() {
                for (later, sum) in sums.iter_mut().enumerate().skip(earlier + 1) {
                    *sum += shared(&places[earlier], &places[later]);
                }
            }
        }
    }
    let part = |sum: u64| sum as f64 / layout.kept().max(1) as f64;
    Ok(common.into_iter().map(|sums| sums.into_iter().map(part).collect()).collect())
}

fn mark(kept: &Kept<'_>, places: &mut Places) {
    *places = [[0; BLOCK / 64]; 2];
    for (place, position) in kept.positions.iter().enumerate() {
        let sign = usize::from(kept.negative >> place & 1 == 1);
        places[sign][usize::from(*position) / 64] |= 1 << (position % 64);
    }
}

fn shared(a: &Places, b: &Places) -> u64 {
    let words = a.iter().flatten().zip(b.iter().flatten());
    words.map(|(a, b)| u64::from((a & b).count_ones())).sum()
}
