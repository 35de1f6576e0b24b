//! Models on this node's disk: those imported into `<data-dir>/models`, and the one named by `--model`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use consortium_inference::ModelError;
use consortium_inference::model_dir::ModelDir;
use consortium_protocol::hash::Hash;
use consortium_protocol::wire::heartbeat::ModelRef;

/// Why a model cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// Neither a directory nor an imported name.
    #[error(
        "no model `{name}`: there is no such directory, and none of that name in {store}. Import one with: consortium-node model import DIR"
    )]
    NotFound {
        /// As asked for.
        name: String,
        /// The folder of imported models.
        store: PathBuf,
    },
    /// A name that would leave the folder of imported models.
    #[error("`{0}` is no model name: use letters, digits, dots, dashes and underscores")]
    BadName(String),
    /// Import would overwrite another model.
    #[error("a different model named `{0}` was imported before; choose another with --name, or remove that one")]
    Taken(String),
    /// The directory is no model, or a damaged one.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Reading or writing the store failed.
    #[error("{path}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
}

/// The folder of imported models.
#[must_use]
pub fn store(data_dir: &Path) -> PathBuf {
    data_dir.join("models")
}

/// Finds a model by directory or by imported name.
///
/// # Errors
/// [`LibraryError::NotFound`] says where was looked.
pub fn find(data_dir: &Path, name: &str) -> Result<PathBuf, LibraryError> {
    let direct = Path::new(name);
    if direct.is_dir() {
        return Ok(direct.to_owned());
    }
    let store = store(data_dir);
    let imported = store.join(name);
    if is_name(name) && imported.is_dir() {
        return Ok(imported);
    }
    Err(LibraryError::NotFound { name: name.to_owned(), store })
}

/// Imported models, by name.
///
/// # Errors
/// When the folder cannot be read.
pub fn list(data_dir: &Path) -> Result<Vec<PathBuf>, LibraryError> {
    let store = store(data_dir);
    let entries = match std::fs::read_dir(&store) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(LibraryError::Io { path: store, source }),
        Ok(entries) => entries,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| LibraryError::Io { path: store.clone(), source })?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        if path.is_dir() && !hidden {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Copies a model into the store, checked before and after; `copied` hears of each file and its bytes.
///
/// # Errors
/// When the directory is no sound model, the name is taken by another one, or the disk is full: then nothing is left
/// behind.
pub fn import(
    data_dir: &Path,
    from: &Path,
    name: Option<&str>,
    mut copied: impl FnMut(&Path, u64),
) -> Result<ModelDir, LibraryError> {
    let source = ModelDir::open(from)?;
    let name = name.unwrap_or_else(|| source.name()).to_owned();
    if !is_name(&name) {
        return Err(LibraryError::BadName(name));
    }
    let target = store(data_dir).join(&name);
    if target.is_dir() {
        let present = ModelDir::open(&target)?;
        return if present.digest()? == source.digest()? { Ok(present) } else { Err(LibraryError::Taken(name)) };
    }
    let staging = store(data_dir).join(format!(".{name}.importing"));
    let io = |source| LibraryError::Io { path: staging.clone(), source };
    if staging.exists() {
        std::fs::remove_dir_all(&staging).map_err(io)?;
    }
    let done = copy_files(from, &staging, &mut copied).and_then(|()| {
        ModelDir::open(&staging)?;
        std::fs::rename(&staging, &target).map_err(io)
    });
    if let Err(error) = done {
        let _gone = std::fs::remove_dir_all(&staging);
        return Err(error);
    }
    Ok(ModelDir::open(&target)?)
}

fn copy_files(from: &Path, to: &Path, copied: &mut impl FnMut(&Path, u64)) -> Result<(), LibraryError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| LibraryError::Io { path, source }
    };
    std::fs::create_dir_all(to).map_err(io(to))?;
    for entry in std::fs::read_dir(from).map_err(io(from))? {
        let path = entry.map_err(io(from))?.path();
        let wanted =
            path.extension().is_some_and(|end| ["json", "safetensors", "jinja", "md"].iter().any(|e| end == *e));
        let (true, Some(file)) = (wanted && path.is_file(), path.file_name()) else { continue };
        let bytes = std::fs::copy(&path, to.join(file)).map_err(io(&path))?;
        copied(&path, bytes);
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 96
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

/// Models opened for serving, by digest.
#[derive(Clone, Default)]
pub struct Library {
    models: Arc<BTreeMap<Hash, (ModelRef, Arc<ModelDir>)>>,
}

impl Library {
    /// Opens and hashes models; takes as long as reading their files.
    ///
    /// # Errors
    /// When one is damaged.
    pub fn open(paths: &[PathBuf]) -> Result<Self, LibraryError> {
        let mut models = BTreeMap::new();
        for path in paths {
            let model = ModelDir::open(path)?;
            let reference = model.model_ref()?;
            models.insert(reference.digest, (reference, Arc::new(model)));
        }
        Ok(Self { models: Arc::new(models) })
    }

    /// The model with this digest.
    #[must_use]
    pub fn get(&self, digest: &Hash) -> Option<&(ModelRef, Arc<ModelDir>)> {
        self.models.get(digest)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &(ModelRef, Arc<ModelDir>)> {
        self.models.values()
    }
}
