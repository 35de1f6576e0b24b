//! What a wallet is told: network, chain, peers, limits. Checked before anything is started.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use consortium_protocol::Msat;

use super::chain_source::ChainSource;

/// The longest alias that Lightning carries, in bytes.
pub const MAX_ALIAS: usize = 32;
/// Peers that need no on-chain reserve, at most.
pub const MAX_TRUSTED: usize = 256;

/// Which bitcoin is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Real money.
    Mainnet,
    /// The third public test network.
    Testnet,
    /// The signed public test network.
    Signet,
    /// A private chain.
    Regtest,
}

impl Network {
    /// As people write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mainnet => "mainnet",
            Self::Testnet => "testnet",
            Self::Signet => "signet",
            Self::Regtest => "regtest",
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Network {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Mainnet, Self::Testnet, Self::Signet, Self::Regtest]
            .into_iter()
            .find(|network| network.as_str() == text)
            .ok_or_else(|| SettingsError::Network(text.to_owned()))
    }
}

/// How much may leave the wallet by itself or by order. What is moved into a channel of one's own does not count, what
/// is given to its other side does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpendingLimits {
    /// One payment at most, fees included.
    pub per_payment: Option<Msat>,
    /// All payments of 24 hours together at most, fees included.
    pub per_day: Option<Msat>,
}

/// A provider of liquidity (LSPS2, bLIP-52): it opens a channel to this wallet when an invoice is paid that the wallet
/// could not receive, and keeps a fee of the payment. It is trusted not to take the payment back with a channel that is not
/// confirmed.
#[derive(Clone, PartialEq, Eq)]
pub struct LiquidityProvider {
    /// `PUBKEY@HOST:PORT`.
    pub peer: String,
    /// What it knows the wallet by, if it asks for that; never shown.
    pub token: Option<String>,
    /// What it may keep at most for a channel; of a payment never more than half.
    pub max_fee: Msat,
}

impl fmt::Debug for LiquidityProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiquidityProvider")
            .field("peer", &self.peer)
            .field("max_fee", &self.max_fee)
            .finish_non_exhaustive()
    }
}

/// Settings of a wallet.
#[derive(Clone, Debug)]
pub struct WalletSettings {
    /// Which bitcoin is meant.
    pub network: Network,
    /// Where the chain is read and transactions are sent.
    pub chain: ChainSource,
    /// Where other Lightning nodes may connect; nowhere if empty, and then no channel can be announced.
    pub listen: Vec<SocketAddr>,
    /// The public name of the node, which announced channels need.
    pub alias: Option<String>,
    /// Public keys (66 hexadecimal digits) of peers trusted to get a channel's closing confirmed: no on-chain reserve is
    /// kept for their channels, and nothing is done to confirm it from here.
    pub trusted_peers: Vec<String>,
    /// What is kept on-chain for each channel, in sat, to get its closing confirmed; none for what is usual, 25,000. With
    /// 0 an empty wallet can accept a channel; until it has something on-chain, it cannot raise the fee of a closing.
    pub reserve_sat: Option<u64>,
    /// Who provides liquidity; nobody if none.
    pub lsp: Option<LiquidityProvider>,
    /// How much may leave the wallet.
    pub limits: SpendingLimits,
    /// The operator has said that real money may be lost.
    pub mainnet_accepted: bool,
}

/// Why a wallet cannot be run with these settings.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SettingsError {
    /// No such network.
    #[error("there is no network '{0:.40}': it is mainnet, testnet, signet or regtest")]
    Network(String),
    /// Real money without a word about the risk.
    #[error(
        "this software is young and mainnet is real money that can be lost: to go on, start with \
         --lightning-accept-mainnet-risk and set limits, or take --lightning signet to try it"
    )]
    MainnetNotAccepted,
    /// Real money without limits.
    #[error(
        "on mainnet the wallet needs spending limits: set --lightning-max-payment and --lightning-max-per-day, in sats"
    )]
    MainnetWithoutLimits,
    /// Real money by the word of whoever is on the way to the chain source.
    #[error(
        "on mainnet an Esplora or Electrum server is asked over TLS alone (https:// or ssl://), unless it is on this \
         machine: others on the way could lie about the chain and about fees"
    )]
    MainnetInClear,
    /// Limits that contradict each other.
    #[error("the limit of a payment, {0}, is above that of a day, {1}")]
    Limits(Msat, Msat),
    /// An alias that Lightning cannot carry.
    #[error("the alias must have 1 to {MAX_ALIAS} bytes and no control characters")]
    Alias,
    /// Not a public key.
    #[error("'{0:.70}' is not the public key of a Lightning node (66 hexadecimal digits)")]
    TrustedPeer(String),
    /// Too many trusted peers.
    #[error("there are more than {MAX_TRUSTED} trusted peers")]
    TooManyTrusted,
    /// A chain source that cannot be used.
    #[error("{0}")]
    Chain(String),
    /// A cookie file that cannot be read.
    #[error("{path}: {reason}")]
    Cookie {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
}

