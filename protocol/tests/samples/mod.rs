//! One value of every wire type, always the same.

// Each test program uses its part.
#![allow(dead_code)]

pub(crate) mod train;

use std::collections::BTreeMap;

use consortium_protocol::election::{
    Ballot, Candidacy, Certificate, ElectionMessage, Persisted, Refused, RefusedReason, Vote, VoteRequest, view_digest,
};
use consortium_protocol::wire::audit::{
    AuditOrder, Compute, KernelFamily, NOT_DRAWN, Nonce, NumericClass, Opening, Outcome, StageReceipt, Verdict,
};
use consortium_protocol::wire::blob::{BlobAnswer, BlobRequest, Held, MAX_BLOB_BYTES, PART_BYTES};
use consortium_protocol::wire::escrow::{
    EscrowFinding, EscrowId, EscrowKind, EscrowMessage, EscrowTerms, EscrowVerdict, LockSecret, Misconduct,
};
use consortium_protocol::wire::fact::Fact;
use consortium_protocol::wire::heartbeat::{Heartbeat, LayerRange, Lease, ModelRef};
use consortium_protocol::wire::job::{
    ChatMessage, FinishReason, JobError, JobErrorCode, JobEvent, JobId, JobRequest, JobSubmission, Prompt, Receipts,
    Sampling, Usage,
};
use consortium_protocol::wire::ledger::{Equivocation, EquivocationSeen, Rebuttal, TreeHead};
use consortium_protocol::wire::mandate::Mandate;
use consortium_protocol::wire::pay::{Acceptance, Part};
use consortium_protocol::wire::pipeline::{Dtype, Frame, Hop, SessionOpen, StageFailure, StageFailureCode, StepHeader};
use consortium_protocol::wire::rpc::{Assign, Refusal, RefusalCode, Release, Request, Response};
use consortium_protocol::wire::tab::{
    ChannelAgreed, ChannelBegun, ChannelGone, ChannelOffer, LightningId, Tab, TabAnswer, TabSays,
};
use consortium_protocol::{ClusterId, Hash, Msat, NodeId, RootKey, Signed};

/// The `n`th key.
pub(crate) fn key(n: u8) -> RootKey {
    RootKey::from_seed([n; 32])
}

/// The cluster of all samples.
pub(crate) fn cluster() -> ClusterId {
    ClusterId(Hash::of(b"golden cluster"))
}

pub(crate) fn model() -> ModelRef {
    ModelRef { name: "tiny".into(), digest: Hash::of(b"model"), layers: 8, context: 2048 }
}

fn range(first: u16, last: u16) -> LayerRange {
    LayerRange { first, last }
}

pub(crate) fn heartbeat() -> Heartbeat {
    Heartbeat {
        cluster: cluster(),
        incarnation: 1_800_000_000_000,
        seq: 7,
        term: 3,
        master: Some(key(2).node_id()),
        willing: true,
        memory_bytes: 8 << 30,
        layer_micros: 250,
        models: vec![model()],
        held: vec![Lease { model: Hash::of(b"model"), range: range(0, 3), term: 3 }],
        active_jobs: 2,
        price_per_layer_token: Msat(5),
        master_fee: Msat(0),
        uptime_s: 60,
        leaving: false,
        sent_at_ms: 1_800_000_060_000,
    }
}

pub(crate) fn vote_request() -> VoteRequest {
    VoteRequest { cluster: cluster(), term: 4, round: 2 }
}

/// Votes of `voters` for the first of them, all with the view of `voters`.
pub(crate) fn ballots(voters: &[u8], term: u64) -> BTreeMap<NodeId, Ballot> {
    let mut view: Vec<NodeId> = voters.iter().map(|n| key(*n).node_id()).collect();
    let candidate = view[0];
    view.sort_unstable();
    voters
        .iter()
        .map(|n| {
            let vote = Vote { cluster: cluster(), term, round: 1, candidate, view: view_digest(&view) };
            (key(*n).node_id(), Ballot { vote: Signed::sign(&key(*n), vote), view: view.clone() })
        })
        .collect()
}

pub(crate) fn ballot() -> Ballot {
    ballots(&[1, 2, 3], 3)[&key(2).node_id()].clone()
}

pub(crate) fn certificate() -> Certificate {
    Certificate::assemble(key(1).node_id(), &ballots(&[1, 2, 3], 3)).unwrap()
}

