//! Escrow over hold invoices: bonds, rewards, and pay by binary tranches.
//!
//! Money is locked by Lightning payments that only preimages open. A validator judges, and has the preimages; it is never
//! paid by what it judges. Nobody has custody: until the verdict the money is neither the payer's nor the payee's, and
//! after its deadline it goes back by itself.
//!
//! ```text
//! kind       payer    payee      who has the preimages   paid when
//! bond       worker   validator  validator               there was abuse; it goes back for honest work and honest misses
//! reward     sponsor  worker     validator               it was earned
//! tranches   sponsor  worker     validator               1, 2, 4, 8.. units: those that sum to what was earned
//!
//!  validator              payee                    payer
//!     | terms (hashes) ---->|--------------------->|  each agrees, or does not
//!     |                     | hold invoices ------>|
//!     |                     |<=== locked payments =|
//!     |<------------- held  |                      |
//!     | verdict, preimages->|                      |  preimages of what was earned alone
//!     | verdict ------------+--------------------->|
//!     |                     |== takes what was earned, sends the rest back
//! ```
//!
//! # Architecture
//!
//! ```text
//! event     what happened, as it is written down
//! state     Escrow: one party's side, the sum of its events
//! turn      inputs, actions, refusals
//! machine   Escrow::handle(input, height) -> events, actions: pure
//! limits    what terms may be agreed to: dust, days
//! secrets   preimages: derived from the root key, or sealed
//! log       escrow.db, which only grows
//! driver/   with the feature `lightning`: machine, log and wallet together
//! ```
//!
//! Messages go from node to node as requests ([`consortium_protocol::wire::rpc::Request::Escrow`]), never by gossip; the
//! node's desk (`consortium_node::escrow`) carries them, and has its operator or its own code agree to offers. What moves is
//! booked as income of the payee from the payer ([`crate::payments::Purpose`]), once.
//!
//! Messages, terms, verdicts and proofs of misconduct are in [`consortium_protocol::wire::escrow`].
//!
//! # States
//!
//! Each party keeps a state for each tranche. An arrow is an event in its log.
//!
//! | state | payer | payee | validator of others' money |
//! |---|---|---|---|
//! | created | nothing is sent | nothing has come | the payee has not said that all is held |
//! | held (deadline) | it is on its way, or locked | it is locked | the payee says that it is locked |
//! | settling | | earned; its preimage is being used | earned; the preimage is being given to the payee |
//! | settled | it arrived, says the wallet | it was received, says the wallet | the payee has the preimage |
//! | cancelling | | being sent back; some channel still has it | not earned; the payee is being told |
//! | cancelled | its money is back | no channel has it any more | the payee knows |
//! | expired | its money is back, after the deadline | it went back at the deadline | it was not judged or heard in time |
//!
//! ```text
//! created -> held(deadline) -> settling -> settled
//!    |           |  |             `------> expired
//!    |           |  `---> cancelling ----> cancelled
//!    |           `-----------------------> expired
//!    `--> cancelling, cancelled            any -> settled: what arrived has arrived
//! ```
//!
//! Expired is not cancelled: nobody sent it back, time did. A payer tells them apart by its own deadline, the height from
//! which on the payee's node gives the money back by itself. 18 blocks ([`machine::GUARD`]) before the deadline nothing is
//! waited for any longer: the payee sends back what no verdict gave it. The validator gives no verdict 6 blocks sooner
//! ([`machine::JUDGE_GUARD`]), so that its last one still comes in time. A preimage that comes later than that is still
//! used while it can be. A payee sends back at once what leaves it less time than was agreed on.
//!
//! # Crashes
//!
//! A party may be killed before and after each of its steps; started again it goes on from its log, and asks the wallet
//! what happened meanwhile. What was noted and not done is done, what was done and not noted is done again without harm:
//! LDK refuses a payment that it knows, a claim or refusal that is repeated changes nothing.
//!
//! One thing is Lightning's own, and not in this module's hands: LDK writes the state of a channel first, and moments
//! later what it knows of all channels. Killed in between (it takes some milliseconds after each payment, claim or refusal,
//! and when peers meet again), it finds the two apart at its next start and closes that channel by force. Nothing is lost
//! but the fees of closing and sweeping: what was locked ends on-chain, by preimage or by time, and payer and payee agree
//! on how. A payment that had only just been sent may have come to nothing; then the escrow is given up, and the money is
//! back. An orderly stop never does this.
//!
//! A payment that finds no way is sent again if it is the only one of its escrow; of several, all are given up, so that
//! no part stays locked for nothing. The payer tells the payee, who sends back what has come and tells the validator; what
//! a payer alone says does not keep the validator from judging.
//!
//! The log is of one wallet. With another, whose records have another name, nothing is sent again that was noted as sent:
//! it may still arrive from the first.
//!
//! # What each party must trust, and the most it can lose
//!
//! - **The sponsor** trusts that the validator judges honestly, and does not collude with the worker, who could then take
//!   everything that is locked: at most the total of the terms, for work that may be worth nothing. A preimage used
//!   without a verdict is proof ([`consortium_protocol::wire::escrow::Misconduct`]), but brings no money back; a dishonest
//!   verdict is signed, and can be recomputed from its evidence. It cannot take its money back before the deadline: at
//!   most 144 blocks. If the worker vanishes for good, its channel is closed by force: it costs the fees of three
//!   transactions, and the rest of the channel is locked until they are confirmed and its delay has passed.
//! - **The worker** trusts that the validator does not withhold a verdict or preimage: at most its work and the time that
//!   the money was locked; of a bond, at most the bond, once, and in public: a bond taken without a verdict that says
//!   abuse is misconduct. A verdict without preimages gives it nothing. That the sponsor has locked the money it sees
//!   itself.
//! - **The validator** risks nothing but its name: it pays nothing, and is paid nothing but bonds. That money is held is
//!   the payee's claim; if it is false, the payee loses its pay, and the validator the work of judging.
//! - **All three** need to be online: sponsor and worker from the first payment until the end (a wallet that is off
//!   cannot take back, or claim, in time), the validator until its verdict was heard. Each may crash and go on.
//! - **Dust**: tranches of 354 sat and less ([`limits::DUST`]) cannot be enforced on-chain. They are refused unless a
//!   party agrees to them in so many words: each can be lost, to fees, when its channel is closed by force meanwhile.
//!   ldk-node does not show them in channels either, so a sponsor's payment of dust that a crash cut off is not sent
//!   again and counts as back some blocks after its deadline, and that it was sent back is believed at once. What is only
//!   a little above dust can be enforced, and still not be worth the fee of doing so when fees are high: choose units of
//!   thousands of sats.
//!
//! # Limits
//!
//! - A channel's other side takes 50 payments at once and, of an announced channel, a tenth of its size. A sponsor refuses
//!   what does not fit ([`driver::EscrowError::NoRoom`] with the feature `lightning`), before anything is locked; the
//!   payee asks again until there is room or the terms are over.
//! - **Work is paid through a channel with the payee alone.** A node on the way that knows a preimage could take the
//!   money and pass nothing on, and the validator knows all of them. ldk-node 0.7.1 has no way to exclude a node from a
//!   route and does not tell which one was taken. So a sponsor needs a usable channel with the worker's node, and pays in
//!   one part, with no fee and no blocks for anyone in between, which nobody who routes asks for; a validator that
//!   announced channels with neither would be seen, by [`driver::Escrows::is_direct`], to have the payment: the sponsor
//!   looks as long as there is no verdict, and then gives up, which helps if the payee does not hold all of it. Bonds go
//!   any way: whoever has their preimage is their payee anyhow.
//! - Money for work is locked for 144 blocks at most; what is meant for weeks is a bond and a reputation. Of the delta,
//!   Lightning keeps 39 blocks: a delta of 144 leaves 105, of which the last 18 are for acting.
//! - The validator's deadline is what the payee says it is, within the delta; the payee alone suffers from a wrong one.
//! - The small fee that a miss may cost is not taken from the bond, which goes back as a whole.

#[cfg(feature = "lightning")]
pub mod driver;
pub mod event;
pub mod limits;
pub mod log;
pub mod machine;
#[cfg(test)]
mod machine_tests;
#[cfg(test)]
mod samples;
pub mod secrets;
pub mod state;
pub mod turn;

pub use machine::{Action, Input, Refused, Turn, Word};
pub use state::{Escrow, Role, State};
