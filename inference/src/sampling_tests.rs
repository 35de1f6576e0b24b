use proptest::prelude::*;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

fn sampler(sampling: Sampling) -> Sampler {
    Sampler::new(sampling, 0)
}

/// Probabilities after all filters, written plainly: sort everything, then cut.
fn plain_distribution(logits: &[f32], s: &Sampling) -> Vec<f64> {
    let mut order: Vec<usize> = (0..logits.len()).filter(|i| logits[*i] > f32::NEG_INFINITY).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    if s.top_k > 0 {
        order.truncate(s.top_k as usize);
    }
    let best = f64::from(logits[order[0]] / s.temperature);
    let mass = |i: usize| (f64::from(logits[i] / s.temperature) - best).exp();
    let total: f64 = order.iter().map(|i| mass(*i)).sum();
    if s.top_p < 1.0 {
        let mut sum = 0.0;
        let mut keep = 0;
        while sum < f64::from(s.top_p) * total && keep < order.len() {
            sum += mass(order[keep]);
            keep += 1;
        }
        order.truncate(keep);
    }
    order.retain(|i| mass(*i) >= f64::from(s.min_p));
    let total: f64 = order.iter().map(|i| mass(*i)).sum();
    let mut out = vec![0.0; logits.len()];
    for i in order {
        out[i] = mass(i) / total;
    }
    out
}

/// Chi-square statistic of many draws, each with another seed, and the degrees of freedom.
fn chi_square(logits: &[f32], sampling: &Sampling, draws: u32) -> (f64, usize) {
    let expected = plain_distribution(logits, sampling);
    let mut seen = vec![0_u32; logits.len()];
    for draw in 0..draws {
        let sampler = sampler(Sampling { seed: u64::from(draw / 4), ..sampling.clone() });
        let id = sampler.sample(&mut logits.to_vec(), &[], draw % 4).unwrap();
        seen[id as usize] += 1;
    }
    let mut statistic = 0.0;
    let mut cells = 0;
    for (seen, p) in seen.iter().zip(&expected) {
        let mean = p * f64::from(draws);
        if *p == 0.0 {
            assert_eq!(*seen, 0, "a token that was filtered out was drawn");
        } else {
            statistic += (f64::from(*seen) - mean).powi(2) / mean;
            cells += 1;
        }
    }
    (statistic, cells - 1)
}

#[test]
fn draws_are_distributed_as_the_softmax() {
    let logits = [1.0, 0.5, -0.3, 2.0, 0.0, 1.7, -1.0, 0.9];
    let plain = Sampling::default();
    for sampling in [
        plain.clone(),
        Sampling { temperature: 0.6, ..plain.clone() },
        Sampling { temperature: 1.8, ..plain.clone() },
        Sampling { top_k: 4, ..plain.clone() },
        Sampling { top_p: 0.8, ..plain.clone() },
        Sampling { min_p: 0.2, ..plain.clone() },
        Sampling { top_k: 6, top_p: 0.9, min_p: 0.15, temperature: 1.3, ..plain },
    ] {
        let (statistic, freedom) = chi_square(&logits, &sampling, 40_000);
        // The 99.99th percentile lies below this for every number of degrees of freedom here.
        let bound = freedom as f64 + 6.0 * (2.0 * freedom as f64).sqrt() + 6.0;
        assert!(statistic < bound, "{statistic} of {freedom} for {sampling:?}");
    }
}

#[test]
fn noise_is_even_over_tokens_and_positions() {
    let mut counts = [0_u32; 16];
    for position in 0..64 {
        let mut noise = NoiseStream::new(&[7; 32], position);
        for id in (0..1024).rev() {
            let uniform = noise.uniform(id);
            assert!(uniform > 0.0 && uniform < 1.0);
            counts[(uniform * 16.0) as usize] += 1;
        }
    }
    let mean = 64.0 * 1024.0 / 16.0;
    let statistic: f64 = counts.iter().map(|c| (f64::from(*c) - mean).powi(2) / mean).sum();
    assert!(statistic < 50.0, "{statistic}");
}

#[test]
fn the_noise_is_pinned() {
    // A change of these numbers changes what every seed draws: it takes a new version of the noise.
    let key = blake3::derive_key(NOISE_CONTEXT, &42_u64.to_le_bytes());
    let mut noise = NoiseStream::new(&key, 1000);
    let drawn = [0, 1, 15, 16, 128_000].map(|id| (noise.uniform(id) * 4_294_967_296.0 - 0.5) as u32);
    let mut reader = blake3::Hasher::new_keyed(&key).update(&1000_u32.to_le_bytes()).finalize_xof();
    let mut stream = vec![0; 4 * 128_001];
    reader.fill(&mut stream);
    let expected = [0, 1, 15, 16, 128_000].map(|id| {
        let at = 4 * id;
        u32::from_le_bytes([stream[at], stream[at + 1], stream[at + 2], stream[at + 3]])
    });
    assert_eq!(drawn, expected);
}