pub(crate) fn candidacy() -> Candidacy {
    Candidacy { request: Signed::sign(&key(1), vote_request()), basis: Some(certificate()) }
}

pub(crate) fn persisted() -> Persisted {
    Persisted { obeyed: Some(certificate()), basis: None, voted: Some(ballot()) }
}

pub(crate) fn election_messages() -> Vec<(&'static str, ElectionMessage)> {
    let refused = Refused { term: 4, round: 1, reason: RefusedReason::Preferred };
    vec![
        ("request", ElectionMessage::Request(candidacy())),
        ("vote", ElectionMessage::Vote(ballot())),
        ("refused", ElectionMessage::Refused(refused)),
        ("certificate", ElectionMessage::Certificate(certificate())),
        ("ask", ElectionMessage::Ask),
    ]
}

pub(crate) fn facts() -> Vec<(&'static str, Fact)> {
    vec![
        ("heartbeat", Fact::Heartbeat(Signed::sign(&key(1), heartbeat()))),
        ("certificate", Fact::Certificate(certificate())),
        ("verdict", Fact::Verdict(Signed::sign(&key(4), verdict()))),
        ("rebuttal", Fact::Rebuttal(Signed::sign(&key(5), rebuttal()))),
        ("tree-head", Fact::TreeHead(Signed::sign(&key(1), tree_head()))),
        ("equivocation", Fact::Equivocation(Box::new(equivocation()))),
        ("run", Fact::Run(Signed::sign(&key(1), train::spec()))),
    ]
}

pub(crate) fn assign() -> Assign {
    Assign { cluster: cluster(), term: 3, model: model(), range: range(4, 7) }
}

pub(crate) fn release() -> Release {
    Release { cluster: cluster(), term: 3, model: Hash::of(b"model") }
}

pub(crate) fn requests() -> Vec<(&'static str, Request)> {
    let election = election_messages().into_iter().map(|(name, message)| (name, Request::Election(message)));
    let escrows = [("escrow-terms", 0), ("escrow-invoices", 1), ("escrow-release", 4)];
    let escrows =
        escrows.map(|(name, place)| (name, Request::Escrow(Box::new(escrow_messages().swap_remove(place).1))));
    election
        .chain([
            ("assign", Request::Assign(Signed::sign(&key(2), assign()))),
            ("release", Request::Release(Signed::sign(&key(2), release()))),
            ("newest", Request::Certificate),
            ("audit", Request::Audit(Box::new(audit_order()))),
            ("accepted", Request::Accepted(Box::new(Signed::sign(&key(1), acceptance())))),
            ("accepted-driving", Request::Accepted(Box::new(Signed::sign(&key(1), acceptance_of_driving())))),
            ("judged", Request::Judged(Box::new(Signed::sign(&key(4), verdict())))),
            ("settle", Request::Settle(Box::new(Signed::sign(&key(1), tab())))),
            ("channel", Request::Channel(Box::new(Signed::sign(&key(1), channel_offer())))),
            ("channel-begun", Request::ChannelBegun(Box::new(Signed::sign(&key(1), channel_begun())))),
            ("channel-gone", Request::ChannelGone(Box::new(Signed::sign(&key(1), channel_gone())))),
        ])
        .chain(escrows)
        .collect()
}

pub(crate) fn responses() -> Vec<(&'static str, Response)> {
    let lease = Lease { model: Hash::of(b"model"), range: range(4, 7), term: 3 };
    vec![
        ("ack", Response::Ack),
        ("loaded", Response::Loaded { lease, load_ms: 1234 }),
        ("none", Response::Certificate(None)),
        ("some", Response::Certificate(Some(certificate()))),
        ("refused", Response::Refused(Refusal::new(RefusalCode::StaleTerm, "term 2 is over"))),
        ("not-agreed", Response::Refused(Refusal::new(RefusalCode::NotAgreed, "nobody here has agreed to that"))),
        ("tab", Response::Tab(Box::new(Signed::sign(&key(2), tab_answer())))),
        ("channel", Response::Channel(Box::new(Signed::sign(&key(2), channel_agreed())))),
    ]
}

pub(crate) fn sampling() -> Sampling {
    Sampling { temperature: 0.7, top_p: 0.95, top_k: 40, seed: 42, ..Sampling::default() }
}

