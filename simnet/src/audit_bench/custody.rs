//! Cheats at the commitments rather than at the numbers, judged as the neighbours, the payer and an auditor would: by the
//! chain of receipts, by the tokens that the payer knows, by the roots of what is opened, and at last by recomputing.

use anyhow::{Context, Result};
use consortium_node::inference::audit::classes::available;
use consortium_node::inference::audit::compare::Finding;
use consortium_node::inference::audit::grid::StageCommitter;
use consortium_node::inference::audit::thresholds::Thresholds;
use consortium_protocol::cluster::ClusterName;
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::RootKey;
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::audit::{
    BLOCK, NOT_DRAWN, Nonce, StageReceipt, block_digests, blocks_root, boundary_key, check_chain, grid_key,
};
use consortium_protocol::wire::mandate::Mandate;
use consortium_protocol::wire::pipeline::{Hop, SessionOpen};
use serde::Serialize;

use super::honest::{Bench, Job, Work};
use super::judge::Stage;
use crate::cheat::forge::bytes;

/// A way to cheat at commitments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Scheme {
    /// No cheat.
    Honest,
    /// Signs the leaves of its work on another job.
    ReplayedLeaves,
    /// The same, and the next stage signs that it received them.
    ReplayedLeavesWithNext,
    /// Puts another's receipt in the place of its own.
    CopiedReceipt,
    /// Signs the roots of the stage before as its own.
    CopiedRoots,
    /// Signs for other layers than it was given.
    OtherLayers,
    /// Signs for inputs that nobody gave it.
    InventedInputs,
    /// The same, and the stage before signs that it gave them.
    InventedInputsWithPrevious,
    /// The first stage signs for tokens that nobody gave it.
    InventedTokens,
    /// The last stage signs for other tokens than it gave.
    OtherTokens,
    /// Gives and signs forged rows, and shows honest ones when audited.
    ConvenientOpening,
}

impl Scheme {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Honest,
        Self::ReplayedLeaves,
        Self::ReplayedLeavesWithNext,
        Self::CopiedReceipt,
        Self::CopiedRoots,
        Self::OtherLayers,
        Self::InventedInputs,
        Self::InventedInputsWithPrevious,
        Self::InventedTokens,
        Self::OtherTokens,
        Self::ConvenientOpening,
    ];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Honest => "none",
            Self::ReplayedLeaves => "replayed leaves",
            Self::ReplayedLeavesWithNext => "replayed leaves, the next stage colluding",
            Self::CopiedReceipt => "another's receipt",
            Self::CopiedRoots => "copied commitment",
            Self::OtherLayers => "other layers signed for",
            Self::InventedInputs => "invented inputs, alone",
            Self::InventedInputsWithPrevious => "invented inputs, the stage before colluding",
            Self::InventedTokens => "invented tokens",
            Self::OtherTokens => "other tokens than it gave",
            Self::ConvenientOpening => "shows other rows than it signed for",
        }
    }

    /// Whether the stage at `place` of `stages` can do it.
    fn possible(self, place: usize, stages: usize) -> bool {
        match self {
            Self::CopiedReceipt | Self::CopiedRoots | Self::InventedInputs | Self::InventedInputsWithPrevious => {
                place > 0
            }
            Self::InventedTokens => place == 0,
            Self::OtherTokens => place + 1 == stages,
            Self::ReplayedLeavesWithNext | Self::ConvenientOpening => place + 1 < stages,
            Self::Honest | Self::ReplayedLeaves | Self::OtherLayers => true,
        }
    }
}

/// Who notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Caught {
    /// The next stage does not sign over such a receipt: nobody is paid.
    NextStage,
    /// The chain convicts whoever signed it.
    Chain,
    /// The payer knows other tokens.
    Payer,
    /// An audited stage cannot open what it signed: it is not paid.
    Opening,
    /// Recomputing shows fraud, and the evidence convinces others.
    Recomputing,
    /// Nobody.
    Nobody,
}

/// Keys of a master and of a node for each stage.
pub struct Parties {
    master: RootKey,
    nodes: Vec<RootKey>,
}

/// One job with what its stages commit to.
pub struct Custody<'a> {
    bench: &'a Bench,
    job: &'a Job,
    work: &'a Work,
    /// Place of the work's class.
    class: usize,
    order: Signed<SessionOpen>,
    /// Roots of inputs, outputs and grid of each stage.
    roots: Vec<[Hash; 3]>,
}

impl Parties {
    /// Keys for so many stages.
    pub fn new(stages: usize) -> Self {
        let key = |number: usize| RootKey::from_seed(*Hash::of(&number.to_le_bytes()).as_bytes());
        Self { master: key(0), nodes: (1..=stages).map(key).collect() }
    }

