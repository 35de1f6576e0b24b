//! The keys and values that a stage keeps of one session.

use candle_core::{DType, Device, Result, Tensor};

use consortium_protocol::wire::heartbeat::LayerRange;

use crate::config::ModelConfig;

/// Positions that a cache is grown by at least.
const BLOCK: usize = 256;

/// Keys and values of one layer: `[kv_heads, capacity, head_dim]` each, filled up to the length of the cache.
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
    pub fn new(
        config: &ModelConfig,
        range: LayerRange,
        max_positions: u32,
        device: &Device,
    ) -> Result<Self> {
        let mut cache = Self {
            layers: Vec::new(),
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            length: 0,
            capacity: BLOCK.min(max_positions as usize),
            max_positions: max_positions as usize,
            device: device.clone(),
        };
        for _ in range.first..=range.last {
            let keys = cache.block(cache.capacity)?;
            let values = cache.block(cache.capacity)?;
            cache.layers.push(LayerCache { keys, values });
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

    fn block(&self, capacity: usize) -> Result<Tensor> {
        Tensor::zeros((self.kv_heads, capacity, self.head_dim), DType::F32, &self.device)
    }

    /// Makes room for `rows` more positions.
    pub(crate) fn reserve(&mut self, rows: usize) -> Result<()> {
        let needed = self.length + rows;
        if needed > self.max_positions {
            candle_core::bail!(
                "the cache is limited to {} positions, {needed} are needed",
                self.max_positions
            );
        }
        if needed <= self.capacity {
            return Ok(());
        }
        let grown = needed.max(2 * self.capacity).next_multiple_of(BLOCK);
        let capacity = grown.min(self.max_positions);
        for layer in 0..self.layers.len() {
            let keys = self.grown(&self.layers[layer].keys, capacity)?;
            let values = self.grown(&self.layers[layer].values, capacity)?;
            self.layers[layer] = LayerCache { keys, values };
        }
        self.capacity = capacity;
        Ok(())
    }

    fn grown(&self, old: &Tensor, capacity: usize) -> Result<Tensor> {
        let new = self.block(capacity)?;
        new.slice_set(old, 1, 0)?;
        Ok(new)
    }

    /// Writes the keys and values of new positions, `[kv_heads, rows, head_dim]`, behind the filled ones of a layer.
    /// Room must have been reserved.
    pub(crate) fn write(&self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<&LayerCache> {
        let cache = &self.layers[layer];
        cache.keys.slice_set(keys, 1, self.length)?;
        cache.values.slice_set(values, 1, self.length)?;
        Ok(cache)
    }

    /// Counts `rows` positions, written in every layer, as filled.
    pub(crate) fn advance(&mut self, rows: usize) {
        self.length += rows;
    }
}
