//! Fraud proofs on request: gossip names them by their digest, whoever wants to check one streams it from a node that
//! keeps it.

use std::io;
use std::time::Duration;

use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use consortium_protocol::wire;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tracing::debug;

use super::proof::{MAX_PROOF, Proofs};
use crate::swarm::{ByteStream, Incoming, SwarmHandle};

const ASKING: Duration = Duration::from_secs(10);
/// Time for a whole proof.
const SENDING: Duration = Duration::from_secs(300);

/// Gets the proof with this digest from a node that keeps it.
///
/// # Errors
/// In words, when it is not to be had there, or something else is sent.
pub async fn fetch(swarm: &SwarmHandle, from: NodeId, digest: &Hash) -> Result<Vec<u8>, String> {
    let fetching = async {
        let mut stream = swarm.open_stream(from, wire::EVIDENCE).await.map_err(|error| error.to_string())?;
        stream.write_all(digest.as_bytes()).await.map_err(|error| error.to_string())?;
        stream.flush().await.map_err(|error| error.to_string())?;
        let mut bytes = Vec::new();
        stream.take(MAX_PROOF + 1).read_to_end(&mut bytes).await.map_err(|error| error.to_string())?;
        let digest = *digest;
        let hashing = tokio::task::spawn_blocking(move || (Hash::of(&bytes) == digest).then_some(bytes));
        hashing.await.ok().flatten().ok_or_else(|| "it is not what was asked for".to_owned())
    };
    tokio::time::timeout(SENDING, fetching).await.unwrap_or_else(|_| Err("it took too long".to_owned()))
}

/// Sends proofs to those who ask, until the swarm ends.
pub async fn serve(proofs: Proofs, mut incoming: Incoming) {
    while let Some((from, stream)) = incoming.recv().await {
        let proofs = proofs.clone();
        tokio::spawn(async move {
            if let Err(error) = send(&proofs, stream).await {
                debug!(%from, %error, "a fraud proof was not sent");
            }
        });
    }
}

async fn send(proofs: &Proofs, mut stream: ByteStream) -> io::Result<()> {
    let mut digest = [0; 32];
    let asked = tokio::time::timeout(ASKING, stream.read_exact(&mut digest)).await;
    asked.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let mut file = tokio::fs::File::open(proofs.path(&Hash::from_bytes(digest))).await?;
    let sending = async {
        tokio::io::copy(&mut file, &mut stream).await?;
        stream.shutdown().await
    };
    tokio::time::timeout(SENDING, sending).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