    /// The master's order of a job, for an attempt of that number.
    ///
    /// # Errors
    /// When the model cannot be read.
    pub fn order(&self, bench: &Bench, job: &Job, attempt: u32) -> Result<Signed<SessionOpen>> {
        let me = self.master.node_id();
        let nonce = Nonce(*Hash::of(&job.id.0).as_bytes());
        let route = self.nodes.iter().zip(&bench.ranges).map(|(key, range)| Hop { node: key.node_id(), range: *range });
        let (cluster, model) = (ClusterName::new("bench", Some(me))?.id(), bench.dir.digest()?);
        let mandate = Mandate {
            cluster,
            job: job.id,
            master: me,
            model,
            positions: u32::MAX,
            position_cost: Msat(0),
            challenge: nonce.commitment(),
            until_ms: u64::MAX,
        };
        let open = SessionOpen {
            cluster,
            term: 1,
            job: job.id,
            attempt,
            model,
            driver: me,
            route: route.collect(),
            prices: vec![Msat(0); self.nodes.len()],
            master_fee: Msat(0),
            sampling: job.sampling.clone(),
            prompt_len: job.prompt.len() as u32,
            max_positions: job.rows as u32 + 1,
            payer: me,
            challenge: nonce.commitment(),
            mandate: Signed::sign(&self.master, mandate),
        };
        Ok(Signed::sign(&self.master, open))
    }
}

impl<'a> Custody<'a> {
    /// What honest stages commit to for a piece of work.
    ///
    /// # Errors
    /// When the model cannot be read.
    pub fn new(parties: &Parties, bench: &'a Bench, job: &'a Job, work: &'a Work, class: usize) -> Result<Self> {
        let order = parties.order(bench, job, 0)?;
        let mut custody = Self { bench, job, work, class, order, roots: Vec::new() };
        custody.roots = (0..bench.ranges.len())
            .map(|place| custody.commit(place, &custody.inputs(place), &bytes(&work.outputs[place])))
            .collect::<Result<_>>()?;
        Ok(custody)
    }

    /// The bytes that enter a stage.
    fn inputs(&self, place: usize) -> Vec<u8> {
        match place.checked_sub(1) {
            None => le_bytes(&self.work.tokens),
            Some(before) => bytes(&self.work.outputs[before]),
        }
    }

    /// The roots over inputs and hidden states.
    fn commit(&self, place: usize, inputs: &[u8], hidden: &[u8]) -> Result<[Hash; 3]> {
        let open = self.order.payload();
        let key = |boundary: usize| boundary_key(open.job, open.attempt, boundary as u16);
        let (range, class) = (self.bench.ranges[place], available()[self.class]);
        let grid = grid_key(open.job, open.attempt, &open.model, range, class);
        let mut committer = StageCommitter::new(&key(place), &key(place + 1), &grid, self.bench.width());
        let drawn = le_bytes(&self.work.drawn);
        let crossing = if place + 1 == self.bench.ranges.len() { &drawn[..] } else { hidden };
        committer.push(self.job.rows, inputs, hidden, crossing)?;
        Ok(committer.finish().roots())
    }

    /// The root of tokens at a boundary.
    fn tokens_root(&self, boundary: usize, tokens: &[u32]) -> Hash {
        let open = self.order.payload();
        let key = boundary_key(open.job, open.attempt, boundary as u16);
        blocks_root(&block_digests(&key, &le_bytes(tokens), 4))
    }

    fn receipt(&self, place: usize, roots: [Hash; 3], upstream: Option<Hash>) -> StageReceipt {
        let open = self.order.payload();
        let [inputs, outputs, grid] = roots;
        StageReceipt {
            cluster: open.cluster,
            term: open.term,
            job: open.job,
            attempt: open.attempt,
            order: self.order.digest(),
            model: open.model,
            range: self.bench.ranges[place],
            stage: place as u16,
            class: available()[self.class],
            positions: self.job.rows as u32,
            inputs,
            outputs,
            grid,
            upstream,
            challenge: open.challenge,
        }
    }

    /// Bytes of all signed receipts of the job.
    pub fn receipt_bytes(&self, parties: &Parties) -> usize {
        let mut upstream = None;
        let mut total = 0;
        for (place, roots) in self.roots.iter().enumerate() {
            let receipt = Signed::sign(&parties.nodes[place], self.receipt(place, *roots, upstream));
            upstream = Some(receipt.digest());
            total += receipt.as_bytes().len();
        }
        total
    }

