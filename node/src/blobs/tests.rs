use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use consortium_protocol::cluster::ClusterName;
use consortium_protocol::identity::{NodeId, RootKey};
use consortium_protocol::wire::BLOB;
use consortium_protocol::wire::blob::{BlobAnswer, BlobRequest, PART_BYTES, parts};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::pipeline::{read_message, write_bytes, write_message};
use crate::swarm::{self, Incoming, SwarmConfig, SwarmHandle, TransportKind};

const QUOTA: u64 = 256 << 20;
/// Three whole parts and a little.
const LENGTH: usize = 3 * PART_BYTES as usize + 12_345;

fn content() -> Vec<u8> {
    let mut bytes = vec![0; LENGTH];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

struct Node {
    swarm: SwarmHandle,
    incoming: Option<Incoming>,
    blobs: Blobs,
    stop: CancellationToken,
    dir: tempfile::TempDir,
}

impl Node {
    async fn start(seed: u8, bootstrap: &[&Node]) -> Self {
        let key = RootKey::from_seed([seed; 32]);
        let config = SwarmConfig {
            key: &key,
            cluster: "blobs".parse::<ClusterName>().unwrap().id(),
            listen: vec!["/memory/0".to_owned()],
            bootstrap: bootstrap.iter().map(|node| node.swarm.listening().borrow()[0].clone()).collect(),
            mdns: false,
            transport: TransportKind::Memory,
        };
        let (swarm, mut events, [incoming]) = swarm::spawn(config, [BLOB]).unwrap();
        swarm.listening().wait_for(|all| !all.is_empty()).await.unwrap();
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path().join("blobs"), QUOTA).unwrap();
        Self { swarm, incoming: Some(incoming), blobs, stop: CancellationToken::new(), dir }
    }

    fn id(&self) -> NodeId {
        self.swarm.me()
    }

    /// Has it, and gives it.
    async fn gives(&mut self, bytes: Vec<u8>) -> Hash {
        let hash = self.blobs.put(bytes).await.unwrap();
        self.serves();
        hash
    }

    fn serves(&mut self) {
        tokio::spawn(self.blobs.clone().serve(self.incoming.take().unwrap(), self.stop.clone()));
    }

    /// A part of a file that it has, as it would give it.
    fn encoded(blobs: &Blobs, hash: Hash, part: u64) -> Vec<u8> {
        let (file, bytes) = (blobs.file(&hash), blobs.length(&hash).unwrap());
        let (data, tree) = (File::open(&file).unwrap(), File::open(file.with_extension(TREE)).unwrap());
        part::encode(&data, &tree, hash, bytes, part).unwrap()
    }

    /// Answers every question in a way of its own.
    fn answers(&mut self, how: impl Fn(BlobRequest) -> (BlobAnswer, Option<Vec<u8>>) + Send + Sync + 'static) {
        let (mut incoming, how) = (self.incoming.take().unwrap(), Arc::new(how));
        tokio::spawn(async move {
            while let Some((_, mut stream)) = incoming.recv().await {
                let how = Arc::clone(&how);
                tokio::spawn(async move {
                    while let Ok(Some(asked)) = read_message::<BlobRequest>(&mut stream).await {
                        let (answer, part) = how(asked);
                        write_message(&mut stream, &answer).await.unwrap();
                        if let Some(part) = part {
                            write_bytes(&mut stream, &part).await.unwrap();
                        }
                    }
                });
            }
        });
    }

    /// Gives one part at a time, each of which takes so long to send; counts them.
    fn gives_slowly(&mut self, takes: Duration) -> Arc<AtomicU64> {
        let (given, uplink) = (Arc::new(AtomicU64::new(0)), Arc::new(tokio::sync::Mutex::new(())));
        let (mut incoming, count, blobs) = (self.incoming.take().unwrap(), Arc::clone(&given), self.blobs.clone());
        tokio::spawn(async move {
            while let Some((_, mut stream)) = incoming.recv().await {
                let (count, uplink, blobs) = (Arc::clone(&count), Arc::clone(&uplink), blobs.clone());
                tokio::spawn(async move {
                    while let Ok(Some(asked)) = read_message::<BlobRequest>(&mut stream).await {
                        let (answer, part) = blobs.reply(asked).await;
                        let sent = write_message(&mut stream, &answer).await;
                        if let Some(part) = part.filter(|_| sent.is_ok()) {
                            let _one_at_a_time = uplink.lock().await;
                            tokio::time::sleep(takes).await;
                            count.fetch_add(1, Ordering::Relaxed);
                            let _gone_if_another_was_faster = write_bytes(&mut stream, &part).await;
                        }
                    }
                });
            }
        });
        given
    }

    async fn meets(&self, others: &[&Node]) {
        for _ in 0..200 {
            let known = self.swarm.peers().await.unwrap();
            if others.iter().all(|other| known.iter().any(|(node, _)| *node == other.id())) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("they do not meet");
    }

    async fn gets(&self, hash: Hash, donors: &[&Node]) -> Result<PathBuf, BlobError> {
        let donors: Vec<NodeId> = donors.iter().map(|donor| donor.id()).collect();
        self.blobs.fetch(&self.swarm, hash, QUOTA, &donors.into(), |_| ()).await
    }
}

#[tokio::test]
async fn a_file_comes_from_several_donors_and_is_given_on() {
    let (mut alice, mut bob) = (Node::start(1, &[]).await, Node::start(2, &[]).await);
    let carol = Node::start(3, &[&alice, &bob]).await;
    let dave = Node::start(4, &[&carol]).await;
    carol.meets(&[&alice, &bob, &dave]).await;
    let hash = alice.gives(content()).await;
    assert_eq!(bob.gives(content()).await, hash);
    let told = Arc::new(AtomicU64::new(0));
    let tell = Arc::clone(&told);
    let donors = vec![alice.id(), bob.id(), dave.id()].into();
    let progress = move |now: Progress| _ = tell.fetch_max(now.done, Ordering::Relaxed);
    let path = carol.blobs.fetch(&carol.swarm, hash, QUOTA, &donors, progress).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), content());
    assert_eq!(told.load(Ordering::Relaxed), 4);
    // It is known to be whole in another life, and nothing else is left.
    let again = Blobs::open(carol.dir.path().join("blobs"), QUOTA).unwrap();
    assert_eq!((again.length(&hash), again.path(&hash)), (Some(LENGTH as u64), Some(path.clone())));
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 2);
    again.remove(hash).await.unwrap();
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
}

