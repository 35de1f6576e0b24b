//! Measures SparseLoCo: size, error and speed of updates, beside the plain reference.
//!
//! ```text
//! cargo run --release -p consortium-training --example sparseloco_bench -- [--rounds N] [--steps N] [--quick]
//! ```
//! Trains `consortium-tiny` for a few rounds with error feedback, so that the values are a real optimiser's. Larger models
//! get blocks drawn from those tensors. Of the model with 0.5B parameters only parts are made and their sizes added up.
//! One thread; speeds are of `f32` parameters, four bytes each, per second of processor time where Linux tells it, so that
//! others at work on the machine do not count.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use candle_core::{DType, Device};
use consortium_training::corpus::Split;
use consortium_training::model::{Llama, LlamaConfig};
use consortium_training::optimizer::{AdamW, AdamWSettings, clip_global_norm};
use consortium_training::packing::{Batch, Source};
use consortium_training::sparseloco::{Layout, Update, aggregate, compress, median_norms, outer_step, reference};
use consortium_training::tokenizer::Tokenizer;
use consortium_training::trainer::gradients;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

type Tensors = Vec<Vec<f32>>;
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/consortium-tiny/model.safetensors");

fn main() -> Result<(), Box<dyn Error>> {
    let (mut rounds, mut steps, mut quick) = (4u64, 10u64, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--rounds" => rounds = value()?.parse()?,
            "--steps" => steps = value()?.parse()?,
            "--quick" => quick = true,
            _ => return Err(format!("unknown argument {flag}").into()),
        }
    }
    let config = LlamaConfig::tiny();
    let shapes: Vec<Vec<usize>> = config.parameters().into_iter().map(|p| p.1).collect();
    let source = Material { tensors: train(&config, &shapes, rounds, steps)?, shapes };
    sizes(&source, quick)?;
    speeds(&source, if quick { MODELS[1] } else { MODELS[2] })
}

/// Runs rounds of one peer; answers with the last accumulator, which is what is compressed.
fn train(config: &LlamaConfig, shapes: &[Vec<usize>], rounds: u64, steps: u64) -> Result<Tensors, Box<dyn Error>> {
    let tokenizer = Tokenizer::train(1, 8_000, config.vocab_size)?;
    let saved = candle_core::safetensors::load(MODEL, &Device::Cpu)?;
    let read = |(name, _): &(String, _)| -> Result<Vec<f32>, Box<dyn Error>> {
        let tensor = saved.get(name).ok_or_else(|| format!("{name} is missing"))?;
        Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    };
    let mut parameters = config.parameters().iter().map(read).collect::<Result<Tensors, _>>()?;
    let layout = Layout::new(shapes)?;
    let mut adam = AdamW::new(AdamWSettings::default(), &parameters.iter().map(Vec::len).collect::<Vec<_>>());
    let (mut feedback, mut accumulated, mut row) = (layout.zeros(), layout.zeros(), 1_000_000);
    println!("consortium-tiny, {} parameters, {} tensors, {steps} steps a round", layout.parameters(), shapes.len());
    println!("round    loss   bytes  vs f32 vs bf16  index  codes   error | reference: codes  error");
    for round in 1..=rounds {
        let (model, mut loss) = (Llama::from_values(config, parameters.clone())?, 0.0);
        for _ in 0..steps {
            let source = Source { seed: 1, split: Split::Train, length: 256, long: false };
            let batch = Batch::draw(&tokenizer, source, row, 4)?;
            row += 4;
            let (batch_loss, mut grads) = gradients(&model, &batch, 2)?;
            loss += batch_loss / steps as f32;
            clip_global_norm(&mut grads, 1.0);
            adam.step(model.vars(), &grads, 2e-4)?;
        }
        let delta = difference(&parameters, &model.values()?);
        accumulated = feedback.iter().zip(&delta).map(|(e, d)| reference::accumulate(e, d)).collect();
        let update = Update::read(&layout, compress(&layout, &mut feedback, &delta)?)?;
        print!("{round:>5} {loss:>7.4} ");
        report(&layout, shapes, &update, &accumulated);
        let mut mean = layout.zeros();
        aggregate(&layout, &[&update], &update.norms(), &mut mean)?;
        outer_step(&layout, &mut parameters, &mean)?;
    }
    Ok(accumulated)
}

fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> Tensors {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a - b).collect()).collect()
}

/// Prints size, bits and errors of an update of `accumulated`, errors as parts of the energy of what is kept. The bits of
/// indices are the bound; all else, headers and the loss of coding too, counts as codes.
fn report(layout: &Layout, shapes: &[Vec<usize>], update: &Update, accumulated: &[Vec<f32>]) {
    let mut kept: Vec<Vec<(f32, f32)>> = vec![Vec::new(); accumulated.len()];
    update.for_each(|tensor, element, value| kept[tensor].push((accumulated[tensor][element], value)));
    let (mut energy, mut error, mut plain_error, mut plain_bits) = (0.0, 0.0, 0.0, 0.0);
    let square = |x: f64| x * x;
    for tensor in &kept {
        energy += tensor.iter().map(|(a, _)| square(f64::from(*a))).sum::<f64>();
        error += tensor.iter().map(|(a, d)| square(f64::from(*a) - f64::from(*d))).sum::<f64>();
        let values: Vec<f32> = tensor.iter().map(|t| t.0).collect();
        let plain = reference::quantize(&values);
        plain_error += values.iter().zip(&plain).map(|(v, q)| square(f64::from(*v) - q.1)).sum::<f64>();
        for code in 0..4 {
            let count = plain.iter().filter(|q| q.0 == code).count() as f64;
            plain_bits += if count > 0.0 { count * (values.len() as f64 / count).log2() } else { 0.0 };
        }
    }
    let values = layout.kept() as f64;
    let (bytes, parameters) = (update.bytes().len() as f64, layout.parameters() as f64);
    let index: f64 = shapes.iter().flat_map(|s| reference::blocks(s)).map(|b| index_bits(b.len())).sum();
    let codes = (bytes * 8.0 - index) / values;
    println!(
        "{bytes:>7} {:>7.1} {:>7.1} {:>6.3} {codes:>6.3} {:>6.2} % | {:>16.3} {:>5.2} %",
        parameters * 4.0 / bytes,
        parameters * 2.0 / bytes,
        index / values,
        error / energy * 100.0,
        plain_bits / values,
        plain_error / energy * 100.0,
    );
}

/// log2 C(n, k) for a block of `size`.
fn index_bits(size: usize) -> f64 {
    let kept = size.div_ceil(64);
    (0..kept).map(|i| ((size - i) as f64 / (kept - i) as f64).log2()).sum()
}

/// Real tensors, from which blocks are drawn for larger ones.
struct Material {
    tensors: Tensors,
    shapes: Vec<Vec<usize>>,
}

impl Material {
    /// A tensor whose 64 x 64 tiles come from random places of random real ones of its kind: embeddings from the embedding,
    /// matrices from the layers' matrices, vectors from the norms.
    fn tensor(&self, shape: &[usize], embedding: bool, rng: &mut ChaCha8Rng) -> Vec<f32> {
        let [rows, columns] = *shape else {
            let norms: Vec<f32> =
                self.tensors.iter().zip(&self.shapes).filter(|t| t.1.len() == 1).flat_map(|t| t.0.clone()).collect();
            return (0..shape[0]).map(|_| norms[rng.random_range(0..norms.len())]).collect();
        };
        let fits = |s: &[usize]| s.len() == 2 && s[0] >= 64 && (s[0] > 1000) == embedding;
        let sources: Vec<usize> = (0..self.shapes.len()).filter(|i| fits(&self.shapes[*i])).collect();
        let mut values = vec![0.0; rows * columns];
        for top in (0..rows).step_by(64) {
            for left in (0..columns).step_by(64) {
                let source = sources[rng.random_range(0..sources.len())];
                let (shape, from) = (&self.shapes[source], &self.tensors[source]);
                let (y, x) = (rng.random_range(0..=shape[0] - 64), rng.random_range(0..=shape[1] - 64));
                let width = 64.min(columns - left);
                for row in 0..64.min(rows - top) {
                    let target = &mut values[(top + row) * columns + left..][..width];
                    target.copy_from_slice(&from[(y + row) * shape[1] + x..][..width]);
                }
            }
        }
        values
    }
}

