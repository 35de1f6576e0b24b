//! Receipts that a payer accepts, and every way in which it does not.

use consortium_protocol::cluster::ClusterName;
use consortium_protocol::envelope::Signed;
use consortium_protocol::identity::RootKey;
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::audit::{Compute, KernelFamily, NumericClass, StageReceipt};
use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::wire::job::{JobId, Prompt, Sampling};
use consortium_protocol::wire::mandate::Mandate;
use consortium_protocol::wire::pipeline::{Hop, SessionOpen};

use super::*;

const PROMPT: usize = 40;
const NONCE: Nonce = Nonce([3; 32]);

fn key(n: u8) -> RootKey {
    RootKey::from_seed([n; 32])
}

/// A job of 40 and 5 tokens through two stages, the last token drawn and not fed; `change` bends what the master and the
/// stages say before they sign it.
struct Story {
    order: SessionOpen,
    tokens: Vec<u32>,
    drawn_from: usize,
    emitted: Vec<u32>,
    given: usize,
    change: fn(usize, &mut StageReceipt),
}

impl Story {
    fn new() -> Self {
        let tokens: Vec<u32> = (0..PROMPT as u32 + 5).map(|n| 100 + n).collect();
        let order = SessionOpen {
            cluster: "test".parse::<ClusterName>().unwrap().id(),
            term: 4,
            job: JobId([8; 16]),
            attempt: 1,
            model: Hash::of(b"model"),
            driver: key(1).node_id(),
            route: vec![
                Hop { node: key(2).node_id(), range: LayerRange { first: 0, last: 3 } },
                Hop { node: key(3).node_id(), range: LayerRange { first: 4, last: 9 } },
            ],
            prices: vec![Msat(1), Msat(1)],
            master_fee: Msat(0),
            sampling: Sampling::default(),
            prompt_len: PROMPT as u32,
            max_positions: 64,
            payer: key(9).node_id(),
            challenge: NONCE.commitment(),
            mandate: Signed::sign(
                &key(9),
                Mandate {
                    cluster: "test".parse::<ClusterName>().unwrap().id(),
                    job: JobId([8; 16]),
                    master: key(1).node_id(),
                    model: Hash::of(b"model"),
                    positions: 10_000,
                    position_cost: Msat(10),
                    challenge: NONCE.commitment(),
                    until_ms: 1 << 60,
                },
            ),
        };
        let emitted = tokens[PROMPT..].to_vec();
        Self { order, tokens, drawn_from: PROMPT, emitted, given: 0, change: |_, _| {} }
    }

    fn settlement(&self) -> Settlement {
        let open = &self.order;
        let order = Signed::sign(&key(1), open.clone());
        let positions = self.tokens.len() - 1;
        let root = |boundary: u16, values: Vec<u32>| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            blocks_root(&block_digests(&boundary_key(open.job, open.attempt, boundary), &bytes, 4))
        };
        let drawn = (1..=positions).map(|at| if at < self.drawn_from { NOT_DRAWN } else { self.tokens[at] });
        let roots = [root(0, self.tokens[..positions].to_vec()), Hash::of(b"hidden"), root(2, drawn.collect())];
        let mut chain: Vec<Signed<StageReceipt>> = Vec::new();
        for (stage, hop) in open.route.iter().enumerate() {
            let mut receipt = StageReceipt {
                cluster: open.cluster,
                term: open.term,
                job: open.job,
                attempt: open.attempt,
                order: order.digest(),
                model: open.model,
                range: hop.range,
                stage: stage as u16,
                class: NumericClass { compute: Compute::F32, kernels: KernelFamily::Invariant, engine: 1 },
                positions: positions as u32,
                inputs: roots[stage],
                outputs: roots[stage + 1],
                grid: Hash::of(b"grid"),
                upstream: chain.last().map(Signed::digest),
                challenge: open.challenge,
            };
            (self.change)(stage, &mut receipt);
            chain.push(Signed::sign(&key(2 + stage as u8), receipt));
        }
        let request = JobRequest {
            job: open.job,
            model: "tiny".to_owned(),
            prompt: Prompt::Tokens(self.tokens[..PROMPT].to_vec()),
            sampling: Sampling::default(),
            max_tokens: Some(5),
            stop: Vec::new(),
            ignore_eos: false,
            emitted: self.emitted.clone(),
            challenge: NONCE.commitment(),
        };
        let drawn_from = self.drawn_from as u32;
        let receipts = Box::new(Receipts { order, chain, tokens: self.tokens.clone(), drawn_from });
        Settlement {
            request,
            nonce: NONCE,
            account: JobAccount::own(),
            receipts,
            master: key(1).node_id(),
            given: self.given,
        }
    }
}

