//! The whole way, against the plain reference and against the constants that papers and code disagree on.

use proptest::prelude::*;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::message::{Update, assemble};
use super::*;

fn shapes() -> Vec<Vec<usize>> {
    vec![vec![130, 70], vec![64, 64], vec![5000], vec![1], vec![7, 3]]
}

/// Values with heavy tails: products of uniform numbers.
fn heavy(layout: &Layout, seed: u64, scale: f32) -> Vec<Vec<f32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = || {
        let factors: [f32; 3] = rng.random();
        let sign = if rng.random() { scale } else { -scale };
        sign * factors.iter().product::<f32>()
    };
    layout.zeros().into_iter().map(|t| t.into_iter().map(|_| draw()).collect()).collect()
}

fn dense(layout: &Layout, update: &Update) -> Vec<Vec<f32>> {
    let mut tensors = layout.zeros();
    update.for_each(|tensor, element, value| tensors[tensor][element] = value);
    tensors
}

fn update_of(layout: &Layout, delta: &[Vec<f32>]) -> Update {
    Update::read(layout, compress(layout, &mut layout.zeros(), delta).unwrap()).unwrap()
}

/// A few shapes of up to 20 000 elements.
fn any_shapes() -> impl Strategy<Value = Vec<Vec<usize>>> {
    let shape =
        prop_oneof![(1usize..200, 1usize..100).prop_map(|(r, c)| vec![r, c]), (1usize..9000).prop_map(|n| vec![n])];
    proptest::collection::vec(shape, 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn two_rounds_agree_with_the_plain_reference(shapes in any_shapes(), seed in any::<u64>(), coarse in any::<bool>()) {
        let layout = Layout::new(&shapes).unwrap();
        let mut feedback = layout.zeros();
        for round in 0..2 {
            let mut delta = heavy(&layout, seed.wrapping_add(round), 1e-3);
            if coarse {
                // Many equal magnitudes: ties everywhere.
                delta.iter_mut().flatten().for_each(|d| *d = (*d * 1e4).round() * 1e-4);
            }
            let before = feedback.clone();
            let bytes = compress(&layout, &mut feedback, &delta).unwrap();
            prop_assert!(bytes.len() <= layout.longest_message());
            let update = Update::read(&layout, bytes).unwrap();
            let mut seen = vec![Vec::new(); shapes.len()];
            update.for_each(|tensor, element, value| seen[tensor].push((element, value)));
            for (tensor, shape) in shapes.iter().enumerate() {
                let accumulated = reference::accumulate(&before[tensor], &delta[tensor]);
                let kept = reference::top_k(&accumulated, shape);
                prop_assert_eq!(&kept, &seen[tensor].iter().map(|s| s.0).collect::<Vec<_>>());
                let mut rest = accumulated.clone();
                for (element, value) in &seen[tensor] {
                    prop_assert_eq!(value.is_sign_negative(), accumulated[*element].is_sign_negative());
                    rest[*element] -= value;
                }
                prop_assert_eq!(&rest, &feedback[tensor]);
            }
        }
    }

    #[test]
    fn aggregates_agree_with_the_plain_reference(shapes in any_shapes(), seed in any::<u64>(), peers in 1usize..6) {
        let layout = Layout::new(&shapes).unwrap();
        let updates: Vec<Update> = (0..peers as u64)
            .map(|p| update_of(&layout, &heavy(&layout, seed ^ p, 1e-3 * (p + 1) as f32)))
            .collect();
        let all: Vec<&Update> = updates.iter().collect();
        let mut mean = heavy(&layout, 1, 9.0);
        aggregate(&layout, &all, &median_norms(&layout, &all).unwrap(), &mut mean).unwrap();
        let parameters = heavy(&layout, !seed, 0.1);
        let mut next = parameters.clone();
        outer_step(&layout, &mut next, &mean).unwrap();
        for tensor in 0..shapes.len() {
            let plain = reference::mean(&updates.iter().map(|u| dense(&layout, u)[tensor].clone()).collect::<Vec<_>>());
            for (ours, theirs) in mean[tensor].iter().zip(&plain) {
                prop_assert!((f64::from(*ours) - theirs).abs() < 1e-8, "{} against {}", ours, theirs);
            }
            for (ours, theirs) in next[tensor].iter().zip(reference::outer_step(&parameters[tensor], &plain)) {
                prop_assert!((f64::from(*ours) - theirs).abs() < 1e-7);
            }
        }
    }

    /// A sender may sign any body it likes, with a good checksum: it still names exactly k rising positions per block.
    #[test]
    fn any_body_is_refused_or_means_an_update(body in proptest::collection::vec(any::<u8>(), 0..400), flip in any::<prop::sample::Index>()) {
        let layout = Layout::new(&[vec![70, 66]]).unwrap();
        let honest = compress(&layout, &mut layout.zeros(), &heavy(&layout, 3, 1.0)).unwrap();
        let levels = Update::read(&layout, honest.clone()).unwrap().levels().to_vec();
        let mut mutated = honest[..honest.len() - 8].to_vec();
        let at = 12 + flip.index(mutated.len() - 12);
        mutated[at] = mutated[at].wrapping_add(body.len() as u8 | 1);
        mutated.extend_from_slice(&blake3::hash(&mutated).as_bytes()[..8]);
        for bytes in [assemble(&layout, &levels, &body), mutated] {
            let Ok(update) = Update::read(&layout, bytes) else { continue };
            let mut elements = Vec::new();
            update.for_each(|_, element, value| {
                assert!(value.is_finite());
                elements.push(element);
            });
            let blocks = reference::blocks(&[70, 66]);
            let mut left = &elements[..];
            for block in blocks {
                let (these, rest) = left.split_at(block.len().div_ceil(64));
                prop_assert!(these.is_sorted_by(|a, b| a < b) && these.iter().all(|e| block.contains(e)));
                left = rest;
            }
            prop_assert!(left.is_empty());
        }
    }
}

#[test]
fn every_truncation_and_every_flipped_bit_is_refused() {
    let layout = Layout::new(&shapes()).unwrap();
    let bytes = compress(&layout, &mut layout.zeros(), &heavy(&layout, 1, 1.0)).unwrap();
    for length in 0..bytes.len() {
        assert!(Update::read(&layout, bytes[..length].to_vec()).is_err(), "{length} bytes");
    }
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Update::read(&layout, flipped).is_err(), "bit {bit}");
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(Update::read(&layout, longer).is_err());
}

