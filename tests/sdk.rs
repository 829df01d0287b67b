//! The worker library against a real Postgres, behind a proxy that loses things: every call ends as a fact.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on says so by panicking"
)]

mod support;

use std::time::Duration;

use palisade::clock::Clock;
use palisade::lease::{AcquireError, Ended, Lease, LeaseError, Session, SessionConfig, Settled};
use palisade::outcome::{Outcome, Reason};
use palisade::store::{CallError, OperationState, Store, StoreConfig, Write};
use serde_json::json;

use support::postgres::{Db, PATIENCE};
use support::proxy::{Fault, Proxy};
use support::world;
use support::writes::{self, DEPLOYMENT, Leases, put_plan, register};

/// One more than the library tries: with all of them lost, it gives up.
const ALL_TRIES: usize = 8;

struct Stage {
    db: Db,
    proxy: Proxy,
    /// By way of the proxy.
    store: Store,
    session: Session,
    clock: Clock,
}

async fn stage() -> Stage {
    stage_with(Clock::system()).await
}

async fn stage_with(clock: Clock) -> Stage {
    let db = Db::new().await;
    let proxy = Proxy::start(db.server.port()).await;
    register(&db.url()).await;
    let store = world::store(proxy.url(&db.url()), "sdk");
    let config = SessionConfig { clock: clock.clone(), ..SessionConfig::new("w", Duration::from_secs(600)) };
    let session = Session::open(store.clone(), config).await.expect("a session");
    Stage { db, proxy, store, session, clock }
}

impl Stage {
    /// The deployment's lease, with a plan to work on.
    async fn planned(&self) -> Lease {
        let controller = self.session.acquire("controller/default", None).await.expect("a lease");
        controller.write(put_plan(false)).await.expect("an answer").applied().expect("planned");
        self.session.acquire(DEPLOYMENT, None).await.expect("a lease")
    }

    async fn leases(&self) -> Leases {
        Leases {
            controller: self.session.acquire(writes::CONTROLLER, None).await.expect("a lease"),
            worker: self.session.acquire(DEPLOYMENT, None).await.expect("a lease"),
            other: self.session.acquire(writes::OTHER, None).await.expect("a lease"),
        }
    }

    fn lose_all(&self, call: &str, fault: &Fault) {
        for _ in 0..ALL_TRIES {
            self.proxy.on_next(&format!("palisade.{call}("), fault.clone());
        }
    }

    async fn applied(&self, call: &str) -> i64 {
        let mut sql = self.db.connect().await;
        let count = sql
            .number(&format!("SELECT count(*) FROM palisade.operation WHERE kind = '{call}' AND outcome = 'applied'"))
            .await;
        sql.close().await;
        count
    }
}

fn set_alias(version: i64) -> Write {
    writes::set_alias("champion", version)
}

#[tokio::test]
async fn a_lost_answer_to_any_fenced_write_is_asked_for_again_under_the_same_fence_and_applied_once() {
    let stage = stage().await;
    let leases = stage.leases().await;
    for write in writes::steps() {
        let before = stage.applied(write.name()).await;
        // The move is written under both fences.
        let rows = if write.name() == "move_guard" { 2 } else { 1 };
        let lost = stage.proxy.on_next(&format!("palisade.{}(", write.name()), Fault::LoseAnswer);
        let outcome = leases.send(&write).await.expect("an answer");
        assert!(lost.has_fired(), "{}", write.name());
        assert!(matches!(outcome, Outcome::Replayed(_)), "{}: {outcome:?}", write.name());
        assert_eq!(stage.applied(write.name()).await - before, rows, "{}", write.name());
    }
}

#[tokio::test]
async fn a_lost_request_for_any_fenced_write_is_sent_again_and_applied_once() {
    let stage = stage().await;
    let leases = stage.leases().await;
    for write in writes::steps() {
        let lost = stage.proxy.on_next(&format!("palisade.{}(", write.name()), Fault::LoseRequest);
        let outcome = leases.send(&write).await.expect("an answer");
        assert!(lost.has_fired(), "{}", write.name());
        assert!(matches!(outcome, Outcome::Applied(_)), "{}: {outcome:?}", write.name());
    }
}

