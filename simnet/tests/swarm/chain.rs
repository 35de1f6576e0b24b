//! The chain of a swarm.

use crate::support::{Place, text};

#[test]
fn blocks_come_and_go_on_demand() {
    let place = Place::new();
    let script = r#"
        set -e
        simnet mine 3
        simnet reorg 2
        simnet reorg --empty
        simnet status
        grep -c : "$CONSORTIUM_BITCOIND_COOKIE"
        echo "$CONSORTIUM_BITCOIND_URL"
    "#;
    let output = place.run("a", &["up", "1", "--exec", script]);
    assert!(output.status.success(), "{}", text(&output));
    let said = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("mined 3 blocks, height 113, tip "), "{said}");
    assert!(lines[1].starts_with("replaced the last 2 blocks by 3 others, height 114, tip "), "{said}");
    assert!(lines[2].starts_with("replaced the last 1 block by 2 others, height 115, tip "), "{said}");
    let url = lines[lines.len() - 1];
    assert!(said.contains(&format!("chain {url}, height 115, credentials in ")), "{said}");
    assert_eq!(lines[lines.len() - 2], "1");
    let tip = lines[2].split("tip ").nth(1).unwrap();
    assert!(!place.path("a").join("chain.json").exists(), "the record outlives the swarm");

    // The same swarm goes on with the same blocks.
    let again = place.succeed("a", &["up", "--resume", "--exec", "simnet reorg 1"]);
    assert!(again.contains("height 116") && !again.contains(tip), "{again}");
    // Another swarm does not.
    let other = place.succeed("a", &["up", "1", "--exec", "simnet mine"]);
    assert!(other.starts_with("mined 1 block, height 111"), "{other}");
}

#[test]
fn a_swarm_needs_no_chain() {
    let place = Place::new();
    let script = r#"test -z "$CONSORTIUM_BITCOIND_URL" && ! simnet mine 2>"$SIMNET_DIR/../said""#;
    let output = place.run("a", &["up", "1", "--no-lightning", "--exec", script]);
    assert!(output.status.success(), "{}", text(&output));
    let said = std::fs::read_to_string(place.path("said")).unwrap();
    assert!(said.contains("has no chain"), "{said}");
}
