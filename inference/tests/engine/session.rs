//! The driver of a job over thousands of schedules of faults.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use consortium_inference::PREFILL_CHUNK;
use consortium_inference::session::{Input, JobSpec, MAX_ATTEMPTS, Output, Session, SessionTiming};
use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::wire::job::{FinishReason, JobErrorCode};
use consortium_protocol::wire::pipeline::Hop;
use consortium_protocol::{Millis, NodeId};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const VOCAB: u32 = 50;
const EOS: u32 = 7;

fn timing() -> SessionTiming {
    SessionTiming { job: 20_000, open: 500, step: 400, chunk: 100, plan: 1_000, room: 5_000, backoff: 100 }
}

fn spec(prompt: usize, max_tokens: Option<u32>) -> JobSpec {
    JobSpec {
        prompt: (0..prompt as u32).map(|i| i % VOCAB).collect(),
        emitted: Vec::new(),
        max_tokens,
        context: 1000,
        layers: 6,
        vocab_size: VOCAB,
        eos: vec![EOS],
        ignore_eos: false,
    }
}

/// What the model says at a position, whatever pipeline runs it.
fn token_at(seed: u64, pos: u32) -> u32 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ (u64::from(pos) << 20));
    if rng.random_range(0..40) == 0 { EOS } else { rng.random_range(8..VOCAB) }
}

fn route(rng: &mut ChaCha8Rng) -> Vec<Hop> {
    let cut = rng.random_range(1..6);
    let hop = |n: u8, first, last| Hop { node: NodeId::from_bytes([n; 32]), range: LayerRange { first, last } };
    vec![hop(rng.random_range(0..5), 0, cut - 1), hop(rng.random_range(5..9), cut, 5)]
}

/// How likely every fault is, in thousandths.
#[derive(Clone, Copy, Debug)]
struct Faults {
    lost: u32,
    late: u32,
    repeated: u32,
    stale: u32,
    failed: u32,
    no_route: u32,
    fatal: u32,
    cancelled: u32,
}

/// A world around one session: delivers what its outputs bring about, with faults.
struct World {
    session: Session,
    rng: ChaCha8Rng,
    faults: Faults,
    model: u64,
    prompt: Vec<u32>,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    inputs: BTreeMap<u64, Input>,
    sent: u64,
    /// Tokens the client has, those of an earlier driver included.
    client: Vec<u32>,
    /// Rows every open attempt has, as its stages see them.
    attempts: BTreeMap<u32, Vec<u32>>,
    next_seq: BTreeMap<u32, u32>,
    open: BTreeSet<u32>,
    ended: Option<Output>,
    cancelled: bool,
}

impl World {
    fn new(spec: &JobSpec, seed: u64, faults: Faults) -> Self {
        Self {
            session: Session::new(spec.clone(), timing()),
            rng: ChaCha8Rng::seed_from_u64(seed),
            faults,
            model: seed / 7,
            prompt: spec.prompt.clone(),
            now: 1_000,
            queue: BinaryHeap::new(),
            inputs: BTreeMap::new(),
            sent: 0,
            client: spec.emitted.clone(),
            attempts: BTreeMap::new(),
            next_seq: BTreeMap::new(),
            open: BTreeSet::new(),
            ended: None,
            cancelled: false,
        }
    }

    fn happens(&mut self, thousandths: u32) -> bool {
        self.rng.random_range(0..1000) < thousandths
    }

    fn send(&mut self, input: Input) {
        if self.happens(self.faults.lost) {
            return;
        }
        let mut delay = self.rng.random_range(1..30);
        if self.happens(self.faults.late) {
            delay += self.rng.random_range(0..3_000);
        }
        if self.happens(self.faults.repeated) {
            self.push(delay + self.rng.clone().random_range(0..2_000), input.clone());
        }
        self.push(delay, input);
    }

    fn push(&mut self, delay: u64, input: Input) {
        self.sent += 1;
        self.queue.push(Reverse((self.now + delay, self.sent)));
        self.inputs.insert(self.sent, input);
    }

    /// Runs to the end; the deadline is that of the job.
    fn run(&mut self) {
        let plan = route(&mut self.rng);
        self.give(Input::Start { plan });
        while self.ended.is_none() {
            let due = self.session.next_deadline().expect("an open job has a deadline").0;
            assert!(due <= 1_000 + timing().job);
            match self.queue.peek() {
                Some(Reverse((at, key))) if *at <= due => {
                    let (at, key) = (*at, *key);
                    self.queue.pop();
                    self.now = self.now.max(at);
                    let input = self.inputs.remove(&key).unwrap();
                    self.give(input);
                }
                _ => {
                    self.now = self.now.max(due);
                    self.give(Input::Tick);
                }
            }
        }
        assert!(self.now <= 1_000 + timing().job);
        assert!(self.session.is_done() && self.session.next_deadline().is_none());
        assert!(self.open.is_empty(), "attempts {:?} were not closed", self.open);
        // Nothing comes after the end.
        while let Some(Reverse((_, key))) = self.queue.pop() {
            let input = self.inputs.remove(&key).unwrap();
            assert!(self.session.handle(input, Millis(self.now), &mut self.rng).is_empty());
        }
    }

