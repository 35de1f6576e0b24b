//! What a swarm was meant to be, written down so that `--resume` can start the same one again.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use consortium_simnet::cheat::Assignment;
use serde::{Deserialize, Serialize};

use super::capacity::budgets;
use super::chain::ChainPlan;
use super::directory::{SwarmDir, replace_file};
use super::model::Demand;

/// Version of the file; a file of another version is refused.
const VERSION: u32 = 1;

/// Most nodes of one swarm: what one cluster admits.
pub(crate) const MAX_NODES: usize = consortium_protocol::MAX_MEMBERS;

/// The plan of a swarm.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    version: u32,
    /// What the capacities were drawn from.
    pub(crate) seed: u64,
    /// First half of the cluster's name; the founder's PeerId is the second.
    pub(crate) cluster: String,
    /// Directory of the model.
    pub(crate) model: PathBuf,
    /// The node's binary.
    pub(crate) binary: PathBuf,
    /// Layers of the model.
    pub(crate) layers: usize,
    /// Stages of the pipeline.
    pub(crate) stages: usize,
    /// Memory that each node offers, in bytes; its length is the number of nodes.
    pub(crate) memory: Vec<u64>,
    /// How dishonest nodes cheat, by their number from 1.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) cheats: BTreeMap<usize, String>,
    /// How many nodes, the last ones, begin with nothing in their wallets.
    #[serde(default)]
    pub(crate) newcomers: usize,
    /// The chain of its wallets.
    #[serde(default)]
    pub(crate) chain: ChainPlan,
    /// The node that sells, by its number from 1; none for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) seller: Option<usize>,
}

impl Plan {
    /// Plans a swarm of `nodes` nodes for the model in `model`.
    ///
    /// # Errors
    /// When the model cannot be read or the number of nodes is out of range.
    pub(crate) fn new(dir: &SwarmDir, nodes: usize, seed: u64, model: &Path, binary: &Path) -> Result<Self> {
        if !(1..=MAX_NODES).contains(&nodes) {
            bail!("a swarm has 1 to {MAX_NODES} nodes, not {nodes}");
        }
        let model = std::path::absolute(model)?;
        let demand = Demand::of(&model)?;
        let mut hasher = DefaultHasher::new();
        (seed, dir.root()).hash(&mut hasher);
        Ok(Self {
            version: VERSION,
            seed,
            cluster: format!("simnet-{:08x}", hasher.finish() & 0xffff_ffff),
            layers: demand.layers,
            stages: nodes.min(demand.layers),
            memory: budgets(&demand, nodes, seed),
            model,
            binary: binary.to_owned(),
            cheats: BTreeMap::new(),
            newcomers: 0,
            chain: ChainPlan::Off,
            seller: None,
        })
    }

    /// The same plan, whose last node sells.
    ///
    /// # Errors
    /// When there are fewer than three nodes: the swarm's own gateway must not be the one that asks for payment.
    pub(crate) fn with_seller(mut self) -> Result<Self> {
        if self.nodes() < 3 {
            bail!("--l402 takes a swarm of 3 nodes or more");
        }
        self.seller = Some(self.nodes());
        Ok(self)
    }

    /// The same plan with dishonest nodes.
    ///
    /// # Errors
    /// When one is beyond the swarm, or is told twice.
    pub(crate) fn with_cheats(mut self, cheats: &[Assignment]) -> Result<Self> {
        for assignment in cheats {
            if assignment.node > self.nodes() {
                bail!("--cheat {assignment}: the swarm has nodes 1 to {}", self.nodes());
            }
            if self.cheats.insert(assignment.node, assignment.cheat.to_string()).is_some() {
                bail!("--cheat {assignment}: node-{} cheats in another way already", assignment.node);
            }
        }
        Ok(self)
    }

    /// The same plan, the last `newcomers` nodes of which begin with nothing.
    ///
    /// # Errors
    /// When nobody would be left to pay them.
    pub(crate) fn with_newcomers(mut self, newcomers: usize) -> Result<Self> {
        if newcomers > 0 && newcomers >= self.nodes() {
            bail!("--newcomers {newcomers}: of {} nodes, one at least has to have money", self.nodes());
        }
        self.newcomers = newcomers;
        Ok(self)
    }

    /// Whether the node at this place, from 0, begins with nothing.
    pub(crate) fn is_newcomer(&self, index: usize) -> bool {
        index + self.newcomers >= self.nodes()
    }

