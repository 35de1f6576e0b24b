//! Settings of the Lightning wallet.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use consortium_ledger::lightning::chain_source::ChainSource;
use consortium_ledger::lightning::settings::{
    LiquidityProvider, Network, SettingsError, SpendingLimits, WalletSettings,
};
use consortium_protocol::msat::Msat;
use serde::Deserialize;

use super::ConfigError;

/// What a provider of liquidity may keep of a payment for opening a channel, unless something else is said.
const LSP_MAX_FEE: Msat = Msat(5_000_000);

/// Settings of the wallet as they may stand in the configuration file, the environment or flags: all optional. Their
/// names are those of the flags.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LightningSettings {
    /// The network; none for no wallet.
    pub lightning: Option<String>,
    /// URL of a bitcoind, with or without credentials.
    pub bitcoind: Option<String>,
    /// See [`ChainSource::bitcoind`].
    pub bitcoind_cookie: Option<PathBuf>,
    /// See [`ChainSource::with_rest`].
    pub bitcoind_rest: Option<BitcoindRest>,
    /// URL of an Esplora server.
    pub esplora: Option<String>,
    /// URL of an Electrum server.
    pub electrum: Option<String>,
    /// See [`WalletSettings::listen`].
    pub lightning_listen: Option<Vec<SocketAddr>>,
    /// See [`WalletSettings::alias`].
    pub lightning_alias: Option<String>,
    /// See [`WalletSettings::trusted_peers`].
    pub lightning_trusted_peers: Option<Vec<String>>,
    /// In sat; see [`WalletSettings::reserve_sat`].
    pub lightning_reserve: Option<u64>,
    /// See [`LiquidityProvider::peer`].
    pub lsp: Option<String>,
    /// See [`LiquidityProvider::token`].
    pub lsp_token: Option<String>,
    /// In sat; see [`LiquidityProvider::max_fee`].
    pub lsp_max_fee: Option<u64>,
    /// In sat; see [`SpendingLimits::per_payment`].
    pub lightning_max_payment: Option<u64>,
    /// In sat; see [`SpendingLimits::per_day`].
    pub lightning_max_per_day: Option<u64>,
    /// See [`WalletSettings::mainnet_accepted`].
    pub lightning_accept_mainnet_risk: Option<bool>,
}

/// Whether a bitcoind is read by REST: `true`, `false`, or a URL.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum BitcoindRest {
    /// At the place of its JSON-RPC, or not at all.
    There(bool),
    /// At `http://HOST[:PORT]`.
    At(String),
}

impl FromStr for BitcoindRest {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.parse().map_or_else(|_| Self::At(text.to_owned()), Self::There))
    }
}

/// Without the URL, in which somebody may have written a password.
impl fmt::Debug for BitcoindRest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::There(there) => f.debug_tuple("There").field(there).finish(),
            Self::At(_) => f.write_str("At(..)"),
        }
    }
}

/// Without URLs, in which there may be passwords.
impl fmt::Debug for LightningSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LightningSettings").field("lightning", &self.lightning).finish_non_exhaustive()
    }
}

impl LightningSettings {
    /// These settings, and `lower`'s where these are silent. Where these name a chain source, none of `lower`'s is taken.
    #[must_use]
    pub fn or(self, lower: Self) -> Self {
        let lower = match self.chain_sources() {
            0 => lower,
            _ => Self {
                bitcoind: None,
                bitcoind_cookie: None,
                bitcoind_rest: None,
                esplora: None,
                electrum: None,
                ..lower
            },
        };
        Self {
            lightning: self.lightning.or(lower.lightning),
            bitcoind: self.bitcoind.or(lower.bitcoind),
            bitcoind_cookie: self.bitcoind_cookie.or(lower.bitcoind_cookie),
            bitcoind_rest: self.bitcoind_rest.or(lower.bitcoind_rest),
            esplora: self.esplora.or(lower.esplora),
            electrum: self.electrum.or(lower.electrum),
            lightning_listen: self.lightning_listen.or(lower.lightning_listen),
            lightning_alias: self.lightning_alias.or(lower.lightning_alias),
            lightning_trusted_peers: self.lightning_trusted_peers.or(lower.lightning_trusted_peers),
            lightning_reserve: self.lightning_reserve.or(lower.lightning_reserve),
            lsp: self.lsp.or(lower.lsp),
            lsp_token: self.lsp_token.or(lower.lsp_token),
            lsp_max_fee: self.lsp_max_fee.or(lower.lsp_max_fee),
            lightning_max_payment: self.lightning_max_payment.or(lower.lightning_max_payment),
            lightning_max_per_day: self.lightning_max_per_day.or(lower.lightning_max_per_day),
            lightning_accept_mainnet_risk: self.lightning_accept_mainnet_risk.or(lower.lightning_accept_mainnet_risk),
        }
    }

