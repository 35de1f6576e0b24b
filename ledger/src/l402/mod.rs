//! L402: credentials that are bought over Lightning, and credit that is spent with them. No wallet and no HTTP is in here.
//!
//! Follows the specification of L402 (github.com/lightninglabs/L402), in the form that clients in use can read.
//!
//! ```text
//! macaroon    the token: an identifier, caveats, and a chain of HMACs over them
//! identifier  the 66 bytes that name payment and token
//! terms       what the caveats say, and that a repeated one only narrows
//! header      the challenge of a 402 and the credential of a request, as headers have them
//! tokens      tokens, their secrets and their invoices in the ledger
//! budgets     what was spent under a caveat that limits it
//! refunds     credit on its way back to who paid it
//! ```
//!
//! # What a token is
//! An account in the ledger, as an API key is ([`crate::accounts::Owner::Key`]), with 32 random bytes that name it and 32
//! more that only the ledger knows. A challenge carries a macaroon that is bound to one invoice; when that is paid, its
//! amount is the account's credit, and macaroon and preimage together are the credential that spends it, for as many
//! requests as it lasts. When it runs out the next challenge carries another macaroon of the same token: the credit of
//! both is one.
//!
//! # Attenuation
//! Whoever holds a macaroon may add caveats to it and give it away, as a weaker one; they cannot be taken off again
//! ([`terms`]). A credential with caveats of its holder spends, but takes nothing out and is not topped up: otherwise who
//! was given a narrow one could buy a wide one of the same account.
//!
//! # Secrets
//! A token's secret is in `ledger.db` (mode 0600) and nowhere else: no type here shows one, nor a preimage, nor a macaroon's
//! signature, by `Debug` or in an error.

pub mod budgets;
pub mod header;
pub mod identifier;
pub mod macaroon;
pub mod refunds;
pub mod terms;
pub mod tokens;

pub use header::{Challenge, Credential};
pub use identifier::Identifier;
pub use macaroon::{Macaroon, TokenSecret};
pub use terms::Terms;

/// What this kind of service is called in caveats.
pub const SERVICE: &str = "consortium";
