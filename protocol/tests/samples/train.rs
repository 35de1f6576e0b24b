//! One value of every type of a training run.

use consortium_protocol::wire::escrow::EscrowId;
use consortium_protocol::wire::train::{
    Ahead, Batches, Beacon, Body, Candidacy, Candidate, Certified, Commit, DataSpec, Entry, EvalNonce, Fate, Finding,
    Finite, HyperParameters, Join, Locked, Locks, Loss, LossPair, Measure, Member, ModelSpec, NewView, Nonce, Outcome,
    PaySchedule, PayWay, Phases, Pledged, Proposal, Purpose, Record, Refusal, Reveal, RunId, RunSpec, ScoreCard, Seal,
    StateFile, StateHash, TrainAnswer, TrainGossip, TrainMessage, TrainRequest, Validator, Vote, commitment,
    nonce_lock,
};
use consortium_protocol::{Hash, Msat, NodeId, Signed};

use super::key;

fn number(value: f64) -> Finite {
    Finite::new(value).unwrap()
}

pub(crate) fn run() -> RunId {
    RunId(Hash::of(b"golden run"))
}

/// The second to fourth key judge.
fn validators() -> Vec<NodeId> {
    let mut ids: Vec<NodeId> = (2..5).map(|n| key(n).node_id()).collect();
    ids.sort_unstable();
    ids
}

pub(crate) fn spec() -> RunSpec {
    RunSpec {
        name: "golden run".into(),
        model: ModelSpec { name: "tiny".into(), config: "{}".into(), initial: Hash::of(b"initial") },
        tokenizer: Hash::of(b"tokenizer"),
        data: DataSpec {
            name: "stories".into(),
            digest: Hash::of(b"stories"),
            training_rows: 1_000_000,
            held_out_rows: 10_000,
        },
        training: HyperParameters {
            local_steps: 30,
            batch: 16,
            sequence: 512,
            inner_rate: number(1.2e-4),
            warmup_rounds: 5,
            final_part: number(0.1),
            weight_decay: number(0.1),
            outer_rate: number(1.0),
            feedback: number(0.95),
            overlap: true,
        },
        max_update_bytes: 1 << 20,
        phases: Phases {
            train_ms: 1_200_000,
            commit_ms: 30_000,
            reveal_ms: 60_000,
            score_ms: 60_000,
            settle_ms: 20_000,
            delta_ms: 2000,
        },
        least_peers: 2,
        most_peers: 64,
        validators: validators(),
        reserves: vec![key(5).node_id()],
        quorum: 2,
        replace_after: 5,
        batches: Batches { assigned: 1, unassigned: 1, held_out: 3, doubt: number(3.0) },
        pay: PaySchedule {
            budget: Msat(1_000_000),
            base_rate: Msat(20_000),
            fee: Msat(500),
            unit: Msat(100_000),
            least_units: 10,
            way: PayWay::Accounts,
            bond: Msat::ZERO,
        },
        rounds: 1000,
        starts_at_ms: 1_800_000_000_000,
    }
}

/// As [`spec`], paid by escrows.
pub(crate) fn spec_by_escrow() -> RunSpec {
    let spec = spec();
    let pay = PaySchedule { unit: Msat(1_000_000), least_units: 1, way: PayWay::Escrow, ..spec.pay };
    RunSpec { pay, ..spec }
}

/// As [`spec_by_escrow`], with a bond, and as short as that takes.
pub(crate) fn spec_with_bond() -> RunSpec {
    let spec = spec_by_escrow();
    RunSpec { pay: PaySchedule { bond: Msat(50_000_000), ..spec.pay }, rounds: 100, ..spec }
}

pub(crate) fn pledged() -> Pledged {
    Pledged { run: run(), round: 6, peer: key(7).node_id(), escrow: EscrowId([0xb0; 16]) }
}

pub(crate) fn join_with_bond() -> Join {
    Join { bond: Some(Signed::sign(&key(2), pledged())), ..join() }
}

