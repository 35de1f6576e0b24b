//! The wallet in words and tables.

use std::fmt::Write as _;

use consortium_ledger::lightning::balance::{HeldAmount, HeldDirection};
use consortium_ledger::lightning::channels::{ChannelState, ChannelView};
use consortium_ledger::lightning::error::sats;
use consortium_ledger::lightning::history::{Direction, Kind, Payment, State};
use consortium_ledger::lightning::pay::PaidView;
use consortium_ledger::lightning::status::WalletStatus;
use consortium_protocol::msat::Msat;
use serde_json::Value;

use super::super::terminal::{Align, printable, table};
use super::super::units;

/// What the wallet has and how it is doing.
pub(super) fn status(status: &WalletStatus) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // A `String` takes all that is written to it.
        let _infallible = writeln!(text, "{name:<12} {}", printable(value));
    };
    let balances = &status.balances;
    line("spendable", &format!("{} over Lightning, {} at once", sats(balances.spendable), sats(balances.largest)));
    line("receivable", &format!("{} over Lightning", sats(balances.receivable)));
    if balances.unusable > Msat::ZERO {
        line("unusable", &format!("{} in channels whose peer is away or that wait", sats(balances.unusable)));
    }
    for held in &balances.held {
        line("held", &held_words(held, status.height));
    }
    line("on-chain", &format!("{} sat to spend, {} sat unconfirmed", balances.spendable_sat, balances.unconfirmed_sat));
    line("reserved", &format!("{} sat on-chain, for closing channels", balances.reserved_sat));
    if balances.closing_sat > 0 {
        line("closing", &format!("{} sat on their way from closed channels", balances.closing_sat));
    }
    line(
        "channels",
        &format!("{}, {} of them usable; {} peers", status.channels, status.usable_channels, status.peers),
    );
    let limit = |limit: Option<Msat>| limit.map_or_else(|| "no limit".to_owned(), sats);
    line("spent today", &format!("{} of {}", sats(status.spent_today), limit(status.limit_per_day)));
    line("per payment", &limit(status.limit_per_payment));
    let synced = status.synced_s.map_or_else(|| "not yet synced".to_owned(), |at| format!("synced {}", units::ago(at)));
    line("chain", &format!("{} at {}, {}, {synced}", status.network, status.height, status.chain));
    line("node", &status.node_id);
    for address in &status.listen {
        line("listening", address);
    }
    text
}

fn held_words(held: &HeldAmount, height: u32) -> String {
    let blocks = held.deadline.saturating_sub(height);
    let what = match held.direction {
        HeldDirection::Incoming => "incoming, until its preimage comes",
        HeldDirection::Settling => "incoming, being settled",
        HeldDirection::Outgoing => "outgoing, until the payee takes it",
    };
    format!("{} {what}, or else goes back at block {} ({blocks} from now)", sats(held.amount), held.deadline)
}

/// A table of channels.
pub(super) fn channels(channels: &[ChannelView]) -> String {
    if channels.is_empty() {
        return "there is no channel; open one with `consortium-node wallet open`\n".to_owned();
    }
    let header = [
        ("CHANNEL", Align::Left),
        ("PEER", Align::Left),
        ("STATE", Align::Left),
        ("SIZE", Align::Right),
        ("SPENDABLE", Align::Right),
        ("RECEIVABLE", Align::Right),
        ("", Align::Left),
    ];
    let row = |channel: &ChannelView| {
        let state = match channel.state {
            ChannelState::Usable => "usable".to_owned(),
            ChannelState::PeerAway => "peer away".to_owned(),
            ChannelState::Pending => format!("confirming {}/{}", channel.confirmations, channel.needed),
            ChannelState::Waiting => "waiting".to_owned(),
        };
        vec![
            printable(&channel.id),
            format!("{:.12}…", printable(&channel.peer)),
            state,
            channel.size_sat.to_string(),
            channel.spendable.whole_sat().to_string(),
            channel.receivable.whole_sat().to_string(),
            if channel.announced { "announced" } else { "private" }.to_owned(),
        ]
    };
    table(&header, &channels.iter().map(row).collect::<Vec<_>>())
}