pub(crate) fn job_requests() -> Vec<(&'static str, JobRequest)> {
    let chat = JobRequest {
        job: JobId([9; 16]),
        model: "tiny".into(),
        prompt: Prompt::Chat(vec![ChatMessage { role: "user".into(), content: "Grüße".into() }]),
        sampling: sampling(),
        max_tokens: Some(64),
        stop: vec!["\n\n".into()],
        ignore_eos: false,
        emitted: vec![5, 70_000],
        challenge: nonce().commitment(),
    };
    let text = JobRequest { prompt: Prompt::Text("once".into()), max_tokens: None, ..chat.clone() };
    let tokens = JobRequest { prompt: Prompt::Tokens(vec![1, 300]), stop: Vec::new(), ..chat.clone() };
    vec![("chat", chat), ("text", text), ("tokens", tokens)]
}

pub(crate) fn job_submission() -> JobSubmission {
    JobSubmission { mandate: Signed::sign(&key(4), mandate()), request: job_requests().remove(0).1 }
}

/// The payer's word for [`session`].
pub(crate) fn mandate() -> Mandate {
    Mandate {
        cluster: cluster(),
        job: JobId([9; 16]),
        master: key(2).node_id(),
        model: Hash::of(b"model"),
        positions: 300,
        position_cost: Msat(60),
        challenge: nonce().commitment(),
        until_ms: 1_800_000_600_000,
    }
}

pub(crate) fn job_events() -> Vec<(&'static str, JobEvent)> {
    let usage = Usage { prompt_tokens: 11, completion_tokens: 64 };
    let mut error = JobError::new(JobErrorCode::ContextLength, "too long");
    error.param = Some("max_tokens".into());
    vec![
        ("accepted", JobEvent::Accepted { model: model(), term: 3, prompt_tokens: 11, seed: 42 }),
        ("token", JobEvent::Token { index: 0, id: 5, text: "Hé".into() }),
        ("done", JobEvent::Done { finish: FinishReason::Length, usage, text: String::new() }),
        (
            "receipts",
            JobEvent::Receipts(Box::new(Receipts {
                order: Signed::sign(&key(2), session()),
                chain: receipts(),
                tokens: (0..40).collect(),
                drawn_from: 11,
            })),
        ),
        ("failed", JobEvent::Failed { error }),
    ]
}

pub(crate) fn session() -> SessionOpen {
    SessionOpen {
        cluster: cluster(),
        term: 3,
        job: JobId([9; 16]),
        attempt: 1,
        model: Hash::of(b"model"),
        driver: key(2).node_id(),
        route: vec![
            Hop { node: key(1).node_id(), range: range(0, 3) },
            Hop { node: key(3).node_id(), range: range(4, 7) },
        ],
        prices: vec![Msat(5), Msat(7)],
        master_fee: Msat(3),
        sampling: sampling(),
        prompt_len: 11,
        max_positions: 75,
        payer: key(4).node_id(),
        challenge: nonce().commitment(),
        mandate: Signed::sign(&key(4), mandate()),
    }
}

pub(crate) fn nonce() -> Nonce {
    Nonce([5; 32])
}

/// The receipts of [`session`].
pub(crate) fn receipts() -> Vec<Signed<StageReceipt>> {
    let order = Signed::sign(&key(2), session());
    let open = order.payload();
    let first = StageReceipt {
        cluster: open.cluster,
        term: open.term,
        job: open.job,
        attempt: open.attempt,
        order: order.digest(),
        model: open.model,
        range: open.route[0].range,
        stage: 0,
        class: NumericClass { compute: Compute::F32, kernels: KernelFamily::Invariant, engine: 1 },
        positions: 39,
        inputs: Hash::of(b"tokens"),
        outputs: Hash::of(b"hidden"),
        grid: Hash::of(b"grid"),
        upstream: None,
        challenge: open.challenge,
    };
    let class = NumericClass { compute: Compute::Bf16, kernels: KernelFamily::CandleCpu, engine: 1 };
    let signed = Signed::sign(&key(1), first.clone());
    let second = StageReceipt {
        range: open.route[1].range,
        stage: 1,
        class,
        inputs: first.outputs,
        outputs: Hash::of(b"drawn"),
        upstream: Some(signed.digest()),
        ..first
    };
    vec![signed, Signed::sign(&key(3), second)]
}

