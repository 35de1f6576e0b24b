//! Starting, refusing to start, and ending.

use std::net::TcpListener;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::support::{Running, START, complaint, run, tiny};

#[test]
fn a_node_starts_holds_its_directory_and_ends_cleanly() {
    let dir = tempfile::tempdir().unwrap();
    let node = Running::start(dir.path(), &["--model", tiny().to_str().unwrap()]);
    assert!(node.ready.starts_with("ready: api http://127.0.0.1:"), "{}", node.ready);
    assert!(dir.path().join("api.json").exists());

    let second = complaint(dir.path(), &START);
    assert!(second.contains("in use by a running node") && second.contains("--data-dir"), "{second}");

    let status = run(dir.path(), &["status", "--json"]);
    assert!(status.status.success());
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["pid"], node.child.id());

    assert!(node.stop(Signal::SIGTERM).success());
    assert!(!dir.path().join("api.json").exists());
    let gone = complaint(dir.path(), &["status"]);
    assert!(gone.contains("consortium-node start"), "{gone}");
}

#[test]
fn a_killed_node_starts_again_as_the_same_one() {
    let dir = tempfile::tempdir().unwrap();
    let first = Running::start(dir.path(), &[]);
    let identity = first.ready.split_whitespace().last().unwrap().to_owned();
    first.stop(Signal::SIGKILL);
    let second = Running::start(dir.path(), &[]);
    assert_eq!(second.ready.split_whitespace().last().unwrap(), identity);
    assert!(second.stop(Signal::SIGINT).success());
}

#[test]
fn a_port_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let text = complaint(dir.path(), &["start", "--no-mdns", "--api-addr", &format!("127.0.0.1:{port}")]);
    assert!(text.contains(&port.to_string()) && text.contains("--api-addr"), "{text}");
    let listen = format!("/ip4/127.0.0.1/tcp/{port}");
    let text = complaint(dir.path(), &["start", "--no-mdns", "--api-addr", "127.0.0.1:0", "--listen", &listen]);
    assert!(text.contains(&listen), "{text}");
}

#[test]
fn an_open_api_without_a_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let text = complaint(dir.path(), &["start", "--no-mdns", "--api-addr", "0.0.0.0:0"]);
    assert!(text.contains("key create"), "{text}");
}

#[test]
fn bad_models_are_named_with_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let start = |model: &Path| {
        let mut arguments = START.to_vec();
        arguments.extend(["--model", model.to_str().unwrap()]);
        complaint(dir.path(), &arguments)
    };
    let absent = start(Path::new("/nowhere/at/all"));
    assert!(absent.contains("/nowhere/at/all") && absent.contains("model import"), "{absent}");

    let broken = dir.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    let empty = start(&broken);
    assert!(empty.contains("config.json"), "{empty}");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(tiny().join(file), broken.join(file)).unwrap();
    }
    let weights = std::fs::read(tiny().join("model.safetensors")).unwrap();
    std::fs::write(broken.join("model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    let truncated = start(&broken);
    assert!(truncated.contains("model.safetensors"), "{truncated}");
    let config = std::fs::read_to_string(broken.join("config.json")).unwrap();
    std::fs::write(broken.join("config.json"), config.replace("LlamaForCausalLM", "MambaForCausalLM")).unwrap();
    let unknown = start(&broken);
    assert!(unknown.contains("MambaForCausalLM"), "{unknown}");
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, named) in [
        (["--memory", "lots"], "lots"),
        (["--cluster", "Not A Name"], "Not A Name"),
        (["--stages", "0"], "stages"),
        (["--auditor", "somebody"], "somebody"),
        (["--listen", "localhost:4801"], "localhost:4801"),
        (["--bootstrap", "example.org"], "example.org"),
    ] {
        let text =
            complaint(dir.path(), &[&["start", "--no-mdns", "--api-addr", "127.0.0.1:0"][..], &arguments].concat());
        assert!(text.contains(named), "{arguments:?}: {text}");
    }
}

#[test]
fn models_are_imported_listed_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = tiny();
    assert!(run(dir.path(), &["model", "import", tiny.to_str().unwrap(), "--name", "mine"]).status.success());
    let listed = run(dir.path(), &["model", "list", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed[0]["name"], "mine");
    let shown = run(dir.path(), &["model", "show", "mine"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("digest"));
    let escape = complaint(dir.path(), &["model", "import", tiny.to_str().unwrap(), "--name", "../mine"]);
    assert!(escape.contains("../mine"), "{escape}");
}

#[test]
fn logits_do_not_depend_on_the_split() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = tiny();
    let logits = |more: &[&str]| {
        let arguments = [&["model", "logits", tiny.to_str().unwrap(), "--tokens", "5,6,7,8", "--json"], more].concat();
        let output = run(dir.path(), &arguments);
        assert!(output.status.success());
        output.stdout
    };
    let whole = logits(&[]);
    let parsed: serde_json::Value = serde_json::from_slice(&whole).unwrap();
    assert_eq!(parsed["logits"].as_array().unwrap().len(), 4);
    assert_eq!(parsed["logits"][0].as_array().unwrap().len(), 1024);
    assert_eq!(logits(&["--layers-split", "0-3,4-9"]), whole);
    assert_eq!(logits(&["--layers-split", "0-0,1-1,2-5,6-9"]), whole);
}
