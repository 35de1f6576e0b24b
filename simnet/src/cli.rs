//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use consortium_node::cli::start::StartArgs;
use consortium_simnet::cheat::{Assignment, Cheat};
use consortium_simnet::train::cast::Cast;

/// Most blocks of one `mine` or `reorg`.
const MAX_BLOCKS: usize = 1_000;

/// A local swarm of real nodes, for people and for CI.
#[derive(Debug, Parser)]
#[command(name = "simnet", version, max_term_width = 110)]
pub(crate) struct Cli {
    /// Where the swarm lives; one directory holds one swarm.
    #[arg(long, global = true, env = "SIMNET_DIR", default_value = ".simnet", value_name = "DIR")]
    pub(crate) dir: PathBuf,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a swarm and stay with it until Ctrl-C or `simnet down`.
    Up(Up),
    /// Show every node of the running swarm.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show what nodes wrote, of a swarm that runs or of one that has ended.
    Logs {
        /// node-3, or just 3; all nodes when left out.
        node: Option<String>,
        /// Go on with what they write from now on.
        #[arg(short, long)]
        follow: bool,
        /// Lines of each node to begin with.
        #[arg(short = 'n', long, default_value_t = 20)]
        lines: usize,
    },
    /// Talk with the model, through a node that is not the master.
    Chat {
        /// What to say; a conversation when left out.
        message: Option<String>,
    },
    /// End a node without warning, as a power cut would.
    Kill(Node),
    /// End a node if it runs, and start it again on the same data.
    Restart(Node),
    /// Stop a node from running, without ending it.
    Pause(Node),
    /// Let a paused node run again.
    Unpause(Node),
    /// Add up the books of all nodes, and hold what each says that it owes another against what that one says.
    Books {
        /// Seconds to wait for nodes to tell each other what they owe, before they are found not to agree.
        #[arg(long, default_value = "60", value_name = "SECONDS", value_parser = seconds)]
        wait: Duration,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Mine until what was in closed channels is back in the wallets, and count: what the wallets were given, less the fees of
    /// their transactions, must be in wallets and channels.
    Coins {
        /// Seconds that it may take.
        #[arg(long, default_value = "300", value_name = "SECONDS", value_parser = seconds)]
        wait: Duration,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Chat with the running swarm while nodes are killed, frozen and started again at random; then check the books.
    Chaos(Chaos),
    /// Mine blocks on the swarm's chain.
    Mine {
        /// How many.
        #[arg(value_name = "N", default_value = "1", value_parser = blocks)]
        blocks: usize,
    },
    /// Replace the last blocks of the swarm's chain by one more: a reorganisation.
    Reorg {
        /// How many are replaced.
        #[arg(value_name = "N", default_value = "1", value_parser = blocks)]
        blocks: usize,
        /// Leave the transactions of the replaced blocks waiting, rather than in the first of the new ones.
        #[arg(long)]
        empty: bool,
    },
    /// Have three nodes of the running swarm lock bonds, a reward and tranches, judge them, and check amounts and books.
    Escrow {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Measure how long it takes to buy credit of the node that sells (`up --l402`), and to be served for it.
    L402 {
        /// How often it is bought.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        rounds: u32,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// End the swarm; its data and logs stay for `up --resume` and `logs`.
    Down,
    /// Compare the speed of a pipeline over several nodes with that of one.
    Bench(Bench),
    /// Measure what audits catch: honest work of every numeric class and every cheat, judged as a node would.
    AuditBench(AuditBench),
    /// Train a small model together with peers of all kinds, in this process: who is let in, and who earns what.
    Train(Train),
    /// Run a node whose worker is dishonest: what `up --cheat` starts.
    #[command(hide = true)]
    CheatingNode(Box<CheatingNode>),
    /// Run the command of `up --exec`, and end whatever it leaves behind.
    #[command(hide = true, name = "run-command")]
    Run { command: String },
}

/// One node of the swarm.
#[derive(Debug, Args)]
pub(crate) struct Node {
    /// node-3, or just 3, or master, or a PeerId.
    pub(crate) node: String,
}

/// What a swarm consists of.
#[derive(Clone, Debug, Args)]
pub(crate) struct Parts {
    /// Directory of the model that the swarm serves [default: the project's own consortium-tiny].
    #[arg(long, env = "SIMNET_MODEL", value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// The consortium-node to run [default: built by cargo where cargo started simnet, else the one beside simnet].
    #[arg(long, env = "CONSORTIUM_NODE_BINARY", value_name = "PATH")]
    pub(crate) node_binary: Option<PathBuf>,
    /// Seconds that a swarm may take to be ready.
    #[arg(long, default_value = "60", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

/// `simnet up`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Up {
    /// Number of nodes [default: 8, or with --resume as many as there were].
    #[arg(value_name = "N")]
    pub(crate) nodes: Option<usize>,
    /// Decides how much memory each node offers [default: 1]. (Nodes make their own keys: PeerIds differ each time.)
    #[arg(long, value_name = "S", conflicts_with = "resume")]
    pub(crate) seed: Option<u64>,
    /// Run CMD in a shell once the swarm is ready, then end the swarm and exit with CMD's code.
    #[arg(long, value_name = "CMD")]
    pub(crate) exec: Option<String>,
    /// Start the swarm again that --dir held before: same nodes, same data.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Make a node dishonest, as in node3=int8,node5=zeros@0.1: after @ the share of blocks of 32 positions in which it
    /// cheats. There are int8, int4, skip-layer, skip-attention, short-context, stale, smaller, zeros, noise, tokens, replay,
    /// inputs, copy, wrong-shard.
    #[arg(long, value_delimiter = ',', value_name = "NODE=CHEAT[@SHARE],...", conflicts_with = "resume")]
    pub(crate) cheat: Vec<Assignment>,
    /// No chain and no wallets.
    #[arg(long, conflicts_with_all = ["bitcoind", "resume", "l402"])]
    pub(crate) no_lightning: bool,
    /// The last node sells: its API asks for payment (CONSORTIUM_PAID_BASE). Takes 3 nodes or more.
    #[arg(long, conflicts_with = "resume")]
    pub(crate) l402: bool,
    /// The last K nodes have a wallet, but no coins, no channels and no address where it can be reached: they earn all
    /// the same.
    #[arg(long, value_name = "K", conflicts_with_all = ["no_lightning", "resume"])]
    pub(crate) newcomers: Option<usize>,
    /// Use this bitcoind, which must be on regtest, rather than simnet's own chain: http://USER:PASSWORD@HOST:PORT, or
    /// http://HOST:PORT with --bitcoind-cookie.
    #[arg(long, value_name = "URL", conflicts_with = "resume")]
    pub(crate) bitcoind: Option<String>,
    /// Read the credentials of --bitcoind from its cookie file.
    #[arg(long, value_name = "FILE", requires = "bitcoind")]
    pub(crate) bitcoind_cookie: Option<PathBuf>,
    /// Return once the swarm is ready, and leave it running until `simnet down`.
    #[arg(long, conflicts_with = "exec")]
    pub(crate) detach: bool,
    /// What `--detach` starts: the supervisor that stays.
    #[arg(long, hide = true)]
    pub(crate) in_background: bool,
    #[command(flatten)]
    pub(crate) parts: Parts,
}

/// `simnet chaos`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Chaos {
    /// Seconds of it.
    #[arg(long, default_value = "60", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) time: Duration,
    /// Chats at the same time.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) clients: u32,
    /// Seconds from one fault to the next, about.
    #[arg(long, default_value = "5", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) every: Duration,
    /// Seconds from one block to the next, where the swarm has a chain.
    #[arg(long, default_value = "15", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) blocks: Duration,
    /// Decides who suffers what, and who asks what.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

/// `simnet train`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Train {
    /// Who takes part, as in honest:4,poisoner. There are honest, mediocre, free-rider, plagiarist, late-plagiarist,
    /// poisoner, sleeper (honest until two thirds of the run, then a poisoner), stale, colluder (a pair).
    #[arg(long, value_name = "ROLE[:N],...", default_value = "honest:4,free-rider,plagiarist,poisoner,mediocre,stale")]
    pub(crate) peers: Cast,
    /// Rounds.
    #[arg(long, default_value_t = 30, value_name = "R", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) rounds: u64,
    /// Local steps of a round [default: 30].
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub(crate) steps: Option<u64>,
    /// Rows of a local step [default: 8].
    #[arg(long, value_name = "B", value_parser = rows)]
    pub(crate) batch: Option<usize>,
    /// Peak of the rate of local steps.
    #[arg(long, default_value_t = 4e-3, value_name = "RATE", value_parser = rate)]
    pub(crate) inner_rate: f64,
    /// What the rate of local steps falls to, as a part of its peak.
    #[arg(long, default_value_t = 0.1, value_name = "PART", value_parser = part)]
    pub(crate) final_part: f64,
    /// Peers train on while a round is exchanged and judged, from parameters that are a round older.
    #[arg(long)]
    pub(crate) overlap: bool,
    /// Decides first weights, data, examinations, and what characters draw.
    #[arg(long, default_value_t = 1, value_name = "S")]
    pub(crate) seed: u64,
    /// So many runs, with this seed and those after it.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) seeds: u32,
    /// Also train with the honest peers alone.
    #[arg(long)]
    pub(crate) alone: bool,
    /// Also train without compression, with as many peers as are honest.
    #[arg(long)]
    pub(crate) dense: bool,
    /// Also train by one AdamW with the tokens of the honest peers.
    #[arg(long)]
    pub(crate) single: bool,
    /// Print JSON lines.
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw losses, scores, ratings and balances of the first run to FILE.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// At the end run CMD in a shell, with all results as one JSON document on its standard input, and exit with CMD's code.
    #[arg(long, value_name = "CMD")]
    pub(crate) exec: Option<String>,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| *rate > 0.0 && *rate <= 1.0);
    rate.ok_or_else(|| "not a number above 0, of at most 1".to_owned())
}

fn part(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|part| (0.0..=1.0).contains(part)).ok_or_else(|| "not a number from 0 to 1".to_owned())
}

/// `simnet audit-bench`.
#[derive(Clone, Debug, Args)]
pub(crate) struct AuditBench {
    /// Directory of a model; may be repeated [default: the project's own consortium-tiny].
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Vec<PathBuf>,
    /// Judgements of honest blocks, at least, over all pairs of auditor's and auditee's class.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    pub(crate) blocks: usize,
    /// Decides prompts, seeds, and in which blocks selective cheats cheat.
    #[arg(long, default_value_t = 1, value_name = "S")]
    pub(crate) seed: u64,
    /// Judge by the thresholds in FILE [default: those compiled in].
    #[arg(long, value_name = "FILE")]
    pub(crate) thresholds: Option<PathBuf>,
    /// Also write the results to FILE as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Also draw the curves of detection against false positives into FILE.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Also write activations into DIR, for other schemes (scripts/compare_toploc).
    #[arg(long, value_name = "DIR")]
    pub(crate) activations: Option<PathBuf>,
}

/// `simnet cheating-node`.
#[derive(Debug, Args)]
pub(crate) struct CheatingNode {
    /// How it cheats.
    #[arg(long)]
    pub(crate) cheat: Cheat,
    /// As for `consortium-node`.
    #[arg(long)]
    pub(crate) data_dir: PathBuf,
    #[command(flatten)]
    pub(crate) start: StartArgs,
}

/// `simnet bench`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Bench {
    /// Numbers of nodes to compare with one.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8", value_name = "N,...")]
    pub(crate) stages: Vec<usize>,
    /// Pairs of measurements for each number.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) pairs: u32,
    /// Tokens of each completion.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) tokens: u32,
    /// Requests at the same time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) concurrency: u32,
    /// Decides how much memory each node offers, and what is sampled.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Also write the results to FILE as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) parts: Parts,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("say a number of seconds from 1 to 86400".to_owned()),
    }
}

