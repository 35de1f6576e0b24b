//! How much of a round is training: a model of a run from measured parts and links of given speeds.
//!
//! ```text
//! cargo run --release -p consortium-training --example utilisation -- [--minutes M] [--rows R] [--cores C]
//! ```
//! Measured here, on one core: the bytes that SparseLoCo makes of a parameter, and the time to compress, to read and to
//! aggregate one. Given: how long a peer trains in a round (`--minutes`), on how many rows (`--rows`: 30 steps of 192, for
//! the default), and the cores that it compresses with.
//!
//! A round is what `rounds` makes of it: train, compress, commit, exchange, measure, agree, aggregate. Every peer needs the
//! updates of all others. Where each part of a file is passed on by whoever has it, as nodes do, nothing is faster than the
//! slowest of these (Kumar and Ross, "Peer-assisted file distribution: the minimum distribution time", 2006): an update
//! leaves its peer once; all that is sent fits what all can send; all that is received fits each one's link. The model takes
//! 2.2 times that bound, as nodes were measured to take (`all_updates_reach_all_nodes_soon` in `node/src/blobs/tests.rs`), or what
//! it takes if every peer sends its update to all, and a tenth on top, if that is less. A validator measures each update with as
//! many passes as the default examination has, on a machine like a peer's, while the peers wait. Seeds are nodes that only pass
//! files on, at 2.5 Gb/s each: any node that watches a run (`train join --watch`) does.
//!
//! The last column is of runs with `overlap` (`train announce --overlap`), whose peers train on while that goes on: a round then
//! takes as long as the longer of training and compressing, and of all the rest, which other cores than those that train do.
//! What it costs in convergence is measured by `simnet train --overlap`.
//!
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::Instant;

use consortium_training::collective::Examination;
use consortium_training::sparseloco::{Layout, Update, aggregate, compress, median_norms};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// What is lost where every peer sends its update to all others: headers, and turns that are not used.
const SENT_BY_EACH: f64 = 1.1;
/// What is lost on the way to the bound of distribution where updates are passed on.
const PASSED_ON: f64 = 2.2;
/// Messages that follow each other: commitments, reveals, nonces, cards, proposal, votes, seals; and the time of each, in
/// seconds.
const MESSAGES: (f64, f64) = (7.0, 0.25);
/// The examination that runs have by default.
const EXAMINATION: Examination = Examination { held_out: 3, held_out_rows: 4, own: 2, own_rows: 4 };
/// What a node that only passes files on can send, in Mb/s.
const SEED: f64 = 2_500.0;

/// What one core does with a parameter.
struct Measured {
    /// Bytes of an update.
    bytes: f64,
    /// Seconds to compress.
    compress: f64,
    /// Seconds to read and aggregate one update.
    aggregate: f64,
}

/// A run.
struct Run {
    parameters: f64,
    peers: f64,
    /// Mb/s down and up.
    link: (f64, f64),
    /// What seeds add to what can be sent, in Mb/s.
    seeds: f64,
}

/// Seconds of a round.
struct Round {
    compress: f64,
    exchange: f64,
    measure: f64,
    agree: f64,
    aggregate: f64,
}

impl Round {
    fn idle(&self) -> f64 {
        self.compress + self.exchange + self.measure + self.agree + self.aggregate
    }

    /// The same where peers train on meanwhile: they compress, and wait for what takes longer than a round's training and that.
    fn idle_if_overlapped(&self, train: f64) -> f64 {
        (self.idle() - self.compress - train).max(self.compress)
    }
}

struct Setting {
    /// Seconds that a peer trains.
    train: f64,
    rows: f64,
    cores: f64,
}

