//! A worker and a driver over memory transport, with the project's own model; and peers that do not play by the rules.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use consortium_inference::audit::compare;
use consortium_ledger::accounts::Owner;
use consortium_ledger::cells::Cells;
use consortium_ledger::ledger::Ledger;
use consortium_ledger::metering::{JobRecord, StageWork, Terms};
use consortium_ledger::reputation::AuditPolicy;
use consortium_protocol::cluster::{ClusterId, ClusterName};
use consortium_protocol::envelope::Signed;
use consortium_protocol::hash::Hash;
use consortium_protocol::identity::RootKey;
use consortium_protocol::msat::Msat;
use consortium_protocol::wire;
use consortium_protocol::wire::audit::{AuditOrder, Nonce, Outcome, check_chain};
use consortium_protocol::wire::heartbeat::{LayerRange, ModelRef};
use consortium_protocol::wire::job::{JobId, Sampling};
use consortium_protocol::wire::mandate::Mandate;
use consortium_protocol::wire::pay::{Acceptance, Part};
use consortium_protocol::wire::pipeline::{Dtype, Frame, Hop, SessionOpen, StageFailureCode, StepHeader};
use consortium_protocol::wire::rpc::{Assign, RefusalCode, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};

use super::chain::{Chain, ChainEvent, ChainStep};
use super::{TokenInbox, Worker, framing};
use crate::audit::Spool;
use crate::audit::check::check;
use crate::audit::earning::Earning;
use crate::audit::opening::Opened;
use crate::audit::proof::Proof;
use crate::audit::spool::Place;
use crate::audit::standings::Standings;
use crate::clock::wall_ms;
use crate::cluster::ClusterView;
use crate::config::TabRules;
use crate::library::Library;
use crate::shards::Shards;
use crate::storage::Storage;
use crate::swarm::{SwarmConfig, SwarmHandle, TransportKind, spawn};
use crate::tabs::Credit;
use crate::tabs::mandates::{LASTS_MS, Mandates};

const TERM: u64 = 3;
const PATIENCE: Duration = Duration::from_secs(30);

fn cluster() -> ClusterId {
    "test".parse::<ClusterName>().unwrap().id()
}

/// A master and one worker that holds the whole model.
struct Pair {
    key: RootKey,
    master: SwarmHandle,
    worker: SwarmHandle,
    model: ModelRef,
    range: LayerRange,
    shards: Shards,
    inbox: TokenInbox,
    spool: Spool,
    ledger: Ledger,
    storage: Storage,
    credit: Credit,
    _spool_dir: tempfile::TempDir,
}

