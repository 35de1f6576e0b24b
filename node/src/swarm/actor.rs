//! The task that owns the libp2p swarm.
//!
//! It never waits for anyone: room for an event is reserved before the swarm is polled, commands are bounded by their
//! channel, answers to peers are futures that it polls.

use std::collections::BTreeMap;
use std::time::Duration;

use consortium_protocol::cluster::ClusterId;
use consortium_protocol::identity::{NodeId, RootKey};
use consortium_protocol::wire::fact::Fact;
use consortium_protocol::wire::rpc::{Request, Response};
use consortium_protocol::wire::{self, Message as _};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use libp2p::gossipsub::{self, IdentTopic, MessageAcceptance};
use libp2p::multiaddr::Protocol;
use libp2p::request_response::{self, OutboundRequestId, ResponseChannel};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId, Swarm, identify, kad, mdns, ping, swarm};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, info, warn};

use super::behaviour::{self, Behaviour, BehaviourEvent};
use super::connections::Connections;
use super::handle::{Command, PeerInfo, Reply, SwarmError, SwarmEvent, SwarmHandle};
use super::lookups::Lookups;
use super::peer_id;
use super::streams::{Incoming, Streams};
use super::topics::Topics;
use super::transport::{self, TransportKind};

const COMMANDS: usize = 256;
const EVENTS: usize = 256;
/// Connections without a stream are closed after this time.
const IDLE: Duration = Duration::from_secs(120);
/// Members are looked up often at first, then now and then.
const LOOKUP_EARLY: Duration = Duration::from_secs(1);
const LOOKUP_LATER: Duration = Duration::from_secs(15);
const EARLY_LOOKUPS: u32 = 15;
/// Addresses kept for one peer.
const MAX_ADDRESSES: usize = 16;

/// How the swarm is started.
pub struct SwarmConfig<'a> {
    /// The node's key.
    pub key: &'a RootKey,
    /// The cluster whose facts it hears and tells.
    pub cluster: ClusterId,
    /// Multiaddresses to listen on.
    pub listen: Vec<String>,
    /// Multiaddresses of peers to begin with.
    pub bootstrap: Vec<String>,
    /// Look for peers on the local network.
    pub mdns: bool,
    /// How bytes move.
    pub transport: TransportKind,
}

