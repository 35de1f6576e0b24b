//! Puts ldk-node together: its files, its keys, its chain.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use ldk_node::bitcoin::Network as BitcoinNetwork;
use ldk_node::bitcoin::secp256k1::PublicKey;
use ldk_node::config::{AnchorChannelsConfig, Config};
use ldk_node::io::sqlite_store::SQLITE_DB_FILE_NAME;
use ldk_node::lightning::ln::msgs::SocketAddress;
use ldk_node::{Builder, Node};

use super::chain_source::ChainSource;
use super::channels::parse_peer;
use super::error::WalletError;
use super::log::ToTracing;
use super::settings::{Network, SettingsError, WalletSettings};

/// The network as bitcoin's crates name it.
pub(super) const fn bitcoin_network(network: Network) -> BitcoinNetwork {
    match network {
        Network::Mainnet => BitcoinNetwork::Bitcoin,
        Network::Testnet => BitcoinNetwork::Testnet,
        Network::Signet => BitcoinNetwork::Signet,
        Network::Regtest => BitcoinNetwork::Regtest,
    }
}

/// Whether there is a wallet in the directory.
pub(super) fn has_state(directory: &Path) -> bool {
    let database = directory.join(SQLITE_DB_FILE_NAME);
    database.metadata().is_ok_and(|about| about.len() > 0)
}

/// Makes the wallet's directory and the file of ldk-node's database, open to their owner alone: SQLite gives a new file
/// the mode that the system likes, and its journals that of the file.
pub(super) fn make_private(directory: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    std::fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    let database = directory.join(SQLITE_DB_FILE_NAME);
    OpenOptions::new().append(true).create(true).mode(0o600).open(&database)?;
    std::fs::set_permissions(&database, Permissions::from_mode(0o600))
}

/// Has the system pick a port where 0 is asked for, since ldk-node would not tell which one it got: the port of the last
/// time if it is free, because peers know the wallet by it.
pub(super) fn pick_ports(listen: &mut [SocketAddr], directory: &Path) -> std::io::Result<()> {
    let file = directory.join("ports");
    let known = std::fs::read_to_string(&file).unwrap_or_default();
    let mut known = known.lines().map(|line| line.parse().unwrap_or(0));
    let mut picked = String::new();
    for address in listen.iter_mut().filter(|address| address.port() == 0) {
        let last = SocketAddr::new(address.ip(), known.next().unwrap_or(0));
        // Free again at the end of the line, and not given to another program so soon.
        *address = TcpListener::bind(last).or_else(|_| TcpListener::bind(*address))?.local_addr()?;
        picked += &format!("{}\n", address.port());
    }
    if picked.is_empty() {
        return Ok(());
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(file)?.write_all(picked.as_bytes())
}

/// ldk-node with these settings, not yet started. Blocks: it reads its state, and asks a bitcoind for its newest block.
pub(super) fn build(
    settings: &WalletSettings,
    directory: &Path,
    seed: &[u8; 64],
    runtime: tokio::runtime::Handle,
) -> Result<Node, WalletError> {
    let mut builder = Builder::from_config(config(settings, directory)?);
    builder.set_runtime(runtime).set_custom_logger(Arc::new(ToTracing)).set_entropy_seed_bytes(*seed);
    if let Some(alias) = &settings.alias {
        builder.set_node_alias(alias.clone()).map_err(WalletError::Build)?;
    }
    if let Some(lsp) = &settings.lsp {
        let (id, address) = parse_peer(&lsp.peer)?;
        builder.set_liquidity_source_lsps2(id, address, lsp.token.clone());
    }
    match &settings.chain {
        ChainSource::Bitcoind { host, port, auth, rest } => {
            let (host, (user, password)) = (host.clone(), auth.credentials()?);
            match rest.clone() {
                None => builder.set_chain_source_bitcoind_rpc(host, *port, user, password),
                Some(rest) => builder.set_chain_source_bitcoind_rest(rest.host, rest.port, host, *port, user, password),
            };
        }
        ChainSource::Esplora(url) => {
            builder.set_chain_source_esplora(url.clone(), None);
        }
        ChainSource::Electrum(url) => {
            builder.set_chain_source_electrum(url.clone(), None);
        }
    }
    builder.build().map_err(WalletError::Build)
}

fn config(settings: &WalletSettings, directory: &Path) -> Result<Config, WalletError> {
    let storage = directory.to_str().ok_or_else(|| {
        WalletError::Invalid(format!("the path of the data directory, {}, is not UTF-8", directory.display()))
    })?;
    let trusted = settings.trusted_peers.iter().map(|peer| {
        peer.parse::<PublicKey>().map_err(|_| WalletError::Settings(SettingsError::TrustedPeer(peer.clone())))
    });
    let mut no_reserve: Vec<PublicKey> = trusted.collect::<Result<_, _>>()?;
    if let Some(lsp) = &settings.lsp {
        // Its first channel comes to an empty wallet, and it is trusted all the same.
        no_reserve.push(parse_peer(&lsp.peer)?.0);
    }
    let usual = AnchorChannelsConfig::default();
    let anchors = AnchorChannelsConfig {
        trusted_peers_no_reserve: no_reserve,
        per_channel_reserve_sats: settings.reserve_sat.unwrap_or(usual.per_channel_reserve_sats),
    };
    let listen: Vec<SocketAddress> = settings.listen.iter().map(|address| (*address).into()).collect();
    Ok(Config {
        storage_dir_path: storage.to_owned(),
        network: bitcoin_network(settings.network),
        listening_addresses: (!listen.is_empty()).then_some(listen),
        anchor_channels_config: Some(anchors),
        ..Config::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_was_picked_is_kept_while_it_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let pick = || {
            let mut listen = ["127.0.0.1:0".parse().unwrap()];
            pick_ports(&mut listen, dir.path()).unwrap();
            listen[0]
        };
        let first = pick();
        assert_eq!(pick(), first);
        let _taken = TcpListener::bind(first).unwrap();
        assert_ne!(pick(), first);
    }

    #[test]
    fn the_wallets_files_are_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let wallet = dir.path().join("lightning");
        make_private(&wallet).unwrap();
        // What an older version, or a copy, left open is closed again.
        std::fs::set_permissions(&wallet, Permissions::from_mode(0o755)).unwrap();
        make_private(&wallet).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&wallet), 0o700);
        assert_eq!(mode(&wallet.join(SQLITE_DB_FILE_NAME)), 0o600);
    }
}
