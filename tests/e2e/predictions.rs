//! What users of a model notice of a rollout: nothing but the other version's answers.

use std::time::Duration;

use super::install::address;
use super::traffic::{Counts, Traffic};
use super::world::World;

/// From one version to another, under traffic; how long until the Service had moved and all was done.
async fn roll(world: &World, traffic: &Traffic, from: i64, to: i64) -> Duration {
    traffic.look();
    traffic.flows().await;
    let before = traffic.look();
    assert_eq!(before.versions.keys().collect::<Vec<_>>(), [&from], "before: {before:?}");
    world.roll("iris", to);
    let took = world.serves("iris", to).await;
    let during = traffic.look();
    check(&during);
    let known = |version: &i64| [from, to].contains(version);
    assert!(during.versions.keys().all(known), "during: {during:?}");
    traffic.flows().await;
    let after = traffic.look();
    check(&after);
    assert_eq!(after.versions.keys().collect::<Vec<_>>(), [&to], "after the drain: {after:?}");
    eprintln!(
        "from {from} to {to} in {:.1} s; answers during it, by version: {:?}; kept connections closed: {}; slowest: {:.2} s",
        took.as_secs_f64(),
        during.versions,
        during.reconnects,
        during.slowest.as_secs_f64()
    );
    took
}

fn check(counts: &Counts) {
    let failures = &counts.failures;
    assert!(failures.is_empty(), "{} requests failed: {:#?}", failures.len(), &failures[..failures.len().min(20)]);
}

pub async fn not_one_request_fails_while_a_version_replaces_another_and_back(world: &'static World) {
    let traffic = Traffic::start(&address(world, "iris"), 3);
    let forward = roll(world, &traffic, 1, 2).await;
    let back = roll(world, &traffic, 2, 1).await;
    check(&traffic.end().await);
    // Its Deployment is still there, scaled to zero: going back needs nothing that going forward does not.
    assert!(back < forward * 2, "forward took {forward:?}, back {back:?}");
}