#[tokio::test]
async fn small_and_empty_files_come_too() {
    let mut alice = Node::start(1, &[]).await;
    let bob = Node::start(2, &[&alice]).await;
    bob.meets(&[&alice]).await;
    let empty = alice.gives(Vec::new()).await;
    let small = alice.blobs.put(b"a baseline".to_vec()).await.unwrap();
    assert_eq!(std::fs::read(bob.gets(empty, &[&alice]).await.unwrap()).unwrap(), b"");
    assert_eq!(std::fs::read(bob.gets(small, &[&alice]).await.unwrap()).unwrap(), b"a baseline");
}

#[tokio::test]
async fn the_same_file_written_by_many_at_once_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path().to_owned(), QUOTA).unwrap();
    let writing = (0..8).map(|_| blobs.put(content()));
    let hashes: Vec<Hash> = futures::future::try_join_all(writing).await.unwrap();
    assert!(hashes.iter().all(|hash| *hash == Hash::of(&content())));
    assert_eq!(std::fs::read(blobs.path(&hashes[0]).unwrap()).unwrap(), content());

    // What was begun long ago is forgotten at the next start, what was begun lately is not.
    let [old, new] = [b"old", b"new"].map(|name| blobs.file(&Hash::of(name)).with_extension(PARTIAL));
    for path in [&old, &new] {
        std::fs::write(path, b"a part").unwrap();
    }
    let long_ago = std::time::SystemTime::now() - 2 * FORGOTTEN_AFTER;
    File::options().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();
    drop(Blobs::open(dir.path().to_owned(), QUOTA).unwrap());
    assert_eq!((old.exists(), new.exists()), (false, true));
}

