//! Activations as they go from one stage to the next.

use candle_core::{Device, Tensor};

use crate::kernels::elements;

/// Activations between two stages.
#[derive(Clone, PartialEq, Eq)]
pub struct HiddenStates {
    /// Number of rows.
    pub rows: u32,
    /// Width of a row: the hidden size of the model.
    pub width: u32,
    /// Row-major f32, little-endian: rows x width x 4 bytes.
    pub data: Vec<u8>,
}

impl std::fmt::Debug for HiddenStates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HiddenStates({} x {})", self.rows, self.width)
    }
}

impl HiddenStates {
    /// The bytes of a tensor `[rows, width]`.
    ///
    /// # Errors
    /// When it is not a matrix of f32 that can be read.
    pub fn from_tensor(tensor: &Tensor) -> candle_core::Result<Self> {
        let (rows, width) = tensor.dims2()?;
        let tensor = tensor.to_device(&Device::Cpu)?.contiguous()?;
        let input = elements(&tensor);
        let values = input.as_slice()?;
        let mut data = vec![0; values.len() * 4];
        for (bytes, value) in data.as_chunks_mut().0.iter_mut().zip(values) {
            *bytes = value.to_le_bytes();
        }
        Ok(Self { rows: rows as u32, width: width as u32, data })
    }

    /// The tensor `[rows, width]` on a device.
    ///
    /// # Errors
    /// When rows, width and data do not fit together, or the device refuses.
    pub fn to_tensor(&self, device: &Device) -> candle_core::Result<Tensor> {
        let shape = (self.rows as usize, self.width as usize);
        if Some(self.data.len()) != shape.0.checked_mul(shape.1).and_then(|n| n.checked_mul(4)) {
            candle_core::bail!("{} bytes for {} x {} values", self.data.len(), shape.0, shape.1);
        }
        let values: Vec<f32> = self.data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Tensor::from_vec(values, shape, device)
    }
}
