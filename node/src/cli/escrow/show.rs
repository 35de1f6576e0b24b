//! Escrows in words.

use consortium_ledger::escrow::Role;
use serde_json::Value;

use crate::cli::terminal::{Align, printable, short_peer, table};
use crate::cli::units::{ago, sats, span};
use crate::escrow::names::Kind;
use crate::escrow::view::{EscrowView, EscrowsView, OfferView, OneView, Phase, TermsView};

/// What a block takes, in seconds, about.
const BLOCK_S: u64 = 600;

fn msat(amount: consortium_protocol::msat::Msat) -> String {
    sats(amount.0.into())
}

fn blocks(count: u32) -> String {
    format!("{count} blocks (about {})", span(u64::from(count) * BLOCK_S))
}

/// Offers that wait, and escrows.
pub(super) fn list(view: &EscrowsView) -> String {
    let mut text = String::new();
    if !view.offers.is_empty() {
        text += "these offers wait for this node:\n";
        let header = [
            ("OFFER", Align::Left),
            ("KIND", Align::Left),
            ("AS", Align::Left),
            ("AMOUNT", Align::Right),
            ("BY", Align::Left),
        ];
        let rows: Vec<_> = view.offers.iter().map(offer_row).collect();
        text += &table(&header, &rows);
        text += "agree with `consortium-node escrow agree ID`, or decline\n\n";
    }
    if view.escrows.is_empty() {
        return text + "this node takes part in no escrow\n";
    }
    let header = [
        ("ESCROW", Align::Left),
        ("KIND", Align::Left),
        ("AS", Align::Left),
        ("AMOUNT", Align::Right),
        ("PAID", Align::Right),
        ("STATE", Align::Left),
        ("GOES BACK IN", Align::Left),
    ];
    let rows: Vec<_> = view.escrows.iter().map(|escrow| row(escrow, view.height)).collect();
    text + &table(&header, &rows)
}

fn offer_row(offer: &OfferView) -> Vec<String> {
    let terms = &offer.terms;
    let role = offer.role.map_or("", role_name).to_owned();
    let by = short_peer(&terms.validator.to_string());
    vec![terms.escrow.to_string(), terms.kind.as_str().to_owned(), role, msat(terms.total), by]
}

fn row(escrow: &EscrowView, height: u32) -> Vec<String> {
    let paid = if escrow.paid.0 == 0 { "-".to_owned() } else { msat(escrow.paid) };
    let left = escrow.deadline.map_or_else(|| "-".to_owned(), |deadline| blocks(deadline.saturating_sub(height)));
    vec![
        escrow.terms.escrow.to_string(),
        escrow.terms.kind.as_str().to_owned(),
        role_name(escrow.role).to_owned(),
        msat(escrow.terms.total),
        paid,
        short_state(escrow).to_owned(),
        left,
    ]
}

const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Sponsor => "sponsor",
        Role::Worker => "worker",
        Role::Validator => "validator",
    }
}

const fn short_state(escrow: &EscrowView) -> &'static str {
    match escrow.state {
        Phase::Created => "agreed to",
        Phase::Held => "held",
        Phase::Settling => "being paid",
        Phase::Cancelling => "going back",
        Phase::Settled => "paid",
        Phase::Cancelled if escrow.given_up => "given up",
        Phase::Cancelled => "went back",
        Phase::Expired => "expired",
    }
}

/// How an escrow is doing, in a sentence.
fn state(escrow: &EscrowView, height: u32) -> String {
    let until = |deadline: u32| {
        format!("until block {deadline}, in {}; then it goes back", blocks(deadline.saturating_sub(height)))
    };
    let ends = escrow.opened.saturating_add(u32::from(escrow.terms.delta));
    match escrow.state {
        Phase::Created => format!(
            "not all of it is locked yet; it is given up at block {ends}, in {}",
            blocks(ends.saturating_sub(height))
        ),
        Phase::Held => {
            let waits = if escrow.verdict.is_some() { "judged" } else { "waiting for the verdict" };
            format!("held, {waits}, {}", escrow.deadline.map(until).unwrap_or_default())
        }
        Phase::Settling => format!("what was earned is being paid, {}", escrow.deadline.map(until).unwrap_or_default()),
        Phase::Cancelling => "what was not earned is going back".to_owned(),
        Phase::Settled => format!("over: {} of {} were paid", msat(escrow.paid), msat(escrow.terms.total)),
        Phase::Cancelled if escrow.given_up => "over: given up, for not all of it could be locked".to_owned(),
        Phase::Cancelled => "over: all of it went back".to_owned(),
        Phase::Expired => "over: its time ran out, and it went back".to_owned(),
    }
}

