//! JSON-RPC 2.0: what others need in order to check this node, and what its own command line shows.
//!
//! Nearly everything here only reads; `audit_order` and `audit_submit` start audits, and the operator gives orders to the
//! wallet and to training. [`Rpc::answer`] takes the text of a request ([`call`]: one, or a batch of at most
//! [`call::MAX_BATCH`]) and gives the text of the answer; HTTP is around it, not in it. The methods are
//! [`reputation`], [`audits`], [`outside`], [`books`], [`nodes`], [`wallet`] and [`train`], each with a line in [`describe`], from which the OpenRPC
//! document of `rpc.discover` is made. Calls that touch a database run on threads made for waiting, [`ROOM`] at a time.
//!
//! # Limits
//! A request is at most [`MAX_REQUEST`] bytes, an answer at most [`MAX_ANSWER`]. Pages are bounded, method by method.
//! Each caller has a bucket of calls ([`limit`]): 256 at once, 64 a second in the long run; beyond that the answer is
//! error -32009, HTTP 429, with the time to wait.
//!
//! # Who may ask
//! Whoever the API's guard lets through: every program on the node's own machine, and from elsewhere whoever has an API
//! key. What names accounts (`ledger_accounts`, `ledger_statement`, `tabs`, and an entry of the journal by its place), and what
//! is about the node's jobs (`job_receipts`, `audit_order`, `audit_opening`, `audit_submit`), is answered on the node's own
//! machine alone: a key pays for work, and opens neither others' books nor what they asked. Whoever is to audit from
//! elsewhere is let in by the node's owner, by a tunnel for example. What the wallet has and its escrows are told there alone,
//! too, and what they are to do takes the operator's token besides ([`crate::operator`] says what that keeps out). What a proxy on that
//! machine passes on is from elsewhere, and where the node sells to everybody the machine's own programs are known by the
//! token alone. What the guard refuses
//! has status 401 or 403 and the error shape of the rest of the API.
//!
//! # Errors
//! Besides the codes of JSON-RPC: [`NOT_FOUND`], [`NOT_FOR_YOU`], [`WALLET_REFUSED`], [`ON_ITS_WAY`], [`RUN_REFUSED`], -32007 (request too large), -32008 (answer too
//! large), -32009 (too many calls), -32010 (batch too large).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use consortium_ledger::ledger::Ledger;
#[cfg(feature = "lightning")]
use consortium_ledger::lightning::Wallet;
use consortium_ledger::reputation::AuditPolicy;
use jsonrpsee::RpcModule;
use tokio::sync::{Semaphore, watch};

use crate::audit::AuditDesk;
use crate::audit::proof::Proofs;
#[cfg(feature = "lightning")]
use crate::escrow::EscrowDesk;
use crate::operator::OperatorToken;
use crate::status::NodeStatus;
use crate::storage::Storage;
use crate::tabs::Tabs;

mod audits;
mod books;
pub mod call;
mod describe;
mod earnings;
#[cfg(feature = "lightning")]
mod escrows;
mod fault;
pub mod limit;
mod methods;
mod nodes;
mod outside;
mod over;
mod params;
mod reputation;
mod train;
#[cfg(feature = "lightning")]
mod wallet;

pub use fault::{NOT_FOR_YOU, NOT_FOUND, ON_ITS_WAY, RUN_REFUSED, WALLET_REFUSED};
pub use outside::OPENING_PAGE;
pub use train::TrainingDesk;

/// Largest request, in bytes.
pub const MAX_REQUEST: usize = 64 * 1024;
/// Largest answer, in bytes, that of a batch included.
pub const MAX_ANSWER: usize = 8 * 1024 * 1024;
/// Calls that read from a database at the same time.
pub const ROOM: usize = 4;

/// What the methods read.
pub struct Sources {
    /// Reputation, verdicts and the journal.
    pub ledger: Ledger,
    /// How the part of a node's work that is audited is decided.
    pub policy: AuditPolicy,
    /// Receipts of this node's jobs.
    pub storage: Storage,
    /// Fraud proofs kept here.
    pub proofs: Proofs,
    /// Audits of this node's jobs.
    pub desk: AuditDesk,
    /// How the node and its cluster are doing.
    pub status: watch::Receiver<NodeStatus>,
}

