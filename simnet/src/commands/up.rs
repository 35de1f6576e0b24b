//! `simnet up`: the supervisor's life, from the first step to the last.

use std::fs::File;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tokio::time::MissedTickBehavior;

use super::callers::{Callers, End};
use super::exec::ExecCommand;
use super::signals::{StopSignals, exit_code};
use super::{next, table};
use crate::cli;
use crate::swarm::binary;
use crate::swarm::chain::ChainPlan;
use crate::swarm::control::{ControlSocket, Order, Reply};
use crate::swarm::directory::{DirLock, SwarmDir};
use crate::swarm::plan::{Plan, default_model};
use crate::swarm::steps::{Steps, Stream};
use crate::swarm::supervisor::Swarm;

/// Nodes of a swarm where nothing is said.
const NODES: usize = 8;

/// How often the nodes of a running swarm are looked after.
const LOOK: Duration = Duration::from_secs(1);

/// Time for a reply to leave through the tasks of this thread.
const FAREWELL: Duration = Duration::from_millis(20);

/// How a swarm's life went.
struct Life {
    end: End,
    /// Whether it was ever ready.
    ready: bool,
}

/// Starts the swarm, runs it, ends it.
pub(crate) async fn run(dir: SwarmDir, arguments: cli::Up) -> Result<ExitCode> {
    let steps = Steps::new(if arguments.exec.is_some() { Stream::Stderr } else { Stream::Stdout });
    let lock = dir.lock()?;
    let mut callers = Callers { control: ControlSocket::open(&dir)?, signals: StopSignals::new()? };
    let life = match callers.unless_ended(plan(&dir, &lock, &arguments, &steps)).await? {
        Ok(plan) => supervise(&dir, &arguments, plan, &mut callers, &steps).await,
        Err(end) => Some(Life { end, ready: false }),
    };
    let code = match life {
        Some(life) => life.end(arguments.exec.is_some()).await,
        None => 1,
    };
    // The next swarm may come as soon as the lock goes: its socket must not be taken for this one's.
    drop(callers);
    drop(lock);
    Ok(ExitCode::from(code))
}

impl Life {
    /// Tells whoever waits for the end, and returns the exit code.
    async fn end(self, with_command: bool) -> u8 {
        // A Ctrl-C or `down` is how a swarm that runs, and nothing else, is meant to be ended.
        let as_meant = self.ready && !with_command;
        match self.end {
            End::Command(code) => code,
            End::Signal(signal) if !as_meant => exit_code(signal),
            End::Signal(_) => 0,
            End::Down(reply) => {
                let _ = reply.send(Reply::Done("the swarm is down".to_owned()));
                tokio::time::sleep(FAREWELL).await;
                if as_meant { 0 } else { exit_code(Signal::SIGTERM as i32) }
            }
        }
    }
}

/// What the swarm is to be; whatever lay in its directory and is not to be resumed is gone afterwards.
async fn plan(dir: &SwarmDir, lock: &DirLock, arguments: &cli::Up, steps: &Steps) -> Result<Plan> {
    let cli::Parts { model, node_binary, .. } = &arguments.parts;
    if !arguments.resume {
        let model = model.clone().map_or_else(default_model, Ok)?;
        let binary = binary::find(node_binary.as_deref(), steps).await?;
        let nodes = arguments.nodes.unwrap_or(NODES);
        let mut plan =
            Plan::new(dir, nodes, arguments.seed.unwrap_or(1), &model, &binary)?.with_cheats(&arguments.cheat)?;
        plan = if arguments.l402 { plan.with_seller()? } else { plan };
        plan = plan.with_newcomers(arguments.newcomers.unwrap_or(0))?;
        dir.clear(lock)?;
        plan.chain = chain(dir, arguments)?;
        return Ok(plan);
    }
    let before = Plan::read(dir)?;
    if let Some(nodes) = arguments.nodes.filter(|nodes| *nodes != before.nodes()) {
        bail!("the swarm in {} has {} nodes, not {nodes}", dir.root().display(), before.nodes());
    }
    let binary = binary::find(node_binary.as_deref(), steps).await?;
    let model = model.as_ref().unwrap_or(&before.model);
    let mut plan = Plan::new(dir, before.nodes(), before.seed, model, &binary)?;
    plan.cheats = before.cheats;
    plan.newcomers = before.newcomers;
    plan.chain = before.chain;
    plan.seller = before.seller;
    Ok(plan)
}

