//! `simnet audit-bench`: measures audits, and prints what they catch and what they do not.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use consortium_node::inference::audit::thresholds::Thresholds;
use consortium_node::inference::model_dir::ModelDir;
use consortium_simnet::audit_bench::rates::Rate;
use consortium_simnet::audit_bench::report::{CheatReport, Row};
use consortium_simnet::audit_bench::{Options, Report, run as measure, svg, workload};
use indicatif::{ProgressBar, ProgressStyle};

use super::table::aligned;
use super::terminal::print;
use crate::cli;
use crate::swarm::plan::default_model;

/// Tampered weights, gone when the value is.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Measures every model and prints.
pub(crate) fn run(arguments: &cli::AuditBench) -> Result<ExitCode> {
    let models = match arguments.model.is_empty() {
        true => vec![default_model()?],
        false => arguments.model.clone(),
    };
    let thresholds = match &arguments.thresholds {
        Some(path) => Thresholds::read(path)?,
        None => Thresholds::compiled_in(),
    };
    let scratch = Scratch(std::env::temp_dir().join(format!("consortium-audit-bench-{}", std::process::id())));
    let mut reports = Vec::new();
    for (number, model) in models.iter().enumerate() {
        let options = Options {
            model: model.clone(),
            blocks: arguments.blocks,
            seed: arguments.seed,
            scratch: scratch.0.join(number.to_string()),
            thresholds: thresholds.clone(),
            activations: arguments.activations.as_ref().map(|dir| match models.len() {
                1 => dir.clone(),
                _ => dir.join(number.to_string()),
            }),
        };
        let bar =
            ProgressBar::new(1).with_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} jobs, {eta} left")?);
        let report = measure(&options, &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        })
        .with_context(|| format!("the bench of {} failed", model.display()))?;
        bar.finish_and_clear();
        print(&text(&report))?;
        print(&workloads(model, &thresholds)?)?;
        reports.push(report);
    }
    if let Some(path) = &arguments.json {
        write(path, &serde_json::to_string_pretty(&reports)?)?;
    }
    if let Some(path) = &arguments.svg {
        let panels: Vec<_> = reports.iter().flat_map(|report| report.panels.clone()).collect();
        let names: Vec<&str> = reports.iter().map(|report| report.model.as_str()).collect();
        let title = format!(
            "Audits of {}: detection against false positives; beside each cheat, what is detected without any",
            names.join(", ")
        );
        write(path, &svg::document(&title, &panels))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn text(report: &Report) -> String {
    let heads = [
        format!(
            "{}, stages {}: {} jobs of {} rows in each of {} classes; {} honest blocks, each judged by auditors of all classes",
            report.model,
            report.stages.join(" "),
            report.jobs,
            report.rows,
            report.classes.len(),
            report.honest_blocks
        ),
        "honest work".to_owned(),
        "cheats, over all pairs of classes (intervals of 95 %); blocks a stage computes until it is caught, 20 % of jobs of 550 \
         positions audited".to_owned(),
        "where cheats hide in the noise: less than 99.9 % of the blocks detected that changed by more than rounding".to_owned(),
        "cheats at commitments: who notices".to_owned(),
        "agreement of auditors of different classes on the same work".to_owned(),
        "costs".to_owned(),
    ];
    let parts = [
        String::new(),
        honest(report),
        cheats(report),
        hidden(report),
        custody(report),
        agreement(report),
        costs(report),
    ];
    let sections = heads.iter().zip(&parts).map(|(head, part)| format!("{head}\n{part}"));
    sections.map(|section| format!("{}\n", section.trim_end())).collect::<Vec<_>>().join("\n")
}

fn honest(report: &Report) -> String {
    let head = [
        "auditor checks auditee",
        "blocks",
        "fraud",
        "not passed",
        "jobs",
        "fraud",
        "not passed",
        "equal bits",
        "largest/limit",
        "grid 64: equal",
        "within a step",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(report.honest.iter().chain([&report.honest_total]).map(|row| {
        [
            row.pair(),
            row.blocks.total().to_string(),
            row.blocks.frauds().percent(),
            row.blocks.doubts().percent(),
            row.jobs.total().to_string(),
            row.jobs.frauds().percent(),
            row.jobs.doubts().percent(),
            short(row.exact),
            format!("{:.2}", row.largest),
            short(row.source_equal),
            short(row.source_within),
        ]
    }));
    aligned(&rows)
}

fn cheats(report: &Report) -> String {
    let head = [
        "cheat",
        "blocks",
        "fraud",
        "not passed",
        "worst pair",
        "jobs",
        "fraud",
        "not passed",
        "worst pair",
        "honest blocks beside it called fraud",
        "grid 64: within a step",
        "blocks until caught",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(report.cheats.iter().map(|cheat| {
        let total = &cheat.total;
        let worst = |rate: fn(&Row) -> Rate| {
            let pairs = cheat.pairs.iter().map(rate).filter(|rate| rate.total > 0);
            pairs.min_by(|a, b| a.share().total_cmp(&b.share())).map_or_else(|| "-".to_owned(), short)
        };
        [
            cheat.cheat.clone(),
            total.blocks.total().to_string(),
            total.blocks.frauds().percent(),
            total.blocks.doubts().percent(),
            worst(|row| row.blocks.frauds()),
            total.jobs.total().to_string(),
            total.jobs.frauds().percent(),
            total.jobs.doubts().percent(),
            worst(|row| row.jobs.frauds()),
            total.untouched.frauds().percent(),
            short(total.source_within),
            format!("{:.0}", cheat.blocks_until_caught),
        ]
    }));
    aligned(&rows)
}

fn hidden(report: &Report) -> String {
    let head = ["cheat", "auditor checks auditee", "blocks: fraud", "jobs: fraud", "jobs: not passed", "could gain"];
    let mut rows = vec![head.map(str::to_owned)];
    let row = |cheat: &CheatReport, row: &Row| {
        [
            cheat.cheat.clone(),
            row.pair(),
            row.blocks.frauds().percent(),
            row.jobs.frauds().percent(),
            row.jobs.doubts().percent(),
            cheat.gain.to_owned(),
        ]
    };
    rows.extend(report.cheats.iter().flat_map(|cheat| cheat.hidden.iter().map(move |hidden| row(cheat, hidden))));
    if rows.len() == 1 {
        return "none".to_owned();
    }
    aligned(&rows)
}

fn custody(report: &Report) -> String {
    let mut rows = vec![["cheat", "tried", "noticed by"].map(str::to_owned)];
    rows.extend(report.custody.iter().map(|scheme| {
        let by: Vec<String> = scheme.caught.iter().map(|(who, count)| format!("{who} {count}")).collect();
        [scheme.scheme.to_owned(), scheme.tried.to_string(), by.join(", ")]
    }));
    aligned(&rows)
}

fn agreement(report: &Report) -> String {
    let mut rows = vec![["work", "same finding", "one passes what the other calls fraud"].map(str::to_owned)];
    let mut row = |work: &str, agreement: &consortium_simnet::audit_bench::tally::Agreement| {
        rows.push([work.to_owned(), agreement.same.percent(), agreement.contradiction.percent()]);
    };
    row("honest blocks", &report.honest_blocks_agreement);
    row("honest jobs", &report.honest_jobs_agreement);
    for cheat in &report.cheats {
        row(&format!("jobs of {}", cheat.cheat), &cheat.jobs_agreement);
    }
    aligned(&rows)
}

fn costs(report: &Report) -> String {
    let costs = &report.costs;
    let stages = report.stages.len();
    let mut lines = vec![format!(
        "receipts: {} bytes a job, all {stages} stages: {:.2} a position of 50 in and 500 out, {:.2} of 1000 in and 100 out",
        costs.receipt_bytes,
        costs.receipt_bytes_per_row(550),
        costs.receipt_bytes_per_row(1100),
    )];
    for (class, name) in report.classes.iter().enumerate() {
        lines.push(format!("generation in {name}: {:.0} us a position, all stages", costs.generation_micros(class)));
    }
    lines.push(format!(
        "recomputing in one class: {:.0} us a position, all stages; comparing: {:.0} us a block of a stage",
        costs.recomputing_micros(stages),
        costs.comparing_micros()
    ));
    lines.join("\n")
}

/// What commitments and audits cost beside the work, for two shapes of jobs.
fn workloads(model: &Path, thresholds: &Thresholds) -> Result<String> {
    let dir = ModelDir::open(model)?;
    let context = dir.config().max_positions as usize;
    let mut lines = vec!["shares of the time of generation, medians of 9 turns".to_owned()];
    for (prompt, generated) in [(50, 500), (1000, 100)] {
        // A shorter context takes the same parts of it.
        let fitting = context.min(prompt + generated);
        let (prompt, generated) = (prompt * fitting / (prompt + generated), generated * fitting / (prompt + generated));
        let cost = workload::measure(&dir, thresholds, prompt, generated, 9)?;
        lines.push(format!(
            "{prompt} in and {generated} out: committing {:.2} %, auditing all of it {:.1} %, at the default rate {:.2} %",
            100.0 * cost.commitment,
            100.0 * cost.audit,
            100.0 * cost.at_default_rate()
        ));
    }
    Ok(lines.join("\n") + "\n\n")
}

/// A share without its interval.
fn short(rate: Rate) -> String {
    if rate.total == 0 { "-".to_owned() } else { format!("{:.1} %", 100.0 * rate.share()) }
}
