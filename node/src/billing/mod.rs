//! What a job costs and who pays: prices before it starts, credit put aside while it runs.
//!
//! A job that comes in with an API key, or with a credential that was bought, is charged to its account in the ledger, the
//! operator's to the node's own; whoever would have to pay and has nothing yet hears what it costs ([`Payer`]). What
//! a job of a key can cost at most ([`Offer`]: the prompt and the longest answer, at what the nodes of the pipeline ask
//! now, and its master's and this node's fees) is reserved before it starts. From then on [`JobAccount`] goes with the job, to where its
//! work is booked ([`crate::audit`]); wherever it is dropped, what is left of the reservation is free again. What a
//! crash leaves is released at the next start. When the answer is complete, what it did not use is free at once
//! ([`Bill::close`]), though the receipts come later.

mod account;

use std::sync::Arc;
use std::time::Duration;

use consortium_ledger::accounts::{AccountView, Book, Owner};
use consortium_ledger::api_keys::KeyId;
use consortium_ledger::l402::terms::Budget;
use consortium_ledger::ledger::{Ledger, LedgerError};
use consortium_ledger::price::{Quote, Rate};
use consortium_ledger::statement::Statement;
use consortium_protocol::msat::Msat;
use consortium_protocol::wire::heartbeat::LayerRange;
use consortium_protocol::wire::job::{JobError, JobErrorCode, JobRequest, Prompt};
use tokio::sync::{Semaphore, watch};

pub use account::{Bill, JobAccount};
use account::{Promise, Reservation};

use crate::clock::wall_ms;
use crate::config::{MAX_MASTER_FEE, MAX_PRICE};
use crate::serving::Serving;
use crate::status::NodeStatus;
use crate::till;

/// Time for a pipeline to stand whose price can be told.
const PRICE: Duration = Duration::from_secs(15);
/// Tokens that a chat template may add, and those that it may add for each message.
const TEMPLATE: (u64, u64) = (256, 16);
/// Bytes that one token stands for at most, in the vocabularies that there are.
const LONGEST_TOKEN: u64 = 256;
/// Prompts that are put into tokens at a time to tell their price: for strangers, who pay nothing for it and stand in a
/// queue of their own, and for all others.
const COUNTING: (usize, usize) = (1, 2);
/// Longest wait for a turn at that.
const TURN: Duration = Duration::from_secs(15);

/// Tells prices and puts credit aside. Cheap to clone.
#[derive(Clone)]
pub struct Billing {
    ledger: Ledger,
    fee: u16,
    serving: Arc<[Arc<Serving>]>,
    status: watch::Receiver<NodeStatus>,
    strangers: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

impl std::fmt::Debug for Billing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Billing").field("fee", &self.fee).finish_non_exhaustive()
    }
}

/// What a job costs at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// What one token costs.
    pub rate: Rate,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Whether they were counted; where this node has no tokenizer, they are no more than this.
    pub counted: bool,
    /// Tokens of the answer at most.
    pub max_tokens: u64,
    /// The cost.
    pub quote: Quote,
}

/// Who asks for a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payer {
    /// The node's operator.
    Own,
    /// The holder of an API key or of a token.
    Key {
        /// Whose account is charged.
        key: KeyId,
        /// What the credential may spend besides.
        budgets: Vec<Budget>,
    },
    /// Somebody who has no account, at a node that sells.
    Nobody,
}

impl Payer {
    /// Whether this node's own layers are paid for, and its fee.
    #[must_use]
    pub fn is_charged(&self) -> bool {
        *self != Self::Own
    }
}

/// Why a job cannot be charged to a key.
#[derive(Debug, thiserror::Error)]
pub enum BillingError {
    /// The key has too little credit.
    #[error("the job may cost {}, and {free} msat are free", offer.quote.total)]
    Insufficient {
        /// What it may cost.
        offer: Box<Offer>,
        /// What is free, in msat.
        free: i64,
        /// What is put aside for other jobs of the key, in msat.
        reserved: i64,
    },
    /// The credential may not spend so much, whatever is on the account.
    #[error("the job may cost {}, and the credential may spend {left} yet", offer.quote.total)]
    BudgetSpent {
        /// What it may cost.
        offer: Box<Offer>,
        /// What the credential may spend yet.
        left: Msat,
    },
    /// What the job would have failed with anyway.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    Closed,
}