fn line(name: &str, value: &str) -> String {
    format!("{name:<10} {}\n", printable(value))
}

fn about(terms: &TermsView) -> String {
    let what = match terms.kind {
        Kind::Bond => format!("bond of {}: it goes back unless there was abuse", msat(terms.total)),
        Kind::Reward => format!("reward of {}, all or nothing", msat(terms.total)),
        Kind::Tranches => {
            format!("up to {} units of {}, {} in all", terms.units, msat(terms.unit), msat(terms.total))
        }
    };
    let payer = if terms.kind == Kind::Bond { "worker" } else { "sponsor" };
    let mut text = line("escrow", &terms.escrow.to_string()) + &line("what", &what);
    text += &line(payer, &terms.payer.to_string());
    if terms.kind != Kind::Bond {
        text += &line("worker", &terms.payee.to_string());
    }
    text += &line("validator", &terms.validator.to_string());
    text += &line("subject", &terms.subject.to_string());
    text += &line("locked for", &format!("{} at most", blocks(terms.delta.into())));
    if terms.dust {
        text += &line("dust", "its smallest payment is lost to fees if a channel is closed by force meanwhile");
    }
    text
}

/// An offer that waits.
pub(super) fn offer(offer: &OfferView) -> String {
    let id = offer.terms.escrow;
    about(&offer.terms)
        + &line("as", offer.role.map_or("", role_name))
        + &line("state", &format!("offered {}; it waits for this node", ago(offer.came_ms / 1000)))
        + &format!("agree with `consortium-node escrow agree {id}`, or decline\n")
}

/// What is asked before an offer is agreed to.
pub(super) fn question(offer: &OfferView) -> String {
    let terms = &offer.terms;
    let (total, time) = (msat(terms.total), blocks(terms.delta.into()));
    let by = short_peer(&terms.validator.to_string());
    match offer.role {
        Some(Role::Sponsor) => {
            let worker = short_peer(&terms.payee.to_string());
            format!("Lock {total} for {worker} for up to {time}, of which {by} gives out what it finds earned?")
        }
        Some(Role::Worker) if terms.kind == Kind::Bond => {
            format!("Pledge {total} to {by} for up to {time}, which keeps it after abuse, as it finds?")
        }
        _ => format!("Work for up to {total}, of which {by} gives out what it finds earned?"),
    }
}

/// One escrow with its history.
pub(super) fn one(view: &OneView) -> String {
    let escrow = &view.escrow;
    let mut text = about(&escrow.terms) + &line("as", role_name(escrow.role));
    text += &line("state", &state(escrow, view.height));
    if let Some(verdict) = &escrow.verdict {
        let earned = format!("{} of {} units", verdict.earned, escrow.terms.units);
        let when = ago(verdict.at_ms / 1000);
        text += &line("verdict", &format!("{}, {earned}, {when}", verdict.finding.as_str()));
        text += &line("evidence", &verdict.evidence.to_string());
    }
    for trouble in &escrow.trouble {
        text += &line("trouble", &format!("{}: {}", short_peer(&trouble.with.to_string()), trouble.why));
    }
    if escrow.tranches.len() > 1 {
        let header =
            [("TRANCHE", Align::Right), ("UNITS", Align::Right), ("AMOUNT", Align::Right), ("STATE", Align::Left)];
        let rows: Vec<_> = (0_u32..)
            .zip(&escrow.tranches)
            .map(|(n, tranche)| {
                let units = 1_u64.checked_shl(n).unwrap_or_default();
                let state = format!("{:?}", tranche.state).to_lowercase();
                vec![n.to_string(), units.to_string(), msat(tranche.amount), state]
            })
            .collect();
        text += &table(&header, &rows);
    }
    for event in &view.events {
        text += &line(&ago(event.at_ms / 1000), &event.event);
    }
    text
}

