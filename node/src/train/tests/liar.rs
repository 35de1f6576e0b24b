//! A peer that hands in what it should not.

use std::sync::Arc;

use consortium_protocol::wire::train::{Commit, TrainMessage, commitment};
use consortium_protocol::{Hash, Millis, Signed};
use consortium_training::collective::SyncProbe;
use consortium_training::rounds::{Config, Held, Input, Machine, Output, Wish};
use consortium_training::run::Submission;
use consortium_training::sparseloco::{Layout, compress};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::kit::{World, id, key};
use crate::blobs::Blobs;
use crate::clock::wall_ms;
use crate::train::hub::HubWire;
use crate::train::{Heard, Shelf, Wire};

/// What it hands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lie {
    /// No update at all.
    Garbage,
    /// One of another model.
    OtherModel,
    /// One that ends too early.
    Cut,
    /// One with a sample of numbers that are none.
    Undefined,
    /// One that is longer than it says.
    LongerThanSaid,
    /// One that is longer than any may be.
    TooLong,
    /// The name of a file that all have: the parameters.
    Parameters,
    /// Nothing: the file is not there.
    Nothing,
    /// It commits to two things, and to another in another round.
    Both,
}

pub(super) struct Liar {
    machine: Machine,
    wire: HubWire,
    inbox: mpsc::Receiver<Heard>,
    blobs: Blobs,
    world: (Arc<consortium_training::collective::Task>, Arc<consortium_protocol::RootKey>),
    lies: std::vec::IntoIter<Lie>,
}

impl Liar {
    /// Enters with these lies, one for each round.
    pub(super) fn enter(world: &World, n: u8, lies: Vec<Lie>) -> Self {
        let blobs = Blobs::open(world.path(n).join("blobs"), 1 << 30).unwrap();
        let (wire, inbox) = world.hub.enter(world.run(), id(n), blobs.clone(), Shelf::default());
        let config = Config { key: key(n), wish: Wish::Train, resend: Millis(250), held: None };
        let machine = Machine::new(config, world.spec.clone(), [], Millis(wall_ms())).unwrap();
        Self { machine, wire, inbox, blobs, world: (world.task.clone(), key(n)), lies: lies.into_iter() }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(std::time::Duration::from_millis(50));
        loop {
            let input = tokio::select! {
                () = stop.cancelled() => return,
                heard = self.inbox.recv() => match heard {
                    Some(Heard { from, message, .. }) => Input::Message { from, message },
                    None => return,
                },
                _ = tick.tick() => Input::Tick,
            };
            let mut inputs = vec![input];
            while let Some(input) = inputs.pop() {
                for output in self.machine.handle(input, Millis(wall_ms())) {
                    inputs.extend(self.perform(output).await);
                }
            }
        }
    }

    async fn perform(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Broadcast(message) => self.wire.gossip(message).await,
            Output::Send { to, message } => self.wire.send(to, message),
            Output::Fetch { round, peer, .. } => return Some(Input::Fetched { round, peer, result: Ok(()) }),
            // It does not compute: it says that it holds what the others hold.
            Output::Aggregate { .. } | Output::Revert { .. } => return Some(Input::NotApplied),
            Output::Resync { round, state, .. } => return Some(Input::Applied(Held { round, state })),
            Output::Train { round, .. } => {
                let lie = self.lies.next()?;
                let (update, bytes) = self.lie(lie, round).await;
                return Some(Input::Trained { round, update, bytes });
            }
            _ => {}
        }
        None
    }

    async fn lie(&mut self, lie: Lie, round: u64) -> (Hash, u64) {
        let task = self.world.0.clone();
        if let Lie::Parameters = lie {
            let state = self.machine.held().unwrap().state;
            let mut file = None;
            while file.is_none() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                file = self.wire.locate(id(0), state).await;
            }
            return file.map(|file| (file.file, file.bytes)).unwrap();
        }
        let small = |layout: &Layout| {
            let mut delta = layout.zeros();
            delta[0][0] = round as f32 * 1e-3;
            compress(layout, &mut layout.zeros(), &delta).unwrap()
        };
        let honest = Submission::encode(&vec![0.0; SyncProbe::size(&task)], &small(task.layout()));
        let content = match lie {
            Lie::Garbage => format!("no update {round}").into_bytes(),
            Lie::OtherModel => {
                let other = small(&Layout::new(&[vec![64, 64]]).unwrap());
                Submission::encode(&vec![0.0; SyncProbe::size(&task)], &other)
            }
            Lie::Cut => honest[..honest.len() - 1].to_vec(),
            Lie::Undefined => Submission::encode(&vec![f32::NAN; SyncProbe::size(&task)], &small(task.layout())),
            Lie::TooLong => vec![round as u8; (1 << 20) + 1],
            Lie::LongerThanSaid | Lie::Nothing | Lie::Both | Lie::Parameters => honest,
        };
        let bytes = content.len() as u64;
        match lie {
            Lie::Nothing => return (Hash::of(&content), bytes),
            Lie::LongerThanSaid => return (self.blobs.put(content).await.unwrap(), bytes - 1),
            Lie::Both => {
                let base = self.machine.held().unwrap().state;
                for (round, what) in [(round, b"one"), (round, b"two"), (round + 7, b"far")] {
                    let run = self.machine.chain().run();
                    let commitment = commitment(run, round, self.world.1.node_id(), Hash::of(what));
                    let commit = Signed::sign(&self.world.1, Commit { run, round, commitment, base });
                    self.wire.gossip(TrainMessage::Commit(commit)).await;
                }
            }
            _ => {}
        }
        (self.blobs.put(content).await.unwrap(), bytes)
    }
}