impl Billing {
    /// Bills in a ledger, for models that `serving` can put into tokens, at the prices that `status` tells of and a fee
    /// in thousandths.
    #[must_use]
    pub fn new(ledger: Ledger, fee: u16, serving: &[Arc<Serving>], status: watch::Receiver<NodeStatus>) -> Self {
        let [strangers, others] = [COUNTING.0, COUNTING.1].map(|turns| Arc::new(Semaphore::new(turns)));
        Self { ledger, fee, serving: serving.into(), status, strangers, others }
    }

    /// What one token of a model costs now; this node is not paid by itself. None while no pipeline stands.
    #[must_use]
    pub fn rate(&self, model: &str, payer: &Payer) -> Option<Rate> {
        rate_of(&self.status.borrow(), model, payer.is_charged(), self.fee)
    }

    /// Opens the account of a job: puts aside what it can cost, if it is a key's. With the account comes the bill.
    ///
    /// # Errors
    /// [`BillingError`]; nothing is put aside then.
    pub async fn open(&self, payer: &Payer, request: &JobRequest) -> Result<(JobAccount, Bill), BillingError> {
        let (owner, budgets) = match payer {
            Payer::Own => {
                let rate = self.rate(&request.model, payer);
                return Ok((JobAccount::own(), Bill { rate, reserved: None }));
            }
            Payer::Key { key, budgets } => (Owner::Key(key.clone()), budgets.clone()),
            // What costs nothing is charged to nobody, and the promise holds that it costs nothing.
            Payer::Nobody => (Owner::Own(Book::Spent), Vec::new()),
        };
        self.wait_for_price().await?;
        let free_of_charge = |rate| {
            let bill = Bill { rate: Some(rate), reserved: None };
            Ok((JobAccount::of_key(owner.clone(), Promise::new(rate, u64::MAX), None), bill))
        };
        match self.rate(&request.model, payer) {
            None if self.status.borrow().models.iter().any(|model| model.name == request.model) => {
                return Err(not_ready(&self.status.borrow()).into());
            }
            // Nobody serves it: the master will say so. If one began to just now, it is not paid for this job.
            None => return free_of_charge(Rate { per_position: Msat::ZERO, master: Msat::ZERO, fee: 0 }),
            Some(rate) if rate.per_position == Msat::ZERO => return free_of_charge(rate),
            Some(_) => {}
        }
        let offer = self.offer(payer, request).await?;
        if *payer == Payer::Nobody {
            return Err(BillingError::Insufficient { offer: Box::new(offer), free: 0, reserved: 0 });
        }
        let reservation = self.reserve(&owner, budgets, request, offer).await?;
        let promise = Promise::new(offer.rate, offer.quote.positions);
        let reserved = Some((promise.clone(), self.ledger.clone(), request.job));
        let bill = Bill { rate: Some(offer.rate), reserved };
        Ok((JobAccount::of_key(owner, promise, Some(reservation)), bill))
    }

    /// What a job costs at most.
    ///
    /// # Errors
    /// [`BillingError::Job`] when there is no such model, no pipeline, no such prompt, one that is far too long, or too many
    /// are asked for at the same time; [`BillingError::Ledger`] when
    /// the price cannot be counted.
    pub async fn offer(&self, payer: &Payer, request: &JobRequest) -> Result<Offer, BillingError> {
        let (rate, context) = {
            let status = self.status.borrow();
            let model = status.models.iter().find(|model| model.name == request.model);
            let model = model.ok_or_else(|| not_found(&request.model))?;
            let rate = rate_of(&status, &model.name, payer.is_charged(), self.fee).ok_or_else(|| not_ready(&status))?;
            (rate, u64::from(model.context))
        };
        if !may_fit(&request.prompt, context) {
            return Err(too_long(context).into());
        }
        let (prompt_tokens, counted) = self.prompt_tokens(payer, request).await?;
        let prompt_tokens = prompt_tokens.min(context);
        let room = context - prompt_tokens;
        let max_tokens = request.max_tokens.map_or(room, |most| u64::from(most).min(room));
        let quote = rate.quote(prompt_tokens, max_tokens)?;
        Ok(Offer { rate, prompt_tokens, counted, max_tokens, quote })
    }

