//! Answers to nodes that want files of this one.

use std::fs::File;
use std::io;
use std::time::Duration;

use consortium_protocol::hash::Hash;
use consortium_protocol::wire::blob::{BlobAnswer, BlobRequest, parts};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{BlobError, Blobs, TREE, at, on_disk, part};
use crate::pipeline::{read_message, write_bytes, write_message};
use crate::swarm::{ByteStream, Incoming};

/// A stream on which nothing is asked for so long is closed.
const IDLE: Duration = Duration::from_secs(30);

impl Blobs {
    /// Answers until `stop`.
    pub async fn serve(self, mut incoming: Incoming, stop: CancellationToken) {
        loop {
            let (from, stream) = tokio::select! {
                () = stop.cancelled() => return,
                next = incoming.recv() => match next {
                    Some(next) => next,
                    None => return,
                },
            };
            let (blobs, stop) = (self.clone(), stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    answered = blobs.answer(stream) => if let Err(error) = answered {
                        debug!(%from, %error, "a file was not given to the end");
                    }
                }
            });
        }
    }

    async fn answer(&self, mut stream: ByteStream) -> io::Result<()> {
        loop {
            let asked = tokio::time::timeout(IDLE, read_message::<BlobRequest>(&mut stream)).await;
            let Some(asked) = asked.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? else { return Ok(()) };
            let bytes = self.length(&asked.hash);
            let Some(bytes) = bytes.filter(|bytes| asked.part.is_none_or(|part| part < parts(*bytes))) else {
                write_message(&mut stream, &BlobAnswer::Unknown).await?;
                continue;
            };
            let here = BlobAnswer::Here { bytes };
            match asked.part {
                None => write_message(&mut stream, &here).await?,
                Some(part) => match self.encoded(asked.hash, bytes, part).await {
                    Some(encoded) => {
                        write_message(&mut stream, &here).await?;
                        write_bytes(&mut stream, &encoded).await?;
                    }
                    None => write_message(&mut stream, &BlobAnswer::Unknown).await?,
                },
            }
        }
    }

    /// A part of a file; none if it cannot be read now. A file that has changed on the disk is forgotten; one that the disk
    /// does not give, or for which nothing can be opened any more, may be read another time.
    async fn encoded(&self, hash: Hash, bytes: u64, part: u64) -> Option<Vec<u8>> {
        let file = self.file(&hash);
        let read = on_disk(move || {
            let data = File::open(&file).map_err(at(&file))?;
            let tree_path = file.with_extension(TREE);
            let tree = File::open(&tree_path).map_err(at(&tree_path))?;
            part::encode(&data, &tree, hash, bytes, part).map_err(at(&file))
        });
        match read.await {
            Ok(encoded) => Some(encoded),
            Err(error) if is_damaged(&error) => {
                warn!(%hash, %error, "a file is damaged, and is forgotten");
                drop(self.remove(hash).await);
                None
            }
            Err(error) => {
                warn!(%hash, %error, "a file cannot be read now");
                None
            }
        }
    }
}

/// Whether a file was read, and is not what it was: other bytes, or fewer.
fn is_damaged(error: &BlobError) -> bool {
    use io::ErrorKind::{InvalidData, UnexpectedEof};
    matches!(error, BlobError::Io { source, .. } if matches!(source.kind(), InvalidData | UnexpectedEof))
}