    fn chain_sources(&self) -> usize {
        [&self.bitcoind, &self.esplora, &self.electrum].into_iter().flatten().count()
    }

    /// Checks the values; gives none where there is to be no wallet.
    ///
    /// # Errors
    /// [`ConfigError`] says what is wrong, without passwords.
    pub fn resolve(self) -> Result<Option<WalletSettings>, ConfigError> {
        let Some(network) = &self.lightning else {
            return match self == Self::default() {
                true => Ok(None),
                false => Err(SettingsError::Chain(
                    "there are settings of a wallet, and no wallet: add --lightning NETWORK".to_owned(),
                )
                .into()),
            };
        };
        if !cfg!(feature = "lightning") {
            return Err(
                SettingsError::Chain("this program was built without the `lightning` feature".to_owned()).into()
            );
        }
        let network: Network = network.parse()?;
        let settings = WalletSettings {
            network,
            chain: self.chain(network)?,
            lsp: self.lsp()?,
            listen: self.lightning_listen.unwrap_or_default(),
            alias: self.lightning_alias,
            trusted_peers: self.lightning_trusted_peers.unwrap_or_default(),
            reserve_sat: self.lightning_reserve,
            limits: SpendingLimits {
                per_payment: sat("lightning-max-payment", self.lightning_max_payment)?,
                per_day: sat("lightning-max-per-day", self.lightning_max_per_day)?,
            },
            mainnet_accepted: self.lightning_accept_mainnet_risk.unwrap_or(false),
        };
        settings.check()?;
        Ok(Some(settings))
    }

    fn lsp(&self) -> Result<Option<LiquidityProvider>, ConfigError> {
        let bad = |reason: &str| ConfigError::Value {
            name: "lsp",
            value: self.lsp.clone().unwrap_or_default(),
            reason: reason.to_owned(),
        };
        let Some(peer) = self.lsp.clone() else {
            return match (&self.lsp_token, self.lsp_max_fee) {
                (None, None) => Ok(None),
                _ => Err(bad("is missing: there is a token or a fee, and nobody for it")),
            };
        };
        if !peer.split_once('@').is_some_and(|(key, place)| key.len() == 66 && place.contains(':')) {
            return Err(bad("write PUBKEY@HOST:PORT"));
        }
        let max_fee = sat("lsp-max-fee", self.lsp_max_fee)?.unwrap_or(LSP_MAX_FEE);
        Ok(Some(LiquidityProvider { peer, token: self.lsp_token.clone(), max_fee }))
    }

    fn chain(&self, network: Network) -> Result<ChainSource, SettingsError> {
        let default_port = match network {
            Network::Mainnet => 8332,
            Network::Testnet => 18332,
            Network::Signet => 38332,
            Network::Regtest => 18443,
        };
        let source = match (self.chain_sources(), &self.bitcoind, &self.esplora, &self.electrum) {
            (1, Some(url), ..) => ChainSource::bitcoind(url, self.bitcoind_cookie.as_deref(), default_port),
            (1, _, Some(url), _) => ChainSource::esplora(url),
            (1, _, _, Some(url)) => ChainSource::electrum(url),
            _ => Err(SettingsError::Chain(
                "the wallet needs one place to read the chain from: --bitcoind, --esplora or --electrum".to_owned(),
            )),
        }?;
        match &self.bitcoind_rest {
            None | Some(BitcoindRest::There(false)) => Ok(source),
            Some(BitcoindRest::There(true)) => source.with_rest(None, default_port),
            Some(BitcoindRest::At(url)) => source.with_rest(Some(url), default_port),
        }
    }
}