    /// What stands on a key's account.
    ///
    /// # Errors
    /// [`BillingError::Ledger`].
    pub async fn account(&self, key: &KeyId) -> Result<AccountView, BillingError> {
        let owner = Owner::Key(key.clone());
        self.read(move |ledger| ledger.account(&owner)).await
    }

    /// What of a key's credit can be paid out to an invoice.
    ///
    /// # Errors
    /// [`BillingError::Ledger`].
    pub async fn refundable(&self, key: &KeyId) -> Result<Msat, BillingError> {
        let key = key.clone();
        self.read(move |ledger| ledger.refundable(&key).map(till::largest)).await
    }

    /// What may be spent yet under all of these budgets; none where there is none.
    ///
    /// # Errors
    /// [`BillingError::Ledger`].
    pub async fn budget_left(&self, budgets: &[Budget]) -> Result<Option<Msat>, BillingError> {
        let budgets = budgets.to_vec();
        self.read(move |ledger| ledger.l402_budget_left(&budgets)).await
    }

    /// A page of a key's statement: see [`Ledger::statement`].
    ///
    /// # Errors
    /// [`BillingError::Ledger`].
    pub async fn statement(
        &self,
        key: &KeyId,
        (from_ms, to_ms): (u64, u64),
        after: Option<u64>,
        limit: u32,
    ) -> Result<Statement, BillingError> {
        let owner = Owner::Key(key.clone());
        self.read(move |ledger| ledger.statement(&owner, from_ms, to_ms, after, limit)).await
    }

    async fn wait_for_price(&self) -> Result<(), BillingError> {
        let mut status = self.status.clone();
        let ready = tokio::time::timeout(PRICE, status.wait_for(|status| status.ready)).await;
        match ready {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(BillingError::Closed),
            Err(_) => Err(not_ready(&self.status.borrow()).into()),
        }
    }

    /// How many tokens the prompt has, and whether that was counted.
    async fn prompt_tokens(&self, payer: &Payer, request: &JobRequest) -> Result<(u64, bool), BillingError> {
        let serving = self.serving.iter().find(|serving| serving.model.name == request.model).cloned();
        let Some(serving) = serving else { return Ok((most_tokens(&request.prompt), false)) };
        let turns = if *payer == Payer::Nobody { &self.strangers } else { &self.others };
        let turn = tokio::time::timeout(TURN, Arc::clone(turns).acquire_owned()).await;
        let turn = turn.map_err(|_| JobError::new(JobErrorCode::Overloaded, "too many prices are asked for"))?;
        let turn = turn.map_err(|_| BillingError::Closed)?;
        let prompt = request.prompt.clone();
        let counting = tokio::task::spawn_blocking(move || {
            // Until it is done, though nobody waits for it any more.
            let _turn = turn;
            serving.tokens(&prompt).map(|tokens| tokens.len() as u64)
        });
        Ok((counting.await.map_err(|_| BillingError::Closed)??, true))
    }

    async fn reserve(
        &self,
        owner: &Owner,
        budgets: Vec<Budget>,
        request: &JobRequest,
        offer: Offer,
    ) -> Result<Reservation, BillingError> {
        let (owner, job, amount) = (owner.clone(), request.job, offer.quote.total);
        let offer = Box::new(offer);
        let reserved = self.read(move |ledger| match ledger.reserve_within(&owner, &budgets, job, amount, wall_ms()) {
            // Made here, so that it is given back though nobody waits for it any more.
            Ok(_) => Ok(Ok(Reservation { ledger: ledger.clone(), job })),
            Err(LedgerError::Insufficient { free, .. }) => {
                let reserved = ledger.account(&owner)?.balance.bonded;
                Ok(Err(BillingError::Insufficient { offer, free, reserved }))
            }
            Err(LedgerError::BudgetSpent { left, .. }) => Ok(Err(BillingError::BudgetSpent { offer, left })),
            Err(error) => Err(error),
        });
        reserved.await?
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Ledger) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, BillingError> {
        let ledger = self.ledger.clone();
        Ok(tokio::task::spawn_blocking(move || work(&ledger)).await.map_err(|_| BillingError::Closed)??)
    }
}

