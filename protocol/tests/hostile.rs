//! What arrives from people who mean harm.

#![allow(clippy::unwrap_used, clippy::panic)]

mod samples;

use std::sync::OnceLock;

use consortium_protocol::cbor::{self, DecodeError};
use consortium_protocol::election::{
    Ballot, Certificate, CertificateError, ElectionMessage, MAX_PERSISTED, Persisted, Vote, view_digest,
};
use consortium_protocol::envelope::{ENVELOPE_BYTES, Payload, Signed};
use consortium_protocol::wire::Message;
use consortium_protocol::wire::audit::{Opening, StageReceipt};
use consortium_protocol::wire::blob::{BlobAnswer, BlobRequest, Held, MAX_BLOB_BYTES, PART_BYTES, parts};
use consortium_protocol::wire::escrow::{EscrowMessage, LockSecret, Misconduct};
use consortium_protocol::wire::fact::Fact;
use consortium_protocol::wire::heartbeat::{Heartbeat, LayerRange};
use consortium_protocol::wire::job::{JobEvent, JobId, JobRequest, JobSubmission, Receipts};
use consortium_protocol::wire::mandate::{Mandate, check_mandate};
use consortium_protocol::wire::pay::{Acceptance, Part};
use consortium_protocol::wire::pipeline::{Frame, FrameHeader, MAX_HEADER, MAX_PAYLOAD, SessionOpen, parse_header};
use consortium_protocol::wire::rpc::{Assign, Release, Request, Response};
use consortium_protocol::wire::tab::{ChannelOffer, LightningId, Tab, TabAnswer, TabSays};
use consortium_protocol::wire::train::{TrainAnswer, TrainGossip, TrainMessage, TrainRequest};
use consortium_protocol::{ClusterId, Hash, Msat, NodeId};
use proptest::prelude::*;
use samples::key;
use serde::{Deserialize, Serialize};

/// A value of every type as bytes, with a reader that gives back the bytes of what it read.
type Reader = fn(&[u8]) -> Option<Vec<u8>>;

fn message<T: Message>(bytes: &[u8]) -> Option<Vec<u8>> {
    T::decode(bytes).ok().map(|value| value.encode())
}

fn signed<T: Payload>(bytes: &[u8]) -> Option<Vec<u8>> {
    Signed::<T>::decode(bytes).ok().map(|value| value.as_bytes().to_vec())
}

fn frame(bytes: &[u8]) -> Option<Vec<u8>> {
    let length = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    if length > MAX_HEADER {
        return None;
    }
    let header = parse_header(bytes.get(4..4 + length)?).ok()?;
    assert!(header.payload_len() <= MAX_PAYLOAD);
    Some(header.into_frame(bytes[4 + length..].to_vec()).ok()?.encode())
}

fn stored(bytes: &[u8]) -> Option<Vec<u8>> {
    cbor::from_slice::<Persisted>(bytes, MAX_PERSISTED).ok().map(|value| cbor::to_vec(&value))
}

fn everything() -> &'static [(String, Vec<u8>, Reader)] {
    static ALL: OnceLock<Vec<(String, Vec<u8>, Reader)>> = OnceLock::new();
    ALL.get_or_init(make_everything)
}