impl WalletSettings {
    /// Checks that the settings make sense together.
    ///
    /// # Errors
    /// [`SettingsError`], in words for the operator.
    pub fn check(&self) -> Result<(), SettingsError> {
        if self.network == Network::Mainnet {
            if !self.mainnet_accepted {
                return Err(SettingsError::MainnetNotAccepted);
            }
            if self.limits.per_payment.is_none() || self.limits.per_day.is_none() {
                return Err(SettingsError::MainnetWithoutLimits);
            }
            if self.chain.is_in_clear() {
                return Err(SettingsError::MainnetInClear);
            }
        }
        if let (Some(payment), Some(day)) = (self.limits.per_payment, self.limits.per_day)
            && payment > day
        {
            return Err(SettingsError::Limits(payment, day));
        }
        if let Some(alias) = &self.alias
            && (alias.is_empty() || alias.len() > MAX_ALIAS || alias.chars().any(char::is_control))
        {
            return Err(SettingsError::Alias);
        }
        if self.trusted_peers.len() > MAX_TRUSTED {
            return Err(SettingsError::TooManyTrusted);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(network: Network) -> WalletSettings {
        WalletSettings {
            network,
            chain: "http://127.0.0.1:3002".parse::<ChainSource>().unwrap(),
            listen: Vec::new(),
            alias: None,
            trusted_peers: Vec::new(),
            reserve_sat: None,
            lsp: None,
            limits: SpendingLimits::default(),
            mainnet_accepted: false,
        }
    }

    #[test]
    fn real_money_needs_a_word_and_limits() {
        let mut mainnet = settings(Network::Mainnet);
        assert_eq!(mainnet.check(), Err(SettingsError::MainnetNotAccepted));
        mainnet.mainnet_accepted = true;
        assert_eq!(mainnet.check(), Err(SettingsError::MainnetWithoutLimits));
        mainnet.limits = SpendingLimits { per_payment: Some(Msat(5)), per_day: None };
        assert_eq!(mainnet.check(), Err(SettingsError::MainnetWithoutLimits));
        mainnet.limits.per_day = Some(Msat(4));
        assert_eq!(mainnet.check(), Err(SettingsError::Limits(Msat(5), Msat(4))));
        mainnet.limits.per_day = Some(Msat(5));
        assert_eq!(mainnet.check(), Ok(()), "a server on this machine");
        for (url, fine) in [
            ("http://esplora.example/api", false),
            ("https://esplora.example/api", true),
            ("tcp://electrum.example:50001", false),
            ("tcp://[::1]:50001", true),
            ("tcp://localhost.example:50001", false),
            ("ssl://electrum.example:50002", true),
        ] {
            mainnet.chain = url.parse().unwrap();
            assert_eq!(mainnet.check().is_ok(), fine, "{url}");
        }
        assert_eq!(settings(Network::Regtest).check(), Ok(()));
    }

    #[test]
    fn networks_have_names() {
        for network in [Network::Mainnet, Network::Testnet, Network::Signet, Network::Regtest] {
            assert_eq!(network.to_string().parse(), Ok(network));
        }
        assert!("bitcoin".parse::<Network>().is_err());
    }

    #[test]
    fn aliases_are_bounded() {
        let mut with = settings(Network::Signet);
        for (alias, fine) in [("node", true), ("", false), ("a\nb", false), (&"x".repeat(33), false)] {
            with.alias = Some(alias.to_owned());
            assert_eq!(with.check().is_ok(), fine, "{alias:?}");
        }
    }
}
