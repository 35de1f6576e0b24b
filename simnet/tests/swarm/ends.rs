//! However a swarm ends, nothing of it is left.

use std::process::{Command, Stdio};

use crate::support::{Guarded, Place, eventually, runs};

/// A swarm of three with a command, both running; its simnet and the processes of nodes and command.
fn running(place: &Place) -> (Guarded, Vec<u64>) {
    let simnet = place
        .simnet("a", &["up", "3", "--exec", "echo $$ >command; sleep 1000; true"])
        .current_dir(place.path(""))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let simnet = Guarded(simnet);
    let command = || {
        let text = std::fs::read_to_string(place.path("command")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    eventually("the command runs", || command().is_some());
    let mut pids = place.pids("a");
    assert_eq!(pids.len(), 3);
    pids.push(command().unwrap());
    assert!(pids.iter().all(|pid| runs(*pid)));
    (simnet, pids)
}

#[cfg(target_os = "linux")]
#[test]
fn a_simnet_that_is_killed_leaves_nothing() {
    let place = Place::new();
    let (mut simnet, pids) = running(&place);
    simnet.0.kill().unwrap();
    simnet.0.wait().unwrap();
    eventually("all processes are gone", || !pids.iter().any(|pid| runs(*pid)));
    // The directory is free again.
    let next = place.run("a", &["up", "1", "--exec", "true"]);
    assert!(next.status.success());
}

#[test]
fn a_simnet_that_is_asked_to_end_leaves_nothing() {
    let place = Place::new();
    let (mut simnet, pids) = running(&place);
    Command::new("kill").arg(simnet.0.id().to_string()).status().unwrap();
    assert_eq!(simnet.0.wait().unwrap().code(), Some(143));
    assert!(!pids.iter().any(|pid| runs(*pid)));
}

#[test]
fn down_ends_one_swarm_and_not_the_other() {
    let place = Place::new();
    let up = |name| place.simnet(name, &["up", "2", "--detach"]).stdout(Stdio::null()).spawn().unwrap();
    let (mut a, mut b) = (up("a"), up("b"));
    assert!(a.wait().unwrap().success() && b.wait().unwrap().success());
    let (of_a, of_b) = (place.pids("a"), place.pids("b"));
    assert_eq!((of_a.len(), of_b.len()), (2, 2));
    let addresses = [place.field("a", "api_base"), place.field("b", "api_base")].concat();
    let mut distinct = addresses.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), 4, "{addresses:?}");

    place.succeed("a", &["down"]);
    assert!(!of_a.iter().any(|pid| runs(*pid)));
    assert!(of_b.iter().all(|pid| runs(*pid)));
    let status = place.succeed("b", &["status"]);
    assert!(status.contains("2 of 2 ready"), "{status}");
    place.succeed("b", &["down"]);
    assert!(!of_b.iter().any(|pid| runs(*pid)));
    // Once more is no error, and says so.
    assert!(place.succeed("b", &["down"]).contains("no swarm is running"));
    // Logs outlive the swarm.
    assert!(!place.succeed("b", &["logs"]).is_empty());
}
