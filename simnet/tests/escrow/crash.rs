//! The crash matrix: a party is killed before and after each of its steps, and started again.
//!
//! The party is a process of its own (this test program, with a job in its environment) that kills itself with SIGKILL at
//! a step; the others live in the test's process and go on meanwhile. A first run without a crash tells the steps. After
//! each cell every party's side has ended as it was judged, and every wallet has what it must have, to the millisatoshi.
//!
//! LDK writes the state of a channel first, and moments later what it knows of all channels. If it is killed in between,
//! it closes the channel by force at its next start, and what was locked in it ends on-chain. Such a cell is shown as
//! `on-chain`: blocks are mined until every side has ended, payer and payee must agree on what was paid, nothing may be
//! paid that was not earned, and the next cell begins on a new chain.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use consortium_node::ledger::escrow::driver::{Observer, Step};
use consortium_node::ledger::escrow::limits::Consent;
use consortium_node::ledger::escrow::{Action, State};
use consortium_protocol::wire::escrow::{EscrowId, EscrowKind};
use consortium_protocol::{Hash, Msat};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::process::Command;

use super::money::{holding, holdings};
use super::party::{NAMES, Party, Three, UNIT, finding, id, name_of};
use super::support::{PATIENCE, Town, settings_at, until};

/// The job of a child is in this variable.
const JOB: &str = "CONSORTIUM_ESCROW_CHILD";
/// A child has ended, one way or the other, after this time.
const CHILD: Duration = Duration::from_secs(150);

/// How an escrow is meant to end.
#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    kind: EscrowKind,
    tranches: u8,
    earned: u32,
}

const SCENARIOS: [Scenario; 5] = [
    Scenario { name: "bond given back", kind: EscrowKind::Bond, tranches: 1, earned: 0 },
    Scenario { name: "bond taken", kind: EscrowKind::Bond, tranches: 1, earned: 1 },
    Scenario { name: "reward earned", kind: EscrowKind::Reward, tranches: 1, earned: 1 },
    Scenario { name: "reward missed", kind: EscrowKind::Reward, tranches: 1, earned: 0 },
    Scenario { name: "tranches, 2 of 3", kind: EscrowKind::Tranches, tranches: 2, earned: 0b10 },
];

impl Scenario {
    fn parties(self) -> &'static [&'static str] {
        if self.kind == EscrowKind::Bond { &NAMES[1..] } else { &NAMES }
    }

    fn ends(self) -> Vec<State> {
        let earned = |tranche: u8| self.earned >> tranche & 1 == 1;
        (0..self.tranches).map(|tranche| if earned(tranche) { State::Settled } else { State::Cancelled }).collect()
    }

    /// What each party has more or less in the end.
    fn changes(self) -> [i64; 3] {
        let moved = i64::try_from(UNIT.0).unwrap() * i64::from(self.earned);
        if self.kind == EscrowKind::Bond { [0, -moved, moved] } else { [-moved, moved, 0] }
    }
}

/// A step in a few words.
fn label(step: &Step) -> String {
    let words = |action: &Action| match action {
        Action::Tell { to, word } => {
            let word = format!("{word:?}");
            format!("telling the {}: {}", name_of(*to), word.split(' ').next().unwrap())
        }
        other => format!("{other:?}").replace(" { tranche: ", " ").replace(" }", ""),
    };
    let label = match step {
        Step::Persist(names) => format!("before noting {}", names.join(", ")),
        Step::Persisted(names) => format!("after noting {}", names.join(", ")),
        Step::Do(action) => format!("before {}", words(action)),
        Step::Done(action) => format!("after {}", words(action)),
    };
    NAMES.iter().fold(label, |label, name| label.replace(&id(name).to_string(), &format!("the {name}")))
}

/// The escrow of a cell, once somebody knows its name.
fn named(town: &Path, cell: &str) -> Option<EscrowId> {
    std::fs::read_to_string(town.join(format!("cell-{cell}"))).ok()?.parse().ok()
}

