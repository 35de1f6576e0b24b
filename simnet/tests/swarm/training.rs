//! A training run whose peer is paid over Lightning, by escrows and by its tab.

use std::path::Path;
use std::process::{Command, Stdio};

use consortium_node::ledger::Ledger;
use consortium_node::ledger::accounts::{Book, Owner};
use serde_json::Value;

use crate::support::{Place, eventually, node_binary, text};

/// `consortium-node ... --json` of a node, with the command's first line of output, or all of it.
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

/// Has the first node announce a run that the third judges, and the second train in it to its end; what it is to be paid.
fn train(nodes: &[Value], more: &[&str]) -> i64 {
    let judge = nodes[2]["peer_id"].as_str().unwrap();
    let wishes = ["train", "announce", "--model", "nano", "--rounds", "5", "--least-peers", "1", "--most-peers", "1"];
    let pay = ["--budget", "20000", "--base", "20000", "--latency-ms", "200", "--validator", judge];
    let announced = node(&nodes[0], &[wishes.as_slice(), &pay, more].concat());
    let run = announced["run"].as_str().unwrap().to_owned();
    node(&nodes[2], &["train", "join", &run, "--validate"]);
    node(&nodes[1], &["train", "join", &run]);
    let status = |n: usize| node(&nodes[n], &["train", "status", &run])["status"].take();
    eventually("the run has ended for all", || (0..3).all(|n| status(n)["phase"] == "ended"));
    let paid = status(1)["paid_msat"].as_i64().unwrap();
    assert!(paid > 0, "{}", status(1));
    paid
}

#[test]
fn a_peer_is_paid_by_escrows_or_on_its_tab_and_all_books_agree() {
    let place = Place::new();
    assert!(place.simnet("t", &["up", "3", "--detach"]).stdout(Stdio::null()).status().unwrap().success());
    let nodes = place.nodes("t");

    let by_escrow = train(&nodes, &["--escrow"]);
    eventually("all of it came by escrow", || {
        let of_the_peer = [Book::Training, Book::Rewards].map(|of| book(&nodes[1], of));
        (of_the_peer, book(&nodes[0], Book::Spent)) == ([by_escrow, 0], -by_escrow)
    });
    assert_eq!(books(&nodes[2]).account(&Owner::Own(Book::Training)).unwrap().balance.free, 0);
    let author: Owner = format!("peer/{}", nodes[0]["peer_id"].as_str().unwrap()).parse().unwrap();
    assert_eq!(books(&nodes[1]).account(&author).unwrap().balance.free, 0, "nothing is left on the tab");
    let escrows = node(&nodes[0], &["escrow", "list"]);
    let settled: i64 =
        escrows["escrows"].as_array().unwrap().iter().map(|escrow| escrow["paid"].as_i64().unwrap()).sum();
    assert_eq!(settled, by_escrow);

    let on_the_tab = train(&nodes, &["--unit", "1000"]);
    eventually("all of it is booked", || book(&nodes[1], Book::Training) == by_escrow + on_the_tab);
    let findings: Value = serde_json::from_str(&place.succeed("t", &["books", "--wait", "60", "--json"])).unwrap();
    for wrong in ["unsettled", "disagreements", "inexact"] {
        assert_eq!(findings[wrong].as_array().unwrap().len(), 0, "{findings}");
    }
    assert_eq!(book(&nodes[0], Book::Spent), -by_escrow - on_the_tab);
    place.succeed("t", &["down"]);
}
