//! What commitments and audits cost beside the work itself, for jobs of a given shape: measured in turns with the
//! generation, on the same threads.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use consortium_node::inference::audit::auditor::Auditor;
use consortium_node::inference::audit::classes::own_class;
use consortium_node::inference::audit::grid::StageCommitter;
use consortium_node::inference::audit::replay::ReplayInputs;
use consortium_node::inference::audit::thresholds::Thresholds;
use consortium_node::inference::llama::{HeadRows, Shard, StageInput, StageOutput};
use consortium_node::inference::model_dir::ModelDir;
use consortium_node::inference::sampling::Sampler;
use consortium_node::inference::stage::HiddenStates;
use consortium_protocol::wire::audit::NOT_DRAWN;
use consortium_protocol::wire::job::Sampling;
use serde::Serialize;

/// Rows of a prompt that a stage computes at once.
const CHUNK: usize = 256;
/// The rate at which jobs are drawn.
const RATE: f64 = 0.2;

/// The costs of one shape of job, as shares of the time of its generation.
#[derive(Clone, Debug, Serialize)]
pub struct Workload {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens generated.
    pub generated: usize,
    /// Turns measured.
    pub turns: usize,
    /// Median milliseconds of a generation.
    pub generation_ms: f64,
    /// Median share of committing to the whole model as one stage.
    pub commitment: f64,
    /// Median share of auditing every stage of the job, with its draws.
    pub audit: f64,
}

impl Workload {
    /// The share of audits at the default rate.
    #[must_use]
    pub fn at_default_rate(&self) -> f64 {
        RATE * self.audit
    }
}

/// One job as the model's only stage does it, with what an auditor needs.
struct Done {
    tokens: Vec<u32>,
    drawn: Vec<(u32, u32)>,
    outputs: Vec<f32>,
    generation: Duration,
    commitment: Duration,
}

/// Measures jobs of `prompt` tokens and `generated` more, `turns` times.
///
/// # Errors
/// When the model cannot be loaded, is too short for the job, or has no thresholds.
pub fn measure(
    dir: &ModelDir,
    thresholds: &Thresholds,
    prompt: usize,
    generated: usize,
    turns: usize,
) -> Result<Workload> {
    let (class, range) = (own_class(), dir.all_layers());
    anyhow::ensure!(turns % 2 == 1, "an odd number of turns has a median");
    let limits = thresholds.limits(class, class, dir.config().layers).context("no thresholds for this machine")?;
    let shard = Shard::load_class(dir, range, class)?;
    let auditor = Auditor::load(dir, range, class, class, limits)?;
    let (mut generation, mut commitment, mut audit) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..turns {
        let sampling = Sampling { seed: turn as u64, ..Sampling::default() };
        let sampler = Sampler::new(sampling, prompt as u32);
        let done = work(&shard, &sampler, prompt, generated)?;
        let started = Instant::now();
        let audited = auditor.audit(ReplayInputs::Tokens(&done.tokens), &done.outputs)?;
        let draws = auditor.draws(&audited.matching, &sampler, &done.tokens, &done.drawn)?;
        let took = started.elapsed().as_secs_f64();
        anyhow::ensure!(audited.stats.exact() == audited.blocks.len(), "honest work is not equal bit for bit");
        anyhow::ensure!(draws.iter().all(|(margin, _)| *margin == 0.0), "honest draws are not drawn again");
        let whole = done.generation.as_secs_f64();
        generation.push(whole * 1e3);
        commitment.push(done.commitment.as_secs_f64() / whole);
        audit.push(took / whole);
    }
    Ok(Workload {
        prompt,
        generated,
        turns,
        generation_ms: median(&mut generation),
        commitment: median(&mut commitment),
        audit: median(&mut audit),
    })
}

/// The value in the middle of an odd number of them.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn work(shard: &Shard, sampler: &Sampler, prompt: usize, generated: usize) -> Result<Done> {
    let width = shard.config().hidden_size;
    let vocabulary = shard.config().vocab_size as u32;
    // Any tokens will do: the time does not depend on them.
    let mut tokens: Vec<u32> = (0..prompt as u32).map(|n| 8 + n * 7919 % (vocabulary - 8)).collect();
    let mut cache = shard.cache((prompt + generated) as u32)?;
    let mut committer = StageCommitter::new(&[1; 32], &[2; 32], &[3; 32], width);
    let (mut generation, mut commitment) = (Duration::ZERO, Duration::ZERO);
    let (mut drawn, mut outputs) = (Vec::new(), Vec::new());
    let mut at = 0;
    while drawn.len() < generated {
        let end = tokens.len().min(at + CHUNK);
        let last = end == tokens.len();
        let started = Instant::now();
        let head = if last { HeadRows::Last } else { HeadRows::None };
        let forwarded = shard.forward_keeping(&mut cache, StageInput::Tokens(&tokens[at..end]), at, head)?;
        let token = match forwarded.output {
            StageOutput::Logits(logits) => {
                let mut logits: Vec<f32> = logits.flatten_all()?.to_vec1()?;
                Some(sampler.sample(&mut logits, &tokens, end as u32)?)
            }
            _ => None,
        };
        generation += started.elapsed();
        let hidden = HiddenStates::from_tensor(&forwarded.hidden)?;
        let started = Instant::now();
        let given: Vec<u8> = tokens[at..end].iter().flat_map(|token| token.to_le_bytes()).collect();
        let mut out = vec![NOT_DRAWN; end - at];
        if let (Some(last), Some(token)) = (out.last_mut(), token) {
            *last = token;
        }
        let out: Vec<u8> = out.iter().flat_map(|token| token.to_le_bytes()).collect();
        committer.push(end - at, &given, &hidden.data, &out)?;
        commitment += started.elapsed();
        outputs.extend(hidden.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        if let Some(token) = token {
            drawn.push((end as u32, token));
            tokens.push(token);
        }
        at = end;
    }
    let started = Instant::now();
    let _roots = committer.finish().roots();
    commitment += started.elapsed();
    tokens.truncate(at);
    Ok(Done { tokens, drawn, outputs, generation, commitment })
}
