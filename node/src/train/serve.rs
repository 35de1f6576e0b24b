//! Answers to what nodes ask about runs.

use std::io;
use std::time::Duration;

use consortium_protocol::NodeId;
use consortium_protocol::wire::train::TrainRequest;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Trainings;
use crate::pipeline::{read_message, write_message};
use crate::swarm::{ByteStream, Incoming};

/// A stream on which nothing is asked for so long is closed.
const IDLE: Duration = Duration::from_secs(15);

impl Trainings {
    /// Answers until `stop`.
    pub async fn serve(self, mut incoming: Incoming, stop: CancellationToken) {
        loop {
            let next = tokio::select! {
                () = stop.cancelled() => return,
                next = incoming.recv() => next,
            };
            let Some((from, stream)) = next else { return };
            let (runs, stop) = (self.clone(), stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    answered = runs.answer_all(from, stream) => if let Err(error) = answered {
                        debug!(%from, %error, "a question about a run was not answered");
                    }
                }
            });
        }
    }

    async fn answer_all(&self, from: NodeId, mut stream: ByteStream) -> io::Result<()> {
        while self.may_ask(from) {
            let asked = tokio::time::timeout(IDLE, read_message::<TrainRequest>(&mut stream)).await;
            let Some(asked) = asked.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? else { return Ok(()) };
            write_message(&mut stream, &self.answer(from, asked)).await?;
        }
        Err(io::Error::other("it asks too much"))
    }
}