fn sat(name: &'static str, value: Option<u64>) -> Result<Option<Msat>, ConfigError> {
    let Some(sat) = value else { return Ok(None) };
    let too_much =
        || ConfigError::Value { name, value: sat.to_string(), reason: "is more than all bitcoin there is".to_owned() };
    Msat::from_sat(sat).map(Some).ok_or_else(too_much)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(toml: &str) -> LightningSettings {
        toml::from_str(toml).unwrap()
    }

    #[test]
    fn no_wallet_is_the_default_and_half_a_wallet_is_refused() {
        assert!(LightningSettings::default().resolve().unwrap().is_none());
        for (toml, word) in [
            ("esplora = 'https://x'", "--lightning"),
            ("lightning = 'regtest'", "--bitcoind"),
            ("lightning = 'regtest'\nbitcoind-rest = true", "--bitcoind"),
            ("lightning = 'regtest'\nesplora = 'https://x'\nbitcoind-rest = 'http://h'", "--bitcoind"),
            ("lightning = 'regtest'\nbitcoind = 'http://u:p@h'\nbitcoind-rest = 'https://h'", "http://HOST:PORT"),
            ("lightning = 'regtest'\nbitcoind = 'http://u:p@h'\nbitcoind-rest = ''", "http://HOST:PORT"),
            ("lightning = 'regtest'\nesplora = 'https://x'\nelectrum = 'tcp://x:1'", "one place"),
            ("lightning = 'signet'\nesplora = 'https://x'\nlsp = 'somebody'", "PUBKEY@HOST:PORT"),
            ("lightning = 'signet'\nesplora = 'https://x'\nlsp-token = 't'", "nobody for it"),
            ("lightning = 'bitcoin'\nesplora = 'https://x'", "mainnet"),
            ("lightning = 'mainnet'\nesplora = 'https://x'", "--lightning-accept-mainnet-risk"),
            ("lightning = 'mainnet'\nesplora = 'https://x'\nlightning-accept-mainnet-risk = true", "limits"),
            ("lightning = 'signet'\nesplora = 'https://x'\nlightning-max-payment = 9223372036854775807", "all bitcoin"),
        ] {
            let error = settings(toml).resolve().unwrap_err().to_string();
            assert!(error.contains(word), "{toml}: {error}");
        }
    }

    #[test]
    fn a_higher_chain_source_hides_the_lower_ones_with_their_credentials() {
        let file = settings("lightning = 'signet'\nbitcoind = 'http://h'\nbitcoind-cookie = '/c'");
        let flags = settings("esplora = 'https://x'\nlightning-max-payment = 3");
        let resolved = flags.or(file.clone()).resolve().unwrap().unwrap();
        assert_eq!(resolved.chain, ChainSource::Esplora("https://x".to_owned()));
        assert_eq!(resolved.limits.per_payment, Some(Msat(3000)));
        assert!(matches!(file.resolve().unwrap().unwrap().chain, ChainSource::Bitcoind { port: 38332, .. }));
    }

    #[test]
    fn a_bitcoind_is_read_by_rest_where_it_is_asked_for() {
        let file = |rest: &str| settings(&format!("lightning = 'signet'\nbitcoind = 'http://u:p@h:1'\n{rest}"));
        let shown = |settings: LightningSettings| settings.resolve().unwrap().unwrap().chain.to_string();
        assert_eq!(shown(file("")), "bitcoind at h:1");
        assert_eq!(shown(file("bitcoind-rest = false")), "bitcoind at h:1");
        assert_eq!(shown(file("bitcoind-rest = true")), "bitcoind at h:1, read by REST");
        assert_eq!(shown(file("bitcoind-rest = 'http://r'")), "bitcoind at h:1, read by REST at r:38332");
        // What a flag says is said of the bitcoind in the file.
        let flag = |text: &str| LightningSettings { bitcoind_rest: text.parse().ok(), ..Default::default() };
        assert_eq!(shown(flag("true").or(file(""))), "bitcoind at h:1, read by REST");
        assert_eq!(shown(flag("http://r:2").or(file("bitcoind-rest = true"))), "bitcoind at h:1, read by REST at r:2");
        assert_eq!(shown(flag("false").or(file("bitcoind-rest = true"))), "bitcoind at h:1");
        // What the file says is said of its own bitcoind.
        let other = settings("bitcoind = 'http://u:p@other'");
        assert_eq!(shown(other.or(file("bitcoind-rest = true"))), "bitcoind at other:38332");
    }

    #[test]
    fn passwords_are_not_shown() {
        let told = settings("lightning = 'regtest'\nbitcoind = 'http://u:hunter2@h:1'");
        assert!(!format!("{told:?}").contains("hunter2"));
        assert!(!format!("{:?}", told.resolve().unwrap()).contains("hunter2"));
        let lsp = format!(
            "lightning = 'regtest'\nbitcoind = 'http://u:p@h:1'\nlsp = '{}@h:1'\nlsp-token = 'hunter2'",
            "02".repeat(33)
        );
        let resolved = settings(&lsp).resolve().unwrap().unwrap();
        assert_eq!(resolved.lsp.as_ref().unwrap().token.as_deref(), Some("hunter2"));
        assert!(!format!("{resolved:?}").contains("hunter2"));
        let error = settings("lightning = 'regtest'\nbitcoind = 'http://u:hunter2@h:x'").resolve().unwrap_err();
        assert!(!format!("{error:?} {error}").contains("hunter2"));
    }
}
