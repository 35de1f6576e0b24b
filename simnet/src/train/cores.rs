//! Work that stays on its own thread.

use anyhow::Result;

/// Runs `work` so that its matrix products do not spread over all cores: they are small, and other peers train beside it.
///
/// # Errors
/// When the system gives no thread.
pub(super) fn on_one_core<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    Ok(rayon::ThreadPoolBuilder::new().num_threads(1).build()?.install(work))
}
