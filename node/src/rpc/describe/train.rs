//! The methods of training.

use super::{Kind, Method, may, must};

const RUN: super::Param = must("run", Kind::Digest, "its id");

pub(super) const METHODS: &[Method] = &[
    Method {
        name: "train_list",
        summary: "The training runs that this node has heard of or takes part in; on the node's own machine alone.",
        params: &[],
        result: &["runs"],
    },
    Method {
        name: "train_status",
        summary: "How a run goes that this node takes part in, with its newest rounds; on the node's own machine alone.",
        params: &[RUN],
        result: &["me", "status"],
    },
    Method {
        name: "train_announce",
        summary: "Makes a run (tokenizer, initial parameters, specification), signs it and tells the swarm; for the operator. \
                  It takes seconds to minutes. `expected` says what it costs at most, how large an update is and how long a \
                  round takes.",
        params: &[
            may(
                "wishes",
                Kind::Wishes,
                "what is wanted, by the names of `train announce`'s plan; all of it has defaults",
            ),
            may("dry_run", Kind::Truth, "sign and tell nothing; `run` is null then"),
        ],
        result: &["run", "spec", "expected"],
    },
    Method {
        name: "train_join",
        summary: "Takes part in a run from now on, also after a restart; for the operator. One that this node does not know \
                  is looked for in the swarm.",
        params: &[
            RUN,
            may("wish", Kind::Text, "train, validate or watch; train if absent"),
            may(
                "pause",
                Kind::Terms,
                "train only while that pays for the power: what a kilowatt-hour costs in msat, and what the machine takes in \
                 milliwatts, measured if absent",
            ),
        ],
        result: &["run", "wish", "pause"],
    },
    Method {
        name: "train_leave",
        summary: "Leaves a run at the end of the round; for the operator.",
        params: &[RUN],
        result: &["run"],
    },
    Method {
        name: "train_export",
        summary: "Writes what this node knows of a run to a directory on its machine, from which it can be replayed; for the \
                  operator.",
        params: &[RUN, must("directory", Kind::Text, "a whole path, from the root on")],
        result: &["rounds", "updates", "missing", "initial", "held_round"],
    },
];
