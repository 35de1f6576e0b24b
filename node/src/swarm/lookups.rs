//! Who provides something, by Kademlia.

use std::collections::{BTreeSet, HashMap};

use consortium_protocol::hash::Hash;
use consortium_protocol::identity::NodeId;
use libp2p::PeerId;
use libp2p::kad::store::MemoryStore;
use libp2p::kad::{self, GetProvidersOk, QueryId, RecordKey};
use tokio::sync::oneshot;
use tracing::debug;

use super::peer_id;

/// Lookups at a time.
const MOST: usize = 64;
/// Providers told of at most.
const MOST_PROVIDERS: usize = 64;

/// Lookups under way.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    under_way: HashMap<QueryId, Lookup>,
}

#[derive(Debug)]
struct Lookup {
    found: BTreeSet<NodeId>,
    reply: oneshot::Sender<Vec<NodeId>>,
}

fn record_key(key: &Hash) -> RecordKey {
    RecordKey::new(key.as_bytes())
}

impl Lookups {
    /// Says that this node provides something, or does no longer.
    pub(super) fn provide(kad: &mut kad::Behaviour<MemoryStore>, key: &Hash, provides: bool) {
        if !provides {
            kad.stop_providing(&record_key(key));
        } else if let Err(error) = kad.start_providing(record_key(key)) {
            debug!(?error, "cannot say in the DHT what this node provides");
        }
    }

    pub(super) fn begin(
        &mut self,
        kad: &mut kad::Behaviour<MemoryStore>,
        key: &Hash,
        reply: oneshot::Sender<Vec<NodeId>>,
    ) {
        self.under_way.retain(|_, lookup| !lookup.reply.is_closed());
        if self.under_way.len() < MOST {
            let query = kad.get_providers(record_key(key));
            self.under_way.insert(query, Lookup { found: BTreeSet::new(), reply });
        }
    }

    /// Takes note of what a query found; gives the peers to be dialled. None if the query is not one of these.
    pub(super) fn progress(
        &mut self,
        query: QueryId,
        result: &Result<GetProvidersOk, kad::GetProvidersError>,
        last: bool,
    ) -> Option<Vec<PeerId>> {
        let lookup = self.under_way.get_mut(&query)?;
        let mut peers = Vec::new();
        if let Ok(GetProvidersOk::FoundProviders { providers, .. }) = result {
            for peer in providers.iter().take(MOST_PROVIDERS) {
                lookup.found.extend(peer_id::to_node(peer).filter(|_| lookup.found.len() < MOST_PROVIDERS));
                peers.push(*peer);
            }
        }
        if last && let Some(Lookup { found, reply }) = self.under_way.remove(&query) {
            let _gone = reply.send(found.into_iter().collect());
        }
        Some(peers)
    }
}
