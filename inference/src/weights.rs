//! The safetensors files of a model: where every tensor lies, and reading one of them.
//!
//! The header is parsed here rather than by the `safetensors` crate so that every defect can be told with the name of
//! the file and of the tensor. Tensors are read by position in pieces and widened to f32 on the way, so loading touches only the bytes that a
//! stage needs, never holds a tensor twice, and a file that is cut short while it is in use gives an error where a memory map would give SIGBUS.
//!
//! Format: <https://github.com/huggingface/safetensors#format>.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde::Deserialize;

use crate::config::read_text;
use crate::error::ModelError;

/// Largest header that is read, bytes: the limit of the format itself.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Largest model.safetensors.index.json that is read, bytes.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Bytes of a tensor that are read at a time.
const PIECE: usize = 1 << 20;

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// Element types that weights may have on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeightType {
    F32,
    F16,
    Bf16,
}

impl WeightType {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "F32" => Some(Self::F32),
            "F16" => Some(Self::F16),
            "BF16" => Some(Self::Bf16),
            _ => None,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Appends little-endian elements to `out` as f32.
    pub(crate) fn widen(self, bytes: &[u8], out: &mut Vec<f32>) {
        match self {
            Self::F32 => out.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
            Self::F16 => {
                out.extend(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()));
            }
            Self::Bf16 => {
                out.extend(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()));
            }
        }
    }
}

/// One entry of a header, as the file has it.
#[derive(Debug, Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// Where a tensor lies.
#[derive(Debug)]
struct TensorPlace {
    /// Index into [`Weights::files`].
    file: usize,
    dtype: String,
    shape: Vec<usize>,
    /// First byte, from the start of the file.
    start: u64,
    /// Byte after the last one, from the start of the file.
    end: u64,
}

/// The tensors of a model directory.
#[derive(Debug)]
pub(crate) struct Weights {
    dir: PathBuf,
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, TensorPlace>,
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Reads the headers of the files of a model directory: model.safetensors.index.json and its shards if there is an
    /// index, model.safetensors otherwise.
    pub(crate) fn open(dir: &Path) -> Result<Self, ModelError> {
        let mut weights = Self { dir: dir.into(), files: Vec::new(), tensors: BTreeMap::new() };
        let index_path = dir.join(INDEX_FILE);
        match read_text(&index_path, MAX_INDEX_BYTES)? {
            None => weights.add_file(&dir.join(SINGLE_FILE))?,
            Some(text) => {
                let index: RawIndex =
                    serde_json::from_str(&text).map_err(|e| index_error(&index_path, e.to_string()))?;
                weights.add_shards(&index_path, &index)?;
            }
        }
        Ok(weights)
    }

    /// The files that hold tensors.
    pub(crate) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    fn add_shards(&mut self, index_path: &Path, index: &RawIndex) -> Result<(), ModelError> {
        let mut names: Vec<&String> = index.weight_map.values().collect();
        names.sort_unstable();
        names.dedup();
        if names.len() > 4096 {
            return Err(index_error(index_path, format!("it names {} files", names.len())));
        }
        for name in names {
            let plain = !name.contains(['/', '\\']) && name.ends_with(".safetensors");
            if !plain {
                return Err(index_error(index_path, format!("{name:?} is not a file of the directory")));
            }
            self.add_file(&self.dir.join(name))?;
        }
        for (tensor, file) in &index.weight_map {
            let path = self.dir.join(file);
            let place = self.tensors.get(tensor);
            if place.is_none_or(|place| self.files[place.file] != path) {
                return Err(ModelError::MissingTensor { path, tensor: tensor.clone() });
            }
        }
        Ok(())
    }

