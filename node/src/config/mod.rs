//! What a node is told: defaults, then the configuration file, then the environment, then flags.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use consortium_ledger::lightning::settings::{SettingsError, WalletSettings};
use consortium_ledger::price::Prices;
use consortium_ledger::reputation::AuditPolicy;
use consortium_protocol::cluster::ClusterName;
use consortium_protocol::identity::NodeId;
use consortium_protocol::msat::Msat;
use serde::Deserialize;

use crate::till::TillSettings;

mod lightning;
mod sale;
mod tabs;

pub use lightning::{BitcoindRest, LightningSettings};
pub use sale::SaleSettings;
pub use tabs::{TabRules, TabSettings};

/// What a node asks by default for one token through one layer.
pub const PRICE: Msat = Msat(1);
/// The highest price of a token through a layer, in msat: a sat. Who asks for more gets no work.
pub const MAX_PRICE: Msat = Msat(1000);
/// The highest fee of a master for a position, in msat: a sat. Who asks for more gets none.
pub const MAX_MASTER_FEE: Msat = Msat(1000);

/// Jobs in progress that are by default a load of 1000 thousandths.
pub const FULL_LOAD: u32 = 4;

/// How long entries of the journal wait by default for a signed tree head.
pub const BATCH: Duration = Duration::from_secs(300);

/// Settings of a running node.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the node keeps its key, databases and models.
    pub data_dir: PathBuf,
    /// Multiaddresses to listen on.
    pub listen: Vec<String>,
    /// Multiaddresses of peers to begin with.
    pub bootstrap: Vec<String>,
    /// The cluster to serve in.
    pub cluster: ClusterName,
    /// Where the HTTP API listens.
    pub api_addr: SocketAddr,
    /// Model to serve: a directory, or the name of an imported one.
    pub model: Option<String>,
    /// Memory offered for model layers and their caches, in bytes.
    pub memory_bytes: u64,
    /// Stages to spread a model over when this node is the master; none leaves it to placement.
    pub stages: Option<usize>,
    /// What this node asks for one token through one layer.
    pub prices: Prices,
    /// Jobs in progress that are a load of 1000 thousandths.
    pub full_load: u32,
    /// What this node takes from its API keys on top of what the workers get, in thousandths.
    pub fee: u16,
    /// What this node asks, as a master, for each position of a job that it drives for another.
    pub master_fee: Msat,
    /// How long entries of the journal wait for a signed tree head.
    pub batch: Duration,
    /// How much of the work that this node pays for is audited.
    pub audits: AuditPolicy,
    /// Who audits this node's jobs, before all others.
    pub auditors: Vec<NodeId>,
    /// Look for peers on the local network.
    pub mdns: bool,
    /// The Lightning wallet; none for none.
    pub wallet: Option<WalletSettings>,
    /// What is sold for what the wallet receives.
    pub sale: TillSettings,
    /// When what is owed for work is paid, and how much may be owed.
    pub tabs: TabRules,
}

/// Settings as they may stand in the configuration file, the environment or flags: all optional.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// See [`Config::listen`].
    pub listen: Option<Vec<String>>,
    /// See [`Config::bootstrap`].
    pub bootstrap: Option<Vec<String>>,
    /// See [`Config::cluster`].
    pub cluster: Option<String>,
    /// See [`Config::api_addr`].
    pub api_addr: Option<SocketAddr>,
    /// See [`Config::model`].
    pub model: Option<String>,
    /// Such as `512MiB`; see [`Config::memory_bytes`].
    pub memory: Option<String>,
    /// See [`Config::stages`].
    pub stages: Option<usize>,
    /// In msat, when idle; see [`Config::prices`].
    pub price: Option<u64>,
    /// In thousandths; see [`Config::prices`].
    pub price_max_load: Option<u32>,
    /// See [`Config::full_load`].
    pub price_full_load: Option<u32>,
    /// See [`Config::fee`].
    pub fee: Option<u16>,
    /// In msat; see [`Config::master_fee`].
    pub master_fee: Option<u64>,
    /// In seconds; see [`Config::batch`].
    pub batch_seconds: Option<u64>,
    /// In thousandths; see [`Config::audits`].
    pub audit_rate: Option<u16>,
    /// PeerIds; see [`Config::auditors`].
    pub auditor: Option<Vec<String>>,
    /// See [`Config::mdns`].
    pub mdns: Option<bool>,
    /// See [`Config::wallet`]; in the file, the table `[wallet]`.
    #[serde(default)]
    pub wallet: LightningSettings,
    /// See [`Config::sale`]; in the file, the table `[sale]`.
    #[serde(default)]
    pub sale: SaleSettings,
    /// See [`Config::tabs`]; in the file, the table `[tabs]`.
    #[serde(default)]
    pub tabs: TabSettings,
}

