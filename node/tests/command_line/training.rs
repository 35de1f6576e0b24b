//! Training together, as it is typed: two nodes of which one announces and judges, and the other trains.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use consortium_training::run::archive::Archive;
use serde_json::Value;

use crate::support::{Running, command, complaint, failure, run};

/// Time for anything to happen: generous, for machines that do much else.
const PATIENCE: Duration = Duration::from_secs(300);

fn said(data_dir: &Path, arguments: &[&str]) -> String {
    let output = run(data_dir, arguments);
    let trouble = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {trouble}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(data_dir: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&said(data_dir, arguments)).unwrap()
}

fn address(data_dir: &Path) -> String {
    let status = json(data_dir, &["status", "--json"]);
    let (listen, peer) = (status["listen"][0].as_str().unwrap(), status["peer_id"].as_str().unwrap());
    if listen.contains("/p2p/") { listen.to_owned() } else { format!("{listen}/p2p/{peer}") }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came to {what}");
        std::thread::sleep(Duration::from_millis(300));
    }
}

const SMALL: [&str; 10] =
    ["--model", "nano", "--rounds", "2", "--least-peers", "1", "--latency-ms", "1000", "--budget", "100"];

#[test]
fn a_run_is_announced_joined_followed_exported_and_replayed() {
    let (a, b, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (a.path(), b.path());
    let _author = Running::start(a, &[]);
    let _peer = Running::start(b, &["--bootstrap", &address(a)]);

    let dry = said(a, &[&["train", "announce", "--dry-run"][..], &SMALL].concat());
    for words in ["not announced", "2 of 4 steps of 4 rows of 48 tokens", "at most 100 sat a round and 200 sat in all"]
    {
        assert!(dry.contains(words), "{words}: {dry}");
    }
    assert!(said(a, &["train", "list"]).contains("no run is known"), "a dry run tells nobody");
    let announced = json(a, &[&["train", "announce", "--json"][..], &SMALL].concat());
    let id = announced["run"].as_str().unwrap().to_owned();
    assert!(said(a, &["train", "list"]).contains(&id[..8]));

    said(b, &["train", "join", &id]);
    assert!(said(b, &["train", "status"]).contains("this node trains"));
    let terms = ["--pause-below-cost", "--watts", "50", "--price-kwh", "300"];
    let joined = said(b, &[&["train", "join", &id][..], &terms].concat());
    assert!(joined.contains("while that pays for its power"), "{joined}");
    let status = said(b, &["train", "status"]);
    assert!(status.contains("this node trains\ntrains while that pays for its power"), "{status}");
    let digits = &id[..6];
    until("the end of the run", || json(b, &["train", "status", digits, "--json"])["status"]["phase"] == "ended");
    let followed = said(b, &["train", "status", digits, "--follow", "--json", "--watts", "50"]);
    let lines: Vec<Value> = followed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let rounds = lines.iter().filter(|line| line["round"].is_object()).count();
    assert!(rounds >= 3 && lines.last().unwrap()["ended"] == id.as_str(), "{followed}");
    // What was said by joining need not be said again.
    let told = json(b, &["train", "status", digits, "--json"]);
    assert_eq!(told["worth"]["break_even"]["milliwatts"], 50_000, "{told}");
    assert!(told["worth"]["break_even"]["profit_msat_per_hour"].is_i64(), "{told}");
    let standing = &told["status"]["pause"];
    assert!(standing["paused"] == false && standing["terms"]["kwh_msat"] == 300_000, "{told}");

    let (run_dir, svg) = (out.path().join("run"), out.path().join("run.svg"));
    let (to, picture) = (run_dir.to_str().unwrap(), svg.to_str().unwrap());
    let exported = said(a, &["train", "export", digits, to, "--model"]);
    assert!(exported.contains("train replay") && exported.contains("start --model"), "{exported}");
    assert!(run_dir.join("model/model.safetensors").is_file() && run_dir.join("model/README.md").is_file());
    // Nobody has to run for this.
    let nowhere = out.path().join("nowhere");
    let checked = said(&nowhere, &["train", "replay", to, "--losses", "--json", "--svg", picture]);
    let whole: Value = serde_json::from_str(checked.lines().last().unwrap()).unwrap();
    assert!(whole["holds"] == true && whole["run"] == id.as_str() && whole["ended"] == true, "{whole}");
    assert!(whole["losses"]["losses"].as_u64().unwrap() > 0 && svg.is_file(), "{whole}");

    for blob in std::fs::read_dir(run_dir.join("blobs")).unwrap() {
        std::fs::write(blob.unwrap().path(), b"spoilt").unwrap();
    }
    let (code, words) = failure(&nowhere, &["train", "replay", to]);
    assert!(code == 1 && words.contains("is damaged"), "{words}");

    let text = complaint(b, &["train", "status", &"0".repeat(64)]);
    assert!(text.contains("knows no run"), "{text}");
    let text = complaint(b, &["train", "leave", &"0".repeat(64)]);
    assert!(text.contains("takes no part in run 000000"), "{text}");
    let text = complaint(b, &["train", "export", "ffffffffff", to]);
    assert!(text.contains("no run that begins with"), "{text}");
}

/// Begins to train on this machine alone, and kills that when this round, or a later one, is told.
fn killed_after(out: &Path, arguments: &[&str], round: u64) {
    let mut child = command(out, arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut told = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    assert!(told.any(|line| line["round"]["round"].as_u64() >= Some(round)), "round {round} is told");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_run_on_one_machine_goes_on_where_it_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    let (out, nowhere) = (model.to_str().unwrap(), dir.path().join("nowhere"));
    let asked = |rounds: &'static str| {
        let local =
            ["train", "local", "--json", "--out", out, "--model", "nano", "--peers", "2", "--latency-ms", "500"];
        [&local[..], &["--rounds", rounds]].concat()
    };
    // Rounds are told twice a second: when one is, some more may have passed.
    killed_after(&nowhere, &asked("24"), 3);
    killed_after(&nowhere, &asked("24"), 10);
    let text = complaint(&nowhere, &asked("25"));
    assert!(text.contains("rounds is 24 there, 25 here") && text.contains("go on with it"), "{text}");
    let told = said(&nowhere, &asked("24"));
    let lines: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let rounds: Vec<&Value> = lines.iter().map(|line| &line["round"]).filter(|round| round.is_object()).collect();
    assert!(rounds[0]["round"].as_u64().unwrap() >= 11, "what was told is not told again: {told}");
    assert!(lines.last().unwrap()["model"]["round"] == 25 && !model.join("nodes").exists(), "{told}");
    // No round was lost by it: all peers were let in, in all of the log.
    let archive = Archive::open(&model.join("run")).unwrap();
    let trained = (2..=9).map(|round| archive.entry(round).unwrap().unwrap().record);
    let accepted: Vec<usize> = trained.map(|record| record.accepted().count()).collect();
    assert!(accepted.iter().all(|count| *count > 0), "{accepted:?}");
    let checked = said(&nowhere, &["train", "replay", model.join("run").to_str().unwrap(), "--losses", "--json"]);
    let whole: Value = serde_json::from_str(checked.lines().last().unwrap()).unwrap();
    assert!(whole["holds"] == true && whole["ended"] == true, "{whole}");
    let text = complaint(&nowhere, &asked("8"));
    assert!(text.contains("is not empty"), "{text}");
}

#[test]
fn what_cannot_be_done_is_said_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [&["train", "list"][..], &["train", "join", "abc"], &["train", "announce"], &["train", "status"]] {
        let text = complaint(dir.path(), arguments);
        assert!(text.contains("no node runs on") && text.contains("consortium-node start"), "{text}");
    }
    let text = complaint(dir.path(), &["train", "replay", "/no/such/run"]);
    assert!(text.contains("/no/such/run/spec.cbor") && text.contains("holds no run"), "{text}");
    let node = Running::start(dir.path(), &[]);
    for (arguments, words) in [
        (&["train", "announce", "--rounds", "0"][..], "rounds"),
        (&["train", "announce", "--model", "nano", "--sequence", "1000"], "longer than the model's context"),
        (&["train", "announce", "--model", "nano", "--sequence", "24"], "there is nothing to learn"),
        (&["train", "announce", "--model", "nano", "--quorum", "3"], "quorum"),
        (&["train", "announce", "--model", "nano", "--budget", "100", "--escrow", "--dry-run"], "by --validator"),
        (&["train", "announce", "--plan", "/no/such/plan.toml"], "/no/such/plan.toml"),
        (&["train", "status"], "takes part in no run"),
        (&["train", "join", "not-hex"], "is no id of a run"),
        (&["train", "join", "not-hex", "--pause-below-cost"], "--price-kwh"),
        (&["train", "join", "not-hex", "--watch", "--pause-below-cost", "--price-kwh", "9"], "cannot be used with"),
    ] {
        let text = complaint(dir.path(), arguments);
        assert!(text.contains(words), "{arguments:?}: {text}");
    }
    drop(node);
}
