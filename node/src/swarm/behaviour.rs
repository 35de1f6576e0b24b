//! Which libp2p protocols a node runs, and their limits.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use consortium_protocol::hash::Hash;
use consortium_protocol::wire;
use consortium_protocol::wire::Message as _;
use consortium_protocol::wire::fact::Fact;
use libp2p::identity::Keypair;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{StreamProtocol, connection_limits, gossipsub, identify, kad, mdns, ping, request_response};

use super::codec::RpcCodec;

/// Upper bound of an RPC; callers set shorter ones of their own. Loading a shard is the longest.
const RPC_TIMEOUT: Duration = Duration::from_secs(300);
const KAD: StreamProtocol = StreamProtocol::new("/consortium/kad/1");
/// What identify tells: a peer that says otherwise is no Consortium node.
pub(super) const IDENTIFY: &str = "/consortium/1";

/// The protocols of a node. Connection limits stand first, so that nothing is spent on a connection that is refused.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) limits: connection_limits::Behaviour,
    pub(super) identify: identify::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
    pub(super) kad: kad::Behaviour<kad::store::MemoryStore>,
    pub(super) gossip: gossipsub::Behaviour,
    pub(super) rpc: request_response::Behaviour<RpcCodec>,
    pub(super) streams: libp2p_stream::Behaviour,
}

impl Behaviour {
    pub(super) fn new(keypair: &Keypair, mdns: bool) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let peer = keypair.public().to_peer_id();
        let limits = connection_limits::ConnectionLimits::default()
            .with_max_pending_incoming(Some(64))
            .with_max_pending_outgoing(Some(64))
            .with_max_established_incoming(Some(256))
            .with_max_established(Some(512))
            // Four: a punched QUIC path can leave two direct connections beside the relayed one.
            .with_max_established_per_peer(Some(4));
        let mdns = if mdns { Some(mdns::tokio::Behaviour::new(mdns::Config::default(), peer)?) } else { None };
        Ok(Self {
            limits: connection_limits::Behaviour::new(limits),
            identify: identify::Behaviour::new(
                identify::Config::new(IDENTIFY.to_owned(), keypair.public())
                    .with_agent_version(concat!("consortium/", env!("CARGO_PKG_VERSION")).to_owned())
                    .with_push_listen_addr_updates(true),
            ),
            ping: ping::Behaviour::new(
                ping::Config::new().with_interval(Duration::from_secs(5)).with_timeout(Duration::from_secs(10)),
            ),
            mdns: mdns.into(),
            kad: kademlia(peer),
            gossip: gossip()?,
            rpc: request_response::Behaviour::new(
                [(StreamProtocol::new(wire::RPC), request_response::ProtocolSupport::Full)],
                request_response::Config::default().with_request_timeout(RPC_TIMEOUT).with_max_concurrent_streams(64),
            ),
            streams: libp2p_stream::Behaviour::new(),
        })
    }
}

fn kademlia(peer: libp2p::PeerId) -> kad::Behaviour<kad::store::MemoryStore> {
    let mut config = kad::Config::new(KAD);
    config
        .set_query_timeout(Duration::from_secs(20))
        // Nothing a peer sends is stored unseen: the actor looks at each provider record first and drops the rest.
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_periodic_bootstrap_interval(Some(Duration::from_secs(60)));
    let store = kad::store::MemoryStoreConfig {
        max_records: 0,
        max_provided_keys: 1024,
        max_providers_per_key: 64,
        ..Default::default()
    };
    let mut kad = kad::Behaviour::with_config(peer, kad::store::MemoryStore::with_config(peer, store), config);
    // Without this a node stays a client until an external address is confirmed, and a swarm on a LAN never forms.
    kad.set_mode(Some(kad::Mode::Server));
    kad
}

fn gossip() -> Result<gossipsub::Behaviour, Box<dyn std::error::Error + Send + Sync>> {
    let config = gossipsub::ConfigBuilder::default()
        // Every fact carries its author's signature; libp2p's own would repeat it.
        .validation_mode(gossipsub::ValidationMode::Anonymous)
        .validate_messages()
        .max_transmit_size(Fact::MAX_BYTES + 1024)
        .message_id_fn(|message| gossipsub::MessageId::new(Hash::of(&message.data).as_bytes()))
        .duplicate_cache_time(Duration::from_secs(120))
        .heartbeat_interval(Duration::from_millis(700))
        .flood_publish(true)
        .build()?;
    let mut gossip = gossipsub::Behaviour::new(gossipsub::MessageAuthenticity::Anonymous, config)?;
    let params = gossipsub::PeerScoreParams {
        // Many nodes of one person share an address, and a local swarm shares loopback.
        ip_colocation_factor_threshold: 16.0,
        ip_colocation_factor_whitelist: [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].into(),
        // What others think of a peer is given in the units of the thresholds.
        app_specific_weight: 1.0,
        ..Default::default()
    };
    gossip.with_peer_score(params, gossipsub::PeerScoreThresholds::default())?;
    Ok(gossip)
}

/// Scores of the cluster's topic: little for being there, nothing for silence (quiet topics are honest), much against
/// invalid messages.
pub(super) fn topic_score() -> gossipsub::TopicScoreParams {
    gossipsub::TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.01,
        time_in_mesh_cap: 100.0,
        first_message_deliveries_weight: 0.1,
        first_message_deliveries_cap: 100.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: -20.0,
        invalid_message_deliveries_decay: 0.9,
        ..Default::default()
    }
}
