//! Another server goes on, without what it never heard of.

use crate::ground::{Address, Ground, cut_off, login, promote, server, superuser};
use crate::history::{Owner, is_closed};
use crate::support::postgres::Conn;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_standby_that_is_promoted_gives_out_no_fence_twice_and_nobody_does_anything() {
    let ground = Ground::new("lagging").await;
    let primary = server(&ground).await;
    let (address, resource) = (Address::of(&primary).await, ground.resource());
    let _controller = ground.controller("controller-a", &address.login());
    ground.epoch_is(&superuser(&primary), 1).await;
    ground.create().await;
    let mut first = Owner::new(&superuser(&primary), &resource, &ground.history).await;
    first.writes().await;
    ground.told_by_the_leader_of(1).await;
    let standby = primary.standby();
    cut_off(&primary, &standby).await;
    // Granted, written, answered; and lost.
    let mut lost = Owner::new(&superuser(&primary), &resource, &ground.history).await;
    lost.writes().await;
    primary.crash();
    promote(&standby).await;
    address.move_to(&standby);

    let url = superuser(&standby);
    ground.epoch_is(&url, 2).await;
    let mut next = Owner::new(&url, &resource, &ground.history).await;
    next.writes().await;
    lost.is_refused(&url, &["stale", "not_issued", "session_closed"]).await;
    first.is_refused(&url, &["stale", "session_closed"]).await;
    ground.told_by_the_leader_of(2).await;
    ground.nothing_went_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_standbys_promoted_at_once_one_gets_the_epoch_and_the_other_refuses_its_clients() {
    let ground = Ground::new("both").await;
    let primary = server(&ground).await;
    let resource = ground.resource();
    let controller = ground.controller("controller-a", &login(&primary));
    ground.epoch_is(&superuser(&primary), 1).await;
    ground.create().await;
    let mut first = Owner::new(&superuser(&primary), &resource, &ground.history).await;
    first.writes().await;
    ground.told_by_the_leader_of(1).await;
    let standbys = [primary.standby(), primary.standby()];
    for standby in &standbys {
        cut_off(&primary, standby).await;
    }
    let mut lost = Owner::new(&superuser(&primary), &resource, &ground.history).await;
    lost.writes().await;
    drop(controller);
    primary.crash();
    tokio::join!(promote(&standbys[0]), promote(&standbys[1]));

    let allocators = [ground.allocator(&login(&standbys[0])), ground.allocator(&login(&standbys[1]))];
    let (a, b) = tokio::join!(allocators[0].ensure(), allocators[1].ensure());
    let winner = usize::from(b.is_ok());
    let loser = 1 - winner;
    assert!(a.is_ok() != b.is_ok(), "one of them gets the epoch: {a:?} {b:?}");
    // Their controllers go on asking. It stays as it is.
    let controllers = [
        ground.controller("controller-of-a", &login(&standbys[0])),
        ground.controller("controller-of-b", &login(&standbys[1])),
    ];
    controllers[winner].says("leading", 1).await;
    controllers[loser].says("is a branch that was left", 1).await;
    for _ in 0..3 {
        allocators[winner].ensure().await.expect("it keeps its epoch");
        allocators[loser].ensure().await.expect_err("it is not given back");
    }
    ground.epoch_is(&superuser(&standbys[winner]), 2).await;
    is_closed(&superuser(&standbys[loser])).await;
    let mut next = Owner::new(&superuser(&standbys[winner]), &resource, &ground.history).await;
    next.writes().await;
    lost.is_refused(&superuser(&standbys[winner]), &["stale", "not_issued", "session_closed"]).await;
    lost.is_refused(&superuser(&standbys[loser]), &["epoch_not_established"]).await;
    ground.told_by_the_leader_of(2).await;
    // A person decides that it is the other one, while both run.
    let adopted = ground.json(&login(&standbys[loser]), &["epoch", "adopt", "--yes"], 0);
    assert_eq!(adopted["epoch"], 3);
    controllers[winner].says("is a branch that was left", 1).await;
    is_closed(&superuser(&standbys[winner])).await;
    let mut last = Owner::new(&superuser(&standbys[loser]), &resource, &ground.history).await;
    last.writes().await;
    ground.told_by_the_leader_of(3).await;
    ground.nothing_went_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_was_paused_before_it_told_its_database_takes_the_epoch_from_nobody() {
    let ground = Ground::new("paused").await;
    let primary = server(&ground).await;
    let resource = ground.resource();
    ground.allocator(&login(&primary)).ensure().await.expect("an epoch");
    let mut first = Owner::new(&superuser(&primary), &resource, &ground.history).await;
    first.writes().await;
    let standbys = [primary.standby(), primary.standby()];
    for standby in &standbys {
        cut_off(&primary, standby).await;
    }
    primary.crash();
    tokio::join!(promote(&standbys[0]), promote(&standbys[1]));
    // The cluster says that the first one has epoch 2, and its database never heard of it.
    let paused =
        ground.controller_with("controller-a", &login(&standbys[0]), &[("PALISADE_STOP_AT", "-/epoch_put/after")]);
    paused.stopped().await;
    let _controller = ground.controller("controller-b", &login(&standbys[1]));
    ground.epoch_is(&superuser(&standbys[1]), 3).await;
    ground.create().await;
    let mut owner = Owner::new(&superuser(&standbys[1]), &resource, &ground.history).await;
    owner.writes().await;
    paused.thaw();
    paused.says("is a branch that was left", 1).await;
    is_closed(&superuser(&standbys[0])).await;
    first.is_refused(&superuser(&standbys[0]), &["epoch_not_established"]).await;
    ground.epoch_is(&superuser(&standbys[1]), 3).await;
    owner.writes().await;
    ground.told_by_the_leader_of(3).await;
    ground.nothing_went_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_primary_that_comes_back_is_closed_as_soon_as_a_controller_sees_it() {
    let ground = Ground::new("old").await;
    let primary = server(&ground).await;
    let (address, resource) = (Address::of(&primary).await, ground.resource());
    let _controller = ground.controller("controller-a", &address.login());
    ground.epoch_is(&superuser(&primary), 1).await;
    ground.create().await;
    let mut first = Owner::new(&superuser(&primary), &resource, &ground.history).await;
    first.writes().await;
    let standby = primary.standby();
    cut_off(&primary, &standby).await;
    promote(&standby).await;
    address.move_to(&standby);
    ground.epoch_is(&superuser(&standby), 2).await;
    let mut next = Owner::new(&superuser(&standby), &resource, &ground.history).await;
    next.writes().await;
    // Isolated, it goes on by itself: what it grants is nobody else's, and what is written there is lost with it.
    let mut isolated = Owner::branched(&superuser(&primary), &resource, &ground.history).await;
    isolated.writes().await;
    assert_eq!((isolated.lease.token >> 32, next.lease.token >> 32), (1, 2));

    let back = ground.controller("controller-b", &login(&primary));
    back.says("epoch withdrawn", 1).await;
    is_closed(&superuser(&primary)).await;
    isolated.is_refused(&superuser(&primary), &["epoch_not_established"]).await;
    isolated.is_refused(&superuser(&standby), &["stale", "not_issued", "session_closed"]).await;
    let view = ground.json(&login(&primary), &["epoch", "show"], 0);
    assert_eq!((view["attention"]["cause"].as_str(), view["next"]["step"].as_str()), (Some("LostBranch"), Some("ask")));
    ground.doctor_finds(&login(&primary), "cluster/epoch-lost");
    // Nor does a restart give it anything.
    primary.stop();
    primary.start_again();
    let refused = ground.allocator(&login(&primary)).ensure().await.expect_err("it is a branch that was left");
    assert!(refused.attention().is_some(), "{refused}");
    is_closed(&superuser(&primary)).await;
    ground.epoch_is(&superuser(&standby), 2).await;
    next.writes().await;
    let mut row = Conn::open(&superuser(&standby)).await;
    assert_eq!(row.number("SELECT token FROM palisade.alias WHERE alias = 'live'").await, next.lease.token);
    ground.told_by_the_leader_of(2).await;
    ground.nothing_went_back();
}
