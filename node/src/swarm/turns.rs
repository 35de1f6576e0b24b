//! Turns at being served: how many streams of a protocol others may have open here, so that nobody keeps the rest out.
//!
//! A stream that comes is always taken. If its node has as many as one may have, that node's own stream that was used longest
//! ago is ended for it; if all turns are taken, it is one of the node that has most of them. So whoever opens many streams
//! takes turns from itself; many names together take what is idle, and never all.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use consortium_protocol::NodeId;
use consortium_protocol::wire::{BLOB, EVIDENCE, OPENING, TRAIN};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How many streams may be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bound {
    /// Of all nodes together.
    pub(super) all: usize,
    /// Of one node.
    pub(super) each: usize,
}

impl Bound {
    /// For a protocol. One node asks less than half of its share at a time, as its streams may end here later than there.
    pub(super) fn of(protocol: &str) -> Self {
        match protocol {
            BLOB => Self { all: 128, each: 8 },
            TRAIN => Self { all: 128, each: 16 },
            EVIDENCE => Self { all: 32, each: 4 },
            OPENING => Self { all: usize::MAX, each: 32 },
            // Sessions, of which a master or a gateway may have many, and which are not ended for others: whoever serves
            // them bounds them all, and this how many of them are one node's.
            _ => Self { all: usize::MAX, each: 128 },
        }
    }
}

/// The turns of one protocol. A clone is the same.
#[derive(Clone, Debug)]
pub(super) struct Turns {
    bound: Bound,
    /// Counts uses: the least was the longest ago.
    uses: Arc<AtomicU64>,
    taken: Arc<Mutex<BTreeMap<u64, Taken>>>,
}

#[derive(Debug)]
struct Taken {
    by: NodeId,
    used: Arc<AtomicU64>,
    over: CancellationToken,
}

impl Turns {
    pub(super) fn new(bound: Bound) -> Self {
        Self { bound, uses: Arc::default(), taken: Arc::default() }
    }

    /// Gives a stream of a node a turn. Another may lose its turn for it: it breaks off.
    pub(super) fn give<S>(&self, by: NodeId, stream: S) -> Held<S> {
        let number = self.uses.fetch_add(1, Ordering::Relaxed);
        let (used, over) = (Arc::new(AtomicU64::new(number)), CancellationToken::new());
        let mut taken = self.lock();
        if let Some(taken) = self.one_too_many(&taken, by).and_then(|number| taken.remove(&number)) {
            taken.over.cancel();
        }
        taken.insert(number, Taken { by, used: Arc::clone(&used), over: over.clone() });
        let [over_for_reader, over_for_writer] = [over.clone(), over].map(|over| Box::pin(over.cancelled_owned()));
        Held { stream, over_for_reader, over_for_writer, turn: Turn { number, used, turns: self.clone() } }
    }

