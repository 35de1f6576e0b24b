//! Pairs of measurements, and what they say together.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio::task::JoinSet;

use super::cpu;
use super::statistics::{median, quantile};
use crate::swarm::client::{Client, Question};

/// How long one answer may take.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(300);

/// A swarm to be measured.
#[derive(Clone, Debug)]
pub(crate) struct Contender {
    /// Base URL of its master.
    pub(crate) api_base: String,
    /// Name of its model.
    pub(crate) model: String,
    /// Processes of its nodes.
    pub(crate) pids: Vec<u32>,
}

/// What is asked of both.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) pairs: u32,
    pub(crate) tokens: u32,
    pub(crate) concurrency: u32,
    pub(crate) seed: u64,
}

/// One contender's share of one pair.
#[derive(Clone, Debug, PartialEq)]
struct Run {
    texts: Vec<String>,
    tokens_per_second: f64,
    cpu_per_token: Option<f64>,
}

/// One swarm against one node.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Comparison {
    /// Nodes of the swarm.
    pub(crate) nodes: usize,
    /// Median tokens per second of one node.
    pub(crate) one_tokens_per_second: f64,
    /// Median tokens per second of the swarm.
    pub(crate) swarm_tokens_per_second: f64,
    /// Median over the pairs of the swarm's speed by that of one node.
    pub(crate) ratio: f64,
    /// Tenth percentile of the ratios.
    pub(crate) ratio_p10: f64,
    /// Ninetieth percentile of the ratios.
    pub(crate) ratio_p90: f64,
    /// Median processor seconds per token of one node, where the system tells.
    pub(crate) one_cpu_seconds_per_token: Option<f64>,
    /// Median processor seconds per token of all nodes of the swarm together.
    pub(crate) swarm_cpu_seconds_per_token: Option<f64>,
}

/// Measures a swarm of `nodes` against one node.
///
/// # Errors
/// When a request fails, or the two answer differently.
pub(crate) async fn compare(
    client: &Client,
    one: &Contender,
    swarm: &Contender,
    nodes: usize,
    load: Load,
) -> Result<Comparison> {
    let mut ones = Vec::new();
    let mut swarms = Vec::new();
    // Pair 0 warms both up and is not counted.
    for pair in 0..=load.pairs {
        let (first, second) = if pair.is_multiple_of(2) { (one, swarm) } else { (swarm, one) };
        let first = run(client, first, pair, load).await?;
        let second = run(client, second, pair, load).await?;
        if first.texts != second.texts {
            bail!("one node and {nodes} answer differently in pair {pair}:\n  {:?}\n  {:?}", first.texts, second.texts);
        }
        if pair > 0 {
            let (of_one, of_swarm) = if pair.is_multiple_of(2) { (first, second) } else { (second, first) };
            ones.push(of_one);
            swarms.push(of_swarm);
        }
    }
    Ok(Comparison::of(nodes, &ones, &swarms))
}

/// Asks one contender, as many times at once as the load says, and waits for all answers.
async fn run(client: &Client, contender: &Contender, pair: u32, load: Load) -> Result<Run> {
    let mut requests = JoinSet::new();
    let cpu_before = cpu::seconds(&contender.pids);
    let started = Instant::now();
    for index in 0..load.concurrency {
        let (client, contender) = (client.clone(), contender.clone());
        let prompt = format!("Tell me something about the number {}.", pair * load.concurrency + index);
        requests.spawn(async move {
            let question = Question {
                model: &contender.model,
                prompt: &prompt,
                max_tokens: load.tokens,
                temperature: if (pair / 2).is_multiple_of(2) { 0.0 } else { 0.8 },
                seed: load.seed.wrapping_add(u64::from(pair)),
                ignore_eos: true,
            };
            let answer = client.complete(&contender.api_base, &question, TIMEOUT).await;
            (index, answer)
        });
    }
    let mut texts = vec![String::new(); requests.len()];
    let mut tokens = 0;
    while let Some(answer) = requests.join_next().await {
        let (index, answer) = answer?;
        let answer = answer?;
        tokens += answer.tokens;
        *texts.get_mut(index as usize).context("an answer to no question")? = answer.text;
    }
    let seconds = started.elapsed().as_secs_f64();
    if tokens == 0 {
        bail!("{} answers without a token", contender.api_base);
    }
    let cpu = cpu_before.zip(cpu::seconds(&contender.pids)).map(|(before, after)| after - before);
    Ok(Run { texts, tokens_per_second: tokens as f64 / seconds, cpu_per_token: cpu.map(|cpu| cpu / tokens as f64) })
}

impl Comparison {
    fn of(nodes: usize, ones: &[Run], swarms: &[Run]) -> Self {
        let speeds = |runs: &[Run]| runs.iter().map(|run| run.tokens_per_second).collect::<Vec<_>>();
        let cpu = |runs: &[Run]| {
            let costs: Option<Vec<f64>> = runs.iter().map(|run| run.cpu_per_token).collect();
            costs.map(|costs| median(&costs))
        };
        let ratios: Vec<f64> =
            ones.iter().zip(swarms).map(|(one, swarm)| swarm.tokens_per_second / one.tokens_per_second).collect();
        Self {
            nodes,
            one_tokens_per_second: median(&speeds(ones)),
            swarm_tokens_per_second: median(&speeds(swarms)),
            ratio: median(&ratios),
            ratio_p10: quantile(&ratios, 0.1),
            ratio_p90: quantile(&ratios, 0.9),
            one_cpu_seconds_per_token: cpu(ones),
            swarm_cpu_seconds_per_token: cpu(swarms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_paired() {
        let run =
            |speed: f64, cpu: Option<f64>| Run { texts: Vec::new(), tokens_per_second: speed, cpu_per_token: cpu };
        // The machine slows down half way: speeds differ, ratios do not.
        let ones = [run(100.0, Some(0.01)), run(50.0, Some(0.02)), run(50.0, Some(0.02))];
        let swarms = [run(90.0, Some(0.01)), run(45.0, None), run(45.0, Some(0.02))];
        let comparison = Comparison::of(4, &ones, &swarms);
        assert!((comparison.ratio - 0.9).abs() < 1e-9 && (comparison.ratio_p10 - 0.9).abs() < 1e-9);
        assert_eq!(comparison.one_cpu_seconds_per_token, Some(0.02));
        assert_eq!(comparison.swarm_cpu_seconds_per_token, None);
    }
}
