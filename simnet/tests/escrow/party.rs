//! A party of an escrow: a wallet, its escrows, and a mailbox that is a directory, so that parties may be processes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use consortium_node::ledger::escrow::driver::{EscrowSettings, Escrows, Observer, Offer, Post, Received};
use consortium_node::ledger::escrow::limits::Consent;
use consortium_node::ledger::escrow::{Escrow, State};
use consortium_node::ledger::lightning::Wallet;
use consortium_node::ledger::lightning::settings::WalletSettings;
use consortium_protocol::wire::Message as _;
use consortium_protocol::wire::escrow::{EscrowFinding, EscrowId, EscrowKind, EscrowMessage};
use consortium_protocol::{Hash, Msat, NodeId};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::support::{Town, key, until};

/// All parties there are.
pub(crate) const NAMES: [&str; 3] = ["sponsor", "worker", "validator"];
/// The smallest tranche in these tests: worth taking back on-chain, which a little more than dust is not.
pub(crate) const UNIT: Msat = Msat(2_000_000);
const LOOK: Duration = Duration::from_millis(20);

pub(crate) fn id(name: &str) -> NodeId {
    key(name).node_id()
}

pub(crate) fn name_of(node: NodeId) -> &'static str {
    NAMES.into_iter().find(|name| id(name) == node).unwrap_or("a stranger")
}

pub(crate) struct Party {
    pub(crate) wallet: Wallet,
    pub(crate) escrows: Escrows,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Party {
    pub(crate) async fn start(settings: WalletSettings, town: &Path, name: &str, observer: Option<Observer>) -> Self {
        let directory = town.join(name);
        let wallet = Wallet::start(settings, &directory, &key(name)).await.unwrap();
        let settings = EscrowSettings { repeat: Duration::from_secs(1), books: None, observer };
        let log = directory.join("escrow.db");
        let (escrows, posts) = Escrows::open(wallet.clone(), &log, &key(name), settings).await.unwrap();
        let stop = watch::Sender::new(false);
        let running = escrows.clone();
        let stopped = stop.subscribe();
        let tasks = vec![
            tokio::spawn(async move { running.run(stopped).await }),
            tokio::spawn(send(town.join("mail"), name.to_owned(), posts)),
            tokio::spawn(fetch(mailbox(town, name), escrows.clone(), stop.subscribe())),
        ];
        Self { wallet, escrows, stop, tasks }
    }

    /// Stops all of it; it can be started again.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        let Self { wallet, escrows, tasks, .. } = self;
        drop(escrows);
        for task in tasks {
            task.abort();
            drop(task.await);
        }
        wallet.stop().await.unwrap();
    }

    pub(crate) async fn states(&self, escrow: EscrowId) -> Vec<State> {
        match self.escrows.escrow(escrow).await {
            Ok(escrow) => states(&escrow),
            Err(_) => Vec::new(),
        }
    }

    pub(crate) async fn wait(&self, escrow: EscrowId, what: &str, is_so: impl Fn(&[State]) -> bool) {
        let is_so = &is_so;
        until(what, || async { is_so(&self.states(escrow).await) }).await;
    }

    /// Waits until all of it is held here.
    pub(crate) async fn wait_held(&self, escrow: EscrowId) -> u32 {
        let held = |state: &State| matches!(state, State::Held { .. });
        self.wait(escrow, "all of it is held", |states| !states.is_empty() && states.iter().all(held)).await;
        let deadlines = self.states(escrow).await.into_iter().map(|state| match state {
            State::Held { deadline } => deadline,
            other => panic!("{other:?}"),
        });
        deadlines.min().unwrap()
    }
}

pub(crate) fn states(escrow: &Escrow) -> Vec<State> {
    escrow.tranches().iter().map(|tranche| tranche.state).collect()
}

/// What `validator` offers in these tests.
pub(crate) fn offer(kind: EscrowKind, tranches: u8, unit: Msat) -> Offer {
    let (payer, payee) = match kind {
        EscrowKind::Bond => ("worker", "validator"),
        EscrowKind::Reward | EscrowKind::Tranches => ("sponsor", "worker"),
    };
    let (payer, payee) = (id(payer), id(payee));
    Offer { kind, payer, payee, tranches, unit, delta: 144, subject: Hash::of(b"some work") }
}