impl Setting {
    fn round(&self, measured: &Measured, run: &Run) -> Round {
        let bits = run.parameters * measured.bytes * 8.0;
        let others = run.peers - 1.0;
        let (down, up) = (run.link.0 * 1e6, run.link.1 * 1e6);
        let all_up = run.peers * up + run.seeds * 1e6;
        // Seeds are sent all of it, too.
        let copies = run.peers * (others + run.seeds / SEED);
        let received = others * bits / down;
        let passed_on = (bits / up).max(received).max(copies * bits / all_up) * PASSED_ON;
        let exchange = (received.max(others * bits / up) * SENT_BY_EACH).min(passed_on);
        let measure = self.train * run.peers * EXAMINATION.passes() as f64 / (3.0 * self.rows);
        Round {
            compress: run.parameters * measured.compress / self.cores,
            exchange,
            measure,
            agree: MESSAGES.0 * MESSAGES.1,
            aggregate: run.parameters * run.peers * measured.aggregate / self.cores,
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut minutes, mut rows, mut cores) = (20.0_f64, 5760.0_f64, 16.0_f64);
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value: f64 = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?.parse()?;
        match flag.as_str() {
            "--minutes" => minutes = value,
            "--rows" => rows = value,
            "--cores" => cores = value,
            _ => return Err(format!("unknown argument {flag}").into()),
        }
    }
    if [minutes, rows, cores].iter().any(|value| !value.is_finite() || *value <= 0.0) {
        return Err("all values must be above zero".into());
    }
    let measured = measure()?;
    println!(
        "one core: {:.4} bytes for a parameter ({:.0}x against f32, {:.0}x against bf16), compresses {:.0} MB of f32 a second, reads \
         and aggregates {:.2} GB a second",
        measured.bytes,
        4.0 / measured.bytes,
        2.0 / measured.bytes,
        4e-6 / measured.compress,
        4e-9 / measured.aggregate
    );
    println!(
        "{minutes} min of training on {rows} rows a round, {cores} cores; seconds of a round that are no training\n"
    );
    println!(
        "parameters  peers  Mb/s down/up   seeds  compress  exchange  measure  agree  aggregate  utilisation  overlapped"
    );
    let setting = Setting { train: minutes * 60.0, rows, cores };
    for parameters in [0.5e9, 8e9, 72e9] {
        for peers in [4.0, 20.0, 100.0] {
            for (link, seeds) in
                [((110.0, 110.0), 0.0), ((500.0, 110.0), 0.0), ((500.0, 110.0), 4.0), ((500.0, 500.0), 0.0)]
            {
                let run = Run { parameters, peers, link, seeds: seeds * SEED };
                line(&setting, &measured, &run, seeds);
            }
        }
        println!();
    }
    Ok(())
}

fn line(setting: &Setting, measured: &Measured, run: &Run, seeds: f64) {
    let round = setting.round(measured, run);
    println!(
        "{:>8.1} B  {:>5}  {:>6} / {:<5}  {seeds:>5}  {:>8.1}  {:>8.1}  {:>7.1}  {:>5.1}  {:>9.1}  {:>9.1} %  {:>8.1} %",
        run.parameters / 1e9,
        run.peers,
        run.link.0,
        run.link.1,
        round.compress,
        round.exchange,
        round.measure,
        round.agree,
        round.aggregate,
        100.0 * setting.train / (setting.train + round.idle()),
        100.0 * setting.train / (setting.train + round.idle_if_overlapped(setting.train))
    );
}

/// Compresses and aggregates matrices of the width that such models have.
fn measure() -> Result<Measured, Box<dyn Error>> {
    const UPDATES: u8 = 4;
    let layout = Layout::new(&[vec![1024, 1024], vec![1024, 4096], vec![4096, 1024]])?;
    let parameters = layout.parameters() as f64;
    let (mut updates, mut compressing) = (Vec::new(), f64::INFINITY);
    for peer in 0..UPDATES {
        let mut rng = ChaCha8Rng::seed_from_u64(peer.into());
        let delta: Vec<Vec<f32>> =
            layout.zeros().iter().map(|t| t.iter().map(|_| normal(&mut rng)).collect()).collect();
        let mut feedback = layout.zeros();
        let begun = Instant::now();
        let message = compress(&layout, &mut feedback, &delta)?;
        compressing = compressing.min(begun.elapsed().as_secs_f64());
        updates.push(message);
    }
    let bytes = updates.iter().map(Vec::len).sum::<usize>() as f64 / f64::from(UPDATES);
    let mut aggregating = f64::INFINITY;
    for _ in 0..3 {
        let begun = Instant::now();
        let read = updates.iter().map(|m| Update::read(&layout, m.clone())).collect::<Result<Vec<_>, _>>()?;
        let all: Vec<&Update> = read.iter().collect();
        let mut mean = layout.zeros();
        aggregate(&layout, &all, &median_norms(&layout, &all)?, &mut mean)?;
        aggregating = aggregating.min(begun.elapsed().as_secs_f64());
    }
    Ok(Measured {
        bytes: bytes / parameters,
        compress: compressing / parameters,
        aggregate: aggregating / parameters / f64::from(UPDATES),
    })
}

/// By Box and Muller.
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let (radius, angle): (f32, f32) = (rng.random_range(f32::EPSILON..1.0), rng.random());
    (-2.0 * radius.ln()).sqrt() * (std::f32::consts::TAU * angle).cos()
}