    fn give(&mut self, input: Input) {
        for output in self.session.handle(input, Millis(self.now), &mut self.rng) {
            assert!(self.ended.is_none(), "{output:?} after the end");
            self.carry_out(output);
        }
        if self.ended.is_none() && self.happens(self.faults.cancelled) {
            self.cancelled = true;
            let input = if self.happens(500) { Input::Cancel } else { Input::StopMatched };
            for output in self.session.handle(input, Millis(self.now), &mut self.rng) {
                self.carry_out(output);
            }
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Open { attempt, route, max_positions } => {
                assert!(self.open.is_empty(), "two attempts at once");
                assert!(max_positions as usize > self.prompt.len() && max_positions <= 1000);
                assert!((1..=MAX_ATTEMPTS).contains(&attempt));
                assert!(self.attempts.insert(attempt, Vec::new()).is_none(), "attempt {attempt} was opened twice");
                self.open.insert(attempt);
                self.fail_perhaps(attempt, &route);
                self.send(Input::Opened { attempt });
            }
            Output::Step { attempt, seq, pos, tokens, sample } => self.step(attempt, seq, pos, &tokens, sample),
            Output::Emit { index, id } => {
                assert_eq!(index as usize, self.client.len());
                self.client.push(id);
            }
            Output::Replan { attempt, .. } => {
                assert!(self.open.is_empty() && (2..=MAX_ATTEMPTS).contains(&attempt));
                let plan = match self.happens(self.faults.no_route) {
                    true => None,
                    false => Some(route(&mut self.rng)),
                };
                self.send(Input::Plan(plan));
            }
            Output::Close { attempt } => assert!(self.open.remove(&attempt)),
            Output::Finish { usage, .. } => {
                assert_eq!(usage.prompt_tokens as usize, self.prompt.len());
                assert_eq!(usage.completion_tokens as usize, self.client.len());
                self.ended = Some(output);
            }
            Output::Fail(_) => self.ended = Some(output),
        }
    }

    fn fail_perhaps(&mut self, attempt: u32, route: &[Hop]) {
        if self.happens(self.faults.failed) {
            let stage = self.rng.random_range(0..route.len());
            let retryable = !self.happens(self.faults.fatal);
            self.send(Input::StageFailed { attempt, stage: stage as u16, node: route[stage].node, retryable });
        }
    }

    /// The stages of an attempt check what they get, and answer.
    fn step(&mut self, attempt: u32, seq: u32, pos: u32, tokens: &[u32], sample: bool) {
        assert!(self.open.contains(&attempt));
        let expected = self.next_seq.entry(attempt).or_default();
        assert_eq!(seq, *expected);
        *expected += 1;
        assert!((1..=PREFILL_CHUNK).contains(&tokens.len()));
        let rows = self.attempts.get_mut(&attempt).unwrap();
        assert_eq!(pos as usize, rows.len());
        rows.extend_from_slice(tokens);
        let history = [self.prompt.as_slice(), &self.client].concat();
        assert!(history.starts_with(rows));
        assert_eq!(sample, rows.len() == history.len(), "a draw before the whole history is prefilled");
        if !sample {
            return;
        }
        let pos = rows.len() as u32;
        let id = token_at(self.model, pos);
        let token = |seq, pos| Input::Token { attempt, seq, pos, id };
        if self.happens(self.faults.stale) {
            let (seq, pos) = (self.rng.random_range(0..seq + 3), self.rng.random_range(0..pos + 3));
            let wrong = (self.rng.random_range(1..=attempt), seq, pos);
            if wrong != (attempt, seq, pos) {
                self.push(1, Input::Token { attempt: wrong.0, seq: wrong.1.wrapping_add(1), pos: wrong.2, id: EOS });
            }
        }
        let answer = token(seq, pos);
        let route = route(&mut self.rng);
        self.fail_perhaps(attempt, &route);
        self.send(answer);
    }

    /// What a run without faults emits.
    fn expected(&self, limit: usize) -> Vec<u32> {
        let first = self.prompt.len() as u32;
        (0..limit as u32).map(|i| token_at(self.model, first + i)).take_while(|id| *id != EOS).collect()
    }
}

const NONE: Faults = Faults { lost: 0, late: 0, repeated: 0, stale: 0, failed: 0, no_route: 0, fatal: 0, cancelled: 0 };

