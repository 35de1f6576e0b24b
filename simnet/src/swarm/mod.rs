//! A local swarm: real node processes on loopback, and the supervisor that owns them.
//!
//! [`supervisor::Swarm`] starts the nodes, waits until they serve, carries out orders and stops them. Everything else
//! here is a part of it: where a swarm lives ([`directory`]), what it was meant to be ([`plan`]), how much its nodes
//! may hold ([`model`], [`capacity`]), what money it uses ([`chain`], [`wallets`], [`settlement`]), which binary they run ([`binary`]), one of them ([`process`]), how they are asked
//! ([`client`]), when they are ready ([`ready`]), what is written down of them ([`record`]), and how other commands
//! reach the supervisor ([`control`]).

pub(crate) mod binary;
pub(crate) mod capacity;
pub(crate) mod chain;
pub(crate) mod client;
pub(crate) mod control;
pub(crate) mod directory;
pub(crate) mod model;
pub(crate) mod parent_death;
pub(crate) mod plan;
pub(crate) mod process;
pub(crate) mod ready;
pub(crate) mod record;
pub(crate) mod settlement;
pub(crate) mod steps;
pub(crate) mod supervisor;
pub(crate) mod wallets;
