//! Models that a dishonest worker might run in place of the agreed one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

/// What is done to the weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Tamper {
    /// Matrices rounded to this many bits, symmetric, one scale per row (largest magnitude).
    PerRow(u32),
    /// The same with one scale per group of 32 columns, as llama.cpp's Q8_0 and Q4_0 have it.
    PerGroup(u32),
    /// A layer left out: its output projections are zero, so that the residual stream passes unchanged.
    SkipLayer(usize),
    /// Attention left out in a layer.
    SkipAttention(usize),
    /// Every weight moved by Gaussian-like noise of this relative size: another training step.
    Stale(f32),
}

impl Tamper {
    fn apply(self, name: &str, shape: &[usize], values: &mut [f32]) {
        if shape.len() != 2 {
            return;
        }
        let is = |layer: usize, part: &str| name.contains(&format!("layers.{layer}.")) && name.contains(part);
        match self {
            Self::PerRow(bits) => values.chunks_mut(shape[1]).for_each(|row| quantise(row, bits)),
            Self::PerGroup(bits) => values.chunks_mut(32).for_each(|group| quantise(group, bits)),
            Self::SkipLayer(layer) if is(layer, "o_proj") || is(layer, "down_proj") => values.fill(0.0),
            Self::SkipAttention(layer) if is(layer, "o_proj") => values.fill(0.0),
            Self::SkipLayer(_) | Self::SkipAttention(_) => {}
            Self::Stale(size) => {
                let rms = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
                let mut state = 0x9e37_79b9_u32;
                for value in values {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    *value += size * rms * 3.46 * (state as f32 / u32::MAX as f32 - 0.5);
                }
            }
        }
    }
}

fn quantise(values: &mut [f32], bits: u32) {
    let levels = ((1_u32 << (bits - 1)) - 1) as f32;
    let scale = values.iter().fold(0.0_f32, |m, v| m.max(v.abs())) / levels;
    if scale > 0.0 {
        values.iter_mut().for_each(|v| *v = (*v / scale).round() * scale);
    }
}

/// Writes a copy of a model in one file, tampered with, in f32.
pub(crate) fn write(from: &Path, to: &Path, tamper: Tamper) {
    fs::create_dir_all(to).unwrap();
    for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut out: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for (name, view) in tensors.tensors() {
        let mut values: Vec<f32> = match view.dtype() {
            Dtype::F32 => view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::BF16 => view.data().as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
            other => panic!("{other:?}"),
        };
        tamper.apply(&name, view.shape(), &mut values);
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        out.insert(name, (view.shape().to_vec(), data));
    }
    let views = out.iter().map(|(n, (s, d))| (n.clone(), TensorView::new(Dtype::F32, s.clone(), d).unwrap()));
    safetensors::serialize_to_file(views, None, &to.join("model.safetensors")).unwrap();
}
