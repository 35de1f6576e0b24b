//! Runs of a tiny model in one process.

mod kit;
mod scenes;
