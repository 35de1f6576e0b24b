//! Tokens in the ledger: their secrets, their invoices, and who may use them.
//!
//! ```text
//! mint           an invoice and a macaroon for it: of a new token, or another of one that there is
//! admit          what a credential may do
//! sweep          takes away what was never paid, and what nobody can use any more
//! ```
//!
//! Callers that have not paid anything are bounded: so many invoices at a time for each of them, for each account, and for all
//! together. None of them can close the shop: where an account or all together have as many as they may, the one that ends
//! first is given up. It does not count any more then; whoever is paying it at that moment has the credit all the same.

use consortium_protocol::{Hash, Msat};
use rusqlite::{OptionalExtension as _, Row, Transaction, params};

use super::header::Credential;
use super::identifier::Identifier;
use super::macaroon::{Macaroon, TokenSecret};
use super::terms::{self, Terms, TermsError};
use crate::accounts::Owner;
use crate::api_keys::KeyId;
use crate::ledger::{Ledger, LedgerError, text_at, time};
use crate::payments::{self, Direction};

/// Most tokens that were paid for; beyond that nothing more is sold.
pub const MAX_TOKENS: u32 = 100_000;
/// Most invoices that one caller may have open.
pub const MAX_OPEN_OF_CALLER: u32 = 32;
/// Most invoices that one account may have open.
pub const MAX_OPEN_OF_ACCOUNT: u32 = 8;
/// Most invoices that all together may have open.
pub const MAX_OPEN: u32 = 1024;
/// Most unpaid invoices that are kept, those included that are over or given up.
pub const MAX_KEPT: u32 = 65_536;
/// How long after its end an invoice is kept, in seconds. Lightning goes by the clocks of blocks, which may be two hours
/// behind: until then it might still be paid.
pub const KEPT_S: u64 = 3 * 3600;

const ACCOUNT: &str = "consortium ledger l402 account 1";

/// What an invoice is for, and until when all that comes with it is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The invoice's payment.
    pub payment_hash: [u8; 32],
    /// Its amount.
    pub amount: Msat,
    /// Who asked: what tells callers apart. Empty where nothing does, as behind a proxy that does not say whom it serves:
    /// then only the other bounds hold.
    pub caller: String,
    /// Until when it can be paid, in seconds since 1970.
    pub invoice_until_s: u64,
    /// Until when the token is good, in seconds since 1970.
    pub token_until_s: u64,
}

/// What a credential is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Whose credit it spends.
    pub account: KeyId,
    /// What it allows.
    pub terms: Terms,
    /// It is as it was made: its holder has not narrowed it.
    pub whole: bool,
}

/// Why a credential is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It is no macaroon of this node, or was changed.
    #[error("the macaroon is not one of this node, or was tampered with")]
    Unknown,
    /// The preimage is not that of its payment.
    #[error("the preimage is not that of the macaroon's invoice: it is not paid")]
    Unpaid,
    /// Its time is over.
    #[error("the credential has expired")]
    Expired,
    /// It was revoked.
    #[error("the credential was revoked")]
    Revoked,
    /// It is for another service.
    #[error("the credential is for another service")]
    Elsewhere,
    /// Its caveats make no sense.
    #[error(transparent)]
    Terms(#[from] TermsError),
}

/// Whether a credential works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    Admitted(Admission),
    /// It will as soon as its payment, which has been made, is in the books.
    Arriving,
    /// It does not.
    Refused(Refusal),
}

/// A token as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenView {
    /// The account it spends.
    pub account: KeyId,
    /// When it was made, in seconds since 1970.
    pub created_s: u64,
    /// Until when it is good.
    pub expires_s: u64,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// Why a token cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MintError {
    /// The ledger failed, or the account is not there any more.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The system gave no random numbers.
    #[error("no randomness from the system: {0}")]
    Random(getrandom::Error),
    /// The caller has as many invoices as one may have.
    #[error("{MAX_OPEN_OF_CALLER} invoices for this caller are unpaid")]
    ManyOfCaller,
    /// As many invoices as are kept were not paid.
    #[error("{MAX_KEPT} invoices were not paid")]
    Many,
    /// As many tokens were sold as the ledger keeps.
    #[error("{MAX_TOKENS} tokens were sold already")]
    Full,
}

