//! How bytes move between nodes.

use std::time::Duration;

use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, MemoryTransport};
use libp2p::core::upgrade;
use libp2p::identity::Keypair;
use libp2p::{PeerId, Transport, dns, noise, quic, tcp, yamux};

/// Time for a connection to be dialled, secured and multiplexed; a peer that connects and says nothing is gone after it.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The seam for tests: real sockets, or memory within one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransportKind {
    /// TCP with noise and yamux, and QUIC; names are resolved by DNS.
    #[default]
    Internet,
    /// `/memory/N` addresses within one process, with noise and yamux.
    Memory,
}

/// Builds the transport.
///
/// # Errors
/// When noise refuses the key or the system's DNS configuration cannot be read.
pub(super) fn build(kind: TransportKind, keypair: &Keypair) -> std::io::Result<Boxed<(PeerId, StreamMuxerBox)>> {
    let noise = noise::Config::new(keypair).map_err(std::io::Error::other)?;
    match kind {
        TransportKind::Memory => Ok(MemoryTransport::default()
            .upgrade(upgrade::Version::V1Lazy)
            .authenticate(noise)
            .multiplex(yamux::Config::default())
            .timeout(HANDSHAKE)
            .boxed()),
        TransportKind::Internet => {
            let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
                .upgrade(upgrade::Version::V1Lazy)
                .authenticate(noise)
                .multiplex(yamux::Config::default())
                .timeout(HANDSHAKE);
            let quic = quic::tokio::Transport::new(quic::Config::new(keypair))
                .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)));
            let either = quic.or_transport(tcp.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))));
            let either = either.map(|either, _| either.into_inner());
            match dns::tokio::Transport::system(either) {
                Ok(resolving) => Ok(resolving.boxed()),
                Err(error) => Err(error),
            }
        }
    }
}
