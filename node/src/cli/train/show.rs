//! Runs in words and tables.

use std::collections::BTreeMap;
use std::path::Path;

use consortium_protocol::NodeId;
use consortium_protocol::wire::train::{PayWay, RunSpec};
use consortium_training::dataset::Read;
use consortium_training::rounds::Wish;
use consortium_training::run::data::file_of;
use consortium_training::run::{Expected, examination_of};

use super::announce::Announced;
use crate::cli::terminal::{Align, printable, short_peer, table};
use crate::cli::units::{self, sats};
use crate::train::pause::{Balance, Standing};
use crate::train::view::{BondState, BondView, Exported, PeerLine, Phase, RoundLine, RunStatus, RunSummary};

const RUNS: [(&str, Align); 9] = [
    ("RUN", Align::Left),
    ("NAME", Align::Left),
    ("AUTHOR", Align::Left),
    ("PARAMETERS", Align::Right),
    ("ROUND", Align::Right),
    ("OF", Align::Right),
    ("PEERS", Align::Right),
    ("A ROUND PAYS", Align::Right),
    ("HERE", Align::Left),
];

/// The runs that a node knows.
pub(super) fn list(runs: &[RunSummary]) -> String {
    if runs.is_empty() {
        return "no run is known here: announce one with `consortium-node train announce`\n".to_owned();
    }
    let row = |run: &RunSummary| {
        vec![
            run.run.0.short(),
            printable(&run.name),
            short_peer(&run.author.to_string()),
            run.parameters.to_string(),
            run.round.to_string(),
            run.rounds.to_string(),
            run.peers.to_string(),
            if run.budget_msat == 0 { "-".to_owned() } else { sats(run.budget_msat.into()) },
            here(run),
        ]
    };
    table(&RUNS, &runs.iter().map(row).collect::<Vec<_>>())
}

/// What this node does in a run.
fn here(run: &RunSummary) -> String {
    match &run.coming {
        Some(coming) => {
            let share = coming.here as f64 * 100.0 / coming.bytes.max(1) as f64;
            format!("fetches the {}, {share:.0} %", printable(&coming.what))
        }
        None => run.wish.map_or("", wish).to_owned(),
    }
}

fn wish(wish: Wish) -> &'static str {
    match wish {
        Wish::Watch => "watches",
        Wish::Train => "trains",
        Wish::Validate => "judges",
    }
}

/// A run that was, or would be, announced.
pub(super) fn announced(announced: &Announced) -> String {
    let Announced { run, spec, expected } = announced;
    let head = match run {
        Some(run) => format!("{run}\n\n"),
        None => "not announced: a dry run\n\n".to_owned(),
    };
    format!("{head}{}", plan(spec, expected))
}

/// What a run is, and what to expect of it.
fn plan(spec: &RunSpec, expected: &Expected) -> String {
    let t = &spec.training;
    let ratio = expected.parameters as f64 * 4.0 / expected.update_bytes.max(1) as f64;
    let batches = examination_of(spec);
    let waiting = if t.overlap { "; peers train on while a round is judged" } else { "" };
    let (steps, batch, tokens) = (t.local_steps, t.batch, t.sequence);
    let rounds = format!("{} of {steps} steps of {batch} rows of {tokens} tokens{waiting}", spec.rounds);
    let pay = match spec.pay.budget.0 {
        0 => "nothing is paid".to_owned(),
        budget => format!(
            "at most {} a round and {} in all; quality 1 gets {}, a refused update costs {}; {}",
            sats(budget.into()),
            sats(expected.most_cost.0.into()),
            sats(spec.pay.base_rate.0.into()),
            sats(spec.pay.fee.0.into()),
            if spec.pay.way == PayWay::Escrow { "by escrows" } else { "on tabs" },
        ),
    };
    let bond = match spec.bond_delta().filter(|_| spec.has_bond()) {
        None => "none".to_owned(),
        Some(delta) => format!(
            "{} of each peer, locked with a validator for {delta} blocks at most; forfeited by abuse that the log proves",
            sats(spec.pay.bond.0.into())
        ),
    };
    let lines = [
        ("name", format!("{}: {}", spec.name, spec.model.name)),
        ("model", format!("{} parameters", expected.parameters)),
        ("data", data(spec, expected.read.as_ref())),
        ("rounds", rounds),
        (
            "a round",
            format!(
                "about {:.1} s where {} peers train {:.0} tokens/s each; its deadlines leave three times that",
                expected.round_seconds, spec.most_peers, expected.tokens_per_second
            ),
        ),
        ("an update", format!("{}, {ratio:.0}x less than the parameters in f32", units::bytes(expected.update_bytes))),
        ("peers", format!("{} to {}", spec.least_peers, spec.most_peers)),
        (
            "validators",
            format!(
                "{}, {} of whom make a record certain{}; an update is measured on {} rows, {:.1} % of its training",
                spec.validators.len(),
                spec.quorum,
                if spec.validators.len() > spec.quorum as usize { "" } else { ", so that none may be away" },
                batches.held_out * batches.held_out_rows + 2 * batches.own * batches.own_rows,
                100.0 * expected.validation_share
            ),
        ),
        ("pay", pay),
        ("bond", bond),
    ];
    lines.iter().map(|(name, value)| format!("{name:<11} {value}\n")).collect()
}

