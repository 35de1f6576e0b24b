//! A node that sells, paid over Lightning by another.

use std::path::PathBuf;
use std::time::Duration;

use consortium_node::operator::OperatorToken;
use consortium_simnet::l402::{Answered, Customer};
use serde_json::{Value, json};

use crate::support::{Place, text};

const PATIENCE: Duration = Duration::from_secs(120);

/// The wallet of a node, by its operator.
struct Wallet {
    node: Value,
}

impl Wallet {
    async fn order(&self, method: &str, params: Value) -> Value {
        let token = OperatorToken::read(&PathBuf::from(self.node["data_dir"].as_str().unwrap())).unwrap();
        let url = self.node["api_base"].as_str().unwrap().replace("/v1", "/rpc");
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let call = client.post(url).header("consortium-operator", token).json(&body);
        let answer: Value = call.send().await.unwrap().json().await.unwrap();
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// Pays what is asked for; gives the credential.
    async fn pay(&self, asked: &Answered) -> String {
        let challenge = asked.challenge().unwrap_or_else(|| panic!("{asked:?}"));
        let paid = self.order("wallet_pay", json!({"invoice": challenge.invoice})).await;
        assert_eq!(paid["amount"], asked.body["error"]["payment"]["amount_msat"]);
        let receipt = self.order("wallet_receipt", json!({"hash": paid["hash"]})).await;
        format!("L402 {}:{}", challenge.macaroon, receipt["preimage"].as_str().unwrap())
    }
}

async fn account(customer: &Customer) -> Value {
    let shown = customer.call("GET", "/account", None).await.unwrap();
    assert_eq!(shown.status, 200, "{shown:?}");
    shown.body
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn credit_is_bought_spent_and_given_back() {
    let place = Place::new();
    place.succeed("a", &["up", "3", "--l402", "--detach"]);
    let nodes = place.nodes("a");
    let seller = nodes.iter().find(|node| node["sells"] == true).unwrap().clone();
    let payer = Wallet { node: nodes[0].clone() };
    let mut customer = Customer::new(seller["api_base"].as_str().unwrap(), PATIENCE).unwrap();

    runtime().block_on(async {
        let asked = customer.ask().await.unwrap();
        customer.credential = Some(payer.pay(&asked).await);
        for _ in 0..3 {
            let served = customer.ask().await.unwrap();
            assert_eq!(served.status, 200, "{served:?}");
            assert!(served.body["usage"]["cost_msat"].as_u64() > Some(0), "{served:?}");
        }
        // It goes on when the node does: what is bought is in its ledger.
        place.succeed("a", &["restart", "3"]);
    });
    let again = place.nodes("a").into_iter().find(|node| node["sells"] == true).unwrap();
    let credential = customer.credential.take();
    customer = Customer::new(again["api_base"].as_str().unwrap(), PATIENCE).unwrap();
    customer.credential = credential;
    runtime().block_on(async {
        let mut served = customer.ask().await.unwrap();
        for _ in 0..100 {
            if served.status == 200 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            served = customer.ask().await.unwrap();
        }
        assert_eq!(served.status, 200, "{served:?}");

        let mut shown = account(&customer).await;
        for _ in 0..100 {
            if shown["reserved_msat"] == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            shown = account(&customer).await;
        }
        let (free, spent) = (shown["free_msat"].as_u64().unwrap(), shown["spent_msat"].as_u64().unwrap());
        assert_eq!(free + spent, 1_000_000, "{shown}");
        assert!(spent > 0);
        let refund = json!({"msat": shown["refundable_msat"]});
        let invoice = payer.order("wallet_invoice", refund).await;
        let body = json!({"invoice": invoice["invoice"]});
        let refunded = customer.call("POST", "/account/refund", Some(&body)).await.unwrap();
        assert_eq!((refunded.status, &refunded.body["status"]), (200, &json!("paid")), "{refunded:?}");
        let left = account(&customer).await["free_msat"].as_u64().unwrap();
        let (amount, fee) = (&refunded.body["amount_msat"], &refunded.body["fee_msat"]);
        assert_eq!(left, free - amount.as_u64().unwrap() - fee.as_u64().unwrap());
        // The same invoice again is not paid again.
        let twice = customer.call("POST", "/account/refund", Some(&body)).await.unwrap();
        assert_eq!((twice.status, &twice.body["amount_msat"]), (200, amount), "{twice:?}");
        assert_eq!(account(&customer).await["free_msat"].as_u64(), Some(left));
    });
    place.succeed("a", &["books"]);
    place.succeed("a", &["down"]);
}

#[test]
fn chat_pays_within_its_limits_and_keeps_what_it_bought() {
    let place = Place::new();
    let script = r#"
        . "$SIMNET_DIR/env"
        data="$SIMNET_DIR/node-1/data"
        chat() {
            consortium-node chat --data-dir "$data" --url "$CONSORTIUM_PAID_BASE" --temperature 0 "$@" Hello
        }
        chat --max-tokens 8 && exit 10
        chat --max-tokens 8 --pay --max-sats 999 && exit 11
        set -e
        chat --max-tokens 8 --pay --max-sats 1100
        stat -c %a "$data/l402.json"
        preimage=$(sed -n 's/.*"preimage": "\([0-9a-f]*\)".*/\1/p' "$data/l402.json")
        test ${#preimage} = 64
        chat --max-tokens 8 --pay --max-sats 1
        chat --max-tokens 8 --pay --max-sats 1 --max-per-message 100
        token=$(consortium-node key list --data-dir "$SIMNET_DIR/node-3/data" | grep L402 | cut -d' ' -f1)
        consortium-node key revoke --data-dir "$SIMNET_DIR/node-3/data" "$token"
        set +e
        chat --max-tokens 8 --pay --max-sats 1 && exit 12
        # What opens the credit is in no log, of either side.
        grep -l "$preimage" "$SIMNET_DIR"/node-*/log && exit 13
        grep -c . "$SIMNET_DIR"/node-3/log
    "#;
    let output = place.run("a", &["up", "3", "--l402", "--exec", script]);
    assert!(output.status.success(), "{}", text(&output));
    let said = String::from_utf8(output.stderr).unwrap();
    for words in [
        "with --pay the wallet of this machine's node pays for it",
        "the gateway asks for 1000 sat, and of what may be paid (--max-sats) 999 sat are left",
        "[paid 1000 sat for credit",
        "of credit left",
        "the credential was revoked",
    ] {
        assert!(said.contains(words), "`{words}` in {said}");
    }
    assert_eq!(said.matches("[paid ").count(), 1, "{said}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.lines().any(|line| line == "600"), "{stdout}");
}