/// What the methods share.
struct Context {
    sources: Sources,
    room: Arc<Semaphore>,
    tabs: Option<Tabs>,
    training: Option<TrainingDesk>,
    #[cfg(feature = "lightning")]
    wallet: Option<Wallet>,
    #[cfg(feature = "lightning")]
    escrows: Option<EscrowDesk>,
}

/// What only the operator may use.
#[derive(Clone, Default)]
pub struct Operated {
    /// How the operator is known; none, and nobody is.
    pub token: Option<OperatorToken>,
    /// What is owed between nodes, and how it is settled; none where nothing is.
    pub tabs: Option<Tabs>,
    /// The runs of training; none where the node takes no part in any.
    pub training: Option<TrainingDesk>,
    /// The wallet; none where the node runs without.
    #[cfg(feature = "lightning")]
    pub wallet: Option<Wallet>,
    /// The escrows; none where there is no wallet.
    #[cfg(feature = "lightning")]
    pub escrows: Option<EscrowDesk>,
}

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// From where.
    pub address: IpAddr,
    /// Whether it is a program on the node's own machine, and no proxy there that passes on what others ask.
    pub local: bool,
    /// The operator's token, as it was given.
    pub operator: Option<&'a str>,
}

/// Cloneable handle to the RPC of this node.
#[derive(Clone)]
pub struct Rpc {
    module: Arc<RpcModule<Context>>,
    limits: Arc<limit::Limits>,
    operator: Option<OperatorToken>,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A JSON document.
    Document(String),
    /// Nothing: there were only notifications.
    Nothing,
    /// The caller asks too much.
    Busy {
        /// A JSON document that says so.
        document: String,
        /// After this time it may go on.
        wait: Duration,
    },
}

impl Rpc {
    /// The RPC over these sources, without an operator.
    #[must_use]
    pub fn new(sources: Sources) -> Self {
        Self::operated(sources, Operated::default())
    }

    /// The RPC over these sources, and for the operator what is the operator's.
    #[must_use]
    pub fn operated(sources: Sources, operated: Operated) -> Self {
        let context = Context {
            sources,
            room: Arc::new(Semaphore::new(ROOM)),
            tabs: operated.tabs,
            training: operated.training,
            #[cfg(feature = "lightning")]
            wallet: operated.wallet,
            #[cfg(feature = "lightning")]
            escrows: operated.escrows,
        };
        Self { module: Arc::new(methods::module(context)), limits: Arc::default(), operator: operated.token }
    }

    /// Answers the text of a request, to somebody who is not the operator.
    pub async fn answer(&self, request: &str, caller: IpAddr) -> Answer {
        self.answer_to(request, Caller { address: caller, local: caller.to_canonical().is_loopback(), operator: None })
            .await
    }

    /// Answers the text of a request.
    pub async fn answer_to(&self, request: &str, caller: Caller<'_>) -> Answer {
        let calls = match call::read(request) {
            Ok(calls) => calls,
            Err(refusal) => return Answer::Document(refusal),
        };
        if let Err(wait) = self.limits.take(caller.address, calls.count(), Instant::now()) {
            return Answer::Busy { document: call::too_many(wait), wait };
        }
        let operator = self.is_operator(caller);
        calls
            .run(&self.module, methods::Asked { local: caller.local, operator })
            .await
            .map_or(Answer::Nothing, Answer::Document)
    }

    /// Whether the caller is the node's operator: on its own machine, with the token.
    #[must_use]
    pub fn is_operator(&self, caller: Caller<'_>) -> bool {
        let token = self.operator.as_ref().zip(caller.operator);
        caller.local && token.is_some_and(|(token, given)| token.is(given))
    }

    /// The names of all methods.
    #[must_use]
    pub fn methods(&self) -> Vec<&'static str> {
        self.module.method_names().collect()
    }
}

impl fmt::Debug for Rpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rpc").field("methods", &self.methods()).finish_non_exhaustive()
    }
}