    /// Reads the header of one file and checks that every tensor lies inside it.
    fn add_file(&mut self, path: &Path) -> Result<(), ModelError> {
        let corrupt = |reason: String| ModelError::CorruptHeader { path: path.into(), reason };
        let mut file = open(path)?;
        let io = |source| ModelError::Io { path: path.into(), source };
        let has = file.metadata().map_err(io)?.len();
        if has < 8 {
            return Err(corrupt(format!("the file has {has} bytes, a header takes 8 and more")));
        }
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(io)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES || length > has - 8 {
            return Err(corrupt(format!("it claims a length of {length} bytes in a file of {has}")));
        }
        let mut header = Vec::with_capacity(length as usize);
        file.take(length).read_to_end(&mut header).map_err(io)?;
        let entries: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(&header).map_err(|e| corrupt(e.to_string()))?;
        let index = self.files.len();
        self.files.push(path.into());
        for (name, value) in entries.into_iter().filter(|(name, _)| name != "__metadata__") {
            let raw: RawTensor = serde_json::from_value(value).map_err(|e| corrupt(format!("tensor {name}: {e}")))?;
            let (start, end) = raw.data_offsets;
            let start = start.checked_add(8 + length);
            let end = end.checked_add(8 + length);
            let (Some(start), Some(end)) = (start, end) else {
                return Err(corrupt(format!("tensor {name} has impossible offsets")));
            };
            if start > end {
                return Err(corrupt(format!("tensor {name} ends before it starts")));
            }
            if end > has {
                return Err(ModelError::Truncated { path: path.into(), tensor: name, needs: end, has });
            }
            let place = TensorPlace { file: index, dtype: raw.dtype, shape: raw.shape, start, end };
            self.tensors.insert(name, place);
        }
        Ok(())
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Checks that a tensor exists, has this shape, a dtype that can be read, and as many bytes as these imply.
    pub(crate) fn check(&self, name: &str, shape: &[usize]) -> Result<(), ModelError> {
        self.find(name, shape).map(|_| ())
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<(&TensorPlace, WeightType), ModelError> {
        let Some(place) = self.tensors.get(name) else {
            let path = match self.files.as_slice() {
                [single] => single.clone(),
                _ => self.dir.clone(),
            };
            return Err(ModelError::MissingTensor { path, tensor: name.into() });
        };
        let path = self.files[place.file].clone();
        if place.shape != shape {
            return Err(ModelError::WrongShape {
                path,
                tensor: name.into(),
                expected: shape.into(),
                found: place.shape.clone(),
            });
        }
        let Some(dtype) = WeightType::parse(&place.dtype) else {
            return Err(ModelError::WrongDtype { path, tensor: name.into(), found: place.dtype.clone() });
        };
        let elements: u64 = shape.iter().map(|n| *n as u64).product();
        let bytes = place.end - place.start;
        if bytes != elements * dtype.bytes() as u64 {
            return Err(ModelError::CorruptHeader {
                path,
                reason: format!("tensor {name} has {bytes} bytes for {elements} elements of {}", place.dtype),
            });
        }
        Ok((place, dtype))
    }

    /// The element type of a tensor of this name and shape.
    pub(crate) fn dtype(&self, name: &str, shape: &[usize]) -> Result<WeightType, ModelError> {
        self.find(name, shape).map(|(_, dtype)| dtype)
    }

    /// The elements of a tensor, row-major, as f32.
    pub(crate) fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let mut out = Vec::with_capacity(shape.iter().product());
        self.read_rows(name, shape, |dtype, bytes| dtype.widen(bytes, &mut out))?;
        Ok(out)
    }

    /// Reads a tensor row by row (innermost dimension), as the bytes that the file has.
    pub(crate) fn read_rows(
        &self,
        name: &str,
        shape: &[usize],
        mut take: impl FnMut(WeightType, &[u8]),
    ) -> Result<(), ModelError> {
        let (place, dtype) = self.find(name, shape)?;
        let path = &self.files[place.file];
        let changed = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => ModelError::Changed { path: path.clone() },
            _ => ModelError::Io { path: path.clone(), source },
        };
        let row = shape.last().copied().unwrap_or(1) * dtype.bytes();
        let mut left = (place.end - place.start) as usize;
        let mut file = open(path)?;
        file.seek(SeekFrom::Start(place.start)).map_err(changed)?;
        let mut piece = vec![0; left.min((PIECE / row).max(1) * row)];
        while left > 0 {
            let bytes = &mut piece[..left.min(PIECE.max(row) / row * row)];
            file.read_exact(bytes).map_err(changed)?;
            bytes.chunks_exact(row).for_each(|row| take(dtype, row));
            left -= bytes.len();
        }
        Ok(())
    }
}

fn open(path: &Path) -> Result<File, ModelError> {
    File::open(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => ModelError::MissingFile {
            path: path.into(),
            hint: "the weights of the model are not here; download the .safetensors files (other formats are not read)",
        },
        _ => ModelError::Io { path: path.into(), source },
    })
}

fn index_error(path: &Path, reason: String) -> ModelError {
    ModelError::Config { path: path.into(), reason }
}
