//! Faults on demand, and what the swarm makes of them.

use std::process::Stdio;

use crate::support::{Place, eventually};

/// Ends the swarm even when the test fails.
struct Up<'a>(&'a Place);

impl<'a> Up<'a> {
    fn new(place: &'a Place, arguments: &[&str]) -> Self {
        let mut up = place.simnet("a", arguments);
        assert!(up.stdout(Stdio::null()).status().unwrap().success());
        Self(place)
    }

    fn master(&self) -> Option<String> {
        let roles = self.0.field("a", "role");
        let names = self.0.field("a", "name");
        let mut masters = names.into_iter().zip(roles).filter(|(_, role)| role == "master");
        let (name, _) = masters.next()?;
        masters.next().is_none().then_some(name)
    }

    fn answer(&self) -> Option<String> {
        let output = self.0.run("a", &["chat", "Hello"]);
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.success() && !text.trim().is_empty()).then_some(text)
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.0.run("a", &["down"]);
    }
}

#[test]
fn a_swarm_answers_without_its_master_and_takes_it_back() {
    let place = Place::new();
    let swarm = Up::new(&place, &["up", "4", "--detach"]);
    let first = swarm.master().unwrap();
    assert!(swarm.answer().is_some());

    place.succeed("a", &["kill", "master"]);
    eventually("another master", || swarm.master().is_some_and(|name| name != first));
    eventually("an answer without the old master", || swarm.answer().is_some());
    assert!(!place.run("a", &["kill", &first]).status.success(), "killed twice");

    place.succeed("a", &["restart", &first]);
    eventually("four ready nodes", || place.run("a", &["status"]).stdout.windows(12).any(|w| w == b"4 of 4 ready"));
}

#[test]
fn a_paused_node_comes_back() {
    let place = Place::new();
    let _swarm = Up::new(&place, &["up", "3", "--detach"]);
    place.succeed("a", &["pause", "2"]);
    assert_eq!(place.field("a", "state")[1], "paused");
    assert!(!place.run("a", &["kill", "node-9"]).status.success());
    place.succeed("a", &["unpause", "node-2"]);
    eventually("three ready nodes", || place.run("a", &["status"]).stdout.windows(12).any(|w| w == b"3 of 3 ready"));
}

#[test]
fn a_swarm_that_is_resumed_is_the_same() {
    let place = Place::new();
    let peers = {
        let _swarm = Up::new(&place, &["up", "2", "--seed", "5", "--detach"]);
        place.field("a", "peer_id")
    };
    assert!(peers.iter().all(|peer| !peer.is_empty()));
    let _swarm = Up::new(&place, &["up", "--resume", "--detach"]);
    assert_eq!(place.field("a", "peer_id"), peers);
}