pub(crate) fn commit() -> Commit {
    let commitment = commitment(run(), 7, key(1).node_id(), Hash::of(b"update"));
    Commit { run: run(), round: 7, commitment, base: Hash::of(b"base") }
}

pub(crate) fn reveal() -> Reveal {
    Reveal { run: run(), round: 7, update: Hash::of(b"update"), bytes: 45_822 }
}

pub(crate) fn eval_nonce() -> EvalNonce {
    EvalNonce { run: run(), round: 7, nonce: Nonce([0x4e; 32]) }
}

pub(crate) fn card() -> ScoreCard {
    let pair = LossPair(Loss(3_210_000_000), Loss(3_190_000_000));
    let measure = Measure {
        update: Hash::of(b"update"),
        assigned: vec![pair],
        unassigned: vec![pair],
        held_out: vec![pair; 3],
        drift: 120_000,
        overlap: 93_000,
        copy: false,
        norms: Hash::of(b"norms"),
    };
    let mut findings =
        vec![(key(1).node_id(), Finding::Measured(measure)), (key(6).node_id(), Finding::Refused(Refusal::Withheld))];
    findings.sort_by_key(|(peer, _)| *peer);
    let lock = |purpose| nonce_lock(run(), 8, purpose, key(2).node_id(), &Nonce([0x4f; 32]));
    ScoreCard {
        run: run(),
        round: 7,
        base: Hash::of(b"base"),
        aggregate: vec![pair; 3],
        drawn_with: vec![key(2).node_id()],
        findings,
        opened: Some(Nonce([0x41; 32])),
        locks: Locks { assignment: lock(Purpose::Assignment), evaluation: lock(Purpose::Evaluation) },
    }
}

pub(crate) fn body() -> Body {
    Body {
        cards: vec![Signed::sign(&key(2), card())],
        nonces: vec![Signed::sign(&key(2), eval_nonce())],
        commits: vec![Signed::sign(&key(1), commit())],
        reveals: vec![Signed::sign(&key(1), reveal())],
        joins: vec![Signed::sign(&key(7), join())],
        candidates: vec![Signed::sign(&key(5), candidate())],
    }
}

pub(crate) fn join() -> Join {
    Join { run: run(), round: 6, stays: true, bond: None }
}

pub(crate) fn candidate() -> Candidate {
    Candidate { run: run(), round: 6 }
}

pub(crate) fn state_hash() -> StateHash {
    StateHash { run: run(), round: 7, state: Hash::of(b"state") }
}

pub(crate) fn record() -> Record {
    let pair = LossPair(Loss(3_210_000_000), Loss(3_190_000_000));
    let peer = key(1).node_id();
    let fate = Fate::Accepted { update: Hash::of(b"update"), bytes: 45_822, norms: Hash::of(b"norms") };
    Record {
        run: run(),
        round: 7,
        view: 1,
        at_ms: 1_800_000_400_000,
        previous: Hash::of(b"previous"),
        body: body().digest(),
        base: Hash::of(b"base"),
        reverts: false,
        trained: 6,
        ended: false,
        outcomes: vec![Outcome {
            peer,
            fate,
            score: Some(number(0.00625)),
            assigned: vec![pair],
            unassigned: vec![pair],
            held_out: vec![pair; 3],
            pay: Msat(150_000),
            fee: Msat::ZERO,
        }],
        payouts: vec![(peer, 10)],
        members: vec![Member {
            peer,
            active: true,
            since: 7,
            mu: number(27.25),
            sigma: number(6.5),
            reliability: number(0.3),
            merit: number(0.02),
            merit_variance: number(1e-6),
            earned: Msat(1_050_000),
            fees: Msat(500),
            paid: Msat(1_000_000),
        }],
        validators: validators()
            .into_iter()
            .map(|id| Validator { id, silent: 1, strayed: 0, locks: (id == key(2).node_id()).then(|| card().locks) })
            .collect(),
        candidates: vec![Candidacy { id: key(5).node_id(), since: 6, heard: 7 }],
        assignment: Beacon(Hash::of(b"assignment")),
        ahead: Some(Ahead { peers: vec![peer], assignment: Beacon(Hash::of(b"the one after")) }),
    }
}

