//! Puts a node together: key, lock, storage, swarm, cluster, layers, pipelines, gateway and HTTP, each a task with an
//! owner and a way to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use consortium_inference::audit::thresholds::Thresholds;
use consortium_inference::stage::{StageHandle, StageOptions};
use consortium_ledger::api_keys::ApiKeys;
use consortium_ledger::batches::BatchPolicy;
use consortium_ledger::ledger::Ledger;
#[cfg(feature = "lightning")]
use consortium_ledger::lightning::liquidity::Budget;
use consortium_protocol::identity::RootKey;
use consortium_protocol::wire;
use consortium_protocol::wire::fact::Fact;
use consortium_protocol::wire::heartbeat::LayerRange;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::audit::earning::Earning;
use crate::audit::proof::Proofs;
use crate::audit::standings::Standings;
use crate::audit::{self, AuditDesk, AuditTask, SettledJobs, Spool};
use crate::billing::Billing;
use crate::blobs::Blobs;
use crate::clock;
use crate::cluster::{ClusterTask, ClusterView, LocalFacts};
use crate::config::Config;
use crate::data_dir::{ApiFile, Lock};
use crate::dispatch::Dispatch;
use crate::gateway::Gateway;
use crate::http::{self, HttpApp};
use crate::keyfile;
use crate::library::{self, Library};
#[cfg(feature = "lightning")]
use crate::liquidity::Liquidity;
use crate::mandating::Mandating;
use crate::master::MasterTask;
use crate::observer::Observer;
use crate::operator::OperatorToken;
use crate::pipeline::{Driver, DriverConfig, Tamper, TokenInbox, Worker};
use crate::prices::{Advertised, Asking};
use crate::rpc::{Operated, Rpc, Sources, TrainingDesk};
use crate::serving::Serving;
use crate::shards::Shards;
use crate::storage::Storage;
use crate::swarm::{self, SwarmConfig, SwarmHandle, TransportKind};
use crate::tabs::mandates::Mandates;
use crate::tabs::{TabParts, Tabs};
use crate::train::{Payouts, TrainingParts, Trainings};
#[cfg(feature = "lightning")]
use crate::{bookkeeper, wallet};

/// Requests waiting for the dispatcher.
const GATEWAY_QUEUE: usize = 256;
/// Known peers are written down this often.
const REMEMBER: Duration = Duration::from_secs(30);
/// Whether a batch of the journal is to be closed is looked at this often.
const BATCHES: Duration = Duration::from_secs(5);
/// What files for others may take in all: updates and parameters of training, submissions.
const BLOB_QUOTA: u64 = 64 << 30;
/// Time that tasks have to end after a shutdown was asked for.
const SHUTDOWN: Duration = Duration::from_secs(8);

/// Runs a node until `stop`. `ready` hears the API's base URL and the PeerId once the node listens.
///
/// # Errors
/// When something in the way of starting (data directory in use, port in use, damaged model, ...), named in words, or
/// when the node could not go on safely.
pub async fn run(config: Config, stop: CancellationToken, ready: impl FnOnce(&ApiFile)) -> anyhow::Result<()> {
    run_tampered(config, None, stop, ready).await
}

