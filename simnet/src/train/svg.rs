//! The picture of a run.

use anyhow::Result;
use consortium_node::training::curve::{Panel, panels};

use super::curve::{Curve, Point};
use super::report::{PeerRound, RoundReport};

/// Draws held-out loss of the run and its baselines, by rounds and by time, and of every peer the score, how many of its updates were
/// let in, rating and balance over the rounds.
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
    let let_in = of_peers(|p| Some(f64::from(u8::from(p.accepted())))).into_iter().map(|(name, points)| {
        let sums = points.into_iter().scan(0.0, |sum, (round, accepted)| {
            *sum += accepted;
            Some((round, *sum))
        });
        (name, sums.collect::<Vec<_>>())
    });
    let let_in = let_in.collect::<Vec<_>>();
    let losses = |x: fn(&Point) -> f64| {
        let series = |curve: &Curve| (curve.name.clone(), curve.points.iter().map(|p| (x(p), p.loss)).collect());
        curves.iter().map(series).collect::<Vec<_>>()
    };
    // What does harm goes far below zero; how far does not matter.
    let score = |p: &PeerRound| p.score.map(|s| s.max(-0.05) * 100.0);
    let panel = |title: &str, x, series| Panel { title: title.into(), x, is_log: false, series };
    let loss = |title: &str, x, series| Panel { is_log: true, ..panel(title, x, series) };
    let all = [
        loss("held-out loss, nats per token", "round", losses(|p| p.round as f64)),
        loss("the same where each peer has a core and a link of its own", "seconds", losses(|p| p.seconds)),
        panel("score: held-out loss improved by, %", "round", of_peers(score)),
        panel("updates let in", "round", let_in),
        panel("rating", "round", of_peers(|p| Some(p.rating))),
        panel("balance, sat", "round", of_peers(|p| Some(p.balance_msat as f64 / 1000.0))),
    ];
    Ok(panels(title, &all)?)
}
