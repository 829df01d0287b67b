//! What the leader does for the database, and tells of it: retention, refusals.

use std::time::Duration;

use palisade::reconcile::upkeep::{Retention, round};
use palisade::store::Kind;
use serde_json::json;

use crate::stage::Stage;
use crate::support::postgres::Lease;

/// What a controller did not read is not needed by it: a new leader looks at everything.
#[tokio::test]
async fn a_controller_that_was_away_for_longer_than_events_are_kept_looks_at_everything() {
    let stage = Stage::new("away").await;
    stage.point("champion", 1).await;
    let replica = stage.replica("a").await;
    stage.create("churn", json!({"model": {"version": null, "alias": "champion"}})).await;
    stage.planned("churn", "n.spec->>'version' = '1'").await;
    replica.stop().await;
    // While nobody looks, the alias moves; its event is removed before anybody is back.
    stage.point("champion", 2).await;
    let mut sql = stage.sql().await;
    sql.run("UPDATE palisade.event SET at = at - interval '8 days'").await;
    sql.wait_until("SELECT bool_and(xid < pg_snapshot_xmin(pg_current_snapshot())) FROM palisade.event").await;
    let mut removed = 0;
    let tell = |kind, rows| removed += if kind == Kind::Events { rows } else { 0 };
    round(&stage.store, Retention::default(), tell).await.expect("a round");
    assert!(removed > 0);
    assert_eq!(sql.number("SELECT count(*) FROM palisade.event").await, 0);

    let replica = stage.replica("b").await;
    stage.planned("churn", "n.spec->>'version' = '2'").await;
    replica.stop().await;
}

#[tokio::test]
async fn a_leader_takes_its_lease_anew_before_its_ledger_grows_for_ever() {
    let stage = Stage::new("renewal").await;
    let retention = Retention { ledger: Duration::from_secs(3), ..Retention::default() };
    let replica = stage.lasting_with("a", retention).await;
    stage.create("churn", json!({})).await;
    stage.planned("churn", "true").await;
    let grants =
        "SELECT count(*) >= 3 FROM palisade.grant_history WHERE resource = 'controller/default' AND kind = 'grant'";
    stage.sql().await.wait_until(grants).await;
    // Given back each time, never taken over; and the work goes on.
    let takeovers = "SELECT count(*) FROM palisade.grant_history WHERE kind = 'takeover'";
    assert_eq!(stage.sql().await.number(takeovers).await, 0);
    stage.patch("churn", json!({"spec": {"model": {"version": 2}}})).await;
    stage.planned("churn", "n.spec->>'version' = '2'").await;
    replica.stop().await;
}

#[tokio::test]
async fn what_a_client_without_metrics_is_refused_the_leader_counts_once() {
    let stage = Stage::new("refusals").await;
    let mut client = stage.sql().await;
    let lease = client.owner("jobs/nightly").await;
    let forged = Lease { token: lease.token + 1, ..lease };
    let refused = format!("set_alias({}, 'm', 'champion', 1)", forged.fence(1));
    client.call(&refused).await.is("rejected: not_issued");
    let replica = stage.lasting("a").await;
    // From here on it counts: what was refused before was another leader's to tell.
    replica.tells("palisade_registry_refusals_total{reason=\"not_issued\"} 0").await;
    for _ in 0..3 {
        client.call(&refused).await.is("rejected: not_issued");
    }
    replica.tells("palisade_registry_refusals_total{reason=\"not_issued\"} 3").await;
    client.call(&refused).await.is("rejected: not_issued");
    replica.tells("palisade_registry_refusals_total{reason=\"not_issued\"} 4").await;
    replica.stop().await;
}
