//! Channels just in time that end before both sides have booked their cost: both book it then, or neither does, and the
//! tab is settled all the same.

use std::time::Duration;

use consortium_node::clock::wall_ms;
use consortium_node::ledger::lightning::channels::{ChannelState as InWallet, Closing};
use consortium_node::storage::tab_channels::{ChannelState, OfferedChannel};
use consortium_node::storage::tabs::Side;
use consortium_protocol::Msat;
use consortium_protocol::envelope::Signed;
use consortium_protocol::wire::rpc::{Refusal, RefusalCode, Response};
use consortium_protocol::wire::tab::{ChannelBegun, ChannelOffer};

use super::partners::{Partner, RULES, met, newcomers_wallet, settled, with_newcomer, work};
use super::support::{Town, place, until};

const DUE: u64 = 30_000_000;
const SIZE_SAT: u64 = 300_000;
const DAY_MS: u64 = 24 * 3600 * 1000;

/// What the payer writes down when it is about to open a channel that it offered at `at_ms`.
async fn opening(payer: &Partner, worker: &Partner, at_ms: u64) -> OfferedChannel {
    let offer = ChannelOffer {
        payer: payer.id(),
        worker: worker.id(),
        at_ms,
        size_sat: SIZE_SAT,
        cost: RULES.channel_cost,
        lightning: payer.wallet.node_id().parse().unwrap(),
        addresses: payer.wallet.status().await.unwrap().listen,
    };
    let offer = Signed::sign(&payer.key, offer);
    let lightning = worker.wallet.node_id().to_owned();
    let known = OfferedChannel { offer, lightning, state: ChannelState::Opening, channel: None, before: Vec::new() };
    payer.storage.channel_note(Side::Payer, &known).await.unwrap();
    known
}

/// The same, agreed on by the worker.
async fn agreed(payer: &Partner, worker: &Partner) -> OfferedChannel {
    let known = opening(payer, worker, wall_ms()).await;
    let Response::Channel(agreed) = worker.tabs.agree(payer.id(), known.offer.clone()).await else {
        panic!("the worker does not agree")
    };
    assert_eq!(agreed.payload().offer, known.offer.digest());
    known
}

/// Opens the channel, waits until both can use it, and notes that the worker is about to be told.
async fn begun(town: &Town, payer: &Partner, worker: &Partner, known: &mut OfferedChannel) -> String {
    let name = payer.wallet.open_channel_back(&known.lightning, SIZE_SAT).await.unwrap();
    usable(town, payer, worker).await;
    (known.state, known.channel) = (ChannelState::Begun, Some(name.clone()));
    payer.storage.channel_note(Side::Payer, known).await.unwrap();
    name
}

async fn usable(town: &Town, payer: &Partner, worker: &Partner) {
    let sees_it = async |partner: &Partner| {
        let channels = partner.wallet.channels().await.unwrap();
        channels.iter().any(|channel| channel.state == InWallet::Usable)
    };
    until("the channel is usable", || async {
        town.mine(1).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        sees_it(payer).await && sees_it(worker).await
    })
    .await;
}

async fn closed(town: &Town, payer: &Partner, worker: &Partner, name: &str) {
    until("it is being closed", || async { payer.wallet.close_channel(name, Closing::Cooperative).await.is_ok() })
        .await;
    until("both have closed it", || async {
        town.mine(1).await;
        let channels = [payer.wallet.channels().await.unwrap(), worker.wallet.channels().await.unwrap()];
        channels.iter().all(Vec::is_empty)
    })
    .await;
}

async fn begins_again(town: &Town, payer: Partner, worker: &Partner) -> Partner {
    payer.ends().await;
    let payer = Partner::new(town, "alice", town.wallet("alice").await, worker.address()).await;
    met(&payer, worker).await;
    payer
}