fn expected() -> Expected {
    Expected {
        payer: key(9).node_id(),
        cluster: "test".parse::<ClusterName>().unwrap().id(),
        model: Some((Hash::of(b"model"), 10)),
        prompt: Some((0..PROMPT as u32).map(|n| 100 + n).collect()),
    }
}

fn refused(story: &Story) -> Unacceptable {
    examine(&story.settlement(), &expected()).unwrap_err()
}

#[test]
fn honest_receipts_are_accepted() {
    examine(&Story::new().settlement(), &expected()).unwrap();
    // The model's end-of-text token is drawn and not emitted.
    let mut ended = Story::new();
    ended.emitted.pop();
    examine(&ended.settlement(), &expected()).unwrap();
    // A job that was handed in again with three tokens.
    let mut resumed = Story::new();
    (resumed.given, resumed.drawn_from) = (3, PROMPT + 3);
    examine(&resumed.settlement(), &expected()).unwrap();
    // A payer without the model takes its master's word for prompt and layers.
    let blind = Expected { model: None, prompt: None, ..expected() };
    examine(&Story::new().settlement(), &blind).unwrap();
}

#[test]
fn a_master_that_orders_something_else_is_refused() {
    let bends: [fn(&mut SessionOpen); 10] = [
        |order| order.payer = key(7).node_id(),
        |order| order.job = JobId([7; 16]),
        |order| order.challenge = Hash::of(b"another nonce"),
        |order| order.sampling.temperature = 0.0,
        |order| order.driver = key(7).node_id(),
        |order| order.model = Hash::of(b"a smaller model"),
        |order| order.route[1].range.last = 7,
        |order| order.prices[1] = Msat(2),
        |order| order.max_positions = 10_001,
        |order| order.mandate = Signed::sign(&key(1), *order.mandate.payload()),
    ];
    for (index, bend) in bends.into_iter().enumerate() {
        let mut story = Story::new();
        bend(&mut story.order);
        // The request stays what it was.
        let mut settlement = story.settlement();
        settlement.request.job = JobId([8; 16]);
        assert_eq!(examine(&settlement, &expected()).unwrap_err().stage, None, "bend {index}");
    }
}

#[test]
fn tokens_that_are_not_those_of_the_answer_are_refused() {
    let mut other_prompt = Story::new();
    other_prompt.tokens[3] += 1;
    assert_eq!(refused(&other_prompt).reason, "the tokens do not begin with the prompt");
    let mut other_answer = Story::new();
    other_answer.tokens[PROMPT + 1] += 1;
    assert_eq!(refused(&other_answer).reason, "the tokens are not those of the answer");
    // Text that the master put in before any stage drew a token.
    let mut forged = Story::new();
    forged.drawn_from = PROMPT + 3;
    assert_eq!(refused(&forged).reason, "not all of the answer was drawn by the stages that signed");
}

#[test]
fn a_stage_that_signed_for_something_else_is_named() {
    let mut first = Story::new();
    first.change = |stage, receipt| {
        if stage == 0 {
            receipt.inputs = Hash::of(b"other tokens");
        }
    };
    assert_eq!(refused(&first).stage, Some(0));
    let mut last = Story::new();
    last.change = |stage, receipt| {
        if stage == 1 {
            receipt.outputs = Hash::of(b"other draws");
        }
    };
    assert_eq!(refused(&last).stage, Some(1));
    let mut between = Story::new();
    between.change = |stage, receipt| {
        if stage == 1 {
            receipt.inputs = Hash::of(b"invented");
        }
    };
    assert_eq!(refused(&between).stage, Some(1));
}

#[test]
fn a_missing_receipt_or_a_row_too_many_is_refused() {
    let mut short = Story::new().settlement();
    short.receipts.chain.pop();
    assert_eq!(examine(&short, &expected()).unwrap_err().reason, "there is not one receipt for each stage");
    let mut long = Story::new();
    long.change = |_, receipt| receipt.positions += 1;
    assert_eq!(refused(&long).reason, "the tokens are not as many as the rows signed for");
}
