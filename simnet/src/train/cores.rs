//! Peers side by side on the cores of this machine.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};

/// Threads that train: as many peers at a time, each on a thread of its own.
const THREADS: usize = 2;

/// Does `work` on every item, a few at a time, and answers with what came out, in the order of the items, and how many seconds
/// of a processor each took: what else this machine does is not in it. Their matrix products do not spread over other cores: they are small, and other peers train beside them.
///
/// # Errors
/// When the system gives no thread.
pub(super) fn side_by_side<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Result<Vec<(R, f64)>> {
    let mut done: Vec<Option<(R, f64)>> = items.iter().map(|_| None).collect();
    let waiting = Mutex::new(items.into_iter().zip(&mut done));
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    let turns = || {
        while let Some((item, done)) = next() {
            let begun = processor_seconds();
            let made = work(item);
            *done = Some((made, processor_seconds() - begun));
        }
    };
    std::thread::scope(|scope| {
        let on_one_core = || -> Result<()> {
            rayon::ThreadPoolBuilder::new().num_threads(1).build()?.install(turns);
            Ok(())
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(on_one_core)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    done.into_iter().map(|done| done.context("a thread ended early")).collect()
}

/// Seconds of a processor that this thread has had.
fn processor_seconds() -> f64 {
    let spent = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(std::time::Duration::from);
    spent.unwrap_or_default().as_secs_f64()
}