/// What a run is trained on, and what was left out of it.
fn data(spec: &RunSpec, read: Option<&Read>) -> String {
    let said = &spec.data;
    let Some((_, bytes)) = file_of(spec) else { return said.name.clone() };
    let mut text = format!(
        "{}: {} rows to train on, {} held out; {} that everyone gets",
        said.name,
        said.training_rows,
        said.held_out_rows,
        units::bytes(bytes)
    );
    if let Some(read) = read {
        text.push_str(&format!("; {} documents", read.documents));
        if let Some(first) = &read.first_skipped {
            text.push_str(&format!("; {} broken lines left out, the first is {first}", read.skipped));
        }
    }
    text
}

/// What was exported.
pub(super) fn exported(exported: &Exported, directory: &Path, model: bool) -> String {
    let to = directory.display();
    let mut text = format!("{to}: {} rounds, {} updates\n", exported.rounds, exported.updates);
    match (exported.initial, exported.missing) {
        (true, 0) => text.push_str(&format!("replay it with `consortium-node train replay {to} --losses`\n")),
        (true, _) => text.push_str(&format!("replay it with `consortium-node train replay {to}`\n")),
        (false, _) => text.push_str("without the initial parameters: only its log can be replayed\n"),
    }
    if model {
        text.push_str(&format!("serve the model with `consortium-node start --model {to}/model`\n"));
    }
    text
}

/// What goes on, in a word.
pub(super) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Waiting => "waiting",
        Phase::Training => "training",
        Phase::Committed => "committed",
        Phase::Scoring => "scoring",
        Phase::Settling => "settling",
        Phase::CatchingUp => "catching up",
        Phase::Ended => "ended",
    }
}

const ROUNDS: [(&str, Align); 8] = [
    ("ROUND", Align::Right),
    ("SECONDS", Align::Right),
    ("HELD-OUT", Align::Right),
    ("LET IN", Align::Right),
    ("BEST", Align::Right),
    ("PAID", Align::Right),
    ("MINE", Align::Right),
    ("", Align::Left),
];

/// A round in a line of a table.
fn row(line: &RoundLine, me: Option<NodeId>) -> Vec<String> {
    let accepted = |peer: &&PeerLine| peer.fate == "accepted";
    let best = line.peers.iter().filter(accepted).filter_map(|peer| peer.score).fold(f64::NAN, f64::max);
    let paid: i128 = line.peers.iter().map(|peer| i128::from(peer.pay_msat)).sum();
    let own = line.peers.iter().find(|peer| Some(peer.node) == me);
    let number = |value: f64, text: String| if value.is_nan() { "-".to_owned() } else { text };
    let remark = match (own, line.reverted) {
        (_, true) => "took back the round before".to_owned(),
        (Some(own), _) if own.fate != "accepted" => own.fate.clone(),
        _ => String::new(),
    };
    vec![
        line.round.to_string(),
        format!("{:.1}", line.seconds),
        line.held_out_loss.map_or("-".to_owned(), |loss| format!("{loss:.4}")),
        format!("{} of {}", line.peers.iter().filter(accepted).count(), line.peers.len()),
        number(best, format!("{:+.2} %", 100.0 * best)),
        sats(paid),
        own.map_or("-".to_owned(), |own| sats(net(own))),
        remark,
    ]
}

/// What a peer came out with, in millisatoshi.
pub(super) fn net(peer: &PeerLine) -> i128 {
    i128::from(peer.pay_msat) - i128::from(peer.fee_msat)
}