#[tokio::test]
async fn liars_are_left_and_what_the_honest_give_is_kept() {
    let (mut liar, mut boaster, mut honest) =
        (Node::start(1, &[]).await, Node::start(2, &[]).await, Node::start(3, &[]).await);
    let wanting = Node::start(4, &[&liar, &boaster, &honest]).await;
    wanting.meets(&[&liar, &boaster, &honest]).await;
    let hash = honest.gives(content()).await;
    let bytes = LENGTH as u64;
    // One has a wrong byte in each part; the other says that there is more.
    let blobs = honest.blobs.clone();
    liar.answers(move |asked| {
        let part = asked.part.map(|part| {
            let mut encoded = Node::encoded(&blobs, hash, part);
            *encoded.last_mut().unwrap() ^= 1;
            encoded
        });
        (BlobAnswer::Here { bytes }, part)
    });
    boaster.answers(|asked| (BlobAnswer::Here { bytes: 40 << 20 }, asked.part.map(|_| vec![0; 1000])));
    let error = wanting.gets(hash, &[&liar, &boaster]).await.unwrap_err();
    assert!(matches!(error, BlobError::Nowhere(2)), "{error}");
    let path = wanting.gets(hash, &[&liar, &boaster, &honest]).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), content());
}

#[tokio::test]
async fn a_donor_that_leaves_costs_nothing_that_has_come() {
    let (mut weak, mut whole) = (Node::start(1, &[]).await, Node::start(2, &[]).await);
    let wanting = Node::start(3, &[&weak, &whole]).await;
    wanting.meets(&[&weak, &whole]).await;
    let hash = whole.gives(content()).await;
    let (bytes, blobs) = (LENGTH as u64, whole.blobs.clone());
    // It gives the last part, which proves the length, and one more, and then has nothing.
    let given = AtomicU64::new(0);
    weak.answers(move |asked| match asked.part {
        None => (BlobAnswer::Here { bytes }, None),
        Some(part) if part == 3 || given.fetch_add(1, Ordering::Relaxed) == 0 => {
            (BlobAnswer::Here { bytes }, Some(Node::encoded(&blobs, hash, part)))
        }
        Some(_) => (BlobAnswer::Unknown, None),
    });
    let error = wanting.gets(hash, &[&weak]).await.unwrap_err();
    assert!(matches!(error, BlobError::Incomplete { missing: 2, parts: 4, .. }), "{error}");
    // In another life it goes on from there.
    let blobs = Blobs::open(wanting.dir.path().join("blobs"), QUOTA).unwrap();
    let first = Arc::new(AtomicU64::new(u64::MAX));
    let tell = Arc::clone(&first);
    let progress = move |now: Progress| _ = tell.fetch_min(now.done, Ordering::Relaxed);
    let path = blobs.fetch(&wanting.swarm, hash, QUOTA, &vec![whole.id()].into(), progress).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), content());
    assert_eq!(first.load(Ordering::Relaxed), 2, "what had come was not asked for again");
}

/// Such a file has 24 parts, and a little.
const LONG: usize = 24 * PART_BYTES as usize + 1;

#[tokio::test]
async fn nodes_that_want_the_same_file_give_it_to_each_other() {
    const WANTING: u8 = 4;
    let mut source = Node::start(1, &[]).await;
    let mut wanting = Vec::new();
    for seed in 0..WANTING {
        let known: Vec<&Node> = [&source].into_iter().chain(&wanting).collect();
        wanting.push(Node::start(seed + 2, &known).await);
    }
    let whole = vec![5; LONG];
    let (hash, bytes) = (source.blobs.put(whole.clone()).await.unwrap(), LONG as u64);
    for node in &mut wanting {
        node.serves();
    }
    let all: Vec<&Node> = wanting.iter().collect();
    for (at, node) in wanting.iter().enumerate() {
        node.meets(&[&[&source][..], &all[..at], &all[at + 1..]].concat()).await;
    }
    // It sends one part at a time, and each takes a while.
    let given = source.gives_slowly(Duration::from_millis(200));
    let getting = wanting.iter().map(|node| async {
        let others = wanting.iter().map(Node::id).collect();
        let donors = Donors { sure: vec![source.id()], others };
        node.blobs.fetch(&node.swarm, hash, QUOTA, &donors, |_| ()).await.unwrap()
    });
    for path in futures::future::join_all(getting).await {
        assert!(std::fs::read(path).unwrap() == whole);
    }
    let (given, once) = (given.load(Ordering::Relaxed), parts(bytes));
    assert!((once..once * 3).contains(&given), "{given} parts were sent by the source of {once}, for {WANTING} nodes");
    // Nothing is left of how it came.
    for node in &wanting {
        assert_eq!(std::fs::read_dir(node.dir.path().join("blobs")).unwrap().count(), 2);
    }
}

