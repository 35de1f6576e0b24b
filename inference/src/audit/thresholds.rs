//! Limits for pairs of numeric classes, with what was measured to set them.

use std::f64::consts::SQRT_2;
use std::path::{Path, PathBuf};

use consortium_protocol::wire::audit::NumericClass;
use serde::{Deserialize, Serialize};

use super::compare::PairLimits;
pub use super::tail::Tail;

/// The limits that are compiled in, measured on `consortium-tiny`.
const DEFAULT: &str = include_str!("thresholds.json");

/// Largest file of thresholds that is read, bytes.
const MAX_BYTES: u64 = 16 << 20;

/// Why thresholds could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ThresholdsError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason given by the system.
        source: std::io::Error,
    },
    /// It does not hold thresholds.
    #[error("these are no thresholds: {0}; make them again with `consortium-node audit calibrate`")]
    Format(#[from] serde_json::Error),
    /// Limits that contradict each other.
    #[error("the limits for {auditor:?} checking {auditee:?} over {layers} layers are not in order")]
    Order {
        /// Class of the auditor.
        auditor: NumericClass,
        /// Class of the auditee.
        auditee: NumericClass,
        /// Layers of the stage.
        layers: u16,
    },
    /// The file is larger than thresholds can be.
    #[error("{}: larger than 16 MiB", .0.display())]
    TooLarge(PathBuf),
}

/// What was measured, and the limits that follow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thresholds {
    /// The model it was measured on.
    pub model: String,
    /// Length of the sequences, rows.
    pub positions: usize,
    /// Processor threads of the machine.
    pub threads: usize,
    /// Ordered by auditor, auditee, layers.
    pub pairs: Vec<Pair>,
}

/// One ordered pair of classes and stages of one depth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// Class that recomputes, or that the reference is computed in.
    pub auditor: NumericClass,
    /// Class that is checked.
    pub auditee: NumericClass,
    /// Layers of the stage.
    pub layers: u16,
    /// Where things pass and where they are fraud.
    pub limits: PairLimits,
    /// What was measured.
    pub measured: Measured,
}

/// Distributions of honest work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Share of blocks that were equal bit for bit.
    pub exact: f64,
    /// Relative error of a block.
    pub error: Tail,
    /// [`super::compare::BlockStats::near`].
    pub near: Tail,
    /// [`super::compare::BlockStats::far`].
    pub far: Tail,
    /// [`super::compare::BlockStats::worst`].
    pub worst: Tail,
    /// [`super::compare::JobStats::near`].
    pub job_near: Tail,
    /// [`super::compare::JobStats::far`].
    pub job_far: Tail,
    /// [`super::compare::JobStats::systematic`].
    pub systematic: Tail,
    /// Twice the largest difference of a logit in a block: no honest draw can lose by more. Only from last stages; of all
    /// depths together.
    pub margin: Tail,
}

impl Thresholds {
    /// The limits that are compiled in: measured on `consortium-tiny`, a model of bf16 weights. The statistics they limit
    /// are relative to a rounding measured at every audit; whoever serves larger models should still calibrate on them.
    pub fn compiled_in() -> Self {
        Self::parse(DEFAULT).expect("a test parses the compiled-in thresholds")
    }

    /// Parses and checks thresholds.
    ///
    /// # Errors
    /// [`ThresholdsError::Format`] and [`ThresholdsError::Order`].
    pub fn parse(text: &str) -> Result<Self, ThresholdsError> {
        let mut thresholds: Self = serde_json::from_str(text)?;
        for pair in &thresholds.pairs {
            let l = &pair.limits;
            let ordered = [l.near, l.far, l.worst, l.job_near, l.job_far, l.systematic, l.margin]
                .iter()
                .all(|limits| limits.pass >= 0.0 && limits.pass < limits.fraud && limits.fraud.is_finite());
            if !ordered {
                let (auditor, auditee, layers) = (pair.auditor, pair.auditee, pair.layers);
                return Err(ThresholdsError::Order { auditor, auditee, layers });
            }
        }
        thresholds.pairs.sort_by_key(|pair| (pair.auditor, pair.auditee, pair.layers));
        Ok(thresholds)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`ThresholdsError`].
    pub fn read(path: &Path) -> Result<Self, ThresholdsError> {
        let io = |source| ThresholdsError::Io { path: path.into(), source };
        if std::fs::metadata(path).map_err(io)?.len() > MAX_BYTES {
            return Err(ThresholdsError::TooLarge(path.into()));
        }
        Self::parse(&std::fs::read_to_string(path).map_err(io)?)
    }

    /// The text of the file: JSON, a line for each pair.
    ///
    /// # Errors
    /// [`ThresholdsError::Format`] if a number is not finite.
    pub fn to_json(&self) -> Result<String, ThresholdsError> {
        let head = (serde_json::to_string(&self.model)?, self.positions, self.threads);
        let pairs: Vec<String> = self.pairs.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        Ok(format!(
            "{{\"model\":{},\"positions\":{},\"threads\":{},\"pairs\":[\n{}\n]}}\n",
            head.0,
            head.1,
            head.2,
            pairs.join(",\n")
        ))
    }

