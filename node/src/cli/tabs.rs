//! The settings of tabs among those of `consortium-node start`.

use clap::Args;

use crate::config::TabSettings;

/// When what is owed for work is paid over Lightning, and how much may be owed. Without --lightning nothing is.
#[derive(Args, Debug)]
#[command(next_help_heading = "Tabs")]
pub(super) struct TabArgs {
    /// Pay a worker that is owed as much [default: 500].
    #[arg(long, env = "CONSORTIUM_SETTLE_AT", value_name = "SAT")]
    settle_at: Option<u64>,
    /// Pay a worker that is owed anything for so long [default: 3600].
    #[arg(long, env = "CONSORTIUM_SETTLE_AFTER", value_name = "SECONDS")]
    settle_after: Option<u64>,
    /// Never pay less; below 354 sat a payment cannot be enforced on-chain [default: 354, or --settle-at if that is less].
    #[arg(long, env = "CONSORTIUM_SETTLE_MIN", value_name = "SAT")]
    settle_min: Option<u64>,
    /// Stop working for a payer that owes more; one that has paid little yet may owe as much as it has paid, and a tenth
    /// of this at least [default: 10000].
    #[arg(long, env = "CONSORTIUM_CREDIT_LIMIT", value_name = "SAT")]
    credit_limit: Option<u64>,
    /// Put as much, in all, into channels towards workers that no payment can reach [default: 0, none].
    #[arg(long, env = "CONSORTIUM_CHANNEL_BUDGET", value_name = "SAT")]
    channel_budget: Option<u64>,
    /// What such a channel costs its worker, who agrees to it beforehand: the fee of opening it [default: 500].
    #[arg(long, env = "CONSORTIUM_CHANNEL_COST", value_name = "SAT")]
    channel_cost: Option<u64>,
}

impl TabArgs {
    /// As settings.
    pub(super) fn settings(self) -> TabSettings {
        TabSettings {
            settle_at: self.settle_at,
            settle_after: self.settle_after,
            settle_min: self.settle_min,
            credit_limit: self.credit_limit,
            channel_budget: self.channel_budget,
            channel_cost: self.channel_cost,
        }
    }
}
