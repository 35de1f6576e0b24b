//! From signed losses to a verdict, and from verdicts to what a peer is paid for.

use serde::{Deserialize, Serialize};

use super::doubt::{Estimate, Merit};
use super::rating::{Rating, rate};

/// What an update must improve the loss on what nobody trained on by, as a part of it, to be let in: twice what measuring may
/// be off by.
pub const MARGIN: f64 = 2.0 * TOLERANCE;
/// What an update may make a single held-out batch worse by, as a part of its loss, if it improves them on the whole. A batch
/// is little text, and late in a run a step that one peer's data ask for is not one that all rows ask for: of 240 honest
/// updates five improved the mean by a percent and made one batch of three worse by one to two.
pub const WORST: f64 = 0.02;
/// What doubt excuses at most: an update that makes things worse by a larger part is refused, however little sure that is.
const MOST_EXCUSED: f64 = WORST / 4.0;
/// The part of what is [`usual`] in the round that an update without the margin must be worth at best. Noise is worth nothing:
/// with three standard errors of five batches it is refused once others gain some five times what its batches differ by, as
/// they do early in a run.
const LEAST_PART: f64 = 0.25;
/// How far a loss may be off when another machine computes it.
pub const TOLERANCE: f64 = 1e-4;
/// Most outer steps that a peer's parameters may be away from the common ones. All peers hold the same bits, so that an
/// honest one is not away at all, and one that missed a single round is away by about one; the few numbers that are compared
/// estimate that step roughly. (Where peers keep parameters that differ, the literature allows 3.)
pub const MOST_DRIFT: f64 = 0.1;
/// Weight of the newest round in what builds up over rounds: reliability, and merit.
pub(super) const RECENT: f64 = 0.05;

/// Mean loss of one batch before and after an update, in nats per token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    /// With the common parameters.
    pub before: f64,
    /// With the update applied to them.
    pub after: f64,
}

impl Losses {
    /// The part of the loss that the update takes off; minus infinity if a loss is no positive number.
    #[must_use]
    pub fn score(&self) -> f64 {
        let sound = |loss: f64| loss.is_finite() && loss > 0.0;
        if sound(self.before) && sound(self.after) {
            (self.before - self.after) / self.before
        } else {
            f64::NEG_INFINITY
        }
    }
}

/// The scores of losses, as an estimate.
fn estimate<'a>(losses: impl IntoIterator<Item = &'a Losses>) -> Estimate {
    Estimate::of(&losses.into_iter().map(Losses::score).collect::<Vec<_>>())
}

/// The mean of scores in the order given; minus infinity if there are none.
fn mean(losses: &[Losses]) -> f64 {
    estimate(losses).mean
}

/// Whether an aggregate with these scores on held-out batches is to be taken back: it made things worse by more than `doubt`
/// standard errors of them, or by half of [`WORST`], however little sure that is.
#[must_use]
pub fn harms(scores: &[f64], doubt: f64) -> bool {
    let score = Estimate::of(scores);
    score.at_best(doubt) < -MARGIN || score.mean < -WORST / 2.0
}

/// The median of what several validators say, of an even number the lower; minus infinity if none says anything. Fewer than
/// half of them cannot move it beyond what an honest one says.
#[must_use]
pub fn median(scores: &[f64]) -> f64 {
    let mut sorted: Vec<f64> = scores.iter().map(|s| if s.is_nan() { f64::NEG_INFINITY } else { *s }).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NEG_INFINITY)
}

/// What validators found out about one update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// On batches that were assigned to the peer.
    pub assigned: Vec<Losses>,
    /// On batches of the same split that were assigned to nobody; empty where the run has none.
    pub unassigned: Vec<Losses>,
    /// On held-out batches that were drawn after all updates were committed to.
    pub held_out: Vec<Losses>,
    /// Distance of the peer's parameters from the common ones, in outer steps.
    pub drift: f64,
    /// Whether the update is too much like an earlier one; see [`super::copies`].
    pub copy: bool,
}

/// Why an update is kept out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// A loss was no positive number, or there was none.
    NoScore,
    /// It is too much like another peer's.
    Copy,
    /// The peer trained on other parameters than the common ones.
    OutOfSync,
    /// It makes batches worse that nobody trained on, or a single held-out one by much; or the peer's updates did so together.
    Harm,
    /// It does not improve the loss on what nobody trained on by the margin.
    BelowMargin,
}