    /// The limits for an auditor and an auditee of these classes and a stage of so many layers: those of the least depth
    /// measured that is not less, since honest drift grows with depth; for `near` and `worst` of a block the widest up to
    /// there, since some depths are measured on few blocks. Beyond the greatest depth measured its limits of
    /// drift from the matching rows are taken times the root of two: there paths that round alike have nothing left in
    /// common, and lie that much further apart than one of them from a reference. `None` for classes that were not
    /// measured: nothing can be said of them.
    pub fn limits(&self, auditor: NumericClass, auditee: NumericClass, layers: u16) -> Option<PairLimits> {
        let mut best: Option<&Pair> = None;
        for pair in self.pairs.iter().filter(|pair| (pair.auditor, pair.auditee) == (auditor, auditee)) {
            if best.is_none_or(|best| best.layers < layers) {
                best = Some(pair);
            }
        }
        let best = best?;
        let (measured, mut limits) = (best.layers, best.limits);
        let shallower = |pair: &&Pair| (pair.auditor, pair.auditee) == (auditor, auditee) && pair.layers < measured;
        for pair in self.pairs.iter().filter(shallower) {
            limits.near = limits.near.wider(pair.limits.near);
            limits.worst = limits.worst.wider(pair.limits.worst);
        }
        if measured < layers {
            for drift in [&mut limits.near, &mut limits.worst, &mut limits.job_near] {
                drift.pass *= SQRT_2;
                drift.fraud *= SQRT_2;
            }
        }
        Some(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::super::classes::{ENGINE, available, bit_equal};
    use super::*;

    #[test]
    fn the_compiled_in_limits_cover_all_classes_and_lie_above_what_was_measured() {
        let thresholds = Thresholds::compiled_in();
        assert_eq!(thresholds.model, "consortium-tiny");
        for auditor in available() {
            for auditee in available() {
                for layers in [1, 2, 3, 5, 10, 80] {
                    assert!(thresholds.limits(auditor, auditee, layers).is_some(), "{auditor:?} {auditee:?} {layers}");
                }
            }
        }
        for Pair { auditor, auditee, limits, measured, .. } in &thresholds.pairs {
            for (limits, tail) in [
                (limits.near, measured.near),
                (limits.far, measured.far),
                (limits.worst, measured.worst),
                (limits.job_near, measured.job_near),
                (limits.job_far, measured.job_far),
                (limits.margin, measured.margin),
            ] {
                assert!(limits.pass >= tail.max && limits.fraud > limits.pass, "{auditor:?} {auditee:?}");
            }
            if bit_equal(*auditee, *auditee) {
                assert_eq!((measured.exact, limits.near.pass), (1.0, 2.0), "{auditor:?} {auditee:?}");
            }
        }
    }

    #[test]
    fn the_limits_of_the_next_greater_depth_are_taken() {
        let thresholds = Thresholds::compiled_in();
        let [own, _, half, _] = available();
        let of: Vec<&Pair> = thresholds.pairs.iter().filter(|p| (p.auditor, p.auditee) == (own, half)).collect();
        let depths: Vec<u16> = of.iter().map(|pair| pair.layers).collect();
        assert_eq!(depths, [1, 3, 4, 5, 10]);
        for (layers, index) in [(1, 0), (2, 1), (3, 1), (5, 3), (6, 4), (10, 4)] {
            let limits = thresholds.limits(own, half, layers).unwrap();
            assert_eq!((limits.far, limits.job_near), (of[index].limits.far, of[index].limits.job_near), "{layers}");
            assert!(of[..=index].iter().all(|pair| limits.near.fraud >= pair.limits.near.fraud), "{layers}");
        }
        let deep = thresholds.limits(own, half, 32).unwrap();
        assert_eq!(deep.far, of[4].limits.far);
        assert!(deep.near.pass > SQRT_2 && deep.near.fraud > deep.near.pass, "{deep:?}");
        let newer = NumericClass { engine: ENGINE + 1, ..half };
        assert_eq!(thresholds.limits(own, newer, 1), None);
    }

    #[test]
    fn files_are_checked() {
        let thresholds = Thresholds::compiled_in();
        let text = thresholds.to_json().unwrap();
        assert_eq!(Thresholds::parse(&text).unwrap(), thresholds);
        let mut wrong = thresholds;
        wrong.pairs[3].limits.far.fraud = 0.5;
        assert!(matches!(Thresholds::parse(&wrong.to_json().unwrap()), Err(ThresholdsError::Order { .. })));
        assert!(matches!(Thresholds::parse("{}"), Err(ThresholdsError::Format(_))));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("thresholds.json");
        assert!(matches!(Thresholds::read(&path), Err(ThresholdsError::Io { .. })));
        std::fs::write(&path, &text).unwrap();
        assert!(Thresholds::read(&path).is_ok());
    }
}