#[tokio::test]
async fn an_unknown_outcome_stops_all_writes_until_it_is_settled_and_it_was_applied() {
    let stage = stage().await;
    let lease = stage.planned().await;
    stage.lose_all("set_alias", &Fault::LoseAnswer);
    let outcome = lease.write(set_alias(1)).await.expect("an outcome");
    assert!(matches!(outcome, Outcome::Unknown(_)), "{outcome:?}");
    let refused = lease.write(set_alias(2)).await;
    assert!(matches!(refused, Err(LeaseError::Unsettled { name: "set_alias", .. })), "{refused:?}");
    assert!(matches!(lease.next_fence().await, Err(LeaseError::Unsettled { .. })), "nor may the cluster be written to");
    assert!(matches!(lease.settle().await.expect("an answer"), Settled::Applied(_)));
    assert_eq!(lease.settle().await.expect("an answer"), Settled::Nothing);
}

#[tokio::test]
async fn an_unknown_outcome_that_never_arrived_is_closed_and_its_late_request_is_refused() {
    let stage = stage().await;
    let lease = stage.planned().await;
    let late = stage.proxy.on_next("palisade.set_alias(", Fault::LateRequest);
    stage.lose_all("set_alias", &Fault::LoseRequest);
    let outcome = lease.write(set_alias(1)).await.expect("an outcome");
    assert!(matches!(outcome, Outcome::Unknown(_)), "{outcome:?}");
    assert_eq!(lease.status(1).await.expect("an answer"), OperationState::Pending);
    assert_eq!(lease.settle().await.expect("an answer"), Settled::Never);
    // Only now the first request reaches the server.
    late.deliver();
    late.answered().await;
    assert_eq!(lease.status(1).await.expect("an answer"), OperationState::Never);
    assert_eq!(stage.applied("set_alias").await, 0);
}

#[tokio::test]
async fn a_write_whose_future_is_dropped_is_remembered_and_settled() {
    let stage = stage().await;
    let lease = stage.planned().await;
    let hung = stage.proxy.on_next("palisade.set_alias(", Fault::HangAnswer);
    tokio::select! {
        outcome = lease.write(set_alias(1)) => panic!("{outcome:?}"),
        () = hung.fired() => {}
    }
    assert!(matches!(lease.write(set_alias(2)).await, Err(LeaseError::Unsettled { .. })));
    hung.deliver();
    assert!(matches!(lease.settle().await.expect("an answer"), Settled::Applied(_)));
}

#[tokio::test]
async fn a_connection_that_owes_an_answer_is_thrown_away() {
    let stage = stage().await;
    // Long enough for every other answer, and a quarter of it for a connection.
    let timeout = Duration::from_secs(12);
    let config = StoreConfig { timeout, connections: 1, ..StoreConfig::new(stage.proxy.url(&stage.db.url()), "one") };
    let store = Store::new(&config).expect("a store");
    store.epoch_status().await.expect("an answer");
    // The answer never comes. The only place in the pool is free all the same.
    let hung = stage.proxy.on_next("palisade.epoch_status(", Fault::HangAnswer);
    assert!(matches!(store.epoch_status().await, Err(CallError::NoAnswer(_))));
    assert!(hung.has_fired());
    for _ in 0..20 {
        assert!(store.epoch_status().await.expect("an answer of its own").established);
    }
}