fn make_everything() -> Vec<(String, Vec<u8>, Reader)> {
    let mut all: Vec<(String, Vec<u8>, Reader)> = Vec::new();
    for (name, value) in samples::facts() {
        all.push((format!("fact {name}"), value.encode(), message::<Fact>));
    }
    for (name, value) in samples::requests() {
        all.push((format!("request {name}"), value.encode(), message::<Request>));
    }
    for (name, value) in samples::responses() {
        all.push((format!("response {name}"), value.encode(), message::<Response>));
    }
    for (name, value) in samples::job_requests() {
        all.push((format!("job request {name}"), value.encode(), message::<JobRequest>));
    }
    all.push(("job submission".into(), samples::job_submission().encode(), message::<JobSubmission>));
    for (name, value) in samples::job_events() {
        all.push((format!("job event {name}"), value.encode(), message::<JobEvent>));
    }
    for (name, value) in samples::frames() {
        all.push((format!("frame {name}"), value.encode(), frame));
    }
    for (name, value) in samples::escrow_messages() {
        all.push((format!("escrow {name}"), value.encode(), message::<EscrowMessage>));
    }
    for (name, value) in samples::train::messages() {
        all.push((format!("train {name}"), value.encode(), message::<TrainMessage>));
    }
    all.push(("train gossip".into(), samples::train::gossip().encode(), message::<TrainGossip>));
    for (name, value) in samples::train::requests() {
        all.push((format!("train request {name}"), value.encode(), message::<TrainRequest>));
    }
    for (name, value) in samples::train::answers() {
        all.push((format!("train answer {name}"), value.encode(), message::<TrainAnswer>));
    }
    all.push(("misconduct".into(), samples::misconduct().encode(), message::<Misconduct>));
    let mandate = Signed::sign(&key(1), samples::mandate());
    all.push(("mandate".into(), mandate.as_bytes().to_vec(), signed::<Mandate>));
    let session = Signed::sign(&key(1), samples::session());
    all.push(("session".into(), session.as_bytes().to_vec(), signed::<SessionOpen>));
    let heartbeat = Signed::sign(&key(1), samples::heartbeat());
    all.push(("heartbeat".into(), heartbeat.as_bytes().to_vec(), signed::<Heartbeat>));
    all.push(("stored election".into(), cbor::to_vec(&samples::persisted()), stored));
    all
}

#[test]
fn no_prefix_of_a_message_is_a_message() {
    for (name, bytes, read) in everything() {
        assert_eq!(read(bytes).as_ref(), Some(bytes), "{name}");
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).is_none(), "{name} cut to {length}");
        }
        let longer: Vec<u8> = bytes.iter().copied().chain([0]).collect();
        assert!(read(&longer).is_none(), "{name} with a byte more");
    }
}

#[test]
fn a_flipped_bit_is_refused_or_another_message() {
    for (name, bytes, read) in everything() {
        for place in 0..bytes.len() {
            // Every bit of the short ones; of the long ones, which take long to verify, one in each byte.
            let bits = if bytes.len() < 700 { 0..8 } else { place % 8..place % 8 + 1 };
            for bit in bits {
                let mut other = bytes.clone();
                other[place] ^= 1 << bit;
                // What is accepted is the one encoding of what it says.
                if let Some(again) = read(&other) {
                    assert_eq!(again, other, "{name}, bit {bit} of byte {place}");
                }
            }
        }
    }
}

#[test]
fn a_flipped_bit_breaks_every_signature_and_every_payload() {
    let heartbeat = Signed::sign(&key(1), samples::heartbeat());
    let step = samples::frames().into_iter().find(|(name, _)| *name == "later").unwrap().1.encode();
    for (bytes, read, from) in
        [(heartbeat.as_bytes().to_vec(), signed::<Heartbeat> as Reader, 0), (step.clone(), frame, step.len() - 8)]
    {
        for place in from..bytes.len() {
            for bit in 0..8 {
                let mut other = bytes.clone();
                other[place] ^= 1 << bit;
                assert!(read(&other).is_none(), "bit {bit} of byte {place}");
            }
        }
    }
}

#[test]
fn too_long_is_refused_before_it_is_read() {
    let too_long = |error: DecodeError| matches!(error, DecodeError::TooLarge { .. });
    assert!(too_long(Fact::decode(&vec![0; Fact::MAX_BYTES + 1]).unwrap_err()));
    assert!(too_long(Request::decode(&vec![0; Request::MAX_BYTES + 1]).unwrap_err()));
    assert!(too_long(Response::decode(&vec![0; Response::MAX_BYTES + 1]).unwrap_err()));
    assert!(too_long(JobRequest::decode(&vec![0; JobRequest::MAX_BYTES + 1]).unwrap_err()));
    assert!(too_long(JobEvent::decode(&vec![0; JobEvent::MAX_BYTES + 1]).unwrap_err()));
    assert!(too_long(parse_header(&vec![0; MAX_HEADER + 1]).unwrap_err()));
    let limit = Heartbeat::MAX_BYTES + ENVELOPE_BYTES;
    assert!(too_long(Signed::<Heartbeat>::decode(&vec![0; limit + 1]).unwrap_err()));
}

