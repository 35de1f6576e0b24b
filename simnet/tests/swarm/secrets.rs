//! What nodes write and answer holds none of their secrets, however much they log.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use consortium_protocol::identity::RootKey;
use ldk_node::payment::PaymentKind;

use crate::support::{Place, node_binary, text};

/// As `ledger/src/lightning/seed.rs` has them.
const SEED: [&str; 2] =
    ["consortium 2026-11 lightning wallet seed, first half", "consortium 2026-11 lightning wallet seed, second half"];

/// A secret, what it is, and the forms in which it could be told.
struct Secret {
    name: &'static str,
    forms: Vec<String>,
}

impl Secret {
    fn text(name: &'static str, text: &str) -> Self {
        assert!(text.len() >= 16, "{name}");
        Self { name, forms: vec![text.to_owned()] }
    }

    /// Bytes as such, in hexadecimal digits of either case, and as Rust shows them.
    fn bytes(name: &'static str, bytes: &[u8]) -> Self {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let listed = bytes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Self { name, forms: vec![latin(bytes), hex.to_uppercase(), hex, listed] }
    }

    fn is_in(&self, haystack: &str) -> bool {
        self.forms.iter().any(|form| haystack.contains(form.as_str()))
    }
}

/// A character for each byte, so that texts can be searched for bytes.
fn latin(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

fn read(path: &Path) -> String {
    latin(&std::fs::read(path).unwrap())
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn seed(data_dir: &Path) -> ([u8; 32], [u8; 64]) {
    let key = consortium_node::keyfile::load_or_create(data_dir).unwrap();
    let mut seed = [0; 64];
    seed[..32].copy_from_slice(&*RootKey::derive(&key, SEED[0]));
    seed[32..].copy_from_slice(&*RootKey::derive(&key, SEED[1]));
    (*key.seed(), seed)
}

/// The preimages of the invoices of a wallet that does not run.
fn preimages(data_dir: &Path, seed: [u8; 64]) -> Vec<[u8; 32]> {
    let mut builder = ldk_node::Builder::new();
    builder
        .set_network(ldk_node::bitcoin::Network::Regtest)
        .set_entropy_seed_bytes(seed)
        .set_storage_dir_path(data_dir.join("lightning").to_str().unwrap().to_owned())
        .set_chain_source_esplora("http://127.0.0.1:1".to_owned(), None);
    let payments = builder.build().unwrap().list_payments();
    payments
        .into_iter()
        .filter_map(|payment| match payment.kind {
            PaymentKind::Bolt11 { preimage, .. } => Some(preimage?.0),
            _ => None,
        })
        .collect()
}

#[test]
fn logs_answers_and_backups_hold_no_secrets() {
    let place = Place::new();
    let up = place.simnet("s", &["up", "2", "--detach"]).env("RUST_LOG", "trace").stdout(Stdio::null()).status();
    assert!(up.unwrap().success());
    place.succeed("s", &["chat", "Hello"]);
    let data_dir = PathBuf::from(&place.field("s", "data_dir")[0]);
    let backup = place.path("backup");
    let node = |arguments: &[&str]| {
        let mut command = Command::new(node_binary());
        command.arg("--data-dir").arg(&data_dir).args(arguments).env("RUST_LOG", "trace").stdin(Stdio::null());
        text(&command.output().unwrap())
    };
    let mut said = String::new();
    for arguments in [
        &["wallet", "invoice", "1500", "--description", "never paid", "--json"][..],
        &["wallet", "backup", backup.to_str().unwrap(), "--json"],
        &["wallet", "status", "--json"],
        &["wallet", "channels", "--json"],
        &["wallet", "history", "--json"],
        &["wallet", "pay", "lnbcrt1nonsense", "--yes"],
        &["wallet", "open", "02@nowhere:1", "50000", "--yes"],
        &["wallet", "send", "nowhere", "1000", "--yes"],
        &["status", "--json"],
        &["earnings", "--json"],
        &["ledger", "head", "--json"],
    ] {
        said += &node(arguments);
    }
    assert!(said.contains("lnbcrt15u1"), "an invoice was made: {said}");

    let token = std::fs::read_to_string(data_dir.join("operator.token")).unwrap();
    let all = files(&place.path("s"));
    let cookie = all.iter().find(|path| path.to_string_lossy().contains("cookie")).unwrap();
    let cookie = std::fs::read_to_string(cookie).unwrap();
    let (root, seed) = seed(&data_dir);
    let mut secrets = vec![
        Secret::bytes("the root key", &root),
        Secret::bytes("the first half of the wallet's seed", &seed[..32]),
        Secret::bytes("the second half of the wallet's seed", &seed[32..]),
        Secret::text("the operator's token", token.trim()),
        Secret::text("bitcoind's password", cookie.trim().split_once(':').unwrap().1),
    ];
    for path in all.iter().filter(|path| path.starts_with(&data_dir)) {
        // Journals of databases come and go.
        let Ok(about) = path.metadata() else { continue };
        let mode = about.permissions().mode() & 0o777;
        let keeps = ["lightning/", "identity.key", "operator.token", "ledger.db"];
        if keeps.iter().any(|name| path.strip_prefix(&data_dir).unwrap().to_string_lossy().starts_with(name)) {
            assert_eq!(mode, 0o600, "{}", path.display());
        }
    }
    let logs: Vec<PathBuf> = place.field("s", "log").iter().map(PathBuf::from).collect();
    place.succeed("s", &["down"]);
    let preimages = preimages(&data_dir, seed);
    assert!(!preimages.is_empty(), "that of the invoice");
    secrets.extend(preimages.iter().map(|preimage| Secret::bytes("a preimage", preimage)));

    assert!(logs[0].metadata().unwrap().len() > 100_000, "it is all there");
    assert!(secrets[0].is_in(&read(&data_dir.join("identity.key"))), "what is there is found");
    let mut told = vec![("what commands say", said), ("the backup", read(&backup))];
    told.extend(logs.iter().map(|log| ("a log", read(log))));
    for secret in &secrets {
        for (place, text) in &told {
            assert!(!secret.is_in(text), "{} is in {place}", secret.name);
        }
    }
}
