//! The settings of the wallet among those of `consortium-node start`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use crate::config::{BitcoindRest, LightningSettings};

/// The Lightning wallet; without --lightning there is none, and everything else works.
#[derive(Args, Debug)]
#[command(next_help_heading = "Lightning wallet")]
pub(super) struct LightningArgs {
    /// Run a wallet, on mainnet, testnet, signet or regtest. It needs --bitcoind, --esplora or --electrum.
    #[arg(long, env = "CONSORTIUM_LIGHTNING", value_name = "NETWORK")]
    lightning: Option<String>,
    /// Read the chain from this bitcoind: http://USER:PASSWORD@HOST:PORT. Command lines are seen by others on the machine:
    /// better use the environment, the configuration file or --bitcoind-cookie for the password.
    #[arg(long, env = "CONSORTIUM_BITCOIND", hide_env_values = true, value_name = "URL")]
    bitcoind: Option<String>,
    /// The file in which that bitcoind leaves its credentials.
    #[arg(long, env = "CONSORTIUM_BITCOIND_COOKIE", value_name = "FILE")]
    bitcoind_cookie: Option<PathBuf>,
    /// Read blocks from that bitcoind by REST, which it serves with -rest=1: where its JSON-RPC is, or at another
    /// http://HOST:PORT. JSON-RPC is used for the rest, such as sending.
    #[arg(
        long,
        env = "CONSORTIUM_BITCOIND_REST",
        hide_env_values = true,
        value_name = "URL",
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    bitcoind_rest: Option<BitcoindRest>,
    /// Read the chain from this Esplora server, which learns the wallet's addresses.
    #[arg(long, env = "CONSORTIUM_ESPLORA", hide_env_values = true, value_name = "URL")]
    esplora: Option<String>,
    /// Read the chain from this Electrum server, which learns the wallet's addresses.
    #[arg(long, env = "CONSORTIUM_ELECTRUM", hide_env_values = true, value_name = "URL")]
    electrum: Option<String>,
    /// Where other Lightning nodes may connect; may be repeated [default: nowhere].
    #[arg(long, env = "CONSORTIUM_LIGHTNING_LISTEN", value_delimiter = ',', value_name = "IP:PORT")]
    lightning_listen: Vec<SocketAddr>,
    /// Public name of the wallet's node; announced channels need it and --lightning-listen.
    #[arg(long, env = "CONSORTIUM_LIGHTNING_ALIAS", value_name = "NAME")]
    lightning_alias: Option<String>,
    /// Public key of a peer trusted to get the closing of channels confirmed: they need no on-chain reserve; may be repeated.
    #[arg(long, env = "CONSORTIUM_LIGHTNING_TRUSTED_PEERS", value_delimiter = ',', value_name = "PUBKEY")]
    lightning_trusted_peers: Vec<String>,
    /// What is kept on-chain for each channel, to get its closing confirmed. With 0 an empty wallet, as a newcomer's, can
    /// accept a channel; it cannot raise the fee of a closing until it has something on-chain [default: 25000].
    #[arg(long, env = "CONSORTIUM_LIGHTNING_RESERVE", value_name = "SAT")]
    lightning_reserve: Option<u64>,
    /// Have this provider of liquidity (LSPS2) open a channel when an invoice is paid that the wallet could not receive; it
    /// is trusted with that payment until the channel is confirmed.
    #[arg(long, env = "CONSORTIUM_LSP", value_name = "PUBKEY@HOST:PORT")]
    lsp: Option<String>,
    /// What that provider knows the wallet by. Others on the machine see command lines: better use the environment.
    #[arg(long, env = "CONSORTIUM_LSP_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    lsp_token: Option<String>,
    /// What that provider may keep of a payment for opening a channel, in sat [default: 5000].
    #[arg(long, env = "CONSORTIUM_LSP_MAX_FEE", value_name = "SAT")]
    lsp_max_fee: Option<u64>,
    /// What one payment may take, in sat, fees included [default: no limit; needed on mainnet].
    #[arg(long, env = "CONSORTIUM_LIGHTNING_MAX_PAYMENT", value_name = "SAT")]
    lightning_max_payment: Option<u64>,
    /// What the payments of 24 hours may take, in sat, fees included [default: no limit; needed on mainnet].
    #[arg(long, env = "CONSORTIUM_LIGHTNING_MAX_PER_DAY", value_name = "SAT")]
    lightning_max_per_day: Option<u64>,
    /// Run on mainnet, with real money that a defect of this young software can lose.
    #[arg(long, env = "CONSORTIUM_LIGHTNING_ACCEPT_MAINNET_RISK")]
    lightning_accept_mainnet_risk: bool,
}

impl LightningArgs {
    /// As settings.
    pub(super) fn settings(self) -> LightningSettings {
        let some = |list: Vec<String>| (!list.is_empty()).then_some(list);
        LightningSettings {
            lightning: self.lightning,
            bitcoind: self.bitcoind,
            bitcoind_cookie: self.bitcoind_cookie,
            bitcoind_rest: self.bitcoind_rest,
            esplora: self.esplora,
            electrum: self.electrum,
            lightning_listen: (!self.lightning_listen.is_empty()).then_some(self.lightning_listen),
            lightning_alias: self.lightning_alias,
            lightning_trusted_peers: some(self.lightning_trusted_peers),
            lightning_reserve: self.lightning_reserve,
            lsp: self.lsp,
            lsp_token: self.lsp_token,
            lsp_max_fee: self.lsp_max_fee,
            lightning_max_payment: self.lightning_max_payment,
            lightning_max_per_day: self.lightning_max_per_day,
            lightning_accept_mainnet_risk: self.lightning_accept_mainnet_risk.then_some(true),
        }
    }
}
