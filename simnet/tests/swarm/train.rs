//! Runs of training over a swarm of processes, by the commands that people use.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use consortium_node::ledger::Ledger;
use consortium_node::ledger::accounts::{Book, Owner};
use serde_json::Value;

use crate::support::{Place, eventually, node_binary, text};

/// Runs a `consortium-node` command at a node.
fn node(node: &Value, arguments: &[&str]) -> Output {
    let mut command = Command::new(node_binary());
    command.env_remove("CONSORTIUM_API_BASE").arg("--data-dir").arg(node["data_dir"].as_str().unwrap());
    command.args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// What a command prints as JSON, if it ends well.
fn told(at: &Value, arguments: &[&str]) -> Value {
    let output = node(at, &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output)))
}

#[test]
fn a_swarm_trains_a_model_through_kills_and_anyone_can_replay_it() {
    let place = Place::new();
    let up = ["up", "4", "--no-lightning", "--detach"];
    assert!(place.simnet("t", &up).stdout(Stdio::null()).status().unwrap().success());
    let nodes = place.nodes("t");
    let plan = ["train", "announce", "--model", "nano", "--rounds", "8", "--latency-ms", "250", "--budget", "100"];
    let run = told(&nodes[0], &plan)["run"].as_str().unwrap().to_owned();
    // By the first digits where the run was heard of, by its whole id anywhere.
    eventually("the others hear of the run", || {
        told(&nodes[1], &["train", "list"]).as_array().is_some_and(|all| !all.is_empty())
    });
    told(&nodes[1], &["train", "join", &run[..8]]);
    told(&nodes[2], &["train", "join", &run]);
    let status = |node: usize| told(&nodes[node - 1], &["train", "status", &run])["status"].take();
    let round = |node| status(node)["round"].as_u64().unwrap();
    eventually("two rounds", || round(2) >= 2);

    // One comes later, another is killed, comes back, and goes on by itself.
    told(&nodes[3], &["train", "join", &run]);
    place.succeed("t", &["kill", "3"]);
    let killed = round(2);
    eventually("the run goes on without it", || round(2) > killed);
    place.succeed("t", &["restart", "3"]);
    eventually("the run ends", || status(1)["phase"] == "ended" && status(2)["phase"] == "ended");
    for node in [3, 4] {
        eventually("all have the last parameters", || {
            let status = status(node);
            status["phase"] == "ended" && status["in_sync"] == true
        });
    }

    // It learnt, and who took part earned.
    let rounds = status(4)["history"].as_array().unwrap().clone();
    let losses: Vec<f64> = rounds.iter().filter_map(|line| line["held_out_loss"].as_f64()).collect();
    assert!(losses.last() < losses.first(), "{losses:?}");
    assert!([2, 3, 4].iter().any(|node| status(*node)["earned_msat"].as_u64() > Some(0)));

    // Whoever has the files can compute all of it again, and serve the model.
    let directory = place.path("run").to_string_lossy().into_owned();
    told(&nodes[1], &["train", "export", &run, &directory, "--model"]);
    let replayed = node(&nodes[1], &["train", "replay", &directory, "--losses"]);
    assert!(replayed.status.success(), "{}", text(&replayed));
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        assert!(place.path("run").join("model").join(file).is_file(), "{file}");
    }
    let card = std::fs::read_to_string(place.path("run").join("model/README.md")).unwrap();
    assert!(card.contains(&run), "{card}");
    place.succeed("t", &["down"]);
}

fn books(node: &Value) -> Ledger {
    let file = Path::new(node["data_dir"].as_str().unwrap()).join("ledger.db");
    Ledger::open(&file, node["peer_id"].as_str().unwrap().parse().unwrap()).unwrap()
}

fn book(node: &Value, book: Book) -> i64 {
    books(node).account(&Owner::Own(book)).unwrap().balance.free
}

/// The peers: neighbours of the first node in the ring of channels.
const PEERS: [usize; 2] = [1, 3];

/// Has the first node announce a run that the third judges, and the others train in it to its end; the run, and what they are
/// to be paid.
fn paid_by_a_run(nodes: &[Value], more: &[&str]) -> (String, [i64; 2]) {
    let judge = nodes[2]["peer_id"].as_str().unwrap();
    let wishes = ["train", "announce", "--model", "nano", "--rounds", "8", "--least-peers", "2", "--most-peers", "2"];
    // Whoever is worth anything is paid, however little it is.
    let pay = ["--budget", "4000", "--base", "400000", "--latency-ms", "200", "--validator", judge];
    let announced = told(&nodes[0], &[wishes.as_slice(), &pay, more].concat());
    let run = announced["run"].as_str().unwrap().to_owned();
    told(&nodes[2], &["train", "join", &run, "--validate"]);
    for n in PEERS {
        told(&nodes[n], &["train", "join", &run]);
    }
    let status = |n: usize| told(&nodes[n], &["train", "status", &run])["status"].take();
    eventually("the run has ended for all", || (0..4).all(|n| status(n)["phase"] == "ended"));
    let paid = PEERS.map(|n| status(n)["paid_msat"].as_i64().unwrap());
    assert!(paid.iter().any(|paid| *paid > 0), "{}", status(1));
    (run, paid)
}

