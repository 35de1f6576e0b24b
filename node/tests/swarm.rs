//! The swarm over memory transport: nodes find each other, and a hostile peer changes nothing for them.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use consortium_node::swarm::{Incoming, SwarmConfig, SwarmEvent, SwarmHandle, TransportKind, spawn};
use consortium_protocol::cluster::{ClusterId, ClusterName};
use consortium_protocol::envelope::Signed;
use consortium_protocol::identity::{NodeId, RootKey};
use consortium_protocol::msat::Msat;
use consortium_protocol::wire;
use consortium_protocol::wire::Message as _;
use consortium_protocol::wire::fact::Fact;
use consortium_protocol::wire::heartbeat::Heartbeat;
use consortium_protocol::wire::rpc::{Request, Response};
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::core::transport::MemoryTransport;
use libp2p::core::upgrade::Version;
use libp2p::swarm::NetworkBehaviour;
use libp2p::{Multiaddr, StreamProtocol, Swarm, Transport as _, gossipsub, identify, identity, noise, ping, yamux};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(20);

fn cluster() -> ClusterId {
    "test".parse::<ClusterName>().unwrap().id()
}

struct Node {
    key: RootKey,
    handle: SwarmHandle,
    events: mpsc::Receiver<SwarmEvent>,
    jobs: Incoming,
}

impl Node {
    async fn start(seed: u8, bootstrap: &[String]) -> Self {
        let key = RootKey::from_seed([seed; 32]);
        let config = SwarmConfig {
            key: &key,
            cluster: cluster(),
            listen: vec!["/memory/0".to_owned()],
            bootstrap: bootstrap.to_vec(),
            mdns: false,
            transport: TransportKind::Memory,
        };
        let (handle, events, [jobs]) = spawn(config, [wire::JOB]).unwrap();
        handle.listening().wait_for(|addresses| !addresses.is_empty()).await.unwrap();
        Self { key, handle, events, jobs }
    }

    fn address(&self) -> String {
        self.handle.listening().borrow()[0].clone()
    }

    async fn event<T>(&mut self, mut wanted: impl FnMut(SwarmEvent) -> Option<T>) -> T {
        tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(found) = wanted(self.events.recv().await.unwrap()) {
                    return found;
                }
            }
        })
        .await
        .unwrap()
    }

    async fn connected_to(&mut self, peer: NodeId) {
        self.event(|event| matches!(event, SwarmEvent::Connected(node) if node == peer).then_some(())).await;
    }

    /// Gossip needs a moment to learn who listens: publishes until `listener` hears of it.
    async fn tells(&self, listener: &mut Self) -> NodeId {
        for seq in 1.. {
            let fact = Fact::Heartbeat(Signed::sign(&self.key, heartbeat(cluster(), seq)));
            self.handle.publish(fact).await.unwrap();
            let heard = listener.event(|event| match event {
                SwarmEvent::Fact { fact: Fact::Heartbeat(heartbeat), .. } => Some(heartbeat.signer()),
                _ => None,
            });
            if let Ok(author) = tokio::time::timeout(Duration::from_millis(300), heard).await {
                return author;
            }
            assert!(seq < 60, "nothing was heard");
        }
        unreachable!()
    }
}

fn heartbeat(cluster: ClusterId, seq: u64) -> Heartbeat {
    Heartbeat {
        cluster,
        incarnation: 1,
        seq,
        term: 0,
        master: None,
        willing: true,
        memory_bytes: 1 << 20,
        layer_micros: 0,
        models: Vec::new(),
        held: Vec::new(),
        active_jobs: 0,
        price_per_layer_token: Msat(0),
        master_fee: Msat(0),
        uptime_s: 1,
        leaving: false,
        sent_at_ms: 1,
    }
}

