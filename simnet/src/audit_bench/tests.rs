//! Every cheat against the auditor, on one short job of the project's own model.

use std::path::{Path, PathBuf};

use consortium_node::inference::audit::classes::available;
use consortium_node::inference::audit::compare::Finding;
use consortium_node::inference::audit::thresholds::Thresholds;

use super::custody::{Caught, Custody, Parties, Scheme};
use super::honest::{Bench, Job, Work};
use super::judge::Stage;
use super::subjects::{Forged, Subject, forge};
use crate::cheat::Kind;

const ROWS: usize = 96;
const CLASS: usize = 0;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("training").join("models/consortium-tiny")
}

/// A job of that number, cut short.
fn short(bench: &Bench, number: usize) -> Job {
    let mut job = bench.job(number, 5).unwrap();
    job.prompt.truncate(ROWS / 2);
    job.rows = ROWS;
    job
}

fn finding(bench: &Bench, job: &Job, work: &Work, place: usize, forged: Option<&Forged>) -> Finding {
    let stage = Stage::recompute(bench, job, work, place, 0).unwrap();
    let (outputs, drawn) = match forged {
        None => (&work.outputs[place], &work.drawn),
        Some(forged) => (&forged.outputs, &forged.drawn),
    };
    let margins = stage.margins(drawn).unwrap();
    stage.judge(CLASS, outputs, &margins, &Thresholds::compiled_in()).unwrap().finding
}

#[test]
fn honest_work_passes_and_every_cheat_is_fraud() {
    let bench = Bench::load(&model()).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let parties = Parties::new(bench.ranges.len());
    // The first job is what a replay replays.
    let jobs = [short(&bench, 0), short(&bench, 1)];
    let works = jobs.each_ref().map(|job| bench.work(job, CLASS).unwrap());
    for place in 0..bench.ranges.len() {
        assert_eq!(finding(&bench, &jobs[1], &works[1], place, None), Finding::Pass);
    }
    for subject in Subject::all().into_iter().filter(|subject| !subject.is_selective()) {
        let worker = subject.worker(&model(), scratch.path(), available()[CLASS]);
        for place in 0..bench.ranges.len() {
            let forged: Vec<Option<Forged>> = jobs
                .iter()
                .zip(&works)
                .map(|(job, work)| {
                    let order = parties.order(&bench, job, 0).unwrap();
                    forge(&worker, &bench, order.payload(), job, work, place).unwrap()
                })
                .collect();
            let kind = subject.cheat.kind;
            let possible = kind.possible(place == 0, place + 1 == bench.ranges.len());
            assert_eq!(forged[1].is_some(), possible, "{} on stage {place}", subject.label);
            assert!(kind != Kind::Replay || forged[0].is_none(), "a first job cannot be a replay");
            let Some(forged) = &forged[1] else { continue };
            if kind == Kind::ShortContext {
                assert_eq!(forged.changed, [false, false, true], "nothing is forgotten before position 64");
            }
            assert_eq!(finding(&bench, &jobs[1], &works[1], place, Some(forged)), Finding::Fraud, "{}", subject.label);
        }
    }
}

#[test]
fn commitments_cannot_be_forged() {
    let bench = Bench::load(&model()).unwrap();
    let parties = Parties::new(bench.ranges.len());
    let jobs = [short(&bench, 0), short(&bench, 1)];
    let works = jobs.each_ref().map(|job| bench.work(job, CLASS).unwrap());
    let [there, here] = [0, 1].map(|index| Custody::new(&parties, &bench, &jobs[index], &works[index], CLASS).unwrap());
    for scheme in Scheme::ALL {
        for place in 0..bench.ranges.len() {
            let caught = here.attempt(&parties, scheme, place, &there, &Thresholds::compiled_in()).unwrap();
            if let Some(caught) = caught {
                assert_eq!(caught == Caught::Nobody, scheme == Scheme::Honest, "{} on stage {place}", scheme.name());
            }
        }
    }
}
