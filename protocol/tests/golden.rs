//! The bytes of every wire type, for good. A difference here is a break with every node that runs: give the protocol a
//! new version.
//!
//! After a change that is meant, `CONSORTIUM_BLESS=1 cargo test -p consortium-protocol --test golden` writes the file
//! anew.

#![allow(clippy::unwrap_used, clippy::panic)]

mod samples;

use std::collections::BTreeMap;
use std::fmt::{Debug, Write};
use std::path::Path;

use consortium_protocol::ClusterName;
use consortium_protocol::cbor;
use consortium_protocol::election::{MAX_PERSISTED, Persisted};
use consortium_protocol::envelope::{Payload, Signed};
use consortium_protocol::wire::Message;
use consortium_protocol::wire::pipeline::{Frame, parse_header};

#[derive(Default)]
struct Golden {
    bytes: BTreeMap<String, String>,
}

impl Golden {
    fn message<T: Message + PartialEq + Debug>(&mut self, kind: &str, name: &str, value: &T) {
        let bytes = value.encode();
        assert!(bytes.len() <= T::MAX_BYTES);
        assert_eq!(&T::decode(&bytes).unwrap(), value, "{kind} {name}");
        self.add(kind, name, &bytes);
    }

    fn signed<T: Payload + PartialEq + Debug>(&mut self, kind: &str, value: T) {
        let key = samples::key(1);
        let signed = Signed::sign(&key, value.clone());
        let decoded = Signed::<T>::decode(signed.as_bytes()).unwrap();
        assert_eq!((decoded.payload(), decoded.signer()), (&value, key.node_id()), "{kind}");
        assert_eq!(decoded.as_bytes(), signed.as_bytes());
        assert_eq!(decoded.digest(), signed.digest());
        self.add("signed", kind, signed.as_bytes());
    }

    fn frame(&mut self, name: &str, value: &Frame) {
        let bytes = value.encode();
        assert_eq!(&read_frame(&bytes), value, "frame {name}");
        self.add("frame", name, &bytes);
    }

    fn add(&mut self, kind: &str, name: &str, bytes: &[u8]) {
        let before = self.bytes.insert(format!("{kind} {name}"), hex::encode(bytes));
        assert!(before.is_none(), "{kind} {name} twice");
    }
}

fn read_frame(bytes: &[u8]) -> Frame {
    let length = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
    let header = parse_header(&bytes[4..4 + length]).unwrap();
    let payload = &bytes[4 + length..];
    assert_eq!(payload.len(), header.payload_len());
    header.into_frame(payload.to_vec()).unwrap()
}

