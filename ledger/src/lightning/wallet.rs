//! The wallet: starting, stopping, and how everything else reaches ldk-node.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use consortium_protocol::identity::RootKey;
use ldk_node::bitcoin::Network as BitcoinNetwork;
use ldk_node::bitcoin::bip32::Xpriv;
use ldk_node::bitcoin::secp256k1::SecretKey;
use ldk_node::{Node, NodeError};
use tokio::runtime::Handle;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use super::coins::Coins;
use super::error::{self, WalletError};
use super::event::WalletEvent;
use super::liquidity::Uses;
use super::records::{Recorded, Records};
use super::settings::WalletSettings;
use super::watermark::Watermark;
use super::{drain, node, reconnect, rest, seed};

/// Time to start: to read the wallet's state, and to hear from the chain.
pub const START: Duration = Duration::from_secs(60);
/// Time to stop.
pub const STOP: Duration = Duration::from_secs(7);
/// Time for what asks nobody but this machine.
pub(super) const LOCAL: Duration = Duration::from_secs(20);
/// Pause before the chain source is asked again at the start.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Events that a listener may be behind; then it is told that it missed some, and reads them from the records.
const EVENTS: usize = 512;

/// A node's Lightning wallet. A clone is the same wallet. It should be stopped; when the last clone goes without, it is
/// stopped there and then, which blocks for [`STOP`] at most.
#[derive(Clone)]
pub struct Wallet {
    pub(super) inner: Arc<Inner>,
    _last: Arc<Last>,
}

/// Goes with the last clone. ldk-node stops itself when it goes, but waits for ever if that is while its runtime ends.
struct Last(Arc<Inner>);

impl Drop for Last {
    fn drop(&mut self) {
        let stopped_before = self.0.stop.send_replace(true);
        let Some(inner) = (!stopped_before).then(|| Arc::clone(&self.0)) else { return };
        let (done, wait) = std::sync::mpsc::channel();
        let runtime = Handle::try_current();
        let stopping = std::thread::Builder::new().name("wallet-stop".to_owned()).spawn(move || {
            let _entered = runtime.as_ref().map(Handle::enter);
            // There is nobody left to tell.
            let _stopped = inner.node.stop();
            let _gone = done.send(inner);
        });
        if stopping.is_err() || wait.recv_timeout(STOP).is_err() {
            // Leaked, because ldk-node would stop itself in its own drop.
            std::mem::forget(Arc::clone(&self.0));
        }
    }
}

