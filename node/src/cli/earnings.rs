//! `consortium-node earnings`: what the node earns, and whether it pays for its electricity.

use std::path::Path;

use anyhow::{Context as _, Result};
use clap::Args;
use consortium_ledger::earnings::{BreakEven, Earnings, Source};
use consortium_protocol::msat::Msat;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Asking, Client};
use super::terminal::{Align, print, table};
use super::units;

/// The most that a machine may be said to take, in watts.
const MAX_WATTS: f64 = 1e6;

/// Show what the node earns an hour, by kind of work, and whether that pays for its electricity.
///
/// The machine's power is measured where its processor tells it (Linux, mostly as the super-user; the processor and its
/// memory alone), else say it with --watts.
#[derive(Args, Debug)]
pub(super) struct EarningsArgs {
    /// Over so many hours up to now.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..))]
    hours: u32,
    /// What the machine takes, in watts.
    #[arg(long, value_name = "W", value_parser = milliwatts)]
    watts: Option<u64>,
    /// What a kilowatt-hour costs, in sat.
    #[arg(long, value_name = "SATS")]
    price_kwh: Option<u64>,
    #[command(flatten)]
    asking: Asking,
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked before")]
pub(super) fn milliwatts(text: &str) -> Result<u64, &'static str> {
    match text.parse::<f64>() {
        Ok(watts) if (0.001..=MAX_WATTS).contains(&watts) => Ok((watts * 1000.0).round() as u64),
        _ => Err("watts are a number above 0, up to a million"),
    }
}

/// The price of a kilowatt-hour.
pub(super) fn kwh(sat: Option<u64>) -> Result<Option<Msat>> {
    let price = |sat| Msat::from_sat(sat).with_context(|| format!("{sat} sat are more than all bitcoin there is"));
    sat.map(price).transpose()
}

/// What the node answers.
#[derive(Debug, Deserialize)]
struct Told {
    #[serde(flatten)]
    earned: Earnings,
    power: Option<String>,
    break_even: Option<BreakEven>,
}

/// Prints the earnings of the node running on `data_dir`.
///
/// # Errors
/// When no node answers.
pub(super) async fn run(args: EarningsArgs, data_dir: &Path) -> Result<()> {
    let kwh = kwh(args.price_kwh)?;
    let params = json!({"hours": args.hours, "milliwatts": args.watts, "kwh_msat": kwh});
    let told: Value = Client::find(args.asking.client, data_dir)?.rpc("earnings", params).await?;
    let text = match args.asking.json {
        true => format!("{}\n", serde_json::to_string_pretty(&told)?),
        false => render(&serde_json::from_value(told)?),
    };
    print(&text)?;
    Ok(())
}

const HEADER: [(&str, Align); 3] = [("", Align::Left), ("AN HOUR", Align::Right), ("IN ALL", Align::Right)];

fn render(told: &Told) -> String {
    let earned = &told.earned;
    let seconds = earned.to_ms.saturating_sub(earned.from_ms) / 1000;
    let empty = earned.incomes.iter().all(|income| income.msat == 0);
    let mut text = match (seconds, empty) {
        (0, _) => "nothing is booked yet: the node earns when it works for others\n".to_owned(),
        (_, true) => format!("nothing was earned in the last {}\n", units::span(seconds)),
        _ => format!("earned in the last {}\n\n{}", units::span(seconds), incomes(earned)),
    };
    let mut line = |words: String| text.push_str(&format!("{words}\n"));
    if earned.waiting_msat != 0 {
        line(format!("waiting     {} for audits, or delayed", units::sats(earned.waiting_msat.into())));
    }
    if earned.spent_msat != 0 {
        line(format!("spent       {} on jobs of its own, not counted above", units::sats(earned.spent_msat.into())));
    }
    line(power(told));
    if let Some(even) = told.break_even {
        line(match even.kwh {
            Some(kwh) => format!("break-even  at {} for a kilowatt-hour", units::sats(kwh.0.into())),
            None => "break-even  at no price: nothing was earned".to_owned(),
        });
        if let (Some(hour), Some(profit)) = (even.hour, even.profit_msat_per_hour) {
            let (cost, word) = (units::sats(hour.0.into()), if profit < 0 { "loss" } else { "profit" });
            line(format!("electricity {cost} an hour; {word} {} an hour", units::sats(profit.unsigned_abs().into())));
        }
    }
    text
}