/// The rate of the pipeline that serves a model. Whoever is on no list of members asks nothing that is known, and then
/// there is no rate.
fn rate_of(status: &NodeStatus, model: &str, for_key: bool, fee: u16) -> Option<Rate> {
    if status.stages.is_empty() || status.models.first()?.name != model {
        return None;
    }
    let paid = status.stages.iter().filter(|stage| for_key || stage.peer_id != status.peer_id);
    let stages: Option<Vec<(u32, Msat)>> = paid
        .map(|stage| {
            let layers: LayerRange = stage.layers.parse().ok()?;
            let member = status.members.iter().find(|member| member.peer_id == stage.peer_id)?;
            Some((layers.count(), Msat(member.price_msat).min(MAX_PRICE)))
        })
        .collect();
    let driven = status.master.as_ref().filter(|master| for_key || **master != status.peer_id);
    let master = match driven {
        Some(master) => {
            let member = status.members.iter().find(|member| member.peer_id == *master)?;
            Msat(member.master_fee_msat).min(MAX_MASTER_FEE)
        }
        None => Msat::ZERO,
    };
    Rate::of(stages?, master, if for_key { fee } else { 0 }).ok()
}

/// Whether a prompt may fit into a context. What cannot is not worth being counted.
fn may_fit(prompt: &Prompt, context: u64) -> bool {
    let bytes = match prompt {
        Prompt::Tokens(tokens) => return tokens.len() as u64 <= context,
        Prompt::Text(text) => text.len() as u64,
        Prompt::Chat(messages) => messages.iter().map(|said| said.content.len() as u64).sum(),
    };
    bytes <= context.saturating_mul(LONGEST_TOKEN)
}

fn too_long(context: u64) -> JobError {
    JobError {
        code: JobErrorCode::ContextLength,
        message: format!("the prompt is far longer than the context of {context} positions"),
        param: Some("prompt".to_owned()),
    }
}

/// More tokens than a prompt has: one for each byte, and what the template may add.
pub(crate) fn most_tokens(prompt: &Prompt) -> u64 {
    let bytes = |text: &str| text.len() as u64;
    match prompt {
        Prompt::Tokens(tokens) => tokens.len() as u64,
        Prompt::Text(text) => bytes(text) + 1,
        Prompt::Chat(messages) => {
            let (once, each) = TEMPLATE;
            once + messages.iter().map(|said| bytes(&said.content) + bytes(&said.role) + each).sum::<u64>()
        }
    }
}

fn not_found(model: &str) -> JobError {
    JobError {
        code: JobErrorCode::ModelNotFound,
        message: format!("the model `{model:.80}` is not served here"),
        param: Some("model".to_owned()),
    }
}

fn not_ready(status: &NodeStatus) -> JobError {
    let why = status.waiting_for.as_deref().unwrap_or("no pipeline stands");
    JobError::new(JobErrorCode::NoCapacity, format!("what this costs cannot be told yet: {why}"))
}

#[cfg(test)]
mod tests {
    use consortium_protocol::wire::job::ChatMessage;

    use super::*;
    use crate::status::{MemberStatus, ModelStatus, Role, StageStatus};

    fn member(peer_id: &str, price_msat: u64) -> MemberStatus {
        MemberStatus {
            peer_id: peer_id.to_owned(),
            state: "alive".to_owned(),
            role: Role::Worker,
            layers: String::new(),
            memory_bytes: 0,
            layer_micros: 0,
            active_jobs: 0,
            rtt_ms: None,
            uptime_s: 0,
            price_msat,
            master_fee_msat: if peer_id == "b" { 11 } else { 0 },
            addresses: Vec::new(),
        }
    }