/// What the validator does: it offers once, and judges once all is held.
async fn validate(party: &Party, town: &Path, cell: &str, scenario: Scenario) -> EscrowId {
    let subject = Hash::of(cell.as_bytes());
    let begun = party.escrows.unfinished().await;
    let begun = begun.iter().find(|(_, escrow)| escrow.terms().payload().subject == subject).map(|(id, _)| *id);
    let id = match begun.or_else(|| named(town, cell)) {
        Some(id) => id,
        None => {
            let offer = super::party::offer(scenario.kind, scenario.tranches, UNIT);
            let offer = consortium_node::ledger::escrow::driver::Offer { subject, ..offer };
            party.escrows.offer(offer, Consent::default()).await.unwrap().payload().id
        }
    };
    std::fs::write(town.join("cell.new"), id.to_string()).unwrap();
    std::fs::rename(town.join("cell.new"), town.join(format!("cell-{cell}"))).unwrap();
    let is_held = |state: &State| matches!(state, State::Held { .. });
    let known = |states: &[State]| states.iter().all(is_held) || states.iter().any(|state| state.is_final());
    let judged = async || party.escrows.escrow(id).await.unwrap().verdict().is_some();
    if !judged().await {
        party.wait(id, "it is held, or is not going to be", |states| !states.is_empty() && known(states)).await;
    }
    let (finding, evidence) = (finding(scenario.kind, scenario.earned), Hash::of(b"evidence"));
    // What is not held, because a channel was closed, is not judged; how it ended is looked at in the end.
    if let Err(error) = party.escrows.judge(id, finding, scenario.earned, evidence).await {
        println!("not judged: {error}");
    }
    id
}

/// Waits until a party has nothing more to do in a cell's escrow, and gives how it ended.
async fn ended(party: &Party, town: &Path, cell: &str) -> Vec<State> {
    until("the escrow has a name", || async { named(town, cell).is_some() }).await;
    let id = named(town, cell).unwrap();
    until("this side has nothing more to do", || async {
        // In this order: it may be agreed to in between.
        let states = party.states(id).await;
        let open = party.escrows.unfinished().await.iter().any(|(open, _)| *open == id);
        !open && !states.is_empty() && states.iter().all(|state| state.is_final())
    })
    .await;
    party.states(id).await
}

