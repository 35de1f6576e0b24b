//! Runs of a tiny model in one process.

mod errands;
mod gate;
mod kit;
mod liar;
mod parts;
mod pay;
mod scenes;
mod swarm;

pub(crate) use kit::stories_as_lines;
