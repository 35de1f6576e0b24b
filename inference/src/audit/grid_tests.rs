use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use consortium_protocol::wire::audit::block_digests;

use super::*;

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-3.0..3.0_f32)).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The definition, without any of the short cuts.
fn plain(profile: Profile, row: &[f32]) -> Vec<i16> {
    let cell = |v: f64| v.round_ties_even().clamp(-32768.0, 32767.0) as i16;
    match profile {
        Profile::Source => row.iter().map(|v| cell(f64::from(v.clamp(-100.0, 100.0)) * 64.0)).collect(),
        Profile::Rms => {
            let square = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / row.len() as f64;
            let exponent = (-200..200).find(|e| 4.0_f64.powi(*e) >= square).unwrap();
            let cells = row.iter().map(|v| cell(f64::from(*v) / 2.0_f64.powi(exponent) * 256.0));
            std::iter::once(exponent as i16).chain(cells).collect()
        }
    }
}

fn encoded(profile: Profile, row: &[f32]) -> Vec<i16> {
    let mut out = Vec::new();
    encode(profile, row, &mut out);
    out.as_chunks().0.iter().map(|b| i16::from_le_bytes(*b)).collect()
}

#[test]
fn golden_vectors() {
    let row = [0.0, 1.0, -1.0, 0.5, 2.5, -0.001, 100.0, -150.0];
    assert_eq!(exponent(&row), Some(6));
    assert_eq!(encoded(Profile::Rms, &row), [6, 0, 4, -4, 2, 10, 0, 400, -600]);
    assert_eq!(encoded(Profile::Source, &row), [0, 64, -64, 32, 160, 0, 6400, -6400]);
    let key: [u8; 32] = std::array::from_fn(|i| i as u8);
    let rows: Vec<f32> = (0..64).map(|i| (i as f32 - 31.5) / 8.0).collect();
    let texts = [Profile::Rms, Profile::Source].map(|profile| digest(&key, profile, &rows, 16).to_string());
    assert_eq!(
        texts,
        [
            "320eb271b1f18eb7491415518469d5bf75b2f033e1f3512de6f504fdca02f011",
            "2195b7eb40ddcd07f58a72ee8cb8fc16cb16fb26fdb1e94c7dbc1d69ed8b7879"
        ]
    );
}

#[test]
fn powers_of_two_and_halves() {
    assert_eq!(exponent(&[2.0; 7]), Some(1));
    assert_eq!(exponent(&[2.000_001; 7]), Some(2));
    assert_eq!(exponent(&[0.5, -0.5]), Some(-1));
    assert_eq!(exponent(&[f32::MAX; 5]), Some(128));
    assert_eq!(exponent(&[f32::from_bits(1); 5]), Some(-149));
    // Scale 1, cells of 1/256: halves go to the even neighbour.
    let row = [1.0, 1.0, -1.0, 0.5 / 256.0, 1.5 / 256.0, 2.5 / 256.0, -0.5 / 256.0, -1.5 / 256.0, 1.0, 1.0];
    assert_eq!(encoded(Profile::Rms, &row), [0, 256, 256, -256, 0, 2, 2, 0, -2, 256, 256]);
}

#[test]
fn what_is_no_number_has_an_encoding_of_its_own() {
    let key = [1; 32];
    let mut seen = std::collections::BTreeSet::new();
    for profile in [Profile::Rms, Profile::Source] {
        for value in [0.0, 0.1, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(seen.insert(digest(&key, profile, &[value, 0.0, 0.0], 3)), "{profile:?} {value}");
        }
    }
    assert_eq!(encoded(Profile::Rms, &[0.0; 3]), [i16::MIN, 0, 0, 0]);
    assert_eq!(encoded(Profile::Rms, &[-0.0; 3]), [i16::MIN, 0, 0, 0]);
    assert_eq!(encoded(Profile::Source, &[f32::NAN, 1.0]), [i16::MAX, 3, 0]);
}