/// The process that is killed; without a job it is not asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a part of the crash matrix, which starts it"]
async fn child() {
    let Ok(job) = std::env::var(JOB) else { return };
    let job: Value = serde_json::from_str(&job).unwrap();
    let text = |name: &str| job[name].as_str().unwrap().to_owned();
    let (town, role, cell) = (PathBuf::from(text("town")), text("role"), text("cell"));
    let scenario = SCENARIOS[usize::try_from(job["scenario"].as_u64().unwrap()).unwrap()];
    let party = Party::start(settings_at(&text("chain"), &role), &town, &role, Some(observer(&job))).await;
    let (wanted, channels) = (Msat(job["holding"].as_u64().unwrap()), job["channels"].as_u64().unwrap());
    let closed = town.join(format!("closed-{cell}"));
    let works = async {
        if role == "validator" {
            validate(&party, &town, &cell, scenario).await;
        }
        let states = ended(&party, &town, &cell).await;
        until(&format!("this wallet has {wanted}"), || async {
            closed.exists() || holding(&party.wallet).await == wanted
        })
        .await;
        std::fs::write(town.join("result.new"), serde_json::to_vec(&states).unwrap()).unwrap();
        std::fs::rename(town.join("result.new"), town.join(format!("result-{cell}"))).unwrap();
        // The others may need it to end what is on its way between them.
        let done = town.join(format!("done-{cell}"));
        until("the others are content", || async { done.exists() }).await;
    };
    let looks = async {
        loop {
            if (party.wallet.channels().await.unwrap().len() as u64) < channels {
                std::fs::write(&closed, "").unwrap();
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::select! {
        () = works => {}
        () = looks => unreachable!("it goes on for ever"),
    }
    party.stop().await;
}

/// Notes the steps, and dies at one.
fn observer(job: &Value) -> Observer {
    let dies_at = job["dies_at"].as_str().map(str::to_owned);
    let steps = job["steps"].as_str().map(PathBuf::from);
    let taken = Mutex::new(Vec::new());
    Arc::new(move |_, step| {
        let label = label(step);
        if dies_at.as_ref() == Some(&label) {
            kill(Pid::this(), Signal::SIGKILL).unwrap();
        }
        if let Some(steps) = &steps {
            let mut taken = taken.lock().unwrap();
            if !taken.contains(&label) {
                taken.push(label);
                std::fs::write(steps, serde_json::to_vec(&*taken).unwrap()).unwrap();
            }
        }
    })
}

/// How a cell went.
struct Cell {
    died: bool,
    closed: bool,
    /// Something was paid.
    paid: bool,
    /// The steps it took, if it did not die.
    steps: Vec<String>,
}

/// How many cells went how.
#[derive(Debug, Default)]
struct Row {
    cells: usize,
    killed: usize,
    on_chain: usize,
}

impl Row {
    fn add(&mut self, died: bool, closed: bool) {
        self.cells += 1;
        self.killed += usize::from(died);
        self.on_chain += usize::from(closed);
    }
}

/// Parties in this process, all but one.
struct Matrix {
    town: Town,
    place: PathBuf,
    parties: BTreeMap<&'static str, Party>,
    holdings: Vec<Msat>,
    cells: usize,
}

impl Matrix {
    async fn new() -> Self {
        let three = Three::new().await;
        let holdings = holdings(&three.wallets()).await;
        let Three { town, sponsor, worker, validator } = three;
        let place = town.directory("");
        let parties = BTreeMap::from([("sponsor", sponsor), ("worker", worker), ("validator", validator)]);
        Self { town, place, parties, holdings, cells: 0 }
    }

    /// Runs an escrow with a role in a process that dies at a step, if that is given, and is started again.
    async fn cell(&mut self, number: usize, role: &'static str, dies_at: Option<&str>) -> Cell {
        let scenario = SCENARIOS[number];
        self.cells += 1;
        let cell = self.cells.to_string();
        for (holding, change) in self.holdings.iter_mut().zip(scenario.changes()) {
            holding.0 = holding.0.checked_add_signed(change).unwrap();
        }
        let steps = self.place.join(format!("steps-{cell}"));
        let job = json!({
            "town": self.place, "chain": self.town.chain_url(), "role": role, "scenario": number, "cell": cell,
            "holding": self.holdings[place_of(role)].0, "channels": if role == "worker" { 2 } else { 1 },
            "steps": steps, "dies_at": dies_at,
        });
        let closed = AtomicBool::new(false);
        let both = async { tokio::join!(self.child(job), self.others(scenario, role, &cell)) };
        let (died, paid) = tokio::select! {
            both = both => both,
            () = self.mine_if_closed(&cell, &closed) => unreachable!("it goes on for ever"),
        };
        let closed = closed.into_inner() || self.is_closed(&cell).await;
        let steps = if died { Vec::new() } else { serde_json::from_slice(&std::fs::read(&steps).unwrap()).unwrap() };
        Cell { died, closed, steps, paid }
    }

    /// The party that is killed. Tells whether it was.
    async fn child(&self, mut job: Value) -> bool {
        let first = run(&self.place, &job).await;
        if first.success() {
            return false;
        }
        assert!(job["dies_at"].is_string() && killed(first), "{job}: {}", output(&self.place));
        let dies_at = std::mem::take(&mut job["dies_at"]);
        assert!(run(&self.place, &job).await.success(), "killed {dies_at}, {job}: {}", output(&self.place));
        true
    }

    /// The parties that go on, and how it ended for all. Tells whether anything was paid.
    async fn others(&self, scenario: Scenario, role: &'static str, cell: &str) -> bool {
        if role != "validator" {
            validate(&self.parties["validator"], &self.place, cell, scenario).await;
        }
        let mut sides = BTreeMap::new();
        for name in scenario.parties().iter().filter(|name| **name != role) {
            sides.insert(*name, ended(&self.parties[name], &self.place, cell).await);
        }
        let result = self.place.join(format!("result-{cell}"));
        until(&format!("the {role} has ended"), || async { result.exists() }).await;
        sides.insert(role, serde_json::from_slice(&std::fs::read(result).unwrap()).unwrap());
        if self.is_closed(cell).await {
            agreed(scenario, &sides);
        } else {
            self.all_right(cell, scenario, &sides).await;
        }
        std::fs::write(self.place.join(format!("done-{cell}")), "").unwrap();
        sides["worker"].contains(&State::Settled)
    }

    /// Whether a side sees that a channel is closed. The other may only learn it from the chain.
    async fn is_closed(&self, cell: &str) -> bool {
        if self.place.join(format!("closed-{cell}")).exists() {
            return true;
        }
        for (name, party) in &self.parties {
            let channels = party.wallet.channels().await.unwrap().len();
            if channels < if *name == "worker" { 2 } else { 1 } {
                return true;
            }
        }
        false
    }

    /// Once a channel is closed, time passes.
    async fn mine_if_closed(&self, cell: &str, closed: &AtomicBool) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if self.is_closed(cell).await {
                closed.store(true, Ordering::Relaxed);
                self.town.mine(10).await;
            }
        }
    }

    /// Every side ended as it was judged, and everybody has what they must.
    async fn all_right(&self, cell: &str, scenario: Scenario, sides: &BTreeMap<&str, Vec<State>>) {
        for (name, states) in sides {
            assert_eq!(*states, scenario.ends(), "the {name}");
        }
        for (name, party) in &self.parties {
            let wanted = self.holdings[place_of(name)];
            let has = async || {
                while holding(&party.wallet).await != wanted && !self.is_closed(cell).await {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            if tokio::time::timeout(PATIENCE, has()).await.is_err() {
                let (now, balances) = (holding(&party.wallet).await, party.wallet.balances().await.unwrap());
                let channels = party.wallet.channels().await.unwrap();
                panic!("the {name} has {now} and not {wanted}; {sides:?}; {balances:?}; {channels:?}");
            }
        }
    }

    /// Every step of a role in a scenario. What is after one thing is before the next, and tried once.
    async fn row(&mut self, number: usize, role: &'static str) -> Row {
        let begun = Instant::now();
        let steps = self.cell(number, role, None).await.steps;
        let mut row = Row::default();
        for (place, step) in steps.iter().enumerate() {
            let next = steps.get(place + 1);
            if step.starts_with("after") && next.is_some_and(|next| !next.starts_with("before noting")) {
                continue;
            }
            let cell = self.cell(number, role, Some(step)).await;
            let result = match (cell.died, cell.closed, cell.paid) {
                (false, ..) => "not reached",
                (true, false, _) => "killed, ended as judged",
                (true, true, true) => "killed, on-chain: paid",
                (true, true, false) => "killed, on-chain: back",
            };
            println!("{:18} {role:10} {step:46} {result}", SCENARIOS[number].name);
            row.add(cell.died, cell.closed);
            if cell.closed {
                self.anew(role).await;
            }
        }
        println!("{:18} {role:10} {row:?} in {:.0?}", SCENARIOS[number].name, begun.elapsed());
        row
    }

    /// On a new chain, with new channels.
    async fn anew(&mut self, without: &'static str) {
        let old = std::mem::replace(self, Self::new().await);
        old.stop().await;
        self.without(without).await;
    }

    /// Takes a role out of this process, for as long as another plays it.
    async fn without(&mut self, role: &'static str) {
        self.parties.remove(role).unwrap().stop().await;
    }

    async fn with(&mut self, role: &'static str) {
        let party = Party::start(self.town.settings(role), &self.place, role, None).await;
        self.parties.insert(role, party);
    }

    async fn stop(self) {
        for party in self.parties.into_values() {
            party.stop().await;
        }
    }
}

fn place_of(name: &str) -> usize {
    NAMES.iter().position(|other| *other == name).unwrap()
}

/// After a channel was closed: payer and payee agree, and nothing is paid that was not earned.
fn agreed(scenario: Scenario, sides: &BTreeMap<&str, Vec<State>>) {
    let settled = |name: &str| sides[name].iter().map(|state| *state == State::Settled).collect::<Vec<_>>();
    let (payer, payee) =
        if scenario.kind == EscrowKind::Bond { ("worker", "validator") } else { ("sponsor", "worker") };
    assert_eq!(settled(payer), settled(payee), "{sides:?}");
    for (paid, should) in settled(payee).into_iter().zip(scenario.ends()) {
        assert!(!paid || should == State::Settled, "{sides:?}");
    }
}

fn killed(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt as _;
    status.signal() == Some(9)
}

fn output(town: &Path) -> String {
    std::fs::read_to_string(town.join("child.log")).unwrap_or_default()
}

async fn run(town: &Path, job: &Value) -> ExitStatus {
    let log = std::fs::File::create(town.join("child.log")).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child", "--ignored", "--nocapture"])
        .env(JOB, job.to_string())
        .stdout(Stdio::from(log.try_clone().unwrap()))
        .stderr(Stdio::from(log))
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    tokio::time::timeout(CHILD, child.wait()).await.unwrap_or_else(|_| panic!("{}", output(town))).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_party_that_is_killed_goes_on_where_it_was() {
    let mut matrix = Matrix::new().await;
    for (role, step) in [
        ("worker", "before noting judged, unlocked 0, settling 0"),
        ("worker", "after noting judged, unlocked 0, settling 0"),
        ("sponsor", "before Pay 0"),
        ("validator", "after noting judged, settling 0"),
    ] {
        matrix.without(role).await;
        let cell = matrix.cell(2, role, Some(step)).await;
        assert!(cell.died && cell.paid, "the {role} was killed {step}");
        if cell.closed {
            matrix.anew(role).await;
        }
        matrix.with(role).await;
    }
    matrix.stop().await;
}

/// All rows of a role.
async fn rows(role: &'static str) {
    let mut matrix = Matrix::new().await;
    matrix.without(role).await;
    let mut all = Row::default();
    for number in (0..SCENARIOS.len()).filter(|number| SCENARIOS[*number].parties().contains(&role)) {
        let row = matrix.row(number, role).await;
        all.cells += row.cells;
        all.killed += row.killed;
        all.on_chain += row.on_chain;
    }
    println!("the {role}: {all:?}; all ended right");
    // A few steps are only taken when something is late.
    assert!(all.killed * 10 >= all.cells * 9, "{all:?}");
    matrix.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "many minutes"]
async fn matrix_of_the_sponsor() {
    rows("sponsor").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "many minutes"]
async fn matrix_of_the_worker() {
    rows("worker").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "many minutes"]
async fn matrix_of_the_validator() {
    rows("validator").await;
}
