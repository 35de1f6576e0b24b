//! The methods of escrows.

use super::{Kind, Method, NEXT, may, must};
use crate::escrow::view::MAX_PAGE;

const ID: super::Param = must("escrow", Kind::Escrow, "its name");

pub(super) const METHODS: &[Method] = &[
    Method {
        name: "escrows",
        summary: "The escrows that this node takes part in, the newest first, and the offers of validators that wait for \
                  its word; on the node's own machine alone. Deadlines are heights of the chain.",
        params: &[may("after", Kind::Number, NEXT), may("limit", Kind::Limit(MAX_PAGE), "escrows on the page")],
        result: &["height", "offers", "escrows", "next"],
    },
    Method {
        name: "escrow",
        summary: "One escrow, with what happened in it and when; on the node's own machine alone.",
        params: &[ID],
        result: &[
            "height",
            "escrow",
            "kind",
            "role",
            "payer",
            "payee",
            "validator",
            "unit",
            "units",
            "total",
            "delta",
            "subject",
            "state",
            "over",
            "deadline",
            "paid",
            "tranches",
            "verdict",
            "trouble",
            "events",
            "signed",
        ],
    },
    Method {
        name: "escrow_offer",
        summary: "Offers to judge: signs terms and tells payer and payee, who may agree; for the operator.",
        params: &[
            must("kind", Kind::Text, "bond, reward or tranches"),
            must("payer", Kind::PeerId, "whose money is locked: the worker of a bond, else the sponsor"),
            may("payee", Kind::PeerId, "who is paid; for a bond this node, and left out"),
            must(
                "unit_msat",
                Kind::Number,
                "the amount; of tranches that of the first, of which each further is twice",
            ),
            may("tranches", Kind::Number, "2 to 12, of tranches"),
            may("delta", Kind::Number, "blocks that it may be locked for; 144 if absent"),
            must("subject", Kind::Digest, "digest of what is judged, and by what rules"),
            may("dust", Kind::Truth, "agree to tranches of 354 sat or less, which can be lost"),
        ],
        result: &["escrow", "signed"],
    },
    Method {
        name: "escrow_agree",
        summary: "Agrees to an offer: a payer then pays, a payee then takes payments; for the operator.",
        params: &[ID, may("dust", Kind::Truth, "agree to tranches of 354 sat or less, which can be lost")],
        result: &["escrow"],
    },
    Method {
        name: "escrow_decline",
        summary: "Declines an offer; for the operator.",
        params: &[ID],
        result: &["escrow"],
    },
    Method {
        name: "escrow_judge",
        summary: "Judges an escrow of this node: signs the verdict, and gives out what it says; for the operator.",
        params: &[
            ID,
            must("finding", Kind::Text, "accepted, missed or abuse"),
            may("earned", Kind::Number, "units that the payee gets, of tranches that are accepted"),
            must("evidence", Kind::Digest, "digest of the evidence, from which the verdict can be found again"),
        ],
        result: &["escrow", "finding", "earned", "signed"],
    },
    Method {
        name: "escrow_misconduct",
        summary: "Proof, in hexadecimal digits, that preimages of an escrow that this node paid were used without a verdict \
                  that gives them out; for the operator.",
        params: &[ID],
        result: &["escrow", "proofs"],
    },
];