/// The finding that fits what is earned.
pub(crate) fn finding(kind: EscrowKind, earned: u32) -> EscrowFinding {
    match (kind, earned) {
        (EscrowKind::Bond, 1..) => EscrowFinding::Abuse,
        (EscrowKind::Bond, 0) | (_, 1..) => EscrowFinding::Accepted,
        (_, 0) => EscrowFinding::Missed,
    }
}

fn mailbox(town: &Path, name: &str) -> PathBuf {
    let mailbox = town.join("mail").join(name);
    std::fs::create_dir_all(&mailbox).unwrap();
    mailbox
}

/// Puts letters into mailboxes, each by a rename, so that none is read in part. A letter begins with its sender.
async fn send(mail: PathBuf, from: String, mut posts: mpsc::Receiver<Post>) {
    static LETTERS: AtomicU64 = AtomicU64::new(0);
    while let Some(Post { to, message }) = posts.recv().await {
        let number = LETTERS.fetch_add(1, Ordering::Relaxed);
        let letter = format!("{from}-{}-{number:08}", std::process::id());
        let bytes = [id(&from).as_bytes().as_slice(), &message.encode()].concat();
        std::fs::write(mail.join(&letter), bytes).unwrap();
        let mailbox = mail.join(name_of(to));
        std::fs::create_dir_all(&mailbox).unwrap();
        std::fs::rename(mail.join(&letter), mailbox.join(letter)).unwrap();
    }
}

/// Reads letters, and agrees to whatever is offered.
async fn fetch(mailbox: PathBuf, escrows: Escrows, stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        let letters: BTreeSet<PathBuf> =
            std::fs::read_dir(&mailbox).unwrap().map(|entry| entry.unwrap().path()).collect();
        for letter in letters {
            let bytes = std::fs::read(&letter).unwrap();
            let (from, message) = bytes.split_at(32);
            let from = NodeId::from_bytes(from.try_into().unwrap());
            // Who sends it says it again if it is not taken.
            match escrows.receive(from, EscrowMessage::decode(message).unwrap()).await {
                Ok(Received::Offered(terms)) => drop(escrows.agree(terms, Consent { dust: true }).await.unwrap()),
                Ok(Received::Taken(_)) => {}
                Err(error) => println!("{}: {error}", mailbox.display()),
            }
            drop(std::fs::remove_file(&letter));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Three parties with channels from sponsor to worker and from worker to validator.
pub(crate) struct Three {
    pub(crate) town: Town,
    pub(crate) sponsor: Party,
    pub(crate) worker: Party,
    pub(crate) validator: Party,
}

impl Three {
    /// Both channels have 900,000 sat, of which 400,000 are on the far side.
    pub(crate) async fn new() -> Self {
        let town = Town::new();
        let place = town.directory("");
        let start = async |name: &str| Party::start(town.settings(name), &place, name, None).await;
        let (sponsor, worker, validator) = tokio::join!(start("sponsor"), start("worker"), start("validator"));
        town.fund(&[&sponsor.wallet, &worker.wallet, &validator.wallet]).await;
        town.channel(&sponsor.wallet, &worker.wallet, 900_000, Msat(400_000_000)).await;
        town.channel(&worker.wallet, &validator.wallet, 900_000, Msat(400_000_000)).await;
        Self { town, sponsor, worker, validator }
    }

    pub(crate) fn wallets(&self) -> [&Wallet; 3] {
        [&self.sponsor.wallet, &self.worker.wallet, &self.validator.wallet]
    }

    pub(crate) async fn offer(&self, kind: EscrowKind, tranches: u8, unit: Msat) -> EscrowId {
        let terms = self.validator.escrows.offer(offer(kind, tranches, unit), Consent { dust: true }).await.unwrap();
        terms.payload().id
    }

    pub(crate) async fn judge(&self, escrow: EscrowId, earned: u32) {
        let kind = self.validator.escrows.escrow(escrow).await.unwrap().terms().payload().kind;
        let evidence = Hash::of(b"evidence");
        self.validator.escrows.judge(escrow, finding(kind, earned), earned, evidence).await.unwrap();
    }

    pub(crate) async fn stop(self) {
        tokio::join!(self.sponsor.stop(), self.worker.stop(), self.validator.stop());
    }
}