#[tokio::test]
async fn nodes_gossip_ask_and_stream() {
    let mut a = Node::start(1, &[]).await;
    let mut b = Node::start(2, &[a.address()]).await;
    a.connected_to(b.key.node_id()).await;
    assert_eq!(a.tells(&mut b).await, a.key.node_id());

    let (asker, asked) = (b.handle.clone(), a.key.node_id());
    let asking = tokio::spawn(async move { asker.request(asked, Request::Certificate, PATIENCE).await });
    let (from, reply) = a
        .event(|event| match event {
            SwarmEvent::Request { from, request: Request::Certificate, reply } => Some((from, reply)),
            _ => None,
        })
        .await;
    assert_eq!(from, b.key.node_id());
    reply.send(Response::Certificate(None));
    assert_eq!(asking.await.unwrap().unwrap(), Response::Certificate(None));

    let mut out = b.handle.open_stream(a.key.node_id(), wire::JOB).await.unwrap();
    out.write_all(b"hello").await.unwrap();
    out.shutdown().await.unwrap();
    let (from, mut stream) = a.jobs.recv().await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!((from, text.as_str()), (b.key.node_id(), "hello"));
}

#[tokio::test]
async fn a_node_is_a_peer_of_itself() {
    let mut a = Node::start(3, &[]).await;
    let me = a.key.node_id();
    let handle = a.handle.clone();
    let asking = tokio::spawn(async move { handle.request(me, Request::Certificate, PATIENCE).await });
    let reply = a
        .event(|event| match event {
            SwarmEvent::Request { from, reply, .. } if from == me => Some(reply),
            _ => None,
        })
        .await;
    reply.send(Response::Ack);
    assert_eq!(asking.await.unwrap().unwrap(), Response::Ack);
    let mut out = a.handle.open_stream(me, wire::JOB).await.unwrap();
    out.write_all(b"x").await.unwrap();
    assert_eq!(a.jobs.recv().await.unwrap().1.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn a_third_node_is_found_through_the_first() {
    let a = Node::start(4, &[]).await;
    let mut b = Node::start(5, &[a.address()]).await;
    let c = Node::start(6, &[a.address()]).await;
    b.connected_to(c.key.node_id()).await;
}

#[tokio::test]
async fn an_unreachable_peer_is_an_error_within_the_deadline() {
    let a = Node::start(7, &[]).await;
    let nobody = RootKey::from_seed([99; 32]).node_id();
    let asked = a.handle.request(nobody, Request::Certificate, Duration::from_secs(5)).await;
    assert!(asked.is_err());
    assert!(a.handle.open_stream(nobody, wire::JOB).await.is_err());
    a.handle.shutdown().await;
    assert!(a.handle.peers().await.is_err());
}

#[test]
fn a_bad_address_is_named() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _context = runtime.enter();
    let key = RootKey::from_seed([8; 32]);
    let config = SwarmConfig {
        key: &key,
        cluster: cluster(),
        listen: vec!["127.0.0.1:4001".to_owned()],
        bootstrap: Vec::new(),
        mdns: false,
        transport: TransportKind::Memory,
    };
    let error = spawn(config, [wire::JOB]).err().unwrap().to_string();
    assert!(error.contains("127.0.0.1:4001") && error.contains("multiaddress"), "{error}");
}

/// A peer that speaks libp2p, and then whatever it likes.
#[derive(NetworkBehaviour)]
struct Hostile {
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    gossip: gossipsub::Behaviour,
    streams: libp2p_stream::Behaviour,
}

fn hostile() -> Swarm<Hostile> {
    let keypair = identity::Keypair::generate_ed25519();
    let transport = MemoryTransport::default()
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(&keypair).unwrap())
        .multiplex(yamux::Config::default())
        .boxed();
    let config = gossipsub::ConfigBuilder::default()
        .validation_mode(gossipsub::ValidationMode::Anonymous)
        .max_transmit_size(60_000)
        .message_id_fn(|message| gossipsub::MessageId::new(blake3::hash(&message.data).as_bytes()))
        .build()
        .unwrap();
    let behaviour = Hostile {
        identify: identify::Behaviour::new(identify::Config::new("/consortium/1".to_owned(), keypair.public())),
        ping: ping::Behaviour::default(),
        gossip: gossipsub::Behaviour::new(gossipsub::MessageAuthenticity::Anonymous, config).unwrap(),
        streams: libp2p_stream::Behaviour::new(),
    };
    let config = libp2p::swarm::Config::with_tokio_executor().with_idle_connection_timeout(PATIENCE);
    Swarm::new(transport, behaviour, keypair.public().to_peer_id(), config)
}