/// Starts listening and spawns the actor. `protocols` are the stream protocols this node accepts; their [`Incoming`]s
/// come back in the same order.
///
/// # Errors
/// When an address is malformed or cannot be listened on (in use, for example), or the transport cannot be built.
pub fn spawn<const N: usize>(
    config: SwarmConfig<'_>,
    protocols: [&'static str; N],
) -> Result<(SwarmHandle, mpsc::Receiver<SwarmEvent>, [Incoming; N]), SwarmError> {
    let start = |error: &dyn std::fmt::Display| SwarmError::Start(error.to_string());
    let keypair = peer_id::keypair(config.key).map_err(|e| start(&e))?;
    let transport = transport::build(config.transport, &keypair).map_err(|e| start(&e))?;
    let behaviour = Behaviour::new(&keypair, config.mdns).map_err(|e| start(&e))?;
    let swarm_config = swarm::Config::with_tokio_executor().with_idle_connection_timeout(IDLE);
    let mut swarm = Swarm::new(transport, behaviour, keypair.public().to_peer_id(), swarm_config);

    for text in &config.listen {
        let address = parse(text)?;
        swarm
            .listen_on(address)
            .map_err(|error| SwarmError::Address { address: text.clone(), reason: error.to_string() })?;
    }
    let topic = IdentTopic::new(wire::gossip_topic(config.cluster));
    swarm.behaviour_mut().gossip.subscribe(&topic).map_err(|e| start(&e))?;
    swarm.behaviour_mut().gossip.set_topic_params(topic.clone(), behaviour::topic_score()).map_err(|e| start(&e))?;
    let bootstrap = config.bootstrap.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>()?;

    let me = config.key.node_id();
    let control = swarm.behaviour().streams.new_control();
    let (streams, incoming) = Streams::register(me, &control, protocols).map_err(|e| start(&e))?;
    let (commands, command_queue) = mpsc::channel(COMMANDS);
    let (events, event_queue) = mpsc::channel(EVENTS);
    let (listening, listening_rx) = watch::channel(Vec::new());
    let handle = SwarmHandle { me, commands, streams, listening: listening_rx };
    let actor = Actor {
        me,
        cluster: config.cluster,
        members: kad::RecordKey::new(config.cluster.0.as_bytes()),
        swarm,
        topic,
        topics: Topics::default(),
        providing: Lookups::default(),
        bootstrap,
        listening,
        events,
        waiting: BTreeMap::new(),
        answers: FuturesUnordered::new(),
        peers: BTreeMap::new(),
        connections: Connections::default(),
        regard: BTreeMap::new(),
        lookups: 0,
    };
    tokio::spawn(actor.run(command_queue));
    Ok((handle, event_queue, incoming))
}

fn parse(text: &str) -> Result<Multiaddr, SwarmError> {
    text.parse().map_err(|error: libp2p::multiaddr::Error| SwarmError::Address {
        address: text.to_owned(),
        reason: format!("not a multiaddress ({error}); one looks like /ip4/203.0.113.7/tcp/4001"),
    })
}

type Answer = (ResponseChannel<Response>, Option<Response>);

struct Actor {
    me: NodeId,
    cluster: ClusterId,
    /// Key under which members announce themselves in the DHT.
    members: kad::RecordKey,
    swarm: Swarm<Behaviour>,
    topic: IdentTopic,
    /// Topics besides the cluster's.
    topics: Topics,
    providing: Lookups,
    bootstrap: Vec<Multiaddr>,
    listening: watch::Sender<Vec<String>>,
    events: mpsc::Sender<SwarmEvent>,
    waiting: BTreeMap<OutboundRequestId, oneshot::Sender<Result<Response, String>>>,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    peers: BTreeMap<NodeId, PeerInfo>,
    connections: Connections,
    /// What gossip is to make of peers.
    regard: BTreeMap<NodeId, f64>,
    lookups: u32,
}

impl Actor {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        self.dial_bootstrap();
        let lookup = tokio::time::sleep(Duration::from_millis(200));
        tokio::pin!(lookup);
        loop {
            let events = self.events.clone();
            let next = async {
                let permit = events.reserve().await;
                (permit, self.swarm.select_next_some().await)
            };
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Shutdown(done)) => {
                        // Dropping the swarm closes its connections.
                        drop(self);
                        let _gone = done.send(());
                        return;
                    }
                    Some(command) => self.obey(command),
                    None => return,
                },
                (permit, event) = next => {
                    // The owner of the events has gone: the node is going down.
                    let Ok(permit) = permit else { return };
                    if let Some(event) = self.digest(event) {
                        permit.send(event);
                    }
                }
                Some((channel, response)) = self.answers.next(), if !self.answers.is_empty() => {
                    if let Some(response) = response {
                        // Fails when the asker has gone, which is its own affair.
                        let _gone = self.swarm.behaviour_mut().rpc.send_response(channel, response);
                    }
                }
                () = &mut lookup => {
                    self.look_up_members();
                    let pause = if self.lookups < EARLY_LOOKUPS { LOOKUP_EARLY } else { LOOKUP_LATER };
                    lookup.as_mut().reset(tokio::time::Instant::now() + pause);
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Publish(fact) => {
                match self.swarm.behaviour_mut().gossip.publish(self.topic.clone(), fact.encode()) {
                    Ok(_)
                    | Err(gossipsub::PublishError::NoPeersSubscribedToTopic | gossipsub::PublishError::Duplicate) => {}
                    Err(error) => warn!(%error, "a fact could not be gossiped"),
                }
            }
            Command::Subscribe { topic, listener } => {
                self.topics.subscribe(&mut self.swarm.behaviour_mut().gossip, topic, listener);
            }
            Command::Unsubscribe(topic) => self.topics.unsubscribe(&mut self.swarm.behaviour_mut().gossip, topic),
            Command::Say { topic, data } => self.topics.publish(&mut self.swarm.behaviour_mut().gossip, topic, data),
            Command::Judge(spoken, judgement) => {
                Topics::judge(&mut self.swarm.behaviour_mut().gossip, &spoken, judgement);
            }
            Command::Provide { key, provides } => Lookups::provide(&mut self.swarm.behaviour_mut().kad, &key, provides),
            Command::Providers { key, reply } => {
                self.providing.begin(&mut self.swarm.behaviour_mut().kad, &key, reply);
            }
            Command::Request { to, request, reply } if to == self.me => self.ask_self(request, reply),
            Command::Request { to, request, reply } => match peer_id::to_peer(&to) {
                Some(peer) => {
                    let id = self.swarm.behaviour_mut().rpc.send_request(&peer, request);
                    self.waiting.insert(id, reply);
                }
                None => drop(reply.send(Err("not a valid key".to_owned()))),
            },
            Command::Dial(addresses) => {
                for text in addresses {
                    match parse(&text) {
                        Ok(address) => self.dial(address),
                        Err(error) => debug!(%error, "skipped an address"),
                    }
                }
            }
            Command::Peers(reply) => {
                let peers = self.peers.iter().map(|(node, info)| (*node, info.clone())).collect();
                let _gone = reply.send(peers);
            }
            Command::Regard(regard) => {
                self.regard = regard;
                let connected: Vec<NodeId> = self.peers.keys().copied().collect();
                connected.iter().for_each(|node| self.apply_regard(node));
            }
            Command::Shutdown(done) => drop(done.send(())),
        }
    }

    fn apply_regard(&mut self, node: &NodeId) {
        if let (Some(peer), Some(regard)) = (peer_id::to_peer(node), self.regard.get(node)) {
            self.swarm.behaviour_mut().gossip.set_application_score(&peer, *regard);
        }
    }

    fn ask_self(&self, request: Request, reply: oneshot::Sender<Result<Response, String>>) {
        let (answer, answered) = oneshot::channel();
        match self.events.try_send(SwarmEvent::Request { from: self.me, request, reply: Reply(answer) }) {
            Ok(()) => drop(tokio::spawn(async move {
                let _gone = reply.send(answered.await.map_err(|_| "no answer".to_owned()));
            })),
            Err(error) => drop(reply.send(Err(error.to_string()))),
        }
    }

    fn digest(&mut self, event: swarm::SwarmEvent<BehaviourEvent>) -> Option<SwarmEvent> {
        match event {
            swarm::SwarmEvent::Behaviour(event) => self.digest_behaviour(event),
            swarm::SwarmEvent::NewListenAddr { address, .. } => {
                let address = address.with_p2p(*self.swarm.local_peer_id()).unwrap_or_else(|address| address);
                info!(%address, "listening");
                self.listening.send_modify(|all| all.push(address.to_string()));
                None
            }
            swarm::SwarmEvent::ExpiredListenAddr { address, .. } => {
                let address = address.to_string();
                self.listening.send_modify(|all| all.retain(|known| !known.starts_with(&address)));
                None
            }
            swarm::SwarmEvent::ListenerError { error, .. } => {
                warn!(%error, "a listener failed");
                None
            }
            swarm::SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, num_established, .. } => {
                if self.connections.established(peer_id, connection_id, &endpoint) {
                    self.begin_anew(peer_id);
                }
                let node = peer_id::to_node(&peer_id)?;
                self.apply_regard(&node);
                let info = self.peers.entry(node).or_default();
                if endpoint.is_dialer() {
                    remember(info, endpoint.get_remote_address());
                }
                (num_established.get() == 1).then_some(SwarmEvent::Connected(node))
            }
            swarm::SwarmEvent::ConnectionClosed { peer_id, connection_id, num_established, cause, .. } => {
                let to_dial = self.connections.closed(&peer_id, &connection_id, num_established == 0);
                if num_established > 0 {
                    return None;
                }
                let node = peer_id::to_node(&peer_id)?;
                debug!(peer = %node, ?cause, "disconnected");
                let known = self.peers.remove(&node).unwrap_or_default();
                if to_dial {
                    self.dial_peer(peer_id, known.addresses.iter().filter_map(|text| text.parse().ok()).collect());
                }
                Some(SwarmEvent::Disconnected(node))
            }
            swarm::SwarmEvent::OutgoingConnectionError { peer_id, error, .. } => {
                debug!(?peer_id, %error, "could not connect");
                None
            }
            swarm::SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                debug!(from = %send_back_addr, %error, "refused a connection");
                None
            }
            _ => None,
        }
    }

    fn digest_behaviour(&mut self, event: BehaviourEvent) -> Option<SwarmEvent> {
        match event {
            BehaviourEvent::Gossip(gossipsub::Event::Message { propagation_source, message_id, mut message }) => {
                let gossip = &mut self.swarm.behaviour_mut().gossip;
                if self.topics.hear(gossip, propagation_source, &message_id, &mut message) {
                    return None;
                }
                self.digest_fact(&propagation_source, &message_id, &message.data)
            }
            BehaviourEvent::Rpc(event) => self.digest_rpc(event),
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                self.identified(peer_id, info);
                None
            }
            BehaviourEvent::Ping(ping::Event { peer, result: Ok(rtt), .. }) => {
                if let Some(info) = peer_id::to_node(&peer).and_then(|node| self.peers.get_mut(&node)) {
                    info.rtt = Some(rtt);
                }
                None
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                for (peer, address) in found {
                    self.swarm.behaviour_mut().kad.add_address(&peer, address.clone());
                    self.dial_peer(peer, vec![address]);
                }
                None
            }
            BehaviourEvent::Kad(event) => {
                self.digest_kad(event);
                None
            }
            _ => None,
        }
    }

    fn digest_fact(&mut self, source: &PeerId, id: &gossipsub::MessageId, data: &[u8]) -> Option<SwarmEvent> {
        let node = peer_id::to_node(source);
        let checked = Fact::decode(data).map_err(|error| error.to_string()).and_then(|fact| {
            if concerns(&fact, self.cluster) { Ok(fact) } else { Err("it is about another cluster".to_owned()) }
        });
        let acceptance = if checked.is_ok() { MessageAcceptance::Accept } else { MessageAcceptance::Reject };
        self.swarm.behaviour_mut().gossip.report_message_validation_result(id, source, acceptance);
        match (checked, node) {
            (Ok(fact), Some(source)) => Some(SwarmEvent::Fact { source, fact }),
            (Ok(_), None) => None,
            (Err(reason), _) => {
                warn!(%source, reason, "refused a gossiped fact");
                None
            }
        }
    }

    fn digest_rpc(&mut self, event: request_response::Event<Request, Response>) -> Option<SwarmEvent> {
        match event {
            request_response::Event::Message { peer, message, .. } => match message {
                request_response::Message::Request { request, channel, .. } => {
                    let from = peer_id::to_node(&peer)?;
                    let (reply, answer) = oneshot::channel();
                    self.answers.push(answer.map(move |response| (channel, response.ok())).boxed());
                    Some(SwarmEvent::Request { from, request, reply: Reply(reply) })
                }
                request_response::Message::Response { request_id, response } => {
                    if let Some(reply) = self.waiting.remove(&request_id) {
                        let _gone = reply.send(Ok(response));
                    }
                    None
                }
            },
            request_response::Event::OutboundFailure { request_id, error, .. } => {
                if let Some(reply) = self.waiting.remove(&request_id) {
                    let _gone = reply.send(Err(error.to_string()));
                }
                None
            }
            request_response::Event::InboundFailure { peer, error, .. } => {
                debug!(%peer, %error, "an incoming request failed");
                None
            }
            request_response::Event::ResponseSent { .. } => None,
        }
    }

    fn identified(&mut self, peer: PeerId, info: identify::Info) {
        if info.protocol_version != behaviour::IDENTIFY {
            debug!(%peer, speaks = info.protocol_version, "not a Consortium node of this version; disconnecting");
            let _already_gone = self.swarm.disconnect_peer_id(peer);
            return;
        }
        let Some(node) = peer_id::to_node(&peer) else { return };
        for address in info.listen_addrs.into_iter().take(MAX_ADDRESSES) {
            if let Some(known) = self.peers.get_mut(&node) {
                remember(known, &address);
            }
            self.swarm.behaviour_mut().kad.add_address(&peer, address);
        }
    }

    fn digest_kad(&mut self, event: kad::Event) {
        match event {
            kad::Event::InboundRequest { request: kad::InboundRequest::AddProvider { record: Some(record) } } => {
                // Kademlia has checked that the provider is the peer that sent it; the store bounds their number.
                if let Err(error) =
                    kad::store::RecordStore::add_provider(self.swarm.behaviour_mut().kad.store_mut(), record)
                {
                    debug!(?error, "did not store a provider record");
                }
            }
            kad::Event::OutboundQueryProgressed {
                result: kad::QueryResult::GetProviders(Ok(kad::GetProvidersOk::FoundProviders { key, providers })),
                ..
            } if key == self.members => {
                for peer in providers {
                    self.dial_peer(peer, Vec::new());
                }
            }
            kad::Event::OutboundQueryProgressed {
                id, result: kad::QueryResult::GetProviders(result), step, ..
            } => {
                for peer in self.providing.progress(id, &result, step.last).into_iter().flatten() {
                    self.dial_peer(peer, Vec::new());
                }
            }
            _ => {}
        }
    }

    /// Closes all connections with a peer; it is dialled when they are closed.
    fn begin_anew(&mut self, peer: PeerId) {
        debug!(%peer, "beginning anew with a peer");
        self.connections.dial_when_closed(peer);
        let _already_gone = self.swarm.disconnect_peer_id(peer);
    }

    /// Announces this node as a member of its cluster and looks for the others.
    fn look_up_members(&mut self) {
        self.lookups = self.lookups.saturating_add(1);
        // Every node subscribes to something: who does not say so takes this node for an older life of itself.
        let gossip = &self.swarm.behaviour().gossip;
        let silent = gossip.all_peers().filter(|(_, topics)| topics.is_empty()).map(|(peer, _)| *peer);
        let silent: Vec<PeerId> = silent.filter(|peer| self.connections.stands_long(peer)).collect();
        silent.into_iter().for_each(|peer| self.begin_anew(peer));
        if self.peers.is_empty() {
            self.dial_bootstrap();
            return;
        }
        let key = self.members.clone();
        let kad = &mut self.swarm.behaviour_mut().kad;
        if self.lookups <= EARLY_LOOKUPS || self.lookups.is_multiple_of(20) {
            if let Err(error) = kad.start_providing(key.clone()) {
                debug!(?error, "cannot announce this node in the DHT");
            }
            if let Err(error) = kad.bootstrap() {
                debug!(?error, "no peers to bootstrap from yet");
            }
        }
        kad.get_providers(key);
    }

    fn dial_bootstrap(&mut self) {
        for address in self.bootstrap.clone() {
            self.dial(address);
        }
    }

    fn dial(&mut self, address: Multiaddr) {
        let peer = address.iter().find_map(|part| if let Protocol::P2p(peer) = part { Some(peer) } else { None });
        match peer {
            Some(peer) => self.dial_peer(peer, vec![address]),
            None => {
                if let Err(error) = self.swarm.dial(address) {
                    debug!(%error, "could not dial");
                }
            }
        }
    }

    fn dial_peer(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        if peer == *self.swarm.local_peer_id() || self.swarm.is_connected(&peer) {
            return;
        }
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(addresses)
            .extend_addresses_through_behaviour()
            .build();
        match self.swarm.dial(options) {
            Ok(()) | Err(swarm::DialError::DialPeerConditionFalse(_) | swarm::DialError::NoAddresses) => {}
            Err(error) => debug!(%peer, %error, "could not dial"),
        }
    }
}

/// Is the fact about this cluster?
fn concerns(fact: &Fact, cluster: ClusterId) -> bool {
    match fact {
        Fact::Heartbeat(heartbeat) => heartbeat.payload().cluster == cluster,
        Fact::Certificate(certificate) => certificate.verify(cluster).is_ok(),
        Fact::Verdict(verdict) => verdict.payload().cluster == cluster,
        Fact::Rebuttal(rebuttal) => rebuttal.payload().cluster == cluster,
        // A journal belongs to its node, whatever cluster it serves; a run is open to whoever hears of it.
        Fact::TreeHead(_) | Fact::Equivocation(_) | Fact::Run(_) => true,
    }
}

fn remember(info: &mut PeerInfo, address: &Multiaddr) {
    let address = address.to_string();
    if info.addresses.len() < MAX_ADDRESSES && !info.addresses.contains(&address) {
        info.addresses.push(address);
    }
}
