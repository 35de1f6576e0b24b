//! Which method is answered by what.

use std::sync::Arc;

use jsonrpsee::RpcModule;
use jsonrpsee::types::ErrorObjectOwned;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::fault::Fault;
use super::{Context, Sources, audits, books, describe, earnings, nodes, outside, params, reputation};

/// What matters about who asks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked {
    /// From the node's own machine.
    pub(super) local: bool,
    /// The operator: from the node's own machine, with the token.
    pub(super) operator: bool,
}

impl Asked {
    /// # Errors
    /// [`Fault::NotForYou`] from elsewhere.
    pub(super) fn locally(self) -> Result<(), Fault> {
        if self.local { Ok(()) } else { Err(Fault::NotForYou) }
    }

    /// # Errors
    /// [`Fault::NotTheOperator`] without the operator's token.
    pub(super) fn as_operator(self) -> Result<(), Fault> {
        if self.operator { Ok(()) } else { Err(Fault::NotTheOperator) }
    }
}

/// An answer as JSON.
pub(super) fn json<T: Serialize>(value: T) -> Result<Value, Fault> {
    Ok(serde_json::to_value(value)?)
}

/// All methods over their context.
pub(super) fn module(context: Context) -> RpcModule<Context> {
    let mut module = RpcModule::new(context);
    let m = &mut module;
    reads(m, "reputation_list", reputation::list);
    reads(m, "reputation_get", reputation::get);
    reads(m, "reputation_evidence", reputation::evidence);
    reads(m, "audit_list", audits::list);
    reads(m, "audit_get", audits::get);
    reads(m, "fraud_proof", audits::fraud_proof);
    reads(m, "ledger_head", books::head);
    reads(m, "ledger_proof", books::proof);
    reads(m, "ledger_consistency", books::consistency);
    reads(m, "ledger_accounts", books::accounts);
    reads(m, "ledger_statement", books::statement);
    reads(m, "node_status", nodes::node_status);
    reads(m, "cluster_status", nodes::cluster_status);
    locally(m, "tabs", books::tabs);
    locally(m, "job_receipts", audits::job_receipts);
    locally(m, "earnings", earnings::earnings);
    locally(m, "audit_order", outside::order);
    locally(m, "audit_opening", outside::opening);
    locally(m, "audit_submit", outside::submit);
    super::train::register(m);
    #[cfg(feature = "lightning")]
    {
        super::wallet::register(m);
        super::escrows::register(m);
    }
    let discover = m.register_method("rpc.discover", |_, _, _| describe::document());
    discover.expect(ONCE);
    module
}

pub(super) const ONCE: &str = "every name is registered once";

/// A method for callers on the node's own machine, which waits for more than a database.
fn locally<P, F>(module: &mut RpcModule<Context>, name: &'static str, run: fn(Arc<Context>, P) -> F)
where
    P: DeserializeOwned + Send + 'static,
    F: Future<Output = Result<Value, Fault>> + Send + 'static,
{
    let registered = module.register_async_method(name, move |given, context: Arc<Context>, extensions| async move {
        extensions.get::<Asked>().copied().unwrap_or_default().locally()?;
        let wanted: P = params::read(&given)?;
        Ok::<_, ErrorObjectOwned>(run(context, wanted).await?)
    });
    registered.expect(ONCE);
}

/// A method that reads from a database.
fn reads<P: DeserializeOwned + Send + 'static>(
    module: &mut RpcModule<Context>,
    name: &'static str,
    run: fn(&Sources, Asked, P) -> Result<Value, Fault>,
) {
    let registered = module.register_async_method(name, move |given, context: Arc<Context>, extensions| async move {
        let asked: Asked = extensions.get().copied().unwrap_or_default();
        let wanted: P = params::read(&given)?;
        let room = Arc::clone(&context.room).acquire_owned().await.map_err(|_| Fault::Closed)?;
        let reading = tokio::task::spawn_blocking(move || {
            let _held_while_reading = room;
            run(&context.sources, asked, wanted)
        });
        Ok::<_, ErrorObjectOwned>(reading.await.map_err(|_| Fault::Closed)??)
    });
    registered.expect(ONCE);
}