/// One round alone, as it is told while it is followed; with the part of a peer if one is looked at.
pub(super) fn line(line: &RoundLine, me: Option<NodeId>) -> String {
    let cells = row(line, me);
    let mine = me.map(|_| format!("  mine {}", cells[6])).unwrap_or_default();
    format!(
        "round {:>4}  {:>6} s  held-out {}  let in {}  best {}{mine}  {}",
        cells[0], cells[1], cells[2], cells[3], cells[4], cells[7]
    )
    .trim_end()
    .to_owned()
}

/// How a run goes.
pub(super) fn status(status: &RunStatus, me: NodeId) -> String {
    let run = &status.summary;
    let here = match status.pause {
        Some(standing) if standing.paused => "pauses",
        _ => run.wish.map_or("takes no part", wish),
    };
    let mut text = format!(
        "{}  {}\nround {}, {} of {} with training, {}; this node {here}{}\n",
        run.run.0.short(),
        printable(&run.name),
        run.round,
        run.trained,
        run.rounds,
        phase(status.phase),
        if status.in_sync { "" } else { ", and has not the newest parameters yet" },
    );
    if run.overlap {
        text.push_str("peers train on while a round is judged, from parameters a round older\n");
    }
    if let Some(standing) = &status.pause {
        text.push_str(&pause(standing));
    }
    if let Some(bond) = &status.bond {
        text.push_str(&format!("bond {}\n", self::bond(bond)));
    }
    if let Some(error) = &status.last_error {
        text.push_str(&format!("trouble: {}\n", printable(error)));
    }
    if !status.rounds.is_empty() {
        let rows: Vec<Vec<String>> = status.rounds.iter().map(|line| row(line, Some(me))).collect();
        text.push_str(&format!("\n{}", table(&ROUNDS, &rows)));
    }
    for (validator, rounds) in strayed(&status.rounds) {
        text.push_str(&format!("\n{}", astray(validator, rounds)));
    }
    if let Some(last) = status.rounds.iter().rev().find(|line| !line.peers.is_empty()) {
        text.push_str(&format!("\n{}", peers(last, me)));
    }
    text
}

/// In how many of these rounds each validator signed losses that are not those of most.
fn strayed(rounds: &[RoundLine]) -> BTreeMap<NodeId, u64> {
    let mut all = BTreeMap::new();
    for validator in rounds.iter().flat_map(|line| &line.strayed) {
        *all.entry(*validator).or_default() += 1;
    }
    all
}

/// Says of a validator that it signed such losses.
pub(super) fn astray(validator: NodeId, rounds: u64) -> String {
    let name = short_peer(&validator.to_string());
    format!("validator {name} signed losses in {rounds} rounds that are not those of most: the medians counted\n")
}

/// How a peer stands that trains only while that pays for its power.
fn pause(standing: &Standing) -> String {
    let of = |balance: &Balance, paid: &str, cost: &str| {
        let (pay, power) = balance.per_hour();
        format!("{} rounds {paid} {} an hour, and their power {cost} {}", balance.rounds, sats(pay), sats(power))
    };
    let reason = standing.reason.as_ref();
    let newest = standing.newest.as_ref().filter(|balance| balance.rounds > 0);
    let mut text = match (standing.paused, reason) {
        (true, Some(by)) => format!("paused since round {}: its last {}\n", standing.since, of(by, "paid", "cost")),
        (false, Some(by)) if by.rounds > 0 => {
            format!("back since round {}: the last {}\n", standing.since, of(by, "would have paid", "would have cost"))
        }
        (false, Some(_)) => format!("back since round {}: nobody else trained\n", standing.since),
        (_, None) => "trains while that pays for its power\n".to_owned(),
    };
    match (standing.paused, newest) {
        (true, Some(now)) => text.push_str(&format!(
            "since then the newest {}; it comes back when that is covered, after round {} at the earliest\n",
            of(now, "would have paid it", "would have cost"),
            standing.since.saturating_add(standing.stay)
        )),
        (false, Some(now)) => text.push_str(&format!("its newest {}\n", of(now, "paid", "cost"))),
        (_, None) if standing.milliwatts().is_none() => text.push_str("its power was not measured yet\n"),
        _ => {}
    }
    text
}

