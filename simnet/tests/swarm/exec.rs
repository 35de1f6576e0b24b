//! `up --exec`.

use std::process::Stdio;

use crate::support::{Place, runs, text};

#[test]
fn a_command_finds_the_swarm_and_its_code_comes_back() {
    let place = Place::new();
    let script = r#"
        set -e
        . "$SIMNET_DIR/env"
        ask() { consortium-node chat --api-base "$1" --temperature 0 --max-tokens 8 Hello 2>/dev/null; }
        ask "$CONSORTIUM_GATEWAY_BASE"
        echo "--"
        ask "$CONSORTIUM_API_BASE"
        echo "--"
        echo "$CONSORTIUM_MODEL"
        test "$CONSORTIUM_GATEWAY_BASE" != "$CONSORTIUM_API_BASE"
        test -n "$CONSORTIUM_API_KEY"
        cp "$CONSORTIUM_NODES" "$SIMNET_DIR/../nodes.json"
        exit 7
    "#;
    let output = place.run("a", &["up", "4", "--exec", script]);
    assert_eq!(output.status.code(), Some(7), "{}", text(&output));

    let stdout = String::from_utf8(output.stdout).unwrap();
    let parts: Vec<&str> = stdout.split("--\n").collect();
    assert_eq!(parts.len(), 3, "{stdout}");
    assert!(!parts[0].trim().is_empty(), "an empty answer");
    assert_eq!(parts[0], parts[1], "gateway and master answer differently");
    assert!(!parts[2].trim().is_empty(), "no model");

    let nodes = std::fs::read(place.path("nodes.json")).unwrap();
    let nodes: Vec<serde_json::Value> = serde_json::from_slice(&nodes).unwrap();
    assert_eq!(nodes.len(), 4);
    for node in &nodes {
        for field in ["name", "peer_id", "api_base", "role", "layers"] {
            assert!(node[field].is_string(), "{field} in {node}");
        }
        assert!(!runs(node["pid"].as_u64().unwrap()), "{node} still runs");
    }
    assert_eq!(nodes.iter().filter(|node| node["role"] == "master").count(), 1);
    let steps = String::from_utf8(output.stderr).unwrap();
    assert!(steps.contains("first completion"), "{steps}");
}

#[test]
fn a_command_that_a_signal_ends_is_told_as_a_shell_would() {
    let place = Place::new();
    let output = place.run("a", &["up", "1", "--exec", "kill -9 $$"]);
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
}

#[test]
fn what_a_command_leaves_behind_ends_with_it() {
    let place = Place::new();
    let script = "sleep 1000 & echo $! >left; (trap '' TERM; sleep 1000) & echo $! >>left";
    let status = place
        .simnet("a", &["up", "1", "--exec", script])
        .current_dir(place.path(""))
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let left = std::fs::read_to_string(place.path("left")).unwrap();
    assert_eq!(left.lines().count(), 2);
    for pid in left.lines() {
        assert!(!runs(pid.parse().unwrap()), "process {pid} still runs");
    }
}