/// What becomes of an update.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Verdict {
    /// It enters the aggregate, with this score.
    Accepted(f64),
    /// It does not.
    Refused(Refusal),
}

/// What updates of a round are worth as a rule: the median score of those that have one, are nobody else's, and are of the
/// common parameters; zero if there are none, or half of them do harm.
fn usual<'a>(round: impl IntoIterator<Item = &'a Evidence>) -> f64 {
    let own = round.into_iter().filter(|evidence| !evidence.copy && evidence.is_in_sync());
    let scores: Vec<f64> = own.map(Evidence::score).filter(|score| score.is_finite()).collect();
    median(&scores).max(0.0)
}

/// What a round says about each of its peers, where there is evidence about an update, in a run that doubts scores by so many
/// standard errors; in the order of the peers, as are their standings before it.
#[must_use]
pub fn showings(round: &[Option<Evidence>], standings: &[Standing], doubt: f64) -> Vec<Showing> {
    let usual = usual(round.iter().flatten());
    let showing = |(evidence, standing): (&Option<Evidence>, &Standing)| match evidence {
        Some(evidence) => evidence.showing(standing.merit, doubt, usual),
        None => Showing::NOTHING,
    };
    round.iter().zip(standings).map(showing).collect()
}

impl Evidence {
    /// What it says about a peer with this merit, in a run that doubts scores by so many standard errors and a round whose
    /// updates are worth as much as is [`usual`] in it.
    fn showing(&self, merit: Merit, doubt: f64, usual: f64) -> Showing {
        let (score, is_own) = (self.estimate(), !self.copy && self.is_in_sync());
        // Without doubt every update is judged by itself.
        let merit = if doubt > 0.0 && is_own && score.mean.is_finite() { merit.with(score) } else { merit };
        Showing {
            verdict: self.judge(merit, doubt, usual),
            score: score.mean,
            own_data: self.own_data(),
            merit: Some(merit),
        }
    }

    /// The score over all batches that nobody trained on: held-out ones, and those of the training split that were assigned
    /// to nobody.
    fn estimate(&self) -> Estimate {
        estimate(self.held_out.iter().chain(&self.unassigned))
    }

    /// Its mean; minus infinity if there is none.
    #[must_use]
    pub fn score(&self) -> f64 {
        self.estimate().mean
    }

    fn is_in_sync(&self) -> bool {
        self.drift <= MOST_DRIFT
    }

    /// Batches that the peer did not train on, of the same kind as its own where there are such.
    fn others(&self) -> &[Losses] {
        if self.unassigned.is_empty() { &self.held_out } else { &self.unassigned }
    }

    /// Whether the update improves the peer's own batches more than others.
    #[must_use]
    pub fn own_data(&self) -> bool {
        mean(&self.assigned) > mean(self.others())
    }

    /// Whether the update is let in, where `merit` has it already. Good rounds before buy nothing: an update that does harm
    /// beyond doubt is refused by this round alone.
    fn judge(&self, merit: Merit, doubt: f64, usual: f64) -> Verdict {
        let score = self.estimate();
        let at_best = score.at_best(doubt);
        let is_bad = |losses: &Losses| losses.score() < -WORST;
        // One batch that is far off makes all of them unsure.
        let hides = doubt > 0.0 && (score.mean < -MOST_EXCUSED || self.unassigned.iter().any(is_bad));
        let is_sound = merit.is_sound(doubt);
        let is_idle = score.mean < MARGIN && at_best < LEAST_PART * usual;
        let refusal =
            if !score.mean.is_finite() || !mean(&self.assigned).is_finite() || !mean(self.others()).is_finite() {
                Refusal::NoScore
            } else if self.copy {
                Refusal::Copy
            } else if !self.is_in_sync() {
                Refusal::OutOfSync
            } else if at_best < -TOLERANCE
                || self.held_out.iter().any(is_bad)
                || hides
                || (!is_sound && score.mean < -TOLERANCE)
            {
                Refusal::Harm
            } else if at_best < MARGIN || !is_sound || is_idle {
                Refusal::BelowMargin
            } else {
                return Verdict::Accepted(score.mean);
            };
        Verdict::Refused(refusal)
    }
}