#[tokio::test]
async fn a_write_that_was_applied_before_a_restart_is_not_called_rejected_after_it() {
    let stage = stage().await;
    let lease = stage.planned().await;
    lease.write(set_alias(1)).await.expect("an answer").applied().expect("set");
    // Every connection is answered by a server that has no epoch yet, as right after a crash.
    stage
        .db
        .connect()
        .await
        .run("UPDATE palisade.established SET postmaster_start = postmaster_start - interval '1 hour'")
        .await;
    let mut conn = stage.db.connect().await;
    assert_eq!(
        lease.status(1).await.expect("an answer"),
        OperationState::Applied(json!({"model": "churn", "alias": "champion", "version": 1}))
    );
    // The same fence again, as a client would send it whose first answer was lost in the crash.
    let again = conn.text("SELECT (palisade.enter(resource, token, sequence, 'no key', kind, args_hash)).reason FROM palisade.operation WHERE kind = 'set_alias'").await;
    assert_eq!(again, "epoch_not_established", "a stranger is told nothing");
    conn.close().await;
    let outcome = lease.write(set_alias(2)).await.expect("an outcome");
    assert!(
        matches!(outcome, Outcome::Rejected(_) | Outcome::Unknown(_)),
        "a new write is not applied without an epoch: {outcome:?}"
    );
}

#[tokio::test]
async fn a_lease_that_is_dropped_without_a_release_is_found_and_given_back() {
    let stage = stage().await;
    let kept = stage.session.acquire("retraining/fraud", None).await.expect("a lease");
    let lease = stage.session.acquire("retraining/churn", None).await.expect("a lease");
    lease.write(set_alias(1)).await.expect("an answer").applied().expect("set");
    assert!(!stage.session.has_strays());
    drop(lease);
    assert!(stage.session.has_strays());
    assert_eq!(stage.session.release_unknown().await.expect("an answer"), 1);
    assert!(!stage.session.has_strays());
    let held = stage.session.held().await.expect("an answer");
    assert_eq!(held.iter().map(|held| held.token).collect::<Vec<_>>(), [kept.token()]);
}

#[tokio::test]
async fn a_plan_that_this_release_cannot_read_is_left_to_others_and_stops_nobody() {
    let stage = stage().await;
    drop(stage.planned().await);
    stage.session.release_unknown().await.expect("an answer");
    let mut sql = stage.db.connect().await;
    sql.run("UPDATE palisade.plan SET spec = spec || '{\"strategy\": \"OfTomorrow\"}'").await;
    assert!(stage.session.claim(5).await.expect("an answer").is_empty());
    assert!(stage.session.held().await.expect("an answer").iter().all(|held| held.resource != DEPLOYMENT));
    assert_eq!(
        sql.number("SELECT count(*) FROM palisade.queue WHERE due_at > clock_timestamp() + interval '30 s'").await,
        1
    );
    sql.close().await;
}

#[tokio::test]
async fn a_grant_whose_answer_was_lost_is_found_again_and_given_back() {
    let stage = stage().await;
    stage.proxy.on_next("palisade.acquire(", Fault::LoseAnswer);
    let lost = stage.session.acquire("retraining/churn", None).await;
    assert!(matches!(lost, Err(AcquireError::Call(_))), "{lost:?}");
    let held = stage.session.held().await.expect("an answer");
    assert_eq!(held.iter().map(|h| h.resource.as_str()).collect::<Vec<_>>(), ["retraining/churn"]);
    assert_eq!(stage.session.release_unknown().await.expect("an answer"), 1);
    assert!(stage.session.held().await.expect("an answer").is_empty());
}

