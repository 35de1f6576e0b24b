use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use consortium_protocol::cluster::ClusterName;
use consortium_protocol::identity::{NodeId, RootKey};
use consortium_protocol::wire::BLOB;
use consortium_protocol::wire::blob::{BlobAnswer, BlobRequest, PART_BYTES};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::pipeline::{read_message, write_bytes, write_message};
use crate::swarm::{self, Incoming, SwarmConfig, SwarmHandle, TransportKind};

const QUOTA: u64 = 64 << 20;
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
        tokio::spawn(self.blobs.clone().serve(self.incoming.take().unwrap(), self.stop.clone()));
        hash
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
        self.blobs.fetch(&self.swarm, hash, QUOTA, &donors, |_| ()).await
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
    let donors = [alice.id(), bob.id(), dave.id()];
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
            let file = blobs.file(&hash);
            let (data, tree) = (File::open(&file).unwrap(), File::open(file.with_extension(TREE)).unwrap());
            let mut encoded = part::encode(&data, &tree, hash, bytes, part).unwrap();
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
    // It gives the last part, which proves the length, and the first, and then has nothing.
    weak.answers(move |asked| match asked.part {
        None => (BlobAnswer::Here { bytes }, None),
        Some(part) if part == 0 || part == 3 => {
            let file = blobs.file(&hash);
            let (data, tree) = (File::open(&file).unwrap(), File::open(file.with_extension(TREE)).unwrap());
            (BlobAnswer::Here { bytes }, Some(part::encode(&data, &tree, hash, bytes, part).unwrap()))
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
    let path = blobs.fetch(&wanting.swarm, hash, QUOTA, &[whole.id()], progress).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), content());
    assert_eq!(first.load(Ordering::Relaxed), 2, "what had come was not asked for again");
}

#[tokio::test]
async fn there_are_bounds() {
    let mut alice = Node::start(1, &[]).await;
    let bob = Node::start(2, &[&alice]).await;
    bob.meets(&[&alice]).await;
    let hash = alice.gives(content()).await;
    let most = LENGTH as u64 - 1;
    let error = bob.blobs.fetch(&bob.swarm, hash, most, &[alice.id()], |_| ()).await.unwrap_err();
    assert!(matches!(error, BlobError::TooLong { bytes, .. } if bytes == most + 1), "{error}");
    let tight = Blobs::open(bob.dir.path().join("tight"), most).unwrap();
    let error = tight.fetch(&bob.swarm, hash, QUOTA, &[alice.id()], |_| ()).await.unwrap_err();
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
    carol.fetch(&bob.swarm, hash, QUOTA, &[alice.id()], |_| ()).await.unwrap();
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
        Some(3) => {
            let file = donor.file(&hash);
            let (data, tree) = (File::open(&file).unwrap(), File::open(file.with_extension(TREE)).unwrap());
            (BlobAnswer::Here { bytes }, Some(part::encode(&data, &tree, hash, bytes, 3).unwrap()))
        }
        Some(_) => (BlobAnswer::Unknown, None),
    });
    let place = wanting.dir.path().join("tight");
    let tight = Blobs::open(place.clone(), bytes * 3 / 2).unwrap();
    let left = || std::fs::read_dir(&place).unwrap().count();
    tight.fetch(&wanting.swarm, hash, QUOTA, &[weak.id()], |_| ()).await.unwrap_err();
    assert_eq!(left(), 2, "what has come, and which parts");
    // In this life, and in another.
    for fill in 1..3 {
        let other = Blobs::open(place.clone(), bytes * 3 / 2).unwrap();
        let tight = if fill == 1 { &tight } else { &other };
        tight.put(vec![fill; LENGTH]).await.unwrap();
        assert_eq!(left(), 2, "the file and its tree alone");
        tight.remove(Hash::of(&vec![fill; LENGTH])).await.unwrap();
        tight.fetch(&wanting.swarm, hash, QUOTA, &[weak.id()], |_| ()).await.unwrap_err();
        assert_eq!(left(), 2);
    }
    // A file that is more than all of what is left and free leaves it alone.
    assert!(tight.put(vec![0; 2 * LENGTH]).await.is_err());
    assert_eq!(left(), 2);
    tight.fetch(&wanting.swarm, hash, QUOTA, &[whole.id()], |_| ()).await.unwrap();
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