pub(crate) fn verdict() -> Verdict {
    let receipt = &receipts()[1];
    let said = receipt.payload();
    Verdict {
        cluster: said.cluster,
        auditee: receipt.signer(),
        job: said.job,
        attempt: said.attempt,
        stage: said.stage,
        receipt: receipt.digest(),
        outcome: Outcome::Fraud,
        blocks: 2,
        exact: 1,
        class: said.class,
        proof: Some(Hash::of(b"proof")),
        at_ms: 1_800_000_060_000,
    }
}

pub(crate) fn rebuttal() -> Rebuttal {
    let verdict = Signed::sign(&key(4), verdict());
    Rebuttal {
        cluster: cluster(),
        accuser: verdict.signer(),
        verdict: verdict.digest(),
        proof: Hash::of(b"proof"),
        at_ms: 1_800_000_070_000,
    }
}

pub(crate) fn tree_head() -> TreeHead {
    TreeHead { size: 3, root: Hash::of(b"root"), at_ms: 1_800_000_060_000 }
}

pub(crate) fn equivocation() -> Equivocation {
    let other = TreeHead { root: Hash::of(b"other root"), ..tree_head() };
    Equivocation::Roots { a: Signed::sign(&key(1), tree_head()), b: Signed::sign(&key(1), other) }
}

pub(crate) fn equivocation_seen() -> EquivocationSeen {
    EquivocationSeen { proof: equivocation(), at_ms: 1_800_000_080_000 }
}

pub(crate) fn audit_order() -> AuditOrder {
    AuditOrder { order: Signed::sign(&key(2), session()), chain: receipts(), nonce: nonce() }
}

pub(crate) fn acceptance() -> Acceptance {
    let order = Signed::sign(&key(2), session());
    let receipt = receipts().remove(1);
    let pay = Acceptance::pay_of(order.payload(), receipt.payload(), Part::Stage).unwrap();
    Acceptance { order, receipt, part: Part::Stage, drawn: true, pay }
}

/// The same for the master, by the receipt of the last stage.
pub(crate) fn acceptance_of_driving() -> Acceptance {
    let order = Signed::sign(&key(2), session());
    let receipt = receipts().pop().unwrap();
    let pay = Acceptance::pay_of(order.payload(), receipt.payload(), Part::Driving).unwrap();
    Acceptance { order, receipt, part: Part::Driving, drawn: false, pay }
}

pub(crate) fn opening() -> Opening {
    Opening { tokens: vec![1, 300], drawn: vec![NOT_DRAWN, 7], width: 160 }
}

pub(crate) fn frames() -> Vec<(&'static str, Frame)> {
    let first = StepHeader { seq: 0, pos: 0, tokens: vec![1, 2, 3], sample: false, hidden: 0, dtype: Dtype::F32 };
    let later = StepHeader { seq: 1, pos: 3, tokens: vec![4], sample: true, hidden: 2, dtype: Dtype::F32 };
    let payload: Vec<u8> = [1.0_f32, -2.5].iter().flat_map(|x| x.to_le_bytes()).collect();
    vec![
        ("first", Frame::Step { header: first, payload: Vec::new() }),
        ("later", Frame::Step { header: later, payload }),
        ("token", Frame::Token { seq: 1, pos: 4, id: 99, micros: vec![250, 1_000_000] }),
        (
            "error",
            Frame::Error(StageFailure::new(
                1,
                key(3).node_id(),
                StageFailureCode::NotLoaded,
                "layers 4-7 are not held",
            )),
        ),
        ("ack", Frame::Ack),
        ("seal", Frame::Receipts(Vec::new())),
        ("receipts", Frame::Receipts(receipts())),
    ]
}

pub(crate) fn blob_requests() -> Vec<(&'static str, BlobRequest)> {
    let hash = Hash::of(b"a file");
    vec![("length", BlobRequest { hash, part: None }), ("part", BlobRequest { hash, part: Some((1 << 20) - 1) })]
}

pub(crate) fn blob_answers() -> Vec<(&'static str, BlobAnswer)> {
    let bytes = 11 * PART_BYTES;
    let mut held = Held::none(bytes);
    [0, 3, 10].into_iter().for_each(|part| held.set(part, true));
    vec![
        ("here", BlobAnswer::Here { bytes: MAX_BLOB_BYTES }),
        ("coming", BlobAnswer::Coming { bytes, held }),
        ("unknown", BlobAnswer::Unknown),
    ]
}

