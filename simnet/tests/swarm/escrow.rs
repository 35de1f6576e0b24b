//! Escrows between real nodes, ordered as an operator would, and over the death of one of them.

use std::path::Path;
use std::process::{Command, Stdio};

use consortium_node::ledger::Ledger;
use consortium_node::ledger::accounts::{Book, Owner};
use serde_json::Value;

use crate::support::{Place, eventually, node_binary, text};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// `consortium-node escrow ... --json` of a node.
fn escrow(node: &Value, arguments: &[&str]) -> Value {
    let mut command = Command::new(node_binary());
    command.arg("--data-dir").arg(node["data_dir"].as_str().unwrap()).arg("escrow").args(arguments).arg("--json");
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    json(&String::from_utf8(output.stdout).unwrap())
}

fn state(node: &Value, id: &str) -> String {
    escrow(node, &["show", id])["state"].as_str().unwrap().to_owned()
}

/// What is on one of the node's own books, in msat.
fn book(node: &Value, book: Book) -> i64 {
    let file = Path::new(node["data_dir"].as_str().unwrap()).join("ledger.db");
    let ledger = Ledger::open(&file, node["peer_id"].as_str().unwrap().parse().unwrap()).unwrap();
    ledger.account(&Owner::Own(book)).unwrap().balance.free
}

#[test]
fn what_was_judged_is_paid_and_booked_though_the_worker_is_killed_meanwhile() {
    let place = Place::new();
    assert!(place.simnet("e", &["up", "4", "--detach"]).stdout(Stdio::null()).status().unwrap().success());
    let went = json(&place.succeed("e", &["escrow", "--json"]));
    let paid: Vec<u64> =
        went["escrows"].as_array().unwrap().iter().map(|case| case["paid_msat"].as_u64().unwrap()).collect();
    assert_eq!(paid, [0, 5_000_000, 10_000_000, 10_000_000]);

    let nodes = place.nodes("e");
    let peer = |n: usize| nodes[n]["peer_id"].as_str().unwrap();
    let offered = ["offer", "tranches", "--from", peer(0), "--to", peer(1), "--unit", "3000", "--units", "3"];
    let subject = "ab".repeat(32);
    let made = escrow(&nodes[2], &[offered.as_slice(), &["--subject", subject.as_str()]].concat());
    let id = made["escrow"].as_str().unwrap().to_owned();
    for node in &nodes[..2] {
        eventually("the offer waits", || escrow(node, &["list"])["offers"][0]["escrow"] == id.as_str());
        escrow(node, &["agree", &id, "--yes"]);
    }
    eventually("all of it is held", || state(&nodes[2], &id) == "held");
    // LDK writes its list of channels a moment after a payment; a kill in between closes one, which is another story.
    std::thread::sleep(std::time::Duration::from_secs(2));
    place.succeed("e", &["kill", "2"]);
    escrow(&nodes[2], &["judge", &id, "accepted", "--earned", "2", "--evidence", subject.as_str(), "--yes"]);
    place.succeed("e", &["restart", "2"]);
    for node in place.nodes("e").iter().take(3) {
        eventually("it is over for all", || {
            let running = place.nodes("e");
            let now = running.iter().find(|other| other["name"] == node["name"]).unwrap();
            now["state"] == "running" && is_settled(now, &id)
        });
    }

    let findings = json(&place.succeed("e", &["books", "--wait", "60", "--json"]));
    assert_eq!(findings["unsettled"].as_array().unwrap().len(), 0);
    let nodes = place.nodes("e");
    assert_eq!(book(&nodes[1], Book::Rewards), 10_000_000 + 10_000_000 + 6_000_000);
    assert_eq!([1, 2].map(|n| book(&nodes[n], Book::Forfeits)), [-5_000_000, 5_000_000]);
    assert!(book(&nodes[0], Book::Spent) <= -26_000_000, "rewards, and jobs of its own");
    place.succeed("e", &["down"]);
}

/// Whether a node that may still be starting finds the escrow settled.
fn is_settled(node: &Value, id: &str) -> bool {
    let mut command = Command::new(node_binary());
    command.arg("--data-dir").arg(node["data_dir"].as_str().unwrap()).args(["escrow", "show", id, "--json"]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    output.status.success() && json(&String::from_utf8(output.stdout).unwrap())["state"] == "settled"
}
