//! The OpenRPC document of `rpc.discover`.

use consortium_ledger::reputation::{MAX_EVIDENCE_PAGE, MAX_PAGE};
use consortium_ledger::{accounts, statement};
use serde_json::{Value, json};

use super::audits::MAX_VERDICTS;
use super::{NOT_FOR_YOU, NOT_FOUND, WALLET_REFUSED};

#[cfg(feature = "lightning")]
mod escrows;
mod train;
#[cfg(feature = "lightning")]
mod wallet;

/// What a parameter may be.
#[derive(Clone, Copy, Debug)]
enum Kind {
    PeerId,
    Digest,
    Job,
    Account,
    Place,
    Signed,
    /// From 0 on.
    Number,
    Text,
    Truth,
    /// What an author says of a run.
    Wishes,
    /// On what terms a peer trains.
    Terms,
    #[cfg(feature = "lightning")]
    Escrow,
    /// How many on a page, from 1 to this many.
    Limit(u32),
}

impl Kind {
    fn schema(self) -> Value {
        match self {
            Self::PeerId => json!({"type": "string", "description": "a PeerId of an Ed25519 key, 12D3KooW..."}),
            Self::Digest => json!({"type": "string", "pattern": "^[0-9a-f]{64}$"}),
            Self::Job => json!({"type": "string", "pattern": "^[0-9a-f]{32}$"}),
            Self::Place => json!({"type": "string", "pattern": "^[0-9]+-[0-9a-f]{64}$"}),
            Self::Signed => json!({"type": "string", "pattern": "^([0-9a-f]{2})+$"}),
            Self::Account => json!({"type": "string", "pattern": "^(peer|key|own)/"}),
            Self::Text => json!({"type": "string"}),
            Self::Truth => json!({"type": "boolean", "default": false}),
            Self::Wishes => json!({"type": "object", "default": {}}),
            Self::Terms => json!({"type": "object", "required": ["kwh_msat"], "properties": {
                "kwh_msat": {"type": "integer", "minimum": 0},
                "milliwatts": {"type": "integer", "minimum": 1},
            }}),
            #[cfg(feature = "lightning")]
            Self::Escrow => json!({"type": "string", "pattern": "^[0-9a-f]{32}$"}),
            Self::Number => json!({"type": "integer", "minimum": 0}),
            Self::Limit(most) => {
                json!({"type": "integer", "minimum": 1, "maximum": most, "default": most.min(50)})
            }
        }
    }
}

/// A parameter.
#[derive(Clone, Copy, Debug)]
struct Param {
    name: &'static str,
    kind: Kind,
    required: bool,
    about: &'static str,
}

const fn must(name: &'static str, kind: Kind, about: &'static str) -> Param {
    Param { name, kind, required: true, about }
}

const fn may(name: &'static str, kind: Kind, about: &'static str) -> Param {
    Param { name, kind, required: false, about }
}

/// A method.
#[derive(Clone, Copy, Debug)]
struct Method {
    name: &'static str,
    summary: &'static str,
    params: &'static [Param],
    /// Fields of the result.
    result: &'static [&'static str],
}

const NEXT: &str = "the `next` of the page before";

