//! Where all the money is.

use consortium_node::ledger::lightning::Wallet;
use consortium_protocol::Msat;

use super::support::until;

/// What is a wallet's own: in channels, pledges included, and on-chain. What is on its way is nobody's.
pub(crate) async fn holding(wallet: &Wallet) -> Msat {
    let balances = wallet.balances().await.unwrap();
    let onchain = balances.spendable_sat + balances.unconfirmed_sat + balances.reserved_sat;
    let channels = wallet.channels().await.unwrap();
    let own = channels.iter().map(|channel| Msat(channel.spendable.0 + channel.reserve_sat * 1000));
    Msat::sum(own.chain(Msat::from_sat(onchain))).unwrap()
}

/// What each has.
pub(crate) async fn holdings(wallets: &[&Wallet]) -> Vec<Msat> {
    let mut all = Vec::new();
    for wallet in wallets {
        all.push(holding(wallet).await);
    }
    all
}

/// Waits until each has what it had, and a change, to the millisatoshi. The changes sum to nothing: no money is made or
/// lost.
pub(crate) async fn conserved(wallets: &[&Wallet], before: &[Msat], changes: &[i64]) {
    assert_eq!(changes.iter().sum::<i64>(), 0);
    let wanted: Vec<Msat> = before
        .iter()
        .zip(changes)
        .map(|(before, change)| Msat(before.0.checked_add_signed(*change).unwrap()))
        .collect();
    let wanted = &wanted;
    until(&format!("the holdings are {wanted:?} after {before:?}"), || async {
        let now = holdings(wallets).await;
        now == *wanted
    })
    .await;
}
