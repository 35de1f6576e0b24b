//! Whoever may end a swarm from outside while it comes up: signals, and orders over the control socket.

use std::future::Future;

use anyhow::Result;
use tokio::sync::oneshot;

use super::signals::StopSignals;
use crate::swarm::control::{ControlSocket, Order, Reply};

/// Why a swarm ends.
#[derive(Debug)]
pub(crate) enum End {
    /// A signal of this number came.
    Signal(i32),
    /// `simnet down` was typed, and waits for a reply.
    Down(oneshot::Sender<Reply>),
    /// The command of `--exec` ended with this code.
    Command(u8),
}

/// The two ways to reach a supervisor.
#[derive(Debug)]
pub(crate) struct Callers {
    /// Orders.
    pub(crate) control: ControlSocket,
    /// Signals.
    pub(crate) signals: StopSignals,
}

impl Callers {
    /// Does `work`, unless the swarm is to end before that is done. Other orders are refused meanwhile.
    ///
    /// # Errors
    /// Those of `work`.
    pub(crate) async fn unless_ended<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<Result<T, End>> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(Ok(done?)),
                signal = self.signals.next() => return Ok(Err(End::Signal(signal))),
                (order, reply) = self.control.next() => {
                    if order == Order::Down {
                        return Ok(Err(End::Down(reply)));
                    }
                    let _ = reply.send(Reply::Refused("the swarm is still coming up".to_owned()));
                }
            }
        }
    }
}