/// How this node's bond is doing.
fn bond(bond: &BondView) -> String {
    let amount = sats(bond.msat.into());
    let validator = bond.validator.map_or_else(|| "a validator".to_owned(), |id| short_peer(&id.to_string()));
    let mut text = match (bond.state, bond.deadline) {
        (BondState::Wanted, _) => format!("of {amount} is to be locked with {validator} first"),
        (BondState::Held, Some(deadline)) => {
            format!("of {amount} held by {validator}, up to block {deadline} at the latest")
        }
        (BondState::Held, None) => format!("of {amount} held by {validator}"),
        (BondState::Returned, _) => format!("of {amount} is back from {validator}"),
        (BondState::Forfeited, _) => {
            format!(
                "of {amount} forfeited to {validator}: no other is pledged in this run; see `consortium-node escrow list`"
            )
        }
    };
    if let Some(why) = &bond.why {
        text.push_str(&format!(": {}", printable(why)));
    }
    text
}

const PEERS: [(&str, Align); 6] = [
    ("PEER", Align::Left),
    ("SCORE", Align::Right),
    ("RATING", Align::Right),
    ("FATE", Align::Left),
    ("PAY", Align::Right),
    ("FEE", Align::Right),
];

/// The peers of a round.
fn peers(line: &RoundLine, me: NodeId) -> String {
    let row = |peer: &PeerLine| {
        let own = if peer.node == me { " (this node)" } else { "" };
        vec![
            format!("{}{own}", short_peer(&peer.node.to_string())),
            peer.score.map_or("-".to_owned(), |score| format!("{:+.2} %", 100.0 * score)),
            format!("{:.1}", peer.rating),
            peer.fate.clone(),
            sats(peer.pay_msat.into()),
            sats(peer.fee_msat.into()),
        ]
    };
    format!("round {}\n{}", line.round, table(&PEERS, &line.peers.iter().map(row).collect::<Vec<_>>()))
}

#[cfg(test)]
pub(super) mod tests {
    use consortium_protocol::wire::train::RunId;
    use consortium_protocol::{Hash, Msat, RootKey};

    use super::*;
    use crate::train::pause::Terms;
    use crate::train::view::Coming;

    fn id(n: u8) -> NodeId {
        RootKey::from_seed([n; 32]).node_id()
    }

    fn summary() -> RunSummary {
        RunSummary {
            run: RunId(Hash::of(b"run")),
            name: "a \x1b[31mrun".to_owned(),
            author: id(9),
            model: "consortium-nano".to_owned(),
            parameters: 9_000,
            starts_at_ms: 0,
            rounds: 10,
            overlap: false,
            peers: 2,
            validators: 1,
            budget_msat: 100_000,
            wish: Some(Wish::Train),
            round: 3,
            trained: 2,
            coming: None,
        }
    }

    pub(crate) fn sample() -> RunStatus {
        let peer = |n, fate: &str, score, pay_msat, fee_msat| PeerLine {
            node: id(n),
            score: Some(score),
            rating: 3.0,
            fate: fate.to_owned(),
            pay_msat,
            fee_msat,
        };
        let line = |round, peers| RoundLine {
            round,
            at_ms: round * 30_000,
            seconds: 30.0,
            held_out_loss: Some(5.0 - round as f64),
            reverted: false,
            strayed: Vec::new(),
            peers,
        };
        let first = vec![peer(1, "accepted", 0.02, 5_000, 0), peer(2, "harm", -0.01, 0, 2_000)];
        let second = vec![peer(1, "below-margin", 0.0, 0, 2_000), peer(2, "accepted", 0.01, 4_000, 0)];
        RunStatus { rounds: vec![line(2, first), line(3, second)], in_sync: true, ..RunStatus::new(summary()) }
    }

