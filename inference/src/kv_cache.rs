//! The keys and values that a stage keeps of one session.

use candle_core::{DType, Device, Result, Tensor};

use consortium_protocol::wire::heartbeat::LayerRange;

use crate::config::ModelConfig;

/// Positions that a cache is grown by at least.
const BLOCK: usize = 256;

/// The capacity is a multiple of this: whole vectors of the kernels.
const ALIGNMENT: usize = 16;

/// Keys `[kv_heads, head_dim, capacity]` and values `[kv_heads, capacity, head_dim]` of one layer, filled up to the length
/// of the cache. The keys are transposed, as the scores of attention need them.
#[derive(Debug)]
pub(crate) struct LayerCache {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

/// The keys and values of one session in the layers of one stage. Memory grows with the positions in use, doubling in
/// blocks, up to a fixed limit; nothing is copied on a step that fits.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    kv_heads: usize,
    head_dim: usize,
    /// Positions filled in every layer.
    length: usize,
    capacity: usize,
    max_positions: usize,
    device: Device,
}

impl KvCache {
    /// An empty cache for some layers of a model, which may grow to `max_positions`.
    ///
    /// # Errors
    /// When the device has no memory for the first block.
    pub fn new(config: &ModelConfig, range: LayerRange, max_positions: u32, device: &Device) -> Result<Self> {
        let mut cache = Self {
            layers: Vec::new(),
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            length: 0,
            capacity: BLOCK.min(max_positions as usize).next_multiple_of(ALIGNMENT),
            max_positions: max_positions as usize,
            device: device.clone(),
        };
        for _ in range.first..=range.last {
            let layer = cache.empty_layer(cache.capacity)?;
            cache.layers.push(layer);
        }
        Ok(cache)
    }

    /// Positions that are filled.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Positions that the cache may grow to.
    pub fn max_positions(&self) -> usize {
        self.max_positions
    }

    fn empty_layer(&self, capacity: usize) -> Result<LayerCache> {
        let zeros = |shape| Tensor::zeros(shape, DType::F32, &self.device);
        Ok(LayerCache {
            keys: zeros((self.kv_heads, self.head_dim, capacity))?,
            values: zeros((self.kv_heads, capacity, self.head_dim))?,
        })
    }

    /// Makes room for `rows` more positions.
    pub(crate) fn reserve(&mut self, rows: usize) -> Result<()> {
        let needed = self.length + rows;
        if needed > self.max_positions {
            candle_core::bail!("the cache is limited to {} positions, {needed} are needed", self.max_positions);
        }
        if needed <= self.capacity {
            return Ok(());
        }
        let grown = needed.max(2 * self.capacity).next_multiple_of(BLOCK);
        let capacity = grown.min(self.max_positions.next_multiple_of(ALIGNMENT));
        for layer in 0..self.layers.len() {
            let new = self.empty_layer(capacity)?;
            new.keys.slice_set(&self.layers[layer].keys, 2, 0)?;
            new.values.slice_set(&self.layers[layer].values, 1, 0)?;
            self.layers[layer] = new;
        }
        self.capacity = capacity;
        Ok(())
    }

    /// Writes the keys `[kv_heads, head_dim, rows]` and values `[kv_heads, rows, head_dim]` of new positions behind the
    /// filled ones of a layer. Room must have been reserved.
    pub(crate) fn write(&self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<&LayerCache> {
        let cache = &self.layers[layer];
        cache.keys.slice_set(keys, 2, self.length)?;
        cache.values.slice_set(values, 1, self.length)?;
        Ok(cache)
    }

    /// Counts `rows` positions, written in every layer, as filled.
    pub(crate) fn advance(&mut self, rows: usize) {
        self.length += rows;
    }
}