/// Proofs of misconduct.
pub(super) fn misconduct(found: &Value) -> String {
    let proofs = found["proofs"].as_array().map(Vec::as_slice).unwrap_or_default();
    if proofs.is_empty() {
        return "nothing was taken without a verdict that gives it out\n".to_owned();
    }
    let told = |proof: &Value| {
        let how = match proof["contradicted"].as_bool() {
            Some(true) => "the validator signed that it is not earned: that is proof",
            _ => "no verdict is known here: the validator is to show one",
        };
        let proof_text = proof["proof"].as_str().unwrap_or_default();
        format!("tranche {} was taken; {how}\n{}\n", proof["tranche"], printable(proof_text))
    };
    proofs.iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use consortium_protocol::hash::Hash;
    use consortium_protocol::identity::RootKey;
    use consortium_protocol::msat::Msat;
    use consortium_protocol::wire::escrow::EscrowId;

    use super::*;
    use crate::escrow::names::Finding;
    use crate::escrow::view::{EventView, TrancheView, TroubleView, VerdictView};

    fn terms() -> TermsView {
        let node = |n| RootKey::from_seed([n; 32]).node_id();
        TermsView {
            escrow: EscrowId([0xab; 16]),
            kind: Kind::Tranches,
            payer: node(1),
            payee: node(2),
            validator: node(3),
            unit: Msat(2_000_000),
            units: 3,
            total: Msat(6_000_000),
            delta: 144,
            subject: Hash::of(b"work"),
            at_ms: 1,
            terms: Hash::of(b"terms"),
            dust: false,
        }
    }

    fn escrow() -> EscrowView {
        let tranche = |amount| TrancheView { amount: Msat(amount), state: Phase::Held, deadline: Some(205) };
        EscrowView {
            terms: terms(),
            role: Role::Sponsor,
            state: Phase::Held,
            over: false,
            deadline: Some(205),
            opened: 90,
            given_up: false,
            paid: Msat(0),
            tranches: vec![tranche(2_000_000), tranche(4_000_000)],
            verdict: None,
            trouble: vec![TroubleView { with: terms().payee, why: "it cannot be reached\x1b[2J".to_owned() }],
        }
    }

    #[test]
    fn an_escrow_says_how_it_is_doing_and_until_when() {
        let events = vec![EventView { at_ms: 5, event: "opened".to_owned() }];
        let view = OneView { height: 100, escrow: escrow(), events, signed: String::new() };
        let text = one(&view);
        for part in [
            "up to 3 units of 2000 sat, 6000 sat in all",
            "held, waiting for the verdict, until block 205, in 105 blocks (about 17 h 30 min); then it goes back",
            "it cannot be reached[2J\n",
            "      1      2  4000 sat  held\n",
            "opened\n",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        let verdict = VerdictView {
            finding: Finding::Accepted,
            earned: 2,
            evidence: Hash::of(b"evidence"),
            at_ms: 1,
            signed: String::new(),
        };
        let (paid, verdict) = (Msat(4_000_000), Some(verdict));
        let over = EscrowView { state: Phase::Settled, over: true, paid, verdict, deadline: None, ..escrow() };
        let text = one(&OneView { escrow: over, ..view });
        assert!(
            text.contains("over: 4000 sat of 6000 sat were paid") && text.contains("accepted, 2 of 3 units"),
            "{text}"
        );
    }

    #[test]
    fn offers_come_first_and_say_what_to_do() {
        let offer = OfferView { terms: terms(), role: Some(Role::Sponsor), came_ms: 1 };
        let view = EscrowsView { height: 100, offers: vec![offer.clone()], escrows: vec![escrow()], next: None };
        let text = list(&view);
        assert!(text.starts_with("these offers wait") && text.contains("escrow agree ID"), "{text}");
        assert!(text.contains("105 blocks (about 17 h 30 min)"), "{text}");
        assert!(question(&offer).starts_with("Lock 6000 sat for …"));
        let nothing = EscrowsView { offers: Vec::new(), escrows: Vec::new(), ..view };
        assert_eq!(list(&nothing), "this node takes part in no escrow\n");
    }
}
