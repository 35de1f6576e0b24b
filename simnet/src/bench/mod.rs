//! What `simnet bench` measures: a pipeline over N nodes against one node, side by side in the same minute.
//!
//! Both swarms run at once and idle nodes park. Requests alternate between the two, and so does which one goes first;
//! what counts is the median of the ratios of the pairs. Every pair asks both the same, greedily and with a seed in
//! turn, and both must answer the same text.

pub(crate) mod comparison;
pub(crate) mod cpu;
pub(crate) mod statistics;