fn incomes(earned: &Earnings) -> String {
    let row = |name: String, hour: i64, all: i64| vec![name, units::sats(hour.into()), units::sats(all.into())];
    let told = earned.incomes.iter().filter(|income| income.msat != 0);
    let mut rows: Vec<Vec<String>> =
        told.map(|income| row(words(income.source, earned.layer_tokens), income.msat_per_hour, income.msat)).collect();
    rows.push(row("together".to_owned(), earned.msat_per_hour, earned.msat));
    format!("{}\n", table(&HEADER, &rows))
}

fn words(source: Source, layer_tokens: u64) -> String {
    match source {
        Source::Inference => format!("inference ({layer_tokens} layer-tokens)"),
        Source::Driving => "master fees".to_owned(),
        Source::Fees => "gateway fees".to_owned(),
        Source::Routing => "Lightning routing, less its cost".to_owned(),
        Source::Training => "training".to_owned(),
        Source::Rewards => "rewards".to_owned(),
        Source::Forfeits => "forfeited bonds".to_owned(),
        Source::Trial => "trial credit given away".to_owned(),
    }
}

fn power(told: &Told) -> String {
    match (told.break_even, told.power.as_deref()) {
        (Some(even), Some("measured")) => {
            format!("power       {} W measured now, the processor alone", watts(even.milliwatts))
        }
        (Some(even), _) => format!("power       {} W, as given", watts(even.milliwatts)),
        (None, _) => "power       not known: this machine does not tell it; give it with --watts".to_owned(),
    }
}

fn watts(milliwatts: u64) -> String {
    match milliwatts % 1000 {
        0 => (milliwatts / 1000).to_string(),
        rest => format!("{}.{}", milliwatts / 1000, rest / 100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consortium_ledger::earnings::Income;
    use consortium_protocol::identity::RootKey;

    fn told(incomes: Vec<Income>, break_even: Option<BreakEven>) -> Told {
        let sum = |part: fn(&Income) -> i64| incomes.iter().map(part).sum();
        let earned = Earnings {
            ledger: RootKey::from_seed([1; 32]).node_id(),
            from_ms: 0,
            to_ms: 7_200_000,
            msat: sum(|income| income.msat),
            msat_per_hour: sum(|income| income.msat_per_hour),
            incomes,
            layer_tokens: 1234,
            waiting_msat: 500,
            spent_msat: 0,
        };
        Told { earned, power: Some("given".to_owned()), break_even }
    }

    #[test]
    fn what_is_earned_is_told_by_kind() {
        let incomes = vec![
            Income { source: Source::Inference, msat: 240_000, msat_per_hour: 120_000 },
            Income { source: Source::Fees, msat: 0, msat_per_hour: 0 },
            Income { source: Source::Trial, msat: -40_000, msat_per_hour: -20_000 },
        ];
        let even = BreakEven {
            milliwatts: 62_500,
            kwh: Some(Msat(1_600_000)),
            hour: Some(Msat(150_000)),
            profit_msat_per_hour: Some(-50_000),
        };
        let shown = render(&told(incomes, Some(even)));
        for line in [
            "earned in the last 2 h 0 min\n",
            "inference (1234 layer-tokens)  120 sat  240 sat\n",
            "trial credit given away        -20 sat  -40 sat\n",
            "together                       100 sat  200 sat\n",
            "waiting     0.5 sat for audits, or delayed\n",
            "power       62.5 W, as given\n",
            "break-even  at 1600 sat for a kilowatt-hour\n",
            "electricity 150 sat an hour; loss 50 sat an hour\n",
        ] {
            assert!(shown.contains(line), "{line:?} in {shown}");
        }
        assert!(!shown.contains("gateway"));
    }

    #[test]
    fn nothing_is_told_in_words() {
        let mut empty = told(Vec::new(), None);
        assert!(render(&empty).starts_with("nothing was earned in the last 2 h"));
        assert!(render(&empty).contains("give it with --watts"));
        empty.earned.to_ms = 0;
        assert!(render(&empty).starts_with("nothing is booked yet"));
    }

    #[test]
    fn watts_are_read() {
        assert_eq!((milliwatts("65"), milliwatts("7.25")), (Ok(65_000), Ok(7250)));
        for bad in ["0", "-1", "NaN", "inf", "1e9", "x"] {
            assert!(milliwatts(bad).is_err(), "{bad}");
        }
    }
}
