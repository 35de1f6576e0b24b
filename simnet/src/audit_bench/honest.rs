//! Jobs, and honest work on them.

use anyhow::{Context, Result, ensure};
use consortium_node::inference::PREFILL_CHUNK;
use consortium_node::inference::audit::classes::available;
use consortium_node::inference::kv_cache::KvCache;
use consortium_node::inference::llama::{HeadRows, Shard, StageInput};
use consortium_node::inference::model_dir::ModelDir;
use consortium_node::inference::sampling::Sampler;
use consortium_node::inference::stage::HiddenStates;
use consortium_protocol::wire::audit::{BLOCK, NOT_DRAWN, NumericClass};
use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::wire::job::{JobId, Sampling};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::cheat::forge::floats;

/// Rows of a job, if the model has so many positions.
const ROWS: usize = 8 * BLOCK;
/// Stages that a model is cut into, if it has so many layers.
const STAGES: u16 = 3;
/// Drawn evenly from the vocabulary to begin a prompt with.
const OPENING: usize = 4;
/// Every so many jobs the prompt is one token over and over: repetition takes away the averaging over rows.
const REPETITIVE: usize = 8;

/// A model cut into stages, loaded once for each numeric class.
pub struct Bench {
    /// The model.
    pub dir: ModelDir,
    /// Its stages.
    pub ranges: Vec<LayerRange>,
    /// By class, in the order of [`available`], then by stage.
    pub shards: Vec<Vec<Shard>>,
}

/// A job to do.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// The prompt.
    pub prompt: Vec<u32>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Rows that the stages compute: the prompt's and those of all drawn tokens but the last.
    pub rows: usize,
}

/// Rows that are computed at once.
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    /// The first.
    pub first: usize,
    /// Behind the last.
    pub end: usize,
    /// Whether a token is drawn after the last.
    pub sample: bool,
}

/// Honest work on a job, every stage in the same class.
pub struct Work {
    /// The class.
    pub class: NumericClass,
    /// The token of each row.
    pub tokens: Vec<u32>,
    /// The token drawn after each row, or [`NOT_DRAWN`].
    pub drawn: Vec<u32>,
    /// Hidden states behind each stage, `[rows, width]`.
    pub outputs: Vec<Vec<f32>>,
}

impl Job {
    /// The steps of the job: the prompt in chunks, then row by row.
    pub fn chunks(&self) -> Vec<Chunk> {
        let prompt = self.prompt.len();
        let starts = (0..prompt).step_by(PREFILL_CHUNK);
        let mut chunks: Vec<Chunk> = starts
            .map(|first| {
                let end = prompt.min(first + PREFILL_CHUNK);
                Chunk { first, end, sample: end == prompt }
            })
            .collect();
        chunks.extend((prompt..self.rows).map(|first| Chunk { first, end: first + 1, sample: true }));
        chunks
    }
}

impl Bench {
    /// Loads a model in all classes.
    ///
    /// # Errors
    /// When it cannot be loaded.
    pub fn load(path: &std::path::Path) -> Result<Self> {
        let dir = ModelDir::open(path)?;
        let layers = dir.config().layers;
        let stages = STAGES.min(layers);
        let edge = |stage: u16| (u32::from(layers) * u32::from(stage) / u32::from(stages)) as u16;
        let ranges: Vec<LayerRange> =
            (0..stages).map(|stage| LayerRange { first: edge(stage), last: edge(stage + 1) - 1 }).collect();
        let load = |class| ranges.iter().map(|range| Ok(Shard::load_class(&dir, *range, class)?)).collect();
        let shards = available().into_iter().map(load).collect::<Result<Vec<Vec<Shard>>>>()?;
        Ok(Self { dir, ranges, shards })
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.dir.config().hidden_size
    }

    /// Rows of every job.
    pub fn rows(&self) -> usize {
        ROWS.min(self.dir.config().max_positions as usize)
    }

    /// The job of a number. Prompts are what the model itself goes on with from a few random tokens.
    ///
    /// # Errors
    /// When the computation fails.
    pub fn job(&self, number: usize, seed: u64) -> Result<Job> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ (number as u64) << 20);
        let rows = self.rows();
        ensure!(rows > OPENING, "the model has too few positions");
        let vocabulary = self.dir.config().vocab_size as u32;
        let length = rng.random_range(OPENING + 1..=rows * 3 / 4);
        let sampling = Sampling {
            temperature: [1.0, 0.7, 0.0][number % 3],
            top_p: [1.0, 0.95][number % 2],
            seed: rng.random(),
            ..Sampling::default()
        };
        let mut job = Job { id: JobId(rng.random()), prompt: Vec::new(), sampling, rows };
        if number % REPETITIVE == REPETITIVE - 1 {
            job.prompt = vec![rng.random_range(0..vocabulary); length];
            return Ok(job);
        }
        let opening = (0..OPENING).map(|_| rng.random_range(0..vocabulary)).collect();
        let writer = Job {
            prompt: opening,
            sampling: Sampling { seed: rng.random(), ..Sampling::default() },
            rows: length,
            ..job.clone()
        };
        job.prompt = self.work(&writer, 0)?.tokens;
        Ok(job)
    }

    /// Does a job honestly in the class of that place in [`available`].
    ///
    /// # Errors
    /// When the computation fails.
    pub fn work(&self, job: &Job, class: usize) -> Result<Work> {
        let shards = &self.shards[class];
        let mut caches =
            shards.iter().map(|shard| Ok(shard.cache(job.rows as u32)?)).collect::<Result<Vec<KvCache>>>()?;
        let sampler = Sampler::new(job.sampling.clone(), job.prompt.len() as u32);
        let mut work = Work {
            class: available()[class],
            tokens: job.prompt.clone(),
            drawn: vec![NOT_DRAWN; job.rows],
            outputs: vec![Vec::with_capacity(job.rows * self.width()); shards.len()],
        };
        for chunk in job.chunks() {
            let tokens = work.tokens[chunk.first..chunk.end].to_vec();
            let mut hidden: Option<HiddenStates> = None;
            for ((shard, cache), outputs) in shards.iter().zip(&mut caches).zip(&mut work.outputs) {
                let input = match &hidden {
                    None => StageInput::Tokens(&tokens),
                    Some(hidden) => StageInput::Hidden(hidden.to_tensor(shard.device())?),
                };
                let forwarded = shard.forward_keeping(cache, input, chunk.first, HeadRows::None)?;
                let rows = HiddenStates::from_tensor(&forwarded.hidden)?;
                outputs.extend(floats(&rows.data));
                hidden = Some(rows);
            }
            if chunk.sample {
                let last = shards.last().context("a model has a stage")?;
                let rows = hidden.context("a model has a stage")?.to_tensor(last.device())?;
                let row = rows.narrow(0, chunk.end - chunk.first - 1, 1)?;
                let mut logits = last.head_logits(&row)?.flatten_all()?.to_vec1::<f32>()?;
                let token = sampler.sample(&mut logits, &work.tokens[..chunk.end], chunk.end as u32)?;
                work.drawn[chunk.end - 1] = token;
                if chunk.end < job.rows {
                    work.tokens.push(token);
                }
            }
        }
        Ok(work)
    }
}

/// A class in as few letters as tell it apart: `own f32`, `candle bf16`.
pub fn class_name(class: NumericClass) -> String {
    let kernels = match class.kernels {
        consortium_protocol::wire::audit::KernelFamily::Invariant => "own".to_owned(),
        other => format!("{other:?}").replace("CandleCpu", "candle"),
    };
    format!("{kernels} {}", format!("{:?}", class.compute).to_lowercase())
}
