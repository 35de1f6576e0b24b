//! A run of training over a swarm of processes, by the commands that people use.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::{Place, eventually, node_binary, text};

/// `consortium-node train ...` at one node of the swarm.
fn train(place: &Place, node: usize, arguments: &[&str]) -> Output {
    let data_dir = place.field("t", "data_dir").swap_remove(node - 1);
    let mut command = Command::new(node_binary());
    command.env_remove("CONSORTIUM_API_BASE").args(["--data-dir", &data_dir, "train"]).args(arguments);
    command.stdin(Stdio::null()).output().unwrap()
}

/// What it prints, if it ends well.
fn told(place: &Place, node: usize, arguments: &[&str]) -> Value {
    let output = train(place, node, &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "node {node}, {arguments:?}: {}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_swarm_trains_a_model_through_kills_and_anyone_can_replay_it() {
    let place = Place::new();
    let up = ["up", "4", "--no-lightning", "--detach"];
    assert!(place.simnet("t", &up).stdout(Stdio::null()).status().unwrap().success());
    let plan = ["announce", "--model", "nano", "--rounds", "8", "--latency-ms", "250", "--budget", "100"];
    let run = told(&place, 1, &plan)["run"].as_str().unwrap().to_owned();
    // By the first digits where the run was heard of, by its whole id anywhere.
    eventually("the others hear of the run", || {
        told(&place, 2, &["list"]).as_array().is_some_and(|all| !all.is_empty())
    });
    told(&place, 2, &["join", &run[..8]]);
    told(&place, 3, &["join", &run]);
    let status = |node| told(&place, node, &["status", &run]);
    let round = |node| status(node)["round"].as_u64().unwrap();
    eventually("two rounds", || round(2) >= 2);

    // One comes later, another is killed, comes back, and goes on by itself.
    told(&place, 4, &["join", &run]);
    place.succeed("t", &["kill", "3"]);
    let killed = round(2);
    eventually("the run goes on without it", || round(2) > killed);
    place.succeed("t", &["restart", "3"]);
    eventually("the run ends", || status(1)["phase"] == "ended" && status(2)["phase"] == "ended");
    for node in [3, 4] {
        eventually("all have the last parameters", || {
            let status = status(node);
            status["phase"] == "ended" && status["in_sync"] == true
        });
    }

    // It learnt, and who took part earned.
    let rounds = status(4)["rounds"].as_array().unwrap().clone();
    let losses: Vec<f64> = rounds.iter().filter_map(|line| line["held_out_loss"].as_f64()).collect();
    assert!(losses.last() < losses.first(), "{losses:?}");
    assert!([2, 3, 4].iter().any(|node| status(*node)["earned_msat"].as_u64() > Some(0)));

    // Whoever has the files can compute all of it again, and serve the model.
    let directory = place.path("run").to_string_lossy().into_owned();
    told(&place, 2, &["export", &run, &directory, "--model"]);
    let replayed = train(&place, 2, &["replay", &directory, "--losses"]);
    assert!(replayed.status.success(), "{}", text(&replayed));
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        assert!(place.path("run").join("model").join(file).is_file(), "{file}");
    }
    let card = std::fs::read_to_string(place.path("run").join("model/README.md")).unwrap();
    assert!(card.contains(&run), "{card}");
    place.succeed("t", &["down"]);
}