#[test]
fn bounds_leave_room_for_the_largest_honest_message() {
    let mut heartbeat = samples::heartbeat();
    let name = "m".repeat(96);
    heartbeat.models = (0..16).map(|_| samples::model()).collect();
    for model in &mut heartbeat.models {
        model.name.clone_from(&name);
        model.context = u32::MAX;
        model.layers = u16::MAX;
    }
    heartbeat.held = vec![heartbeat.held[0]; 16];
    for lease in &mut heartbeat.held {
        lease.term = u64::MAX;
        lease.range = LayerRange { first: 60_000, last: u16::MAX };
    }
    heartbeat.memory_bytes = u64::MAX;
    let heartbeat = Signed::sign(&key(1), heartbeat);
    assert!(Signed::<Heartbeat>::decode(heartbeat.as_bytes()).is_ok());
    assert!(Fact::decode(&Fact::Heartbeat(heartbeat).encode()).is_ok());

    let mut session = samples::session();
    session.route = (0..64)
        .map(|n| {
            let mut hop = session.route[0];
            hop.range = LayerRange { first: 1000 * n, last: 1000 * n + 999 };
            hop
        })
        .collect();
    session.prices = vec![Msat(u64::MAX); 64];
    let session = Signed::sign(&key(1), session);
    assert!(Signed::<SessionOpen>::decode(session.as_bytes()).is_ok());

    let receipt = StageReceipt {
        term: u64::MAX,
        attempt: u32::MAX,
        stage: 63,
        positions: u32::MAX,
        range: LayerRange { first: 60_000, last: u16::MAX },
        ..samples::receipts()[1].payload().clone()
    };
    let chain = vec![Signed::sign(&key(1), receipt); 64];
    assert!(frame(&Frame::Receipts(chain.clone()).encode()).is_some());
    let one_more = [chain.as_slice(), &chain[..1]].concat();
    assert!(frame(&Frame::Receipts(one_more.clone()).encode()).is_none());
    let receipts = |chain| Receipts { order: session.clone(), chain, tokens: vec![u32::MAX; 262_144], drawn_from: 9 };
    assert!(JobEvent::decode(&JobEvent::Receipts(Box::new(receipts(chain))).encode()).is_ok());
    assert!(JobEvent::decode(&JobEvent::Receipts(Box::new(receipts(one_more))).encode()).is_err());
    let opening = Opening { tokens: vec![u32::MAX; 262_144], drawn: vec![u32::MAX; 262_144], width: 65_536 };
    assert!(Opening::decode(&opening.encode()).is_ok());
    assert_eq!(opening.lengths(1), Some((1 << 36, 1 << 36)));

    let certificate = large_certificate(64, 8);
    let bytes = Fact::Certificate(certificate.clone()).encode();
    assert!(bytes.len() <= Fact::MAX_BYTES, "{} bytes", bytes.len());
    assert!(Fact::decode(&bytes).is_ok());
    let persisted =
        Persisted { obeyed: Some(certificate.clone()), basis: Some(certificate), voted: Some(samples::ballot()) };
    assert!(stored(&cbor::to_vec(&persisted)).is_some());

    let mut job = samples::job_requests().remove(2).1;
    job.emitted = vec![u32::MAX; 200_000];
    assert!(JobRequest::decode(&job.encode()).is_ok());

    let step = samples::frames().remove(1).1;
    if let Frame::Step { mut header, .. } = step {
        header.tokens = vec![u32::MAX; 512];
        header.hidden = 4;
        let payload = vec![1; 512 * 16];
        assert!(frame(&Frame::Step { header, payload }.encode()).is_some());
    }
}

