//! `consortium-node start`: runs a node.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::lightning::LightningArgs;
use super::sale::SaleArgs;
use super::tabs::TabArgs;
use crate::config::{Config, Settings};
use crate::daemon;
use crate::pipeline::Tamper;

/// Runs a node: joins its cluster, takes the layers it is given, and serves the API.
///
/// Settings are taken from flags, then environment variables, then the configuration file, then defaults.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  consortium-node start --model ./my-model
  consortium-node start --bootstrap /ip4/203.0.113.7/tcp/4801 --memory 8GiB
  consortium-node start --lightning signet --esplora https://mutinynet.com/api

Configuration file (TOML; the same names as the flags):
  listen = [\"/ip4/0.0.0.0/tcp/4801\"]
  cluster = \"home\"
  memory = \"8GiB\"
  [wallet]
  lightning = \"signet\"
  bitcoind = \"http://127.0.0.1:38332\"
  bitcoind-cookie = \"/home/me/.bitcoin/signet/.cookie\"
  [sale]
  l402 = true")]
pub struct StartArgs {
    /// Configuration file; by default `config.toml` in the data directory, if there is one.
    #[arg(long, env = "CONSORTIUM_CONFIG")]
    config: Option<PathBuf>,
    /// Address to listen on for peers; may be repeated [default: TCP and QUIC on port 4801 of all interfaces].
    #[arg(long, env = "CONSORTIUM_LISTEN", value_delimiter = ',', value_name = "MULTIADDR")]
    listen: Vec<String>,
    /// Address of a peer to join by; may be repeated.
    #[arg(long, env = "CONSORTIUM_BOOTSTRAP", value_delimiter = ',', value_name = "MULTIADDR")]
    bootstrap: Vec<String>,
    /// Cluster to serve in: a name, or name@PEER_ID of its founder [default: home].
    #[arg(long, env = "CONSORTIUM_CLUSTER", value_name = "NAME[@FOUNDER]")]
    cluster: Option<String>,
    /// Where the OpenAI-compatible API listens [default: 127.0.0.1:8080].
    #[arg(long, env = "CONSORTIUM_API_ADDR", value_name = "IP:PORT")]
    api_addr: Option<SocketAddr>,
    /// Model to serve: a directory in the standard layout, or the name of an imported one.
    #[arg(long, env = "CONSORTIUM_MODEL", value_name = "DIR|NAME")]
    model: Option<String>,
    /// Memory offered for model layers and their caches, such as 8GiB [default: half of the machine's].
    #[arg(long, env = "CONSORTIUM_MEMORY", value_name = "SIZE")]
    memory: Option<String>,
    /// Stages to spread a model over while this node is the master [default: as few as fit].
    #[arg(long, env = "CONSORTIUM_STAGES", value_name = "N")]
    stages: Option<usize>,
    /// What this node asks for one token through one layer, in thousandths of a sat [default: 1].
    #[arg(long, env = "CONSORTIUM_PRICE", value_name = "MSAT")]
    price: Option<u64>,
    /// Let the price rise with the load, up to this load: at 1000 it is twice the price of an idle node, at 2000 three
    /// times [default: 0, a fixed price].
    #[arg(long, env = "CONSORTIUM_PRICE_MAX_LOAD", value_name = "THOUSANDTHS")]
    price_max_load: Option<u32>,
    /// Jobs in progress that are a load of 1000 [default: 4].
    #[arg(long, env = "CONSORTIUM_PRICE_FULL_LOAD", value_name = "JOBS")]
    price_full_load: Option<u32>,
    /// What this node takes from its API keys on top of what workers get, in thousandths of it [default: 0].
    #[arg(long, env = "CONSORTIUM_FEE", value_name = "THOUSANDTHS")]
    fee: Option<u16>,
    /// What this node asks, while it is the master, for each token of another node's job that it drives, in thousandths of
    /// a sat [default: 0].
    #[arg(long, env = "CONSORTIUM_MASTER_FEE", value_name = "MSAT")]
    master_fee: Option<u64>,
    /// Seconds that entries of the journal wait for a signed tree head, unless there are 256 before [default: 300].
    #[arg(long, env = "CONSORTIUM_BATCH_SECONDS", value_name = "SECONDS")]
    batch_seconds: Option<u64>,
    /// How much of what this node pays for is audited, in thousandths; newcomers and who failed of late are audited
    /// always [default: 200].
    #[arg(long, env = "CONSORTIUM_AUDIT_RATE", value_name = "THOUSANDTHS")]
    audit_rate: Option<u16>,
    /// PeerId of a node that audits what this one pays for, before all others; may be repeated.
    #[arg(long, env = "CONSORTIUM_AUDITOR", value_delimiter = ',', value_name = "PEER_ID")]
    auditor: Vec<String>,
    /// Do not look for peers on the local network.
    #[arg(long, env = "CONSORTIUM_NO_MDNS")]
    no_mdns: bool,
    #[command(flatten)]
    lightning: LightningArgs,
    #[command(flatten)]
    sale: SaleArgs,
    #[command(flatten)]
    tabs: TabArgs,
    /// How logs are written to stderr; RUST_LOG chooses what is logged.
    #[arg(long, env = "CONSORTIUM_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

/// Form of the logs.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Runs a node until SIGINT or SIGTERM.
///
/// # Errors
/// When the settings make no sense or the node cannot start.
pub async fn run(args: StartArgs, data_dir: &Path) -> Result<()> {
    run_tampered(args, data_dir, |_| Ok(None)).await
}

/// As [`run`], with the worker that an experiment makes dishonest, given the settings. `consortium-node` never does.
///
/// # Errors
/// As [`run`], and those of `tamper`.
pub async fn run_tampered(
    args: StartArgs,
    data_dir: &Path,
    tamper: impl FnOnce(&Config) -> Result<Option<Arc<dyn Tamper>>>,
) -> Result<()> {
    log_to_stderr(args.log_format);
    let file = match &args.config {
        Some(path) => Settings::read(path)?,
        None => {
            let path = data_dir.join("config.toml");
            if path.exists() { Settings::read(&path)? } else { Settings::default() }
        }
    };
    let flags = Settings {
        listen: (!args.listen.is_empty()).then_some(args.listen),
        bootstrap: (!args.bootstrap.is_empty()).then_some(args.bootstrap),
        cluster: args.cluster,
        api_addr: args.api_addr,
        model: args.model,
        memory: args.memory,
        stages: args.stages,
        price: args.price,
        price_max_load: args.price_max_load,
        price_full_load: args.price_full_load,
        fee: args.fee,
        master_fee: args.master_fee,
        batch_seconds: args.batch_seconds,
        audit_rate: args.audit_rate,
        auditor: (!args.auditor.is_empty()).then_some(args.auditor),
        mdns: args.no_mdns.then_some(false),
        wallet: args.lightning.settings(),
        sale: args.sale.settings(),
        tabs: args.tabs.settings(),
    };
    let config = flags.or(file).resolve(data_dir.to_owned())?;
    let stop = CancellationToken::new();
    stop_on_signal(stop.clone())?;
    let tamper = tamper(&config)?;
    daemon::run_tampered(config, tamper, stop, |api| {
        let mut out = std::io::stdout();
        // Whoever started the node may have closed its end; the node runs on.
        let _closed = writeln!(out, "ready: api {} peer {}", api.api_base, api.peer_id).and_then(|()| out.flush());
    })
    .await
}

fn stop_on_signal(stop: CancellationToken) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.cancel();
        // Asked twice: whoever asks does not want to wait.
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(130);
    });
    Ok(())
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,libp2p=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().init(),
    }
}