/// What could be done, a sentence a line.
pub(super) fn hints(hints: &Value) -> String {
    let told = hints.as_array().into_iter().flatten().filter_map(Value::as_str);
    told.map(|hint| format!("hint         {}\n", printable(hint).replace('\n', " "))).collect()
}

/// A table of payments.
pub(super) fn history(payments: &[Payment]) -> String {
    if payments.is_empty() {
        return "nothing was paid or received yet\n".to_owned();
    }
    let header = [
        ("WHEN", Align::Left),
        ("AMOUNT", Align::Right),
        ("FEE", Align::Right),
        ("STATE", Align::Left),
        ("KIND", Align::Left),
        ("ID", Align::Left),
        ("FOR", Align::Left),
    ];
    let row = |payment: &Payment| {
        let sign = if payment.direction == Direction::Out { "-" } else { "+" };
        let state = match payment.state {
            State::Pending => "pending",
            State::Held => "held",
            State::Done => "done",
            State::Failed => "failed",
            State::Expired => "expired",
        };
        vec![
            units::ago(payment.at_s),
            payment.amount.map_or_else(|| "open".to_owned(), |amount| format!("{sign}{}", sats(amount))),
            payment.fee.map_or_else(String::new, sats),
            state.to_owned(),
            if payment.kind == Kind::Onchain { "on-chain" } else { "lightning" }.to_owned(),
            format!("{:.16}", printable(&payment.id)),
            printable(payment.description.as_deref().unwrap_or_default()).replace(['\n', '\t'], " "),
        ]
    };
    table(&header, &payments.iter().map(row).collect::<Vec<_>>())
}

/// A payment that arrived.
pub(super) fn paid(paid: &PaidView) -> String {
    format!("paid {}, and {} in fees ({})\n", sats(paid.amount), sats(paid.fee), paid.hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use consortium_ledger::lightning::balance::Balances;
    use consortium_ledger::lightning::hash::PaymentHash;

    #[test]
    fn hints_are_shown_one_a_line() {
        assert_eq!(hints(&serde_json::json!(["do this", "or\nthat"])), "hint         do this\nhint         or that\n");
        assert_eq!(hints(&Value::Null), "");
    }

    #[test]
    fn what_is_held_is_shown_with_its_deadline() {
        let held = |direction, deadline| HeldAmount {
            hash: PaymentHash::from_bytes([1; 32]),
            amount: Msat(2500),
            direction,
            deadline,
        };
        let shown = status(&WalletStatus {
            network: "regtest".to_owned(),
            node_id: "02ab".to_owned(),
            alias: None,
            listen: vec!["127.0.0.1:9735".to_owned()],
            chain: "bitcoind at 127.0.0.1:18443".to_owned(),
            height: 100,
            synced_s: None,
            peers: 1,
            channels: 2,
            usable_channels: 1,
            balances: Balances {
                spendable: Msat(5000),
                largest: Msat(4000),
                receivable: Msat(1),
                unusable: Msat(0),
                held: vec![held(HeldDirection::Incoming, 138), held(HeldDirection::Outgoing, 90)],
                spendable_sat: 7,
                unconfirmed_sat: 8,
                reserved_sat: 25_000,
                closing_sat: 0,
            },
            limit_per_payment: None,
            limit_per_day: Some(Msat(9000)),
            spent_today: Msat(1000),
        });
        for line in [
            "spendable    5 sat over Lightning, 4 sat at once\n",
            "held         2.500 sat incoming, until its preimage comes, or else goes back at block 138 (38 from now)\n",
            "held         2.500 sat outgoing, until the payee takes it, or else goes back at block 90 (0 from now)\n",
            "on-chain     7 sat to spend, 8 sat unconfirmed\n",
            "spent today  1 sat of 9 sat\n",
            "per payment  no limit\n",
            "not yet synced",
        ] {
            assert!(shown.contains(line), "{line:?} in {shown}");
        }
        assert!(!shown.contains("unusable"));
    }
}
