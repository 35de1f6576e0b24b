//! `simnet escrow`: bonds, a reward and tranches among three nodes of the swarm, each to its end.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use consortium_node::escrow::view::{EscrowView, EscrowsView, OneView, Phase};
use consortium_node::operator::OperatorToken;
use consortium_protocol::hash::Hash;
use serde_json::{Value, json};

use super::books;
use super::table::aligned;
use super::terminal::print;
use crate::swarm::client::Client;
use crate::swarm::directory::SwarmDir;
use crate::swarm::record::{NodeRecord, read_nodes};
use crate::swarm::settlement::sats;

/// Time for each step of an escrow.
const PATIENCE: Duration = Duration::from_secs(60);
const CALL: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// A node, by its operator.
struct Party {
    record: NodeRecord,
    token: String,
    client: Client,
}

/// Who takes part.
struct Three {
    sponsor: Party,
    worker: Party,
    validator: Party,
}

/// What is tried.
struct Case {
    name: &'static str,
    kind: &'static str,
    tranches: u8,
    unit_msat: u64,
    finding: &'static str,
    earned: u32,
}

const CASES: [Case; 4] = [
    Case { name: "bond, returned", kind: "bond", tranches: 1, unit_msat: 5_000_000, finding: "accepted", earned: 0 },
    Case { name: "bond, forfeited", kind: "bond", tranches: 1, unit_msat: 5_000_000, finding: "abuse", earned: 1 },
    Case { name: "reward", kind: "reward", tranches: 1, unit_msat: 10_000_000, finding: "accepted", earned: 1 },
    Case {
        name: "tranches, 5 of 7",
        kind: "tranches",
        tranches: 3,
        unit_msat: 2_000_000,
        finding: "accepted",
        earned: 5,
    },
];

/// How one went.
struct Outcome {
    name: &'static str,
    locked_msat: u64,
    paid_msat: u64,
    held: Duration,
    ended: Duration,
}

