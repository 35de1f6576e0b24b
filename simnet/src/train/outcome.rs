//! From what was measured to verdicts and standings.

use consortium_node::training::gauntlet::{Evidence, Refusal, Standing, Verdict, rate};
use serde::Serialize;

/// What becomes of a peer's update.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It was examined, and judged.
    Judged(Verdict),
    /// It was committed to after the deadline.
    Late,
    /// It is no update of this run.
    Malformed,
}

impl Fate {
    /// Whether it enters the aggregate.
    #[must_use]
    pub fn accepted(self) -> bool {
        matches!(self, Self::Judged(Verdict::Accepted(_)))
    }

    /// In a word or two.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Judged(Verdict::Accepted(_)) => "accepted",
            Self::Judged(Verdict::Refused(Refusal::NoScore)) => "no score",
            Self::Judged(Verdict::Refused(Refusal::Copy)) => "copy",
            Self::Judged(Verdict::Refused(Refusal::OutOfSync)) => "out of sync",
            Self::Judged(Verdict::Refused(Refusal::Harm)) => "harm",
            Self::Judged(Verdict::Refused(Refusal::BelowMargin)) => "below margin",
            Self::Late => "late",
            Self::Malformed => "malformed",
        }
    }
}

/// What a round found out about a peer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// What was measured, if its update was examined.
    pub evidence: Option<Evidence>,
    /// What becomes of the update.
    pub fate: Fate,
}

/// Takes a round into the standings: ratings from the scores of what is let in, which all that is refused is below; then
/// reliability. Answers with the quality that each is paid for.
#[must_use]
pub fn outcome(findings: &[Finding], standings: &mut [Standing]) -> Vec<f64> {
    let score = |finding: &Finding| match finding.fate {
        Fate::Judged(Verdict::Accepted(score)) => score,
        _ => f64::NEG_INFINITY,
    };
    let mut ratings: Vec<_> = standings.iter().map(|s| s.rating).collect();
    rate(&mut ratings, &findings.iter().map(score).collect::<Vec<_>>());
    let qualities = findings.iter().zip(standings.iter_mut().zip(ratings)).map(|(finding, (standing, rating))| {
        let verdict = match finding.fate {
            Fate::Judged(verdict) => verdict,
            Fate::Late | Fate::Malformed => Verdict::Refused(Refusal::NoScore),
        };
        standing.rating = rating;
        standing.record(finding.evidence.as_ref().is_some_and(Evidence::own_data), verdict);
        standing.quality(verdict)
    });
    qualities.collect()
}