impl From<rusqlite::Error> for MintError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Ledger(error.into())
    }
}

/// A token with its secret.
struct Token {
    account: KeyId,
    name: [u8; 32],
    secret: TokenSecret,
    expires_s: u64,
    paid: bool,
    revoked: bool,
}

const COLUMNS: &str = "account, token, secret, expires_s, paid_s IS NOT NULL, revoked_s IS NOT NULL";

fn read(row: &Row<'_>) -> rusqlite::Result<Token> {
    Ok(Token {
        account: text_at(row, 0)?,
        name: row.get(1)?,
        secret: TokenSecret::from_bytes(row.get(2)?),
        expires_s: row.get(3)?,
        paid: row.get(4)?,
        revoked: row.get(5)?,
    })
}

fn find(tx: &Transaction<'_>, column: &'static str, value: impl rusqlite::ToSql) -> Result<Option<Token>, LedgerError> {
    let query = format!("SELECT {COLUMNS} FROM l402_token WHERE {column} = ?1");
    Ok(tx.prepare_cached(&query)?.query_row([value], read).optional()?)
}

fn count(tx: &Transaction<'_>, query: &str, parameters: impl rusqlite::Params) -> Result<u32, LedgerError> {
    Ok(tx.prepare_cached(query)?.query_row(parameters, |row| row.get(0))?)
}

fn check_room(tx: &Transaction<'_>, caller: &str, now_s: u64) -> Result<(), MintError> {
    let now = time(now_s);
    let of_caller = "SELECT count(*) FROM l402_invoice WHERE expires_s > ?1 AND caller = ?2";
    if !caller.is_empty() && count(tx, of_caller, params![now, caller])? >= MAX_OPEN_OF_CALLER {
        return Err(MintError::ManyOfCaller);
    }
    if count(tx, "SELECT count(*) FROM l402_invoice", [])? >= MAX_KEPT {
        return Err(MintError::Many);
    }
    if count(tx, "SELECT count(*) FROM l402_token WHERE paid_s IS NOT NULL", [])? >= MAX_TOKENS {
        return Err(MintError::Full);
    }
    Ok(())
}

/// Gives up open invoices, those first that end first, until there is room for one more of this account and in all. They can
/// still be paid until they are swept.
fn make_room(tx: &Transaction<'_>, account: &KeyId, now_s: u64) -> Result<(), LedgerError> {
    let now = time(now_s);
    tx.prepare_cached(
        "UPDATE l402_invoice SET expires_s = ?1 WHERE hash IN (
             SELECT hash FROM l402_invoice WHERE account = ?2 AND expires_s > ?1
                 ORDER BY expires_s DESC, hash LIMIT -1 OFFSET ?3
         )",
    )?
    .execute(params![now, account.as_str(), MAX_OPEN_OF_ACCOUNT - 1])?;
    tx.prepare_cached(
        "UPDATE l402_invoice SET expires_s = ?1 WHERE hash IN (
             SELECT hash FROM l402_invoice WHERE expires_s > ?1 ORDER BY expires_s DESC, hash LIMIT -1 OFFSET ?2
         )",
    )?
    .execute(params![now, MAX_OPEN - 1])?;
    Ok(())
}

/// Whether an API key has this id, and whether it is valid.
fn api_key(tx: &Transaction<'_>, id: &KeyId) -> Result<Option<bool>, LedgerError> {
    let mut statement = tx.prepare_cached("SELECT revoked_s IS NULL FROM api_key WHERE id = ?1")?;
    Ok(statement.query_row([id.as_str()], |row| row.get(0)).optional()?)
}

