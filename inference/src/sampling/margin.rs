//! By how much a token lost the draw: how an auditor checks sampling with logits that are not quite the drawer's.

use super::{Candidate, NoiseStream, SampleError, Sampler, best_of};
use crate::kernels::exp;

impl Sampler {
    /// By how much a token lost the draw of `position`, in logits: 0 if [`Sampler::sample`] draws it. An auditor whose
    /// logits each differ from the drawer's by at most `d` finds at most `2 d` for an honest draw, times the repetition
    /// penalty if that is above 1.
    ///
    /// A token loses to a candidate by the difference of their logits, Gumbel noise (times the temperature) included;
    /// but a candidate that would itself have been left out by top-k, top-p or min-p had logits been a little different
    /// beats it by no more than that little. If the filters leave the token out, it lost by at least what it lacked. Where
    /// top-p cuts is measured by the log-odds of the mass before it: moving better and worse logits apart by `d` each
    /// moves them by `2 d`.
    ///
    /// `logits` is scratch. Infinite for a token that could never be drawn.
    ///
    /// # Errors
    /// [`SampleError`] when the logits are not numbers.
    pub fn margin(&self, logits: &mut [f32], context: &[u32], position: u32, token: u32) -> Result<f64, SampleError> {
        self.penalise(logits, context);
        let best = best_of(logits)?;
        let Some(logit) = logits.get(token as usize).filter(|l| **l > f32::NEG_INFINITY) else {
            return Ok(f64::INFINITY);
        };
        let greedy = self.sampling.temperature == 0.0 || self.sampling.top_k == 1;
        let lost = if greedy {
            if best.id == token {
                return Ok(0.0);
            }
            f64::from(best.logit) - f64::from(*logit)
        } else {
            if self.draw(&self.candidates(logits, best), best, position) == token {
                return Ok(0.0);
            }
            f64::from(self.sampling.temperature) * self.lost_draw(logits, position, token)
        };
        // A tie that was lost is lost, by next to nothing.
        Ok(lost.max(f64::MIN_POSITIVE))
    }

    /// By how much a token lost that was not drawn, in logits divided by the temperature.
    fn lost_draw(&self, logits: &[f32], position: u32, token: u32) -> f64 {
        let mut sorted: Vec<Candidate> = logits
            .iter()
            .zip(0..)
            .map(|(logit, id)| Candidate { id, logit: logit / self.sampling.temperature })
            .filter(|c| c.logit > f32::NEG_INFINITY)
            .collect();
        sorted.sort_unstable_by(Candidate::order);
        let Some(own) = sorted.iter().position(|c| c.id == token) else {
            return f64::INFINITY;
        };
        let filters = Filters::new(self, &sorted);
        let mut noise = NoiseStream::new(&self.key, position);
        let mut score = |c: &Candidate| f64::from(c.logit) - (-noise.uniform(c.id).ln()).ln();
        let own_score = score(&sorted[own]);
        let mut lost = -filters.slack(own);
        for (index, candidate) in sorted.iter().enumerate() {
            let by = score(candidate) - own_score;
            if by > lost && filters.holds(index) {
                lost = lost.max(by.min(filters.slack(index)));
            }
        }
        lost
    }
}

/// Top-k, top-p and min-p over tokens that are sorted, best first.
struct Filters<'a> {
    sorted: &'a [Candidate],
    /// How many top-k leaves.
    kept: usize,
    /// How far the log-odds of the mass before each of those are below where top-p cuts; empty without top-p.
    room: Vec<f64>,
    /// Least logit by min-p.
    floor: f64,
}

impl<'a> Filters<'a> {
    fn new(sampler: &Sampler, sorted: &'a [Candidate]) -> Self {
        let s = &sampler.sampling;
        let kept = match s.top_k as usize {
            0 => sorted.len(),
            k => k.min(sorted.len()),
        };
        let mut room = Vec::new();
        if s.top_p < 1.0 {
            let mass = |c: &Candidate| f64::from(exp(c.logit - sorted[0].logit));
            let total: f64 = sorted[..kept].iter().map(mass).sum();
            let odds = |p: f64| (p / (1.0 - p).max(f64::MIN_POSITIVE)).ln();
            let mut before = 0.0;
            for candidate in &sorted[..kept] {
                room.push(odds(f64::from(s.top_p)) - odds(before / total));
                before += mass(candidate);
            }
        }
        let floor = match s.min_p > 0.0 {
            true => f64::from(sorted[0].logit) + f64::from(s.min_p).ln(),
            false => f64::NEG_INFINITY,
        };
        Self { sorted, kept, room, floor }
    }

    fn logit(&self, index: usize) -> f64 {
        f64::from(self.sorted[index].logit)
    }

    /// Whether the filters leave a token in. The best always stays.
    fn holds(&self, index: usize) -> bool {
        let nucleus = self.room.get(index).is_none_or(|room| *room > 0.0);
        index == 0 || (index < self.kept && nucleus && self.logit(index) >= self.floor)
    }

    /// How far a token is from being left out, or, below zero, from being let in.
    fn slack(&self, index: usize) -> f64 {
        if index == 0 {
            return f64::INFINITY;
        }
        let own = self.logit(index);
        let mut slack = own - self.floor;
        if index >= self.kept {
            return slack.min(own - self.logit(self.kept - 1));
        }
        if self.kept < self.sorted.len() {
            slack = slack.min(own - self.logit(self.kept));
        }
        if self.room.is_empty() {
            return slack;
        }
        // It may change places with others and the odds may move, both at once: the cheapest place to meet.
        let meet = |gap: f64, room: f64| gap.abs().max(room.abs());
        let nucleus = match self.room[index] > 0.0 {
            // Falling behind others makes the room smaller; behind the last there is none.
            true => {
                let behind = (index..self.kept).find(|k| own - self.logit(*k) >= self.room[*k]).unwrap_or(self.kept);
                let at = |k: usize| meet(own - self.logit(k), self.room[k].max(0.0));
                let beyond = if behind < self.kept { at(behind) } else { f64::INFINITY };
                beyond.min(if behind > index { at(behind - 1) } else { f64::INFINITY })
            }
            // Overtaking others makes the lack smaller, until there is room.
            false => {
                let last = self.room.partition_point(|room| *room > 0.0).max(1) - 1;
                let at = |k: usize| meet(self.logit(k) - own, self.room[k].min(0.0));
                -(last..=index).map(at).fold(f64::INFINITY, f64::min)
            }
        };
        slack.min(nucleus)
    }
}
