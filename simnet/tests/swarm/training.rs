//! A training run whose peers are paid over Lightning, by escrows and by their tabs.

use std::path::Path;
use std::process::{Command, Stdio};

use consortium_node::ledger::Ledger;
use consortium_node::ledger::accounts::{Book, Owner};
use serde_json::Value;

use crate::support::{Place, eventually, node_binary, text};

/// `consortium-node ... --json` of a node, as it answers.
fn node(node: &Value, arguments: &[&str]) -> Value {
    let mut command = Command::new(node_binary());
    command.arg("--data-dir").arg(node["data_dir"].as_str().unwrap()).args(arguments).arg("--json");
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output)))
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

/// Has the first node announce a run that the third judges, and the others train in it to its end; what they are to be paid.
fn train(nodes: &[Value], more: &[&str]) -> [i64; 2] {
    let judge = nodes[2]["peer_id"].as_str().unwrap();
    let wishes = ["train", "announce", "--model", "nano", "--rounds", "5", "--least-peers", "2", "--most-peers", "2"];
    let pay = ["--budget", "20000", "--base", "20000", "--latency-ms", "200", "--validator", judge];
    let announced = node(&nodes[0], &[wishes.as_slice(), &pay, more].concat());
    let run = announced["run"].as_str().unwrap().to_owned();
    node(&nodes[2], &["train", "join", &run, "--validate"]);
    PEERS.map(|n| node(&nodes[n], &["train", "join", &run]));
    let status = |n: usize| node(&nodes[n], &["train", "status", &run])["status"].take();
    eventually("the run has ended for all", || (0..4).all(|n| status(n)["phase"] == "ended"));
    let paid = PEERS.map(|n| status(n)["paid_msat"].as_i64().unwrap());
    assert!(paid.iter().any(|paid| *paid > 0), "{}", status(1));
    paid
}

#[test]
fn peers_are_paid_by_escrows_or_on_their_tabs_and_all_books_agree() {
    let place = Place::new();
    assert!(place.simnet("t", &["up", "4", "--detach"]).stdout(Stdio::null()).status().unwrap().success());
    let nodes = place.nodes("t");

    let by_escrow = train(&nodes, &["--escrow"]);
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
    let escrows = node(&nodes[0], &["escrow", "list"]);
    let settled: i64 =
        escrows["escrows"].as_array().unwrap().iter().map(|escrow| escrow["paid"].as_i64().unwrap()).sum();
    assert_eq!(settled, sum);

    let on_the_tab = train(&nodes, &["--unit", "1000"]);
    let all = [0, 1].map(|n| by_escrow[n] + on_the_tab[n]);
    eventually("all of it is booked", || PEERS.map(|n| book(&nodes[n], Book::Training)) == all);
    let findings: Value = serde_json::from_str(&place.succeed("t", &["books", "--wait", "60", "--json"])).unwrap();
    for wrong in ["unsettled", "disagreements", "inexact"] {
        assert_eq!(findings[wrong].as_array().unwrap().len(), 0, "{findings}");
    }
    assert_eq!(book(&nodes[0], Book::Spent), -all.iter().sum::<i64>());
    place.succeed("t", &["down"]);
}
