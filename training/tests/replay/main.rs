//! A run that really trains, exported as files and replayed from them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod world;

use std::path::Path;

use consortium_protocol::Hash;
use consortium_protocol::wire::train::Refusal;
use consortium_training::rounds;
use consortium_training::run::archive::Archive;
use consortium_training::run::replay::{Depth, ReplayError, Replayed, replay};
use consortium_training::run::write_model;
use world::{Lie, World};

fn export(world: &World) -> (tempfile::TempDir, Archive) {
    let directory = tempfile::tempdir().unwrap();
    let archive = world.export(directory.path());
    (directory, archive)
}

fn replayed(archive: &Archive, depth: Depth) -> Result<Replayed, ReplayError> {
    replay(archive, depth, &mut |_| {})
}

/// What is said of an archive in which a file was spoilt.
fn spoilt(whole: &Path, file: &str, spoil: impl Fn(Vec<u8>) -> Option<Vec<u8>>) -> String {
    let path = whole.join(file);
    let kept = std::fs::read(&path).unwrap();
    match spoil(kept.clone()) {
        Some(bytes) => std::fs::write(&path, bytes).unwrap(),
        None => std::fs::remove_file(&path).unwrap(),
    }
    let error = Archive::open(whole).map_err(ReplayError::from).and_then(|a| replayed(&a, Depth::Model)).unwrap_err();
    std::fs::write(&path, kept).unwrap();
    error.to_string()
}

fn cut(bytes: Vec<u8>) -> Option<Vec<u8>> {
    Some(bytes[..bytes.len() / 2].to_vec())
}

fn flipped(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Some(bytes)
}

fn empty(_: Vec<u8>) -> Option<Vec<u8>> {
    Some(Vec::new())
}

fn gone(_: Vec<u8>) -> Option<Vec<u8>> {
    None
}

#[test]
fn an_honest_run_replays_to_the_bit_and_spoilt_files_are_named() {
    let world = World::play(1, 2, 3, None);
    let log = world.log();
    assert_eq!(log.len(), 4, "one round to join, three of training");
    assert!(log.iter().skip(1).all(|entry| entry.record.accepted().count() > 0), "honest updates are accepted");
    let (directory, archive) = export(&world);
    let mut told = Vec::new();
    let done = replay(&archive, Depth::Losses, &mut |step| told.push((step.entry.record.round, step.rounds))).unwrap();
    assert_eq!(told, [(1, 4), (2, 4), (3, 4), (4, 4)]);
    assert_eq!(done.state, Some(world.state()), "the parameters are those that all nodes hold");
    assert_eq!(done.sums, rounds::replay(world.spec.clone(), &log).unwrap());
    let losses = done.losses.as_ref().unwrap();
    // A card for each round; of three updates' rounds with two peers, 3 + 2 + 2 batches and each before and after, and in two
    // of them what the aggregate did to 3 held-out batches.
    assert_eq!((losses.cards, losses.unchecked_cards), (4, 0));
    assert_eq!(losses.losses, 3 * 2 * 7 * 2 + 2 * 3 * 2);
    assert!(done.holds() && losses.largest.as_ref().unwrap().part() < 1e-4, "{:?}", losses.largest);
    let only_log = replayed(&archive, Depth::Log).unwrap();
    assert_eq!((only_log.state, only_log.losses, only_log.sums), (None, None, done.sums));

    let whole = directory.path();
    let update = log.iter().flat_map(|entry| entry.record.accepted()).last().unwrap().1;
    let blob = format!("blobs/{update}");
    type Spoil = fn(Vec<u8>) -> Option<Vec<u8>>;
    let cases: [(&str, Spoil, &str); 16] = [
        ("spec.cbor", gone, "holds no run"),
        ("spec.cbor", empty, "spec.cbor: is empty"),
        ("spec.cbor", flipped, "spec.cbor: is no signed specification"),
        ("tokenizer.json", gone, "tokenizer.json: is missing"),
        ("tokenizer.json", empty, "tokenizer.json: is empty"),
        ("tokenizer.json", cut, "tokenizer is another"),
        ("tokenizer.json", |text| Some(utf_16(&text)), "tokenizer is another"),
        ("log/000002.cbor", gone, "000002.cbor: is missing, and later entries are not"),
        ("log/000002.cbor", empty, "000002.cbor: is empty"),
        ("log/000002.cbor", cut, "000002.cbor: is no entry"),
        ("log/000003.cbor", flipped, "00000"),
        ("parameters/000000", gone, "initial parameters are not in the archive"),
        ("parameters/000000", cut, "000000: "),
        (&blob, gone, "is not in the archive"),
        (&blob, flipped, "is damaged: its contents have another hash"),
        (&blob, empty, "is empty"),
    ];
    for (file, spoil, words) in cases {
        let said = spoilt(whole, file, spoil);
        assert!(said.contains(words), "{file}: {said}");
    }
    let other = std::fs::read(whole.join("log/000003.cbor")).unwrap();
    let said = spoilt(whole, "log/000002.cbor", |_| Some(other.clone()));
    assert!(said.contains("is the entry of round 3"), "{said}");
    assert!(replayed(&archive, Depth::Losses).is_ok(), "all was put back");
}