/// What a hostile peer may gossip: each must be refused, and none may stop the node.
fn bad_facts() -> Vec<(&'static str, Vec<u8>)> {
    let key = RootKey::from_seed([50; 32]);
    let good = Fact::Heartbeat(Signed::sign(&key, heartbeat(cluster(), 1))).encode();
    let mut flipped = good.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    let elsewhere = "elsewhere".parse::<ClusterName>().unwrap().id();
    vec![
        ("noise", vec![0xa7; 300]),
        ("empty", Vec::new()),
        ("truncated", good[..good.len() / 2].to_vec()),
        ("altered", flipped),
        ("trailing bytes", [good.as_slice(), &[0]].concat()),
        ("oversized", [good.as_slice(), &vec![0; 50_000]].concat()),
        ("of another cluster", Fact::Heartbeat(Signed::sign(&key, heartbeat(elsewhere, 1))).encode()),
    ]
}

#[tokio::test]
async fn hostile_gossip_is_refused_and_the_node_goes_on() {
    let mut a = Node::start(10, &[]).await;
    let mut b = Node::start(11, &[a.address()]).await;
    let mut peer = hostile();
    let topic = gossipsub::IdentTopic::new(wire::gossip_topic(cluster()));
    peer.behaviour_mut().gossip.subscribe(&topic).unwrap();
    peer.dial(a.address().parse::<Multiaddr>().unwrap()).unwrap();
    let flood = tokio::spawn(async move {
        let mut bad = bad_facts().into_iter();
        let mut every = tokio::time::interval(Duration::from_millis(20));
        let mut left = bad.next();
        while let Some((_, bytes)) = &left {
            tokio::select! {
                _ = peer.select_next_some() => {}
                _ = every.tick() => {
                    // Fails until the subscription of the node has arrived.
                    if peer.behaviour_mut().gossip.publish(topic.clone(), bytes.clone()).is_ok() {
                        left = bad.next();
                    }
                }
            }
        }
        // Let the last one leave.
        let _timed_out = tokio::time::timeout(Duration::from_millis(500), async {
            loop {
                peer.select_next_some().await;
            }
        })
        .await;
    });
    flood.await.unwrap();
    // Everything the nodes hear from now on was signed by one of them.
    assert_eq!(b.tells(&mut a).await, b.key.node_id());
    assert_eq!(a.tells(&mut b).await, a.key.node_id());
}

#[tokio::test]
async fn hostile_rpc_is_refused_and_the_node_goes_on() {
    let mut a = Node::start(12, &[]).await;
    let b = Node::start(13, &[a.address()]).await;
    let mut peer = hostile();
    let to = a.address().parse::<Multiaddr>().unwrap();
    let a_peer =
        to.iter().find_map(|part| if let libp2p::multiaddr::Protocol::P2p(peer) = part { Some(peer) } else { None });
    peer.dial(to).unwrap();
    let mut control = peer.behaviour().streams.new_control();
    let driving = tokio::spawn(async move {
        loop {
            peer.select_next_some().await;
        }
    });
    for bytes in [vec![], vec![0xff; 64], vec![0x00; 300 * 1024], b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
        let opened = control.open_stream(a_peer.unwrap(), StreamProtocol::new(wire::RPC));
        let mut stream = tokio::time::timeout(PATIENCE, opened).await.unwrap().unwrap();
        let _cut_off = stream.write_all(&bytes).await;
        let _cut_off = stream.close().await;
        let mut answer = Vec::new();
        let _cut_off = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.is_empty(), "a malformed request was answered");
    }
    assert_eq!(b.tells(&mut a).await, b.key.node_id());
    driving.abort();
}

#[tokio::test]
async fn a_peer_that_connects_and_says_nothing_is_dropped() {
    let key = RootKey::from_seed([14; 32]);
    let config = SwarmConfig {
        key: &key,
        cluster: cluster(),
        listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
        bootstrap: Vec::new(),
        mdns: false,
        transport: TransportKind::Internet,
    };
    let (handle, _events, _) = spawn(config, [wire::JOB]).unwrap();
    let address = handle.listening().wait_for(|addresses| !addresses.is_empty()).await.unwrap()[0].clone();
    let port = address.split('/').nth(4).unwrap().parse::<u16>().unwrap();
    let mut mute = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut heard = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(40), mute.read_to_end(&mut heard)).await;
    assert!(closed.is_ok(), "the connection was kept");
    assert!(handle.peers().await.unwrap().is_empty());
}
