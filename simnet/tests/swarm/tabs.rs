//! Tabs in a swarm of processes: settled while nodes are killed, and with a node that begins with nothing.

use std::path::Path;
use std::process::Stdio;

use consortium_node::ledger::Ledger;
use consortium_node::ledger::accounts::{Book, Owner};
use serde_json::Value;

use crate::support::{Place, eventually};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// What all nodes have paid each other, in msat, once all books agree. A kill may have closed a channel with a payment on its
/// way in it: what became of that is known for certain when the chain has gone on.
fn settled(place: &Place, name: &str) -> u64 {
    let books = ["books", "--wait", "60", "--json"];
    let first = place.run(name, &books);
    let findings = match first.status.success() {
        true => String::from_utf8(first.stdout).unwrap(),
        false => {
            place.succeed(name, &["coins"]);
            place.succeed(name, &books)
        }
    };
    json(&findings)["settled"].as_u64().unwrap()
}

/// One node's part of `simnet status --json`.
fn status(place: &Place, name: &str, node: usize) -> Value {
    json(&place.succeed(name, &["status", "--json"]))[node].take()
}

/// Has a chat answered, sooner or later: who has just lost a node may look for a master.
fn chat(place: &Place, name: &str) {
    let ask = || place.run(name, &["chat", "Tell me a story about a fox and a lantern"]).status.success();
    eventually("a chat is answered", ask);
}

fn up(place: &Place, name: &str, arguments: &[&str]) {
    let all = [&["up"], arguments, &["--detach"]].concat();
    assert!(place.simnet(name, &all).stdout(Stdio::null()).status().unwrap().success());
}

#[test]
fn a_newcomer_with_an_empty_wallet_behind_a_router_earns_sats() {
    let place = Place::new();
    up(&place, "n", &["3", "--newcomers", "1"]);
    let begun = status(&place, "n", 2)["wallet"].take();
    assert_eq!((&begun["channels"], &begun["onchain_sat"]), (&0.into(), &0.into()));
    eventually("the newcomer has sats that it can spend", || {
        chat(&place, "n");
        place.succeed("n", &["mine", "2"]);
        status(&place, "n", 2)["wallet"]["spendable_msat"].as_u64() > Some(0)
    });
    assert!(settled(&place, "n") > 0);
    let newcomer = status(&place, "n", 2);
    assert_eq!(newcomer["wallet"]["channels"], 1);
    let paid = newcomer["tabs"]["tabs"].as_array().unwrap().iter().map(|tab| tab["paid_by"]["total"].as_u64().unwrap());
    assert!(paid.sum::<u64>() > 0);
    place.succeed("n", &["down"]);
}

#[test]
fn nothing_is_paid_twice_whoever_is_killed() {
    let place = Place::new();
    up(&place, "k", &["3"]);
    // The gateway of `simnet chat` pays; the others are paid. Each is killed at another moment of a settlement.
    for (round, node) in ["1", "2", "3", "1", "2", "3"].into_iter().enumerate() {
        chat(&place, "k");
        std::thread::sleep(std::time::Duration::from_millis(400 * round as u64));
        place.succeed("k", &["kill", node]);
        place.succeed("k", &["restart", node]);
        // Whichever node is asked: who restarted knows the others a little later than these know it.
        eventually("the swarm serves again", || place.run("k", &["chat", "Hello"]).status.success());
        eventually("all are ready", || place.succeed("k", &["status"]).contains("3 of 3 ready"));
    }
    let before = settled(&place, "k");
    assert!(before > 0);
    eventually("nothing is left to settle", || {
        settled(&place, "k");
        let all = json(&place.succeed("k", &["status", "--json"]));
        let mut tabs = all.as_array().unwrap().iter().flat_map(|node| node["tabs"]["tabs"].as_array().unwrap());
        tabs.all(|tab| tab["owed_to"].as_u64() < Some(1000))
    });
    // All that the wallets told their books of went from one of them to another, fees included.
    let outside = |node: &Value| {
        let file = Path::new(node["data_dir"].as_str().unwrap()).join("ledger.db");
        let ledger = Ledger::open(&file, node["peer_id"].as_str().unwrap().parse().unwrap()).unwrap();
        ledger.account(&Owner::Own(Book::Outside)).unwrap().balance.free
    };
    eventually("what one lost, another has", || place.nodes("k").iter().map(outside).sum::<i64>() == 0);
    let moved: i64 = place.nodes("k").iter().map(outside).map(i64::abs).sum();
    assert!(moved > 0);
    place.succeed("k", &["down"]);
}
