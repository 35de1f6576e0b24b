//! Measures what validating an update costs, beside the training that it came from.
//!
//! ```text
//! RAYON_NUM_THREADS=1 cargo run --release -p consortium-training --example validation_bench -- [STEPS [BATCH]]
//! ```
//! With `consortium-tiny`, rows of 128 positions, by default 30 local steps of 8 rows. One thread; processor time where
//! Linux tells it, so that others at work on the machine do not count. Of the local steps two are taken and their time
//! multiplied.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::{Duration, Instant};

use consortium_training::collective::{
    Assignment, Data, Examination, Examiner, LocalRecipe, Parameters, Task, local_steps,
};
use consortium_training::corpus::Split;
use consortium_training::model::LlamaConfig;
use consortium_training::optimizer::{AdamW, AdamWSettings, Schedule};
use consortium_training::sparseloco::{Update, compress};
use consortium_training::tokenizer::Tokenizer;

/// Local steps that are taken.
const TAKEN: u64 = 2;
/// Updates that are examined.
const EXAMINED: u32 = 3;
const EXAMINATION: Examination = Examination { held_out: 3, held_out_rows: 4, own: 2, own_rows: 4 };

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let steps: u64 = arguments.next().map_or(Ok(30), |text| text.parse())?;
    let batch: usize = arguments.next().map_or(Ok(8), |text| text.parse())?;
    let recipe = LocalRecipe {
        data: Data::Stories { seed: 1, rows: 1 << 30 },
        length: 128,
        batch,
        steps: TAKEN,
        schedule: Schedule { peak: 1e-3, floor: 1e-4, warmup: 10, total: 1000 },
        adam: AdamWSettings::default(),
        clip: 1.0,
        parts: 1,
    };
    let config = LlamaConfig::tiny();
    let tokenizer = Tokenizer::train(1, 1000, config.vocab_size)?;
    let task = Task::new(config, recipe, tokenizer, None)?;
    let common = Parameters::fresh(&task, 1)?;
    let rows_each = task.recipe().rows_each();
    let assignment = Assignment::new(b"bench", 0, 1, rows_each, task.recipe().data.rows(Split::Train))?;
    let sizes: Vec<usize> = common.values().iter().map(Vec::len).collect();
    let mut adam = AdamW::new(task.recipe().adam, &sizes);

    let watch = Stopwatch::start();
    let run = local_steps(&task, &common, &mut adam, 0, &assignment.rows(0))?;
    let training = watch.elapsed() * u32::try_from(steps)? / u32::try_from(TAKEN)?;
    let message = compress(task.layout(), &mut task.layout().zeros(), &run.delta)?;

    let watch = Stopwatch::start();
    let examiner = Examiner::new(&task, EXAMINATION, &assignment, &common, [1; 32], 0)?;
    let once = watch.elapsed();
    let watch = Stopwatch::start();
    for _ in 0..EXAMINED {
        let update = Update::read(task.layout(), message.clone())?;
        examiner.examine(0, &update, &update.norms())?;
    }
    let each = watch.elapsed() / EXAMINED;

    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let rows = steps as usize * batch;
    println!("{} parameters, {steps} steps of {batch} rows of 128; {EXAMINATION:?}", task.layout().parameters());
    println!("training, a peer and round       {:>9.0} ms", milliseconds(training));
    println!("losses before, once a round      {:>9.0} ms", milliseconds(once));
    println!("an update: read, patch, examine  {:>9.0} ms", milliseconds(each));
    println!("share, by rows computed          {:>9.2} %", 100.0 * EXAMINATION.share(rows));
    for peers in [4u32, 8, 20, 100] {
        let spent = (once + each * peers).as_secs_f64();
        println!("share, measured, {peers:>3} peers       {:>9.2} %", 100.0 * spent / (training * peers).as_secs_f64());
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