pub(crate) fn tab() -> Tab {
    let (payer, worker) = (key(1).node_id(), key(2).node_id());
    Tab { payer, worker, seq: 7, accepted: Msat(1_250_000), paid: Msat(50_001), receipts: vec![lock_secret(1)] }
}

fn lightning() -> LightningId {
    "02eec7245d6b7d2ccb30380bfbe2a3648cd7a942653f5aa340edcea1f283686619".parse().unwrap()
}

pub(crate) fn tab_answer() -> TabAnswer {
    let says = TabSays::Invoice {
        lightning: lightning(),
        amount: Msat(1_199_999),
        invoice: "lnbcrt11999990p1".into(),
        receivable: Msat(5_000_000),
    };
    TabAnswer { tab: Hash::of(b"tab"), says, receipts: vec![lock_secret(2)] }
}

pub(crate) fn channel_offer() -> ChannelOffer {
    ChannelOffer {
        payer: key(1).node_id(),
        worker: key(2).node_id(),
        at_ms: 1_700_000_000_000,
        size_sat: 100_000,
        cost: Msat(300_000),
        lightning: lightning(),
        addresses: vec!["203.0.113.7:9735".into()],
    }
}

pub(crate) fn channel_agreed() -> ChannelAgreed {
    ChannelAgreed { offer: Hash::of(b"offer"), lightning: lightning() }
}

pub(crate) fn channel_gone() -> ChannelGone {
    ChannelGone { offer: Hash::of(b"offer") }
}

pub(crate) fn channel_begun() -> ChannelBegun {
    ChannelBegun { offer: Hash::of(b"offer") }
}

/// What opens the tranches of [`escrow_terms`].
pub(crate) fn lock_secret(tranche: u8) -> LockSecret {
    LockSecret::from_bytes([0x60 + tranche; 32])
}

/// Tranches of 1, 2 and 4 units, judged by the third key.
pub(crate) fn escrow_terms() -> EscrowTerms {
    EscrowTerms {
        id: EscrowId([0xe5; 16]),
        kind: EscrowKind::Tranches,
        payer: key(1).node_id(),
        payee: key(2).node_id(),
        locks: (0..3).map(|tranche| lock_secret(tranche).lock()).collect(),
        unit: Msat(1_000_000),
        delta: 144,
        subject: Hash::of(b"subject"),
        at_ms: 1_800_000_090_000,
    }
}

/// The word of the third key: five units of seven.
pub(crate) fn escrow_verdict() -> EscrowVerdict {
    EscrowVerdict {
        escrow: EscrowId([0xe5; 16]),
        terms: Signed::sign(&key(3), escrow_terms()).digest(),
        finding: EscrowFinding::Accepted,
        earned: 0b101,
        evidence: Hash::of(b"evidence"),
        at_ms: 1_800_000_095_000,
    }
}

pub(crate) fn escrow_messages() -> Vec<(&'static str, EscrowMessage)> {
    let signed = Signed::sign(&key(3), escrow_terms());
    let terms = signed.digest();
    let verdict = Signed::sign(&key(3), escrow_verdict());
    let secrets = vec![lock_secret(0), lock_secret(2)];
    vec![
        ("terms", EscrowMessage::Terms(signed.clone())),
        ("invoices", EscrowMessage::Invoices { terms, invoices: vec!["lnbcrt1".into(), "lnbcrt2".into()] }),
        ("held", EscrowMessage::Held { terms, deadline: 850_000 }),
        ("verdict", EscrowMessage::Verdict { terms: signed.clone(), verdict: verdict.clone() }),
        ("release", EscrowMessage::Release { terms: signed, verdict, secrets }),
        ("heard", EscrowMessage::Heard { terms }),
        ("given-up", EscrowMessage::GivenUp { terms }),
    ]
}

/// The second tranche was opened, which the verdict does not give.
pub(crate) fn misconduct() -> Misconduct {
    let terms = Signed::sign(&key(3), escrow_terms());
    let verdict = Some(Signed::sign(&key(3), escrow_verdict()));
    Misconduct { terms, tranche: 1, secret: lock_secret(1), verdict }
}