/// What its parts share.
pub(super) struct Inner {
    pub(super) node: Node,
    pub(super) settings: WalletSettings,
    pub(super) records: Records,
    pub(super) watermark: Watermark,
    pub(super) events: broadcast::Sender<Recorded>,
    pub(super) secret: SecretKey,
    pub(super) payouts: Xpriv,
    pub(super) backup_key: Zeroizing<[u8; 32]>,
    pub(super) coins: Coins,
    pub(super) uses: Mutex<Uses>,
    /// ldk-node broke off.
    pub(super) broken: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Inner {
    pub(super) const fn network(&self) -> BitcoinNetwork {
        node::bitcoin_network(self.settings.network)
    }

    /// The height of the chain as Lightning has seen it.
    pub(super) fn height(&self) -> u32 {
        self.node.status().current_best_block.height
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

impl Wallet {
    /// Starts the wallet that is kept in `directory`, with the seed that `key` gives it; a new one where there is none.
    /// Must be called on a multi-threaded runtime, which the wallet uses from then on.
    ///
    /// # Errors
    /// When the settings make no sense, the chain source does not answer within [`START`], or the files are damaged or
    /// of another key or network. A wallet whose files are only damaged is not begun anew.
    pub async fn start(mut settings: WalletSettings, directory: &Path, key: &RootKey) -> Result<Self, WalletError> {
        settings.check()?;
        let bytes = seed::of(key);
        let backup_key = key.derive(seed::BACKUP);
        let network = node::bitcoin_network(settings.network);
        let keys = seed::node_secret(&bytes, network).zip(seed::payouts(&bytes, network));
        let (secret, payouts) =
            keys.ok_or_else(|| WalletError::Invalid("this identity makes no Lightning key".to_owned()))?;
        let give_up = tokio::time::Instant::now() + START;
        if let Some(endpoint) = settings.chain.rest() {
            rest::answers(endpoint, settings.network, START / 2).await?;
        }
        let directory = directory.to_owned();
        let runtime = Handle::current();
        let starting = tokio::task::spawn_blocking(move || -> Result<_, WalletError> {
            let new = !node::has_state(&directory);
            node::make_private(&directory)?;
            let records = Records::open(&directory.join("wallet.db"))?;
            let watermark = Watermark::beside(&directory);
            if new {
                watermark.forget()?;
            } else if !watermark.allows(records.newest()?)? {
                return Err(WalletError::Stale(directory));
            }
            node::pick_ports(&mut settings.listen, &directory)?;
            let node = node::build(&settings, &directory, &bytes, runtime)?;
            start_patiently(&node)?;
            mark(&records, &watermark, &WalletEvent::Started)?;
            Ok((node, settings, records, watermark))
        });
        let started = tokio::time::timeout_at(give_up, starting).await;
        let started = started.map_err(|_| WalletError::Late { what: "starting the Lightning node", after: START })?;
        let (node, settings, records, watermark) = started.map_err(|_| WalletError::Stopped)??;
        let (events, stop) = (broadcast::Sender::new(EVENTS), watch::Sender::new(false));
        let tasks = Mutex::default();
        let (coins, uses, broken) = (Coins::default(), Mutex::default(), watch::Sender::new(false));
        let inner = Arc::new(Inner {
            node,
            settings,
            records,
            watermark,
            events,
            secret,
            payouts,
            backup_key,
            coins,
            uses,
            broken,
            stop,
            tasks,
        });
        let wallet = Self { _last: Arc::new(Last(Arc::clone(&inner))), inner };
        wallet.watch_over();
        Ok(wallet)
    }

    fn watch_over(&self) {
        let stop = self.inner.stop.subscribe();
        let tasks = [
            tokio::spawn(drain::run(Arc::clone(&self.inner), stop.clone())),
            tokio::spawn(reconnect::run(Arc::clone(&self.inner), stop)),
        ];
        self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner).extend(tasks);
    }

    /// Stops the wallet: its state is on disk, its peers are told. Later calls fail with [`WalletError::Stopped`].
    ///
    /// # Errors
    /// [`WalletError::Late`] when it does not end within [`STOP`]; what was promised to peers is on disk all the same.
    pub async fn stop(&self) -> Result<(), WalletError> {
        self.inner.stop.send_replace(true);
        let tasks = std::mem::take(&mut *self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let stopping = async {
            for task in tasks {
                // A task that broke off has stopped, too.
                let _broken_off = task.await;
            }
            let inner = Arc::clone(&self.inner);
            tokio::task::spawn_blocking(move || {
                let stopped = inner.node.stop();
                // What is not noted makes a copy harder to tell, and nothing else.
                let _unnoted = mark(&inner.records, &inner.watermark, &WalletEvent::Stopped);
                stopped
            })
            .await
        };
        match tokio::time::timeout(STOP, stopping).await {
            Err(_) => Err(WalletError::Late { what: "stopping the Lightning node", after: STOP }),
            Ok(Ok(Ok(()) | Err(NodeError::NotRunning))) => Ok(()),
            Ok(Ok(Err(error))) => Err(error::of("stopping the Lightning node")(error)),
            Ok(Err(_)) => Err(WalletError::Stopped),
        }
    }

    /// Events from now on. Who falls behind by more than a few hundred is told so, and finds them by [`Wallet::recorded`].
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Recorded> {
        self.inner.events.subscribe()
    }

    /// Ends when the Lightning node has broken off, on a full disk for example: it does nothing any more, and whoever runs
    /// it must be started again.
    pub async fn broke_off(&self) {
        let mut broken = self.inner.broken.subscribe();
        // The sender is in the wallet itself.
        let _closed = broken.wait_for(|broken| *broken).await;
    }

    /// A name of this wallet's records, drawn when they were begun: where it is another, places of events are others too.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn records_name(&self) -> Result<String, WalletError> {
        self.ask("reading the records", LOCAL, |inner| Ok(hex::encode(inner.records.identity()?))).await
    }

    /// What happened after a place in the records, the oldest first; at most `limit` events of the newest 100,000.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn recorded(&self, after: u64, limit: u32) -> Result<Vec<Recorded>, WalletError> {
        self.ask("reading the records", LOCAL, move |inner| inner.records.events(after, limit)).await
    }

    /// Does what blocks on a thread made for it, and waits for it for a time.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        after: Duration,
        work: impl FnOnce(&Inner) -> Result<T, WalletError> + Send + 'static,
    ) -> Result<T, WalletError> {
        let inner = Arc::clone(&self.inner);
        let working = tokio::task::spawn_blocking(move || work(&inner));
        let worked = tokio::time::timeout(after, working).await.map_err(|_| WalletError::Late { what, after })?;
        worked.map_err(|_| WalletError::Stopped)?
    }
}

impl std::fmt::Debug for Wallet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wallet").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}

/// Records a start or a stop, and notes it beside the directory.
fn mark(records: &Records, watermark: &Watermark, event: &WalletEvent) -> Result<(), WalletError> {
    records.note(event, now_ms())?;
    Ok(watermark.note(records.newest()?)?)
}

/// Starts ldk-node, and asks the chain source again for a while if it is not up yet, as after the start of a machine.
fn start_patiently(node: &Node) -> Result<(), WalletError> {
    let give_up = Instant::now() + START / 2;
    loop {
        let error = match node.start() {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let not_yet =
            matches!(error, NodeError::FeerateEstimationUpdateFailed | NodeError::FeerateEstimationUpdateTimeout);
        if !not_yet || Instant::now() > give_up {
            return Err(WalletError::Start(error));
        }
        std::thread::sleep(ASK_AGAIN);
    }
}