fn rows(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(rows @ 1..=1024) => Ok(rows),
        _ => Err("say a number of rows from 1 to 1024".to_owned()),
    }
}

fn blocks(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(blocks @ 1..=MAX_BLOCKS) => Ok(blocks),
        _ => Err(format!("say a number of blocks from 1 to {MAX_BLOCKS}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn up_is_read() {
        let cli = Cli::parse_from(["simnet", "up", "4", "--exec", "true", "--dir", "/tmp/x", "--timeout", "9"]);
        assert_eq!(cli.dir, PathBuf::from("/tmp/x"));
        let Command::Up(up) = cli.command else { panic!("not up") };
        assert_eq!((up.nodes, up.exec.as_deref()), (Some(4), Some("true")));
        assert_eq!(up.parts.timeout, Duration::from_secs(9));
        let cli =
            Cli::parse_from(["simnet", "up", "8", "--cheat", "node3=int8,node5=zeros@0.1", "--cheat", "node6=copy"]);
        let Command::Up(up) = cli.command else { panic!("not up") };
        let cheats: Vec<String> = up.cheat.iter().map(ToString::to_string).collect();
        assert_eq!(cheats, ["node3=int8", "node5=zeros@0.1", "node6=copy"]);
        for wrong in [
            &["simnet", "up", "--cheat", "node3=int9"][..],
            &["simnet", "up", "--detach", "--exec", "x"],
            &["simnet", "up", "--timeout", "0"],
            &["simnet", "up", "--no-lightning", "--bitcoind", "http://a:b@127.0.0.1:18443"],
            &["simnet", "up", "--bitcoind-cookie", "x"],
            &["simnet", "mine", "0"],
            &["simnet", "reorg", "many"],
            &["simnet", "train", "--peers", "saint"],
            &["simnet", "train", "--batch", "0"],
        ] {
            assert!(Cli::try_parse_from(wrong).is_err());
        }
    }
}
