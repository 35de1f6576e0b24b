//! How tensors are cut into blocks, and how many values of a block are kept.

use std::sync::Arc;

use super::error::SparseError;
use super::subset::SplitTables;
use super::{BLOCK, BLOCK_SIDE, DENSITY};

/// Most elements of one tensor: kept values must stay well within the range coder's precision.
const MOST_ELEMENTS: usize = 1 << 31;

/// The blocks of a model's tensors; a pure function of their shapes, which all peers know from the run's specification.
/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Layout {
    tensors: Arc<[Grid]>,
    tag: [u8; 8],
    splits: Arc<SplitTables>,
}

/// One tensor as a matrix in row-major order, and the size of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    rows: usize,
    columns: usize,
    block_rows: usize,
    block_columns: usize,
}

/// A rectangle of a tensor. Positions in it count row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// First element in the tensor.
    pub(super) offset: usize,
    /// Elements of the tensor between two rows.
    pub(super) stride: usize,
    /// Rows of the block.
    pub(super) rows: usize,
    /// Columns of the block.
    pub(super) columns: usize,
}

impl Block {
    /// Elements in the block, at most [`BLOCK`].
    pub(super) fn size(&self) -> usize {
        self.rows * self.columns
    }

    /// Values kept of the block, at most [`super::KEPT`].
    pub(super) fn kept(&self) -> usize {
        kept_of(self.size())
    }

    /// The element of the tensor at a position of the block.
    pub(super) fn element(&self, position: u16) -> usize {
        let (position, columns) = (usize::from(position), self.columns);
        // All but the blocks at the edge are this wide, and a shift is much faster than a division.
        let (row, column) = match columns {
            BLOCK_SIDE => (position / BLOCK_SIDE, position % BLOCK_SIDE),
            _ => (position / columns, position % columns),
        };
        self.offset + row * self.stride + column
    }
}

/// How many values are kept of a block of `size` elements: one of 64, rounded up.
///
/// The paper speaks of whole chunks only. The reference code shrinks the chunk to a divisor of the dimension and keeps 64
/// values of however few, so that a dimension that is a prime is sent whole; here a block at the edge is as dense as others.
#[must_use]
pub fn kept_of(size: usize) -> usize {
    size.div_ceil(DENSITY)
}

impl Grid {
    fn new(tensor: usize, shape: &[usize]) -> Result<Self, SparseError> {
        let refuse = |reason| Err(SparseError::Shape { tensor, reason });
        let (rows, columns, block_rows, block_columns) = match *shape {
            [columns] => (1, columns, 1, BLOCK),
            [rows, columns] => (rows, columns, BLOCK_SIDE, BLOCK_SIDE),
            _ => return refuse("it is neither a vector nor a matrix"),
        };
        match rows.checked_mul(columns) {
            None | Some(0) => refuse("it has no elements, or more than can be counted"),
            Some(count) if count > MOST_ELEMENTS => refuse("it is too large"),
            Some(_) => Ok(Self { rows, columns, block_rows, block_columns }),
        }
    }

    /// Elements of the tensor.
    pub(super) fn elements(&self) -> usize {
        self.rows * self.columns
    }

    /// Values kept of the whole tensor.
    pub(super) fn kept(&self) -> u64 {
        let across = self.sizes(self.columns, self.block_columns);
        let down = self.sizes(self.rows, self.block_rows);
        down.iter().flat_map(|d| across.iter().map(move |a| d.1 * a.1 * kept_of(d.0 * a.0) as u64)).sum()
    }

    /// The lengths of blocks along one side, with how often each occurs.
    fn sizes(&self, length: usize, block: usize) -> [(usize, u64); 2] {
        [(block, (length / block) as u64), (length % block, u64::from(!length.is_multiple_of(block)))]
    }

    /// Distinct sizes of the tensor's blocks.
    fn block_sizes(&self) -> impl Iterator<Item = usize> + use<> {
        let (across, down) = (self.sizes(self.columns, self.block_columns), self.sizes(self.rows, self.block_rows));
        down.into_iter()
            .flat_map(move |d| across.into_iter().map(move |a| (d.0 * a.0, d.1 * a.1)))
            .filter_map(|(size, count)| (count > 0).then_some(size))
    }

    /// The blocks, row by row of blocks.
    pub(super) fn blocks(self) -> impl Iterator<Item = Block> {
        let Self { rows, columns, block_rows, block_columns } = self;
        (0..rows).step_by(block_rows).flat_map(move |row| {
            (0..columns).step_by(block_columns).map(move |column| Block {
                offset: row * columns + column,
                stride: columns,
                rows: block_rows.min(rows - row),
                columns: block_columns.min(columns - column),
            })
        })
    }
}

