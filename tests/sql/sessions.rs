//! Rules 4, 5, 6 and 15: sessions, grants and what raises a token.

use super::scenarios::{A, B, furnish};
use crate::support::postgres::{Db, Lease, Running, Session};

#[tokio::test]
async fn a_heartbeat_extends_the_session_by_its_ttl_from_now() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let session = conn.session("1 hour").await;
    conn.run("UPDATE palisade.session SET expires_at = clock_timestamp() + interval '10 minutes'").await;
    let answer = conn.call(&format!("heartbeat({})", session.args())).await;
    assert_eq!(answer.is("applied").result()["left_ms"], 3_600_000);
    let left = conn.text("SELECT expires_at - clock_timestamp() BETWEEN interval '55 minutes' AND interval '1 hour' FROM palisade.session");
    assert_eq!(left.await, "true");
}

#[tokio::test]
async fn a_heartbeat_of_an_expired_session_is_refused_and_never_revives_it() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let session = conn.session("1 second").await;
    conn.wait_until("SELECT expires_at <= clock_timestamp() FROM palisade.session").await;
    for _ in 0..2 {
        conn.call(&format!("heartbeat({})", session.args())).await.is("rejected: session_expired");
    }
    let other = conn.session("1 minute").await;
    conn.acquire(&other, A).await;
    conn.call(&format!("acquire({}, '{B}')", session.args())).await.is("rejected: session_expired");
}

#[tokio::test]
async fn a_heartbeat_that_waited_beyond_the_expiry_is_refused() {
    let db = Db::patient().await;
    let mut conn = db.connect().await;
    let session = conn.session("1 second").await;
    conn.run("BEGIN; SELECT FROM palisade.session FOR UPDATE").await;
    let beat = Running::call(db.connect().await, format!("heartbeat({})", session.args())).await;
    let mut watcher = db.connect().await;
    watcher.wait_blocked(beat.pid).await;
    watcher.wait_until("SELECT expires_at <= clock_timestamp() FROM palisade.session").await;
    conn.run("COMMIT").await;
    beat.answer().await.is("rejected: session_expired");
}

#[tokio::test]
async fn a_takeover_for_expiry_closes_the_dead_session_in_the_same_transaction() {
    let db = Db::patient().await;
    let mut conn = db.connect().await;
    let lease = conn.owner(A).await;
    let next = conn.session("1 minute").await;
    conn.expire(&lease.session).await;
    conn.run("BEGIN").await;
    conn.acquire(&next, A).await;
    let beat = Running::call(db.connect().await, format!("heartbeat({})", lease.session.args())).await;
    db.connect().await.wait_blocked(beat.pid).await;
    conn.run("COMMIT").await;
    // Not "expired": closed, which no clock that goes back can undo.
    beat.answer().await.is("rejected: session_closed");
    let row = conn
        .text(&format!("SELECT concat_ws(' ', kind, reason, former_end IS NOT NULL) FROM palisade.grant_history WHERE session = '{}'", next.id))
        .await;
    assert_eq!(row, "takeover session ended t");
}

#[tokio::test]
async fn a_heartbeat_that_was_first_wins_against_a_takeover_that_waited_for_it() {
    let db = Db::patient().await;
    let mut conn = db.connect().await;
    let lease = conn.owner(A).await;
    let next = conn.session("1 minute").await;
    // It has to come before the expiry, which everybody else is to see soon: a busy machine needs more than half a second.
    let mut soon = 500;
    loop {
        conn.run(&format!(
            "UPDATE palisade.session SET expires_at = clock_timestamp() + interval '{soon} milliseconds' WHERE id = '{}'",
            lease.session.id
        ))
        .await;
        conn.run("BEGIN").await;
        let beat = conn.call(&format!("heartbeat({})", lease.session.args())).await;
        if beat.outcome == "applied" || soon > 10_000 {
            beat.is("applied");
            break;
        }
        conn.run("ROLLBACK").await;
        soon *= 3;
    }
    let mut watcher = db.connect().await;
    // What everybody else still sees is a session that has ended.
    watcher
        .wait_until(&format!(
            "SELECT expires_at < clock_timestamp() FROM palisade.session WHERE id = '{}'",
            lease.session.id
        ))
        .await;
    let grant = Running::call(db.connect().await, format!("acquire({}, '{A}')", next.args())).await;
    watcher.wait_blocked(grant.pid).await;
    conn.run("COMMIT").await;
    let answer = grant.answer().await;
    answer.is("rejected: held");
    assert_eq!(answer.result()["owner"], "worker-a");
}