#[test]
fn without_the_checksum_truncations_are_refused_all_the_same() {
    let layout = Layout::new(&shapes()).unwrap();
    let bytes = compress(&layout, &mut layout.zeros(), &heavy(&layout, 1, 1.0)).unwrap();
    // The very last bytes tell the last values apart: without them others may be read, which is as if those had been sent.
    for length in 12..bytes.len() - 16 {
        let mut cut = bytes[..length].to_vec();
        cut.extend_from_slice(&blake3::hash(&cut).as_bytes()[..8]);
        let answer = Update::read(&layout, cut);
        assert!(matches!(answer, Err(SparseError::Malformed(_))), "{length} bytes");
    }
    for extra in [0u8, 1, 255] {
        let mut longer = bytes[..bytes.len() - 8].to_vec();
        longer.extend([extra; 5]);
        longer.extend_from_slice(&blake3::hash(&longer).as_bytes()[..8]);
        assert!(matches!(Update::read(&layout, longer), Err(SparseError::Malformed(_))));
    }
}

#[test]
fn each_refusal_has_its_reason() {
    let layout = Layout::new(&shapes()).unwrap();
    let bytes = compress(&layout, &mut layout.zeros(), &heavy(&layout, 1, 1.0)).unwrap();
    let read = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        Update::read(&layout, bytes).unwrap_err()
    };
    assert_eq!(read(&|b| b.truncate(3)), SparseError::Length { length: 3 });
    assert!(matches!(read(&|b| b.resize(1 << 20, 7)), SparseError::Length { .. }));
    assert_eq!(read(&|b| b[0] = b'X'), SparseError::Format);
    assert_eq!(read(&|b| b[3] = 2), SparseError::Format);
    assert_eq!(read(&|b| b[30] ^= 1), SparseError::Checksum);
    let other = Layout::new(&[vec![3]]).unwrap();
    let small = compress(&other, &mut other.zeros(), &[vec![1.0, 2.0, 3.0]]).unwrap();
    assert_eq!(Update::read(&layout, small).unwrap_err(), SparseError::OtherLayout);
}