pub(crate) fn vote() -> Vote {
    Vote { run: run(), round: 7, view: 1, record: record().id() }
}

pub(crate) fn seal() -> Seal {
    Seal { run: run(), round: 7, view: 1, record: record().id() }
}

fn locked() -> Locked {
    let mut votes: Vec<_> = [2, 3].map(|n| Signed::sign(&key(n), vote())).into();
    votes.sort_by_key(Signed::signer);
    Locked { view: 1, votes }
}

pub(crate) fn proposal() -> Proposal {
    let vote = Signed::sign(&key(2), Vote { view: 2, ..vote() });
    Proposal { view: 2, record: record(), body: body(), vote, locked: Some(locked()) }
}

pub(crate) fn new_view() -> NewView {
    let locked = Some((Signed::sign(&key(2), proposal()), locked()));
    NewView { run: run(), round: 7, view: 3, locked }
}

pub(crate) fn entry() -> Entry {
    let mut seals: Vec<_> = [2, 3].map(|n| Signed::sign(&key(n), seal())).into();
    seals.sort_by_key(Signed::signer);
    let seals = Certified { run: run(), round: 7, view: 1, record: record().id(), seals };
    Entry { record: record(), body: body(), seals }
}

pub(crate) fn messages() -> Vec<(&'static str, TrainMessage)> {
    vec![
        ("join", TrainMessage::Join(Signed::sign(&key(7), join()))),
        ("join-with-bond", TrainMessage::Join(Signed::sign(&key(7), join_with_bond()))),
        ("candidate", TrainMessage::Candidate(Signed::sign(&key(5), candidate()))),
        ("commit", TrainMessage::Commit(Signed::sign(&key(1), commit()))),
        ("reveal", TrainMessage::Reveal(Signed::sign(&key(1), reveal()))),
        ("eval-nonce", TrainMessage::EvalNonce(Signed::sign(&key(2), eval_nonce()))),
        ("card", TrainMessage::Card(Signed::sign(&key(2), card()))),
        ("proposal", TrainMessage::Proposal(Signed::sign(&key(2), proposal()))),
        ("vote", TrainMessage::Vote(Signed::sign(&key(2), vote()))),
        ("seal", TrainMessage::Seal(Signed::sign(&key(2), seal()))),
        ("new-view", TrainMessage::NewView(Signed::sign(&key(2), new_view()))),
        ("entries", TrainMessage::Entries(Box::new(entry()), Vec::new())),
        ("state", TrainMessage::State(Signed::sign(&key(1), state_hash()))),
        ("ask", TrainMessage::Ask { run: run(), round: 7 }),
    ]
}

pub(crate) fn gossip() -> TrainGossip {
    TrainGossip { message: TrainMessage::Commit(Signed::sign(&key(5), commit())), again: 3 }
}

pub(crate) fn requests() -> Vec<(&'static str, TrainRequest)> {
    let ask = TrainMessage::Ask { run: run(), round: 7 };
    vec![
        ("say", TrainRequest::Say(Box::new(ask))),
        ("run", TrainRequest::Run(run())),
        ("state", TrainRequest::State { run: run(), state: Hash::of(b"a state") }),
        ("pledge", TrainRequest::Pledge(run())),
    ]
}

pub(crate) fn answers() -> Vec<(&'static str, TrainAnswer)> {
    let file = StateFile { state: Hash::of(b"a state"), file: Hash::of(b"a file"), bytes: 1 << 40 };
    vec![
        ("taken", TrainAnswer::Taken),
        ("no", TrainAnswer::No),
        ("run", TrainAnswer::Run(Box::new(Signed::sign(&key(1), spec())))),
        ("file", TrainAnswer::File(file)),
        ("pledged", TrainAnswer::Pledged(Signed::sign(&key(2), pledged()))),
    ]
}