/// Runs each case to its end and prints how it went; fails when something is not as it was judged, or the books do not
/// add up.
pub(crate) async fn run(dir: &SwarmDir, as_json: bool) -> Result<ExitCode> {
    let three = Three::of(read_nodes(dir)?)?;
    let mut outcomes = Vec::new();
    for case in &CASES {
        outcomes.push(three.run(case).await.with_context(|| case.name.to_owned())?);
    }
    let findings = books::settle(dir, PATIENCE).await?;
    let text = match as_json {
        true => serde_json::to_string_pretty(&json!({"escrows": told(&outcomes), "books": findings}))? + "\n",
        false => format!("{}\n{}\n", table(&outcomes), books::render(&findings)),
    };
    print(&text)?;
    Ok(if findings.is_exact() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Three {
    /// The first three nodes that run: neighbours in the ring of channels.
    fn of(nodes: Vec<NodeRecord>) -> Result<Self> {
        let mut running = nodes.into_iter().filter(|node| node.pid.is_some());
        let mut next = || -> Result<Party> {
            let record = running.next().context("an escrow takes three nodes that run; start the swarm with `up 4`")?;
            let token = OperatorToken::read(&record.data_dir).context("a node has no operator")?;
            Ok(Party { record, token, client: Client::new()? })
        };
        Ok(Self { sponsor: next()?, worker: next()?, validator: next()? })
    }

    /// The parties of a case besides the validator: payer and payee.
    fn others(&self, case: &Case) -> Vec<&Party> {
        if case.kind == "bond" { vec![&self.worker] } else { vec![&self.sponsor, &self.worker] }
    }

    async fn run(&self, case: &Case) -> Result<Outcome> {
        let payer = if case.kind == "bond" { &self.worker } else { &self.sponsor };
        let payee = if case.kind == "bond" { &self.validator } else { &self.worker };
        let tranches = (case.kind == "tranches").then_some(case.tranches);
        let offer = json!({
            "kind": case.kind,
            "payer": payer.record.peer_id,
            "payee": payee.record.peer_id,
            "unit_msat": case.unit_msat,
            "tranches": tranches,
            "subject": Hash::of(case.name.as_bytes()),
        });
        let offered = self.validator.order("escrow_offer", offer).await?;
        let id = offered["escrow"].as_str().context("an offer without a name")?.to_owned();
        let began = Instant::now();
        for party in self.others(case) {
            party.wait_for_offer(&id).await?;
            party.order("escrow_agree", json!({"escrow": id})).await?;
        }
        self.validator.wait(&id, "is held", |escrow| escrow.state == Phase::Held).await?;
        let (held, began) = (began.elapsed(), Instant::now());
        let earned = (case.kind == "tranches").then_some(case.earned);
        let evidence = Hash::of(format!("evidence on {}", case.name).as_bytes());
        let verdict = json!({"escrow": id, "finding": case.finding, "earned": earned, "evidence": evidence});
        self.validator.order("escrow_judge", verdict).await?;
        let (locked_msat, paid_msat) =
            (case.unit_msat * ((1 << case.tranches) - 1), case.unit_msat * u64::from(case.earned));
        for party in self.others(case).into_iter().chain([&self.validator]) {
            let ended = party.wait(&id, "is over", |escrow| escrow.over).await?;
            ensure!(
                ended.paid.0 == paid_msat && ended.terms.total.0 == locked_msat,
                "{} says that {} of {} msat were paid",
                party.record.name,
                ended.paid.0,
                ended.terms.total.0
            );
        }
        Ok(Outcome { name: case.name, locked_msat, paid_msat, held, ended: began.elapsed() })
    }
}

impl Party {
    async fn order(&self, method: &str, params: Value) -> Result<Value> {
        let called = self.client.rpc(&self.record.api_base, method, params, Some(&self.token), CALL).await;
        called.with_context(|| format!("{}: {method}", self.record.name))
    }

    async fn wait_for_offer(&self, id: &str) -> Result<()> {
        let give_up = Instant::now() + PATIENCE;
        while Instant::now() < give_up {
            let view: EscrowsView = serde_json::from_value(self.order("escrows", json!({"limit": 1})).await?)?;
            if view.offers.iter().any(|offer| offer.terms.escrow.to_string() == id) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("{} was not offered it within {} s", self.record.name, PATIENCE.as_secs())
    }

    async fn wait(&self, id: &str, what: &str, is_so: impl Fn(&EscrowView) -> bool) -> Result<EscrowView> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let one: OneView = serde_json::from_value(self.order("escrow", json!({"escrow": id})).await?)?;
            if is_so(&one.escrow) {
                return Ok(one.escrow);
            }
            if Instant::now() >= give_up {
                let troubles: Vec<_> = one.escrow.trouble.iter().map(|trouble| trouble.why.as_str()).collect();
                let (name, state) = (&self.record.name, one.escrow.state);
                bail!("{name} does not find that it {what}, but {state:?}; {}", troubles.join("; "));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn table(outcomes: &[Outcome]) -> String {
    let header = ["escrow", "locked, sat", "paid, sat", "held after ms", "over after ms"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(outcomes.iter().map(|outcome| {
        [
            outcome.name.to_owned(),
            sats(outcome.locked_msat),
            sats(outcome.paid_msat),
            outcome.held.as_millis().to_string(),
            outcome.ended.as_millis().to_string(),
        ]
    }));
    aligned(&rows)
}

fn told(outcomes: &[Outcome]) -> Vec<Value> {
    let told = |outcome: &Outcome| {
        json!({
            "escrow": outcome.name,
            "locked_msat": outcome.locked_msat,
            "paid_msat": outcome.paid_msat,
            "held_ms": u64::try_from(outcome.held.as_millis()).unwrap_or(u64::MAX),
            "over_ms": u64::try_from(outcome.ended.as_millis()).unwrap_or(u64::MAX),
        })
    };
    outcomes.iter().map(told).collect()
}
