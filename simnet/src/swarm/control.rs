//! How other commands reach the supervisor: one line of JSON each way over a Unix socket in the swarm's directory.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::directory::SwarmDir;

/// Longest line taken from the other end.
const MAX_LINE: u64 = 64 * 1024;

/// Whoever connects says what is wanted within this time.
const PATIENCE: Duration = Duration::from_secs(5);

/// Orders waiting for the supervisor.
const WAITING: usize = 16;

/// What the supervisor can be told to do. A node is `node-3`, `3`, `master` or a PeerId.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "lowercase")]
pub(crate) enum Order {
    /// End a node without warning.
    Kill { node: String },
    /// End a node if it runs, and start it again.
    Restart { node: String },
    /// Stop a node from running without ending it.
    Pause { node: String },
    /// Let a paused node run again.
    Unpause { node: String },
    /// End the swarm.
    Down,
    /// Say whether the swarm is ready.
    Ping,
}

/// What the supervisor answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", content = "message", rename_all = "lowercase")]
pub(crate) enum Reply {
    /// It is done: what was done.
    Done(String),
    /// It was not done: why.
    Refused(String),
}

/// An order, and where its reply is awaited.
pub(crate) type Received = (Order, oneshot::Sender<Reply>);

/// The open control socket. The file goes when the value does.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    path: PathBuf,
    orders: mpsc::Receiver<Received>,
    acceptor: JoinHandle<()>,
}

impl ControlSocket {
    /// Opens the socket of the directory that this process has locked.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn open(dir: &SwarmDir) -> Result<Self> {
        let path = dir.prepare_socket_dir()?;
        // The lock says that whoever made an old one is gone.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen at {}", path.display()))?;
        let (sender, orders) = mpsc::channel(WAITING);
        let acceptor = tokio::spawn(accept(listener, sender));
        Ok(Self { path, orders, acceptor })
    }

    /// The next order.
    pub(crate) async fn next(&mut self) -> Received {
        match self.orders.recv().await {
            Some(received) => received,
            // The acceptor ends with this value alone.
            None => std::future::pending().await,
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.acceptor.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept(listener: UnixListener, orders: mpsc::Sender<Received>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let orders = orders.clone();
                tokio::spawn(async move {
                    // Whoever went away before the reply does not miss it.
                    let _ = serve(stream, &orders).await;
                });
            }
            // Out of file handles: they come back.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn serve(mut stream: UnixStream, orders: &mpsc::Sender<Received>) -> Result<()> {
    let line = tokio::time::timeout(PATIENCE, read_line(&mut stream)).await??;
    let reply = match serde_json::from_str(&line) {
        Ok(order) => {
            let (sender, reply) = oneshot::channel();
            orders.send((order, sender)).await?;
            reply.await.unwrap_or_else(|_| Reply::Refused("the swarm is going down".to_owned()))
        }
        Err(error) => Reply::Refused(format!("not an order: {error}")),
    };
    write_line(&mut stream, &serde_json::to_string(&reply)?).await
}

/// Gives an order to the supervisor in `dir` and waits for its reply.
///
/// # Errors
/// When nobody is there, or the order was refused.
pub(crate) async fn order(dir: &SwarmDir, order: &Order) -> Result<String> {
    if !dir.is_live() {
        bail!("no swarm is running in {}: start one with `simnet up`", dir.root().display());
    }
    let mut stream = UnixStream::connect(dir.socket())
        .await
        .with_context(|| format!("the swarm in {} takes no orders", dir.root().display()))?;
    write_line(&mut stream, &serde_json::to_string(order)?).await?;
    let line = read_line(&mut stream).await.context("simnet went away without a reply")?;
    match serde_json::from_str(&line).context("simnet replied with what is no reply")? {
        Reply::Done(message) => Ok(message),
        Reply::Refused(message) => bail!(message),
    }
}

async fn read_line(stream: &mut UnixStream) -> Result<String> {
    let mut line = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut line).await?;
    if line.is_empty() {
        bail!("the connection was closed");
    }
    Ok(line)
}

async fn write_line(stream: &mut UnixStream, text: &str) -> Result<()> {
    stream.write_all(text.as_bytes()).await?;
    stream.write_all(b"\n").await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_order_is_carried_and_answered() {
        let temp = tempfile::tempdir().unwrap();
        let dir = SwarmDir::at(temp.path()).unwrap();
        assert!(order(&dir, &Order::Down).await.unwrap_err().to_string().contains("no swarm"));

        let _lock = dir.lock().unwrap();
        let mut socket = ControlSocket::open(&dir).unwrap();
        let supervisor = async {
            let (first, reply) = socket.next().await;
            reply.send(Reply::Done(format!("{first:?}"))).unwrap();
            let (_, reply) = socket.next().await;
            reply.send(Reply::Refused("no".into())).unwrap();
            let (_, reply) = socket.next().await;
            drop(reply);
        };
        let kill = Order::Kill { node: "3".into() };
        let client = async {
            assert_eq!(order(&dir, &kill).await.unwrap(), r#"Kill { node: "3" }"#);
            assert_eq!(order(&dir, &kill).await.unwrap_err().to_string(), "no");
            assert!(order(&dir, &Order::Down).await.unwrap_err().to_string().contains("going down"));
        };
        tokio::join!(supervisor, client);
        drop(socket);
        assert!(!dir.socket().exists());
    }

    #[tokio::test]
    async fn nonsense_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let dir = SwarmDir::at(temp.path()).unwrap();
        let _lock = dir.lock().unwrap();
        let _socket = ControlSocket::open(&dir).unwrap();
        let mut stream = UnixStream::connect(dir.socket()).await.unwrap();
        write_line(&mut stream, "make me a sandwich").await.unwrap();
        let reply = read_line(&mut stream).await.unwrap();
        assert!(reply.contains("refused"), "{reply}");
    }
}
