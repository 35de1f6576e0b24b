//! The settings of what is sold over Lightning among those of `consortium-node start`.

use clap::Args;

use crate::config::SaleSettings;

/// Selling completions over Lightning. The node keeps what customers have paid and not spent, within the limits.
#[derive(Args, Debug)]
#[command(next_help_heading = "Selling over Lightning (L402)")]
pub(super) struct SaleArgs {
    /// Ask whoever has no API key to pay: the API answers 402 with an invoice, and takes credentials of L402. The commands
    /// of this node's operator stay free of charge. Needs --lightning.
    #[arg(long, env = "CONSORTIUM_L402")]
    l402: bool,
    /// Credit that is sold at a time, in sat, unless a request needs more [default: 1000].
    #[arg(long, env = "CONSORTIUM_L402_BUNDLE", value_name = "SAT")]
    l402_bundle: Option<u64>,
    /// Credit that a customer may have, in sat [default: 100000].
    #[arg(long, env = "CONSORTIUM_L402_MAX_CREDIT", value_name = "SAT")]
    l402_max_credit: Option<u64>,
    /// Credit that all customers together may have, in sat [default: 1000000].
    #[arg(long, env = "CONSORTIUM_L402_MAX_CUSTODY", value_name = "SAT")]
    l402_max_custody: Option<u64>,
}

impl SaleArgs {
    /// As settings.
    pub(super) fn settings(self) -> SaleSettings {
        SaleSettings {
            l402: self.l402.then_some(true),
            l402_bundle: self.l402_bundle,
            l402_max_credit: self.l402_max_credit,
            l402_max_custody: self.l402_max_custody,
        }
    }
}