    #[test]
    fn a_status_tells_rounds_and_ones_own_part() {
        let shown = status(&sample(), id(1));
        for words in [
            "a [31mrun\nround 3, 2 of 10 with training, waiting; this node trains\n",
            "    2     30.0    3.0000  1 of 2  +2.00 %  5 sat   5 sat\n",
            "    3     30.0    2.0000  1 of 2  +1.00 %  4 sat  -2 sat  below-margin\n",
            "(this node)  +0.00 %     3.0  below-margin  0 sat  2 sat\n",
        ] {
            assert!(shown.contains(words), "{words:?} in\n{shown}");
        }
        assert!(!shown.contains("bond"), "the run wants none");
        assert!(!shown.contains("those of most"), "all validators agree");
        let mut liar = sample();
        liar.rounds[1].strayed = vec![id(8)];
        let named = format!("validator {} signed losses in 1 rounds", short_peer(&id(8).to_string()));
        assert!(status(&liar, id(1)).contains(&named));
        assert!(!shown.contains("train on while"), "peers wait in it");
        let mut overlapped = sample();
        overlapped.summary.overlap = true;
        assert!(status(&overlapped, id(1)).contains("this node trains\npeers train on while a round is judged"));
        let outside = line(&sample().rounds[0], Some(id(7)));
        assert_eq!(outside, "round    2    30.0 s  held-out 3.0000  let in 1 of 2  best +2.00 %  mine -");
    }

    #[test]
    fn a_status_tells_why_a_peer_pauses() {
        let balance = |pay_msat| Balance { rounds: 8, millis: 3_600_000, pay_msat, cost_msat: 9_000 };
        let terms = Terms { kwh_msat: Msat(150_000), milliwatts: Some(60_000) };
        let began = Standing::new(terms);
        let paused = Standing { paused: true, since: 30, reason: Some(balance(-2_000)), ..began };
        let told = |standing| status(&RunStatus { pause: Some(standing), ..sample() }, id(1));
        let shown = told(Standing { newest: Some(balance(5_000)), ..paused });
        for words in [
            "this node pauses\n",
            "paused since round 30: its last 8 rounds paid -2 sat an hour, and their power cost 9 sat\n",
            "the newest 8 rounds would have paid it 5 sat an hour, and their power would have cost 9 sat; it comes back \
             when that is covered, after round 38 at the earliest\n",
        ] {
            assert!(shown.contains(words), "{words:?} in\n{shown}");
        }
        let back = told(Standing { paused: false, reason: Some(balance(9_500)), ..paused });
        assert!(back.contains("trains\nback since round 30: the last 8 rounds would have paid 9.5 sat"), "{back}");
        assert!(told(began).contains("trains while that pays for its power\n"));
        let unknown = Standing::new(Terms { milliwatts: None, ..terms });
        assert!(told(unknown).contains("not measured yet"));
    }

    #[test]
    fn a_status_tells_how_ones_bond_is_doing() {
        let told = |state, deadline, why: Option<&str>| {
            let bond = BondView { state, msat: 5_000_000, validator: None, deadline, why: why.map(str::to_owned) };
            status(&RunStatus { bond: Some(bond), ..sample() }, id(1))
        };
        for (shown, words) in [
            (
                told(BondState::Wanted, None, Some("nobody answers")),
                "bond of 5000 sat is to be locked with a validator first: nobody answers\n",
            ),
            (told(BondState::Held, Some(812), None), "bond of 5000 sat held by a validator, up to block 812"),
            (told(BondState::Returned, None, None), "bond of 5000 sat is back from a validator\n"),
            (told(BondState::Forfeited, None, None), "bond of 5000 sat forfeited to a validator: no other"),
        ] {
            assert!(shown.contains(words), "{words:?} in\n{shown}");
        }
    }

    #[test]
    fn a_list_names_runs_and_says_how_to_begin_if_there_are_none() {
        let shown = list(&[summary()]);
        let words = format!("{}  a [31mrun  ", Hash::of(b"run").short());
        assert!(shown.contains(&words) && shown.contains("100 sat  trains"), "{shown}");
        let coming = Coming { what: "data".to_owned(), here: 3 << 20, bytes: 8 << 20 };
        let shown = list(&[RunSummary { coming: Some(coming), wish: None, ..summary() }]);
        assert!(shown.contains("100 sat  fetches the data, 38 %"), "{shown}");
        assert!(list(&[]).contains("train announce"));
    }

    #[test]
    fn an_export_says_what_can_be_replayed() {
        let all = Exported { rounds: 3, updates: 5, missing: 0, initial: true, held_round: Some(3) };
        let words = |exported: &Exported, model| self::exported(exported, Path::new("x"), model);
        assert!(
            words(&all, true)
                .contains("train replay x --losses`\nserve the model with `consortium-node start --model x/model")
        );
        assert!(!words(&Exported { missing: 1, ..all.clone() }, false).contains("--losses"));
        assert!(words(&Exported { initial: false, ..all }, false).contains("only its log"));
    }
}
