//! Plays the rounds.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use consortium_node::training::collective::{Assignment, Examiner, Parameters, SyncProbe, Task};
use consortium_node::training::corpus::Split;
use consortium_node::training::gauntlet::{
    DOUBT, Evidence, Losses, Showing, Standing, copies, harms, showings, take_round,
};
use consortium_node::training::packing::Batch;
use consortium_node::training::sparseloco::{Update, median_norms, overlaps};
use consortium_node::training::trainer::mean_loss;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::cast::Cast;
use super::characters::{Character, Known, Moment, Revealed, Submission, characters};
use super::cores::side_by_side;
use super::curve::exchange_seconds;
use super::outcome::{Fate, Finding};
use super::pay::{Pay, STAKE, pay};
use super::report::{PeerRound, RoundReport};
use super::setting::{Purpose, Setting};

/// Held-out rows on which the common parameters are followed over a run; beyond those that examinations draw from.
pub(super) const FOLLOWED: (u64, usize) = (1 << 40, 32);

/// A run in progress.
pub struct Arena {
    setting: Setting,
    task: Arc<Task>,
    characters: Vec<Box<dyn Character>>,
    names: Vec<String>,
    standings: Vec<Standing>,
    balances: Vec<i64>,
    common: Parameters,
    /// Those that the round before began from.
    previous: Parameters,
    /// Those before the last aggregate, if that is still to be judged.
    unjudged: Option<Parameters>,
    last_step: f64,
    revealed: Vec<Revealed>,
    followed: Batch,
    round: u64,
}

/// What a round's local steps begin from.
#[derive(Clone, Copy)]
struct Plan<'a> {
    assignment: &'a Assignment,
    base: &'a Parameters,
    probe: &'a SyncProbe,
}

/// What a peer handed in, read.
struct Entry {
    peer: usize,
    update: Update,
    sample: Vec<f32>,
}

impl Arena {
    /// A run at its beginning.
    ///
    /// # Errors
    /// If a setting makes no sense.
    pub fn new(setting: Setting, cast: &Cast, task: Arc<Task>) -> Result<Self> {
        let characters = characters(cast, &task)?;
        let stake = i64::try_from(STAKE.0).context("the stake is too large")?;
        let (first, count) = FOLLOWED;
        let followed = task.batch(Split::HeldOut, &(first..).take(count).collect::<Vec<_>>())?;
        let common = Parameters::fresh(&task, setting.seed)?;
        Ok(Self {
            standings: vec![Standing::default(); characters.len()],
            balances: vec![stake; characters.len()],
            previous: common.clone(),
            common,
            unjudged: None,
            names: cast.names(),
            last_step: 0.0,
            revealed: Vec::new(),
            round: 0,
            followed,
            setting,
            task,
            characters,
        })
    }