fn create(tx: &Transaction<'_>, account: Option<&KeyId>, until_s: u64, now_s: u64) -> Result<Token, MintError> {
    let secret = TokenSecret::random().map_err(MintError::Random)?;
    loop {
        let mut name = [0; 32];
        getrandom::fill(&mut name).map_err(MintError::Random)?;
        let own = KeyId::of(&blake3::Hash::from_bytes(blake3::derive_key(ACCOUNT, &name)));
        let account = account.cloned().unwrap_or(own.clone());
        // Ids have 48 bits: two may be alike, however unlikely.
        if account == own && (find(tx, "account", own.as_str())?.is_some() || api_key(tx, &own)?.is_some()) {
            continue;
        }
        tx.prepare_cached(
            "INSERT INTO l402_token (account, token, secret, created_s, expires_s) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![account.as_str(), name, secret.reveal(), time(now_s), time(until_s)])?;
        return Ok(Token { account, name, secret, expires_s: until_s, paid: false, revoked: false });
    }
}

impl Ledger {
    /// Whether there is room for one more invoice for a caller.
    ///
    /// # Errors
    /// [`MintError`] says why not.
    pub fn l402_room(&self, caller: &str, now_s: u64) -> Result<(), MintError> {
        self.read(|tx| Ok(check_room(tx, caller, now_s)))?
    }

    /// Makes the macaroon of an offer: for credit of an account that there is, a token's or an API key's, or of a new
    /// one. The payment is expected for the account from then on.
    ///
    /// # Errors
    /// [`MintError`]; [`LedgerError::UnknownKey`] when there is no such account, or it was revoked.
    pub fn l402_mint(
        &self,
        account: Option<&KeyId>,
        offer: &Offer,
        now_s: u64,
    ) -> Result<(KeyId, Macaroon), MintError> {
        self.write(|tx| match mint(tx, account, offer, now_s) {
            Err(MintError::Ledger(error)) => Err(error),
            // What else may be refused is refused before anything is written.
            decided => Ok(decided),
        })?
    }

    /// What a credential may do now. Where its payment has been made and is not in the books yet, it is worth asking
    /// again in a moment.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn l402_admit(&self, credential: &Credential, now_s: u64) -> Result<Verdict, LedgerError> {
        let Identifier { payment_hash, token } = *credential.identifier();
        let found = self.read(|tx| {
            let Some(found) = find(tx, "token", token)? else { return Ok(None) };
            let key_revoked = api_key(tx, &found.account)? == Some(false);
            let mut open = tx.prepare_cached("SELECT 1 FROM l402_invoice WHERE hash = ?1")?;
            Ok(Some((found, key_revoked, open.exists([payment_hash])?)))
        })?;
        let Some((token, key_revoked, open)) = found else { return Ok(Verdict::Refused(Refusal::Unknown)) };
        let revoked = token.revoked || key_revoked;
        let admission = match check(credential, &token, revoked, now_s) {
            Ok(admission) => admission,
            Err(refusal) => return Ok(Verdict::Refused(refusal)),
        };
        if open {
            let payment = self.payment(Direction::Incoming, &Hash::from_bytes(payment_hash))?;
            if payment.is_none_or(|payment| payment.booked.is_none()) {
                return Ok(Verdict::Arriving);
            }
            self.l402_paid(&admission.account, &payment_hash, now_s)?;
        } else if !token.paid {
            return Ok(Verdict::Refused(Refusal::Unknown));
        }
        Ok(Verdict::Admitted(admission))
    }

    /// Notes that an invoice is paid: it is not waited for any more, and its token stays.
    fn l402_paid(&self, account: &KeyId, hash: &[u8; 32], now_s: u64) -> Result<(), LedgerError> {
        self.write(|tx| paid(tx, account, hash, now_s))
    }

    /// What is in this node's keeping: for an account its credit, and what its open invoices may add to it; for all accounts
    /// of keys and tokens together their credit alone, for whoever asks for an invoice has not paid it.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn l402_custody(&self, account: Option<&KeyId>, now_s: u64) -> Result<(Msat, Msat), LedgerError> {
        let now = time(now_s);
        self.read(|tx| {
            let of = account.map_or("", KeyId::as_str);
            let sums: (u64, u64) = tx
                .prepare_cached(
                    "SELECT coalesce(sum(msat) FILTER (WHERE account = ?1), 0), coalesce(sum(msat) FILTER (WHERE paid), 0)
                     FROM (
                         SELECT substr(owner, 5) AS account, msat, TRUE AS paid FROM balance
                             WHERE owner >= 'key/' AND owner < 'key0' AND msat > 0
                         UNION ALL SELECT account, payment.msat, FALSE FROM l402_invoice JOIN payment
                             ON direction = 'in' AND payment.hash = l402_invoice.hash AND seq IS NULL
                             WHERE account = ?1 AND expires_s > ?2
                     )",
                )?
                .query_row(params![of, now], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok((Msat(sums.0), Msat(sums.1)))
        })
    }

    /// Tokens that were paid for, in the order of their accounts' names, from the one after `after` on.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn l402_tokens(&self, after: Option<&KeyId>, limit: u32) -> Result<Vec<TokenView>, LedgerError> {
        self.read(|tx| {
            let mut statement = tx.prepare_cached(
                "SELECT account, created_s, expires_s, revoked_s IS NOT NULL FROM l402_token
                 WHERE paid_s IS NOT NULL AND account > ?1 ORDER BY account LIMIT ?2",
            )?;
            let rows = statement.query_map(params![after.map_or("", KeyId::as_str), limit], |row| {
                Ok(TokenView {
                    account: text_at(row, 0)?,
                    created_s: row.get(1)?,
                    expires_s: row.get(2)?,
                    revoked: row.get(3)?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Makes a token useless, for good; its credit stays on the account. Revoking it again changes nothing.
    ///
    /// # Errors
    /// [`LedgerError::UnknownKey`] when there is none, [`LedgerError::Database`].
    pub fn l402_revoke(&self, account: &KeyId, now_s: u64) -> Result<(), LedgerError> {
        self.write(|tx| {
            let changed = tx
                .prepare_cached("UPDATE l402_token SET revoked_s = coalesce(revoked_s, ?2) WHERE account = ?1")?
                .execute(params![account.as_str(), time(now_s)])?;
            if changed == 0 { Err(LedgerError::UnknownKey(account.clone())) } else { Ok(()) }
        })
    }

    /// Takes away invoices that were not paid and cannot be any more, tokens that nothing was ever paid for, and tokens
    /// that have expired or were revoked and have no credit left. Gives the payment hashes that nobody needs any more;
    /// at most `limit` at a time.
    ///
    /// # Errors
    /// [`LedgerError::Database`].
    pub fn l402_sweep(&self, now_s: u64, limit: u32) -> Result<Vec<[u8; 32]>, LedgerError> {
        self.write(|tx| {
            let mut unpaid = Vec::new();
            for (hash, account, booked) in over(tx, now_s.saturating_sub(KEPT_S), limit)? {
                if booked {
                    paid(tx, &account, &hash, now_s)?;
                } else {
                    tx.prepare_cached("DELETE FROM l402_invoice WHERE hash = ?1")?.execute([hash])?;
                    payments::forget(tx, Direction::Incoming, &Hash::from_bytes(hash))?;
                    unpaid.push(hash);
                }
            }
            sweep_tokens(tx, now_s)?;
            Ok(unpaid)
        })
    }
}

fn mint(
    tx: &Transaction<'_>,
    account: Option<&KeyId>,
    offer: &Offer,
    now_s: u64,
) -> Result<(KeyId, Macaroon), MintError> {
    check_room(tx, &offer.caller, now_s)?;
    let known = account.map(|account| find(tx, "account", account.as_str())).transpose()?.flatten();
    let token = match (account, known) {
        (Some(account), known) => {
            let key = api_key(tx, account)?;
            let usable = known.as_ref().is_none_or(|token| !token.revoked) && key != Some(false);
            if !usable || (known.is_none() && key.is_none()) {
                return Err(LedgerError::UnknownKey(account.clone()).into());
            }
            match known {
                Some(token) => token,
                None => create(tx, Some(account), offer.token_until_s, now_s)?,
            }
        }
        (None, _) => create(tx, None, offer.token_until_s, now_s)?,
    };
    let until_s = token.expires_s.max(offer.token_until_s);
    tx.prepare_cached("UPDATE l402_token SET expires_s = ?2 WHERE account = ?1")?
        .execute(params![token.account.as_str(), time(until_s)])?;
    make_room(tx, &token.account, now_s)?;
    tx.prepare_cached("INSERT INTO l402_invoice (hash, account, caller, expires_s) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![offer.payment_hash, token.account.as_str(), offer.caller, time(offer.invoice_until_s)])?;
    let (owner, hash) = (Owner::Key(token.account.clone()), Hash::from_bytes(offer.payment_hash));
    payments::expect(tx, Direction::Incoming, hash, &owner, offer.amount, "credit", now_s.saturating_mul(1000))?;
    let identifier = Identifier { payment_hash: offer.payment_hash, token: token.name };
    let macaroon = terms::minted(until_s)
        .iter()
        .try_fold(Macaroon::mint(&token.secret, &identifier.to_bytes()), |made, caveat| made.with_caveat(caveat))
        .expect("two short caveats fit");
    Ok((token.account, macaroon))
}

fn check(credential: &Credential, token: &Token, revoked: bool, now_s: u64) -> Result<Admission, Refusal> {
    let macaroon = credential.macaroon();
    let links = macaroon.verify(&token.secret).ok_or(Refusal::Unknown)?;
    if !credential.opens() {
        return Err(Refusal::Unpaid);
    }
    if revoked {
        return Err(Refusal::Revoked);
    }
    let terms = Terms::read(macaroon.caveats(), &links)?;
    if !terms.serves_here() {
        return Err(Refusal::Elsewhere);
    }
    if terms.valid_until_s().is_some_and(|until| until <= now_s) {
        return Err(Refusal::Expired);
    }
    // What is minted has these two; whoever holds it can only add.
    let whole = macaroon.caveats().len() == terms::minted(0).len();
    Ok(Admission { account: token.account.clone(), terms, whole })
}

fn paid(tx: &Transaction<'_>, account: &KeyId, hash: &[u8; 32], now_s: u64) -> Result<(), LedgerError> {
    tx.prepare_cached("DELETE FROM l402_invoice WHERE hash = ?1")?.execute([hash])?;
    tx.prepare_cached("UPDATE l402_token SET paid_s = coalesce(paid_s, ?2) WHERE account = ?1")?
        .execute(params![account.as_str(), time(now_s)])?;
    Ok(())
}

/// Invoices that ended before `before_s`: their payments, whose they are, and whether they are in the books.
fn over(tx: &Transaction<'_>, before_s: u64, limit: u32) -> Result<Vec<([u8; 32], KeyId, bool)>, LedgerError> {
    let mut statement = tx.prepare_cached(
        "SELECT hash, account, EXISTS (
             SELECT 1 FROM payment WHERE direction = 'in' AND payment.hash = l402_invoice.hash AND seq IS NOT NULL
         ) FROM l402_invoice WHERE expires_s <= ?1 ORDER BY expires_s LIMIT ?2",
    )?;
    let rows =
        statement.query_map(params![time(before_s), limit], |row| Ok((row.get(0)?, text_at(row, 1)?, row.get(2)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn sweep_tokens(tx: &Transaction<'_>, now_s: u64) -> Result<(), LedgerError> {
    tx.prepare_cached(
        "DELETE FROM l402_token WHERE account NOT IN (SELECT account FROM l402_invoice) AND (
             paid_s IS NULL
             OR ((expires_s <= ?1 OR revoked_s IS NOT NULL) AND NOT EXISTS (
                 SELECT 1 FROM balance WHERE owner = 'key/' || account AND msat <> 0
             ))
         )",
    )?
    .execute([time(now_s)])?;
    tx.prepare_cached("DELETE FROM l402_budget WHERE account NOT IN (SELECT account FROM l402_token)")?.execute([])?;
    Ok(())
}
