//! `simnet l402`: how long it takes to buy credit of the node that sells, and to be served for it.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use consortium_node::operator::OperatorToken;
use consortium_simnet::l402::Customer;
use serde_json::json;

use super::table::aligned;
use super::terminal::print;
use crate::bench::statistics::{median, quantile};
use crate::swarm::client::Client;
use crate::swarm::directory::SwarmDir;
use crate::swarm::record::{NodeRecord, read_nodes};

/// Time for one call.
const PATIENCE: Duration = Duration::from_secs(90);
/// Before the first that counts: the first payment after a start waits for two seconds in ldk-node.
const WARM_UP: u32 = 2;

/// Milliseconds of each part of a purchase.
#[derive(Default)]
struct Times {
    asked: Vec<f64>,
    paid: Vec<f64>,
    served: Vec<f64>,
    whole: Vec<f64>,
}

/// Buys `rounds` times, each time as somebody new, and prints how long it took.
pub(crate) async fn run(dir: &SwarmDir, rounds: u32, as_json: bool) -> Result<ExitCode> {
    let nodes = read_nodes(dir)?;
    let seller = nodes.iter().find(|node| node.sells).context("no node sells; start the swarm with `up --l402`")?;
    let payer = nodes.iter().find(|node| !node.sells && node.pid.is_some()).context("no other node runs")?;
    let mut times = Times::default();
    for round in 0..WARM_UP + rounds {
        let before = Instant::now();
        let parts = buy(seller, payer).await?;
        if round >= WARM_UP {
            let whole = before.elapsed();
            for (list, took) in [&mut times.asked, &mut times.paid, &mut times.served, &mut times.whole]
                .into_iter()
                .zip(parts.into_iter().chain([whole]))
            {
                list.push(took.as_secs_f64() * 1000.0);
            }
        }
    }
    print(&render(&times, rounds, as_json)?)?;
    Ok(ExitCode::SUCCESS)
}

/// One purchase: asked for payment, paid, served.
async fn buy(seller: &NodeRecord, payer: &NodeRecord) -> Result<[Duration; 3]> {
    let mut customer = Customer::new(&seller.api_base, PATIENCE)?;
    let began = Instant::now();
    let asked = customer.ask().await?;
    let challenge = asked.challenge().context("the node that sells does not ask for payment")?;
    let asked = Instant::now();
    let token = OperatorToken::read(&payer.data_dir).context("the paying node has no operator")?;
    let client = Client::new()?;
    let order = async |method: &str, params| client.rpc(&payer.api_base, method, params, Some(&token), PATIENCE).await;
    let paid = order("wallet_pay", json!({"invoice": challenge.invoice})).await.context("the payment failed")?;
    let receipt = order("wallet_receipt", json!({"hash": paid["hash"]})).await?;
    let preimage = receipt["preimage"].as_str().context("there is no receipt")?;
    let paid = Instant::now();
    customer.credential = Some(format!("L402 {}:{preimage}", challenge.macaroon));
    let served = customer.ask().await?;
    ensure!(served.status == 200, "after payment the node that sells answered {}", served.status);
    Ok([asked - began, paid - asked, paid.elapsed()])
}

fn render(times: &Times, rounds: u32, as_json: bool) -> Result<String> {
    let parts = [("402", &times.asked), ("payment", &times.paid), ("answer", &times.served), ("in all", &times.whole)];
    if as_json {
        let part = |values: &[f64]| json!({"median_ms": median(values), "p95_ms": quantile(values, 0.95)});
        let parts: serde_json::Map<_, _> =
            parts.iter().map(|(name, values)| ((*name).to_owned(), part(values))).collect();
        return Ok(serde_json::to_string_pretty(&json!({"rounds": rounds, "parts": parts}))? + "\n");
    }
    let mut rows = vec![[format!("{rounds} purchases"), "median ms".to_owned(), "p95 ms".to_owned()]];
    rows.extend(parts.iter().map(|(name, values)| {
        [(*name).to_owned(), format!("{:.0}", median(values)), format!("{:.0}", quantile(values, 0.95))]
    }));
    Ok(aligned(&rows))
}