/// The historic profile passes a forgery of zeros where activations are small, the default does not.
#[test]
fn small_activations_are_seen() {
    let row: Vec<f32> = random(64, 5).iter().map(|v| v * 1e-3).collect();
    let key = [2; 32];
    assert_eq!(digest(&key, Profile::Source, &row, 64), digest(&key, Profile::Source, &[0.0; 64], 64));
    assert_ne!(digest(&key, Profile::Rms, &row, 64), digest(&key, Profile::Rms, &[0.0; 64], 64));
}

proptest! {
    #[test]
    fn cells_are_as_defined(seed in 0_u64..1 << 32, width in 1_usize..70, scale in -120_i32..120) {
        let row: Vec<f32> = random(width, seed).iter().map(|v| v * 2.0_f32.powi(scale)).collect();
        prop_assume!(row.iter().any(|v| *v != 0.0));
        prop_assert_eq!(encoded(Profile::Rms, &row), plain(Profile::Rms, &row));
        prop_assert_eq!(encoded(Profile::Source, &row), plain(Profile::Source, &row));
    }

    #[test]
    fn the_cutting_into_calls_changes_nothing(cuts in prop::collection::vec(1_usize..80, 1..12), width in 1_usize..9) {
        let rows: usize = cuts.iter().sum();
        let tokens: Vec<u8> = (0..rows as u32).flat_map(u32::to_le_bytes).collect();
        let hidden = random(rows * width, rows as u64);
        let hidden = bytes(&hidden);
        let keys = [[1; 32], [2; 32], [3; 32]];
        let new = || StageCommitter::new(&keys[0], &keys[1], &keys[2], width);
        let mut whole = new();
        whole.push(rows, &tokens, &hidden, &hidden).unwrap();
        let mut cut = new();
        let mut at = 0;
        for n in cuts {
            let part = 4 * width * at..4 * width * (at + n);
            cut.push(n, &tokens[4 * at..4 * (at + n)], &hidden[part.clone()], &hidden[part]).unwrap();
            at += n;
        }
        let (whole, cut) = (whole.finish(), cut.finish());
        // Cells, then exact bytes.
        prop_assert_eq!(whole.grid.len(), 2 * rows.div_ceil(BLOCK));
        prop_assert_eq!(&whole, &cut);
        // And they are what they are documented to be.
        for (block, values) in hidden.chunks(BLOCK * 4 * width).enumerate() {
            let hash = blake3::keyed_hash(&keys[1], values);
            prop_assert_eq!(whole.outputs[block].as_bytes(), hash.as_bytes());
            let values: Vec<f32> = values.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            prop_assert_eq!(whole.grid[block], digest(&keys[2], Profile::Rms, &values, width));
        }
        prop_assert_eq!(whole.roots()[0], blocks_root(&block_digests(&keys[0], &tokens, 4)));
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused_and_take_nothing() {
    let mut committer = StageCommitter::new(&[1; 32], &[2; 32], &[3; 32], 2);
    let row = bytes(&[1.0, 2.0]);
    committer.push(1, &[0; 4], &row, &row).unwrap();
    for (rows, input, hidden, crossing) in
        [(2, 4, 8, 8), (1, 5, 8, 8), (1, 4, 7, 8), (1, 4, 8, 0), (1, 8, 8, 8), (2, 8, 16, 8)]
    {
        let refused = committer.push(rows, &vec![0; input], &vec![0; hidden], &vec![0; crossing]);
        assert!(refused.is_err(), "{rows} {input} {hidden} {crossing}");
    }
    let mut clean = StageCommitter::new(&[1; 32], &[2; 32], &[3; 32], 2);
    clean.push(1, &[0; 4], &row, &row).unwrap();
    assert_eq!(committer.finish(), clean.finish());
    assert_eq!(StageCommitter::new(&[1; 32], &[2; 32], &[3; 32], 2).finish(), Committed::default());
    assert!(BlockHasher::new(&[0; 32], 8).push(&[0; 9]).is_err());
}