/// The chain that the command line asks for.
fn chain(dir: &SwarmDir, arguments: &cli::Up) -> Result<ChainPlan> {
    match &arguments.bitcoind {
        Some(url) => ChainPlan::bitcoind(url, arguments.bitcoind_cookie.as_deref(), dir),
        None if arguments.no_lightning => Ok(ChainPlan::Off),
        None => Ok(ChainPlan::Embedded),
    }
}

/// Runs the swarm to its end and stops its nodes. None when it failed, which has been said by then.
async fn supervise(
    dir: &SwarmDir,
    arguments: &cli::Up,
    plan: Plan,
    callers: &mut Callers,
    steps: &Steps,
) -> Option<Life> {
    let life = match Swarm::new(dir.clone(), plan) {
        Ok(mut swarm) => {
            let life = live(&mut swarm, dir, arguments, callers, steps).await;
            if let Err(error) = &life {
                steps.fail(&format!("{error:#}"));
            }
            tokio::select! {
                () = swarm.stop(steps) => {}
                // Asked twice: dropping the nodes kills them.
                _ = callers.signals.next() => steps.say("killed what was left"),
            }
            life
        }
        Err(error) => {
            steps.fail(&format!("{error:#}"));
            Err(error)
        }
    };
    life.ok()
}

/// Brings the swarm up and serves until something ends it.
async fn live(
    swarm: &mut Swarm,
    dir: &SwarmDir,
    arguments: &cli::Up,
    callers: &mut Callers,
    steps: &Steps,
) -> Result<Life> {
    let access = match callers.unless_ended(swarm.bring_up(steps, arguments.parts.timeout)).await? {
        Ok(access) => access,
        Err(end) => return Ok(Life { end, ready: false }),
    };
    steps.say("ready");
    steps.line(&format!("\n{}\n", table::nodes(swarm.records())));
    let Some(command) = &arguments.exec else {
        steps.line(&next::steps(dir, &access, !arguments.in_background));
        if arguments.in_background {
            let log = File::create(dir.log_file()).context("cannot write simnet.log")?;
            nix::unistd::dup2_stdout(&log)?;
            nix::unistd::dup2_stderr(&log)?;
        }
        let end = serve(swarm, None, callers, steps).await?;
        return Ok(Life { end, ready: true });
    };
    let mut command = ExecCommand::start(command, &access, dir)?;
    let end = serve(swarm, Some(&mut command), callers, steps).await;
    command.stop().await?;
    Ok(Life { end: end?, ready: true })
}

/// Looks after the swarm until something ends it.
async fn serve(
    swarm: &mut Swarm,
    mut command: Option<&mut ExecCommand>,
    callers: &mut Callers,
    steps: &Steps,
) -> Result<End> {
    let Callers { control, signals } = callers;
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let command_ended = async {
            match &mut command {
                Some(command) => command.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            signal = signals.next() => return Ok(End::Signal(signal)),
            code = command_ended => return Ok(End::Command(code?)),
            _ = look.tick() => swarm.refresh(steps).await?,
            (order, reply) = control.next() => {
                if order == Order::Down {
                    return Ok(End::Down(reply));
                }
                tokio::select! {
                    signal = signals.next() => return Ok(End::Signal(signal)),
                    done = swarm.carry_out(&order) => {
                        let (Reply::Done(message) | Reply::Refused(message)) = &done;
                        if order != Order::Ping {
                            steps.say(message);
                        }
                        let _ = reply.send(done);
                    }
                }
            }
        }
    }
}