#[test]
fn levels_that_are_no_levels_are_refused() {
    let layout = Layout::new(&[vec![256]]).unwrap();
    let body = [0x5a; 3];
    let levels = |low: f32, high: f32, highs| super::quantize::Levels { low, high, highs };
    for bad in [
        levels(f32::INFINITY, 0.0, 0),
        levels(f32::from_bits(0x7fc0_0000), 0.0, 0),
        levels(-1.0, 0.0, 0),
        levels(2.0, 1.0, 1),
        levels(1.0, 2.0, 4),
        levels(1.0, 2.0, u64::MAX),
    ] {
        let answer = Update::read(&layout, assemble(&layout, &[bad], &body));
        assert!(matches!(answer, Err(SparseError::Malformed(_) | SparseError::Length { .. })), "{bad:?}: {answer:?}");
    }
}

#[test]
fn what_is_not_finite_or_does_not_fit_changes_nothing() {
    let layout = Layout::new(&shapes()).unwrap();
    let mut feedback = heavy(&layout, 5, 1.0);
    let before = feedback.clone();
    let mut delta = heavy(&layout, 6, 1.0);
    delta[2][4999] = f32::NAN;
    assert_eq!(compress(&layout, &mut feedback, &delta), Err(SparseError::NotFinite { tensor: 2 }));
    delta[2].pop();
    assert_eq!(compress(&layout, &mut feedback, &delta), Err(SparseError::Sizes));
    assert_eq!(feedback, before);
    let update = update_of(&layout, &before);
    let mut mean = layout.zeros();
    assert_eq!(aggregate(&layout, &[], &[1.0; 5], &mut mean), Err(SparseError::Aggregate));
    assert_eq!(aggregate(&layout, &[&update], &[1.0; 4], &mut mean), Err(SparseError::Aggregate));
    assert_eq!(aggregate(&layout, &[&update], &[f64::NAN; 5], &mut mean), Err(SparseError::Aggregate));
    assert_eq!(median_norms(&layout, &[]), Err(SparseError::Aggregate));
    let other = Layout::new(&[vec![6, 3], vec![1], vec![1], vec![1], vec![1]]).unwrap();
    let foreign = update_of(&other, &heavy(&other, 1, 1.0));
    assert_eq!(median_norms(&layout, &[&update, &foreign]), Err(SparseError::Aggregate));
    assert_eq!(aggregate(&layout, &[&update, &foreign], &[1.0; 5], &mut mean), Err(SparseError::Aggregate));
    assert_eq!(mean, layout.zeros());
}

#[test]
fn extreme_values_survive() {
    let layout = Layout::new(&[vec![64, 64], vec![130]]).unwrap();
    for scale in [0.0, 1e-45, 1e-38, 1e37] {
        let delta = heavy(&layout, 9, scale);
        let update = update_of(&layout, &delta);
        let norms = update.norms();
        let mut mean = layout.zeros();
        aggregate(&layout, &[&update, &update], &norms, &mut mean).unwrap();
        assert_eq!(mean, dense(&layout, &update), "the mean of two equal updates is either of them, at {scale}");
    }
}

#[test]
fn the_mean_is_over_all_peers_as_in_the_paper_and_not_over_those_that_sent_the_index_as_in_the_code() {
    let layout = Layout::new(&[vec![64]]).unwrap();
    let one_at = |element: usize| {
        let mut delta = layout.zeros();
        delta[0][element] = 1.0;
        update_of(&layout, &delta)
    };
    let (a, b) = (one_at(3), one_at(5));
    let mut mean = layout.zeros();
    aggregate(&layout, &[&a, &a, &a, &b], &[1.0], &mut mean).unwrap();
    assert_eq!((mean[0][3], mean[0][5], mean[0][4]), (0.75, 0.25, 0.0));
}

#[test]
fn the_median_of_an_even_number_is_the_lower_one_and_larger_norms_are_clipped_to_it() {
    let layout = Layout::new(&[vec![64], vec![64]]).unwrap();
    let of = |size: f32| {
        let mut delta = layout.zeros();
        (delta[0][0], delta[1][0]) = (size, 1.0);
        update_of(&layout, &delta)
    };
    let updates = [of(1.0), of(2.0), of(4.0), of(1000.0)];
    let all: Vec<&Update> = updates.iter().collect();
    let medians = median_norms(&layout, &all).unwrap();
    assert_eq!(medians, [2.0, 1.0], "per tensor");
    let mut mean = layout.zeros();
    aggregate(&layout, &all, &medians, &mut mean).unwrap();
    assert_eq!((mean[0][0], mean[1][0]), ((1.0 + 2.0 + 2.0 + 2.0) / 4.0, 1.0), "no epsilon beside the norm");
}

