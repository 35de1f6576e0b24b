//! AdamW with global-norm clipping and a warm-up and cosine schedule.

use candle_core::{Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;

/// Learning rate over a run: a linear warm-up to `peak`, then half a cosine down to `floor`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Highest rate.
    pub peak: f64,
    /// Rate at the last step.
    pub floor: f64,
    /// Steps of the warm-up.
    pub warmup: u64,
    /// Steps in all.
    pub total: u64,
}

impl Schedule {
    /// The rate of `step`, counted from 0; beyond the end it stays at the floor.
    #[must_use]
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let span = self.total.saturating_sub(self.warmup + 1).max(1) as f64;
        let done = ((step - self.warmup) as f64 / span).min(1.0);
        self.floor + (self.peak - self.floor) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
    }
}

/// AdamW's constants; Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2017.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamWSettings {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of a weight, times the rate, taken off at every step; norms are spared.
    pub weight_decay: f64,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.05 }
    }
}

/// Moments of every parameter and the count of steps taken.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    settings: AdamWSettings,
    steps: u64,
    first: Vec<Vec<f32>>,
    second: Vec<Vec<f32>>,
}

impl AdamW {
    /// Zero moments for parameters of the given sizes.
    #[must_use]
    pub fn new(settings: AdamWSettings, sizes: &[usize]) -> Self {
        let zeros: Vec<Vec<f32>> = sizes.iter().map(|n| vec![0.0; *n]).collect();
        Self { settings, steps: 0, first: zeros.clone(), second: zeros }
    }

    /// An optimiser taken up where it was left after `steps` steps.
    #[must_use]
    pub fn restore(settings: AdamWSettings, steps: u64, first: Vec<Vec<f32>>, second: Vec<Vec<f32>>) -> Self {
        Self { settings, steps, first, second }
    }

    /// First and second moments, parameter by parameter.
    #[must_use]
    pub fn moments(&self) -> (&[Vec<f32>], &[Vec<f32>]) {
        (&self.first, &self.second)
    }

    /// Steps taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Moves `vars` against `grads` at the given rate.
    ///
    /// # Errors
    /// If the gradients do not fit the parameters.
    pub fn step(&mut self, vars: &[Var], grads: &[Vec<f32>], rate: f64) -> Result<(), TrainError> {
        let fits = grads.len() == vars.len() && grads.iter().zip(&self.first).all(|(g, m)| g.len() == m.len());
        if !fits {
            return Err(TrainError::Setting { name: "gradients", reason: "do not fit the parameters".into() });
        }
        self.steps += 1;
        let s = self.settings;
        let taken = self.steps.min(i32::MAX as u64) as i32;
        let (beta1, beta2, eps) = (s.beta1 as f32, s.beta2 as f32, s.eps as f32);
        let size = (rate / (1.0 - s.beta1.powi(taken))) as f32;
        let correction = (1.0 - s.beta2.powi(taken)) as f32;
        for (index, (var, grad)) in vars.iter().zip(grads).enumerate() {
            let keep = if var.rank() > 1 { (1.0 - rate * s.weight_decay) as f32 } else { 1.0 };
            let mut weights: Vec<f32> = var.flatten_all()?.to_vec1()?;
            let moments = self.first[index].iter_mut().zip(self.second[index].iter_mut());
            for ((w, g), (m, v)) in weights.iter_mut().zip(grad).zip(moments) {
                *m = beta1 * *m + (1.0 - beta1) * g;
                *v = beta2 * *v + (1.0 - beta2) * g * g;
                *w = *w * keep - size * *m / ((*v / correction).sqrt() + eps);
            }
            var.set(&Tensor::from_vec(weights, var.shape(), &Device::Cpu)?)?;
        }
        Ok(())
    }
}

/// Scales `grads` down so that their joint Euclidean norm is at most `limit`; returns the norm before.
///
/// Pascanu et al., "On the difficulty of training recurrent neural networks", 2013.
pub fn clip_global_norm(grads: &mut [Vec<f32>], limit: f64) -> f64 {
    let norm = grads.iter().flatten().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt();
    if norm > limit {
        let scale = (limit / norm) as f32;
        grads.iter_mut().flatten().for_each(|g| *g *= scale);
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_and_falls_to_the_floor() {
        let schedule = Schedule { peak: 1.0, floor: 0.1, warmup: 10, total: 110 };
        assert!((schedule.rate(0) - 0.1).abs() < 1e-9);
        assert!((schedule.rate(9) - 1.0).abs() < 1e-9);
        assert!((schedule.rate(109) - 0.1).abs() < 1e-9);
        assert!((10..109).all(|s| schedule.rate(s + 1) < schedule.rate(s)));
        assert!((schedule.rate(500) - 0.1).abs() < 1e-9);
    }

    #[test]
    fn clipping_keeps_the_direction() {
        let mut grads = vec![vec![3.0], vec![0.0, 4.0]];
        assert!((clip_global_norm(&mut grads, 1.0) - 5.0).abs() < 1e-9);
        assert!((grads[0][0] - 0.6).abs() < 1e-6 && (grads[1][1] - 0.8).abs() < 1e-6);
        let before = grads.clone();
        assert!((clip_global_norm(&mut grads, 2.0) - 1.0).abs() < 1e-6);
        assert_eq!(grads, before);
    }

    #[test]
    fn the_first_step_has_the_size_of_the_rate() {
        let var = Var::new(&[1.0f32, -1.0], &Device::Cpu).unwrap();
        let settings = AdamWSettings { weight_decay: 0.0, ..AdamWSettings::default() };
        let mut adam = AdamW::new(settings, &[2]);
        adam.step(std::slice::from_ref(&var), &[vec![0.5, -20.0]], 0.1).unwrap();
        let now: Vec<f32> = var.to_vec1().unwrap();
        assert!((now[0] - 0.9).abs() < 1e-5 && (now[1] + 0.9).abs() < 1e-5);
    }

    #[test]
    fn a_wrong_count_of_gradients_is_refused() {
        let var = Var::new(&[1.0f32], &Device::Cpu).unwrap();
        let mut adam = AdamW::new(AdamWSettings::default(), &[1]);
        assert!(adam.step(&[var], &[], 0.1).is_err());
    }
}