#[test]
fn thousands_of_fault_schedules() {
    let (mut finished, mut failed, mut resumed) = (0, 0, 0);
    for seed in 0..6_000 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let faults = Faults {
            lost: rng.random_range(0..15),
            late: rng.random_range(0..15),
            repeated: rng.random_range(0..100),
            stale: rng.random_range(0..200),
            failed: rng.random_range(0..40),
            no_route: rng.random_range(0..300),
            fatal: if seed % 5 == 0 { 100 } else { 0 },
            cancelled: if seed % 4 == 0 { 10 } else { 0 },
        };
        let limit = rng.random_range(1..80);
        let mut spec = spec(rng.random_range(1..700), Some(limit));
        if seed % 3 == 0 {
            // A driver that takes over from another one.
            let known: Vec<u32> = (0..rng.random_range(0..limit))
                .map(|i| token_at(seed / 7, spec.prompt.len() as u32 + i))
                .take_while(|id| *id != EOS)
                .collect();
            resumed += u32::from(!known.is_empty());
            spec.emitted = known;
        }
        let mut world = World::new(&spec, seed, faults);
        world.run();
        let expected = world.expected(limit as usize);
        assert!(expected.starts_with(&world.client), "seed {seed}: {:?} is no prefix of {expected:?}", world.client);
        match world.ended.unwrap() {
            Output::Finish { reason, .. } => {
                finished += 1;
                if !world.cancelled {
                    assert_eq!(world.client, expected, "seed {seed}");
                    let reached = expected.len() == limit as usize;
                    assert_eq!(reason, if reached { FinishReason::Length } else { FinishReason::Stop }, "seed {seed}");
                }
            }
            Output::Fail(error) => {
                failed += 1;
                assert_ne!(error.code, JobErrorCode::InvalidRequest, "seed {seed}");
            }
            other => panic!("seed {seed}: {other:?}"),
        }
    }
    assert!(
        finished > 2_000 && failed > 200 && resumed > 500,
        "{finished} finished, {failed} failed, {resumed} resumed"
    );
}

#[test]
fn without_faults_one_attempt_is_enough() {
    for seed in 0..200 {
        let mut world = World::new(&spec(300, None), seed, NONE);
        world.run();
        assert_eq!(world.attempts.len(), 1);
        assert_eq!(world.client, world.expected(700));
        assert!(matches!(world.ended, Some(Output::Finish { .. })));
    }
}

#[test]
fn one_lost_stage_is_survived() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut session = Session::new(spec(300, Some(10)), timing());
    let plan = route(&mut rng);
    let mut at = |input, now| session.handle(input, Millis(now), &mut rng);
    assert!(matches!(at(Input::Start { plan: plan.clone() }, 0)[..], [Output::Open { attempt: 1, .. }]));
    let steps = at(Input::Opened { attempt: 1 }, 1);
    assert!(matches!(
        steps[..],
        [Output::Step { seq: 0, pos: 0, sample: false, .. }, Output::Step { seq: 1, pos: 256, sample: true, .. }]
    ));
    let out = at(Input::Token { attempt: 1, seq: 1, pos: 300, id: 20 }, 2);
    assert!(matches!(
        out[..],
        [Output::Emit { index: 0, id: 20 }, Output::Step { seq: 2, pos: 300, sample: true, .. }]
    ));
    let lost = Input::StageFailed { attempt: 1, stage: 1, node: plan[1].node, retryable: true };
    assert_eq!(at(lost, 3), [Output::Close { attempt: 1 }, Output::Replan { exclude: vec![plan[1].node], attempt: 2 }]);
    assert!(matches!(at(Input::Plan(Some(plan.clone())), 4)[..], [Output::Open { attempt: 2, .. }]));
    assert!(at(Input::Token { attempt: 1, seq: 2, pos: 301, id: 21 }, 5).is_empty());
    let steps = at(Input::Opened { attempt: 2 }, 6);
    let Output::Step { seq: 1, pos: 256, tokens, sample: true, .. } = &steps[1] else {
        panic!("{steps:?}");
    };
    assert_eq!(tokens.last(), Some(&20));
    let out = at(Input::Token { attempt: 2, seq: 1, pos: 301, id: 21 }, 7);
    assert!(matches!(out[..], [Output::Emit { index: 1, id: 21 }, Output::Step { .. }]));
}