    #[test]
    fn a_pipeline_costs_what_its_nodes_ask() {
        let stage = |peer: &str, layers: &str| StageStatus { peer_id: peer.to_owned(), layers: layers.to_owned() };
        let mut status = NodeStatus {
            peer_id: "me".to_owned(),
            models: vec![ModelStatus { name: "tiny".to_owned(), digest: String::new(), layers: 10, context: 64 }],
            stages: vec![stage("me", "0-3"), stage("a", "4-9")],
            members: vec![member("a", 5), member("b", 900), member("me", 2)],
            ..NodeStatus::default()
        };
        let rate = |status: &NodeStatus, for_key| rate_of(status, "tiny", for_key, 7);
        assert_eq!(rate(&status, true), Some(Rate { per_position: Msat(4 * 2 + 6 * 5), master: Msat::ZERO, fee: 7 }));
        assert_eq!(
            rate(&status, false),
            Some(Rate { per_position: Msat(6 * 5), master: Msat::ZERO, fee: 0 }),
            "nobody pays itself"
        );
        status.master = Some("b".to_owned());
        assert_eq!(rate(&status, true), Some(Rate { per_position: Msat(38 + 11), master: Msat(11), fee: 7 }));
        assert_eq!(rate(&status, false), Some(Rate { per_position: Msat(30 + 11), master: Msat(11), fee: 0 }));
        assert_eq!(rate_of(&status, "other", true, 7), None);
        status.members.remove(0);
        assert_eq!(rate(&status, true), None, "a stage whose price is not known");
        status.stages.clear();
        assert_eq!(rate(&status, true), None);
    }

    #[tokio::test]
    async fn what_cannot_fit_is_refused_before_it_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let me = consortium_protocol::identity::RootKey::from_seed([1; 32]).node_id();
        let ledger = Ledger::open(&dir.path().join("ledger.db"), me).unwrap();
        let status = NodeStatus {
            peer_id: "me".to_owned(),
            models: vec![ModelStatus { name: "tiny".to_owned(), digest: String::new(), layers: 4, context: 64 }],
            stages: vec![StageStatus { peer_id: "a".to_owned(), layers: "0-3".to_owned() }],
            members: vec![member("a", 5)],
            ..NodeStatus::default()
        };
        let request = |prompt| JobRequest {
            job: consortium_protocol::wire::job::JobId([1; 16]),
            model: "tiny".to_owned(),
            prompt,
            sampling: consortium_protocol::wire::job::Sampling::default(),
            max_tokens: None,
            stop: Vec::new(),
            ignore_eos: false,
            emitted: Vec::new(),
            challenge: consortium_protocol::hash::Hash::of(b"challenge"),
        };
        let (_status, reader) = watch::channel(status);
        let billing = Billing::new(ledger, 0, &[], reader);
        let offer = async |prompt| billing.offer(&Payer::Nobody, &request(prompt)).await;
        let longest = usize::try_from(64 * LONGEST_TOKEN).unwrap();
        assert!(offer(Prompt::Text("a".repeat(longest))).await.is_ok());
        for long in [Prompt::Text("a".repeat(longest + 1)), Prompt::Tokens(vec![1; 65])] {
            let refusal = offer(long).await.unwrap_err();
            let BillingError::Job(error) = refusal else { panic!("{refusal}") };
            assert_eq!(error.code, JobErrorCode::ContextLength);
        }
    }

    #[test]
    fn prompts_have_no_more_tokens_than_bytes() {
        assert_eq!(most_tokens(&Prompt::Tokens(vec![1, 2])), 2);
        assert_eq!(most_tokens(&Prompt::Text("héllo".to_owned())), 7);
        let said = ChatMessage { role: "user".to_owned(), content: "hello".to_owned() };
        assert_eq!(most_tokens(&Prompt::Chat(vec![said.clone(), said])), 256 + 2 * (5 + 4 + 16));
    }
}