    /// The loss of the common parameters on held-out rows that are the same over the run, nats per token.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn held_out_loss(&self) -> Result<f64> {
        Ok(mean_loss(&self.common.model()?, &self.followed)?)
    }

    /// Plays one round.
    ///
    /// # Errors
    /// When training fails.
    pub fn play(&mut self) -> Result<RoundReport> {
        let begun = Instant::now();
        let (round, peers) = (self.round, self.characters.len());
        let beacon = self.setting.draw(Purpose::Assignment, round);
        let recipe = self.task.recipe();
        let assignment = Assignment::new(&beacon, round, peers, recipe.rows_each(), recipe.data.rows(Split::Train))?;
        let begun_from = self.common.clone();
        let base = if self.setting.overlap { self.previous.clone() } else { self.common.clone() };
        let probe = SyncProbe::new(&beacon, round, &base);
        let plan = Plan { assignment: &assignment, base: &base, probe: &probe };
        let mut submissions: Vec<Option<Submission>> = vec![None; peers];
        let early = self.submit(Moment::Early, plan, &[], &mut submissions)?;
        let training_seconds = begun.elapsed().as_secs_f64();
        let later = self.submit(Moment::Later, plan, &[], &mut submissions)?;
        let longest = submissions.iter().flatten().map(|submission| submission.message.len()).max().unwrap_or(0);
        let submitting = submissions.iter().flatten().count();
        let (entries, mut findings) = self.read(submissions, round);
        let (task, examination) = (Arc::clone(&self.task), self.setting.examination);
        let beacon = self.setting.draw(Purpose::Examination, round);
        let examiner = Examiner::new(&task, examination, &assignment, &self.common, beacon, round)?;
        let reverted = self.has_harmed(&examiner)?;
        let present = self.examine(&entries, &examiner, plan, &mut findings)?;
        let mut late: Vec<Option<Submission>> = vec![None; peers];
        self.submit(Moment::TooLate, plan, &present, &mut late)?;

        match self.unjudged.take().filter(|_| reverted) {
            Some(before) => {
                // Who was measured was measured against what is taken back.
                findings.iter_mut().filter(|finding| finding.evidence.is_some()).for_each(|f| f.fate = Fate::Reverted);
                (self.common, self.last_step) = (before, 0.0);
            }
            None => self.aggregate(&entries, &findings)?,
        }
        self.previous = begun_from;
        let pay = self.rate_and_pay(&findings, reverted);
        self.revealed = present;
        self.round += 1;
        let rows = (0..peers).map(|peer| {
            let change = |msat: u64| i64::try_from(msat).context("an amount is too large");
            self.balances[peer] += change(pay[peer].reward.0)? - change(pay[peer].fee.0)?;
            Ok(PeerRound::new(
                &self.names[peer],
                &findings[peer],
                &self.standings[peer],
                pay[peer],
                self.balances[peer],
            ))
        });
        let peers = rows.collect::<Result<Vec<_>>>()?;
        Ok(RoundReport {
            round,
            held_out_loss: self.held_out_loss()?,
            reverted,
            seconds: begun.elapsed().as_secs_f64(),
            training_seconds,
            peer_seconds: early.max(later),
            exchange_seconds: exchange_seconds(submitting, longest),
            peers,
        })
    }

    /// Takes a round into the standings, and says what it pays. One that is taken back says nothing about whose updates were
    /// measured.
    fn rate_and_pay(&mut self, findings: &[Finding], reverted: bool) -> Vec<Pay> {
        if !reverted {
            take_round(&mut self.standings, &findings.iter().map(|finding| finding.showing).collect::<Vec<_>>());
        }
        let earns = |(standing, finding): (&Standing, &Finding)| match reverted {
            true => (0.0, finding.costs_fee()),
            false => (standing.quality(finding.showing.verdict), finding.costs_fee()),
        };
        pay(&self.standings.iter().zip(findings).map(earns).collect::<Vec<_>>())
    }

    /// Lets all whose moment it is make their updates; answers with the seconds that the slowest took.
    fn submit(
        &mut self,
        moment: Moment,
        plan: Plan<'_>,
        present: &[Revealed],
        into: &mut [Option<Submission>],
    ) -> Result<f64> {
        let (setting, round, revealed) = (self.setting, self.round, &self.revealed[..]);
        let Plan { assignment, base: common, probe } = plan;
        let waiting = self.characters.iter_mut().enumerate();
        let waiting: Vec<_> = waiting.filter(|(_, character)| character.moment() == moment).collect();
        let made = side_by_side(waiting, |(me, character)| -> Result<(usize, Submission)> {
            let rows = assignment.rows(me);
            let known = Known { round, rounds: setting.rounds, me, common, rows: &rows, revealed, present, probe };
            let mut rng = ChaCha8Rng::from_seed(setting.draw(Purpose::Characters, round));
            rng.set_stream(me as u64);
            Ok((me, character.submit(&known, &mut rng)?))
        })?;
        let mut seconds = 0.0;
        for (submitted, took) in made {
            let (me, submission) = submitted?;
            into[me] = Some(submission);
            seconds = took.max(seconds);
        }
        Ok(seconds)
    }

    /// Checks what was committed to in time; in the order of commitment, which is drawn but for colluders.
    fn read(&self, submissions: Vec<Option<Submission>>, round: u64) -> (Vec<Entry>, Vec<Finding>) {
        let mut findings: Vec<Finding> = submissions
            .iter()
            .map(|_| Finding { evidence: None, showing: Showing::NOTHING, fate: Fate::Late })
            .collect();
        let mut order: Vec<(usize, Submission)> =
            submissions.into_iter().enumerate().filter_map(|(peer, s)| Some((peer, s?))).collect();
        order.shuffle(&mut ChaCha8Rng::from_seed(self.setting.draw(Purpose::Order, round)));
        order.sort_by_key(|(peer, _)| self.characters[*peer].moment());
        let mut entries = Vec::new();
        for (peer, Submission { message, sample }) in order {
            match Update::read(self.task.layout(), message) {
                Ok(update) => entries.push(Entry { peer, update, sample }),
                Err(_) => findings[peer].fate = Fate::Malformed,
            }
        }
        (entries, findings)
    }

    /// Measures and judges every update.
    fn examine(
        &self,
        entries: &[Entry],
        examiner: &Examiner<'_>,
        plan: Plan<'_>,
        findings: &mut [Finding],
    ) -> Result<Vec<Revealed>> {
        let updates: Vec<&Update> = entries.iter().map(|e| &e.update).collect();
        let medians = if updates.is_empty() { Vec::new() } else { median_norms(self.task.layout(), &updates)? };
        let copied = self.copied(&updates)?;
        let mut revealed = Vec::new();
        let mut found: Vec<Option<Evidence>> = vec![None; findings.len()];
        for (entry, copy) in entries.iter().zip(copied) {
            let measured = examiner.examine(entry.peer, &entry.update, &medians)?;
            let evidence = Evidence {
                assigned: measured.assigned,
                unassigned: measured.unassigned,
                held_out: measured.held_out,
                drift: plan.probe.drift(plan.base, &entry.sample, self.last_step),
                copy,
            };
            revealed.push(Revealed { peer: entry.peer, update: entry.update.clone(), score: evidence.score() });
            found[entry.peer] = Some(evidence);
        }
        let showings = showings(&found, &self.standings, DOUBT);
        for (finding, (evidence, showing)) in findings.iter_mut().zip(found.into_iter().zip(showings)) {
            if evidence.is_some() {
                *finding = Finding { fate: Fate::Judged(showing.verdict), showing, evidence };
            }
        }
        Ok(revealed)
    }

    /// Which updates are too much like an earlier one, of this round or the last.
    fn copied(&self, updates: &[&Update]) -> Result<Vec<bool>> {
        let all: Vec<&Update> = self.revealed.iter().map(|r| &r.update).chain(updates.iter().copied()).collect();
        if all.is_empty() {
            return Ok(Vec::new());
        }
        let overlaps = overlaps(self.task.layout(), &all)?;
        Ok(copies(all.len(), |earlier, later| overlaps[earlier][later]).split_off(self.revealed.len()))
    }

    /// Whether the last aggregate made held-out loss worse, as it is judged when the next round is examined.
    fn has_harmed(&self, examiner: &Examiner<'_>) -> Result<bool> {
        let Some(before) = &self.unjudged else { return Ok(false) };
        let scores: Vec<f64> = examiner.last_step(before)?.iter().map(Losses::score).collect();
        Ok(harms(&scores, DOUBT))
    }

    /// Takes the outer step by what was let in.
    fn aggregate(&mut self, entries: &[Entry], findings: &[Finding]) -> Result<()> {
        let mut accepted: Vec<&Entry> = entries.iter().filter(|e| findings[e.peer].fate.accepted()).collect();
        if accepted.is_empty() {
            return Ok(());
        }
        accepted.sort_by_key(|entry| entry.peer);
        let updates: Vec<&Update> = accepted.iter().map(|e| &e.update).collect();
        let mut next = self.common.clone();
        next.step(&updates, &median_norms(self.task.layout(), &updates)?)?;
        self.last_step = next.distance(&self.common);
        self.unjudged = Some(std::mem::replace(&mut self.common, next));
        Ok(())
    }
}
