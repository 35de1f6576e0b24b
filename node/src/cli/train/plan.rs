//! What may be said of a run on the command line.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use consortium_protocol::NodeId;
use consortium_training::run::{ModelSize, Wishes};

/// Largest file with a plan, in bytes.
const MAX_PLAN: u64 = 64 * 1024;

/// A run. All of it has defaults, which go with the model.
#[derive(Args, Debug, Default)]
pub(super) struct PlanArgs {
    /// A TOML file that says what is not said here, by the same names with underscores (`local_steps = 30`); `data` is a list,
    /// instead of --validator and --reserve it has `validators` and `reserves`, and `budget_sat`, `base_sat`, `fee_sat`, `unit_sat`,
    /// `bond_sat`, `tokens_per_second`, `link_mbit`, `starts_at_ms`.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// What people call it [default: by its model].
    #[arg(long)]
    name: Option<String>,
    /// What is trained: nano (10 thousand parameters, for tests), small (99 thousand), tiny (2.3 million, tells stories)
    /// [default: tiny].
    #[arg(long, value_name = "SIZE")]
    model: Option<ModelSize>,
    /// Names initial parameters, and the corpus where there is no --data [default: 1].
    #[arg(long)]
    seed: Option<u64>,
    /// Text to train on, which everyone gets who joins; may be given several times. JSON lines where the name ends in .jsonl,
    /// .ndjson or .json: objects with `text`, or with `messages` as for chats; else plain text. UTF-8. One document in twenty is
    /// held out [default: stories that every node generates].
    #[arg(long, value_name = "FILE")]
    data: Vec<PathBuf>,
    /// Leave out lines of --data that cannot be read, and say how many [default: they are refused].
    #[arg(long)]
    skip_broken: bool,
    /// Rounds with training [default: nano 10, small 40, tiny 60].
    #[arg(long)]
    rounds: Option<u64>,
    /// Local steps of a round [default: nano 4, else 30].
    #[arg(long, value_name = "K")]
    local_steps: Option<u32>,
    /// Rows of a local step [default: nano 4, else 8].
    #[arg(long)]
    batch: Option<u32>,
    /// Tokens of a row [default: nano 48, small 64, tiny 128].
    #[arg(long)]
    sequence: Option<u32>,
    /// Highest inner learning rate [default: nano 0.01, small 0.004, tiny 0.0025].
    #[arg(long, value_name = "RATE")]
    inner_rate: Option<f64>,
    /// Rounds over which it rises to that [default: 2].
    #[arg(long, value_name = "ROUNDS")]
    warmup_rounds: Option<u32>,
    /// How fast peers train; measured here if it is not said. From this follow the deadlines of a round.
    #[arg(long, value_name = "TOKENS")]
    tokens_per_second: Option<f64>,
    /// How long a message between nodes takes, at most, as a rule [default: 1000; `local`: 250].
    #[arg(long, value_name = "MS")]
    latency_ms: Option<u64>,
}

/// What matters only where there are others.
#[derive(Args, Debug, Default)]
pub(super) struct SwarmArgs {
    /// Peers train on while a round is exchanged and judged, from parameters that are a round older: where updates are long on
    /// their way this saves up to half of the time; the first hundred rounds learn a little slower [default: they wait].
    #[arg(long)]
    overlap: bool,
    /// With fewer peers a round passes without training [default: 2].
    #[arg(long, value_name = "N")]
    least_peers: Option<u32>,
    /// More are turned away, 64 at most [default: 16].
    #[arg(long, value_name = "N")]
    most_peers: Option<u32>,
    /// Who judges, and does not train; up to nine [default: this node].
    #[arg(long = "validator", value_name = "PEER_ID")]
    validators: Vec<NodeId>,
    /// Who takes the place of a validator that is gone.
    #[arg(long = "reserve", value_name = "PEER_ID")]
    reserves: Vec<NodeId>,
    /// Validators that make a record certain [default: 1 of 1, 2 of 3, 3 of 4, 5 of 7].
    #[arg(long, value_name = "N")]
    quorum: Option<u32>,
    /// Longest that a message between validators takes; a smaller quorum than by default needs it.
    #[arg(long, value_name = "MS")]
    delta_ms: Option<u64>,
    /// How fast the slowest link is, in megabits a second [default: 10].
    #[arg(long, value_name = "MBIT")]
    link: Option<f64>,
    /// Most that all peers together get for a round, in sat [default: 0, nothing is paid].
    #[arg(long, value_name = "SAT")]
    budget: Option<u64>,
    /// What an update of quality 1 gets, in sat [default: a twentieth of the budget].
    #[arg(long, value_name = "SAT")]
    base: Option<u64>,
    /// What a refused update costs its peer, in sat [default: a fiftieth of the budget].
    #[arg(long, value_name = "SAT")]
    fee: Option<u64>,
    /// The smallest payment, in sat [default: 1, or 1000 where peers may earn a hundred times as much, or with --escrow].
    #[arg(long, value_name = "SAT")]
    unit: Option<u64>,
    /// Pay peers over Lightning alone, by escrows that validators judge; all need wallets, and this node a channel with each
    /// peer [default: on the tabs between this node and its peers].
    #[arg(long)]
    escrow: bool,
    /// What a peer pledges to a validator before it may join, in sat; it goes back, but for abuse that the log proves. Only
    /// with --escrow, in a run of 67 hours at most with all its deadlines [default: nothing].
    #[arg(long, value_name = "SAT")]
    bond: Option<u64>,
}

