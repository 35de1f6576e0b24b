//! Fraud proofs: files that stand alone. With the model's files anyone can check one, on a machine that was never in
//! the swarm.
//!
//! A proof is the audit's order (the master's order, the receipts up to the stage's, the nonce) and the stage's own
//! opening: `magic | u32 length | order | u32 length | opening | inputs | outputs`, lengths little-endian. It names no
//! verdict: whoever checks it comes to one. It discloses the job's tokens, and with the hidden states of the stage all
//! that can be read from them; whoever prompts a swarm should know that a stage that cheats makes this public.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use consortium_protocol::hash::Hash;
use consortium_protocol::wire::Message as _;
use consortium_protocol::wire::audit::{AuditOrder, Opening};

use super::opening::{MAX_OPENING, Opened};
use crate::pipeline::read_message;

const MAGIC: &[u8] = b"consortium fraud proof 1\n";
/// The largest proof that is read, bytes.
pub const MAX_PROOF: u64 = (MAX_OPENING + AuditOrder::MAX_BYTES + Opening::MAX_BYTES + 64) as u64;

/// An order and what was shown for it.
#[derive(Debug)]
pub struct Proof {
    /// What was ordered and signed for.
    pub order: AuditOrder,
    /// What the stage showed.
    pub opened: Opened,
}

/// Why a file is no fraud proof.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// It is something else, or damaged.
    #[error("not a fraud proof: {0}")]
    Malformed(String),
}

impl Proof {
    /// The bytes of the file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for message in [self.order.encode(), self.opened.opening.encode()] {
            let length = u32::try_from(message.len()).expect("messages stay below 4 GiB");
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(&message);
        }
        bytes.extend_from_slice(&self.opened.inputs);
        bytes.extend_from_slice(&self.opened.outputs);
        bytes
    }

    /// Reads what [`Proof::encode`] wrote; signatures are checked, the work is not.
    ///
    /// # Errors
    /// [`ProofError::Malformed`].
    pub async fn decode(bytes: &[u8]) -> Result<Self, ProofError> {
        let malformed = |error: &dyn std::fmt::Display| ProofError::Malformed(error.to_string());
        let mut rest = bytes.strip_prefix(MAGIC).ok_or_else(|| malformed(&"it does not begin like one"))?;
        let order = read_message::<AuditOrder>(&mut rest).await.map_err(|error| malformed(&error))?;
        let order = order.ok_or_else(|| malformed(&"it ends too soon"))?;
        let opened = Opened::read(&mut rest, &order, None).await.map_err(|error| malformed(&error))?;
        if rest.is_empty() { Ok(Self { order, opened }) } else { Err(malformed(&"there is more behind its end")) }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`ProofError`].
    pub async fn read(path: &Path) -> Result<Self, ProofError> {
        let io = |source| ProofError::Io { path: path.to_owned(), source };
        let length = tokio::fs::metadata(path).await.map_err(io)?.len();
        if length > MAX_PROOF {
            return Err(ProofError::Malformed(format!("{length} bytes, and {MAX_PROOF} is the most")));
        }
        Self::decode(&tokio::fs::read(path).await.map_err(io)?).await
    }
}

/// The folder of a node's proofs: the newest of them, up to [`MAX_KEPT`] files and [`MAX_KEPT_BYTES`].
#[derive(Clone, Debug)]
pub struct Proofs {
    folder: PathBuf,
    /// One writer at a time: what lies half-written is of a node that has ended.
    writing: Arc<Mutex<()>>,
}

/// How many proofs a node keeps.
pub const MAX_KEPT: usize = 64;
/// How many bytes of proofs a node keeps.
pub const MAX_KEPT_BYTES: u64 = 4 << 30;

impl Proofs {
    /// The proofs in `<data-dir>/fraud`.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        Self { folder: data_dir.join("fraud"), writing: Arc::default() }
    }

    /// Where the proof with this digest is, if it is kept.
    #[must_use]
    pub fn path(&self, digest: &Hash) -> PathBuf {
        self.folder.join(format!("{digest}.proof"))
    }

    /// Writes a proof, whole or not at all, and lets go of the oldest beyond the bounds.
    ///
    /// # Errors
    /// [`ProofError::Io`], a full disk for example.
    pub fn keep(&self, bytes: &[u8]) -> Result<Hash, ProofError> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = Hash::of(bytes);
        let path = self.path(&digest);
        let io = |source| ProofError::Io { path: path.clone(), source };
        std::fs::create_dir_all(&self.folder).map_err(io)?;
        let partial = path.with_extension("partial");
        let written = write_through(&partial, bytes).and_then(|()| std::fs::rename(&partial, &path));
        if let Err(error) = written {
            let _gone = std::fs::remove_file(&partial);
            return Err(io(error));
        }
        self.tidy().map_err(io)?;
        Ok(digest)
    }

    fn tidy(&self) -> io::Result<()> {
        let mut kept = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let about = entry.metadata()?;
            match entry.path().extension().and_then(|end| end.to_str()) {
                Some("proof") => kept.push((about.modified()?, about.len(), entry.path())),
                // Of a node that ended while it wrote.
                Some("partial") => std::fs::remove_file(entry.path())?,
                _ => {}
            }
        }
        kept.sort();
        let mut bytes = 0_u64;
        for (count, (_, length, path)) in kept.iter().rev().enumerate() {
            bytes = bytes.saturating_add(*length);
            if count >= MAX_KEPT || (count > 0 && bytes > MAX_KEPT_BYTES) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// Writes a file to the disk itself: a name must not outlive what it names.
fn write_through(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_crash_left_goes_and_the_oldest_make_way() {
        let dir = tempfile::tempdir().unwrap();
        let proofs = Proofs::new(dir.path());
        let first = proofs.keep(b"first").unwrap();
        let left = dir.path().join("fraud/abc.partial");
        std::fs::write(&left, b"half").unwrap();
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
        std::fs::File::options().write(true).open(proofs.path(&first)).unwrap().set_modified(long_ago).unwrap();
        let others: Vec<Hash> = (0..MAX_KEPT as u64).map(|n| proofs.keep(&n.to_le_bytes()).unwrap()).collect();
        assert!(!left.exists() && !proofs.path(&first).exists());
        assert!(others.iter().all(|digest| proofs.path(digest).exists()));
        assert_eq!(proofs.keep(&0_u64.to_le_bytes()).unwrap(), others[0], "keeping twice is keeping once");
    }
}