/// Every peer has an update that all others want, and one node that has none passes on what it gets, eight times as fast.
#[tokio::test]
#[ignore = "a measurement: how near nodes come to the bound of distribution"]
async fn all_updates_reach_all_nodes_soon() {
    const PEERS: u8 = 6;
    const FASTER: u32 = 8;
    const PART: Duration = Duration::from_millis(250);
    for pass_on in [true, false] {
        let mut nodes: Vec<Node> = Vec::new();
        for seed in 0..=PEERS {
            let known: Vec<&Node> = nodes.iter().collect();
            nodes.push(Node::start(seed + 1 + 100 * u8::from(pass_on), &known).await);
        }
        let mut files = Vec::new();
        for (at, node) in nodes.iter_mut().enumerate() {
            let is_peer = at < usize::from(PEERS);
            if is_peer {
                files.push((node.id(), node.blobs.put(vec![at as u8; LONG - 1]).await.unwrap()));
            }
            node.gives_slowly(if is_peer { PART } else { PART / FASTER });
        }
        let all: Vec<&Node> = nodes.iter().collect();
        for (at, node) in nodes.iter().enumerate() {
            node.meets(&[&all[..at], &all[at + 1..]].concat()).await;
        }
        let everyone: Vec<NodeId> = nodes.iter().map(Node::id).collect();
        let wants = nodes.iter().flat_map(|node| files.iter().map(move |(source, file)| (node, *source, *file)));
        let getting = wants.map(|(node, source, file)| {
            let others = if pass_on { everyone.clone() } else { Vec::new() };
            async move {
                let donors = Donors { sure: vec![source], others };
                node.blobs.fetch(&node.swarm, file, QUOTA, &donors, |_| ()).await.unwrap()
            }
        });
        let begun = std::time::Instant::now();
        futures::future::join_all(getting).await;
        let (took, parts, peers) = (begun.elapsed().as_secs_f64(), parts(LONG as u64 - 1) as f64, f64::from(PEERS));
        let bound = peers * peers * parts * PART.as_secs_f64() / (peers + f64::from(FASTER));
        eprintln!("passed on: {pass_on}; {took:.1} s, {:.2} times the bound of {bound:.1} s", took / bound);
    }
}

