//! A connection whose writes have a deadline: a client that asks and then reads nothing would otherwise hold its job
//! and its place for ever.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Wraps a connection.
#[derive(Debug)]
pub(super) struct StallGuard<S> {
    inner: S,
    patience: Duration,
    deadline: Pin<Box<Sleep>>,
    /// A write is waiting, and `deadline` is its.
    waiting: bool,
}

impl<S> StallGuard<S> {
    /// Lets a write wait for `patience`, then fails it.
    pub(super) fn new(inner: S, patience: Duration) -> Self {
        Self { inner, patience, deadline: Box::pin(sleep(patience)), waiting: false }
    }

    /// Passes a result on, or fails when the write has been waiting for too long.
    fn judge<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.waiting = false;
            return result;
        }
        if !self.waiting {
            self.waiting = true;
            self.deadline.as_mut().reset(Instant::now() + self.patience);
        }
        self.deadline.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for StallGuard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for StallGuard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.judge(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.judge(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        self.judge(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.judge(cx, result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_reader_that_reads_nothing_is_given_up() {
        let (near, mut far) = tokio::io::duplex(8);
        let patience = Duration::from_millis(200);
        let mut guarded = StallGuard::new(near, patience);
        guarded.write_all(&[1; 8]).await.unwrap();
        let begun = Instant::now();
        let error = guarded.write_all(&[2; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= patience);
        let mut read = [0; 8];
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(read, [1; 8]);
    }

    /// Each write waits for less than the deadline, all together for longer.
    #[tokio::test]
    async fn a_slow_reader_is_not() {
        let (near, mut far) = tokio::io::duplex(1);
        let mut guarded = StallGuard::new(near, Duration::from_secs(2));
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            while all.len() < 6 {
                sleep(Duration::from_millis(500)).await;
                all.push(far.read_u8().await.unwrap());
            }
            all
        });
        guarded.write_all(&[7; 6]).await.unwrap();
        assert_eq!(reader.await.unwrap(), [7; 6]);
    }
}