/// Why settings do not make a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The configuration file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {message}")]
    Parse {
        /// The configuration file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// A value that makes no sense.
    #[error("{name} `{value}`: {reason}")]
    Value {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Settings of the wallet that make no sense.
    #[error(transparent)]
    Wallet(#[from] SettingsError),
}

impl Settings {
    /// Reads a TOML file.
    ///
    /// # Errors
    /// When it cannot be read, or names a setting that does not exist.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text)
            .map_err(|error| ConfigError::Parse { path: path.to_owned(), message: told(&error, &text) })
    }

    /// These settings, and `lower`'s where these are silent.
    #[must_use]
    pub fn or(self, lower: Self) -> Self {
        Self {
            listen: self.listen.or(lower.listen),
            bootstrap: self.bootstrap.or(lower.bootstrap),
            cluster: self.cluster.or(lower.cluster),
            api_addr: self.api_addr.or(lower.api_addr),
            model: self.model.or(lower.model),
            memory: self.memory.or(lower.memory),
            stages: self.stages.or(lower.stages),
            price: self.price.or(lower.price),
            price_max_load: self.price_max_load.or(lower.price_max_load),
            price_full_load: self.price_full_load.or(lower.price_full_load),
            fee: self.fee.or(lower.fee),
            master_fee: self.master_fee.or(lower.master_fee),
            batch_seconds: self.batch_seconds.or(lower.batch_seconds),
            audit_rate: self.audit_rate.or(lower.audit_rate),
            auditor: self.auditor.or(lower.auditor),
            mdns: self.mdns.or(lower.mdns),
            wallet: self.wallet.or(lower.wallet),
            sale: self.sale.or(lower.sale),
            tabs: self.tabs.or(lower.tabs),
        }
    }

    /// Fills the gaps with defaults and checks the values.
    ///
    /// # Errors
    /// [`ConfigError::Value`] names the setting and what is wrong with it.
    pub fn resolve(self, data_dir: PathBuf) -> Result<Config, ConfigError> {
        let cluster = self.cluster.unwrap_or_else(|| "home".to_owned());
        let cluster = cluster.parse().map_err(|error: consortium_protocol::cluster::ParseClusterNameError| {
            ConfigError::Value { name: "cluster", value: cluster.clone(), reason: error.to_string() }
        })?;
        let memory_bytes = match self.memory {
            Some(text) => parse_bytes(&text)?,
            None => half_of_memory(),
        };
        let prices = check_prices(self.price, self.price_max_load.unwrap_or(0))?;
        let fee = thousandths("fee", self.fee)?.unwrap_or(0);
        let mut audits = AuditPolicy::default();
        if let Some(rate) = thousandths("audit-rate", self.audit_rate)? {
            audits.base = f64::from(rate) / 1000.0;
        }
        if self.stages == Some(0) {
            return Err(ConfigError::Value {
                name: "stages",
                value: "0".to_owned(),
                reason: "must be at least 1".to_owned(),
            });
        }
        let wallet = self.wallet.resolve()?;
        Ok(Config {
            data_dir,
            listen: self.listen.unwrap_or_else(|| {
                vec!["/ip4/0.0.0.0/tcp/4801".to_owned(), "/ip4/0.0.0.0/udp/4801/quic-v1".to_owned()]
            }),
            bootstrap: self.bootstrap.unwrap_or_default(),
            cluster,
            api_addr: self.api_addr.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8080))),
            model: self.model,
            memory_bytes,
            stages: self.stages,
            prices,
            full_load: self.price_full_load.unwrap_or(FULL_LOAD),
            fee,
            master_fee: check_master_fee(self.master_fee)?,
            batch: self.batch_seconds.map_or(BATCH, Duration::from_secs),
            audits,
            auditors: self.auditor.as_deref().map(auditors).transpose()?.unwrap_or_default(),
            mdns: self.mdns.unwrap_or(true),
            sale: self.sale.resolve(wallet.is_some())?,
            wallet,
            tabs: self.tabs.resolve()?,
        })
    }
}

fn thousandths(name: &'static str, value: Option<u16>) -> Result<Option<u16>, ConfigError> {
    match value {
        Some(value @ 1001..) => {
            let reason = "is counted in thousandths: at most 1000".to_owned();
            Err(ConfigError::Value { name, value: value.to_string(), reason })
        }
        value => Ok(value),
    }
}

/// Auditors that may be named: an order is offered to one after the other, and each may take seconds to answer.
const MAX_AUDITORS: usize = 8;

fn auditors(names: &[String]) -> Result<Vec<NodeId>, ConfigError> {
    let bad = |value: &str, reason: String| ConfigError::Value { name: "auditor", value: value.to_owned(), reason };
    if let Some(one_too_many) = names.get(MAX_AUDITORS) {
        return Err(bad(one_too_many, format!("at most {MAX_AUDITORS} can be named")));
    }
    names.iter().map(|name| name.parse().map_err(|error| bad(name, format!("{error}")))).collect()
}

fn check_master_fee(msat: Option<u64>) -> Result<Msat, ConfigError> {
    let fee = Msat(msat.unwrap_or(0));
    if fee <= MAX_MASTER_FEE {
        return Ok(fee);
    }
    let reason = format!("is more than {} msat, and would be paid by nobody", MAX_MASTER_FEE.0);
    Err(ConfigError::Value { name: "master-fee", value: fee.0.to_string(), reason })
}

