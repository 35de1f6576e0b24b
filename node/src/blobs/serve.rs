//! Answers to nodes that want files of this one.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use consortium_protocol::hash::Hash;
use consortium_protocol::wire::blob::{BlobAnswer, BlobRequest, parts};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{BlobError, Blobs, Coming, PARTIAL, SAPLING, TREE, at, on_disk, part};
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
            let (answer, part) = self.reply(asked).await;
            write_message(&mut stream, &answer).await?;
            if let Some(part) = part {
                write_bytes(&mut stream, &part).await?;
            }
        }
    }

    /// The answer to a question, and the part that follows it.
    pub(super) async fn reply(&self, BlobRequest { hash, part }: BlobRequest) -> (BlobAnswer, Option<Vec<u8>>) {
        if self.length(&hash).is_none()
            && let Some(Coming { bytes, held }) = self.what_came(&hash)
        {
            let Some(part) = part.filter(|part| held.has(*part)) else {
                return (BlobAnswer::Coming { bytes, held }, None);
            };
            if let Some(encoded) = self.encoded_early(hash, bytes, part).await {
                return (BlobAnswer::Here { bytes }, Some(encoded));
            }
            if self.length(&hash).is_none() {
                // The disk has lost it, or it is just becoming whole.
                let mut held = held;
                held.set(part, false);
                return (BlobAnswer::Coming { bytes, held }, None);
            }
        }
        let bytes = self.length(&hash).filter(|bytes| part.is_none_or(|part| part < parts(*bytes)));
        let Some(bytes) = bytes else { return (BlobAnswer::Unknown, None) };
        let here = BlobAnswer::Here { bytes };
        let Some(part) = part else { return (here, None) };
        match self.encoded(hash, bytes, part).await {
            Some(encoded) => (here, Some(encoded)),
            None => (BlobAnswer::Unknown, None),
        }
    }

    /// A part of a file that is coming; none if it is not there any more, or the disk has lost it.
    async fn encoded_early(&self, hash: Hash, bytes: u64, part: u64) -> Option<Vec<u8>> {
        let (data, tree) = (self.file(&hash).with_extension(PARTIAL), self.file(&hash).with_extension(SAPLING));
        let read = on_disk(move || read_part(&data, &tree, hash, bytes, part)).await;
        if let Err(error) = &read
            && is_damaged(error)
        {
            self.note(&hash, part, false);
        }
        read.ok()
    }

    /// A part of a file; none if it cannot be read now. A file that has changed on the disk is forgotten; one that the disk
    /// does not give, or for which nothing can be opened any more, may be read another time.
    async fn encoded(&self, hash: Hash, bytes: u64, part: u64) -> Option<Vec<u8>> {
        let (data, tree) = (self.file(&hash), self.file(&hash).with_extension(TREE));
        match on_disk(move || read_part(&data, &tree, hash, bytes, part)).await {
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

fn read_part(data: &Path, tree: &Path, hash: Hash, bytes: u64, part: u64) -> Result<Vec<u8>, BlobError> {
    let (file, hashes) = (File::open(data).map_err(at(data))?, File::open(tree).map_err(at(tree))?);
    part::encode(&file, &hashes, hash, bytes, part).map_err(at(data))
}

/// Whether a file was read, and is not what it was: other bytes, or fewer.
fn is_damaged(error: &BlobError) -> bool {
    use io::ErrorKind::{InvalidData, UnexpectedEof};
    matches!(error, BlobError::Io { source, .. } if matches!(source.kind(), InvalidData | UnexpectedEof))
}