/// What a peer pledges, in sat.
const BOND: &str = "5000";

/// Each peer's bond was locked before the first round that it trained in, and came back with the end.
fn bonds_came_back(nodes: &[Value], run: &str) {
    let judge = nodes[2]["peer_id"].as_str().unwrap();
    for n in PEERS {
        let status = || told(&nodes[n], &["train", "status", run])["status"].take();
        eventually("the bond is back", || status()["bond"]["state"] == "returned");
        let (status, me) = (status(), nodes[n]["peer_id"].as_str().unwrap());
        assert_eq!(
            (status["bond"]["validator"].as_str(), status["bond"]["msat"].as_u64()),
            (Some(judge), Some(5_000_000))
        );
        let escrows = told(&nodes[n], &["escrow", "list"])["escrows"].take();
        let bonds: Vec<&Value> = escrows.as_array().unwrap().iter().filter(|escrow| escrow["kind"] == "bond").collect();
        assert_eq!(bonds.len(), 1, "{bonds:?}");
        assert_eq!((&bonds[0]["verdict"]["finding"], &bonds[0]["paid"]), (&"accepted".into(), &0.into()));
        let shown = told(&nodes[n], &["escrow", "show", bonds[0]["escrow"].as_str().unwrap()]);
        let sent = shown["events"].as_array().unwrap().iter().find(|event| event["event"] == "sent 0").unwrap();
        let rounds = status["history"].as_array().unwrap().iter();
        let trained = |line: &&Value| line["peers"].as_array().unwrap().iter().any(|peer| peer["node"] == me);
        let first = rounds.clone().position(|line| trained(&line)).unwrap();
        // It trained from the record before on.
        let began = status["history"][first - 1]["at_ms"].as_u64();
        assert!(sent["at_ms"].as_u64() < began, "{shown} {status}");
    }
}

#[test]
fn peers_are_paid_by_escrows_or_on_their_tabs_and_all_books_agree() {
    let place = Place::new();
    assert!(place.simnet("t", &["up", "4", "--detach"]).stdout(Stdio::null()).status().unwrap().success());
    let nodes = place.nodes("t");

    let (run, by_escrow) = paid_by_a_run(&nodes, &["--escrow", "--bond", BOND]);
    bonds_came_back(&nodes, &run);
    let sum: i64 = by_escrow.iter().sum();
    eventually("all of it came by escrow", || {
        let of_peers = |of| PEERS.map(|n| book(&nodes[n], of));
        (of_peers(Book::Training), of_peers(Book::Rewards)) == (by_escrow, [0, 0])
            && book(&nodes[0], Book::Spent) == -sum
    });
    assert_eq!(books(&nodes[2]).account(&Owner::Own(Book::Training)).unwrap().balance.free, 0);
    let author: Owner = format!("peer/{}", nodes[0]["peer_id"].as_str().unwrap()).parse().unwrap();
    for n in PEERS {
        assert_eq!(books(&nodes[n]).account(&author).unwrap().balance.free, 0, "nothing is left on the tab");
    }
    let escrows = told(&nodes[0], &["escrow", "list"]);
    let settled: i64 =
        escrows["escrows"].as_array().unwrap().iter().map(|escrow| escrow["paid"].as_i64().unwrap()).sum();
    assert_eq!(settled, sum);

    let (run, on_the_tab) = paid_by_a_run(&nodes, &["--unit", "1000"]);
    assert!(told(&nodes[1], &["train", "status", &run])["status"]["bond"].is_null(), "it wants none");
    let all = [0, 1].map(|n| by_escrow[n] + on_the_tab[n]);
    eventually("all of it is booked", || PEERS.map(|n| book(&nodes[n], Book::Training)) == all);
    let findings: Value = serde_json::from_str(&place.succeed("t", &["books", "--wait", "60", "--json"])).unwrap();
    for wrong in ["unsettled", "disagreements", "inexact"] {
        assert_eq!(findings[wrong].as_array().unwrap().len(), 0, "{findings}");
    }
    assert_eq!(book(&nodes[0], Book::Spent), -all.iter().sum::<i64>());
    place.succeed("t", &["down"]);
}