/// What a peer has earned over rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// Its scores against the others', updated by [`super::rate`].
    pub rating: Rating,
    /// From -1 to 1: how reliably its updates improve its own batches more than others.
    pub reliability: f64,
    /// What its updates were worth together; nothing where every update is judged by itself.
    pub merit: Merit,
}

impl Standing {
    /// Takes a round in. A refused update counts as one that was not trained on the peer's data.
    fn record(&mut self, own_data: bool, verdict: Verdict) {
        let sign = if own_data && matches!(verdict, Verdict::Accepted(_)) { 1.0 } else { -1.0 };
        self.reliability = (1.0 - RECENT) * self.reliability + RECENT * sign;
    }

    /// What the round's pay is in proportion to: nothing for a refused update, and nothing for who is unreliable or rated
    /// below zero. Two negative numbers do not make a positive one.
    #[must_use]
    pub fn quality(&self, verdict: Verdict) -> f64 {
        match verdict {
            Verdict::Accepted(_) => self.reliability.max(0.0) * self.rating.ordinal().max(0.0),
            Verdict::Refused(_) => 0.0,
        }
    }
}

/// What a round says about a peer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Showing {
    /// What becomes of its update.
    pub verdict: Verdict,
    /// Its mean score on held-out batches; minus infinity if there is none.
    pub score: f64,
    /// Whether it improves the peer's own batches more than others.
    pub own_data: bool,
    /// The peer's merit after it; none if that stays as it is.
    pub merit: Option<Merit>,
}

impl Showing {
    /// Of a peer without an update that could be measured.
    pub const NOTHING: Self =
        Self { verdict: Verdict::Refused(Refusal::NoScore), score: f64::NEG_INFINITY, own_data: false, merit: None };

    /// What its place among the others goes by: what was measured, but nothing for updates that are no work of the round.
    fn rank(&self) -> f64 {
        match self.verdict {
            Verdict::Accepted(_) | Verdict::Refused(Refusal::Harm | Refusal::BelowMargin) => self.score,
            Verdict::Refused(Refusal::NoScore | Refusal::Copy | Refusal::OutOfSync) => f64::NEG_INFINITY,
        }
    }
}