const METHODS: &[Method] = &[
    Method {
        name: "reputation_list",
        summary: "How the nodes on record stand with this one, in the order of their keys' bytes. Each score can be \
                  recomputed from the evidence about all nodes (this one included) at the time `at_ms`.",
        params: &[may("after", Kind::PeerId, NEXT), may("limit", Kind::Limit(MAX_PAGE), "nodes on the page")],
        result: &["judge", "at_ms", "all_evidence_root", "nodes", "next"],
    },
    Method {
        name: "reputation_get",
        summary: "How one node stands with this one.",
        params: &[must("peer_id", Kind::PeerId, "the node")],
        result: &[
            "judge",
            "at_ms",
            "peer_id",
            "failed_audits",
            "successful_audits",
            "score",
            "alpha",
            "beta",
            "own_failed_audits",
            "own_successful_audits",
            "trust",
            "audit_rate",
            "evidence_root",
            "evidence",
            "bans",
            "banned_until_ms",
            "local",
        ],
    },
    Method {
        name: "reputation_evidence",
        summary: "The signed statements about a node, in the order of their digests. `signed` is the statement as \
                  received, in hexadecimal digits: a verdict, a rebuttal where the finding is `false-word`, or the \
                  proof of two journals and when it was seen where the finding is `equivocation`.",
        params: &[
            must("peer_id", Kind::PeerId, "whom the evidence is about"),
            may("after", Kind::Digest, NEXT),
            may("limit", Kind::Limit(MAX_EVIDENCE_PAGE), "statements on the page"),
        ],
        result: &["evidence", "next"],
    },
    Method {
        name: "audit_list",
        summary: "The verdicts that this node keeps, the newest first.",
        params: &[
            may("peer_id", Kind::PeerId, "whose work was audited"),
            may("after", Kind::Place, NEXT),
            may("limit", Kind::Limit(MAX_VERDICTS), "verdicts on the page"),
        ],
        result: &["audits", "next"],
    },
    Method {
        name: "audit_get",
        summary: "One verdict, with the statement as signed, and with `fraud_proof` if it accuses.",
        params: &[must("digest", Kind::Digest, "digest of the signed verdict")],
        result: &[
            "digest", "auditor", "auditee", "job", "attempt", "stage", "receipt", "outcome", "blocks", "exact",
            "class", "proof", "at_ms", "cluster", "signed",
        ],
    },
    Method {
        name: "fraud_proof",
        summary: "Where a fraud proof is kept and how large it is. Nodes stream the bytes to each other over \
                  `protocol`; `file` is told on the node's own machine alone.",
        params: &[must("digest", Kind::Digest, "digest of the proof, as verdicts name it")],
        result: &["digest", "kept", "bytes", "file", "accusers", "protocol"],
    },
    Method {
        name: "job_receipts",
        summary: "What was ordered and signed for in a job of this node, of the newest 10,000; on the node's own machine \
                  alone. No tokens are in it.",
        params: &[must("job", Kind::Job, "the job")],
        result: &["job", "at_ms", "order", "receipts"],
    },
    Method {
        name: "audit_order",
        summary: "Has this node audit a stage of a job of its own, or all, whether drawn or not, unless there is a \
                  `verdict`; within ten minutes of the job, on the node's own machine alone. What comes of it is in \
                  `audit_list`.",
        params: &[must("job", Kind::Job, "the job"), may("stage", Kind::Number, "place in the route, from 0")],
        result: &["job", "audits"],
    },
    Method {
        name: "audit_opening",
        summary: "For an auditor from outside: what a stage of a job of this node signed and shows, as a file in the \
                  form of a fraud proof, whatever it proves; `data` are 2 MiB of it from `offset` on, in hexadecimal \
                  digits, `digest` is BLAKE3 of the whole. It discloses the job's tokens: on the node's own machine \
                  alone, within ten minutes of the job.",
        params: &[
            must("job", Kind::Job, "the job"),
            must("stage", Kind::Number, "place in the route, from 0"),
            may("offset", Kind::Number, "the `next` of the page before"),
        ],
        result: &["job", "attempt", "stage", "stages", "auditee", "digest", "bytes", "data", "next"],
    },
    Method {
        name: "audit_submit",
        summary: "Takes the verdict of an auditor from outside on what `audit_opening` gave. It has no weight of its \
                  own: a fraud that this node finds as well is `counted`, as this node's verdict. On the node's own \
                  machine alone.",
        params: &[must("signed", Kind::Signed, "the signed verdict, in hexadecimal digits")],
        result: &["digest", "counted", "why"],
    },
    Method {
        name: "ledger_head",
        summary: "The newest signed head of this node's journal, and how many entries the journal has.",
        params: &[],
        result: &["ledger", "entries", "head"],
    },
    Method {
        name: "ledger_proof",
        summary: "With `seq`: that entry, proved under the newest head; on the node's own machine alone. With `index` \
                  and `size`: the leaf at that place, proved in the tree over the first `size` entries.",
        params: &[
            may("seq", Kind::Number, "place of the entry"),
            may("index", Kind::Number, "place of the leaf"),
            may("size", Kind::Number, "leaves of the tree"),
        ],
        result: &["leaf", "proof", "head"],
    },
    Method {
        name: "ledger_consistency",
        summary: "That the journal of `old_size` entries grew into that of `new_size`, with the heads signed over them.",
        params: &[must("old_size", Kind::Number, "from 1 on"), must("new_size", Kind::Number, "not below `old_size`")],
        result: &["proof", "old_head", "new_head"],
    },
    Method {
        name: "ledger_accounts",
        summary: "The accounts with this node, in the order of their names; on the node's own machine alone.",
        params: &[
            may("after", Kind::Account, NEXT),
            may("limit", Kind::Limit(accounts::MAX_PAGE - 1), "accounts on the page"),
        ],
        result: &["ledger", "accounts", "next"],
    },
    Method {
        name: "ledger_statement",
        summary: "What moved on an account over a time; on the node's own machine alone.",
        params: &[
            must("owner", Kind::Account, "the account: peer/<PeerId>, key/<id> or own/<book>"),
            may("from_ms", Kind::Number, "from this time, in milliseconds since 1970"),
            may("to_ms", Kind::Number, "up to before this time"),
            may("after", Kind::Number, NEXT),
            may("limit", Kind::Limit(statement::MAX_LINES), "lines on the page"),
        ],
        result: &["issuer", "owner", "from_ms", "to_ms", "opening", "lines", "closing", "next"],
    },
    Method {
        name: "earnings",
        summary: "What the node earned up to now by kind of work, in all and an hour, against the electricity of its \
                  machine; `power` says whether that was `given` or `measured` (for a second, the processor alone), and is \
                  null with `break_even` where it is not known. On the node's own machine alone.",
        params: &[
            may("hours", Kind::Number, "of how many hours, from 1 on; 24 if absent"),
            may("milliwatts", Kind::Number, "what the machine takes"),
            may("kwh_msat", Kind::Number, "what a kilowatt-hour costs"),
        ],
        result: &[
            "ledger",
            "from_ms",
            "to_ms",
            "incomes",
            "msat",
            "msat_per_hour",
            "layer_tokens",
            "waiting_msat",
            "spent_msat",
            "power",
            "break_even",
        ],
    },
    Method {
        name: "tabs",
        summary: "What this node and others owe each other for work, how far they may go, what was settled over \
                  Lightning, and why something is not; on the node's own machine alone.",
        params: &[],
        result: &[
            "lightning",
            "settle_at",
            "settle_after_s",
            "settle_min",
            "credit_limit",
            "channel_budget_sat",
            "channels_opened_sat",
            "tabs",
        ],
    },
    Method {
        name: "node_status",
        summary: "How this node is doing.",
        params: &[],
        result: &[
            "version",
            "pid",
            "peer_id",
            "cluster",
            "role",
            "uptime_s",
            "listen",
            "api_base",
            "memory_bytes",
            "active_jobs",
            "alarms",
            "held",
        ],
    },
    Method {
        name: "cluster_status",
        summary: "How the cluster is doing, as this node sees it.",
        params: &[],
        result: &["cluster", "term", "master", "ready", "waiting_for", "models", "stages", "members"],
    },
    Method { name: "rpc.discover", summary: "This document.", params: &[], result: &["openrpc", "info", "methods"] },
];

