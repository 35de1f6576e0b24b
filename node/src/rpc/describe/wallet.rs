//! The wallet's methods.

use consortium_ledger::lightning::history::MAX_PAGE;

use super::{Kind, Method, NEXT, may, must};

pub(super) const METHODS: &[Method] = &[
    Method {
        name: "wallet_status",
        summary: "What the wallet has and how it is doing; on the node's own machine alone.",
        params: &[],
        result: &["network", "node_id", "chain", "height", "peers", "channels", "usable_channels", "balances", "hints"],
    },
    Method {
        name: "wallet_channels",
        summary: "The channels, the largest first; on the node's own machine alone.",
        params: &[],
        result: &["channels", "hints"],
    },
    Method {
        name: "wallet_history",
        summary: "What was paid and received, what changed last first; on the node's own machine alone.",
        params: &[may("after", Kind::Text, NEXT), may("limit", Kind::Limit(MAX_PAGE), "payments on the page")],
        result: &["payments", "next"],
    },
    Method { name: "wallet_address", summary: "A new address; for the operator.", params: &[], result: &["address"] },
    Method {
        name: "wallet_invoice",
        summary: "A new invoice; for the operator.",
        params: &[
            may("msat", Kind::Number, "how much; the payer chooses if absent"),
            may("description", Kind::Text, "what for; at most 639 bytes"),
            may("expiry_s", Kind::Number, "how long it is good for, in seconds; an hour if absent"),
        ],
        result: &["invoice", "hash", "amount", "expires_s", "warning"],
    },
    Method {
        name: "wallet_send",
        summary: "Sends on-chain; for the operator. Give either `sat` or `all`.",
        params: &[
            must("address", Kind::Text, "of the wallet's network"),
            may("sat", Kind::Number, "how much, the fee on top"),
            may("all", Kind::Truth, "all that is free to be spent, the fee taken from it"),
            may(
                "fee_rate",
                Kind::Number,
                "sat for a virtual byte; needed on mainnet, else the chain source's estimate",
            ),
        ],
        result: &["txid"],
    },
    Method {
        name: "wallet_pay",
        summary: "Pays an invoice and waits for the outcome; for the operator.",
        params: &[
            must("invoice", Kind::Text, "BOLT 11"),
            may("msat", Kind::Number, "how much, where the invoice leaves it open"),
            may("max_fee_msat", Kind::Number, "fees at most; a hundredth and 50 sat if absent"),
            may("wait_s", Kind::Number, "how long the outcome is waited for, at most 120 seconds; 60 if absent"),
        ],
        result: &["hash", "amount", "fee"],
    },
    Method {
        name: "wallet_receipt",
        summary: "The preimage of a payment that was made, which proves it, or null while it is on its way; for the operator.",
        params: &[must("hash", Kind::Digest, "the payment's")],
        result: &["preimage"],
    },
    Method {
        name: "wallet_open",
        summary: "Opens a channel and waits until the peer has agreed; for the operator.",
        params: &[
            must("peer", Kind::Text, "PUBKEY@HOST:PORT"),
            must("sat", Kind::Number, "all that is put in"),
            may("push_msat", Kind::Number, "of it, what is given to the peer"),
            may("announced", Kind::Truth, "others may route through it"),
        ],
        result: &["channel"],
    },
    Method {
        name: "wallet_close",
        summary: "Begins to close a channel; for the operator.",
        params: &[
            must("channel", Kind::Text, "its `id`, as `wallet_channels` tells it"),
            may("force", Kind::Truth, "without the peer: dearer, and one's money is locked for days"),
        ],
        result: &["closing"],
    },
    Method {
        name: "wallet_connect",
        summary: "Connects to a Lightning peer and remembers it; for the operator.",
        params: &[must("peer", Kind::Text, "PUBKEY@HOST:PORT")],
        result: &["connected"],
    },
    Method {
        name: "wallet_sweep",
        summary: "Looks for what peers paid out when they closed channels that this wallet has lost, and sends it to the \
                  on-chain wallet; `swept` is null where nothing is found. Needs a bitcoind, and takes it minutes; for \
                  the operator.",
        params: &[],
        result: &["swept"],
    },
    Method {
        name: "wallet_backup",
        summary: "A backup under a key derived from the root key, in hexadecimal digits; for the operator.",
        params: &[],
        result: &["backup"],
    },
];
