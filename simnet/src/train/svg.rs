//! The picture of a run.

use anyhow::Result;
use consortium_node::training::curve::{Panel, panels};

use super::baselines::Curve;
use super::report::{PeerRound, RoundReport};

/// Draws held-out loss of the run and its baselines, and of every peer the score, rating and balance over the rounds.
///
/// # Errors
/// When nothing was played.
pub fn document(title: &str, rounds: &[RoundReport], curves: &[Curve]) -> Result<String> {
    let of_peers = |value: fn(&PeerRound) -> Option<f64>| {
        let names = rounds.first().map(|round| round.peers.iter().map(|p| p.peer.clone()).collect::<Vec<_>>());
        let series = |(index, name): (usize, String)| {
            let points = rounds.iter().filter_map(|r| Some((r.round as f64 + 1.0, value(&r.peers[index])?)));
            (name, points.collect())
        };
        names.unwrap_or_default().into_iter().enumerate().map(series).collect::<Vec<(String, Vec<(f64, f64)>)>>()
    };
    let losses = curves
        .iter()
        .map(|curve| (curve.name.clone(), curve.points.iter().map(|(round, loss)| (*round as f64, *loss)).collect()));
    // What does harm goes far below zero; how far does not matter.
    let score = |p: &PeerRound| p.score.map(|s| s.max(-0.05) * 100.0);
    let all = [
        Panel { title: "held-out loss, nats per token".into(), series: losses.collect() },
        Panel { title: "score: held-out loss improved by, %".into(), series: of_peers(score) },
        Panel { title: "rating".into(), series: of_peers(|p| Some(p.rating)) },
        Panel { title: "balance, sat".into(), series: of_peers(|p| Some(p.balance_msat as f64 / 1000.0)) },
    ];
    Ok(panels(title, "round", &all)?)
}