fn all() -> Golden {
    let mut golden = Golden::default();
    for (name, value) in samples::facts() {
        golden.message("fact", name, &value);
    }
    for (name, value) in samples::requests() {
        golden.message("request", name, &value);
    }
    for (name, value) in samples::responses() {
        golden.message("response", name, &value);
    }
    for (name, value) in samples::job_requests() {
        golden.message("job-request", name, &value);
    }
    golden.message("job-submission", "chat", &samples::job_submission());
    for (name, value) in samples::job_events() {
        golden.message("job-event", name, &value);
    }
    for (name, value) in samples::frames() {
        golden.frame(name, &value);
    }
    golden.signed("heartbeat", samples::heartbeat());
    golden.signed("vote-request", samples::vote_request());
    golden.signed("vote", *samples::ballot().vote.payload());
    golden.signed("assign", samples::assign());
    golden.signed("release", samples::release());
    golden.signed("mandate", samples::mandate());
    golden.signed("session", samples::session());
    golden.signed("stage-receipt", samples::receipts()[1].payload().clone());
    golden.signed("verdict", samples::verdict());
    golden.signed("acceptance", samples::acceptance());
    golden.signed("tab", samples::tab());
    golden.signed("tab-answer", samples::tab_answer());
    golden.signed("channel-offer", samples::channel_offer());
    golden.signed("channel-agreed", samples::channel_agreed());
    golden.signed("channel-begun", samples::channel_begun());
    golden.signed("channel-gone", samples::channel_gone());
    golden.signed("rebuttal", samples::rebuttal());
    golden.signed("tree-head", samples::tree_head());
    golden.signed("equivocation-seen", samples::equivocation_seen());
    golden.message("ledger", "equivocation", &samples::equivocation());
    golden.signed("escrow-terms", samples::escrow_terms());
    golden.signed("escrow-verdict", samples::escrow_verdict());
    for (name, value) in samples::escrow_messages() {
        golden.message("escrow", name, &value);
    }
    golden.message("escrow", "misconduct", &samples::misconduct());
    for (name, value) in samples::blob_requests() {
        golden.message("blob-request", name, &value);
    }
    for (name, value) in samples::blob_answers() {
        golden.message("blob-answer", name, &value);
    }
    golden.message("audit", "order", &samples::audit_order());
    golden.message("audit", "opening", &samples::opening());
    golden.signed("train-run", samples::train::spec());
    golden.signed("train-run-by-escrow", samples::train::spec_by_escrow());
    golden.signed("train-run-with-bond", samples::train::spec_with_bond());
    for (name, value) in samples::train::messages() {
        golden.message("train", name, &value);
    }
    golden.message("train", "gossip", &samples::train::gossip());
    for (name, value) in samples::train::requests() {
        golden.message("train-request", name, &value);
    }
    for (name, value) in samples::train::answers() {
        golden.message("train-answer", name, &value);
    }
    let persisted = cbor::to_vec(&samples::persisted());
    assert_eq!(cbor::from_slice::<Persisted>(&persisted, MAX_PERSISTED).unwrap(), samples::persisted());
    golden.add("stored", "election", &persisted);
    golden
}

#[test]
fn every_wire_type_has_its_golden_bytes() {
    let now = all().bytes;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden.txt");
    if std::env::var_os("CONSORTIUM_BLESS").is_some() {
        let mut text = String::new();
        for (name, hex) in &now {
            writeln!(text, "{name} {hex}").unwrap();
        }
        std::fs::write(&path, text).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let golden: BTreeMap<String, String> = text
        .lines()
        .map(|line| {
            let (name, hex) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), hex.to_owned())
        })
        .collect();
    assert_eq!(now.keys().collect::<Vec<_>>(), golden.keys().collect::<Vec<_>>(), "the list of types has changed");
    for (name, hex) in &golden {
        assert_eq!(hex, &now[name], "{name}");
    }
}

#[test]
fn names_of_protocols_and_topics_are_fixed() {
    use consortium_protocol::wire;
    assert_eq!(
        [wire::RPC, wire::JOB, wire::STAGE, wire::TOKENS],
        ["/consortium/rpc/1", "/consortium/job/1", "/consortium/stage/1", "/consortium/tokens/1"]
    );
    assert_eq!(wire::TRAIN, "/consortium/train/1");
    let run = samples::train::run();
    assert_eq!(wire::train::run_topic(run), format!("/consortium/train/{}/1", &run.to_string()[..16]));
    let topic = wire::gossip_topic(samples::cluster());
    assert_eq!(topic, format!("/consortium/{}/facts/1", &samples::cluster().to_string()[..16]));
    let id = |name: &str| name.parse::<ClusterName>().unwrap().id().to_string();
    assert_eq!(id("home"), "1f478a1943917737f67c9cb71cc1fe843f16d3c966b8cdaf594067fd55ed6842");
    assert_eq!(
        id("home@12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"),
        "da077ef760aae376ae08bbbb47c48da0e5ff21efbd2d063b2cade7efe1b227b9"
    );
    assert_eq!(samples::key(1).node_id().to_string(), "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5");
    let derived = samples::key(1).derive("consortium golden");
    assert_eq!(hex::encode(*derived), "e34ce4b5dae7faf054ce139805be655163505e751022849e375489a2779903d4");
}
