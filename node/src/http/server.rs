//! Sockets: accepting, deadlines, limits and the orderly end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::guard::Caller;
use super::stall::StallGuard;
use super::{HttpApp, router};

/// Connections open at once; one more is told to come back.
const MAX_CONNECTIONS: usize = 512;
/// Time in which the head of a request must arrive, and for which an idle connection is kept.
const HEADER_DEADLINE: Duration = Duration::from_secs(30);
/// How long a client may leave what was sent to it unread.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// Buffer of a connection; the head of a request must fit in it.
const BUFFER: usize = 64 * 1024;
/// How long answers in progress may go on once the node ends.
const DRAIN: Duration = Duration::from_secs(5);
/// After which those that are left get this long to carry the news.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Pause after a failure to accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Sent to a connection too many; the end of the body is the end of the connection.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n\
Retry-After: 2\r\nConnection: close\r\n\r\n\
{\"error\":{\"message\":\"This node has too many connections; try again.\",\"type\":\"server_error\",\"param\":null,\"code\":\"too_many_connections\"}}";

/// Serves the API on `listener` until `shutdown` is cancelled, then lets answers in progress go on for a few seconds.
///
/// # Errors
/// When the listener has no address; a failing connection ends alone.
pub async fn serve(listener: TcpListener, app: HttpApp, shutdown: CancellationToken) -> io::Result<()> {
    let bound = listener.local_addr()?;
    if !bound.ip().is_loopback() && !app.require_key {
        tracing::warn!(%bound, "the API is open to everyone who can reach this address: no key is required");
    }
    let closing = CancellationToken::new();
    let router = router(app, bound, closing.clone());
    let mut connections = accept(listener, &router, &shutdown).await;

    drain(&mut connections, DRAIN).await;
    closing.cancel();
    drain(&mut connections, LAST_WORDS).await;
    connections.shutdown().await;
    Ok(())
}

/// Accepts until the node ends; returns the connections still open.
async fn accept(listener: TcpListener, router: &Router, shutdown: &CancellationToken) -> JoinSet<()> {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return connections,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, caller)) => match Arc::clone(&places).try_acquire_owned() {
                    Ok(place) => {
                        connections.spawn(connection(stream, caller, router.clone(), shutdown.clone(), place));
                    }
                    Err(_) => refuse(&stream),
                },
                Err(error) => {
                    tracing::warn!(%error, "accepting an API connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

fn refuse(stream: &TcpStream) {
    // The buffer of a new socket takes these few bytes; where not, the client sees the connection close.
    if let Err(error) = stream.try_write(FULL) {
        tracing::debug!(%error, "could not tell a client that there are too many connections");
    }
}

async fn connection(
    stream: TcpStream,
    caller: SocketAddr,
    router: Router,
    shutdown: CancellationToken,
    _place: OwnedSemaphorePermit,
) {
    // Tokens are small and should leave at once.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, %caller, "TCP_NODELAY");
    }
    let service = TowerToHyperService::new(router.layer(Extension(Caller(caller))));
    let io = TokioIo::new(StallGuard::new(stream, WRITE_DEADLINE));
    let mut connection = Box::pin(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_DEADLINE)
            .max_buf_size(BUFFER)
            .serve_connection(io, service),
    );
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, %caller, "an API connection ended early");
    }
}

/// Waits until all connections have ended, for a time.
async fn drain(connections: &mut JoinSet<()>, patience: Duration) {
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(patience, all).await.is_err() {
        tracing::debug!("API connections are still open");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canned_refusal_is_well_formed() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with("Connection: close"));
        let document: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(document["error"]["code"], "too_many_connections");
    }
}