/// A certificate by `members` with `views` different views, each of them large.
fn large_certificate(members: u8, views: usize) -> Certificate {
    let mut ids: Vec<NodeId> = (0..members).map(|n| key(n).node_id()).collect();
    let candidate = ids[0];
    ids.sort_unstable();
    let ballots = (0..members)
        .map(|n| {
            let id = key(n).node_id();
            let leave_out = ids.iter().filter(|other| **other != id && **other != candidate);
            let mut view = ids.clone();
            if let Some(gone) = leave_out.clone().nth((usize::from(n) % views).saturating_sub(1))
                && usize::from(n) % views > 0
            {
                view.retain(|other| other != gone);
            }
            let vote = Vote {
                cluster: samples::cluster(),
                term: u64::MAX,
                round: u64::MAX,
                candidate,
                view: view_digest(&view),
            };
            (id, Ballot { vote: Signed::sign(&key(n), vote), view })
        })
        .collect();
    Certificate::assemble(candidate, &ballots).unwrap_or_else(|| large_certificate(members, views - 1))
}

/// The envelope as an attacker would build it.
#[derive(Serialize, Deserialize)]
struct Envelope {
    by: NodeId,
    sig: serde_bytes::ByteArray<64>,
    body: serde_bytes::ByteBuf,
    v: u16,
}

fn envelope(signed: &[u8]) -> Envelope {
    cbor::from_slice(signed, 1 << 20).unwrap()
}

#[test]
fn a_signature_holds_for_one_domain_signer_and_version() {
    let assign = Signed::sign(&key(1), samples::assign());
    // Another type of the same shape.
    assert!(matches!(Signed::<Release>::decode(assign.as_bytes()), Err(DecodeError::Signature)));
    let vote = samples::ballot().vote;
    assert!(matches!(
        Signed::<consortium_protocol::election::VoteRequest>::decode(vote.as_bytes()),
        Err(DecodeError::Signature)
    ));
    // Another signer.
    let mut other = envelope(assign.as_bytes());
    other.by = key(2).node_id();
    assert!(matches!(Signed::<Assign>::decode(&cbor::to_vec(&other)), Err(DecodeError::Signature)));
    // Another version.
    let mut other = envelope(assign.as_bytes());
    other.v = 2;
    assert!(matches!(Signed::<Assign>::decode(&cbor::to_vec(&other)), Err(DecodeError::Version { found: 2, .. })));
    // No signature.
    let mut other = envelope(assign.as_bytes());
    other.sig = serde_bytes::ByteArray::new([0; 64]);
    assert!(matches!(Signed::<Assign>::decode(&cbor::to_vec(&other)), Err(DecodeError::Signature)));
    // A signature over the body alone, without domain.
    let mut other = envelope(assign.as_bytes());
    other.sig = serde_bytes::ByteArray::new(key(1).sign(&other.body));
    assert!(matches!(Signed::<Assign>::decode(&cbor::to_vec(&other)), Err(DecodeError::Signature)));
    // The bare payload.
    assert!(Signed::<Assign>::decode(&cbor::to_vec(&samples::assign())).is_err());
}

#[test]
fn a_signature_does_not_excuse_a_payload_that_breaks_the_rules() {
    let mut assign = samples::assign();
    assign.range.last = 8;
    let assign = Signed::sign(&key(1), assign);
    assert!(matches!(Signed::<Assign>::decode(assign.as_bytes()), Err(DecodeError::Invalid(_))));

    let mut heartbeat = samples::heartbeat();
    heartbeat.models = vec![samples::model(); 17];
    assert!(Signed::<Heartbeat>::decode(Signed::sign(&key(1), heartbeat).as_bytes()).is_err());
    let mut heartbeat = samples::heartbeat();
    heartbeat.master = None;
    assert!(Signed::<Heartbeat>::decode(Signed::sign(&key(1), heartbeat).as_bytes()).is_err());

    let broken: [fn(&mut SessionOpen); 6] = [
        |session| session.route.clear(),
        |session| session.route[0].range.first = 1,
        |session| session.route[1].range.first = 5,
        |session| session.route[1].range.first = 3,
        |session| session.route[1].range = LayerRange { first: 4, last: 3 },
        |session| session.max_positions = 10,
    ];
    for change in broken {
        let mut session = samples::session();
        change(&mut session);
        assert!(session.check().is_err());
        assert!(Signed::<SessionOpen>::decode(Signed::sign(&key(1), session).as_bytes()).is_err());
    }
}