#[tokio::test]
async fn a_takeover_for_no_progress_leaves_the_session_open_and_its_heartbeat_tells_the_loss() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let session = conn.session("1 minute").await;
    let next = conn.session("1 minute").await;
    let hung = conn.call(&format!("acquire({}, '{A}', '10 minutes')", session.args())).await.token.expect("a token");
    conn.acquire(&session, B).await;
    conn.call(&format!("acquire({}, '{A}')", next.args())).await.is("rejected: held");
    conn.run(&format!("UPDATE palisade.progress SET deadline = clock_timestamp() WHERE resource = '{A}'")).await;
    conn.acquire(&next, A).await;

    let beat = conn.call(&format!("heartbeat({})", session.args())).await;
    let lost = &beat.is("applied").result()["lost"];
    assert_eq!(*lost, serde_json::json!([{"resource": A, "token": hung, "reason": "no progress"}]));
    let held = conn.list(&format!("SELECT resource FROM palisade.held({})", session.args())).await;
    assert_eq!(held, [B], "the other lease stays");
    let reason = conn.text(&format!("SELECT reason FROM palisade.grant_history WHERE session = '{}'", next.id)).await;
    assert_eq!(reason, "no progress");
}

#[tokio::test]
async fn a_report_of_progress_extends_the_deadline_and_a_heartbeat_does_not() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let session = conn.session("1 minute").await;
    let token = conn.call(&format!("acquire({}, '{A}', '10 seconds')", session.args())).await.token.expect("a token");
    let lease = Lease { resource: A.to_owned(), token, session: session.clone() };
    let deadline = format!("SELECT deadline FROM palisade.progress WHERE resource = '{A}'");
    let first = conn.text(&deadline).await;
    conn.call(&format!("heartbeat({})", session.args())).await.is("applied");
    assert_eq!(conn.text(&deadline).await, first);
    conn.call(&format!("report_progress({}, '20 seconds')", lease.unnumbered())).await.is("applied");
    assert_ne!(conn.text(&deadline).await, first);
}

#[tokio::test]
async fn every_grant_is_a_new_token_also_for_the_same_holder() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let session = conn.session("1 minute").await;
    let mut last = 0;
    for _ in 0..3 {
        let lease = conn.acquire(&session, A).await;
        assert!(lease.token > last);
        if last > 0 {
            let former = Lease { token: last, ..lease.clone() };
            conn.call(&format!("report_progress({})", former.unnumbered())).await.is("rejected: stale");
        }
        last = lease.token;
    }
}

#[tokio::test]
async fn release_and_revoke_and_close_raise_the_token_so_that_a_running_statement_cannot_land_after_them() {
    let db = Db::patient().await;
    let mut conn = db.connect().await;
    for end in ["release", "revoke", "close_session"] {
        conn.clear().await;
        furnish(&mut conn).await;
        let lease = conn.owner(A).await;
        conn.run("BEGIN").await;
        let call = match end {
            "release" => format!("release({})", lease.fence(1)),
            "revoke" => format!("revoke('{A}', 'drill')"),
            _ => format!("close_session({})", lease.session.args()),
        };
        conn.call(&call).await.is("applied");
        let write = format!("set_alias({}, 'm', 'live', 1)", lease.fence(2));
        let write = Running::call(db.connect().await, write).await;
        db.connect().await.wait_blocked(write.pid).await;
        conn.run("COMMIT").await;
        write.answer().await.is("rejected: stale");
        assert_eq!(
            conn.number(&format!("SELECT token FROM palisade.lease WHERE resource = '{A}'")).await,
            lease.token + 1
        );
        assert_eq!(conn.number("SELECT version FROM palisade.alias WHERE alias = 'live'").await, 3, "after {end}");
        let next = conn.owner(A).await;
        assert_eq!(next.token, lease.token + 2);
    }
}

