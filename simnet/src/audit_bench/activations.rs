//! Activations on disk, for schemes that are measured elsewhere: raw f32 (little-endian, row-major) and an index in JSON.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use consortium_node::inference::audit::classes::available;
use consortium_node::inference::audit::compare::Finding;
use serde::Serialize;

use super::honest::{Bench, class_name};
use super::judge::{Judgement, Stage};
use super::subjects::Forged;
use crate::cheat::forge::bytes;

/// What lies in the directory.
#[derive(Debug, Serialize)]
struct Index {
    model: String,
    width: usize,
    classes: Vec<String>,
    /// What auditors recomputed.
    recomputed: Vec<Recomputed>,
    /// What auditees gave.
    observed: Vec<Observed>,
}

#[derive(Debug, Serialize)]
struct Recomputed {
    /// Names the inputs that it was recomputed from.
    inputs: String,
    auditor: String,
    file: String,
}

#[derive(Debug, Serialize)]
struct Observed {
    inputs: String,
    auditee: String,
    /// None for honest work.
    cheat: Option<String>,
    file: String,
    /// Blocks that the cheat changed; all of honest work.
    counted: Vec<bool>,
    /// What this project's auditors say, by class of the auditor.
    verdicts: Vec<Verdict>,
}

#[derive(Debug, Serialize)]
struct Verdict {
    auditor: String,
    blocks: Vec<Finding>,
    micros: f64,
}

/// A directory of activations in the making.
#[derive(Debug)]
pub struct Activations {
    dir: PathBuf,
    index: Index,
}

impl Activations {
    /// Makes the directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(dir: &Path, bench: &Bench) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let index = Index {
            model: bench.dir.name().to_owned(),
            width: bench.width(),
            classes: available().into_iter().map(class_name).collect(),
            recomputed: Vec::new(),
            observed: Vec::new(),
        };
        Ok(Self { dir: dir.to_owned(), index })
    }

    fn write(&self, name: String, values: &[f32]) -> Result<String> {
        let path = self.dir.join(&name);
        let mut file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        file.write_all(&bytes(values)).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(name)
    }

    /// Writes honest work, and what auditors of all classes recompute from its inputs.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn honest(
        &mut self,
        job: usize,
        class: usize,
        stage: &Stage<'_>,
        outputs: &[f32],
        judgements: &[Judgement],
    ) -> Result<()> {
        let inputs = format!("job{job}-stage{}-class{class}", stage.place);
        for (auditor, named) in available().into_iter().enumerate() {
            let file = self.write(format!("{inputs}-recomputed{auditor}.f32"), stage.recomputed(auditor))?;
            self.index.recomputed.push(Recomputed { inputs: inputs.clone(), auditor: class_name(named), file });
        }
        self.observe(&inputs, class, None, outputs, judgements, &|_| true)
    }

    /// Writes what a cheat made of it.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn cheat(
        &mut self,
        job: usize,
        class: usize,
        stage: &Stage<'_>,
        cheat: &str,
        forged: &Forged,
        judgements: &[Judgement],
    ) -> Result<()> {
        let inputs = format!("job{job}-stage{}-class{class}", stage.place);
        self.observe(&inputs, class, Some(cheat), &forged.outputs, judgements, &|block| forged.changed[block])
    }

    fn observe(
        &mut self,
        inputs: &str,
        class: usize,
        cheat: Option<&str>,
        outputs: &[f32],
        judgements: &[Judgement],
        counted: &dyn Fn(usize) -> bool,
    ) -> Result<()> {
        let name = cheat.unwrap_or("honest").replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        let file = self.write(format!("{inputs}-{name}.f32"), outputs)?;
        let blocks = judgements.first().map_or(0, |judgement| judgement.blocks.len());
        let verdict = |(auditor, judgement): (usize, &Judgement)| Verdict {
            auditor: class_name(available()[auditor]),
            blocks: judgement.blocks.iter().map(|block| block.finding).collect(),
            micros: judgement.comparing.as_secs_f64() * 1e6,
        };
        self.index.observed.push(Observed {
            inputs: inputs.to_owned(),
            auditee: class_name(available()[class]),
            cheat: cheat.map(str::to_owned),
            file,
            counted: (0..blocks).map(counted).collect(),
            verdicts: judgements.iter().enumerate().map(verdict).collect(),
        });
        Ok(())
    }

    /// Writes the index.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self) -> Result<()> {
        let path = self.dir.join("index.json");
        std::fs::write(&path, serde_json::to_string(&self.index)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}
