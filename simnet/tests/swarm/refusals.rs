//! What simnet does not do, and what it says then. No node runs in these.

use crate::support::{bare, text};

#[test]
fn a_directory_of_somebody_else_is_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("thesis.tex"), "").unwrap();
    let output = bare(temp.path(), &["up", "1", "--node-binary", "/bin/false"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("not a directory of simnet"), "{}", text(&output));
    assert!(temp.path().join("thesis.tex").exists());
}

#[test]
fn a_node_that_does_not_start_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let output = bare(temp.path(), &["up", "2", "--node-binary", "/bin/false"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("node-1 has no identity"), "{}", text(&output));
}

#[test]
fn a_bitcoind_that_is_not_there_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let url = "http://user:secret@127.0.0.1:1";
    let output = bare(temp.path(), &["up", "1", "--node-binary", "/bin/false", "--bitcoind", url]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    assert!(said.contains("http://127.0.0.1:1 does not answer") && !said.contains("secret"), "{said}");
}

#[test]
fn orders_need_a_swarm() {
    let temp = tempfile::tempdir().unwrap();
    for order in [&["kill", "1"][..], &["restart", "1"], &["pause", "1"], &["chat"], &["status"], &["mine"], &["reorg"]]
    {
        let output = bare(temp.path(), order).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{order:?}");
        assert!(text(&output).contains("no swarm is running in"), "{}", text(&output));
    }
    let output = bare(temp.path(), &["logs"]).output().unwrap();
    assert!(text(&output).contains("there are no logs"), "{}", text(&output));
}
