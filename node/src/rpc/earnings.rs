//! `earnings`: what the node earned by kind of work, against what its electricity costs; on its own machine alone.

use std::sync::Arc;

use consortium_protocol::msat::Msat;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use super::fault::Fault;
use super::methods;
use crate::clock::wall_ms;
use crate::power;

const HOUR_MS: u64 = 3600 * 1000;
/// The time that is told about by default, in hours.
pub(super) const HOURS: u32 = 24;
/// The most that a machine may be said to take: a megawatt.
pub(super) const MAX_MILLIWATTS: u64 = 1_000_000_000;

/// Of what time, and at which price.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Earned {
    #[serde(default)]
    hours: Option<u32>,
    #[serde(default)]
    milliwatts: Option<u64>,
    #[serde(default)]
    kwh_msat: Option<Msat>,
}

/// What the node earned.
pub(super) async fn earnings(context: Arc<Context>, wanted: Earned) -> Result<Value, Fault> {
    let hours = wanted.hours.unwrap_or(HOURS);
    if hours == 0 {
        return Err(Fault::Params("hours: from 1 on".to_owned()));
    }
    if wanted.milliwatts.is_some_and(|power| !(1..=MAX_MILLIWATTS).contains(&power)) {
        return Err(Fault::Params(format!("milliwatts: 1 to {MAX_MILLIWATTS}")));
    }
    let power = match wanted.milliwatts {
        Some(given) => Some((given, "given")),
        None => power::measured().await.map(|power| (power, "measured")),
    };
    let now = wall_ms();
    let from = now.saturating_sub(u64::from(hours) * HOUR_MS);
    let room = Arc::clone(&context.room).acquire_owned().await.map_err(|_| Fault::Closed)?;
    let reading = tokio::task::spawn_blocking(move || {
        let _held_while_reading = room;
        context.sources.ledger.earnings(from, now)
    });
    let earned = reading.await.map_err(|_| Fault::Closed)??;
    let even = power.and_then(|(power, _)| earned.break_even(power, wanted.kwh_msat));
    let mut told = methods::json(&earned)?;
    told["power"] = json!(even.and(power).map(|(_, how)| how));
    told["break_even"] = methods::json(even)?;
    Ok(told)
}