#[test]
fn an_order_keeps_to_what_its_payer_signed_for() {
    type Change = fn(&mut SessionOpen);
    let checked = |by: u8, change: fn(&mut SessionOpen)| {
        let mut session = samples::session();
        change(&mut session);
        check_mandate(&Signed::sign(&key(by), session)).map_err(|broken| broken.field)
    };
    assert_eq!(checked(2, |_| {}), Ok(()));
    assert_eq!(checked(3, |_| {}), Err("driver"), "a mandate is for one master");
    let cases: [(Change, &str); 11] = [
        (|session| session.payer = key(5).node_id(), "payer"),
        // What the master signs itself makes nobody else pay.
        (|session| session.mandate = Signed::sign(&key(2), samples::mandate()), "payer"),
        (|session| session.cluster = ClusterId(Hash::of(b"another")), "job"),
        (|session| session.job = JobId([8; 16]), "job"),
        (|session| session.driver = key(3).node_id(), "driver"),
        (|session| session.model = Hash::of(b"another"), "model"),
        (|session| session.challenge = Hash::of(b"another"), "challenge"),
        (|session| session.max_positions = 301, "max_positions"),
        // Four layers at 5, four at 9 and a fee of 3 are 59.
        (|session| session.prices[1] = Msat(10), "prices"),
        (|session| session.master_fee = Msat(13), "prices"),
        (|session| session.prices[1] = Msat(u64::MAX), "prices"),
    ];
    for (index, (change, field)) in cases.into_iter().enumerate() {
        assert_eq!(checked(2, change), Err(field), "case {index}");
    }
    assert_eq!(checked(2, |session| session.prices[1] = Msat(9)), Ok(()));
    let nothing = Mandate { positions: 0, ..samples::mandate() };
    assert!(Signed::<Mandate>::decode(Signed::sign(&key(4), nothing).as_bytes()).is_err());
    for change in [|job: &mut JobRequest| job.job.0[0] ^= 1, |job: &mut JobRequest| job.challenge = Hash::of(b"x")] {
        let mut submission = samples::job_submission();
        change(&mut submission.request);
        assert!(JobSubmission::decode(&submission.encode()).is_err());
    }
}

#[test]
fn jobs_out_of_bounds_are_refused() {
    let broken: [fn(&mut JobRequest); 10] = [
        |job| job.model.clear(),
        |job| job.model = "m".repeat(97),
        |job| job.stop = vec!["x".into(); 5],
        |job| job.stop = vec![String::new()],
        |job| job.stop = vec!["x".repeat(257)],
        |job| job.max_tokens = Some(0),
        |job| job.sampling.temperature = f32::NAN,
        |job| job.sampling.temperature = -0.1,
        |job| job.sampling.top_p = 0.0,
        |job| job.sampling.repetition_penalty = f32::INFINITY,
    ];
    for change in broken {
        let mut job = samples::job_requests().remove(0).1;
        change(&mut job);
        assert!(JobRequest::decode(&job.encode()).is_err());
    }
}