#[test]
fn greedy_takes_the_lowest_of_equals() {
    let greedy = sampler(Sampling { temperature: 0.0, ..Sampling::default() });
    assert_eq!(greedy.sample(&mut [0.0, 3.0, 3.0, 1.0], &[], 0), Ok(1));
    assert_eq!(greedy.sample(&mut [f32::NEG_INFINITY, -3.0], &[], 0), Ok(1));
    let top_one = sampler(Sampling { top_k: 1, ..Sampling::default() });
    assert_eq!(top_one.sample(&mut [0.0, 3.0, 3.0, 1.0], &[], 0), Ok(1));
}

#[test]
fn logits_that_are_no_numbers_are_refused() {
    for sampling in [Sampling::default(), Sampling { temperature: 0.0, ..Sampling::default() }] {
        let sampler = sampler(sampling);
        let refused = |logits: &mut [f32]| sampler.sample(logits, &[], 0).unwrap_err();
        assert_eq!(refused(&mut [0.0, f32::NAN]), SampleError::NotANumber { token: 1 });
        assert_eq!(refused(&mut [f32::INFINITY, 0.0]), SampleError::NotANumber { token: 0 });
        assert_eq!(refused(&mut [f32::NEG_INFINITY; 3]), SampleError::NoCandidate);
        assert_eq!(refused(&mut []), SampleError::NoCandidate);
    }
}

#[test]
fn penalties_follow_their_sources() {
    let sampling =
        Sampling { repetition_penalty: 2.0, frequency_penalty: 0.5, presence_penalty: 0.25, ..Sampling::default() };
    let mut logits = [4.0, 4.0, -4.0, 4.0];
    // Prompt: 0 0 2. Generated: 1 1 2. Out of the vocabulary: 9.
    Sampler::new(sampling, 3).penalise(&mut logits, &[0, 0, 2, 1, 1, 2, 9]);
    assert_eq!(logits, [2.0, 2.0 - 1.25, -8.0 - 0.75, 4.0]);
}

#[test]
fn a_large_vocabulary_is_fast() {
    let mut noise = NoiseStream::new(&[3; 32], 5);
    let logits: Vec<f32> = (0..128_256).map(|id| (noise.uniform(id) * 24.0 - 12.0) as f32).collect();
    let flat: Vec<f32> = vec![0.0; 128_256];
    let plain = Sampling::default();
    for (name, logits, sampling) in [
        ("plain", &logits, plain.clone()),
        ("flat", &flat, plain.clone()),
        ("top-k 40", &logits, Sampling { top_k: 40, ..plain.clone() }),
        ("top-p 0.9", &logits, Sampling { top_p: 0.9, ..plain.clone() }),
        ("flat top-p 0.9", &flat, Sampling { top_p: 0.9, ..plain.clone() }),
        ("min-p 0.05", &logits, Sampling { min_p: 0.05, ..plain.clone() }),
        ("greedy", &logits, Sampling { temperature: 0.0, ..plain }),
    ] {
        let sampler = sampler(sampling);
        let mut scratch = logits.clone();
        let started = std::time::Instant::now();
        for position in 0..10 {
            sampler.sample(&mut scratch, &[1, 2, 3], position).unwrap();
        }
        let each = started.elapsed() / 10;
        eprintln!("{name}: {each:?}");
        assert!(each.as_millis() < 200, "{name}: {each:?}");
    }
}

fn logits() -> impl Strategy<Value = Vec<f32>> {
    // Whole numbers, so that ties are common.
    prop::collection::vec((-6_i8..6).prop_map(f32::from), 1..400)
}