/// As [`run`], for experiments with dishonest workers.
///
/// # Errors
/// As [`run`].
pub async fn run_tampered(
    config: Config,
    tamper: Option<Arc<dyn Tamper>>,
    stop: CancellationToken,
    ready: impl FnOnce(&ApiFile),
) -> anyhow::Result<()> {
    let _lock = Lock::acquire(&config.data_dir)?;
    let key = Arc::new(keyfile::load_or_create(&config.data_dir)?);
    let me = key.node_id();
    let cluster = config.cluster.id();
    let storage = Storage::open(&config.data_dir.join("node.db"))?;
    let keys = Arc::new(ApiKeys::open(&config.data_dir.join("ledger.db"))?);
    let ledger = Ledger::open(&config.data_dir.join("ledger.db"), me)?;
    let standings = Standings::open(ledger, Arc::clone(&key), config.audits, config.fee)?;
    let asking = Asking::new(config.prices, config.full_load)?;
    let require_key = require_key(config.api_addr, &keys, config.sale.open_to_all)?;
    let listener = TcpListener::bind(config.api_addr)
        .await
        .with_context(|| format!("cannot listen on {} for the API; choose another with --api-addr", config.api_addr))?;
    let api_base = format!("http://{}/v1", listener.local_addr()?);

    #[cfg(feature = "lightning")]
    let wallet = wallet::start(config.wallet.clone(), &config.data_dir, &key).await?;
    let (library, serving) = open_models(&config).await?;
    let shards = Shards::new(library.clone(), config.memory_bytes);
    let facts = watch::Sender::new(LocalFacts {
        models: library.iter().map(|(model, _)| model.clone()).collect(),
        memory_bytes: config.memory_bytes,
        layer_micros: 0,
        price: asking.now(),
        master_fee: config.master_fee,
        willing: !serving.is_empty(),
    });

    let swarm_config = SwarmConfig {
        key: &key,
        cluster,
        listen: config.listen.clone(),
        bootstrap: config.bootstrap.clone(),
        mdns: config.mdns,
        transport: TransportKind::Internet,
    };
    let protocols = [wire::STAGE, wire::TOKENS, wire::JOB, wire::OPENING, wire::EVIDENCE, wire::BLOB, wire::TRAIN];
    let (swarm, events, [stages, tokens, jobs, openings, evidence, files, runs]) =
        swarm::spawn(swarm_config, protocols)?;
    swarm.dial(storage.peer_addresses().await?).await?;

    let view = watch::Sender::new(ClusterView::default());
    let (gateway, submissions) = Gateway::channel(GATEWAY_QUEUE);
    let model = serving.first().map(|serving| (serving.model.clone(), Arc::clone(&serving.dir)));
    let master = MasterTask {
        key: Arc::clone(&key),
        cluster,
        swarm: swarm.clone(),
        view: view.subscribe(),
        model,
        stages: config.stages,
        standings: standings.clone(),
    }
    .spawn(stop.clone());
    let tabs = Tabs::new(TabParts {
        key: Arc::clone(&key),
        storage: storage.clone(),
        standings: standings.clone(),
        rules: config.tabs,
        #[cfg(feature = "lightning")]
        wallet: wallet.clone(),
    });
    let inbox = TokenInbox::default();
    let driver = Arc::new(Driver::new(DriverConfig {
        key: Arc::clone(&key),
        cluster,
        swarm: swarm.clone(),
        inbox: inbox.clone(),
        master: master.clone(),
        serving: serving.clone(),
        master_fee: config.master_fee,
        credit: tabs.credit().clone(),
    }));
    let spool = Spool::open(&config.data_dir).context("cannot keep what audits ask for")?;
    let proofs = Proofs::new(&config.data_dir);
    let kept_proofs = proofs.clone();
    let settled = SettledJobs::default();
    let advertised = Advertised::default();
    let audits = AuditTask {
        key: Arc::clone(&key),
        cluster,
        swarm: swarm.clone(),
        library: library.clone(),
        serving: serving.clone(),
        shards: shards.clone(),
        view: view.subscribe(),
        storage: storage.clone(),
        proofs: proofs.clone(),
        standings: standings.clone(),
        advertised: advertised.clone(),
        thresholds: Arc::new(thresholds(&config)?),
        auditors: config.auditors.clone(),
        settled: settled.clone(),
    }
    .spawn(stop.clone());
    let dispatch = Dispatch {
        swarm: swarm.clone(),
        view: view.subscribe(),
        driver,
        mandating: Mandating { key: Arc::clone(&key), cluster, view: view.subscribe() },
        audits: audits.clone(),
        tabs: tabs.clone(),
    };
    let worker = Worker {
        cluster,
        swarm: swarm.clone(),
        shards: shards.clone(),
        view: view.subscribe(),
        key: Arc::clone(&key),
        spool: spool.clone(),
        asking: asking.clone(),
        mandates: Mandates::default(),
        credit: tabs.credit().clone(),
        tamper,
    };
    let blobs = Blobs::open(config.data_dir.join("blobs"), BLOB_QUOTA).context("cannot keep files for others")?;
    let alarms = watch::Sender::new(Vec::new());
    #[cfg(feature = "lightning")]
    let watched = wallet.as_ref().map(|wallet| tokio::spawn(wallet::watch_over(wallet.clone(), stop.clone())));
    #[cfg(feature = "lightning")]
    let (escrows, escrows_end) =
        wallet::escrows(wallet.as_ref(), &config.data_dir, &key, standings.ledger(), &swarm, &stop).await?;
    #[cfg(feature = "lightning")]
    if let Some(wallet) = &wallet {
        bookkeeper::spawn(standings.ledger().clone(), wallet.clone(), alarms.clone(), stop.clone());
    }
    let pay = Payouts::new(
        standings.ledger().clone(),
        #[cfg(feature = "lightning")]
        escrows.clone(),
        stop.clone(),
    );
    let trainings = Trainings::open(TrainingParts {
        key: Arc::clone(&key),
        data_dir: config.data_dir.clone(),
        blobs: blobs.clone(),
        swarm: swarm.clone(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        pay,
        stop: stop.clone(),
    })
    .context("cannot keep runs of training")?;
    let api_file = ApiFile { api_base, pid: std::process::id(), peer_id: me.to_string() };
    let observer = Observer {
        cluster: config.cluster.to_string(),
        api: api_file.clone(),
        memory_bytes: config.memory_bytes,
        swarm: swarm.clone(),
        view: view.subscribe(),
        shards: shards.clone(),
        master,
        standings: standings.clone(),
        alarms: alarms.subscribe(),
    };

    tokio::spawn(worker.serve(stages));
    tokio::spawn(blobs.serve(files, stop.clone()));
    tokio::spawn(trainings.clone().serve(runs, stop.clone()));
    tokio::spawn(trainings.clone().resume());
    tokio::spawn(inbox.serve(me, tokens));
    tokio::spawn(audit::opening::serve(swarm.clone(), spool, openings));
    tokio::spawn(audit::evidence::serve(proofs, evidence));
    tokio::spawn(standings.clone().watch(view.subscribe(), me, stop.clone()));
    tokio::spawn(standings.clone().weigh_gossip(swarm.clone(), stop.clone()));
    tokio::spawn(dispatch.clone().serve_peers(jobs));
    tokio::spawn(dispatch.serve_gateway(submissions));
    tokio::spawn(remember_peers(swarm.clone(), storage.clone(), stop.clone()));
    tokio::spawn(advertised.listen(view.subscribe(), stop.clone()));
    tokio::spawn(asking.follow(shards.clone(), facts.clone(), stop.clone()));
    tokio::spawn(measure(serving.clone(), facts.clone()));
    tokio::spawn(close_batches(
        standings.ledger().clone(),
        Arc::clone(&key),
        swarm.clone(),
        config.batch,
        stop.clone(),
    ));
    let status = observer.spawn(stop.clone());
    let billing = Billing::new(standings.ledger().clone(), config.fee, &serving, status.clone());
    #[cfg(feature = "lightning")]
    let till = wallet::till(wallet.as_ref(), standings.ledger(), config.sale, &stop);
    #[cfg(not(feature = "lightning"))]
    let till = None;
    let sources = Sources {
        ledger: standings.ledger().clone(),
        policy: config.audits,
        storage: storage.clone(),
        proofs: kept_proofs,
        desk: AuditDesk::new(swarm.clone(), settled, audits.clone()),
        status: status.clone(),
    };
    let token = OperatorToken::create(&config.data_dir).context("cannot write the operator's token")?;
    let operated = Operated {
        token: Some(token),
        tabs: Some(tabs.clone()),
        training: Some(TrainingDesk { runs: trainings.clone(), key: Arc::clone(&key) }),
        #[cfg(feature = "lightning")]
        wallet: wallet.clone(),
        #[cfg(feature = "lightning")]
        escrows: escrows.clone(),
    };
    let rpc = Rpc::operated(sources, operated);
    let credit = tabs.credit().clone();
    let earning = Earning { cluster, standings: standings.clone(), storage: storage.clone(), credit };
    tabs.spawn(swarm.clone(), view.subscribe(), stop.clone());
    #[cfg(feature = "lightning")]
    if let Some(wallet) = wallet.clone() {
        let budget = Budget(config.tabs.channel_budget_sat);
        Liquidity { wallet, storage: storage.clone(), standings: standings.clone(), budget }.spawn(stop.clone());
    }
    let cluster_task = ClusterTask {
        key,
        cluster,
        swarm: swarm.clone(),
        storage,
        shards,
        facts: facts.subscribe(),
        standings,
        audits,
        earning,
        tabs,
        trainings: trainings.clone(),
        #[cfg(feature = "lightning")]
        escrows,
        view,
    };
    let membership = tokio::spawn(cluster_task.run(events, stop.clone()));
    let app = HttpApp { gateway, billing, status, rpc, keys, require_key, till };
    let api = tokio::spawn(http::serve(listener, app, stop.clone()));

    api_file.write(&config.data_dir).context("cannot write api.json into the data directory")?;
    info!(peer = %me, cluster = %config.cluster, api = api_file.api_base, "node started");
    ready(&api_file);
    stop.cancelled().await;
    info!("shutting down");
    ApiFile::remove(&config.data_dir);
    OperatorToken::remove(&config.data_dir);
    #[cfg(feature = "lightning")]
    let purse = tokio::spawn(wallet::stop(wallet, escrows_end));
    let ended = tokio::time::timeout(SHUTDOWN, async {
        let served = api.await;
        let left = membership.await;
        trainings.stop().await;
        swarm.shutdown().await;
        #[cfg(feature = "lightning")]
        if purse.await.is_err() {
            warn!("stopping the wallet broke off");
        }
        (served, left)
    })
    .await;
    match ended {
        Err(_) => warn!("some tasks did not end in time"),
        Ok((served, left)) => {
            served.context("the API task broke off")??;
            left.context("the membership task broke off")??;
        }
    }
    #[cfg(feature = "lightning")]
    if let Some(watched) = watched
        && watched.await.unwrap_or(true)
    {
        bail!("the wallet broke off: the log says more; start the node again");
    }
    Ok(())
}

/// Beyond loopback everyone on the network could use the node: there must be a key to ask for, or everyone must pay.
fn require_key(address: SocketAddr, keys: &ApiKeys, sells: bool) -> anyhow::Result<bool> {
    if address.ip().is_loopback() {
        return Ok(false);
    }
    if !sells && keys.list()?.iter().all(|key| key.revoked) {
        bail!(
            "refusing to serve the API on {address}, beyond this machine, without an API key: make one first with \
             `consortium-node key create`, sell to everybody with --l402, or listen on 127.0.0.1"
        );
    }
    Ok(true)
}

/// How far honest numbers may lie apart: as measured on this machine's models, or else as compiled in.
fn thresholds(config: &Config) -> anyhow::Result<Thresholds> {
    let path = config.data_dir.join("thresholds.json");
    Ok(if path.exists() { Thresholds::read(&path)? } else { Thresholds::compiled_in() })
}

async fn open_models(config: &Config) -> anyhow::Result<(Library, Vec<Arc<Serving>>)> {
    let Some(name) = config.model.clone() else { return Ok((Library::default(), Vec::new())) };
    let data_dir = config.data_dir.clone();
    let opening = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        let library = Library::open(&[library::find(&data_dir, &name)?])?;
        let serving = library
            .iter()
            .map(|(model, dir)| Serving::open(model.clone(), Arc::clone(dir)).map(Arc::new))
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok((library, serving))
    });
    let (library, serving) = opening.await.context("opening the model broke off")??;
    for (model, _) in library.iter() {
        info!(name = model.name, digest = %model.digest, layers = model.layers, context = model.context, "model");
    }
    Ok((library, serving))
}