/// The shape of a model of the Llama family with tied embeddings.
#[derive(Clone, Copy)]
struct Model {
    name: &'static str,
    vocabulary: usize,
    hidden: usize,
    inner: usize,
    keys: usize,
    layers: usize,
}

const MODELS: [Model; 4] = [
    Model { name: "0.5M", vocabulary: 1024, hidden: 64, inner: 176, keys: 32, layers: 8 },
    Model { name: "5M", vocabulary: 2048, hidden: 192, inner: 512, keys: 64, layers: 12 },
    Model { name: "100M", vocabulary: 32_000, hidden: 640, inner: 1728, keys: 160, layers: 18 },
    // Qwen2.5-0.5B, but for its few biases.
    Model { name: "0.5B", vocabulary: 151_936, hidden: 896, inner: 4864, keys: 128, layers: 24 },
];

impl Model {
    fn embedding(&self) -> Vec<Vec<usize>> {
        vec![vec![self.vocabulary, self.hidden], vec![self.hidden]]
    }

    fn layer(&self) -> Vec<Vec<usize>> {
        let (h, kv, ff) = (self.hidden, self.keys, self.inner);
        let matrices = [[h, h], [kv, h], [kv, h], [h, h], [ff, h], [ff, h], [h, ff]];
        matrices.map(|m| m.to_vec()).into_iter().chain([vec![h], vec![h]]).collect()
    }

    fn whole(&self) -> Vec<Vec<usize>> {
        self.embedding().into_iter().chain((0..self.layers).flat_map(|_| self.layer())).collect()
    }
}

fn made(source: &Material, shapes: &[Vec<usize>], seed: u64) -> Tensors {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    shapes.iter().enumerate().map(|(i, s)| source.tensor(s, i == 0, &mut rng)).collect()
}

fn compressed(shapes: &[Vec<usize>], delta: &[Vec<f32>]) -> Result<usize, Box<dyn Error>> {
    let layout = Layout::new(shapes)?;
    Ok(compress(&layout, &mut layout.zeros(), delta)?.len())
}

/// Prints whole messages of all models on both bases, beside 12-bit indices and two bits with five floats per tensor.
fn sizes(source: &Material, quick: bool) -> Result<(), Box<dyn Error>> {
    println!("\nmodel  parameters     bytes  vs f32 vs bf16 | reference: vs f32 vs bf16");
    for model in &MODELS[..if quick { 2 } else { 4 }] {
        let shapes = model.whole();
        let layout = Layout::new(&shapes)?;
        let bytes = if layout.parameters() > 200_000_000 {
            // Each part by itself, less the 20 bytes that a message has but once: an eighth of the embedding, two layers.
            let rows = model.vocabulary / 8;
            let embedding = [vec![rows, model.hidden]];
            let part = compressed(&embedding, &made(source, &embedding, 1))? - 20;
            let layers: Vec<_> = (0..2).flat_map(|_| model.layer()).collect();
            let mut values = made(source, &layers, 2);
            values[0] = made(source, &[vec![8, 8], layers[0].clone()], 3).remove(1);
            let pair = compressed(&layers, &values)? - 20;
            20 + part * 8 + pair * model.layers / 2
        } else {
            compressed(&shapes, &made(source, &shapes, 1))?
        };
        let (parameters, bytes) = (layout.parameters() as f64, bytes as f64);
        let plain = layout.kept() as f64 * 14.0 / 8.0 + 20.0 * shapes.len() as f64;
        println!(
            "{:<5} {parameters:>11} {bytes:>9} {:>7.1} {:>7.1} | {:>17.1} {:>7.1}",
            model.name,
            parameters * 4.0 / bytes,
            parameters * 2.0 / bytes,
            parameters * 4.0 / plain,
            parameters * 2.0 / plain,
        );
    }
    Ok(())
}