    /// Has the stage at `place` cheat so, and tells who notices. `other` is another job of the same stages. None where it
    /// cannot be done.
    ///
    /// # Errors
    /// When a computation fails.
    pub fn attempt(
        &self,
        parties: &Parties,
        scheme: Scheme,
        place: usize,
        other: &Self,
        thresholds: &Thresholds,
    ) -> Result<Option<Caught>> {
        let stages = self.roots.len();
        if !scheme.possible(place, stages) {
            return Ok(None);
        }
        // Numbers from elsewhere, as many as the job has.
        let foreign = |at: usize| -> Vec<u8> {
            let rows = &other.work.outputs[at];
            bytes(&rows.iter().cycle().take(self.job.rows * self.bench.width()).copied().collect::<Vec<_>>())
        };
        let mut roots = self.roots.clone();
        let mut colluding = vec![place];
        let mut received = None;
        // Which stage an auditor looks at, and the hidden states it shows.
        let (mut audited, mut shown) = (place, bytes(&self.work.outputs[place]));
        match scheme {
            Scheme::Honest | Scheme::CopiedReceipt | Scheme::OtherLayers => {}
            Scheme::ReplayedLeaves | Scheme::ReplayedLeavesWithNext => {
                roots[place] = [roots[place][0], other.roots[place][1], other.roots[place][2]];
                if scheme == Scheme::ReplayedLeavesWithNext {
                    roots[place + 1][0] = roots[place][1];
                    colluding.push(place + 1);
                }
            }
            Scheme::CopiedRoots => roots[place] = roots[place - 1],
            Scheme::InventedInputs => {
                roots[place] = self.commit(place, &foreign(place - 1), &foreign(place))?;
            }
            Scheme::InventedInputsWithPrevious => {
                (audited, shown) = (place - 1, foreign(place - 1));
                roots[place - 1] = self.commit(place - 1, &self.inputs(place - 1), &shown)?;
                roots[place] = self.commit(place, &shown, &bytes(&self.work.outputs[place]))?;
                colluding.push(place - 1);
            }
            Scheme::InventedTokens => {
                let invented: Vec<u32> = self.work.tokens.iter().rev().copied().collect();
                roots[0][0] = self.tokens_root(0, &invented);
            }
            Scheme::OtherTokens => {
                let other: Vec<u32> = self
                    .work
                    .drawn
                    .iter()
                    .map(|token| if *token == NOT_DRAWN { NOT_DRAWN } else { token ^ 1 })
                    .collect();
                roots[place][1] = self.tokens_root(stages, &other);
            }
            Scheme::ConvenientOpening => {
                roots[place] = self.commit(place, &self.inputs(place), &foreign(place))?;
                received = Some(place + 1);
            }
        }

        let mut chain: Vec<Signed<StageReceipt>> = Vec::new();
        for (stage, mut signed) in roots.into_iter().enumerate() {
            let before = chain.last();
            if received == Some(stage) {
                // An honest stage signs for the forged rows that it was given.
                signed[0] = before.context("a stage before")?.payload().outputs;
            }
            let mut receipt = self.receipt(stage, signed, before.map(Signed::digest));
            if let Some(before) = before
                && !colluding.contains(&stage)
                && before.payload().outputs != receipt.inputs
            {
                return Ok(Some(Caught::NextStage));
            }
            if stage == place && scheme == Scheme::OtherLayers {
                receipt.range.last += 1;
            }
            let copied = (stage == place && scheme == Scheme::CopiedReceipt).then(|| before.cloned()).flatten();
            chain.push(copied.unwrap_or_else(|| Signed::sign(&parties.nodes[stage], receipt)));
        }
        if check_chain(&self.order, &chain).is_err() {
            return Ok(Some(Caught::Chain));
        }
        let known = (self.tokens_root(0, &self.work.tokens), self.tokens_root(stages, &self.work.drawn));
        if (chain[0].payload().inputs, chain[stages - 1].payload().outputs) != known {
            return Ok(Some(Caught::Payer));
        }
        let said = chain[audited].payload();
        if self.commit(audited, &self.inputs(audited), &shown)? != [said.inputs, said.outputs, said.grid] {
            return Ok(Some(Caught::Opening));
        }
        let stage = Stage::recompute(self.bench, self.job, self.work, audited, 0)?;
        let blocks = self.job.rows.div_ceil(BLOCK);
        let shown = crate::cheat::forge::floats(&shown);
        let judged = stage.judge(self.class, &shown, &vec![0.0; blocks], thresholds)?;
        Ok(Some(if judged.finding == Finding::Fraud { Caught::Recomputing } else { Caught::Nobody }))
    }
}

fn le_bytes(tokens: &[u32]) -> Vec<u8> {
    tokens.iter().flat_map(|token| token.to_le_bytes()).collect()
}