#[test]
fn feedback_keeps_what_quantisation_lost_too_and_decays_by_a_twentieth() {
    let layout = Layout::new(&[vec![128]]).unwrap();
    let mut delta = layout.zeros();
    (delta[0][0], delta[0][1], delta[0][2]) = (1.0, -1.25, 0.5);
    let mut feedback = layout.zeros();
    compress(&layout, &mut feedback, &delta).unwrap();
    assert_eq!(feedback[0][..4], [-0.125, -0.125, 0.5, 0.0], "both are sent as 1.125");
    delta[0][2] = 0.0;
    compress(&layout, &mut feedback, &delta).unwrap();
    assert_eq!(feedback[0][2], 0.95 * 0.5);
}

#[test]
fn the_outer_rate_is_one() {
    let layout = Layout::new(&[vec![2]]).unwrap();
    let mut parameters = vec![vec![1.0, 2.0]];
    outer_step(&layout, &mut parameters, &[vec![0.25, -1.0]]).unwrap();
    assert_eq!(parameters, [[0.75, 3.0]]);
}

#[test]
fn the_quantiser_loses_less_than_the_reference() {
    let layout = Layout::new(&[vec![256, 256]]).unwrap();
    for seed in 0..5 {
        let delta = heavy(&layout, seed, 1.0);
        let update = update_of(&layout, &delta);
        let kept: Vec<f32> = reference::top_k(&delta[0], &[256, 256]).into_iter().map(|e| delta[0][e]).collect();
        let mut ours = Vec::new();
        update.for_each(|_, _, value| ours.push(f64::from(value)));
        let error = |received: &[f64]| kept.iter().zip(received).map(|(k, r)| (f64::from(*k) - r).powi(2)).sum::<f64>();
        let theirs: Vec<f64> = reference::quantize(&kept).into_iter().map(|c| c.1).collect();
        let (ours, theirs) = (error(&ours), error(&theirs));
        assert!(ours < 0.7 * theirs, "{ours} against {theirs}");
    }
}

/// Simple numbers whose message must never change.
fn golden() -> (Layout, Vec<Vec<f32>>) {
    let layout = Layout::new(&[vec![70, 80], vec![300]]).unwrap();
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / 8_388_608.0 - 1.0).powi(3) / 64.0
    };
    let delta = layout.zeros().into_iter().map(|t| t.into_iter().map(|_| next()).collect()).collect();
    (layout, delta)
}

#[test]
fn golden_message() {
    let (layout, delta) = golden();
    let bytes = compress(&layout, &mut layout.zeros(), &delta).unwrap();
    let text: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let expected = concat!(
        "43534c010b7eefd24f9fee26007b3c006f3ccee91219e53f942fcbf7b584654f4beea99305a2feccb5407208c6f0d3543c12",
        "b50f089bf1cfcc9d4785623555066754a52008d21bb4d56f3c0672188251a8de41d1b4026ab9e3c871c49749c766e0252ca5",
        "c0d11a81ab654c19b17b2d7d403ec6e95bfca7d4ea0e"
    );
    assert_eq!(text, expected);
    let mut hasher = blake3::Hasher::new();
    Update::read(&layout, bytes).unwrap().for_each(|tensor, element, value| {
        hasher.update(&(tensor as u64).to_le_bytes());
        hasher.update(&(element as u64).to_le_bytes());
        hasher.update(&value.to_le_bytes());
    });
    assert_eq!(
        hasher.finalize().to_hex().to_string(),
        "00f795a1d4ab4d57626326f6197c9a4145c34a6e0f87365df90fbe10620b68f8"
    );
}

#[test]
fn golden_aggregate() {
    let (layout, delta) = golden();
    let mut feedback = layout.zeros();
    let updates: Vec<Update> = [1.0, -0.5, 3.0]
        .map(|scale| {
            let delta: Vec<Vec<f32>> = delta.iter().map(|t| t.iter().map(|d| d * scale).collect()).collect();
            Update::read(&layout, compress(&layout, &mut feedback, &delta).unwrap()).unwrap()
        })
        .into();
    let all: Vec<&Update> = updates.iter().collect();
    let mut mean = layout.zeros();
    aggregate(&layout, &all, &median_norms(&layout, &all).unwrap(), &mut mean).unwrap();
    let mut hasher = blake3::Hasher::new();
    mean.iter().flatten().for_each(|m| _ = hasher.update(&m.to_le_bytes()));
    assert_eq!(
        hasher.finalize().to_hex().to_string(),
        "6a492e47ce37d429c41ae9c344ebd2b2b393504ff17a1702485dd857d2822dbf"
    );
}