#[tokio::test]
async fn a_revoked_owner_is_told_why_by_its_heartbeat() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let lease = conn.owner(A).await;
    let answer = conn.call(&format!("revoke('{A}', 'drill')")).await;
    assert_eq!(answer.is("applied").result()["revoked"], lease.token);
    conn.call(&format!("revoke('{A}', 'drill')")).await.is("rejected: not_held");
    conn.call("revoke('nothing', 'drill')").await.is("rejected: no_lease");
    let beat = conn.call(&format!("heartbeat({})", lease.session.args())).await;
    assert_eq!(beat.result()["lost"][0]["reason"], "revoked: drill");
}

#[tokio::test]
async fn tokens_stay_below_two_to_the_53_and_a_used_up_counter_is_an_error() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let top: i64 = (1 << 53) - 1;
    for (table, values) in [
        ("lease (resource, token)", format!("('x', {})", top + 1)),
        ("lease (resource, token)", "('x', -1)".to_owned()),
    ] {
        let failure = conn.try_run(&format!("INSERT INTO palisade.{table} VALUES {values}")).await.expect_err("CHECK");
        assert_eq!(failure.code, "23514");
    }
    for number in ["0", "2097152", "NULL"] {
        let failure = conn.try_call(&format!("establish_epoch({number}, 'x')")).await.expect_err("bounds");
        assert_eq!(failure.code, "PS004");
    }
    let failure = conn.try_run("UPDATE palisade.epoch SET number = 2097152").await.expect_err("CHECK");
    assert_eq!(failure.code, "23514");

    // The last number but one is granted, and its release still fits.
    let session = conn.session("1 minute").await;
    conn.run(&format!("INSERT INTO palisade.lease (resource, token) VALUES ('{A}', {})", (2_i64 << 32) - 3)).await;
    let last = conn.acquire(&session, A).await;
    assert_eq!(last.token, (2 << 32) - 2);
    conn.call(&format!("release({})", last.fence(1))).await.is("applied");
    let failure = conn.try_call(&format!("acquire({}, '{A}')", session.args())).await.expect_err("used up");
    assert_eq!(failure.code, "PS006");
    assert_eq!(conn.number("SELECT token FROM palisade.lease").await, (2 << 32) - 1, "nothing ran into the next epoch");

    // The highest epoch's first and last tokens are still numbers that JSON can carry.
    conn.establish(2_097_151).await;
    let session = conn.session("1 minute").await;
    let first = conn.acquire(&session, A).await;
    assert_eq!(first.token, 2_097_151 * (1 << 32) + 1);
    conn.run(&format!("UPDATE palisade.lease SET token = {}", top - 2)).await;
    assert_eq!(conn.acquire(&session, A).await.token, top - 1);
}

#[tokio::test]
async fn a_token_of_a_later_epoch_is_never_lowered() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let session = conn.session("1 minute").await;
    conn.run(&format!("INSERT INTO palisade.lease (resource, token) VALUES ('{A}', {})", 5_i64 << 32)).await;
    let failure = conn.try_call(&format!("acquire({}, '{A}')", session.args())).await.expect_err("a later epoch's");
    assert_eq!(failure.code, "PS006");
}

#[tokio::test]
async fn heartbeats_are_heap_only_updates_and_the_session_has_no_index_but_its_key() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let session = conn.session("1 minute").await;
    // As many as fit into one page: more need the page to be pruned, which the other tests' connections may delay.
    for _ in 0..20 {
        conn.call(&format!("heartbeat({})", session.args())).await.is("applied");
    }
    conn.run("SELECT pg_stat_force_next_flush()").await;
    let updates =
        conn.text("SELECT n_tup_upd || ' ' || n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'session'").await;
    assert_eq!(updates, "20 20", "all updates, and those that touched no index");
    let indexes = conn.list("SELECT indexname::text FROM pg_indexes WHERE tablename = 'session'").await;
    assert_eq!(indexes, ["session_pkey"]);
    assert_eq!(
        conn.text("SELECT reloptions FROM pg_class WHERE oid = 'palisade.session'::regclass").await,
        "{fillfactor=50}"
    );
}

