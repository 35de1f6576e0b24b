//! Tabs in words and as a table.

use super::terminal::{Align, printable, short_peer, table};
use super::units::{ago, sats};
use crate::tabs::view::{SettledView, TabView, TabsView};

/// All tabs of a node.
pub(super) fn render(view: &TabsView) -> String {
    if view.tabs.is_empty() {
        return "nothing is owed to or by another node\n".to_owned();
    }
    let header = [
        ("WITH", Align::Left),
        ("OWED TO IT", Align::Right),
        ("LATER", Align::Right),
        ("OWED BY IT", Align::Right),
        ("LATER", Align::Right),
        ("CAP", Align::Right),
        ("PAID TO IT", Align::Right),
        ("PAID BY IT", Align::Right),
        ("LAST", Align::Left),
    ];
    let rows: Vec<_> = view.tabs.iter().map(row).collect();
    let mut text = table(&header, &rows);
    for tab in &view.tabs {
        if tab.stopped {
            text += &format!(
                "{} is at its cap: this node does not work for it until it pays\n",
                short_peer(&tab.peer.to_string())
            );
        }
        if let Some(why) = &tab.trouble {
            text += &format!("{}: {}\n", short_peer(&tab.peer.to_string()), printable(why));
        }
    }
    text + &rules(view)
}

fn row(tab: &TabView) -> Vec<String> {
    let amount = |msat: i128| if msat == 0 { "-".to_owned() } else { sats(msat) };
    let settled = |side: &SettledView| amount(side.total.0.into());
    let last = [tab.paid_to.last, tab.paid_by.last].into_iter().flatten().max_by_key(|last| last.at_ms);
    vec![
        short_peer(&tab.peer.to_string()),
        amount(tab.owed_to.0.into()),
        amount(tab.waits_to.into()),
        amount(tab.owed_by.0.into()),
        amount(tab.waits_by.into()),
        tab.cap.map_or_else(|| "none".to_owned(), |cap| sats(cap.0.into())),
        settled(&tab.paid_to),
        settled(&tab.paid_by),
        last.map_or_else(
            || "never".to_owned(),
            |last| format!("{}, {}", sats(last.amount.0.into()), ago(last.at_ms / 1000)),
        ),
    ]
}

fn rules(view: &TabsView) -> String {
    if !view.lightning {
        return "there is no wallet: nothing is settled, and nobody has a cap\n".to_owned();
    }
    format!(
        "paid at {}, or after {} s from {} on; channels towards workers: {} of {} sat\n",
        sats(view.settle_at.0.into()),
        view.settle_after_s,
        sats(view.settle_min.0.into()),
        view.channels_opened_sat,
        view.channel_budget_sat,
    )
}

/// The tabs in a line or two.
pub(super) fn summary(view: &TabsView) -> String {
    if view.tabs.is_empty() {
        return String::new();
    }
    let sum = |of: fn(&TabView) -> u64| sats(view.tabs.iter().map(|tab| i128::from(of(tab))).sum());
    let stuck = view.tabs.iter().filter(|tab| tab.trouble.is_some()).count();
    let stopped = view.tabs.iter().filter(|tab| tab.stopped).count();
    let mut text = format!(
        "{:<10} {} owed to others, {} owed by others; {} paid, {} received\n",
        "tabs",
        sum(|tab| tab.owed_to.0),
        sum(|tab| tab.owed_by.0),
        sum(|tab| tab.paid_to.total.0),
        sum(|tab| tab.paid_by.total.0),
    );
    if stuck + stopped > 0 {
        text += &format!("{:<10} {stuck} not settled, {stopped} at their cap: see `consortium-node ledger tabs`\n", "");
    }
    text
}

#[cfg(test)]
mod tests {
    use consortium_protocol::identity::RootKey;
    use consortium_protocol::msat::Msat;

    use super::*;
    use crate::tabs::view::LastView;

    #[test]
    fn tabs_are_told_in_words() {
        let last = LastView { amount: Msat(2000), at_ms: 1, took_ms: 300 };
        let tab = TabView {
            peer: RootKey::from_seed([1; 32]).node_id(),
            owed_to: Msat(1500),
            owed_by: Msat(0),
            waits_to: 20,
            waits_by: 0,
            cap: Some(Msat(1_000_000)),
            stopped: true,
            paid_to: SettledView { total: Msat(2000), count: 1, last: Some(last) },
            paid_by: SettledView::default(),
            trouble: Some("it is away\x1b[2J".to_owned()),
        };
        let view = TabsView {
            lightning: true,
            settle_at: Msat(500_000),
            settle_after_s: 60,
            settle_min: Msat(1000),
            credit_limit: Msat(10_000_000),
            channel_budget_sat: 0,
            channels_opened_sat: 0,
            tabs: vec![tab],
        };
        let text = render(&view);
        for part in
            ["1.5 sat", "0.02 sat", "1000 sat", "2 sat, ", "is at its cap", ": it is away[2J\n", "paid at 500 sat"]
        {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        assert_eq!(
            summary(&view),
            "tabs       1.5 sat owed to others, 0 sat owed by others; 2 sat paid, 0 sat received\n           \
             1 not settled, 1 at their cap: see `consortium-node ledger tabs`\n"
        );
        assert_eq!(summary(&TabsView { tabs: Vec::new(), ..view }), "");
    }
}
