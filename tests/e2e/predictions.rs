//! What users of a model notice of a rollout: nothing but the other version's answers.

use std::collections::BTreeMap;
use std::time::Duration;

use super::install::address;
use super::traffic::{Counts, Traffic};
use super::world::World;

/// From one version to another, under traffic; how long until the Service had moved and all was done.
async fn roll(world: &World, traffic: &Traffic, from: i64, to: i64) -> Duration {
    traffic.look();
    traffic.flows().await;
    let before = traffic.look();
    only(&before, &[from], &[from]);
    world.roll("iris", to);
    let took = world.serves("iris", to).await;
    let during = traffic.look();
    only(&during, &[from, to], &[from, to]);
    // From here on nobody new gets to the old version. Who kept a connection does, until its pods have ended.
    traffic.flows().await;
    only(&traffic.look(), &[to], &[from, to]);
    let ended = || async {
        match world.pods(world.shop, "palisade.dev/deployment=iris").len() {
            1 => Ok(()),
            count => Err(format!("{count} pods")),
        }
    };
    let drained = world.until("the old pods have ended", ended).await;
    let ending = traffic.look();
    only(&ending, &[to], &[from, to]);
    traffic.flows().await;
    only(&traffic.look(), &[to], &[to]);
    eprintln!(
        "from {from} to {to} in {:.1} s, the old pods gone {:.1} s later; answers during it, by version: {:?} to new connections, {:?} to kept ones, \
         {} of which the server had closed; the slowest took {:.2} s",
        took.as_secs_f64(),
        drained.as_secs_f64(),
        during.fresh,
        during.kept,
        during.reconnects + ending.reconnects,
        during.slowest.as_secs_f64()
    );
    took
}

/// No request failed, and each was answered by one of these versions.
fn only(counts: &Counts, fresh: &[i64], kept: &[i64]) {
    check(counts);
    let all = |found: &BTreeMap<i64, usize>, allowed: &[i64]| found.keys().all(|version| allowed.contains(version));
    assert!(all(&counts.fresh, fresh) && all(&counts.kept, kept), "not by {fresh:?} and {kept:?} alone: {counts:?}");
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
    // Its Deployment is still there, scaled to zero: going back needs nothing that going forward does not. Both are the model
    // server's start, and then the drain; the allowance is for two cores that others have work for.
    let allowed = forward.mul_f64(1.3) + Duration::from_secs(2);
    assert!(back < allowed, "forward took {forward:?}, back {back:?}: more than {allowed:?}");
}