/// What is asked: no more than the highest price there is, even under the highest load.
fn check_prices(base: Option<u64>, max_load: u32) -> Result<Prices, ConfigError> {
    let prices = Prices { base: base.map_or(PRICE, Msat), max_load };
    if prices.at(u32::MAX).is_ok_and(|highest| highest <= MAX_PRICE) {
        return Ok(prices);
    }
    let (name, value) = match prices.base > MAX_PRICE {
        true => ("price", prices.base.0.to_string()),
        false => ("price-max-load", max_load.to_string()),
    };
    let reason = format!("a token through a layer would cost more than {MAX_PRICE}");
    Err(ConfigError::Value { name, value, reason })
}

/// What is wrong and in which line, without showing the line: a password may be in it.
fn told(error: &toml::de::Error, text: &str) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    match before {
        Some(before) => format!("line {}: {}", before.matches('\n').count() + 1, error.message()),
        None => error.message().to_owned(),
    }
}

/// Reads `512MiB`, `4GB`, `1.5GiB` or plain bytes.
///
/// # Errors
/// When the unit is unknown or the number is not positive.
pub fn parse_bytes(text: &str) -> Result<u64, ConfigError> {
    let bad = |reason: &str| ConfigError::Value { name: "memory", value: text.to_owned(), reason: reason.to_owned() };
    let digits = text.trim().trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.trim()[digits.len()..].to_ascii_lowercase();
    let scale: u64 = match unit.as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "kib" => 1 << 10,
        "m" | "mb" => 1_000_000,
        "mib" => 1 << 20,
        "g" | "gb" => 1_000_000_000,
        "gib" => 1 << 30,
        _ => return Err(bad("the unit must be B, KiB, MiB, GiB, KB, MB or GB")),
    };
    let number: f64 = digits.trim().parse().map_err(|_| bad("write it like 512MiB or 4GB"))?;
    let bytes = number * scale as f64;
    if (1.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err(bad("must be more than zero")) }
}

/// Half of the machine's memory, or 2 GiB where the system does not tell.
fn half_of_memory() -> u64 {
    #[cfg(target_os = "linux")]
    if let Ok(info) = nix::sys::sysinfo::sysinfo() {
        return info.ram_total() / 2;
    }
    2 << 30
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_environment_over_file() {
        let file = Settings { cluster: Some("file".to_owned()), model: Some("m".to_owned()), ..Settings::default() };
        let flags = Settings { cluster: Some("flag".to_owned()), ..Settings::default() };
        let merged = flags.or(file);
        assert_eq!(merged.cluster.as_deref(), Some("flag"));
        assert_eq!(merged.model.as_deref(), Some("m"));
    }

    #[test]
    fn sizes_are_read_and_nonsense_refused() {
        assert_eq!(parse_bytes("512MiB").unwrap(), 512 << 20);
        assert_eq!(parse_bytes("1.5GB").unwrap(), 1_500_000_000);
        assert_eq!(parse_bytes("77").unwrap(), 77);
        for bad in ["", "MiB", "-1GB", "4 parsecs", "0", "NaN", "1e400"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn prices_and_shares_have_their_limits() {
        let settings = |price, max_load, fee| Settings {
            price: Some(price),
            price_max_load: Some(max_load),
            fee: Some(fee),
            ..Settings::default()
        };
        let config = settings(500, 1000, 1000).resolve(PathBuf::new()).unwrap();
        assert_eq!((config.prices.at(u32::MAX).unwrap(), config.fee), (MAX_PRICE, 1000));
        let rate = |rate| Settings { audit_rate: Some(rate), ..Settings::default() }.resolve(PathBuf::new());
        assert_eq!(rate(0).unwrap().audits.base, 0.0);
        assert_eq!(rate(350).unwrap().audits, AuditPolicy { base: 0.35, ..AuditPolicy::default() });
        assert!(rate(1001).unwrap_err().to_string().starts_with("audit-rate `1001`"));
        for (price, max_load, fee, name) in
            [(1001, 0, 0, "price"), (500, 1002, 0, "price-max-load"), (u64::MAX, 9, 0, "price"), (1, 0, 1001, "fee")]
        {
            let error = settings(price, max_load, fee).resolve(PathBuf::new()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name} `")), "{error}");
        }
    }

    #[test]
    fn an_unknown_setting_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, "clutser = \"x\"").unwrap();
        let error = Settings::read(&path).unwrap_err().to_string();
        assert!(error.contains("clutser"), "{error}");
        std::fs::write(&path, "mdns = true\n[wallet]\nlightning = 'regtest'\nbitcoind = 'http://u:hunter2@h").unwrap();
        let error = Settings::read(&path).unwrap_err().to_string();
        assert!(error.contains("line 4") && !error.contains("hunter2"), "{error}");
    }
}