/// The clock was set back: what was granted by the former clock must not last for hours.
#[tokio::test]
async fn a_session_that_expires_later_than_its_ttl_allows_is_clamped_when_an_acquirer_sees_it() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    furnish(&mut conn).await;
    let next = conn.session("1 minute").await;
    for by in [format!("acquire({}, '{A}')", next.args()), format!("claim({}, 5)", next.args())] {
        let session = conn.session("1 minute").await;
        let lease = conn.acquire(&session, A).await;
        conn.run(&format!(
            "UPDATE palisade.session SET expires_at = clock_timestamp() + interval '3 hours' WHERE id = '{}'",
            session.id
        ))
        .await;
        conn.run(&format!("SELECT palisade.{by}")).await;
        let expiry = format!("FROM palisade.session WHERE id = '{}'", session.id);
        assert_eq!(
            conn.text(&format!("SELECT expires_at <= clock_timestamp() + ttl {expiry}")).await,
            "true",
            "by {by}"
        );
        assert_eq!(
            conn.text(&format!("SELECT closed_at IS NULL {expiry}")).await,
            "true",
            "it lives on: the owner may be well"
        );
        conn.call(&format!("release({})", lease.fence(1))).await.is("applied");
    }
}

#[tokio::test]
async fn opening_a_session_again_is_replayed_and_another_key_is_refused() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let session = conn.session("1 minute").await;
    let open = |s: &Session| format!("open_session({}, 'w', '1 minute')", s.args());
    conn.call(&open(&session)).await.is("replayed");
    let other = Session { id: session.id, key: "another key of somebody".to_owned() };
    conn.call(&open(&other)).await.is("rejected: wrong_key");
    conn.expire(&session).await;
    conn.call(&open(&session)).await.is("rejected: session_closed");
}

#[tokio::test]
async fn every_call_of_a_session_needs_its_key() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let lease = conn.owner(A).await;
    let thief = Session { id: lease.session.id, key: "another key of somebody".to_owned() };
    let nobody = Session::fresh();
    for call in ["heartbeat", "close_session", "acquire"] {
        let more = if call == "acquire" { ", 'x'" } else { "" };
        conn.call(&format!("{call}({}{more})", thief.args())).await.is("rejected: wrong_key");
        conn.call(&format!("{call}({}{more})", nobody.args())).await.is("rejected: no_session");
        let failure = conn.try_call(&format!("{call}('{}', NULL{more})", lease.session.id)).await;
        assert_ne!(failure.map(|answer| answer.outcome).unwrap_or_default(), "applied", "{call} without a key");
    }
    assert_eq!(conn.list(&format!("SELECT resource FROM palisade.held({})", thief.args())).await.len(), 0);
    assert_eq!(conn.number("SELECT count(*) FROM palisade.lease").await, 1, "a stranger leaves no rows");
}

#[tokio::test]
async fn a_closed_session_gives_its_leases_back_and_can_do_nothing_more() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    furnish(&mut conn).await;
    let session = conn.session("1 minute").await;
    let lease = conn.acquire(&session, A).await;
    conn.acquire(&session, B).await;
    let answer = conn.call(&format!("close_session({})", session.args())).await;
    assert_eq!(answer.is("applied").result()["released"], 2);
    conn.call(&format!("close_session({})", session.args())).await.is("replayed");
    conn.call(&format!("heartbeat({})", session.args())).await.is("rejected: session_closed");
    conn.call(&format!("acquire({}, '{A}')", session.args())).await.is("rejected: session_closed");
    conn.call(&format!("set_alias({}, 'm', 'live', 1)", lease.fence(1))).await.is("rejected: stale");
    let former = conn.text("SELECT count(*) FROM palisade.lease WHERE session IS NOT NULL").await;
    assert_eq!(former, "0");
}

#[tokio::test]
async fn a_grant_whose_answer_was_lost_is_found_again_by_held() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let lease = conn.owner(A).await;
    let held = conn
        .list(&format!(
            "SELECT concat_ws(' ', resource, token, sequence, progress_left_ms) FROM palisade.held({})",
            lease.session.args()
        ))
        .await;
    assert_eq!(held, [format!("{A} {} 0", lease.token)]);
}

#[tokio::test]
async fn keys_are_stored_as_hashes_only() {
    let db = Db::new().await;
    let mut conn = db.connect().await;
    let lease = conn.owner(A).await;
    let tables = conn
        .list("SELECT relname::text FROM pg_class WHERE relnamespace = 'palisade'::regnamespace AND relkind = 'r'")
        .await;
    for table in tables {
        let found = conn
            .number(&format!(
                "SELECT count(*) FROM palisade.{table} AS x WHERE strpos(x::text, '{}') > 0",
                lease.session.key
            ))
            .await;
        assert_eq!(found, 0, "the key itself is in {table}");
    }
}
