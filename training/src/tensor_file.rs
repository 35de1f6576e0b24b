//! Tensors and a header in one safetensors file, written atomically and verified by hash.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::json;

use crate::error::TrainError;

/// What such a file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TensorFile {
    /// A JSON document.
    pub(crate) header: String,
    /// Groups of tensors, each in order; at most 10 000 to a group.
    pub(crate) floats: BTreeMap<String, Vec<Vec<f32>>>,
    /// Plain bytes by name. No name may be that of a group, and none is empty.
    pub(crate) bytes: BTreeMap<String, Vec<u8>>,
}

/// Writes `data` to `path` so that a crash leaves either the old file or the whole new one. If it fails, a full disk
/// included, the old file stays and nothing else is left behind.
///
/// # Errors
/// [`TrainError::Io`] if the directory cannot be written.
pub(crate) fn write_atomically(path: &Path, data: &[u8]) -> Result<(), TrainError> {
    let partial = path.with_extension("partial");
    let written = File::create(&partial).and_then(|mut file| {
        file.write_all(data)?;
        file.sync_all()
    });
    if let Err(error) = written.and_then(|()| std::fs::rename(&partial, path)) {
        // What is left of it is of no use, and takes room.
        let _ = std::fs::remove_file(&partial);
        return Err(TrainError::io(path)(error));
    }
    // The new name outlives a power cut once the directory is on the disk too.
    #[cfg(unix)]
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        File::open(directory).and_then(|d| d.sync_all()).map_err(TrainError::io(directory))?;
    }
    Ok(())
}

impl TensorFile {
    /// Writes it to `path`, atomically.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the file cannot be written; what was there before stays.
    pub(crate) fn write(&self, path: &Path, format: &str) -> Result<(), TrainError> {
        write_atomically(path, &self.to_bytes(format)?)
    }

    /// The bytes of the file: the same for the same contents, always.
    ///
    /// # Errors
    /// [`TrainError::Json`] if the header cannot be written down.
    pub(crate) fn to_bytes(&self, format: &str) -> Result<Vec<u8>, TrainError> {
        let floats = self.floats.iter().flat_map(|(group, tensors)| {
            tensors.iter().enumerate().map(move |(i, t)| (format!("{group}.{i:04}"), ("F32", 4, little_endian(t))))
        });
        let bytes = self.bytes.iter().map(|(name, data)| (name.clone(), ("U8", 1, data.clone())));
        let tensors: BTreeMap<String, (&str, usize, Vec<u8>)> = floats.chain(bytes).collect();
        let blake3 = digest(&self.header, tensors.iter().map(|(name, (.., data))| (&**name, &**data)));
        let mut header = serde_json::Map::new();
        let about = json!({ "blake3": blake3, "format": format, "progress": self.header });
        header.insert("__metadata__".to_owned(), about);
        let mut end = 0;
        for (name, (dtype, size, data)) in &tensors {
            let offsets = [end, end + data.len()];
            end = offsets[1];
            let about = json!({ "data_offsets": offsets, "dtype": dtype, "shape": [data.len() / size] });
            header.insert(name.clone(), about);
        }
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = Vec::with_capacity(8 + header.len() + end);
        file.extend_from_slice(&(header.len() as u64).to_le_bytes());
        file.extend_from_slice(&header);
        tensors.values().for_each(|(.., data)| file.extend_from_slice(data));
        Ok(file)
    }

    /// Reads a file and checks it against its hash.
    ///
    /// # Errors
    /// [`TrainError::Io`] if it cannot be read, [`TrainError::Checkpoint`] if it is damaged or of another format.
    pub(crate) fn read(path: &Path, format: &str) -> Result<Self, TrainError> {
        let data = std::fs::read(path).map_err(TrainError::io(path))?;
        Self::parse(&data, format).map_err(|reason| TrainError::Checkpoint { path: path.to_path_buf(), reason })
    }

    /// Reads the bytes of a file and checks them against their hash.
    ///
    /// # Errors
    /// Why not, in words: they are damaged or of another format.
    pub(crate) fn parse(data: &[u8], format: &str) -> Result<Self, String> {
        let (_, header) = SafeTensors::read_metadata(data).map_err(|e| format!("damaged: {e}"))?;
        let meta = header.metadata().as_ref().ok_or("no metadata")?;
        let field = |name: &str| meta.get(name).ok_or_else(|| format!("no `{name}` in its metadata"));
        let found = field("format")?;
        if found != format {
            return Err(format!("format {found}, expected {format}"));
        }
        let tensors = SafeTensors::deserialize(data).map_err(|e| format!("damaged: {e}"))?;
        let sorted: BTreeMap<String, (Dtype, Vec<u8>)> =
            tensors.iter().map(|(n, view)| (n.to_owned(), (view.dtype(), view.data().to_vec()))).collect();
        let header = field("progress")?;
        if *field("blake3")? != digest(header, sorted.iter().map(|(name, (_, data))| (&**name, &**data))) {
            return Err("damaged: its contents do not match its hash".into());
        }
        let mut file = Self { header: header.clone(), ..Self::default() };
        for (name, (dtype, data)) in sorted {
            match name.split_once('.') {
                Some((group, _)) if dtype == Dtype::F32 => {
                    file.floats.entry(group.to_owned()).or_default().push(numbers(&data));
                }
                _ => _ = file.bytes.insert(name, data),
            }
        }
        Ok(file)
    }

    /// Takes a group of tensors out; none if there is no such group.
    pub(crate) fn take(&mut self, group: &str) -> Vec<Vec<f32>> {
        self.floats.remove(group).unwrap_or_default()
    }
}

fn digest<'a>(header: &str, tensors: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(header.as_bytes());
    for (name, data) in tensors {
        hasher.update(name.as_bytes());
        hasher.update(data);
    }
    hasher.finalize().to_hex().to_string()
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn numbers(data: &[u8]) -> Vec<f32> {
    data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_and_bytes_come_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.safetensors");
        let file = TensorFile {
            header: "{}".into(),
            floats: BTreeMap::from([("w".into(), vec![vec![1.5, -0.0], vec![f32::MIN_POSITIVE]])]),
            bytes: BTreeMap::from([("message".into(), vec![1, 2, 3])]),
        };
        file.write(&path, "f/1").unwrap();
        assert_eq!(TensorFile::read(&path, "f/1").unwrap(), file);
        assert_eq!(std::fs::read(&path).unwrap(), file.to_bytes("f/1").unwrap(), "the same bytes every time");
        assert!(matches!(TensorFile::read(&path, "f/2"), Err(TrainError::Checkpoint { .. })));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_said_and_leaves_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.safetensors");
        write_atomically(&path, b"old").unwrap();
        // What is written on the way goes to a device that is always full.
        std::os::unix::fs::symlink("/dev/full", path.with_extension("partial")).unwrap();
        let error = write_atomically(&path, b"new").unwrap_err();
        assert!(matches!(&error, TrainError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull));
        assert!(error.to_string().contains("state.safetensors"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert!(!path.with_extension("partial").exists());
        write_atomically(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }
}