    /// Reads the plan of an earlier swarm.
    ///
    /// # Errors
    /// When there is none, or simnet of another version wrote it.
    pub(crate) fn read(dir: &SwarmDir) -> Result<Self> {
        let path = dir.plan_file();
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("no swarm to resume in {}", dir.root().display()))?;
        let plan: Self =
            serde_json::from_str(&text).with_context(|| format!("{} is not a plan of simnet", path.display()))?;
        if plan.version != VERSION {
            bail!("{} has version {}, and this simnet reads {VERSION}", path.display(), plan.version);
        }
        if !(1..=MAX_NODES).contains(&plan.memory.len()) {
            bail!("{} plans {} nodes", path.display(), plan.memory.len());
        }
        Ok(plan)
    }

    /// Writes the plan, which marks the directory as simnet's.
    pub(crate) fn write(&self, dir: &SwarmDir) -> Result<()> {
        replace_file(&dir.plan_file(), &serde_json::to_string_pretty(self)?)?;
        // So that a swarm in a working copy is not seen by git.
        replace_file(&dir.root().join(".gitignore"), "*\n")
    }

    /// Number of nodes.
    pub(crate) fn nodes(&self) -> usize {
        self.memory.len()
    }
}

/// The model that stands for the project's own: in the source tree that simnet was built from, else beside simnet.
///
/// # Errors
/// Names both places when it is in neither.
pub(crate) fn default_model() -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("training").join("models/consortium-tiny");
    let beside = std::env::current_exe()?.parent().map(|dir| dir.join("models/consortium-tiny")).unwrap_or_default();
    for candidate in [&source, &beside] {
        if let Ok(model) = candidate.canonicalize() {
            return Ok(model);
        }
    }
    bail!(
        "the model consortium-tiny is neither in {} nor in {}: name one with --model DIR",
        source.display(),
        beside.display()
    )
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::write_model;
    use super::*;

    #[test]
    fn a_plan_is_read_back() {
        let temp = tempfile::tempdir().unwrap();
        write_model(temp.path(), 4);
        let dir = SwarmDir::at(&temp.path().join("swarm")).unwrap();
        std::fs::create_dir(dir.root()).unwrap();
        assert!(Plan::read(&dir).unwrap_err().to_string().contains("no swarm to resume"));
        let plan = Plan::new(&dir, 6, 9, temp.path(), Path::new("/node")).unwrap();
        assert_eq!((plan.nodes(), plan.stages, plan.layers), (6, 4, 4));
        plan.write(&dir).unwrap();
        let read = Plan::read(&dir).unwrap();
        assert_eq!((read.memory, read.cluster, read.seed), (plan.memory, plan.cluster, 9));
        std::fs::write(dir.plan_file(), r#"{"version":2}"#).unwrap();
        assert!(Plan::read(&dir).is_err());
    }

    #[test]
    fn cheats_belong_to_nodes() {
        let temp = tempfile::tempdir().unwrap();
        write_model(temp.path(), 4);
        let dir = SwarmDir::at(&temp.path().join("swarm")).unwrap();
        std::fs::create_dir(dir.root()).unwrap();
        let with = |cheats: &[&str]| {
            let cheats: Vec<Assignment> = cheats.iter().map(|text| text.parse().unwrap()).collect();
            Plan::new(&dir, 6, 9, temp.path(), Path::new("/node")).unwrap().with_cheats(&cheats)
        };
        with(&["node3=int8", "node5=zeros@0.1"]).unwrap().write(&dir).unwrap();
        let cheats = Plan::read(&dir).unwrap().cheats;
        assert_eq!(cheats, BTreeMap::from([(3, "int8".to_owned()), (5, "zeros@0.1".to_owned())]));
        assert!(with(&["node7=int8"]).unwrap_err().to_string().contains("nodes 1 to 6"));
        assert!(with(&["node3=int8", "node3=zeros"]).unwrap_err().to_string().contains("already"));
    }

    #[test]
    fn a_swarm_has_a_size() {
        let temp = tempfile::tempdir().unwrap();
        write_model(temp.path(), 4);
        let dir = SwarmDir::at(temp.path()).unwrap();
        for nodes in [0, MAX_NODES + 1] {
            assert!(Plan::new(&dir, nodes, 0, temp.path(), Path::new("/node")).is_err());
        }
    }
}
