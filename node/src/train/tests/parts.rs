//! The log on the disk, and what bounds what is remembered.

use std::time::{Duration, Instant};

use consortium_protocol::wire::Message as _;
use consortium_protocol::wire::train::{Entry, MAX_NEXT, RunId, TrainMessage};
use consortium_protocol::{Msat, Signed};
use consortium_training::rounds::{Output, Wish};

use super::kit::{World, id, key};
use crate::train::announcements::Announcements;
use crate::train::driver::{Event, prepare};
use crate::train::log::{Log, look};
use crate::train::pause::{Standing, Terms};
use crate::train::store::StoreError;
use crate::train::{Roster, Store};

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_ends_in_the_middle_of_an_entry_is_cut_off_there() {
    let world = World::new(1, 2, |_| ());
    let (judge, peer) = (world.start(0, Wish::Validate).await, world.start(1, Wish::Train).await);
    judge.ended().await;
    peer.ended().await;
    let (path, log) = (judge.directory.join("log"), judge.log());
    judge.handle.stop().await;
    let whole = std::fs::read(&path).unwrap();
    assert!(log.len() >= 3);
    for cut in [1, 20, 5000] {
        std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        let mut seen = Vec::new();
        look(&path, |entry| seen.push(entry.record.round)).unwrap();
        let mut open = Log::open(&path, |_| ()).unwrap();
        assert_eq!(open.len(), seen.len() as u64);
        assert!(open.len() < log.len() as u64);
        // It is written on from there.
        open.append(&log[seen.len()..]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        let encoded: Vec<Vec<u8>> = log.iter().map(Entry::encode).collect();
        for round in 1..=log.len() {
            assert_eq!(open.entries(round as u64).unwrap(), encoded[round - 1..]);
        }
        assert_eq!((open.entries(0).unwrap(), open.entries(99).unwrap()), (Vec::new(), Vec::new()));
        open.append(&vec![log[0].clone(); MAX_NEXT + 1]).unwrap();
        assert_eq!(open.entries(1).unwrap().len(), MAX_NEXT + 1, "of more than one message takes");
        // Nor more bytes than come through by slow links; of one that is longer nothing but itself.
        let (mut large, card) = (log[0].clone(), log[1].body.cards[0].clone());
        large.body.cards = vec![card.clone(); (50 << 10) / card.as_bytes().len()];
        let mut larger = large.clone();
        larger.body.cards = [&large.body.cards[..]; 4].concat();
        let from = open.len() + 1;
        open.append(&[large.clone(), large.clone(), large, larger, log[0].clone()]).unwrap();
        let told = |open: &mut Log, from: u64| open.entries(from).unwrap().len();
        assert_eq!([0, 1, 2, 3, 4].map(|after| told(&mut open, from + after)), [2, 2, 1, 1, 1]);
    }
    let mut flipped = whole.clone();
    flipped[40] ^= 1;
    std::fs::write(&path, &flipped).unwrap();
    assert_eq!(Log::open(&path, |_| ()).unwrap().len(), 0, "what does not match its checksum does not count");
}

#[tokio::test]
async fn entries_are_read_aside_and_sent_to_one_at_a_time() {
    let world = World::new(1, 1, |_| ());
    let (mut driver, _handle) = prepare(world.parts(0, Wish::Watch, 1 << 30).await).unwrap();
    for _ in 0..2 {
        for _ in 0..9 {
            assert!(driver.perform(Output::SendEntries { to: id(1), round: 1 }).await);
        }
        assert_eq!(driver.under_way.len(), 1);
        assert!(matches!(driver.under_way.join_next().await, Some(Ok(Event::Sent(Ok(()))))));
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_the_disk_has_no_room_for_is_no_entry() {
    let world = World::new(1, 1, |_| ());
    let (judge, peer) = (world.start(0, Wish::Validate).await, world.start(1, Wish::Train).await);
    judge.ended().await;
    peer.ended().await;
    let log = judge.log();
    let path = world.path(9);
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let mut open = Log::open(&path, |_| ()).unwrap();
    let error = open.append(&log[..2]).unwrap_err();
    assert!(matches!(&error, StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull));
    assert_eq!(open.len(), 0);
}

#[test]
fn an_author_that_announces_much_pushes_out_its_own_runs_alone() {
    let world = World::new(1, 1, |_| ());
    let (mut announcements, now) = (Announcements::default(), Instant::now());
    let spec = |author: u8, n: u64| {
        let mut spec = world.spec.payload().clone();
        spec.rounds = n + 1;
        Signed::sign(&key(author), spec)
    };
    let other = spec(1, 0);
    announcements.hear(other.clone(), now);
    for n in 0..20 {
        announcements.hear(spec(0, n), now + Duration::from_secs(n + 1));
    }
    let of = |author: u8| announcements.all().filter(|known| known.signer() == id(author)).count();
    assert_eq!((of(0), of(1)), (8, 1));
    assert!(announcements.spec(&RunId::of(&spec(0, 19))).is_some());
    assert!(announcements.spec(&RunId::of(&spec(0, 0))).is_none());
    for author in 2..200 {
        for n in 0..3 {
            announcements.hear(spec(author, n), now + Duration::from_secs(100));
        }
    }
    assert_eq!(announcements.all().count(), 256);
}

#[test]
fn a_roster_remembers_the_named_and_some_of_those_that_were_heard() {
    let world = World::new(3, 1, |_| ());
    let roster = Roster::default();
    let genesis = consortium_training::rounds::genesis(&world.spec);
    roster.name(world.spec.payload(), &genesis);
    assert!(roster.names(id(0)) && !roster.names(id(7)));
    for n in 3..250 {
        roster.hear(id(n));
    }
    roster.hear(id(0));
    let all = roster.all();
    assert_eq!(all.len(), 3 + 128);
    assert!(all.contains(&id(249)) && !all.contains(&id(3)) && !roster.names(id(249)));
    let ask = TrainMessage::Ask { run: world.run(), round: 1 };
    assert_eq!(crate::train::roster::speaks_for_itself(&ask), None);
}

#[test]
fn what_a_node_would_do_is_remembered_until_it_has_left() {
    let world = World::new(1, 1, |_| ());
    let directory = world.path(0);
    Store::create(&directory, &world.spec).unwrap();
    assert_eq!(Store::wish(&directory).unwrap(), None);
    Store::set_wish(&directory, Some(Wish::Validate)).unwrap();
    assert_eq!(Store::wish(&directory).unwrap(), Some(Wish::Validate));
    Store::set_wish(&directory, None).unwrap();
    assert_eq!(Store::wish(&directory).unwrap(), None);
    assert_eq!(Store::spec(&directory).unwrap(), world.spec);
    assert_eq!(Store::standing(&directory).unwrap(), None);
    let standing = Standing::new(Terms { kwh_msat: Msat(300_000), milliwatts: None });
    Store::set_standing(&directory, Some(&standing)).unwrap();
    assert_eq!(Store::standing(&directory).unwrap(), Some(standing));
    Store::set_standing(&directory, None).unwrap();
    assert_eq!(Store::standing(&directory).unwrap(), None);
    std::fs::write(directory.join("wish.json"), b"dance").unwrap();
    assert!(matches!(Store::wish(&directory), Err(StoreError::Damaged { .. })));
}