/// Full stages are waited for, on no account of the job's attempts, and not for ever.
#[test]
fn a_full_stage_is_waited_for() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let plan = route(&mut rng);
    let mut session = Session::new(spec(5, Some(4)), timing());
    let mut now = 0;
    session.handle(Input::Start { plan: plan.clone() }, Millis(now), &mut rng);
    let mut turned_away = 0;
    let error = loop {
        let busy = session.handle(Input::Busy { attempt: session.attempt() }, Millis(now), &mut rng);
        if let Some(Output::Fail(error)) = busy.last() {
            break error.clone();
        }
        assert!(matches!(busy[..], [Output::Close { .. }]), "{busy:?}");
        turned_away += 1;
        now = session.next_deadline().unwrap().0;
        let again = session.handle(Input::Tick, Millis(now), &mut rng);
        assert!(matches!(&again[..], [Output::Replan { exclude, .. }] if exclude.is_empty()), "{again:?}");
        let open = session.handle(Input::Plan(Some(plan.clone())), Millis(now), &mut rng);
        assert!(matches!(open[..], [Output::Open { .. }]), "{open:?}");
    };
    assert!(turned_away > 2 * MAX_ATTEMPTS && now >= timing().room, "{turned_away} times until {now}");
    assert_eq!(error.code, JobErrorCode::Overloaded);

    // With room at last, the job has all of its attempts.
    let mut session = Session::new(spec(5, Some(4)), timing());
    session.handle(Input::Start { plan: plan.clone() }, Millis(0), &mut rng);
    for _ in 0..2 * MAX_ATTEMPTS {
        session.handle(Input::Busy { attempt: session.attempt() }, Millis(1), &mut rng);
        let due = session.next_deadline().unwrap();
        session.handle(Input::Tick, due, &mut rng);
        session.handle(Input::Plan(Some(plan.clone())), Millis(1), &mut rng);
    }
    let opened = session.handle(Input::Opened { attempt: session.attempt() }, Millis(2), &mut rng);
    assert!(matches!(opened[..], [Output::Step { .. }]), "{opened:?}");
    let lost = Input::StageFailed { attempt: session.attempt(), stage: 1, node: plan[1].node, retryable: true };
    let replanned = session.handle(lost, Millis(3), &mut rng);
    assert!(matches!(replanned[..], [Output::Close { .. }, Output::Replan { .. }]), "{replanned:?}");
}

#[test]
fn jobs_that_cannot_be_run_are_refused_before_any_work() {
    let start = |spec: JobSpec| {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let plan = route(&mut rng);
        let mut out = Session::new(spec, timing()).handle(Input::Start { plan }, Millis(5), &mut rng);
        assert_eq!(out.len(), 1);
        out.remove(0)
    };
    let code = |output: Output| match output {
        Output::Fail(error) => error.code,
        other => panic!("{other:?}"),
    };
    assert_eq!(code(start(spec(1000, None))), JobErrorCode::ContextLength);
    assert_eq!(code(start(spec(0, None))), JobErrorCode::InvalidRequest);
    assert_eq!(code(start(JobSpec { emitted: vec![VOCAB], ..spec(3, None) })), JobErrorCode::InvalidRequest);
    // All that was asked for has been emitted already.
    let done = start(JobSpec { emitted: vec![1, 2, 3], ..spec(10, Some(3)) });
    assert!(matches!(done, Output::Finish { reason: FinishReason::Length, usage } if usage.completion_tokens == 3));
    assert!(matches!(start(spec(999, None)), Output::Open { max_positions: 1000, .. }));
}

#[test]
fn eos_may_be_ignored() {
    let mut spec = spec(3, Some(200));
    spec.ignore_eos = true;
    let mut world = World::new(&spec, 9, NONE);
    world.run();
    assert_eq!(world.client.len(), 200);
    assert!(world.client.contains(&EOS));
}

#[test]
fn any_order_of_inputs_is_survived() {
    for seed in 0..3_000 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut session = Session::new(spec(rng.random_range(0..600), Some(5)), timing());
        let mut now = 0;
        let mut ends = 0;
        for _ in 0..60 {
            now += rng.random_range(0..400);
            let attempt = rng.random_range(0..5);
            let input = match rng.random_range(0..30) {
                0..5 => Input::Start { plan: if rng.random() { route(&mut rng) } else { Vec::new() } },
                5..10 => Input::Opened { attempt },
                10..16 => Input::Token {
                    attempt,
                    seq: rng.random_range(0..4),
                    pos: rng.random_range(0..600),
                    id: rng.random_range(0..60),
                },
                16..20 => {
                    Input::StageFailed { attempt, stage: 9, node: NodeId::from_bytes([1; 32]), retryable: rng.random() }
                }
                20..25 => Input::Plan(if rng.random() { Some(route(&mut rng)) } else { None }),
                25 => Input::Cancel,
                _ => Input::Tick,
            };
            let out = session.handle(input, Millis(now), &mut rng);
            ends += out.iter().filter(|o| matches!(o, Output::Finish { .. } | Output::Fail(_))).count();
        }
        assert!(ends <= 1 && (ends == 1) == session.is_done(), "seed {seed}");
    }
}
