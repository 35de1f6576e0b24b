//! Keeps peers with channels connected. ldk-node tries once a minute, and first a minute after its start; here a peer
//! that is away is tried at once, and again after pauses that grow until ldk-node's own tries are as frequent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ldk_node::PeerDetails;
use ldk_node::bitcoin::secp256k1::PublicKey;
use tokio::sync::{Semaphore, watch};
use tracing::debug;

use super::wallet::Inner;

/// How often peers are looked at, and the first pause.
const LOOK: Duration = Duration::from_secs(1);
/// The longest pause: from then on ldk-node tries alone.
const LONGEST: Duration = Duration::from_secs(60);
/// Tries at the same time.
const AT_ONCE: usize = 8;

/// When a peer is tried next, and the pause after that.
type Pauses = BTreeMap<PublicKey, (Instant, Duration)>;

/// Runs until the wallet stops.
pub(super) async fn run(inner: Arc<Inner>, mut stop: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut pauses = Pauses::new();
    let mut every = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            _ = every.tick() => {}
        }
        for peer in due(inner.node.list_peers(), &mut pauses, Instant::now()) {
            let Ok(place) = Arc::clone(&room).try_acquire_owned() else { break };
            let inner = Arc::clone(&inner);
            // It ends by itself: a try takes ten seconds at most.
            drop(tokio::task::spawn_blocking(move || {
                let _place = place;
                if let Err(error) = inner.node.connect(peer.node_id, peer.address, true) {
                    debug!(peer = %peer.node_id, %error, "a Lightning peer is away");
                }
            }));
        }
    }
}

/// The peers to try now.
fn due(peers: Vec<PeerDetails>, pauses: &mut Pauses, now: Instant) -> Vec<PeerDetails> {
    let away: Vec<PeerDetails> = peers.into_iter().filter(|peer| peer.is_persisted && !peer.is_connected).collect();
    pauses.retain(|id, _| away.iter().any(|peer| peer.node_id == *id));
    let mut try_now = Vec::new();
    for peer in away {
        let (next, pause) = pauses.entry(peer.node_id).or_insert((now, LOOK));
        if *next <= now && *pause < LONGEST {
            *next = now + *pause;
            *pause *= 2;
            try_now.push(peer);
        }
    }
    try_now
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(is_connected: bool) -> PeerDetails {
        let node_id = "02eec7245d6b7d2ccb30380bfbe2a3648cd7a942653f5aa340edcea1f283686619".parse().unwrap();
        let address = "127.0.0.1:9735".parse().unwrap();
        PeerDetails { node_id, address, is_persisted: true, is_connected }
    }

    #[test]
    fn pauses_grow_and_end_and_begin_anew() {
        let (mut pauses, start) = (Pauses::new(), Instant::now());
        let tries = |pauses: &mut Pauses, second: u64, connected: bool| {
            due(vec![peer(connected)], pauses, start + Duration::from_secs(second)).len()
        };
        let when: Vec<u64> = (0..600).filter(|second| tries(&mut pauses, *second, false) > 0).collect();
        assert_eq!(when, [0, 1, 3, 7, 15, 31]);
        assert_eq!(tries(&mut pauses, 601, true), 0);
        assert_eq!(tries(&mut pauses, 602, false), 1, "it was there in between");
    }
}
