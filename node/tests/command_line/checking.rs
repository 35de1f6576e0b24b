//! The commands that show and check what a node keeps.

use std::path::Path;

use serde_json::Value;

use crate::support::{Running, failure, run, tiny};

fn shown(data_dir: &Path, arguments: &[&str]) -> String {
    let output = run(data_dir, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(data_dir: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&shown(data_dir, &[arguments, &["--json"]].concat())).unwrap()
}

#[test]
fn a_running_node_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("node");
    let (code, text) = failure(&data, &["reputation"]);
    assert!(code == 1 && text.contains("no node runs on"), "{text}");

    let node = Running::start(&data, &[]);
    assert_eq!(shown(&data, &["reputation"]), "no other nodes are known yet\n");
    assert_eq!(json(&data, &["reputation", "list"]), serde_json::json!([]));
    assert!(failure(&data, &["reputation", "show", "aBcDeF"]).1.contains("ends in 'aBcDeF'"));
    let stranger = "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq";
    assert!(failure(&data, &["reputation", "show", stranger]).1.contains("nothing is known here"));
    assert_eq!(shown(&data, &["audit", "list", "--peer", stranger]), "no audits are on record\n");
    assert!(failure(&data, &["audit", "show", &"0".repeat(64)]).1.contains("no verdict"));
    let job = "00".repeat(16);
    assert!(failure(&data, &["audit", "order", &job]).1.contains("within the last ten minutes"));
    let model = tiny();
    for (stage, said) in [(&["--stage", "0"][..], "within the last ten minutes"), (&[], "no receipts")] {
        let (code, text) =
            failure(&data, &[&["audit", "run", &job, "--model", model.to_str().unwrap()][..], stage].concat());
        assert!(code == 1 && text.contains(said), "{text}");
    }
    assert_eq!(json(&data, &["ledger", "head"])["entries"], 0);
    assert_eq!(shown(&data, &["ledger", "accounts"]), "no account was used yet\n");
    assert_eq!(json(&data, &["ledger", "statement", "own/earned"])["closing"]["free"], 0);
    assert_eq!(json(&data, &["ledger", "verify"])["sums"]["postings"], 0, "while the node runs");
    drop(node);
    assert!(shown(&data, &["ledger", "verify"]).ends_with("to the millisatoshi\n"), "after it has ended");
}

#[test]
fn what_is_no_proof_is_an_error_and_no_finding() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let model = model.to_str().unwrap();
    let file = dir.path().join("some.proof");
    let verify = |file: &Path| failure(dir.path(), &["audit", "verify", file.to_str().unwrap(), "--model", model]);
    assert_eq!(verify(&file).0, 1);
    std::fs::write(&file, "something else").unwrap();
    let (code, text) = verify(&file);
    assert!(code == 1 && text.contains("not a fraud proof"), "{text}");
    let (code, text) = failure(dir.path(), &["ledger", "verify"]);
    assert!(code == 1 && text.contains("there is no ledger"), "{text}");
}