impl Layout {
    /// The layout of tensors of the given shapes: matrices in blocks of 64 x 64, vectors in runs of 4096.
    ///
    /// # Errors
    /// [`SparseError::Shape`] for a tensor that is empty, too large, or neither a vector nor a matrix.
    pub fn new(shapes: &[Vec<usize>]) -> Result<Self, SparseError> {
        let tensors = shapes.iter().enumerate().map(|(i, s)| Grid::new(i, s)).collect::<Result<Arc<[_]>, _>>()?;
        let mut hasher = blake3::Hasher::new_derive_key("consortium sparseloco layout 1");
        for shape in shapes {
            hasher.update(&(shape.len() as u64).to_le_bytes());
            shape.iter().for_each(|n| _ = hasher.update(&(*n as u64).to_le_bytes()));
        }
        let mut tag = [0; 8];
        tag.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        let splits = Arc::new(SplitTables::new(tensors.iter().flat_map(Grid::block_sizes)));
        Ok(Self { tensors, tag, splits })
    }

    /// Parameters in all tensors.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(|t| t.elements() as u64).sum()
    }

    /// Values kept in every update.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.tensors.iter().map(Grid::kept).sum()
    }

    /// Zeros for every tensor: the error feedback of a peer that joins.
    #[must_use]
    pub fn zeros(&self) -> Vec<Vec<f32>> {
        self.tensors.iter().map(|t| vec![0.0; t.elements()]).collect()
    }

    /// Names the shapes: the first bytes of their BLAKE3 hash.
    pub(super) fn tag(&self) -> [u8; 8] {
        self.tag
    }

    pub(super) fn grids(&self) -> &[Grid] {
        &self.tensors
    }

    pub(super) fn splits(&self) -> &SplitTables {
        &self.splits
    }

    /// Whether `tensors` have the sizes of this layout.
    pub(crate) fn fits<T: AsRef<[f32]>>(&self, tensors: &[T]) -> Result<(), SparseError> {
        let same = tensors.len() == self.tensors.len()
            && tensors.iter().zip(self.tensors.iter()).all(|(t, g)| t.as_ref().len() == g.elements());
        if same { Ok(()) } else { Err(SparseError::Sizes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_every_element_once() {
        for shape in [vec![1], vec![63], vec![4096], vec![9000], vec![1, 70], vec![130, 65], vec![64, 128], vec![3, 5]]
        {
            let layout = Layout::new(std::slice::from_ref(&shape)).unwrap();
            let grid = layout.grids()[0];
            let mut seen = vec![0; grid.elements()];
            let mut kept = 0;
            for block in grid.blocks() {
                assert!(block.size() <= BLOCK && block.kept() <= super::super::KEPT);
                kept += block.kept() as u64;
                (0..block.size()).for_each(|p| seen[block.element(p as u16)] += 1);
            }
            assert!(seen.iter().all(|n| *n == 1), "{shape:?}");
            assert_eq!(kept, layout.kept(), "{shape:?}");
        }
    }

    #[test]
    fn a_partial_block_keeps_one_of_64_rounded_up_where_the_code_keeps_64_of_a_smaller_chunk() {
        assert_eq!([1, 64, 65, 160, 2048, 4095, 4096].map(kept_of), [1, 1, 2, 3, 32, 64, 64]);
        let grid = Layout::new(&[vec![160, 100]]).unwrap().grids()[0];
        let kept: Vec<_> = grid.blocks().map(|b| (b.rows, b.columns, b.kept())).collect();
        assert_eq!(kept, [(64, 64, 64), (64, 36, 36), (64, 64, 64), (64, 36, 36), (32, 64, 32), (32, 36, 18)]);
    }

    #[test]
    fn shapes_that_make_no_sense_are_refused_by_name() {
        for shape in [vec![], vec![0], vec![3, 0], vec![2, 2, 2], vec![usize::MAX, 2], vec![1 << 20, 1 << 20]] {
            let error = Layout::new(&[vec![8], shape]).unwrap_err();
            assert!(matches!(error, SparseError::Shape { tensor: 1, .. }), "{error}");
        }
    }

    #[test]
    fn other_shapes_have_another_tag() {
        let tag = |shapes: &[Vec<usize>]| Layout::new(shapes).unwrap().tag();
        assert_ne!(tag(&[vec![2], vec![3]]), tag(&[vec![2, 3]]));
        assert_ne!(tag(&[vec![2, 3]]), tag(&[vec![3, 2]]));
    }
}