/// Measures one thread: by the processor time it got, elsewhere than on Linux by the clock.
struct Stopwatch {
    begun: Instant,
    used: Option<Duration>,
}

impl Stopwatch {
    fn start() -> Self {
        Self { begun: Instant::now(), used: processor_time() }
    }

    fn elapsed(&self) -> Duration {
        let used = self.used.zip(processor_time()).map(|(then, now)| now.saturating_sub(then));
        used.filter(|u| !u.is_zero()).unwrap_or_else(|| self.begun.elapsed())
    }
}

fn processor_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// The mean of three.
fn mean_time(mut run: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<Duration, Box<dyn Error>> {
    let watch = Stopwatch::start();
    for _ in 0..3 {
        run()?;
    }
    Ok(watch.elapsed() / 3)
}

fn speeds(source: &Material, model: Model) -> Result<(), Box<dyn Error>> {
    let shapes = model.whole();
    let layout = Layout::new(&shapes)?;
    let delta = made(source, &shapes, 1);
    let bytes = layout.parameters() as f64 * 4e-6;
    println!("\nspeed of one core, {} parameters, MB of f32 parameters per second", model.name);
    let line = |name: &str, times: f64, spent: Duration| {
        println!("{name:<34} {:>8.0}", times * bytes / spent.as_secs_f64());
    };
    let (mut feedback, mut message) = (layout.zeros(), Vec::new());
    let spent = mean_time(|| {
        message = compress(&layout, &mut feedback, &delta)?;
        Ok(())
    })?;
    line("compress", 1.0, spent);
    let update = Update::read(&layout, message.clone())?;
    let spent = mean_time(|| {
        black_box(Update::read(&layout, message.clone())?);
        Ok(())
    })?;
    line("read and check", 1.0, spent);
    let mut mean = layout.zeros();
    for peers in [1, 8, 20] {
        let all = vec![&update; peers];
        let spent = mean_time(|| {
            aggregate(&layout, &all, &median_norms(&layout, &all)?, &mut mean)?;
            Ok(())
        })?;
        line(&format!("decompress and aggregate {peers} updates"), peers as f64, spent);
    }
    plain_speeds(&layout, &shapes, &delta, &update, line);
    Ok(())
}

/// The same work by the reference, once.
fn plain_speeds(
    layout: &Layout,
    shapes: &[Vec<usize>],
    delta: &[Vec<f32>],
    update: &Update,
    line: impl Fn(&str, f64, Duration),
) {
    let watch = Stopwatch::start();
    for (values, shape) in delta.iter().zip(shapes) {
        let accumulated = reference::accumulate(values, values);
        let kept: Vec<f32> = reference::top_k(&accumulated, shape).into_iter().map(|e| accumulated[e]).collect();
        black_box(reference::quantize(&kept));
    }
    line("reference: select and quantise", 1.0, watch.elapsed());
    let watch = Stopwatch::start();
    let mut sum = layout.zeros();
    for _ in 0..2 {
        let mut dense = layout.zeros();
        update.for_each(|tensor, element, value| dense[tensor][element] = value);
        sum.iter_mut().flatten().zip(dense.iter().flatten()).for_each(|(s, d)| *s += d);
    }
    black_box(sum);
    line("dense decode, then add, 2 updates", 2.0, watch.elapsed());
}
