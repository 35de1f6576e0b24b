//! How far a peer's parameters are from the common ones.

use super::parameters::Parameters;
use super::task::{Task, shapes};

/// Elements of each tensor that are compared.
const OF_EACH: usize = 16;

/// The elements that a round compares. Which they are follows from the beacon of the round's data, so that who has not
/// loaded the common parameters by then cannot have kept the right ones. A peer sends theirs along with its update.
///
/// All peers hold the same bits, so an honest one is not away at all. A peer may of course look up the numbers without
/// training on them: this finds who is behind without knowing it, and [`crate::gauntlet`] what an update is worth.
#[derive(Clone, Debug)]
pub struct SyncProbe {
    elements: Vec<(usize, usize)>,
}

impl SyncProbe {
    /// The probe of a round.
    #[must_use]
    pub fn new(beacon: &[u8], round: u64, common: &Parameters) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("consortium training sync probe 1");
        hasher.update(&round.to_le_bytes());
        hasher.update(beacon);
        let mut stream = hasher.finalize_xof();
        let mut draw = |below: usize| {
            let mut word = [0; 8];
            stream.fill(&mut word);
            // The bias of the remainder is below 2^-32.
            (u64::from_le_bytes(word) % below.max(1) as u64) as usize
        };
        let of_tensor = |(tensor, values): (usize, &Vec<f32>)| -> Vec<(usize, usize)> {
            (0..OF_EACH.min(values.len())).map(|_| (tensor, draw(values.len()))).collect()
        };
        Self { elements: common.values().iter().enumerate().flat_map(of_tensor).collect() }
    }

    /// How many values a peer of this task sends.
    #[must_use]
    pub fn size(task: &Task) -> usize {
        let of = |shape: &Vec<usize>| OF_EACH.min(shape.iter().product());
        shapes(task.config()).iter().map(of).sum()
    }

    /// What a peer sends: its values of the elements.
    #[must_use]
    pub fn sample(&self, parameters: &Parameters) -> Vec<f32> {
        let value = |(tensor, element): &(usize, usize)| parameters.values().get(*tensor)?.get(*element).copied();
        self.elements.iter().filter_map(value).collect()
    }

    /// The distance of a peer's sample from the common parameters, as a multiple of the last outer step: both as root mean
    /// squares, over the sample and over all parameters. Infinite for a sample of another size or with numbers that are
    /// none; and for any difference where `last_step` is zero, as before the first step.
    #[must_use]
    pub fn drift(&self, common: &Parameters, sample: &[f32], last_step: f64) -> f64 {
        let ours = self.sample(common);
        if ours.len() != sample.len() || !sample.iter().all(|v| v.is_finite()) {
            return f64::INFINITY;
        }
        let away = root_mean_square(ours.iter().zip(sample).map(|(a, b)| f64::from(*a) - f64::from(*b)));
        match away {
            0.0 => 0.0,
            _ if last_step > 0.0 => away / last_step,
            _ => f64::INFINITY,
        }
    }
}

impl Parameters {
    /// The root mean square of the differences from other parameters of the same model: the size of an outer step, where
    /// these were before it.
    #[must_use]
    pub fn distance(&self, other: &Self) -> f64 {
        let pairs = self.values().iter().flatten().zip(other.values().iter().flatten());
        root_mean_square(pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)))
    }
}

fn root_mean_square(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0u64), |(sum, count), v| (sum + v * v, count + 1));
    (sum / count.max(1) as f64).sqrt()
}
