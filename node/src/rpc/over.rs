//! Methods over a part of the node: the wallet, escrows, training.

use std::future::Future;
use std::sync::Arc;

use jsonrpsee::RpcModule;
use jsonrpsee::types::ErrorObjectOwned;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Context;
use super::fault::Fault;
use super::methods::{Asked, ONCE};
use super::params;

/// Whom a method is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum For {
    /// Every program on the node's own machine.
    Machine,
    /// The node's operator.
    Operator,
}

/// Adds a method over a part of the node that may not be there. What it does goes on when the caller leaves: half a payment helps
/// nobody.
pub(super) fn over<W, P, F, R>(
    module: &mut RpcModule<Context>,
    name: &'static str,
    whom: For,
    part: fn(&Context) -> Result<W, Fault>,
    run: F,
) where
    W: Send + 'static,
    P: DeserializeOwned + Send + 'static,
    F: Fn(W, P) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<Value, Fault>> + Send + 'static,
{
    let registered = module.register_async_method(name, move |given, context: Arc<Context>, extensions| {
        let run = run.clone();
        async move {
            let asked: Asked = extensions.get().copied().unwrap_or_default();
            let wanted: P = params::read(&given)?;
            match whom {
                For::Machine => asked.locally()?,
                For::Operator => asked.as_operator()?,
            }
            let part = part(&context)?;
            let done = tokio::spawn(run(part, wanted)).await.map_err(|_| Fault::Closed)?;
            Ok::<_, ErrorObjectOwned>(done?)
        }
    });
    registered.expect(ONCE);
}
