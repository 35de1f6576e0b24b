//! Nodes that work for each other agree on what they owe each other, whatever becomes of them meanwhile.

use std::process::Stdio;

use consortium_node::ledger::Ledger;
use consortium_node::ledger::accounts::{Book, Owner};
use serde_json::Value;

use crate::support::{Place, text};

#[test]
fn both_sides_of_every_debt_agree_after_kills_and_freezes() {
    let place = Place::new();
    assert!(place.simnet("b", &["up", "4", "--detach"]).stdout(Stdio::null()).status().unwrap().success());
    let chaos = place.run("b", &["chaos", "--time", "20", "--every", "4", "--clients", "2"]);
    assert!(chaos.status.success(), "{}", text(&chaos));
    let findings: Value = serde_json::from_str(&place.succeed("b", &["books", "--json"])).unwrap();
    assert!(findings["pairs"].as_u64().unwrap() > 0 && findings["owed"].as_u64().unwrap() > 0, "{findings}");
    // The master is paid for the jobs that it drove for the others.
    let driven = |node: &Value| {
        let file = std::path::Path::new(node["data_dir"].as_str().unwrap()).join("ledger.db");
        let ledger = Ledger::open(&file, node["peer_id"].as_str().unwrap().parse().unwrap()).unwrap();
        ledger.account(&Owner::Own(Book::Driving)).unwrap().balance.total()
    };
    assert!(place.nodes("b").iter().map(driven).sum::<i128>() > 0);
    // A node's word that it owes less is noticed.
    let nodes = place.nodes("b");
    place.succeed("b", &["down"]);
    let emptied = nodes[1]["data_dir"].as_str().unwrap();
    for file in ["ledger.db", "ledger.db-wal", "ledger.db-shm"] {
        let _absent = std::fs::remove_file(std::path::Path::new(emptied).join(file));
    }
    let books = place.run("b", &["books", "--wait", "1"]);
    assert!(!books.status.success(), "{}", text(&books));
}
