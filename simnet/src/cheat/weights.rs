//! Copies of a model with other weights, for those who compute with them in place of the agreed ones.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use consortium_protocol::wire::heartbeat::LayerRange;
use half::{bf16, f16};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};

use super::spec::Kind;

/// How far the weights of a few optimiser steps ago lie from those of today, in terms of their root mean square.
pub const STALE: f32 = 0.01;

/// What is done to the weights of a range of layers. The others stay as they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tampering {
    /// Projections rounded to this many bits, with the largest magnitude of each row as the scale.
    Quantise(u32),
    /// The same with a scale for each group of columns, as llama.cpp's Q8_0 and Q4_0 have it.
    QuantiseGroups {
        /// Bits of a weight.
        bits: u32,
        /// Columns of a group.
        group: usize,
    },
    /// The middle layer adds nothing: neither its attention nor its feed-forward part.
    SkipLayer,
    /// The attention of the middle layer adds nothing.
    SkipAttention,
    /// Every projection is off by noise of this size, in terms of its root mean square.
    Stale(f32),
    /// Every other layer adds nothing, from the first on.
    Halve,
    /// Every layer has the weights of the one as far ahead as the range is long, counted around the end.
    Shift,
}

impl Tampering {
    /// The tampering behind a cheat, if it is one of weights.
    pub fn of(kind: Kind) -> Option<Self> {
        match kind {
            Kind::Int8 => Some(Self::Quantise(8)),
            Kind::Int4 => Some(Self::Quantise(4)),
            Kind::SkipLayer => Some(Self::SkipLayer),
            Kind::SkipAttention => Some(Self::SkipAttention),
            Kind::Stale => Some(Self::Stale(STALE)),
            Kind::Smaller => Some(Self::Halve),
            Kind::WrongShard => Some(Self::Shift),
            _ => None,
        }
    }

    /// Whether the output projection of a layer's attention, or that of its feed-forward part, becomes zero.
    fn silences(self, range: LayerRange, layer: u16, part: &str) -> bool {
        let middle = range.first + (range.last - range.first) / 2;
        let (attention, feed_forward) = (part.contains("o_proj"), part.contains("down_proj"));
        match self {
            Self::SkipLayer => layer == middle && (attention || feed_forward),
            Self::SkipAttention => layer == middle && attention,
            Self::Halve => (layer - range.first).is_multiple_of(2) && (attention || feed_forward),
            _ => false,
        }
    }
}

/// Writes a copy of the model in `from` to `to`, which is made, with the weights of `range` tampered with. Types and
/// names stay: the copy loads like the model. All weights are in memory at once.
///
/// # Errors
/// When the model cannot be read, has weights of another type than BF16, F16 or F32, or cannot be written.
pub fn tampered_copy(from: &Path, to: &Path, range: LayerRange, tampering: Tampering) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_name().filter(|_| path.is_file()) else { continue };
        let target = to.join(name);
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            files.insert(target, fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
        } else {
            fs::copy(&path, &target).with_context(|| format!("cannot write {}", target.display()))?;
        }
    }
    let mut parsed = Vec::new();
    for (target, bytes) in &files {
        parsed.push((target, SafeTensors::deserialize(bytes).context("not a safetensors file")?));
    }
    let tensors: BTreeMap<&str, TensorView<'_>> = parsed.iter().flat_map(|(_, file)| file.iter()).collect();
    for (target, file) in &parsed {
        let changed = file.iter().map(|(name, view)| Ok((name, change(name, &view, &tensors, range, tampering)?)));
        let changed = changed.collect::<Result<Vec<(&str, Vec<u8>)>>>()?;
        let views = changed.iter().map(|(name, data)| {
            let view = &tensors[name];
            Ok((*name, TensorView::new(view.dtype(), view.shape().to_vec(), data)?))
        });
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        serialize_to_file(views.collect::<Result<Vec<_>>>()?, Some(metadata), target)
            .with_context(|| format!("cannot write {}", target.display()))?;
    }
    Ok(())
}

/// The bytes of a tensor after the tampering.
fn change(
    name: &str,
    view: &TensorView<'_>,
    tensors: &BTreeMap<&str, TensorView<'_>>,
    range: LayerRange,
    tampering: Tampering,
) -> Result<Vec<u8>> {
    let Some((layer, part)) = layer_part(name).filter(|(layer, _)| (range.first..=range.last).contains(layer)) else {
        return Ok(view.data().to_vec());
    };
    if tampering == Tampering::Shift {
        let layers = tensors.keys().filter_map(|name| layer_part(name)).map(|(layer, _)| layer + 1).max().unwrap_or(1);
        // A stage that holds the whole model is off by one layer.
        let ahead = match (range.last - range.first + 1) % layers {
            0 => 1,
            ahead => ahead,
        };
        let other = format!("model.layers.{}.{part}", (layer + ahead) % layers);
        let other = tensors.get(other.as_str()).with_context(|| format!("the model has no {other}"))?;
        return Ok(other.data().to_vec());
    }
    if tampering.silences(range, layer, part) {
        return Ok(vec![0; view.data().len()]);
    }
    if !part.contains("_proj") {
        return Ok(view.data().to_vec());
    }
    let mut values = widen(view).with_context(|| name.to_owned())?;
    match tampering {
        Tampering::Quantise(bits) => {
            let row = view.shape().last().copied().unwrap_or(1).max(1);
            values.chunks_mut(row).for_each(|row| quantise(row, bits));
        }
        Tampering::QuantiseGroups { bits, group } => values.chunks_mut(group).for_each(|group| quantise(group, bits)),
        Tampering::Stale(size) => perturb(&mut values, size, u64::from(layer) << 8 | part.len() as u64),
        _ => return Ok(view.data().to_vec()),
    }
    narrow(&values, view.dtype())
}