/// The tab is settled over another channel; `costs` were taken off it.
async fn ends_well(town: &Town, payer: Partner, worker: Partner, costs: u64) {
    payer.pays(&[worker.id()]);
    worker.pays(&[payer.id()]);
    usable(town, &payer, &worker).await;
    settled(&payer, &worker).await;
    let paid = Msat(DUE - costs * RULES.channel_cost.0);
    until("it is noted", || async { worker.with(payer.id()).await.paid_by.total == paid }).await;
    until("the payer has noted it", || async { payer.with(worker.id()).await.paid_to.total == paid }).await;
    until("nothing is left to be told", || async { payer.storage.channels_unfinished().await.unwrap().is_empty() })
        .await;
    for partner in [payer, worker] {
        assert!(partner.ledger.reconcile().unwrap().is_exact());
        partner.ends().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_was_never_opened_is_forgotten() {
    let town = Town::new();
    let (payer, newcomer) = with_newcomer(&town).await;
    work(&payer, &newcomer, 1, DUE);
    agreed(&payer, &newcomer).await;
    let payer = begins_again(&town, payer, &newcomer).await;
    ends_well(&town, payer, newcomer, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_ends_before_its_worker_saw_it_costs_nobody() {
    let town = Town::new();
    let (payer, newcomer) = with_newcomer(&town).await;
    work(&payer, &newcomer, 1, DUE);
    let mut known = agreed(&payer, &newcomer).await;
    let name = begun(&town, &payer, &newcomer, &mut known).await;
    closed(&town, &payer, &newcomer, &name).await;
    // Both end before the worker was told; and who is told too late says so, every time.
    newcomer.ends().await;
    let newcomer = Partner::new(&town, "newcomer", newcomers_wallet(&town).await, payer.address()).await;
    let payer = begins_again(&town, payer, &newcomer).await;
    let late = Signed::sign(&payer.key, ChannelBegun { offer: known.offer.digest() });
    let answer = newcomer.tabs.begun(payer.id(), late).await;
    assert!(matches!(answer, Response::Refused(Refusal { code: RefusalCode::Busy, .. })), "{answer:?}");
    ends_well(&town, payer, newcomer, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_ends_after_its_worker_booked_it_is_booked_by_both() {
    let town = Town::new();
    let (payer, newcomer) = with_newcomer(&town).await;
    work(&payer, &newcomer, 1, DUE);
    let mut known = agreed(&payer, &newcomer).await;
    let name = begun(&town, &payer, &newcomer, &mut known).await;
    let told = Signed::sign(&payer.key, ChannelBegun { offer: known.offer.digest() });
    // The answer does not reach the payer any more.
    assert_eq!(newcomer.tabs.begun(payer.id(), told).await, Response::Ack);
    closed(&town, &payer, &newcomer, &name).await;
    let payer = begins_again(&town, payer, &newcomer).await;
    ends_well(&town, payer, newcomer, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_is_not_confirmed_for_days_is_given_up() {
    let town = Town::new();
    let (payer, newcomer) = with_newcomer(&town).await;
    work(&payer, &newcomer, 1, DUE);
    let mut known = opening(&payer, &newcomer, wall_ms() - 4 * DAY_MS).await;
    newcomer.wallet.connect(&place(&payer.wallet).await).await.unwrap();
    let name = payer.wallet.open_channel_back(&known.lightning, SIZE_SAT).await.unwrap();
    known.channel = Some(name.clone());
    payer.storage.channel_note(Side::Payer, &known).await.unwrap();
    payer.pays(&[newcomer.id()]);
    until("it is given up", || async {
        payer.wallet.channels().await.unwrap().iter().all(|channel| channel.id != name)
    })
    .await;
    // Until its closing is in a block, ldk-node may raise the fee of that with a coin that was given to the next channel.
    for _ in 0..8 {
        town.mine(1).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    let payer = begins_again(&town, payer, &newcomer).await;
    ends_well(&town, payer, newcomer, 1).await;
}
