//! Retention, as the leader has it.

use std::time::Duration;

use palisade::reconcile::upkeep::{Retention, round};
use palisade::store::Kind;
use serde_json::json;

use crate::stage::Stage;

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
    let replica = stage.replica_with("a", &stage.db.url_as("controller_login"), retention).await;
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