#[tokio::test]
async fn a_lease_that_another_session_holds_is_refused_with_its_owner_and_the_time_left() {
    let stage = stage().await;
    let _held = stage.session.acquire("retraining/churn", None).await.expect("a lease");
    let other = Session::open(stage.store.clone(), SessionConfig::new("other", Duration::from_secs(60)))
        .await
        .expect("a session");
    match other.acquire("retraining/churn", None).await {
        Err(AcquireError::Rejected(rejection)) => {
            assert_eq!(rejection.reason, Reason::Held);
            let detail = rejection.detail.expect("who and how long");
            assert_eq!(detail["owner"], "w");
            assert!(detail["left_ms"].as_i64().expect("a number") > 0);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_process_that_was_paused_past_its_deadline_drops_its_leases_before_it_sends_anything() {
    let stage = stage_with(Clock::manual()).await;
    let lease = stage.session.acquire("retraining/churn", None).await.expect("a lease");
    stage.clock.advance(Duration::from_secs(399));
    assert!(lease.check().is_ok(), "two thirds of the TTL are ours");
    stage.clock.advance(Duration::from_secs(2));
    let refused = lease.write(set_alias(1)).await;
    assert!(matches!(refused, Err(LeaseError::Lost { .. })), "{refused:?}");
    lease.lost().await;
    assert!(matches!(stage.session.over().await, Ended::Overdue { .. }));
    assert!(!stage.proxy.statements().iter().any(|s| s.contains("set_alias")), "it was not even sent");
}

#[tokio::test]
async fn a_revoked_lease_is_told_by_the_next_heartbeat_and_the_session_lives_on() {
    let stage = stage().await;
    // It beats every 5 s, and may be silent for 10.
    let config = SessionConfig::new("short", Duration::from_secs(15));
    let session = Session::open(stage.store.clone(), config).await.expect("a session");
    let lease = session.acquire("retraining/churn", None).await.expect("a lease");
    let kept = session.acquire("retraining/fraud", None).await.expect("a lease");
    stage.store.revoke("retraining/churn", "maintenance").await.expect("an answer").applied().expect("revoked");
    tokio::time::timeout(PATIENCE, lease.lost()).await.expect("told");
    assert!(session.alive() && kept.check().is_ok());
    assert!(matches!(lease.write(set_alias(1)).await, Err(LeaseError::Lost { .. })));
}

#[tokio::test]
async fn a_lost_heartbeat_is_sent_again_and_costs_no_lease() {
    let stage = stage().await;
    // It beats every 5 s, and may be silent for 10.
    let config = SessionConfig::new("short", Duration::from_secs(15));
    let session = Session::open(stage.store.clone(), config).await.expect("a session");
    let lost = stage.proxy.on_next("palisade.heartbeat(", Fault::LoseAnswer);
    lost.fired().await;
    let beats = || stage.proxy.statements().iter().filter(|s| s.contains("palisade.heartbeat(")).count();
    let before = beats();
    while beats() == before {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(session.alive());
    }
    assert!(session.alive());
}

#[tokio::test]
async fn a_guard_is_moved_under_both_fences_and_a_refusal_of_the_others_costs_only_that_lease() {
    let stage = stage().await;
    let Leases { worker, other, .. } = stage.leases().await;
    worker.write(set_alias(1)).await.expect("an answer").applied().expect("set");
    let moved = worker.move_guard(&other, "churn", "champion").await.expect("an answer");
    assert!(matches!(moved, Outcome::Applied(_)), "{moved:?}");
    let refused = worker.write(set_alias(2)).await.expect("an answer");
    assert!(matches!(&refused, Outcome::Rejected(r) if r.reason == Reason::Guarded), "{refused:?}");
    other.write(set_alias(2)).await.expect("an answer").applied().expect("it is the other's now");
    // The other lease is lost, and does not know yet.
    let mut sql = stage.db.connect().await;
    sql.run(&format!("UPDATE palisade.lease SET token = token + 1 WHERE resource = '{}'", writes::OTHER)).await;
    worker.write(writes::set_alias("spare", 1)).await.expect("an answer").applied().expect("set");
    let refused = worker.move_guard(&other, "churn", "spare").await.expect("an answer");
    assert!(matches!(&refused, Outcome::Rejected(r) if r.reason == Reason::Stale && r.is_of_another()), "{refused:?}");
    assert!(other.check().is_err(), "it is over");
    worker
        .write(writes::set_alias("spare", 2))
        .await
        .expect("an answer")
        .applied()
        .expect("this one is as good as before");
}

#[tokio::test]
async fn one_call_is_one_statement() {
    let stage = stage().await;
    let lease = stage.planned().await;
    lease.write(set_alias(1)).await.expect("an answer").applied().expect("set");
    let before = stage.proxy.statements().len();
    lease.write(set_alias(2)).await.expect("an answer").applied().expect("set");
    let sent = stage.proxy.statements().split_off(before);
    assert_eq!(sent.iter().filter(|s| !s.contains("heartbeat")).count(), 1, "{sent:?}");
}