async fn pair(seed: u8) -> Pair {
    let start = |key: &RootKey, bootstrap: Vec<String>| {
        let config = SwarmConfig {
            key,
            cluster: cluster(),
            listen: vec!["/memory/0".to_owned()],
            bootstrap,
            mdns: false,
            transport: TransportKind::Memory,
        };
        spawn(config, [wire::STAGE, wire::TOKENS]).unwrap()
    };
    let (key, worker_key) = (RootKey::from_seed([seed; 32]), RootKey::from_seed([seed + 1; 32]));
    let (master, mut master_events, [_, tokens]) = start(&key, Vec::new());
    let address = master.listening().wait_for(|all| !all.is_empty()).await.unwrap()[0].clone();
    let (worker, mut worker_events, [stages, _]) = start(&worker_key, vec![address]);
    tokio::spawn(async move { while master_events.recv().await.is_some() {} });
    tokio::spawn(async move { while worker_events.recv().await.is_some() {} });
    for _ in 0..100 {
        if !master.peers().await.unwrap().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../training/models/consortium-tiny");
    let library = Library::open(&[dir]).unwrap();
    let (model, files) = library.iter().next().unwrap().clone();
    let range = files.all_layers();
    let shards = Shards::new(library, 64 << 20);
    let assign = Assign { cluster: cluster(), term: TERM, model: model.clone(), range };
    assert!(matches!(shards.assign(&assign).await, Response::Loaded { .. }));

    let view =
        ClusterView { term: TERM, master: Some(key.node_id()), obeyed: Some(key.node_id()), ..Default::default() };
    let (_, view) = watch::channel(view);
    let inbox = TokenInbox::default();
    tokio::spawn(inbox.clone().serve(master.me(), tokens));
    let spool_dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(spool_dir.path()).unwrap();
    let ledger = Ledger::open(&spool_dir.path().join("ledger.db"), worker.me()).unwrap();
    let storage = Storage::open(&spool_dir.path().join("node.db")).unwrap();
    let rules = TabRules { credit_limit: Msat(1_000_000), ..TabRules::default() };
    let credit = Credit::new(ledger.clone(), storage.clone(), rules, true);
    let serving = Worker {
        cluster: cluster(),
        swarm: worker.clone(),
        shards: shards.clone(),
        view,
        key: Arc::new(worker_key),
        spool: spool.clone(),
        asking: crate::prices::Asking::fixed(Msat(2)),
        mandates: Mandates::default(),
        credit: credit.clone(),
        tamper: None,
    };
    tokio::spawn(serving.serve(stages));
    Pair { key, master, worker, model, range, shards, inbox, spool, ledger, storage, credit, _spool_dir: spool_dir }
}

impl Pair {
    fn open(&self) -> SessionOpen {
        self.job(7)
    }

    /// What the master, who pays itself, signs for as the payer of a job.
    fn mandate(&self, job: u8) -> Mandate {
        Mandate {
            cluster: cluster(),
            job: JobId([job; 16]),
            master: self.master.me(),
            model: self.model.digest,
            positions: 150,
            position_cost: Msat(2 * u64::from(self.range.count())),
            challenge: Nonce([9; 32]).commitment(),
            until_ms: wall_ms() + LASTS_MS,
        }
    }

    fn job(&self, job: u8) -> SessionOpen {
        SessionOpen {
            cluster: cluster(),
            term: TERM,
            job: JobId([job; 16]),
            attempt: 1,
            model: self.model.digest,
            driver: self.master.me(),
            route: vec![Hop { node: self.worker.me(), range: self.range }],
            prices: vec![Msat(2)],
            master_fee: Msat(0),
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            prompt_len: 3,
            max_positions: 64,
            payer: self.master.me(),
            challenge: Nonce([9; 32]).commitment(),
            mandate: Signed::sign(&self.key, self.mandate(job)),
        }
    }

    /// Sends `first` on a fresh stage stream and returns what the worker answers before it closes.
    async fn provoke(&self, first: &[u8]) -> Option<Frame> {
        let mut stream = self.master.open_stream(self.worker.me(), wire::STAGE).await.unwrap();
        let _refused_early = stream.write_all(first).await;
        let _refused_early = stream.shutdown().await;
        tokio::time::timeout(PATIENCE, framing::read_frame(&mut stream)).await.unwrap().unwrap_or(None)
    }

    async fn provoke_open(&self, open: &Signed<SessionOpen>) -> StageFailureCode {
        let length = u32::try_from(open.as_bytes().len()).unwrap().to_le_bytes();
        match self.provoke(&[&length, open.as_bytes()].concat()).await {
            Some(Frame::Error(failure)) => failure.code,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    /// An honest session still works.
    async fn tokens(&self, job: u8, prompt: &[u32], count: u32) -> Vec<u32> {
        self.tokens_of(self.job(job), prompt, count).await
    }

    async fn tokens_of(&self, open: SessionOpen, prompt: &[u32], count: u32) -> Vec<u32> {
        let number = open.attempt;
        let (events, mut queue) = mpsc::channel(16);
        let chain = Chain::open(&self.master, &self.inbox, &Signed::sign(&self.key, open), &events).unwrap();
        let mut next = async || tokio::time::timeout(PATIENCE, queue.recv()).await.unwrap().unwrap();
        assert!(matches!(next().await, ChainEvent::Opened { attempt } if attempt == number));
        let (mut pos, mut tokens, mut drawn) = (0, prompt.to_vec(), Vec::new());
        for seq in 0..count {
            let rows = u32::try_from(tokens.len()).unwrap();
            assert!(chain.step(ChainStep { seq, pos, tokens, sample: true }));
            pos += rows;
            match next().await {
                ChainEvent::Token { id, pos: at, .. } => {
                    assert_eq!(at, pos);
                    drawn.push(id);
                    tokens = vec![id];
                }
                other => panic!("expected a token, got {other:?}"),
            }
        }
        drop(chain);
        for _ in 0..200 {
            if self.shards.sessions() == 0 {
                return drawn;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("a session outlived its chain");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_come_home_as_an_unsplit_run_draws_them() {
    let pair = pair(20).await;
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../training/models/consortium-tiny");
    let dir = consortium_inference::model_dir::ModelDir::open(dir).unwrap();
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    let prompt = [5, 6, 7];
    let expected = consortium_inference::generate::generate(&dir, &prompt, &sampling, 12, &[dir.all_layers()]).unwrap();
    let got = pair.tokens(1, &prompt, u32::try_from(expected.len()).unwrap()).await;
    assert_eq!(got, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_break_the_rules_are_refused_and_the_worker_goes_on() {
    let pair = pair(30).await;
    let stranger = RootKey::from_seed([77; 32]);
    let sign = |open: SessionOpen| Signed::sign(&pair.key, open);

    let by_stranger = SessionOpen { driver: stranger.node_id(), ..pair.open() };
    assert_eq!(pair.provoke_open(&Signed::sign(&stranger, by_stranger)).await, StageFailureCode::StaleTerm);
    let stale = SessionOpen { term: TERM - 1, ..pair.open() };
    assert_eq!(pair.provoke_open(&sign(stale)).await, StageFailureCode::StaleTerm);
    let future = SessionOpen { term: TERM + 1, ..pair.open() };
    assert_eq!(pair.provoke_open(&sign(future)).await, StageFailureCode::StaleTerm);
    let elsewhere = SessionOpen { cluster: "elsewhere".parse::<ClusterName>().unwrap().id(), ..pair.open() };
    assert_eq!(pair.provoke_open(&sign(elsewhere)).await, StageFailureCode::NotMaster);
    let half = LayerRange { first: 0, last: pair.range.last / 2 };
    let not_held = SessionOpen { route: vec![Hop { node: pair.worker.me(), range: half }], ..pair.open() };
    assert_eq!(pair.provoke_open(&sign(not_held)).await, StageFailureCode::NotLoaded);
    let not_ours = SessionOpen { route: vec![Hop { node: stranger.node_id(), range: pair.range }], ..pair.open() };
    assert_eq!(pair.provoke_open(&sign(not_ours)).await, StageFailureCode::BadFrame);
    let cheap = SessionOpen { prices: vec![Msat(1)], ..pair.open() };
    assert_eq!(pair.provoke_open(&sign(cheap)).await, StageFailureCode::Underpaid);
    let endless = SessionOpen { max_positions: u32::MAX, ..pair.open() };
    pair.provoke_open(&sign(endless)).await;

    // No signed opening at all: the stream is closed without an answer.
    for garbage in [&[][..], &[0xff; 64], &[4, 0, 0, 0, 1, 2], b"GET / HTTP/1.1\r\n\r\n"] {
        assert_eq!(pair.provoke(garbage).await, None);
    }
    let mut altered = sign(pair.open()).as_bytes().to_vec();
    let last = altered.len() - 1;
    altered[last] ^= 1;
    let length = u32::try_from(altered.len()).unwrap().to_le_bytes();
    assert_eq!(pair.provoke(&[&length[..], &altered].concat()).await, None);

    assert_eq!(pair.tokens(2, &[5, 6, 7], 3).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_takes_no_order_that_its_payer_did_not_sign_for() {
    let pair = pair(90).await;
    let other = RootKey::from_seed([78; 32]);
    let refused = async |open: SessionOpen| pair.provoke_open(&Signed::sign(&pair.key, open)).await;
    // The master names another payer, who signed nothing; or who signed for another job, or to another master.
    let named = SessionOpen { payer: other.node_id(), ..pair.open() };
    let as_other = |mandate: Mandate| SessionOpen { mandate: Signed::sign(&other, mandate), ..named.clone() };
    let over = Mandate { until_ms: wall_ms() - LASTS_MS, ..pair.mandate(7) };
    let elsewhere = Mandate { master: other.node_id(), ..pair.mandate(7) };
    let longer = SessionOpen { max_positions: 151, ..as_other(pair.mandate(7)) };
    for open in [named.clone(), as_other(pair.mandate(8)), as_other(elsewhere), as_other(over), longer] {
        assert_eq!(refused(open).await, StageFailureCode::NotMandated);
    }
    let dearer = SessionOpen { prices: vec![Msat(3)], ..as_other(pair.mandate(7)) };
    assert_eq!(refused(dearer).await, StageFailureCode::NotMandated);
    assert_eq!(pair.credit.standing(other.node_id()).await.unwrap().unaccepted, Msat(0), "it owes for none of it");

    // An honest mandate is used up by the sessions under it: 3 of 100 positions are, and 97 are left.
    let mandate = Signed::sign(&pair.key, Mandate { positions: 100, ..pair.mandate(7) });
    let under =
        |attempt, max_positions| SessionOpen { attempt, max_positions, mandate: mandate.clone(), ..pair.open() };
    assert_eq!(pair.tokens_of(under(1, 64), &[5, 6, 7], 1).await.len(), 1);
    assert_eq!(refused(under(2, 98)).await, StageFailureCode::NotMandated);
    assert_eq!(pair.tokens_of(under(3, 97), &[5, 6, 7], 1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_frames_end_their_session_alone() {
    let pair = pair(40).await;
    let frame = |seq: u32, pos: u32, tokens: Vec<u32>, hidden: u32, payload: Vec<u8>| {
        Frame::Step { header: StepHeader { seq, pos, tokens, sample: true, hidden, dtype: Dtype::F32 }, payload }
            .encode()
    };
    let damaged = {
        let mut bytes = frame(0, 0, vec![1], 160, vec![0; 640]);
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        bytes
    };
    let bad = [
        ("a gap in positions", frame(0, 9, vec![1], 0, Vec::new())),
        ("a step out of order", frame(5, 0, vec![1], 0, Vec::new())),
        ("a token outside the vocabulary", frame(0, 0, vec![1 << 30], 0, Vec::new())),
        ("hidden states where tokens belong", frame(0, 0, vec![1], 160, vec![0; 640])),
        ("a payload that does not match its hash", damaged),
        ("a token where a step belongs", Frame::Token { seq: 0, pos: 0, id: 1, micros: Vec::new() }.encode()),
        ("noise", vec![0x55; 100]),
    ];
    for (index, (what, bytes)) in bad.into_iter().enumerate() {
        let open = Signed::sign(&pair.key, pair.job(100 + u8::try_from(index).unwrap()));
        let (events, _queue) = mpsc::channel(16);
        let _expected = pair.inbox.register(open.payload(), pair.worker.me(), events);
        let mut stream = pair.master.open_stream(pair.worker.me(), wire::STAGE).await.unwrap();
        framing::write_bytes(&mut stream, open.as_bytes()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.flush().await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, framing::read_frame(&mut stream)).await.expect(what);
        assert!(matches!(answer, Ok(Some(Frame::Error(_)))), "{what}: {answer:?}");
        let mut rest = Vec::new();
        let _closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect(what);
    }
    assert_eq!(pair.tokens(3, &[5, 6, 7], 3).await.len(), 3);
}

/// Runs a job of a few tokens to its receipt, and opens it.
async fn sealed(pair: &Pair, job: u8, mut tokens: Vec<u32>) -> Proof {
    let open = Signed::sign(&pair.key, pair.job(job));
    let (events, mut queue) = mpsc::channel(16);
    let chain = Chain::open(&pair.master, &pair.inbox, &open, &events).unwrap();
    let mut next = async || tokio::time::timeout(PATIENCE, queue.recv()).await.unwrap().unwrap();
    assert!(matches!(next().await, ChainEvent::Opened { .. }));
    let mut pos = 0;
    for seq in 0..3 {
        let rows = u32::try_from(tokens.len()).unwrap();
        assert!(chain.step(ChainStep { seq, pos, tokens, sample: true }));
        let ChainEvent::Token { id, .. } = next().await else { panic!("expected a token") };
        (pos, tokens) = (pos + rows, vec![id]);
    }
    assert!(chain.seal());
    let ChainEvent::Receipts { chain: receipts, .. } = next().await else { panic!("expected receipts") };
    assert!(
        !chain.step(ChainStep { seq: 3, pos, tokens, sample: true }) || {
            matches!(next().await, ChainEvent::Failed { .. } | ChainEvent::Broken { .. })
        }
    );
    check_chain(&open, &receipts).unwrap();
    // It is on disk when the thread that writes it is done, and can be shown meanwhile.
    let path = loop {
        match pair.spool.find(&receipts[0].digest()).unwrap() {
            Place::File(path) => break path,
            Place::Memory(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let order = AuditOrder { order: open, chain: receipts, nonce: Nonce([9; 32]) };
    let shown = std::fs::read(path).unwrap();
    let opened = Opened::read(&mut shown.as_slice(), &order, None).await.unwrap();
    Proof { order, opened }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_session_opens_and_passes_and_nothing_else_does() {
    let pair = pair(50).await;
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../training/models/consortium-tiny");
    let dir = consortium_inference::model_dir::ModelDir::open(dir).unwrap();
    let thresholds = consortium_inference::audit::thresholds::Thresholds::compiled_in();
    let proof = sealed(&pair, 1, (6..46).collect()).await;
    let finding = check(&proof, &dir, &thresholds).unwrap();
    assert_eq!((finding.outcome, finding.blocks, finding.exact), (Outcome::Pass, 2, 2), "{}", finding.detail);
    // The stage did as it was told; behind the prompt's three tokens it was told what nobody drew.
    assert_eq!(finding.given, compare::Finding::Fraud);
    let prompt = [6, 7, 8];
    let drawn = pair.tokens(3, &prompt, 20).await;
    let honest = sealed(&pair, 4, [&prompt[..], &drawn].concat()).await;
    let honest = check(&honest, &dir, &thresholds).unwrap();
    assert_eq!((honest.outcome, honest.given), (Outcome::Pass, compare::Finding::Pass), "{}", honest.detail);

    // What goes through a file is the same, and a byte more or less is noticed.
    let bytes = proof.encode();
    let again = Proof::decode(&bytes).await.unwrap();
    assert_eq!(check(&again, &dir, &thresholds).unwrap(), finding);
    assert!(Proof::decode(&bytes[..bytes.len() - 1]).await.is_err());
    assert!(Proof::decode(&[&bytes[..], &[0]].concat()).await.is_err());

    // Whoever shows something else than it signed for proves nothing, and passes nothing.
    // Nor a bit less: within a cell of the grid, another's numbers would make an honest stage look dishonest.
    for damage in 0..4 {
        let mut other = Proof::decode(&bytes).await.unwrap();
        match damage {
            0 => other.opened.outputs[7] ^= 1,
            3 => other.opened.outputs[4 * 160 * 40] ^= 1,
            1 => other.opened.opening.tokens[3] ^= 1,
            _ => other.opened.opening.drawn[40] ^= 1,
        }
        assert_eq!(check(&other, &dir, &thresholds).unwrap().outcome, Outcome::Withheld, "{damage}");
    }
    // Another job's opening does not do.
    let elsewhere = sealed(&pair, 2, (7..47).collect()).await;
    let swapped = Proof { order: proof.order, opened: elsewhere.opened };
    assert_eq!(check(&swapped, &dir, &thresholds).unwrap().outcome, Outcome::Withheld);
}

#[tokio::test]
async fn layers_that_do_not_fit_or_are_not_there_are_refused() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../training/models/consortium-tiny");
    let library = Library::open(&[dir]).unwrap();
    let (model, files) = library.iter().next().unwrap().clone();
    let refused = async |shards: &Shards, model: &ModelRef, range| {
        let assign = Assign { cluster: cluster(), term: TERM, model: model.clone(), range };
        match shards.assign(&assign).await {
            Response::Refused(refusal) => refusal.code,
            other => panic!("expected a refusal, got {other:?}"),
        }
    };
    let small = Shards::new(library.clone(), 1 << 20);
    assert_eq!(refused(&small, &model, files.all_layers()).await, RefusalCode::OutOfMemory);
    let large = Shards::new(library, 64 << 20);
    assert_eq!(refused(&large, &model, LayerRange { first: 0, last: 999 }).await, RefusalCode::BadModel);
    let unknown = ModelRef { digest: consortium_protocol::hash::Hash::of(b"another"), ..model };
    assert_eq!(refused(&large, &unknown, files.all_layers()).await, RefusalCode::UnknownModel);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_not_paid_stops_until_it_is() {
    let pair = pair(70).await;
    let payer = Owner::Peer(pair.master.me());
    // A newcomer may owe a tenth of the limit.
    let owe = |job: u8, positions: u32| {
        let work = StageWork {
            stage: 0,
            worker: pair.worker.me(),
            cells: Cells { layers: LayerRange { first: 0, last: 0 }, start: 0, stop: positions },
            price: Msat(1),
            receipt: Hash::of(&[job]),
            drawn: false,
        };
        let record = JobRecord { job: JobId([job; 16]), attempt: 1, payer: payer.clone(), fee: 0, stages: vec![work] };
        pair.ledger.record_job(&record, &Terms { tail: 0, ..Terms::default() }, 1).unwrap();
    };
    owe(1, 100_000);
    assert_eq!(pair.tokens(2, &[5, 6, 7], 1).await.len(), 1);
    // Its three rows were not accepted: they count as if they were owed.
    let layers = u64::from(pair.range.count());
    let open = Signed::sign(&pair.key, pair.job(4));
    assert_eq!(pair.provoke_open(&open).await, StageFailureCode::Unpaid);
    pair.ledger.deposit(&payer, Msat(3 * 2 * layers), Hash::of(b"paid"), 2).unwrap();
    assert_eq!(pair.tokens(5, &[5, 6, 7], 1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_counts_against_its_payer_until_that_accepts_it() {
    let pair = pair(80).await;
    let payer = pair.master.me();
    let unaccepted = async || pair.credit.standing(payer).await.unwrap().unaccepted;
    let AuditOrder { order, mut chain, .. } = sealed(&pair, 1, (6..46).collect()).await.order;
    let receipt = chain.remove(0);
    let pay = Acceptance::pay_of(order.payload(), receipt.payload(), Part::Stage).unwrap();
    assert_eq!((receipt.payload().positions, unaccepted().await), (42, pay));
    let worker_key = Arc::new(RootKey::from_seed([81; 32]));
    let standings = Standings::open(pair.ledger.clone(), worker_key, AuditPolicy::default(), 0).unwrap();
    let (storage, credit) = (pair.storage.clone(), pair.credit.clone());
    let earning = Earning { cluster: cluster(), standings, storage, credit };
    let acceptance = Signed::sign(&pair.key, Acceptance { order, receipt, part: Part::Stage, drawn: false, pay });
    for _ in 0..2 {
        earning.accepted(payer, acceptance.clone()).await.unwrap();
        assert_eq!(unaccepted().await, Msat(0));
        assert_eq!(pair.ledger.tab(&payer).unwrap().exposure(), pay);
    }
}