/// Measures how fast this machine computes a layer, and tells the cluster.
async fn measure(serving: Vec<Arc<Serving>>, facts: watch::Sender<LocalFacts>) {
    let Some(first) = serving.first() else { return };
    let range = LayerRange { first: 0, last: 0 };
    let measured = async {
        let stage = StageHandle::spawn(Arc::clone(&first.dir), range, StageOptions::default()).await?;
        stage.measure().await
    };
    match measured.await {
        Ok(micros) => {
            facts.send_modify(|facts| facts.layer_micros = micros);
        }
        Err(error) => warn!(%error, "could not measure the speed of this machine"),
    }
}

async fn remember_peers(swarm: SwarmHandle, storage: Storage, stop: CancellationToken) {
    let mut every = tokio::time::interval(REMEMBER);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        let Ok(peers) = swarm.peers().await else { return };
        let seen = peers
            .into_iter()
            .filter(|(_, info)| !info.addresses.is_empty())
            .map(|(node, info)| {
                let full =
                    |address: String| if address.contains("/p2p/") { address } else { format!("{address}/p2p/{node}") };
                (node.to_string(), info.addresses.into_iter().map(full).collect())
            })
            .collect();
        let now_s = i64::try_from(clock::since_epoch().as_secs()).unwrap_or(i64::MAX);
        if let Err(error) = storage.save_peers(seen, now_s).await {
            warn!(%error, "could not remember peers");
        }
    }
}

/// Signs a head over the journal whenever a batch is due.
async fn close_batches(ledger: Ledger, key: Arc<RootKey>, swarm: SwarmHandle, wait: Duration, stop: CancellationToken) {
    let every_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let policy = BatchPolicy { every_ms, ..BatchPolicy::default() };
    let mut every = tokio::time::interval(BATCHES);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        let (ledger, key) = (ledger.clone(), Arc::clone(&key));
        let closing = tokio::task::spawn_blocking(move || ledger.close_batch(&key, &policy, clock::wall_ms()));
        match closing.await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(head))) => {
                info!(entries = head.payload().size, root = %head.payload().root, "a batch is closed");
                if swarm.publish(Fact::TreeHead(head)).await.is_err() {
                    return;
                }
            }
            Ok(Err(error)) => warn!(%error, "a batch of the journal could not be closed"),
            Err(error) => warn!(%error, "closing a batch of the journal broke off"),
        }
    }
}