impl PlanArgs {
    #[cfg(test)]
    pub(super) fn of(model: &str, rounds: u64) -> Self {
        Self { model: Some(model.parse().unwrap()), rounds: Some(rounds), latency_ms: Some(1000), ..Self::default() }
    }

    #[cfg(test)]
    pub(super) fn on(self, text: &Path) -> Self {
        Self { data: vec![text.to_path_buf()], ..self }
    }

    /// What was said, here and in the file.
    ///
    /// # Errors
    /// When the file cannot be read, or says something that is not known.
    pub(super) fn wishes(self, swarm: SwarmArgs) -> Result<Wishes> {
        let file = self.plan.as_deref().map_or_else(|| Ok(Wishes::default()), read)?;
        let said = Wishes {
            name: self.name,
            model: self.model,
            seed: self.seed,
            data: self.data,
            skip_broken: self.skip_broken.then_some(true),
            rounds: self.rounds,
            local_steps: self.local_steps,
            batch: self.batch,
            sequence: self.sequence,
            inner_rate: self.inner_rate,
            warmup_rounds: self.warmup_rounds,
            tokens_per_second: self.tokens_per_second,
            latency_ms: self.latency_ms,
            overlap: swarm.overlap.then_some(true),
            least_peers: swarm.least_peers,
            most_peers: swarm.most_peers,
            validators: swarm.validators,
            reserves: swarm.reserves,
            quorum: swarm.quorum,
            delta_ms: swarm.delta_ms,
            link_mbit: swarm.link,
            budget_sat: swarm.budget,
            base_sat: swarm.base,
            fee_sat: swarm.fee,
            unit_sat: swarm.unit,
            escrow: swarm.escrow.then_some(true),
            bond_sat: swarm.bond,
            ..Wishes::default()
        };
        let mut wishes = said.or(file);
        for path in &mut wishes.data {
            // Another process reads it.
            *path = std::path::absolute(&path).context("there is no current directory")?;
            ensure!(path.to_str().is_some(), "{}: rename it, so that its name is UTF-8", path.display());
        }
        Ok(wishes)
    }
}

fn read(path: &Path) -> Result<Wishes> {
    let file = || format!("cannot read the plan in {}", path.display());
    let length = std::fs::metadata(path).with_context(file)?.len();
    ensure!(length <= MAX_PLAN, "{} is larger than a plan may be: {MAX_PLAN} bytes", path.display());
    let bytes = std::fs::read(path).with_context(file)?;
    let text = String::from_utf8(bytes).ok().with_context(|| format!("{} is not UTF-8 text", path.display()))?;
    toml::from_str(text.trim_start_matches('\u{feff}')).with_context(|| format!("{} is no plan", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(bytes: &[u8]) -> Result<Wishes> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run.toml");
        std::fs::write(&path, bytes).unwrap();
        let args = PlanArgs { plan: Some(path), rounds: Some(9), ..PlanArgs::default() };
        args.wishes(SwarmArgs { budget: Some(50), ..SwarmArgs::default() })
    }

    #[test]
    fn the_command_line_says_more_than_the_file() {
        let text = "model = \"small\"\nrounds = 4\nbudget_sat = 10\nlocal_steps = 8\n\
                    validators = [\"12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5\"]\n";
        for text in [text.to_owned(), format!("\u{feff}{text}"), text.replace('\n', "\r\n")] {
            let wishes = written(text.as_bytes()).unwrap();
            assert_eq!((wishes.model, wishes.rounds, wishes.local_steps), (Some(ModelSize::Small), Some(9), Some(8)));
            assert_eq!((wishes.budget_sat, wishes.validators.len()), (Some(50), 1));
        }
        assert_eq!(written(b"").unwrap().rounds, Some(9), "an empty file says nothing");
    }

    #[test]
    fn files_with_data_are_named_from_the_root_on() {
        let wishes = written(b"data = [\"a.jsonl\", \"/tmp/b.txt\"]\nskip_broken = true\n").unwrap();
        let here = std::env::current_dir().unwrap().join("a.jsonl");
        assert_eq!((wishes.data, wishes.skip_broken), (vec![here, "/tmp/b.txt".into()], Some(true)));
        let args = PlanArgs { data: vec!["c.txt".into()], ..PlanArgs::default() };
        let wishes = args.wishes(SwarmArgs::default()).unwrap();
        assert!(wishes.data[0].is_absolute() && wishes.skip_broken.is_none());
    }

    #[test]
    fn a_file_that_is_no_plan_is_refused_in_words() {
        let utf_16: Vec<u8> = "rounds = 4".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for (bytes, words) in [
            (&b"ronds = 4"[..], "ronds"),
            (b"rounds = \"many\"", "rounds"),
            (b"model = \"huge\"", "huge"),
            (b"rounds =", "no plan"),
            (b"rounds = 4\xff", "not UTF-8"),
            (&utf_16, "no plan"),
            (&[b'#'; 70_000], "larger than"),
        ] {
            let error = format!("{:#}", written(bytes).unwrap_err());
            assert!(error.contains(words), "{words}: {error}");
        }
        let args = PlanArgs { plan: Some("no-such-file.toml".into()), ..PlanArgs::default() };
        let error = args.wishes(SwarmArgs::default()).unwrap_err().to_string();
        assert!(error.contains("no-such-file.toml"), "{error}");
    }
}