/// The layer and the rest of the name of `model.layers.N.REST`.
fn layer_part(name: &str) -> Option<(u16, &str)> {
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

/// Rounds to `bits` bits, symmetric around zero, and back.
fn quantise(row: &mut [f32], bits: u32) {
    let levels = ((1_u32 << (bits - 1)) - 1) as f32;
    let scale = row.iter().fold(0.0_f32, |largest, value| largest.max(value.abs())) / levels;
    if scale > 0.0 {
        row.iter_mut().for_each(|value| *value = (*value / scale).round() * scale);
    }
}

/// Adds uniform noise with a deviation of `size` times the root mean square.
fn perturb(values: &mut [f32], size: f32, seed: u64) {
    let mean_square = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / values.len().max(1) as f64;
    let reach = 3.0_f32.sqrt() * size * mean_square.sqrt() as f32;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    if reach > 0.0 {
        values.iter_mut().for_each(|value| *value += rng.random_range(-reach..reach));
    }
}

fn widen(view: &TensorView<'_>) -> Result<Vec<f32>> {
    let bytes = view.data();
    Ok(match view.dtype() {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        other => bail!("weights of type {other:?} cannot be tampered with"),
    })
}

fn narrow(values: &[f32], dtype: Dtype) -> Result<Vec<u8>> {
    Ok(match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        other => bail!("weights of type {other:?} cannot be written"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: LayerRange = LayerRange { first: 3, last: 6 };

    fn model() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("training").join("models/consortium-tiny")
    }

    /// The matrix of a layer, of the copy and of the model.
    fn both(tampering: Tampering, name: &str) -> (Vec<f32>, Vec<f32>) {
        let temp = tempfile::tempdir().unwrap();
        let copy = temp.path().join("copy");
        tampered_copy(&model(), &copy, RANGE, tampering).unwrap();
        let read = |dir: &Path| {
            let bytes = fs::read(dir.join("model.safetensors")).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(file.tensor(name).unwrap().dtype(), Dtype::BF16);
            widen(&file.tensor(name).unwrap()).unwrap()
        };
        (read(&copy), read(&model()))
    }

    /// The root mean square of the difference, in terms of that of the second.
    fn apart((a, b): &(Vec<f32>, Vec<f32>)) -> f64 {
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
        (square(&mut a.iter().zip(b).map(|(a, b)| a - b)) / square(&mut b.iter().copied())).sqrt()
    }

    #[test]
    fn weights_change_as_much_as_they_should() {
        let name = "model.layers.4.mlp.gate_proj.weight";
        let int8 = apart(&both(Tampering::Quantise(8), name));
        let int4 = apart(&both(Tampering::Quantise(4), name));
        let stale = apart(&both(Tampering::Stale(0.01), name));
        assert!((0.003..0.02).contains(&int8), "{int8}");
        assert!((0.08..0.3).contains(&int4), "{int4}");
        assert!((0.009..0.012).contains(&stale), "{stale}");
        for untouched in ["model.layers.7.mlp.gate_proj.weight", "model.layers.4.input_layernorm.weight"] {
            assert_eq!(apart(&both(Tampering::Quantise(4), untouched)), 0.0);
        }
    }

    #[test]
    fn layers_fall_silent() {
        let silent = |tampering, layer: u16, part: &str| {
            both(tampering, &format!("model.layers.{layer}.{part}.weight")).0.iter().all(|v| *v == 0.0)
        };
        assert!(
            silent(Tampering::SkipLayer, 4, "mlp.down_proj") && silent(Tampering::SkipLayer, 4, "self_attn.o_proj")
        );
        assert!(!silent(Tampering::SkipLayer, 3, "mlp.down_proj"));
        assert!(silent(Tampering::SkipAttention, 4, "self_attn.o_proj"));
        assert!(!silent(Tampering::SkipAttention, 4, "mlp.down_proj"));
        let halved: Vec<u16> = (0..10).filter(|layer| silent(Tampering::Halve, *layer, "mlp.down_proj")).collect();
        assert_eq!(halved, [3, 5]);
    }

    #[test]
    fn layers_change_places() {
        let (copy, _) = both(Tampering::Shift, "model.layers.3.mlp.up_proj.weight");
        let (_, ahead) = both(Tampering::Shift, "model.layers.7.mlp.up_proj.weight");
        assert_eq!(copy, ahead);
        let (around, _) = both(Tampering::Shift, "model.layers.6.mlp.up_proj.weight");
        let (_, first) = both(Tampering::Shift, "model.layers.0.mlp.up_proj.weight");
        assert_eq!(around, first);
    }
}
