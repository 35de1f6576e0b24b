//! The Consortium daemon and its command line.
//!
//! # Architecture
//! A node is a handful of tasks around two actors. The swarm actor ([`swarm`]) owns libp2p and hands out typed events;
//! the cluster task ([`cluster`]) feeds them to the pure machines of membership and election and publishes a
//! [`cluster::ClusterView`]. Everything else reads that view:
//!
//! - [`master`]: while this node is the elected master, places the model's layers over the members and commits a
//!   pipeline;
//! - [`shards`]: loads the layers a master assigns, each stage on a thread of its own;
//! - [`pipeline`]: moves a job's tokens and hidden states through the stages;
//! - [`gateway`] and [`dispatch`]: take jobs from HTTP and see them through, on this node or by the master over the
//!   swarm, across the loss of either workers or master;
//! - [`blobs`]: files between nodes, by the hash of their content;
//! - [`train`]: runs of training: drives their machines, computes, keeps their logs;
//! - [`audit`]: commits stages to their work, draws and does audits, and keeps what is known of the others;
//! - [`prices`] and [`billing`]: what work costs, and who pays for it; [`mandating`]: what a payer signs beforehand; [`till`]: where customers of the API pay over
//!   Lightning;
//! - [`http`]: the OpenAI-compatible API; [`rpc`]: what others check this node by; [`cli`]: the commands; [`daemon`] puts all of it together.
//!
//! - `wallet`: the Lightning wallet of [`consortium_ledger::lightning`], where the node has one; `bookkeeper` books what it
//!   moves; [`operator`] says who may use it. `escrow`: money locked over it until somebody has judged.
//!
//! What stays on disk: [`keyfile`], [`data_dir`], [`storage`], [`library`].
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub use consortium_inference as inference;
pub use consortium_ledger as ledger;
pub use consortium_training as training;

pub mod audit;
pub mod billing;
pub mod blobs;
#[cfg(feature = "lightning")]
pub mod bookkeeper;
mod buckets;
pub mod calendar;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod daemon;
pub mod data_dir;
pub mod dispatch;
#[cfg(feature = "lightning")]
pub mod escrow;
pub mod gateway;
pub mod http;
pub mod invoice;
pub mod keyfile;
pub mod library;
#[cfg(feature = "lightning")]
pub mod liquidity;
pub mod mandating;
pub mod master;
mod observer;
pub mod operator;
pub mod pipeline;
pub mod power;
pub mod prices;
pub mod rpc;
pub mod serving;
pub mod shards;
pub mod status;
pub mod storage;
pub mod swarm;
pub mod tabs;
pub mod threads;
pub mod till;
pub mod train;
#[cfg(feature = "lightning")]
pub mod wallet;
