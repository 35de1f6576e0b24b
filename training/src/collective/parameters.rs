//! The common parameters of a run.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::task::{Task, shapes};
use crate::error::TrainError;
use crate::model::{Llama, LlamaConfig};
use crate::sparseloco::{Layout, Update, aggregate, outer_step};
use crate::tensor_file::TensorFile;

const FORMAT: &str = "consortium-training-parameters/1";

/// Names parameters: BLAKE3 over the shapes and the little-endian bits of all tensors in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StateHash(pub [u8; 32]);

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StateHash({self})")
    }
}

/// The parameters that all peers begin a round with, one vector for each of [`LlamaConfig::parameters`].
#[derive(Clone, Debug)]
pub struct Parameters {
    config: LlamaConfig,
    layout: Layout,
    values: Vec<Vec<f32>>,
}

impl PartialEq for Parameters {
    /// To the bit.
    fn eq(&self, other: &Self) -> bool {
        self.config == other.config && self.hash() == other.hash()
    }
}

impl Parameters {
    /// Fresh ones, drawn from `seed`. Their last bits may depend on the machine's mathematical library: those of a run are
    /// made once and handed on.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn fresh(task: &Task, seed: u64) -> Result<Self, TrainError> {
        Self::new(task, Llama::new(task.config(), seed)?.values()?)
    }

    /// Given ones.
    ///
    /// # Errors
    /// [`TrainError::Sparse`] if they do not fit the task's model.
    pub fn new(task: &Task, values: Vec<Vec<f32>>) -> Result<Self, TrainError> {
        task.layout().fits(&values)?;
        Ok(Self { config: task.config().clone(), layout: task.layout().clone(), values })
    }

    /// All numbers, tensor by tensor.
    #[must_use]
    pub fn values(&self) -> &[Vec<f32>] {
        &self.values
    }

    /// A model that has these parameters.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn model(&self) -> Result<Llama, TrainError> {
        Llama::from_values(&self.config, self.values.clone())
    }

    /// The state hash.
    #[must_use]
    pub fn hash(&self) -> StateHash {
        let mut hasher = blake3::Hasher::new_derive_key("consortium training state 1");
        hasher.update(&(self.values.len() as u64).to_le_bytes());
        let mut buffer = Vec::with_capacity(1 << 16);
        for (shape, values) in shapes(&self.config).iter().zip(&self.values) {
            hasher.update(&(shape.len() as u64).to_le_bytes());
            shape.iter().for_each(|n| _ = hasher.update(&(*n as u64).to_le_bytes()));
            for part in values.chunks(1 << 14) {
                buffer.clear();
                buffer.extend(part.iter().flat_map(|v| v.to_le_bytes()));
                hasher.update(&buffer);
            }
        }
        StateHash(*hasher.finalize().as_bytes())
    }

    /// The outer step of a round: takes the mean of its accepted updates, in the order of its record, each clipped to the
    /// record's median norms, off the parameters. Without an update nothing changes. The same bits come out on every
    /// machine and for any number of threads (see [`crate::sparseloco`]).
    ///
    /// # Errors
    /// [`TrainError::Sparse`] for an update of another model or medians that are none; nothing is changed then.
    pub fn step(&mut self, updates: &[&Update], medians: &[f64]) -> Result<StateHash, TrainError> {
        if !updates.is_empty() {
            let mut mean = self.layout.zeros();
            aggregate(&self.layout, updates, medians, &mut mean)?;
            outer_step(&self.layout, &mut self.values, &mean)?;
        }
        Ok(self.hash())
    }

    /// Saves them, atomically.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the file cannot be written; what was there before stays.
    pub fn save(&self, path: &Path) -> Result<(), TrainError> {
        self.file()?.write(path, FORMAT)
    }

    /// The bytes that [`Self::save`] writes: the same for the same parameters on every machine.
    ///
    /// # Errors
    /// [`TrainError::Json`] if the model's shape cannot be written down.
    pub fn to_bytes(&self) -> Result<Vec<u8>, TrainError> {
        self.file()?.to_bytes(FORMAT)
    }

    fn file(&self) -> Result<TensorFile, TrainError> {
        Ok(TensorFile {
            header: serde_json::to_string(&self.config)?,
            floats: BTreeMap::from([("weight".to_owned(), self.values.clone())]),
            bytes: BTreeMap::new(),
        })
    }

    /// Loads what was saved.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the file cannot be read, [`TrainError::Checkpoint`] if it is damaged or of another model.
    pub fn load(task: &Task, path: &Path) -> Result<Self, TrainError> {
        let data = std::fs::read(path).map_err(TrainError::io(path))?;
        Self::parse(task, &data).map_err(|reason| TrainError::Checkpoint { path: path.to_path_buf(), reason })
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`TrainError::Run`] if they are damaged or of another model.
    pub fn from_bytes(task: &Task, bytes: &[u8]) -> Result<Self, TrainError> {
        Self::parse(task, bytes).map_err(|reason| TrainError::Run { what: "parameters cannot be used:", reason })
    }

    fn parse(task: &Task, bytes: &[u8]) -> Result<Self, String> {
        let mut file = TensorFile::parse(bytes, FORMAT)?;
        let values = file.take("weight");
        if file.header != serde_json::to_string(task.config()).map_err(|e| e.to_string())? {
            return Err("it holds the parameters of another model".to_owned());
        }
        Self::new(task, values).map_err(|_| "it holds the parameters of another model".to_owned())
    }
}