#[test]
fn frames_that_contradict_themselves_are_refused() {
    let steps: [fn(&mut Frame); 5] = [
        |frame| {
            if let Frame::Step { header, .. } = frame {
                header.hidden = 3;
            }
        },
        |frame| {
            if let Frame::Step { header, .. } = frame {
                header.hidden = u32::MAX;
            }
        },
        |frame| {
            if let Frame::Step { header, .. } = frame {
                header.tokens.clear();
            }
        },
        |frame| {
            if let Frame::Step { header, .. } = frame {
                header.tokens = vec![0; 513];
            }
        },
        |frame| {
            if let Frame::Step { header, .. } = frame {
                header.pos = u32::MAX;
            }
        },
    ];
    for change in steps {
        let mut step = samples::frames().remove(1).1;
        change(&mut step);
        assert!(frame(&step.encode()).is_none());
    }
    let many = Frame::Token { seq: 0, pos: 0, id: 0, micros: vec![0; 65] };
    assert!(frame(&many.encode()).is_none());
}

#[test]
fn a_header_cannot_announce_more_than_is_allowed() {
    #[derive(Serialize)]
    struct Lie {
        body: &'static str,
        len: u32,
        hash: Hash,
    }
    let lie = |len| cbor::to_vec(&Lie { body: "Ack", len, hash: Hash::of(&[]) });
    let honest: Result<FrameHeader, _> = parse_header(&lie(0));
    assert!(honest.is_ok());
    assert!(parse_header(&lie(1)).is_err());
    assert!(parse_header(&lie(u32::MAX)).is_err());
}

/// Votes for the first key, each voter with a view of its own.
fn certificate(votes: &[(u8, &[u8])], change: impl Fn(u8, &mut Vote)) -> Result<Certificate, DecodeError> {
    #[derive(Serialize)]
    struct Parts {
        views: Vec<Vec<NodeId>>,
        votes: Vec<Signed<Vote>>,
    }
    let view_of = |members: &[u8]| {
        let mut view: Vec<NodeId> = members.iter().map(|n| key(*n).node_id()).collect();
        view.sort_unstable();
        view
    };
    let mut views: Vec<Vec<NodeId>> = votes.iter().map(|(_, members)| view_of(members)).collect();
    let mut signed: Vec<Signed<Vote>> = votes
        .iter()
        .map(|(voter, members)| {
            let mut vote = Vote {
                cluster: samples::cluster(),
                term: 5,
                round: 1,
                candidate: key(votes[0].0).node_id(),
                view: view_digest(&view_of(members)),
            };
            change(*voter, &mut vote);
            Signed::sign(&key(*voter), vote)
        })
        .collect();
    signed.sort_by_key(Signed::signer);
    views.sort_by_key(|view| view_digest(view));
    views.dedup();
    let bytes = cbor::to_vec(&Parts { views, votes: signed });
    cbor::from_slice(&bytes, 1 << 20)
}

#[test]
fn only_majorities_certify() {
    let unchanged = |_: u8, _: &mut Vote| {};
    let fine = certificate(&[(1, &[1, 2, 3]), (2, &[1, 2, 3])], unchanged).unwrap();
    assert_eq!((fine.term(), fine.master()), (5, key(1).node_id()));
    assert_eq!(fine.verify(samples::cluster()), Ok(()));
    assert_eq!(fine.verify(ClusterId(Hash::of(b"another"))), Err(CertificateError::Cluster));
    assert!(certificate(&[(1, &[1])], unchanged).is_ok());
    // Views may differ, if the voters are a majority of each.
    assert!(certificate(&[(1, &[1, 2, 3]), (2, &[1, 2])], unchanged).is_ok());

    let refused: [&[(u8, &[u8])]; 8] = [
        &[],
        &[(1, &[1, 2])],                                // half is no majority
        &[(1, &[1, 2, 3, 4]), (2, &[1, 2, 3, 4])],      // nor is it here
        &[(1, &[1, 2, 3]), (2, &[1, 2, 3, 4, 5])],      // a majority for one voter alone
        &[(1, &[1]), (1, &[1])],                        // one voter twice
        &[(1, &[2, 3])],                                // not in its own view
        &[(1, &[1, 2]), (2, &[2, 3])],                  // the candidate is not in a voter's view
        &[(1, &[1, 2, 3]), (2, &[1, 2, 3]), (3, &[3])], // nor here
    ];
    for votes in refused {
        if votes.is_empty() {
            continue;
        }
        assert!(certificate(votes, unchanged).is_err(), "{votes:?}");
    }
    let votes: &[(u8, &[u8])] = &[(1, &[1, 2, 3]), (2, &[1, 2, 3])];
    let changes: [fn(u8, &mut Vote); 5] = [
        |voter, vote| vote.term += u64::from(voter),
        |voter, vote| vote.round += u64::from(voter),
        |voter, vote| vote.candidate = key(voter).node_id(),
        |voter, vote| vote.cluster = ClusterId(Hash::of(&[voter])),
        |_, vote| vote.view = Hash::of(b"no such view"),
    ];
    for change in changes {
        assert!(certificate(votes, change).is_err());
    }
    // Elected without having stood.
    assert!(certificate(&[(2, &[1, 2, 3]), (3, &[1, 2, 3])], |_, vote| vote.candidate = key(1).node_id()).is_err());
}