/// The same text in another encoding.
fn utf_16(text: &[u8]) -> Vec<u8> {
    String::from_utf8(text.to_vec()).unwrap().encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[test]
fn a_run_whose_peers_do_not_wait_replays_to_the_bit() {
    let world = World::play_as((1, 2), 4, true, None);
    let log = world.log();
    assert_eq!(log.len(), 6, "two rounds to join, four of training");
    let accepted: usize = log.iter().map(|entry| entry.record.accepted().count()).sum();
    assert!(accepted >= 4, "what was trained a step earlier is of use: {accepted}");
    let (_directory, archive) = export(&world);
    let done = replayed(&archive, Depth::Losses).unwrap();
    assert_eq!(done.state, Some(world.state()));
    assert!(done.holds(), "{:?}", done.losses);
    assert_eq!(done.losses.unwrap().unchecked_cards, 0);
}

#[test]
fn a_validator_whose_card_lies_is_named_and_the_medians_are_as_they_were() {
    let liar = 1;
    let world = World::play(3, 2, 2, Some((liar, Lie::Losses)));
    let (_directory, archive) = export(&world);
    let done = replayed(&archive, Depth::Losses).unwrap();
    let losses = done.losses.as_ref().unwrap();
    assert!(!done.holds() && losses.medians_hold(), "{losses:?}");
    assert!(losses.beyond.iter().all(|d| d.validator == world.validator(liar)), "nobody else");
    // Of every update the losses after it on three held-out batches, in two rounds with two peers.
    assert_eq!(losses.beyond_count, 12);
    assert!(losses.beyond.iter().all(|d| d.batch.starts_with("held-out") && d.peer.is_some() && d.said < d.found));
    assert_eq!(done.sums.strayed[&world.validator(liar)], 2, "and the records say so");
}

#[test]
fn a_validator_that_calls_a_sound_update_malformed_is_named() {
    let world = World::play(3, 2, 2, Some((0, Lie::Malformed)));
    let (_directory, archive) = export(&world);
    let done = replayed(&archive, Depth::Losses).unwrap();
    let losses = done.losses.as_ref().unwrap();
    assert!(!done.holds() && losses.medians_hold() && losses.beyond.is_empty(), "{losses:?}");
    assert_eq!(losses.false_refusals.len(), 2, "in both rounds");
    for false_one in &losses.false_refusals {
        assert_eq!((false_one.validator, false_one.peer), (world.validator(0), world.first_peer()));
        assert_eq!(false_one.refusal, Refusal::Malformed);
    }
    assert!(world.log().iter().skip(1).all(|entry| entry.record.accepted().count() == 2), "the others outvote it");
}

#[test]
fn parameters_that_are_not_the_runs_are_refused() {
    let world = World::play(1, 2, 1, None);
    let (directory, archive) = export(&world);
    let last = world.log().len() as u64;
    archive.put_parameters(last, &world.initial).unwrap();
    let error = replayed(&archive, Depth::Model).unwrap_err();
    assert!(matches!(error, ReplayError::State { said, .. } if said != Hash::from_bytes([0; 32])), "{error}");
    let spec = World::play(1, 2, 2, None).spec;
    let error = Archive::create(directory.path(), &spec).unwrap_err().to_string();
    assert!(error.contains("another run is in this directory"), "{error}");
}

#[test]
fn a_model_is_written_of_what_the_log_leads_to_and_of_nothing_else() {
    let world = World::play(1, 2, 2, None);
    let (directory, archive) = export(&world);
    let (whole, last) = (directory.path(), world.log().len() as u64);
    let out = whole.join("model");
    let refused = || write_model(&archive, &out, "run").unwrap_err().to_string();
    let written = write_model(&archive, &out, "run").unwrap();
    assert!(written.checked && written.round == last);
    assert!(
        std::fs::read_to_string(out.join("README.md")).unwrap().contains("measured by validators before it was let in")
    );

    // Of a round that never was.
    archive.put_parameters(u64::MAX, &world.initial).unwrap();
    assert!(refused().contains("has parameters of round 18446744073709551615, and the log ends with round 3"));
    std::fs::remove_file(whole.join("parameters").join(u64::MAX.to_string())).unwrap();
    // A log that was changed.
    let entry = whole.join("log/000002.cbor");
    let kept = std::fs::read(&entry).unwrap();
    std::fs::write(&entry, flipped(kept.clone()).unwrap()).unwrap();
    assert!(refused().contains("00000"));
    std::fs::write(&entry, kept).unwrap();
    // Other parameters than the last aggregate gave.
    let newest = whole.join(format!("parameters/{last:06}"));
    let true_ones = std::fs::read(&newest).unwrap();
    archive.put_parameters(last, &world.initial).unwrap();
    assert!(refused().contains("and the rounds before it give"));

    // Where no record names them, and not all is there that they follow from, the card says so.
    let update = world.log().last().unwrap().record.accepted().last().unwrap().1;
    std::fs::remove_file(whole.join("blobs").join(update.to_string())).unwrap();
    std::fs::write(&newest, true_ones).unwrap();
    assert!(!write_model(&archive, &out, "run").unwrap().checked);
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("was\nnot checked") && !card.contains("before it was let in"), "{card}");
    // Where a record names them it needs no update, and cannot be deceived.
    std::fs::remove_file(&newest).unwrap();
    archive.put_parameters(last - 1, &world.initial).unwrap();
    assert!(refused().contains("and its log leads to"));
    archive.put_parameters(1, &world.initial).unwrap();
    std::fs::remove_file(whole.join(format!("parameters/{:06}", last - 1))).unwrap();
    assert!(write_model(&archive, &out, "run").unwrap().checked, "in round 1 nobody trains");
}
