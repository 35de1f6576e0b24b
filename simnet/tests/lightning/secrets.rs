//! What must stay secret does, and what a key gives back.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use consortium_node::ledger::lightning::{Wallet, WalletError, backup};
use consortium_protocol::Msat;

use super::support::{Town, key, order, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_the_owners_alone_and_hold_no_seed() {
    let town = Town::new();
    let alice = town.wallet("alice").await;
    alice.new_address().await.unwrap();
    alice.invoice(order(1_000)).await.unwrap();
    let shown = format!("{alice:?} {:?}", town.settings("alice"));
    assert!(!shown.contains(town.password()), "{shown}");
    alice.stop().await.unwrap();
    let directory = town.directory("alice");
    assert_eq!(directory.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    let key = key("alice");
    let secrets = [key.seed().to_vec(), hex_text(&*key.seed()).into_bytes(), town.password().as_bytes().to_vec()];
    let mut files = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let mode = path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", path.display());
        let bytes = std::fs::read(&path).unwrap();
        for secret in &secrets {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{}", path.display());
        }
        files += 1;
    }
    assert!(files >= 2);
}

fn hex_text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_key_is_refused_in_words() {
    let town = Town::new();
    let alice = town.wallet("alice").await;
    alice.stop().await.unwrap();
    drop(alice);
    let other = Wallet::start(town.settings("alice"), &town.directory("alice"), &key("bob")).await;
    assert!(matches!(&other, Err(WalletError::Build(_))), "{other:?}");
    assert!(other.unwrap_err().to_string().contains("another key"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_loss_the_peers_of_a_backup_close_the_channels_and_their_payouts_are_found() {
    let town = Town::new();
    let (alice, bob) = (town.wallet("alice").await, town.wallet("bob").await);
    town.fund(&[&alice, &bob]).await;
    town.channel(&alice, &bob, 200_000, Msat(50_000_000)).await;
    let sealed = alice.backup().await.unwrap();
    let node_id = alice.node_id();
    alice.stop().await.unwrap();
    drop(alice);
    std::fs::remove_dir_all(town.directory("alice")).unwrap();

    let opened = backup::open(&sealed, &key("alice")).unwrap();
    assert_eq!((opened.node_id.as_str(), opened.channels.len()), (node_id.as_str(), 1));
    assert!(backup::open(&sealed, &key("bob")).is_err());
    let alice = town.wallet("alice").await;
    assert_eq!(alice.node_id(), node_id, "the key gives the identity back");
    for peer in &opened.peers {
        let reached = async {
            for address in &peer.addresses {
                if alice.connect(&format!("{}@{address}", peer.id)).await.is_ok() {
                    return true;
                }
            }
            false
        };
        assert!(reached.await, "{peer:?}");
    }
    assert_eq!(alice.recover().await.unwrap(), None, "nothing is closed yet");
    until("bob closes the channel", || async { bob.channels().await.unwrap().is_empty() }).await;
    let closing = || async { town.call("getmempoolinfo", serde_json::json!([])).await["size"].as_u64() > Some(0) };
    until("the closing is broadcast", closing).await;
    town.mine(1).await;
    let found = alice.recover().await.unwrap().unwrap();
    assert_eq!(found.payouts, 1);
    // Her part of 150,000, less the anchors and fees of the closing and of the sweep.
    assert!((140_000..150_000).contains(&found.sat), "{found:?}");
    assert_eq!(alice.recover().await.unwrap(), None, "what is on its way is not sent again");
    town.mine(6).await;
    until("alice has it", || async { alice.balances().await.unwrap().spendable_sat == found.sat }).await;
    assert_eq!(alice.recover().await.unwrap(), None);
    alice.stop().await.unwrap();
    bob.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_copy_of_the_wallet_is_not_started() {
    let town = Town::new();
    let alice = town.wallet("alice").await;
    alice.stop().await.unwrap();
    drop(alice);
    let (here, copy) = (town.directory("alice"), town.directory("copy"));
    let put = |from: &Path, to: &Path| {
        std::fs::create_dir(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    };
    put(&here, &copy);
    // On a machine where it never ran there is no note, and it is not believed.
    let elsewhere = town.directory("elsewhere");
    put(&here, &elsewhere);
    let old = Wallet::start(town.settings("alice"), &elsewhere, &key("alice")).await;
    assert!(matches!(old, Err(WalletError::Stale(_))), "{old:?}");
    let alice = town.wallet("alice").await;
    alice.stop().await.unwrap();
    drop(alice);
    std::fs::remove_dir_all(&here).unwrap();
    std::fs::rename(&copy, &here).unwrap();
    let old = Wallet::start(town.settings("alice"), &here, &key("alice")).await;
    assert!(matches!(old, Err(WalletError::Stale(_))), "{old:?}");
    // Begun anew it runs: it has no channels that could be stale.
    std::fs::remove_dir_all(&here).unwrap();
    town.wallet("alice").await.stop().await.unwrap();
}
