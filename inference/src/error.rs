//! Why a model directory cannot be served.

use std::io;
use std::path::PathBuf;

use consortium_protocol::wire::heartbeat::LayerRange;

/// Why a model directory cannot be opened, or a part of it not be loaded. Every message names the file, and the tensor
/// where one is at fault, and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The path is not a directory that can be read.
    #[error("{}: not a model directory; give the directory that holds config.json and the .safetensors files", path.display())]
    NotADirectory {
        /// The path that was given.
        path: PathBuf,
    },
    /// A file that every model has is absent.
    #[error("{}: missing; {hint}", path.display())]
    MissingFile {
        /// The absent file.
        path: PathBuf,
        /// What to do about it.
        hint: &'static str,
    },
    /// A file exists and cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason given by the system.
        source: io::Error,
    },
    /// A JSON file is malformed, or holds values that contradict each other.
    #[error("{}: {reason}; download the file again or correct it", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The model has an architecture that this engine does not implement.
    #[error("{}: architecture {found} is not supported; use a model of LlamaForCausalLM, or of MistralForCausalLM without a sliding window", path.display())]
    UnsupportedArchitecture {
        /// The config file.
        path: PathBuf,
        /// The architecture it names.
        found: String,
    },
    /// The architecture is known, and one of its options is not implemented.
    #[error("{}: {feature} is not supported; use a model without it", path.display())]
    UnsupportedFeature {
        /// The config file.
        path: PathBuf,
        /// The option, with its value.
        feature: String,
    },
    /// The header of a safetensors file is not what the format allows.
    #[error("{}: corrupt safetensors header: {reason}; download the file again", path.display())]
    CorruptHeader {
        /// The file.
        path: PathBuf,
        /// What is wrong with the header.
        reason: String,
    },
    /// A tensor lies outside its file.
    #[error("{}: truncated: tensor {tensor} ends at byte {needs} and the file has {has}; download the file again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The first tensor (in name order) that lies outside.
        tensor: String,
        /// Bytes the file would need.
        needs: u64,
        /// Bytes the file has.
        has: u64,
    },
    /// A tensor of the architecture is in none of the files.
    #[error("{}: tensor {tensor} is missing; the download is incomplete or the model is of another layout than its config.json says", path.display())]
    MissingTensor {
        /// The file or directory that was searched.
        path: PathBuf,
        /// The name of the tensor.
        tensor: String,
    },
    /// A tensor has another shape than config.json implies.
    #[error("{}: tensor {tensor} has shape {found:?}, config.json implies {expected:?}; weights and config.json are of different models", path.display())]
    WrongShape {
        /// The file.
        path: PathBuf,
        /// The name of the tensor.
        tensor: String,
        /// The shape that config.json implies.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor has an element type that this engine does not read.
    #[error("{}: tensor {tensor} has dtype {found}; F32, F16 and BF16 are supported, use an unquantised model", path.display())]
    WrongDtype {
        /// The file.
        path: PathBuf,
        /// The name of the tensor.
        tensor: String,
        /// The dtype as the file names it.
        found: String,
    },
    /// A file changed after the directory was opened.
    #[error("{}: changed while it was in use; do not modify a model directory that is being served", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The range of layers is not one of this model.
    #[error("layers {range} do not exist: the model has layers 0-{last}", last = layers.saturating_sub(1))]
    Range {
        /// The range that was asked for.
        range: LayerRange,
        /// The number of layers of the model.
        layers: u16,
    },
    /// The tensors could not be placed on the device.
    #[error("cannot place the weights: {0}")]
    Device(#[from] candle_core::Error),
}
