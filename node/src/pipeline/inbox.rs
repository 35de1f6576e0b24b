//! Where tokens come home: last stages open a stream to the driver, which finds the attempt that waits for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use consortium_protocol::identity::NodeId;
use consortium_protocol::wire::job::JobId;
use consortium_protocol::wire::pipeline::{Frame, SessionOpen};
use tokio::sync::{Semaphore, mpsc};
use tracing::debug;

use super::chain::ChainEvent;
use super::framing;
use crate::swarm::{ByteStream, Incoming};

const OPENING: Duration = Duration::from_secs(10);
/// Streams received at a time.
const MAX_STREAMS: usize = 256;

/// Payer, job and attempt.
type Key = (NodeId, JobId, u32);
type Waiting = HashMap<Key, (NodeId, mpsc::Sender<ChainEvent>)>;

/// Cloneable registry of attempts that wait for their last stage.
#[derive(Clone, Default)]
pub struct TokenInbox {
    waiting: Arc<Mutex<Waiting>>,
}

/// Keeps an attempt registered until dropped.
pub(super) struct Registration {
    inbox: TokenInbox,
    key: Key,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.inbox.lock().remove(&self.key);
    }
}

impl TokenInbox {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tokens of this attempt, from `last_stage` alone, go to `events`.
    pub(super) fn register(
        &self,
        open: &SessionOpen,
        last_stage: NodeId,
        events: mpsc::Sender<ChainEvent>,
    ) -> Registration {
        let key = (open.payer, open.job, open.attempt);
        self.lock().insert(key, (last_stage, events));
        Registration { inbox: self.clone(), key }
    }

    /// Serves incoming token streams until the swarm ends; `me` signed the sessions they belong to.
    pub async fn serve(self, me: NodeId, mut incoming: Incoming) {
        let room = Arc::new(Semaphore::new(MAX_STREAMS));
        while let Some((from, stream)) = incoming.recv().await {
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
            let inbox = self.clone();
            tokio::spawn(async move {
                let _held_while_receiving = permit;
                inbox.receive(me, from, stream).await;
            });
        }
    }

    async fn receive(self, me: NodeId, from: NodeId, mut stream: ByteStream) {
        let open = match tokio::time::timeout(OPENING, framing::read_signed::<SessionOpen>(&mut stream)).await {
            Ok(Ok(Some(open))) if open.signer() == me => open,
            Ok(Ok(Some(_))) => return debug!(%from, "refused tokens of a session that this node did not open"),
            Ok(Err(error)) => return debug!(%from, %error, "refused a token stream"),
            Ok(Ok(None)) | Err(_) => return,
        };
        let key = (open.payload().payer, open.payload().job, open.payload().attempt);
        // Taken out: a second stream for the same attempt finds nothing.
        let waiting = self.lock().remove(&key);
        let Some((expected, events)) = waiting else { return debug!(%from, "nobody waits for these tokens") };
        if expected != from {
            self.lock().insert(key, (expected, events));
            return debug!(%from, "refused tokens from a node that is not the last stage");
        }
        let attempt = key.2;
        if events.send(ChainEvent::Opened { attempt }).await.is_err() {
            return;
        }
        loop {
            let frame = tokio::select! {
                frame = framing::read_frame(&mut stream) => frame,
                // The attempt is over: closing this stream tells the last stage.
                () = events.closed() => return,
            };
            let event = match frame {
                Ok(Some(Frame::Token { seq, pos, id, .. })) => ChainEvent::Token { attempt, seq, pos, id },
                Ok(Some(Frame::Receipts(chain))) => ChainEvent::Receipts { attempt, chain },
                Ok(Some(Frame::Error(failure))) => ChainEvent::Failed { attempt, failure },
                Ok(Some(_)) => {
                    ChainEvent::Broken { attempt, node: from, reason: "sent what does not belong here".to_owned() }
                }
                Ok(None) => {
                    ChainEvent::Broken { attempt, node: from, reason: "closed the stream of tokens".to_owned() }
                }
                Err(error) => ChainEvent::Broken { attempt, node: from, reason: error.to_string() },
            };
            let ended = !matches!(event, ChainEvent::Token { .. } | ChainEvent::Receipts { .. });
            if events.send(event).await.is_err() || ended {
                return;
            }
        }
    }
}