    /// The turn that ends if a node takes one more.
    fn one_too_many(&self, taken: &BTreeMap<u64, Taken>, by: NodeId) -> Option<u64> {
        let mut counts: BTreeMap<NodeId, usize> = BTreeMap::new();
        taken.values().for_each(|taken| *counts.entry(taken.by).or_default() += 1);
        let may_end = |of: NodeId| match counts.get(&by) {
            Some(count) if *count >= self.bound.each => of == by,
            _ => taken.len() >= self.bound.all && counts.get(&of) == counts.values().max(),
        };
        let idle = taken.iter().filter(|(_, taken)| may_end(taken.by));
        idle.min_by_key(|(_, taken)| taken.used.load(Ordering::Relaxed)).map(|(number, _)| *number)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Taken>> {
        // What is guarded is changed in one step: a panic leaves it whole.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn, until it is dropped.
struct Turn {
    number: u64,
    used: Arc<AtomicU64>,
    turns: Turns,
}

impl Turn {
    fn used<T>(&self, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if matches!(done, Poll::Ready(Ok(_))) {
            self.used.store(self.turns.uses.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        }
        done
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.lock().remove(&self.number);
    }
}

/// A stream that has a turn, and breaks off when that is over.
pub(super) struct Held<S> {
    stream: S,
    // One each: a stream may be read by one task and written by another.
    over_for_reader: Pin<Box<WaitForCancellationFutureOwned>>,
    over_for_writer: Pin<Box<WaitForCancellationFutureOwned>>,
    turn: Turn,
}

fn over() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "its turn went to another stream")
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.over_for_reader.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(over()));
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.turn.used(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.over_for_writer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(over()));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.turn.used(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.over_for_writer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(over()));
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.over_for_writer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(over()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use consortium_protocol::RootKey;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    fn node(seed: u8) -> NodeId {
        RootKey::from_seed([seed; 32]).node_id()
    }

    type Ends = (Held<DuplexStream>, DuplexStream);

    fn open(turns: &Turns, by: u8) -> Ends {
        let (here, there) = duplex(64);
        (turns.give(node(by), here), there)
    }

    /// Whether it can still be used; which it is.
    async fn stands((here, there): &mut Ends) -> bool {
        let _closed = there.write_all(b"?").await;
        here.read_u8().await.is_ok()
    }

    #[tokio::test]
    async fn whoever_opens_more_than_its_share_loses_its_own_idlest_stream() {
        let turns = Turns::new(Bound { all: 8, each: 2 });
        let mut other = open(&turns, 1);
        let (mut first, mut second) = (open(&turns, 2), open(&turns, 2));
        assert!(stands(&mut first).await, "now the second is the idler one");
        let mut third = open(&turns, 2);
        assert!(!stands(&mut second).await);
        assert!(stands(&mut first).await && stands(&mut third).await && stands(&mut other).await);
        drop(first);
        let mut fourth = open(&turns, 2);
        assert!(stands(&mut third).await && stands(&mut fourth).await, "what is dropped counts no more");
    }

    #[tokio::test]
    async fn when_all_turns_are_taken_the_node_with_most_gives_one_up() {
        let turns = Turns::new(Bound { all: 4, each: 3 });
        let (mut honest, mut greedy) = (open(&turns, 1), [open(&turns, 2), open(&turns, 2), open(&turns, 2)]);
        let mut late = open(&turns, 3);
        assert!(stands(&mut honest).await && stands(&mut late).await);
        assert!(!stands(&mut greedy[0]).await && stands(&mut greedy[1]).await && stands(&mut greedy[2]).await);
        // Of many that have one each it is the idlest.
        drop(greedy);
        let (mut third, mut fourth) = (open(&turns, 4), open(&turns, 5));
        assert!(stands(&mut honest).await && stands(&mut third).await && stands(&mut fourth).await);
        let mut fifth = open(&turns, 6);
        assert!(!stands(&mut late).await && stands(&mut honest).await && stands(&mut fifth).await);
    }

    #[tokio::test]
    async fn whoever_waits_to_read_or_to_write_hears_that_its_turn_is_over() {
        let turns = Turns::new(Bound { all: 2, each: 1 });
        let ((here, _there), waiting) = (open(&turns, 1), tokio::sync::oneshot::channel());
        let (mut read, mut write) = tokio::io::split(here);
        let reading = tokio::spawn(async move { read.read_u8().await.unwrap_err().kind() });
        let writing = tokio::spawn(async move {
            // More than anyone takes.
            let written = write.write_all(&[0; 64]).await;
            waiting.0.send(written.is_ok()).unwrap();
            write.write_all(&[0; 64]).await.unwrap_err().kind()
        });
        assert!(waiting.1.await.unwrap());
        tokio::task::yield_now().await;
        let _another = open(&turns, 1);
        assert_eq!(reading.await.unwrap(), io::ErrorKind::ConnectionReset);
        assert_eq!(writing.await.unwrap(), io::ErrorKind::ConnectionReset);
    }
}
