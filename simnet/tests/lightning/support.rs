//! A chain, and wallets on it.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use consortium_node::ledger::lightning::Wallet;
use consortium_node::ledger::lightning::chain_source::ChainSource;
use consortium_node::ledger::lightning::channels::OpenOrder;
use consortium_node::ledger::lightning::event::WalletEvent;
use consortium_node::ledger::lightning::invoice::InvoiceOrder;
use consortium_node::ledger::lightning::pay::PayOrder;
use consortium_node::ledger::lightning::records::Recorded;
use consortium_node::ledger::lightning::settings::{Network, SpendingLimits, WalletSettings};
use consortium_protocol::Msat;
use consortium_protocol::identity::RootKey;
use consortium_simnet::chain::Regtest;
use consortium_simnet::chain::rpc::{Credentials, RpcClient, RpcServer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::broadcast::Receiver;

/// No wait in these tests is longer; machines are busy at times.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
/// Bitcoin in the sats that wallets are given.
const GIFT: &str = "0.01";

/// A chain with a miner, and a directory for wallets; the chain's own one in it is called `chain`.
pub(crate) struct Town {
    client: RpcClient,
    credentials: Credentials,
    server: RpcServer,
    dir: TempDir,
}

impl Town {
    pub(crate) fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let credentials = Credentials::random();
        let dir = tempfile::tempdir().unwrap();
        let regtest = Regtest::open(&dir.path().join("chain"), now).unwrap();
        let server = RpcServer::start(regtest, credentials.clone()).unwrap();
        let client = RpcClient::new(&server.url(), credentials.clone()).unwrap();
        Self { client, credentials, server, dir }
    }

    pub(crate) async fn call(&self, method: &str, params: Value) -> Value {
        self.client.call(method, params).await.unwrap()
    }

    pub(crate) async fn mine(&self, blocks: u32) {
        let payee = self.call("getnewaddress", json!([])).await;
        self.call("generatetoaddress", json!([blocks, payee])).await;
    }

    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where bitcoind's stand-in listens, and whom it answers: host, port, user, password.
    pub(crate) fn bitcoind(&self) -> (String, u16, String, String) {
        let url = self.server.url();
        let (host, port) = url.strip_prefix("http://").unwrap().split_once(':').unwrap();
        let Credentials { user, password, .. } = self.credentials.clone();
        (host.to_owned(), port.trim_end_matches('/').parse().unwrap(), user, password)
    }

    pub(crate) fn password(&self) -> &str {
        &self.credentials.password
    }

    pub(crate) fn settings(&self, name: &str) -> WalletSettings {
        settings_at(&self.chain_url(), name)
    }

    /// The chain, with user and password.
    pub(crate) fn chain_url(&self) -> String {
        let place = self.server.url();
        let place = place.strip_prefix("http://").unwrap();
        format!("http://{}:{}@{place}", self.credentials.user, self.credentials.password)
    }

    /// The wallet of that name, begun or gone on with.
    pub(crate) async fn wallet(&self, name: &str) -> Wallet {
        self.wallet_with(name, self.settings(name)).await
    }

    pub(crate) async fn wallet_with(&self, name: &str, settings: WalletSettings) -> Wallet {
        Wallet::start(settings, &self.directory(name), &key(name)).await.unwrap()
    }

    /// Gives each a million sat and waits until they know.
    pub(crate) async fn fund(&self, wallets: &[&Wallet]) {
        for wallet in wallets {
            let address = wallet.new_address().await.unwrap();
            self.call("sendtoaddress", json!([address, GIFT])).await;
        }
        self.mine(6).await;
        for wallet in wallets {
            until("the gift is there", || async { wallet.balances().await.unwrap().spendable_sat >= 1_000_000 }).await;
        }
    }

    /// Opens a channel and waits until both can use it.
    pub(crate) async fn channel(&self, from: &Wallet, to: &Wallet, sat: u64, push: Msat) -> String {
        let order = OpenOrder { peer: place(to).await, size_sat: sat, push, announced: true };
        let id = from.open_channel(order).await.unwrap();
        self.settle_channel(from, to, &id).await;
        id
    }

    async fn settle_channel(&self, from: &Wallet, to: &Wallet, id: &str) {
        let funding = || async { find(from, id).await.funding };
        until("the channel has a funding", || async { funding().await.is_some() }).await;
        let output = funding().await.unwrap();
        let txid = output.split(':').next().unwrap().to_owned();
        until("the funding is broadcast", || async {
            self.client.call("getmempoolentry", json!([txid])).await.is_ok()
        })
        .await;
        self.mine(6).await;
        let usable = |wallet: Wallet, output: String| async move {
            let channels = wallet.channels().await.unwrap();
            channels.iter().any(|channel| {
                channel.funding.as_ref() == Some(&output)
                    && channel.state == consortium_node::ledger::lightning::channels::ChannelState::Usable
            })
        };
        until("the channel can be used", || async {
            usable(from.clone(), output.clone()).await && usable(to.clone(), output.clone()).await
        })
        .await;
    }
}

/// Settings of a wallet on a chain.
pub(crate) fn settings_at(chain: &str, name: &str) -> WalletSettings {
    WalletSettings {
        network: Network::Regtest,
        chain: ChainSource::bitcoind(chain, None, 18443).unwrap(),
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        alias: Some(name.to_owned()),
        trusted_peers: Vec::new(),
        reserve_sat: None,
        lsp: None,
        limits: SpendingLimits::default(),
        mainnet_accepted: false,
    }
}

/// The root key of a name.
pub(crate) fn key(name: &str) -> RootKey {
    let mut seed = [0; 32];
    seed[..name.len()].copy_from_slice(name.as_bytes());
    RootKey::from_seed(seed)
}

pub(crate) async fn find(wallet: &Wallet, id: &str) -> consortium_node::ledger::lightning::channels::ChannelView {
    wallet.channels().await.unwrap().into_iter().find(|channel| channel.id == id).unwrap()
}

/// Where a wallet can be reached.
pub(crate) async fn place(wallet: &Wallet) -> String {
    format!("{}@{}", wallet.node_id(), wallet.status().await.unwrap().listen[0])
}

pub(crate) fn order(amount: u64) -> InvoiceOrder {
    InvoiceOrder { amount: Some(Msat(amount)), description: "a test".to_owned(), expiry: Duration::from_secs(600) }
}

pub(crate) fn pay(invoice: String) -> PayOrder {
    PayOrder { invoice, amount: None, max_fee: None, within: PATIENCE }
}

/// Waits until something is so.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, is_so: impl Fn() -> F) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

/// Waits for an event.
pub(crate) async fn event(events: &mut Receiver<Recorded>, wanted: impl Fn(&WalletEvent) -> bool) -> WalletEvent {
    let waiting = async {
        loop {
            let recorded = events.recv().await.unwrap();
            if wanted(&recorded.event) {
                return recorded.event;
            }
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the event comes")
}