#[test]
fn ballots_are_checked() {
    let ballot = samples::ballot();
    assert!(ElectionMessage::Vote(ballot.clone()).check().is_ok());
    let changes: [fn(&mut Ballot); 4] = [
        |ballot| ballot.view.reverse(),
        |ballot| ballot.view.clear(),
        |ballot| ballot.view.truncate(2),
        |ballot| ballot.view.push(NodeId::from_bytes([255; 32])),
    ];
    for change in changes {
        let mut other = ballot.clone();
        change(&mut other);
        let request = Request::Election(ElectionMessage::Vote(other));
        assert!(Request::decode(&request.encode()).is_err());
    }
}

#[test]
fn acceptances_are_for_the_work_of_their_order_at_its_price() {
    assert!(samples::acceptance().check().is_ok());
    let changes: [fn(&mut Acceptance); 4] = [
        |said| said.pay.0 += 1,
        |said| said.receipt = Signed::sign(&key(4), said.receipt.payload().clone()),
        |said| {
            let other = SessionOpen { term: 99, ..said.order.payload().clone() };
            said.order = Signed::sign(&key(2), other);
        },
        |said| {
            let other = StageReceipt { stage: 63, ..said.receipt.payload().clone() };
            said.receipt = Signed::sign(&key(3), other);
        },
    ];
    for (which, change) in changes.into_iter().enumerate() {
        let mut other = samples::acceptance();
        change(&mut other);
        assert!(other.check().is_err(), "change {which}");
    }
    let driving = samples::acceptance_of_driving;
    assert!(driving().check().is_ok() && driving().pay > Msat::ZERO);
    assert_eq!(driving().payee(), driving().order.payload().driver);
    let receipt = samples::receipts().remove(0);
    let first = driving().order.payload().route.len() > 1;
    assert!(first && Acceptance { receipt, ..driving() }.check().is_err(), "not the last stage's receipt");
    assert!(Acceptance { drawn: true, ..driving() }.check().is_err());
    assert!(Acceptance { part: Part::Stage, ..driving() }.check().is_err());
    assert!(Acceptance { pay: Msat(driving().pay.0 + 1), ..driving() }.check().is_err());
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        for (_, _, read) in everything() {
            if let Some(again) = read(&bytes) {
                prop_assert_eq!(again, bytes.clone());
            }
        }
    }

    #[test]
    fn no_mixture_makes_a_reader_panic(
        which in 0_usize..64,
        cut in any::<prop::sample::Index>(),
        insert in prop::collection::vec(any::<u8>(), 0..8),
        drop in 0_usize..8,
    ) {
        let all = everything();
        let (_, bytes, read) = &all[which % all.len()];
        let place = cut.index(bytes.len());
        let rest = (place + drop).min(bytes.len());
        let mixed: Vec<u8> = bytes[..place].iter().chain(&insert).chain(&bytes[rest..]).copied().collect();
        if let Some(again) = read(&mixed) {
            prop_assert_eq!(again, mixed);
        }
    }
}

