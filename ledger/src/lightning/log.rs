//! What ldk-node says, passed on to the node's log under the target `lightning`.
//!
//! One level lower than it says it, because it calls errors what is a matter of course here (a peer that is away). What
//! might carry secrets is dropped: everything below its level of information, and what its payment code says, which
//! includes whole invoices.

use ldk_node::logger::{LogLevel, LogRecord, LogWriter};
use tracing::{debug, info, warn};

/// Writes to the node's log.
#[derive(Debug)]
pub(super) struct ToTracing;

fn may_carry_secrets(level: LogLevel, module: &str) -> bool {
    level < LogLevel::Info || (level < LogLevel::Warn && module.starts_with("ldk_node::payment"))
}

impl LogWriter for ToTracing {
    fn log<'a>(&self, record: LogRecord<'a>) {
        if may_carry_secrets(record.level, record.module_path) {
            return;
        }
        match record.level {
            LogLevel::Error => warn!(target: "lightning", module = record.module_path, "{}", record.args),
            LogLevel::Warn => info!(target: "lightning", module = record.module_path, "{}", record.args),
            _ => debug!(target: "lightning", module = record.module_path, "{}", record.args),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_carry_secrets_is_dropped() {
        assert!(may_carry_secrets(LogLevel::Trace, "lightning::ln::outbound_payment"));
        assert!(may_carry_secrets(LogLevel::Info, "ldk_node::payment::bolt11"));
        assert!(!may_carry_secrets(LogLevel::Error, "ldk_node::payment::bolt11"));
        assert!(!may_carry_secrets(LogLevel::Info, "ldk_node::event"));
    }
}