proptest! {
    #[test]
    fn the_right_tokens_survive(
        logits in logits(),
        top_k in 0_u32..30,
        top_p in 0.05_f32..=1.0,
        min_p in prop_oneof![Just(0.0_f32), 0.0_f32..0.9],
        temperature in 0.2_f32..2.0,
    ) {
        let sampling = Sampling { temperature, top_k, top_p, min_p, ..Sampling::default() };
        let expected = plain_distribution(&logits, &sampling);
        let best = best_of(&logits).unwrap();
        let mut kept: Vec<u32> = sampler(sampling).candidates(&logits, best).iter().map(|c| c.id).collect();
        kept.sort_unstable();
        let surviving: Vec<u32> = (0..logits.len() as u32).filter(|id| expected[*id as usize] > 0.0).collect();
        // Sums of f64 in another order may move the boundary of top-p by one token, and a rounding that of min-p by a tie.
        if kept != surviving {
            let mass = |ids: &[u32]| -> f64 {
                ids.iter().map(|id| f64::from((logits[*id as usize] - best.logit) / temperature).exp()).sum()
            };
            let smaller = mass(&kept).min(mass(&surviving));
            prop_assert!((mass(&kept) - mass(&surviving)).abs() < 1e-5 * smaller, "{:?} {:?}", kept, surviving);
        }
    }

    #[test]
    fn a_draw_is_a_function_of_its_inputs(logits in logits(), seed: u64, position in 0_u32..100_000) {
        let one = sampler(Sampling { seed, top_p: 0.95, ..Sampling::default() });
        let first = one.sample(&mut logits.clone(), &[], position);
        let other = sampler(Sampling { seed, top_p: 0.95, ..Sampling::default() });
        other.sample(&mut logits.clone(), &[], position.wrapping_add(1)).unwrap();
        prop_assert_eq!(first, other.sample(&mut logits.clone(), &[], position));
    }

    #[test]
    fn leaving_out_the_hopeless_changes_no_draw(
        logits in prop::collection::vec(-40.0_f32..40.0, 1..200), seed: u64,
    ) {
        let sampler = sampler(Sampling { seed, ..Sampling::default() });
        let mut noise = NoiseStream::new(&sampler.key, 3);
        let scores: Vec<f64> = logits.iter().zip(0..).map(|(l, id)| f64::from(*l) - (-noise.uniform(id).ln()).ln()).collect();
        let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let winner = scores.iter().position(|s| *s == best).unwrap() as u32;
        prop_assert_eq!(sampler.sample(&mut logits.clone(), &[], 3), Ok(winner));
    }
}

/// Logits of 60 tokens, roughly as a model gives them.
fn spread(rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..60).map(|_| rng.random_range(-4.0..4.0_f32)).collect()
}

#[test]
fn a_margin_is_zero_for_the_drawn_token_alone() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    for sampling in filters() {
        let sampler = Sampler::new(sampling.clone(), 2);
        for position in 0..60 {
            let logits = spread(&mut rng);
            let context = [1, 2, 3, 3];
            let drawn = sampler.sample(&mut logits.clone(), &context, position).unwrap();
            for token in 0..60 {
                let margin = sampler.margin(&mut logits.clone(), &context, position, token).unwrap();
                assert_eq!(margin == 0.0, token == drawn, "{sampling:?} {position} {token} {margin}");
            }
            assert_eq!(sampler.margin(&mut logits.clone(), &context, position, 60).unwrap(), f64::INFINITY);
        }
    }
}

#[test]
fn drift_of_logits_bounds_the_margin_of_an_honest_draw() {
    let mut rng = ChaCha8Rng::seed_from_u64(10);
    let mut lost = 0;
    for sampling in filters() {
        let sampler = Sampler::new(sampling.clone(), 2);
        let penalty = f64::from(sampling.repetition_penalty.max(1.0));
        for position in 0..1500 {
            let logits = spread(&mut rng);
            let drift = 0.05;
            let mut theirs: Vec<f32> = logits.iter().map(|l| l + rng.random_range(-drift..drift)).collect();
            let drawn = sampler.sample(&mut theirs, &[1, 2, 3, 3], position).unwrap();
            let margin = sampler.margin(&mut logits.clone(), &[1, 2, 3, 3], position, drawn).unwrap();
            assert!(margin <= 2.0 * f64::from(drift) * penalty * 1.001, "{sampling:?} {position}: {margin}");
            lost += usize::from(margin > 0.0);
        }
    }
    assert!(lost > 100, "drift changed only {lost} draws");
}

#[test]
fn another_seed_loses_by_a_lot() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let theirs = Sampler::new(Sampling { seed: 2, ..Sampling::default() }, 0);
    let ours = Sampler::new(Sampling { seed: 1, ..Sampling::default() }, 0);
    let far = (0..500)
        .filter(|position| {
            let logits = spread(&mut rng);
            let drawn = theirs.sample(&mut logits.clone(), &[], *position).unwrap();
            ours.margin(&mut logits.clone(), &[], *position, drawn).unwrap() > 0.5
        })
        .count();
    assert!(far > 350, "{far} of 500");
}

fn filters() -> Vec<Sampling> {
    let base = Sampling { seed: 5, ..Sampling::default() };
    vec![
        base.clone(),
        Sampling { temperature: 0.0, ..base.clone() },
        Sampling { temperature: 0.6, ..base.clone() },
        Sampling { top_k: 1, ..base.clone() },
        Sampling { top_k: 7, ..base.clone() },
        Sampling { top_p: 0.8, ..base.clone() },
        Sampling { min_p: 0.1, ..base.clone() },
        Sampling { temperature: 0.7, top_p: 0.9, top_k: 20, min_p: 0.02, ..base.clone() },
        Sampling { repetition_penalty: 1.3, frequency_penalty: 0.5, presence_penalty: 0.2, ..base },
    ]
}