#[tokio::test]
async fn what_has_come_is_given_on_and_what_has_not_is_waited_for() {
    let mut source = Node::start(1, &[]).await;
    let mut first = Node::start(2, &[&source]).await;
    let second = Node::start(3, &[&source, &first]).await;
    first.serves();
    first.meets(&[&source, &second]).await;
    let (hash, bytes) = (source.blobs.put(content()).await.unwrap(), LENGTH as u64);
    let (blobs, goes_on) = (source.blobs.clone(), Arc::new(AtomicU64::new(0)));
    let has_more = Arc::clone(&goes_on);
    // For a while it has the second part and the end.
    source.answers(move |asked| {
        let mut held = Held::none(bytes);
        [1, 3].into_iter().for_each(|part| held.set(part, true));
        match asked.part.filter(|part| held.has(*part) || has_more.load(Ordering::Relaxed) == 1) {
            Some(part) => (BlobAnswer::Here { bytes }, Some(Node::encoded(&blobs, hash, part))),
            None if has_more.load(Ordering::Relaxed) == 1 => (BlobAnswer::Here { bytes }, None),
            None => (BlobAnswer::Coming { bytes, held }, None),
        }
    });
    let (from_source, from_first) = (vec![source.id()].into(), vec![first.id()].into());
    let had = Arc::new(AtomicU64::new(0));
    let second_has = |so_much| {
        let had = Arc::clone(&had);
        async move {
            while had.load(Ordering::Relaxed) < so_much {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    let tell = Arc::clone(&had);
    let both = futures::future::join3(
        first.blobs.fetch(&first.swarm, hash, QUOTA, &from_source, |_| ()),
        async {
            // When the first has something, the second gets that of it.
            while first.blobs.what_came(&hash).is_none_or(|came| !came.held.has(1)) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let progress = move |now: Progress| _ = tell.fetch_max(now.done, Ordering::Relaxed);
            second.blobs.fetch(&second.swarm, hash, QUOTA, &from_first, progress).await
        },
        async {
            second_has(2).await;
            assert!(second.blobs.path(&hash).is_none());
            goes_on.store(1, Ordering::Relaxed);
        },
    );
    let (first_got, second_got, ()) = tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
    assert_eq!(std::fs::read(first_got.unwrap()).unwrap(), content());
    assert_eq!(std::fs::read(second_got.unwrap()).unwrap(), content());
    assert!(first.blobs.what_came(&hash).is_none() && second.blobs.what_came(&hash).is_none());
}

#[tokio::test]
async fn a_donor_that_never_has_what_it_says_is_left() {
    let (mut boaster, mut honest) = (Node::start(1, &[]).await, Node::start(2, &[]).await);
    let wanting = Node::start(3, &[&boaster, &honest]).await;
    wanting.meets(&[&boaster, &honest]).await;
    let (hash, bytes) = (honest.gives(content()).await, LENGTH as u64);
    let (blobs, asked_for) = (honest.blobs.clone(), Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&asked_for);
    boaster.answers(move |asked| {
        let mut held = Held::none(bytes);
        (0..4).for_each(|part| held.set(part, true));
        match asked.part {
            Some(3) => (BlobAnswer::Here { bytes }, Some(Node::encoded(&blobs, hash, 3))),
            Some(_) => {
                count.fetch_add(1, Ordering::Relaxed);
                (BlobAnswer::Coming { bytes, held }, None)
            }
            None => (BlobAnswer::Coming { bytes, held }, None),
        }
    });
    let error = wanting.gets(hash, &[&boaster]).await.unwrap_err();
    assert!(matches!(error, BlobError::Incomplete { missing: 3, parts: 4, .. }), "{error}");
    let asked_for = asked_for.load(Ordering::Relaxed);
    assert!((3..=9).contains(&asked_for), "{asked_for}");
    assert_eq!(std::fs::read(wanting.gets(hash, &[&boaster, &honest]).await.unwrap()).unwrap(), content());
}

#[tokio::test]
async fn there_are_bounds() {
    let mut alice = Node::start(1, &[]).await;
    let bob = Node::start(2, &[&alice]).await;
    bob.meets(&[&alice]).await;
    let hash = alice.gives(content()).await;
    let most = LENGTH as u64 - 1;
    let error = bob.blobs.fetch(&bob.swarm, hash, most, &vec![alice.id()].into(), |_| ()).await.unwrap_err();
    assert!(matches!(error, BlobError::TooLong { bytes, .. } if bytes == most + 1), "{error}");
    let tight = Blobs::open(bob.dir.path().join("tight"), most).unwrap();
    let error = tight.fetch(&bob.swarm, hash, QUOTA, &vec![alice.id()].into(), |_| ()).await.unwrap_err();
    assert!(matches!(error, BlobError::Full { .. }), "{error}");
    let error = tight.put(content()).await.unwrap_err();
    assert!(matches!(error, BlobError::Full { .. }), "{error}");
    assert!(matches!(bob.gets(Hash::of(b"?"), &[&alice]).await.unwrap_err(), BlobError::Nowhere(1)));
    // One that cannot be read now may be read another time.
    let (tree, kept) = (alice.blobs.file(&hash).with_extension(TREE), alice.dir.path().join("kept"));
    std::fs::rename(&tree, &kept).unwrap();
    std::fs::create_dir(&tree).unwrap();
    assert!(bob.gets(hash, &[&alice]).await.is_err());
    assert!(alice.blobs.file(&hash).exists() && alice.blobs.path(&hash).is_some());
    std::fs::remove_dir(&tree).unwrap();
    std::fs::rename(&kept, &tree).unwrap();
    let carol = Blobs::open(bob.dir.path().join("carol"), QUOTA).unwrap();
    carol.fetch(&bob.swarm, hash, QUOTA, &vec![alice.id()].into(), |_| ()).await.unwrap();
    // A file that changed on the disk is not given out, and not had any more.
    std::fs::write(alice.blobs.file(&hash), vec![7; LENGTH]).unwrap();
    assert!(bob.gets(hash, &[&alice]).await.is_err());
    assert_eq!(alice.blobs.path(&hash), None);
}

#[tokio::test]
async fn what_is_written_takes_room_and_what_was_left_gives_it() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path().join("two"), LENGTH as u64 * 3 / 2).unwrap();
    let both = futures::future::join(blobs.put(content()), blobs.put(vec![1; LENGTH])).await;
    assert!(both.0.is_ok() != both.1.is_ok(), "there is no room for two at a time: {both:?}");

    let (mut weak, mut whole) = (Node::start(1, &[]).await, Node::start(2, &[]).await);
    let wanting = Node::start(3, &[&weak, &whole]).await;
    wanting.meets(&[&weak, &whole]).await;
    let hash = whole.gives(content()).await;
    let (bytes, donor) = (LENGTH as u64, whole.blobs.clone());
    weak.answers(move |asked| match asked.part {
        None => (BlobAnswer::Here { bytes }, None),
        Some(3) => (BlobAnswer::Here { bytes }, Some(Node::encoded(&donor, hash, 3))),
        Some(_) => (BlobAnswer::Unknown, None),
    });
    let place = wanting.dir.path().join("tight");
    let tight = Blobs::open(place.clone(), bytes * 3 / 2).unwrap();
    let left = || std::fs::read_dir(&place).unwrap().count();
    tight.fetch(&wanting.swarm, hash, QUOTA, &vec![weak.id()].into(), |_| ()).await.unwrap_err();
    assert_eq!(left(), 3, "what has come, its hashes, and which parts");
    // In this life, and in another.
    for fill in 1..3 {
        let other = Blobs::open(place.clone(), bytes * 3 / 2).unwrap();
        let tight = if fill == 1 { &tight } else { &other };
        tight.put(vec![fill; LENGTH]).await.unwrap();
        assert_eq!(left(), 2, "the file and its tree alone");
        tight.remove(Hash::of(&vec![fill; LENGTH])).await.unwrap();
        tight.fetch(&wanting.swarm, hash, QUOTA, &vec![weak.id()].into(), |_| ()).await.unwrap_err();
        assert_eq!(left(), 3);
    }
    // A file that is more than all of what is left and free leaves it alone.
    assert!(tight.put(vec![0; 2 * LENGTH]).await.is_err());
    assert_eq!(left(), 3);
    tight.fetch(&wanting.swarm, hash, QUOTA, &vec![whole.id()].into(), |_| ()).await.unwrap();
}

#[tokio::test]
async fn a_stranger_that_opens_many_streams_keeps_nobody_out() {
    let mut alice = Node::start(1, &[]).await;
    let (stranger, bob) = (Node::start(2, &[&alice]).await, Node::start(3, &[&alice]).await);
    alice.meets(&[&stranger, &bob]).await;
    let hash = alice.gives(content()).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut stream = stranger.swarm.open_stream(alice.id(), BLOB).await.unwrap();
        // Those that were refused at once hear nothing.
        let asked = write_message(&mut stream, &BlobRequest { hash, part: None }).await;
        held.push((asked.is_ok(), stream));
    }
    assert_eq!(std::fs::read(bob.gets(hash, &[&alice]).await.unwrap()).unwrap(), content());
}

#[tokio::test]
async fn a_node_asks_another_for_no_more_at_a_time_than_it_is_given() {
    let mut alice = Node::start(1, &[]).await;
    let bob = Node::start(2, &[&alice]).await;
    bob.meets(&[&alice]).await;
    let (open, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (mut incoming, most_seen) = (alice.incoming.take().unwrap(), Arc::clone(&most));
    tokio::spawn(async move {
        while let Some((_, mut stream)) = incoming.recv().await {
            let (open, most) = (Arc::clone(&open), Arc::clone(&most_seen));
            tokio::spawn(async move {
                most.fetch_max(1 + open.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
                while let Ok(Some(_)) = read_message::<BlobRequest>(&mut stream).await {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    write_message(&mut stream, &BlobAnswer::Unknown).await.unwrap();
                }
                open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    let hashes: Vec<Hash> = (0..32u8).map(|n| Hash::of(&[n])).collect();
    let donors = [&alice];
    futures::future::join_all(hashes.iter().map(|hash| bob.gets(*hash, &donors))).await;
    // A stream that one has closed may not have ended for the other yet.
    let most = most.load(Ordering::Relaxed);
    assert!((1..=2 * TO_ONE as u64).contains(&most), "{most}");
}