/// Takes a round into the standings of its peers: ratings by their scores, copies and what nobody could measure last,
/// together; then reliability.
pub fn take_round(standings: &mut [Standing], round: &[Showing]) {
    let mut ratings: Vec<Rating> = standings.iter().map(|standing| standing.rating).collect();
    rate(&mut ratings, &round.iter().map(Showing::rank).collect::<Vec<_>>());
    for ((standing, rating), showing) in standings.iter_mut().zip(ratings).zip(round) {
        standing.rating = rating;
        standing.merit = showing.merit.unwrap_or(standing.merit);
        standing.record(showing.own_data, showing.verdict);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(assigned: f64, held_out: &[f64]) -> Evidence {
        let losses = |score: &f64| Losses { before: 2.0, after: 2.0 * (1.0 - score) };
        Evidence {
            assigned: vec![losses(&assigned)],
            unassigned: held_out.iter().map(losses).collect(),
            held_out: held_out.iter().map(losses).collect(),
            drift: 0.0,
            copy: false,
        }
    }

    fn judged(evidence: &Evidence) -> Verdict {
        evidence.showing(Merit::default(), 0.0, 0.0).verdict
    }

    fn refusal(evidence: &Evidence) -> Option<Refusal> {
        match judged(evidence) {
            Verdict::Refused(refusal) => Some(refusal),
            Verdict::Accepted(_) => None,
        }
    }

    #[test]
    fn exploit_zero_gradients_then_noise_a_negative_times_a_negative_is_not_paid() {
        let standing = Standing { rating: Rating { mu: 1.0, sigma: 8.0 }, reliability: -0.9, ..Standing::default() };
        assert!(standing.rating.ordinal() * standing.reliability > 0.0, "what was paid");
        assert_eq!(standing.quality(Verdict::Accepted(0.01)).to_bits(), 0f64.to_bits());
    }

    #[test]
    fn exploit_updates_next_to_nothing_stay_below_the_margin() {
        for score in [0.0, 1e-9, TOLERANCE, 1.9 * TOLERANCE] {
            assert_eq!(refusal(&evidence(1e-3, &[score; 3])), Some(Refusal::BelowMargin));
        }
        assert_eq!(refusal(&evidence(1e-3, &[3.0 * TOLERANCE; 3])), None);
    }

    #[test]
    fn exploit_harm_by_a_peer_with_the_best_standing_is_refused_in_the_same_round_and_unpaid() {
        let standing = Standing { rating: Rating { mu: 60.0, sigma: 1.0 }, reliability: 1.0, ..Standing::default() };
        let harm = evidence(0.05, &[0.03, 0.03, -0.021]);
        assert_eq!(refusal(&harm), Some(Refusal::Harm), "one harmed batch is enough, whatever the mean");
        assert!(standing.quality(judged(&harm)) < 1e-300 && standing.quality(Verdict::Accepted(0.01)) > 1.0);
    }

    #[test]
    fn a_batch_that_gets_a_little_worse_by_chance_does_not_refuse_an_update_that_is_good_on_the_whole() {
        assert_eq!(refusal(&evidence(0.01, &[0.02, 0.01, -0.019])), None);
        assert_eq!(refusal(&evidence(0.01, &[0.002, 0.001, -0.004])), Some(Refusal::Harm));
    }

    #[test]
    fn the_score_is_over_all_batches_that_nobody_trained_on() {
        let mut found = evidence(0.01, &[0.01, 0.02, 0.03]);
        found.unassigned = vec![Losses { before: 2.0, after: 2.1 }];
        assert!((found.score() - 0.0025).abs() < 1e-12, "{}", found.score());
        found.unassigned.clear();
        assert!((found.score() - 0.02).abs() < 1e-12);
    }

    #[test]
    fn losses_that_are_no_losses_are_refused() {
        for bad in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
            let mut odd = evidence(0.02, &[0.01; 3]);
            odd.held_out[1].after = bad;
            assert_eq!(refusal(&odd), Some(Refusal::NoScore));
            let mut odd = evidence(0.02, &[0.01; 3]);
            odd.assigned[0].before = bad;
            assert_eq!(refusal(&odd), Some(Refusal::NoScore));
        }
        assert_eq!(refusal(&evidence(0.02, &[])), Some(Refusal::NoScore));
    }

    #[test]
    fn stale_and_copied_updates_are_refused_with_their_reasons() {
        let good = evidence(0.02, &[0.01; 3]);
        assert_eq!(refusal(&good), None);
        assert_eq!(refusal(&Evidence { drift: 0.8, ..good.clone() }), Some(Refusal::OutOfSync));
        assert_eq!(refusal(&Evidence { drift: f64::NAN, ..good.clone() }), Some(Refusal::OutOfSync));
        assert_eq!(refusal(&Evidence { copy: true, ..good }), Some(Refusal::Copy));
    }

    #[test]
    fn a_validator_that_lies_does_not_move_the_median_beyond_the_honest() {
        for lie in [f64::NEG_INFINITY, -1.0, 1.0, f64::INFINITY, f64::NAN] {
            assert!((0.010..=0.011).contains(&median(&[0.010, lie, 0.011])), "{lie}");
        }
        assert!(median(&[]) < -1e300);
    }

    #[test]
    fn what_chance_may_have_done_is_not_held_against_an_update_and_what_it_cannot_is() {
        let doubted = |scores: &[f64]| match evidence(0.01, scores).showing(Merit::default(), 2.0, 0.0).verdict {
            Verdict::Accepted(_) => None,
            Verdict::Refused(refusal) => Some(refusal),
        };
        assert_eq!(doubted(&[0.004, -0.005, -0.001]), None, "as far apart as that nobody can tell");
        assert_eq!(doubted(&[-0.004, -0.005, -0.003]), Some(Refusal::Harm), "all of them are worse");
        assert_eq!(doubted(&[0.03, 0.03, -0.021]), Some(Refusal::Harm), "one is much worse");
        assert_eq!(doubted(&[0.004, 0.004, -0.019]), None);
        assert_eq!(doubted(&[-0.019, 0.01, -0.01]), Some(Refusal::Harm), "more than doubt excuses");
        let mut hiding = evidence(0.01, &[-0.003; 3]);
        hiding.unassigned[0].after = 2.2;
        assert_eq!(hiding.showing(Merit::default(), 2.0, 0.0).verdict, Verdict::Refused(Refusal::Harm), "of any batch");
        assert_eq!(doubted(&[1e-6, -1e-6, 1e-7]), Some(Refusal::BelowMargin), "next to nothing, beyond doubt");
    }

    #[test]
    fn exploit_noise_among_updates_that_gain_much_gets_no_benefit_of_the_doubt() {
        // It seems to do a little harm, and may by as little have done some good.
        let noise = evidence(0.0, &[0.0012, -0.0031, -0.0008]);
        let little = evidence(0.01, &[0.001; 3]);
        let beside = |gains: f64| {
            let honest = evidence(gains, &[gains; 3]);
            let round = [&honest, &honest, &honest, &noise, &little].map(|found| Some(found.clone()));
            showings(&round, &[Standing::default(); 5], 2.0).iter().map(|s| s.verdict).collect::<Vec<_>>()
        };
        assert_eq!(beside(0.012)[3], Verdict::Refused(Refusal::BelowMargin));
        assert!(matches!(beside(0.002)[3], Verdict::Accepted(_)), "they gain little themselves");
        assert!(matches!(beside(0.02)[4], Verdict::Accepted(_)), "who shows the margin needs no doubt");
    }

    #[test]
    fn copies_and_what_is_out_of_sync_do_not_change_what_is_usual() {
        let good = evidence(0.01, &[0.01; 3]);
        let copy = Evidence { copy: true, ..evidence(0.5, &[0.5; 3]) };
        let stale = Evidence { drift: 1.0, ..evidence(-0.5, &[-0.5; 3]) };
        assert!((usual([&good, &copy, &copy, &stale, &stale]) - 0.01).abs() < 1e-9);
        let none: [&Evidence; 0] = [];
        let unknown = evidence(0.0, &[f64::NAN; 3]);
        assert!((usual([&good, &unknown, &unknown]) - 0.01).abs() < 1e-9, "what nobody could measure");
        for worthless in [usual(none), usual([&copy]), usual([&evidence(0.0, &[-0.1; 3])])] {
            assert_eq!(worthless.to_bits(), 0f64.to_bits());
        }
    }

    #[test]
    fn exploit_a_little_harm_in_every_round_is_refused_when_it_has_added_up() {
        let (mut standing, worse) = ([Standing::default()], evidence(0.01, &[0.003, -0.005, -0.001]));
        let mut refused = 0;
        for _ in 0..30 {
            let showing = worse.showing(standing[0].merit, 2.0, 0.0);
            refused += u32::from(showing.verdict == Verdict::Refused(Refusal::Harm));
            take_round(&mut standing, &[showing]);
        }
        assert!((15..30).contains(&refused), "{refused}");
        let better = evidence(0.01, &[0.005, -0.003, 0.001]);
        for _ in 0..60 {
            let showing = better.showing(standing[0].merit, 2.0, 0.0);
            take_round(&mut standing, &[showing]);
        }
        assert!(standing[0].merit.is_sound(0.0), "who does better is let in again");
    }

    #[test]
    fn an_aggregate_is_taken_back_for_harm_that_is_beyond_doubt() {
        assert!(harms(&[-0.001, 0.0, -0.002], 0.0) && !harms(&[-0.001, 0.0, -0.002], 3.0));
        assert!(harms(&[-0.010, -0.011, -0.012], 3.0), "all of them are worse");
        assert!(harms(&[0.1, -0.1, -0.1], 3.0), "much worse on the whole");
        assert!(harms(&[f64::NEG_INFINITY, 0.0], 3.0) && harms(&[], 3.0));
        assert!(!harms(&[-1e-4; 3], 0.0), "as far as losses may be off");
    }

    #[test]
    fn who_trains_on_its_own_data_is_paid_and_who_does_not_is_not() {
        // A worker, one that trains on any data but its own, and one that sends nothing of worth.
        let rounds = [evidence(0.02, &[0.01; 3]), evidence(0.008, &[0.009; 3]), evidence(0.0, &[0.0; 3])];
        let mut standings = [Standing::default(); 3];
        for _ in 0..30 {
            take_round(&mut standings, &rounds.each_ref().map(|round| round.showing(Merit::default(), 0.0, 0.0)));
        }
        let paid: Vec<f64> = standings.iter().zip(&rounds).map(|(s, r)| s.quality(judged(r))).collect();
        assert!(paid[0] > 1.0 && paid[1] < 1e-300 && paid[2] < 1e-300, "{paid:?}");
    }
}
