//! Older data goes on.

use palisade::manifests::EPOCH_OBJECT;

use crate::ground::{Address, Ground, server, stalled, superuser, tells};
use crate::history::{Owner, is_closed};
use crate::support::postgres::{Backup, Conn, Server};

/// A backup of epoch 1; afterwards epoch 2 comes, grants, and is lost with its server. The controller stays.
async fn lost(ground: &Ground) -> (Address, Backup, Owner, crate::support::world::Worker) {
    let primary = server(ground).await;
    let (address, resource) = (Address::of(&primary).await, ground.resource());
    let controller = ground.controller("controller-a", &address.login());
    ground.epoch_is(&superuser(&primary), 1).await;
    ground.create().await;
    Owner::new(&superuser(&primary), &resource, &ground.history).await.writes().await;
    ground.told_by_the_leader_of(1).await;
    let backup = primary.backup();
    primary.stop();
    primary.start_again();
    ground.epoch_is(&superuser(&primary), 2).await;
    let mut owner = Owner::new(&superuser(&primary), &resource, &ground.history).await;
    owner.writes().await;
    ground.told_by_the_leader_of(2).await;
    (address, backup, owner, controller)
}

async fn goes_on(ground: &Ground, server: &Server, mut lost: Owner) {
    let url = superuser(server);
    ground.epoch_is(&url, 3).await;
    let mut next = Owner::new(&url, &ground.resource(), &ground.history).await;
    next.writes().await;
    lost.is_refused(&url, &["stale", "not_issued", "session_closed", "no_lease"]).await;
    ground.told_by_the_leader_of(3).await;
    ground.nothing_went_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_backup_on_the_same_timeline_waits_for_a_person_says_so_everywhere_and_goes_on_when_adopted() {
    let ground = Ground::new("restored").await;
    let (address, backup, owner, controller) = lost(&ground).await;
    let restored = backup.restore();
    address.move_to(&restored);

    // Condition, metric, event and command say it; nobody is let in.
    let status = ground.status("to say that a person is needed", |s| stalled(s) == Some("EpochNotEstablished")).await;
    assert!(status.last_error.is_some_and(|error| error.message.contains("palisade epoch adopt")));
    tells(&controller, "palisade_epoch_needs_attention{cause=\"LostBranch\"} 1").await;
    let view = ground.json(&address.login(), &["epoch", "show"], 0);
    assert_eq!(view["attention"]["cause"], "LostBranch");
    ground.doctor_finds(&address.login(), "cluster/epoch-lost");
    let shown = ground.palisade(&address.login(), &["epoch", "show"]);
    let shown = String::from_utf8(shown.stdout).expect("text");
    assert!(shown.contains("palisade epoch adopt") && shown.contains("a person decides"), "{shown}");
    is_closed(&superuser(&restored)).await;
    // An advance is not the word for it, and nobody is asked in vain.
    let refused = ground.json(&address.login(), &["epoch", "advance", "--yes"], 3);
    assert!(refused["error"]["next"].as_str().is_some_and(|next| next.contains("palisade epoch adopt")), "{refused}");
    ground.json(&address.login(), &["epoch", "adopt"], 2);
    is_closed(&superuser(&restored)).await;

    let adopted = ground.json(&address.login(), &["epoch", "adopt", "--yes"], 0);
    assert_eq!((adopted["epoch"].as_i64(), adopted["former"].as_i64()), (Some(3), Some(1)));
    goes_on(&ground, &restored, owner).await;
    tells(&controller, "palisade_epoch_needs_attention{cause=\"LostBranch\"} 0").await;
    // Safe to repeat, and then it changes nothing.
    let again = ground.json(&address.login(), &["epoch", "adopt", "--yes"], 0);
    assert_eq!((again["epoch"].as_i64(), again["changed"].as_bool()), (Some(3), Some(false)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_to_an_earlier_point_is_a_newer_timeline_and_goes_on_by_itself() {
    let ground = Ground::new("recovered").await;
    let (address, backup, owner, _controller) = lost(&ground).await;
    let recovered = backup.recover();
    let mut admin = Conn::open(&recovered.url).await;
    admin.wait_until("SELECT NOT pg_is_in_recovery()").await;
    address.move_to(&recovered);
    goes_on(&ground, &recovered, owner).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_database_in_the_place_of_the_lost_one_waits_for_a_person_and_starts_above_all_that_was_granted() {
    let ground = Ground::new("empty").await;
    let (address, _, owner, _controller) = lost(&ground).await;
    let empty = server(&ground).await;
    address.move_to(&empty);
    ground.status("to say that a person is needed", |s| stalled(s) == Some("EpochNotEstablished")).await;
    is_closed(&superuser(&empty)).await;
    ground.json(&address.login(), &["epoch", "adopt", "--yes"], 0);
    goes_on(&ground, &empty, owner).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_database_in_a_cluster_that_only_its_objects_remember_starts_above_them_by_itself() {
    let ground = Ground::new("forgotten").await;
    let (address, _, owner, _controller) = lost(&ground).await;
    // The database and the epoch object are gone. The statuses carry epoch 2.
    let empty = server(&ground).await;
    address.move_to(&empty);
    let gone = ground.epoch_objects().delete(EPOCH_OBJECT, &Default::default()).await;
    gone.expect("deleted");
    goes_on(&ground, &empty, owner).await;
}