/// The document.
pub(super) fn document() -> Value {
    let all = METHODS.iter().chain(train::METHODS);
    #[cfg(feature = "lightning")]
    let all = all.chain(wallet::METHODS).chain(escrows::METHODS);
    let methods: Vec<Value> = all.map(method).collect();
    json!({
        "openrpc": "1.3.2",
        "info": {
            "title": "Consortium node",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0"},
            "description": "What can be checked about a node: reputation with its evidence, audits, receipts, and the \
                            journal's proofs; and, for its operator, its training runs, wallet and escrows. Times are milliseconds since 1970, amounts \
                            millisatoshi, digests and signed statements hexadecimal digits.",
        },
        "methods": methods,
    })
}

fn method(method: &Method) -> Value {
    let params: Vec<Value> = method
        .params
        .iter()
        .map(|param| {
            json!({
                "name": param.name,
                "description": param.about,
                "required": param.required,
                "schema": param.kind.schema(),
            })
        })
        .collect();
    let fields: serde_json::Map<String, Value> =
        method.result.iter().map(|field| ((*field).to_owned(), json!({}))).collect();
    let schema = json!({"type": "object", "properties": fields, "required": method.result});
    json!({
        "name": method.name,
        "summary": method.summary,
        "paramStructure": "either",
        "params": params,
        "result": {"name": "result", "schema": schema},
        "errors": [
            {"code": -32602, "message": "the parameters are not those of the method"},
            {"code": NOT_FOUND, "message": "what was asked for is not kept here"},
            {"code": NOT_FOR_YOU, "message": "answered on the node's own machine alone, or to its operator alone"},
            {"code": WALLET_REFUSED, "message": "the wallet did not do it"},
        ],
    })
}