#[test]
fn a_tab_that_contradicts_itself_is_refused() {
    let changes: [fn(&mut Tab); 4] = [
        |tab| tab.paid = Msat(tab.accepted.0 + 1),
        |tab| tab.seq = 0,
        |tab| tab.worker = tab.payer,
        |tab| tab.receipts = vec![LockSecret::from_bytes([7; 32]); 17],
    ];
    for change in changes {
        let mut tab = samples::tab();
        change(&mut tab);
        assert!(Signed::<Tab>::decode(Signed::sign(&key(1), tab).as_bytes()).is_err());
    }
    let answered = |length: usize, amount, receipts: usize| {
        let lightning: LightningId = format!("03{}", "ab".repeat(32)).parse().unwrap();
        let (invoice, receivable) = ("l".repeat(length), Msat(u64::MAX));
        let says = TabSays::Invoice { lightning, amount, invoice, receivable };
        let receipts = vec![LockSecret::from_bytes([7; 32]); receipts];
        let answer = TabAnswer { tab: Hash::of(b"tab"), says, receipts };
        Signed::<TabAnswer>::decode(Signed::sign(&key(2), answer).as_bytes())
    };
    assert!(answered(2048, Msat(u64::MAX), 16).is_ok(), "the longest one fits");
    assert!(answered(2049, Msat(1), 0).is_err());
    assert!(answered(10, Msat::ZERO, 0).is_err());
    assert!(answered(10, Msat(1), 17).is_err());
}

#[test]
fn files_have_their_bounds() {
    let hash = Hash::of(b"a file");
    let part = |part| BlobRequest::decode(&BlobRequest { hash, part: Some(part) }.encode());
    assert!(part((MAX_BLOB_BYTES / PART_BYTES) - 1).is_ok() && part(MAX_BLOB_BYTES / PART_BYTES).is_err());
    let here = |bytes| BlobAnswer::decode(&BlobAnswer::Here { bytes }.encode());
    assert!(here(MAX_BLOB_BYTES).is_ok() && here(MAX_BLOB_BYTES + 1).is_err());
    assert_eq!([0, 1, PART_BYTES, PART_BYTES + 1].map(parts), [1, 1, 1, 2]);
}

#[test]
fn the_parts_that_are_said_to_be_held_are_those_of_the_file() {
    let coming = |bytes, of, part| {
        let mut held = Held::none(of);
        held.set(part, true);
        BlobAnswer::decode(&BlobAnswer::Coming { bytes, held }.encode())
    };
    let bytes = 9 * PART_BYTES;
    let Ok(BlobAnswer::Coming { held, .. }) = coming(bytes, bytes, 8) else { panic!("the last part") };
    assert_eq!([7, 8, 9, 16, u64::MAX].map(|part| held.has(part)), [false, true, false, false, false]);
    assert!(coming(bytes, bytes, 9).is_err(), "there is no tenth part");
    assert!(coming(bytes, 8 * PART_BYTES, 0).is_err() && coming(bytes, 17 * PART_BYTES, 0).is_err());
    assert!(coming(MAX_BLOB_BYTES, MAX_BLOB_BYTES, 0).is_ok());
    assert!(coming(MAX_BLOB_BYTES + 1, MAX_BLOB_BYTES + 1, 0).is_err());
}

#[test]
fn an_offer_of_a_channel_has_its_bounds() {
    let with = |addresses: Vec<String>| {
        let offer = ChannelOffer { addresses, at_ms: u64::MAX, size_sat: u64::MAX, ..samples::channel_offer() };
        Signed::<ChannelOffer>::decode(Signed::sign(&key(1), offer).as_bytes())
    };
    assert!(with(vec!["x".repeat(128); 4]).is_ok(), "the largest one fits");
    for bad in [Vec::new(), vec!["x".repeat(129)], vec!["x".to_owned(); 5]] {
        assert!(with(bad).is_err());
    }
    for bad in ["", "04", &"02".repeat(32), &"0g".repeat(33), &"04".repeat(33), &"é".repeat(33)] {
        assert!(bad.parse::<LightningId>().is_err(), "{bad}");
    }
}
